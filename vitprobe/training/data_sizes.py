"""Train several networks on growing sets of images at equal compute: who gains how much from more data."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitprobe.backbones.trunk import Trunk
from vitprobe.errors import ArgumentError
from vitprobe.inputs.drawn_scenes import drawn_scenes
from vitprobe.inputs.labels import Labelled, open_labelled
from vitprobe.inputs.scene_stream import FIRST_HELD_OUT
from vitprobe.inputs.scenes import NAMED
from vitprobe.probes.data_sizes import DataSizes, empty
from vitprobe.probes.shards import Shards
from vitprobe.results import to_json
from vitprobe.training.build import build
from vitprobe.training.checkpoint import LAST, STATE, write_text
from vitprobe.training.config import TrainConfig
from vitprobe.training.data import FIRST_BANK, HELD_OUT_SEED, MOST_AT_ONCE, Data, refuse_overlap
from vitprobe.training.dry import plan
from vitprobe.training.engine import Engine
from vitprobe.training.held_out import Reader
from vitprobe.training.loop import Progress, train
from vitprobe.training.variants import Variant

PLAIN = Variant(0)
WARMUP = 0.1
"""Share of the steps that warm up."""
DONE = "done.json"
Watch = Callable[[str, int], AbstractContextManager[Callable[[Progress], None]]]
"""Called with a title and a number of steps; gives what is told of each step."""


@dataclass(frozen=True)
class Contender:
    """Name a network that is trained from scratch."""

    name: str
    arch: str
    arch_args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """Hold what all trainings of a study share, and what they differ in."""

    contenders: tuple[Contender, ...]
    sizes: tuple[int, ...]
    """Training images, growing; each set holds the one before."""
    flops: float
    """Operations of one training, forward and backward: what is equal. A multiplication and an addition are two."""
    rates: tuple[float, ...]
    """Learning rates. Of several, each network takes, for all its trainings, the one that is best in short ones."""
    base: TrainConfig
    """What else is equal: optimiser, batch, decay, ..."""
    choose_at: int = 0
    """Training images of the short ones; they are judged on images that no training has and that are not held out."""
    choose_share: float = 0.25
    """Operations of a short one, as a share of ``flops``."""
    seeds: tuple[int, ...] = (0,)
    num_held_out: int = 5000
    num_development: int = 2000
    num_seen: int = 2000
    """Most training images that training accuracy is measured on."""

    def __post_init__(self) -> None:
        if not self.contenders or not self.rates or not self.seeds:
            raise ArgumentError("a study needs a network, a rate and a seed; give one of each or more")
        if not self.flops > 0 or not 0 < self.choose_share <= 1:
            raise ArgumentError(f"got {self.flops} operations, {self.choose_share} of them to choose a rate; give more")
        if len(self.rates) > 1 and self.choose_at not in self.sizes:
            raise ArgumentError(f"got {self.choose_at} images to choose a rate; give one of {list(self.sizes)}")

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> "Study":
        """Read a study from what a TOML file says. Raises `ArgumentError` for what is not allowed."""
        given = {name: tuple(v) if isinstance(v, list) else v for name, v in told.items()}
        contenders = tuple(Contender(**one) for one in given.pop("contenders"))
        base = TrainConfig(**given.pop("base", {}), num_registers=(0,))
        return cls(contenders=contenders, base=base, **given)


@dataclass(frozen=True)
class Images:
    """Hold a data set's three parts, which share no image."""

    name: str
    train: Labelled
    development: Labelled
    held: Labelled

    def nested(self, sizes: tuple[int, ...]) -> dict[int, Labelled]:
        """Return a set of each size; each class has its share in all, and each set holds the smaller ones."""
        found, left = {}, self.train
        for size in sorted(sizes, reverse=True):
            left = left if size == len(left) else left.sample(size, seed=HELD_OUT_SEED)
            found[size] = left
        return found


def open_images(name: str, train: str, held: str | None, study: Study) -> Images:
    """Open a data set for a study: a kind of generated scenes, or pictures with labels, ``train`` and ``held``.

    Scenes are drawn at once, their label is the majority colour. Raises a `VitprobeError` where there are too few.
    """
    if train in NAMED:
        config, most = replace(NAMED[train], size=study.base.image_size or (32, 32)), max(study.sizes)
        firsts = {0: most, FIRST_BANK: study.num_development, FIRST_HELD_OUT: study.num_held_out}
        parts = [drawn_scenes(n, config=config, seed=HELD_OUT_SEED, first=first) for first, n in firsts.items()]
        return Images(name, *parts)
    if held is None:
        raise ArgumentError(f"got {train} without held-out images; give the set's own test images")
    rest, development = open_labelled([train], need="labels").split(study.num_development, seed=HELD_OUT_SEED)
    if len(rest) < max(study.sizes):
        raise ArgumentError(f"{train} has {len(rest):,} images to train on; give fewer than {max(study.sizes):,}")
    tests = open_labelled([held], need="labels", classes=rest.classes)
    refuse_overlap(rest, tests)
    number = min(study.num_held_out, len(tests))
    return Images(name, rest, development, tests.sample(number, seed=HELD_OUT_SEED))


def run_study(study: Study, images: Images, work: Path, *, watch: Watch) -> DataSizes:
    """Train every network on every set of images with every seed; what ``work`` holds already is not done again.

    Every training has as many steps as its operations allow: their number is counted on one batch, forward and
    backward. Everything is measured on the same held-out images. A stopped training goes on from its last checkpoint.
    """
    sets = images.nested(study.sizes)
    runner = _Runner(study, images, sets, work, watch)
    models = [runner.describe(one) for one in study.contenders]
    told = {"data": images.name, "num_held_out": len(images.held), "flops": study.flops, "seeds": list(study.seeds)}
    told |= {"batch_size": study.base.batch_size, "classes": list(images.held.classes), "models": models}
    told |= {"digest": runner.data(sets[study.sizes[-1]]).digest()}
    result = empty(told, study.sizes, len(study.seeds))
    verdicts: dict[str, list[str]] = {}
    for s, size in enumerate(study.sizes):
        for m, (contender, row) in enumerate(zip(study.contenders, models, strict=True)):
            for n, seed in enumerate(study.seeds):
                found = runner.train(contender, size, seed, rate=row["lr"], steps=row["steps"])
                for name, value in found["measures"].items():
                    getattr(result, name)[m, s, n] = np.nan if value is None else value
                verdicts.setdefault(contender.name, []).append(found["verdict"])
    return replace(result, summary=result.summary | {"verdicts": verdicts})


@dataclass(frozen=True)
class _Runner:
    study: Study
    images: Images
    sets: Mapping[int, Labelled]
    work: Path
    watch: Watch

    def describe(self, one: Contender) -> dict[str, Any]:
        """Count the network, choose its rate, and say how many steps it has."""
        config, data = self.config(one, self.study.rates[0], 1, 0), self.data(self.sets[self.study.sizes[0]])
        counted = plan(config, PLAIN, data, Shards.alone("cpu"))
        per_step = counted["training_flops"] * config.batch_size
        steps = max(1, round(self.study.flops / per_step))
        tried = {rate: None for rate in self.study.rates}
        if len(tried) > 1:
            short = max(1, round(steps * self.study.choose_share))
            for rate in tried:
                found = self.train(one, self.study.choose_at, self.study.seeds[0], rate=rate, steps=short, judge=True)
                tried[rate] = found["development"]
        best = max(tried, key=lambda rate: (tried[rate] or 0.0, -rate))
        return asdict(one) | {
            "parameters": counted["parameters"],
            "training_flops": counted["training_flops"],
            "steps": steps,
            "images_seen": steps * config.batch_size,
            "lr": best,
            "rates_tried": {f"{rate:g}": share for rate, share in tried.items()},
        }

    def config(self, one: Contender, rate: float, steps: int, seed: int) -> TrainConfig:
        """Return the options of one training."""
        return replace(
            self.study.base,
            arch=one.arch,
            arch_args=dict(one.arch_args),
            lr=rate,
            steps=steps,
            seed=seed,
            data=(self.images.name,),
            warmup=int(WARMUP * steps),
            eval_every=max(1, steps),
        )

    def data(self, train_on: Labelled) -> Data:
        """Return what the loop reads: it watches a part of the held-out images."""
        base = self.study.base
        watched = min(base.num_held_out, len(self.images.held))
        held = self.images.held.sample(watched, seed=HELD_OUT_SEED)
        bank = train_on.sample(min(base.num_bank, len(train_on)), seed=HELD_OUT_SEED)
        return Data(held, bank, train_on)

    def train(
        self, one: Contender, size: int, seed: int, *, rate: float, steps: int, judge: bool = False
    ) -> dict[str, Any]:
        """Train and measure one network, or read what was measured; ``judge`` measures on development images alone."""
        config, train_on = self.config(one, rate, steps, seed), self.sets[size]
        data = self.data(train_on)
        told = to_json({"options": config.as_dict(), "images": data.digest(), "judge": judge, "study": self.judged})
        mark = hashlib.sha256(told.encode()).hexdigest()[:12]
        folder = self.work / self.images.name / f"{one.name}-{size}-seed{seed}-{mark}"
        if (folder / DONE).exists():
            return json.loads((folder / DONE).read_text(encoding="utf-8"))
        title = f"{self.images.name}, {size:,} images: {one.name}" + (f", rate {rate:g} tried" if judge else "")
        begun, engine = time.perf_counter(), Engine.open(config)
        with Shards.open(str(engine.device)) as shards, self.watch(title, steps) as show:
            built = build(config, PLAIN, data, shards)
            look = train(config, built, folder, engine, shards, on_progress=show)
            network = built.objective.variant()
            built.objective.eval()
            if judge:
                judged = self.images.development
                found = {"development": _right(network, judged, engine) / len(judged)}
            else:
                found = self.measure(network, train_on, look.summary, engine)
        engine.accelerator.free_memory()
        write_text(folder / DONE, to_json(found | {"seconds": time.perf_counter() - begun}) + "\n")
        (folder / LAST / STATE).unlink()  # three times the model, and nothing goes on from here
        return found

    @property
    def judged(self) -> list[int]:
        """What numbers a finished training's measures depend on beside its options."""
        return [self.study.num_held_out, self.study.num_development, self.study.num_seen]

    def measure(self, network: Trunk, train_on: Labelled, look: Mapping[str, Any], engine: Engine) -> dict[str, Any]:
        """Measure a finished network on all held-out images and on some of those that it was trained on."""
        seen = train_on.sample(min(self.study.num_seen, len(train_on)), seed=HELD_OUT_SEED)
        norm = look["norm"]
        measures = {
            "right": _right(network, self.images.held, engine),
            "train_accuracy": _right(network, seen, engine) / len(seen),
            "knn": look.get("knn"),
            "median": norm["median"],
            "p99": norm["p99"],
            "maximum": norm["max"],
            "outlier_share": look["outlier_fraction"],
        }
        return {"measures": measures, "verdict": look["verdict"]}


@torch.no_grad()
def _right(network: Trunk, images: Labelled, engine: Engine) -> int:
    """Count the images of a set that a network classifies right; one that cannot be read is wrong."""
    right = 0
    for batch in Reader(images, network.transform, MOST_AT_ONCE, 0, range(len(images))):
        labels = torch.from_numpy(images.labels[list(batch.indices)])
        with engine.precise():
            found = network(batch.images.to(engine.device)).argmax(1).cpu()
        right += int((found == labels).sum())
    return right
