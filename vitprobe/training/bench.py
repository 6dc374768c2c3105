"""What a training step costs beside the shortest loop that one would write by hand with timm: ratios in one run."""

import copy
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from vitprobe.backbones.base import Backbone
from vitprobe.inputs.stream import ItemStream, TrainBatch
from vitprobe.probes.bench import peak_memory
from vitprobe.registers.insert import insert
from vitprobe.training.build import Built
from vitprobe.training.config import TrainConfig
from vitprobe.training.engine import Engine
from vitprobe.training.objectives.supervised import Supervised
from vitprobe.training.plan import plan_step
from vitprobe.training.step import Stepper
from vitprobe.training.variants import Variant

Step = Callable[[], None]
BY_HAND = "by hand"
PEAK_SIDE = {"cuda": 8192, "cpu": 1024}
"""Side of the square matrices whose product gives a machine's peak."""
CLASSES = 1000


@dataclass(frozen=True)
class TrainRow:
    """Hold what one way to train costs."""

    way: str
    ratio: float
    """Median over rounds of its time over that of the loop by hand in the same round."""
    quartiles: tuple[float, float]
    images_per_s: float
    peak_mb: float | None
    """Most memory that a step holds at a time beyond what was there before, in MB (10**6 bytes)."""
    gflops: float
    """Floating-point operations of a step, forward and backward, for one image, in 10**9."""
    of_peak: float
    """Share of the machine's measured matrix peak in the same precision."""


def bench_training(
    make: Callable[[], Backbone],
    config: TrainConfig,
    *,
    num_registers: int = 4,
    rounds: int = 7,
    stream: ItemStream | None = None,
    against: tuple[str, Callable[[], Backbone]] | None = None,
    on_round: Callable[[], None] = lambda: None,
) -> list[TrainRow]:
    """Time training steps of one model, interleaved in one process: by hand, ours, ours with registers.

    All do the same: a forward and backward pass of cross-entropy over the same images in memory, clipping, AdamW.
    ``make`` gives the model, always the same. With ``stream``, our step is timed on images that are read and augmented
    too. With ``against``, a name and what makes it, another model's loop by hand is timed beside. Each round takes
    every way once, the order turning by one; a ratio is taken inside its round.
    """
    engine = Engine.open(config)
    plain = _own(make(), config, engine, 0)
    batch = _batch(plain.built.backbone, config.batch_size).to(engine.device)
    steppers = {"vitprobe, R = 0": plain, f"vitprobe, R = {num_registers}": _own(make(), config, engine, num_registers)}
    hand = _by_hand(make(), batch, config, engine)
    steps: dict[str, Step] = {BY_HAND: hand, f"{BY_HAND}, again": hand}
    steps |= {name: _taking(stepper, itertools.repeat(batch)) for name, stepper in steppers.items()}
    if stream is not None:
        steps["vitprobe, R = 0, reading images"] = _taking(plain, stream.batches(0, 4 + 4 * rounds))
    flops = {name: _flops(stepper, batch) for name, stepper in steppers.items()}
    if against is not None:
        other, make_other = f"{BY_HAND}, {against[0]}", against[1]
        steps[other] = _by_hand(make_other(), batch, config, engine)
        flops[other] = _flops(_own(make_other(), config, engine, 0), batch)
    times = _interleaved(steps, rounds, engine.device, on_round)
    peak = _matrix_peak(engine)
    rows = []
    for name, step in steps.items():
        reads = name.endswith("images")
        memory = None if reads else peak_memory(step, engine.device)
        per_image = flops.get(name, flops["vitprobe, R = 0"])
        rows.append(_row(name, times, config.batch_size, memory, per_image, peak))
    return rows


def _own(backbone: Backbone, config: TrainConfig, engine: Engine, num_registers: int) -> Stepper:
    backbone = insert(backbone, num_registers, seed=config.seed)
    objective = Supervised(backbone, config, tuple(map(str, range(CLASSES))))
    objective.train()
    stepper = Stepper.make(config, Built(Variant(num_registers), backbone, objective, None, None), engine)
    if config.compile:
        stepper.compile()
    return stepper


def _by_hand(backbone: Backbone, batch: TrainBatch, config: TrainConfig, engine: Engine) -> Step:
    """Write the loop as one would: model, optimiser, forward, backward, clip, step."""
    backbone.reset_head(CLASSES, seed=config.seed)
    model = backbone.module.to(engine.device).train()
    if config.compile:
        for block in model.blocks:
            block.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    images, labels = batch.views[0], batch.labels

    def step() -> None:
        with torch.autocast(images.device.type, dtype=engine.autocast, enabled=engine.autocast is not None):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _taking(stepper: Stepper, batches: Iterator[TrainBatch]) -> Step:
    def step() -> None:
        stepper.take(batches, 0)

    return step


def _batch(backbone: Backbone, number: int) -> TrainBatch:
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(number, 3, *backbone.spec.image_size, generator=draw)
    labels = torch.randint(CLASSES, (number,), generator=draw)
    return TrainBatch((images,), torch.arange(number), labels, None, {})


def _flops(stepper: Stepper, batch: TrainBatch) -> float:
    few = TrainBatch((batch.views[0][:2],), batch.indices[:2], batch.labels[:2], None, {})
    objective, precision = stepper.built.objective, "float32" if stepper.engine.autocast is None else "bfloat16"
    counted = copy.deepcopy(objective) if stepper.config.compile else objective
    found = plan_step(
        lambda: counted(few)["loss"],
        counted,
        batch_size=2,
        optimizer_slots=2,
        precision=precision,
        ema=False,
        scale_to=2,
    )
    return found.training_flops


def _interleaved(
    steps: dict[str, Step], rounds: int, device: torch.device, on_round: Callable[[], None]
) -> dict[str, list[float]]:
    names, times = list(steps), {name: [] for name in steps}
    for _ in range(2):
        for step in steps.values():  # warms every way up
            step()
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append(_time(steps[name], device))
        on_round()
    return times


def _time(step: Step, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _matrix_peak(engine: Engine) -> float:
    """Measure the best of some products of square matrices, in operations a second, in the run's precision."""
    side = PEAK_SIDE.get(engine.device.type, 1024)
    x = torch.randn(side, side, device=engine.device, dtype=engine.autocast or torch.float32)
    best = min(_time(lambda: x @ x, engine.device) for _ in range(12))
    return 2 * side**3 / best


def _row(
    name: str, times: dict[str, list[float]], number: int, memory: float | None, flops: float, peak: float
) -> TrainRow:
    ratios = [own / hand for own, hand in zip(times[name], times[BY_HAND], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    speed = number / statistics.median(times[name])
    return TrainRow(name, statistics.median(ratios), (low, high), speed, memory, flops / 1e9, speed * flops / peak)
