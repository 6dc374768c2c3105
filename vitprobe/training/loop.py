"""Train one variant: a straight loop that can be stopped at any moment and goes on to the same weights."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitprobe.errors import InputError, Stopped, VitprobeError, WeightsError
from vitprobe.probes.shards import Shards
from vitprobe.training import checkpoint
from vitprobe.training.build import Built
from vitprobe.training.config import TrainConfig
from vitprobe.training.engine import Engine, gathered, gathered_optimizer, scatter, scatter_optimizer
from vitprobe.training.evaluation import Evaluation, evaluate
from vitprobe.training.metrics import Metrics
from vitprobe.training.save import save_variant
from vitprobe.training.step import Stepper


class Diverged(VitprobeError):
    """A loss is not finite."""


@dataclass
class Progress:
    """Say how far a training is, for a progress bar."""

    step: int
    steps: int
    loss: float = float("nan")
    outlier_fraction: float = float("nan")


@dataclass
class _Run:
    """Hold what the loop of one variant works with."""

    stepper: Stepper
    folder: Path
    shards: Shards
    metrics: Metrics | None
    """The main process writes them."""
    start: int
    """Steps that were done when the run began."""
    progress: Progress
    on_progress: Callable[[Progress], None]
    waiting: list[tuple[int, dict[str, Tensor]]] = field(default_factory=list)
    """Terms of steps whose values have not been looked at yet: looking makes a GPU wait."""
    since: float = 0.0
    seen: int = 0

    def look(self) -> None:
        """Read the terms of the steps since the last look, and log the last. Raises where one is not finite."""
        for step, terms in self.waiting:
            for name, term in terms.items():
                if not bool(torch.isfinite(term)):
                    raise Diverged(
                        f"{name} is {float(term)} at step {step}; {checkpoint.intact(self.folder)}; try a lower --lr, "
                        "a smaller --clip, a longer --warmup or --precision float32"
                    )
        step, terms = self.waiting[-1]
        self.waiting.clear()
        self.progress.loss = float(terms["loss"])
        if self.metrics is not None:
            rate = (step - self.seen) * self.stepper.config.batch_size / (time.perf_counter() - self.since)
            rates = [group["lr"] for group in self.stepper.optimizer.param_groups]
            values = {name: float(term) for name, term in terms.items()}
            self.metrics.add(step, **values, lr=max(rates), images_per_s=rate)
        self.start_clock(step)

    def start_clock(self, step: int) -> None:
        """Count images a second from here."""
        self.since, self.seen = time.perf_counter(), step

    def evaluate(self, step: int) -> Evaluation:
        """Measure the variant; at the end, at every block."""
        stepper = self.stepper
        built, is_end = stepper.built, step == stepper.config.steps
        blocks = range(built.backbone.num_blocks) if is_end else None
        state = gathered(built.objective.state_dict()) if built.spare is not None else {}
        objective = built.whole(state).to(stepper.engine.device)
        look = evaluate(objective, built.held_out, stepper.engine, self.shards, blocks=blocks)
        fraction = look.summary["outlier_fraction"]
        self.progress.outlier_fraction = float("nan") if fraction is None else fraction
        if self.metrics is not None and (step > self.start or step == 0):  # else a finished run is looked at again
            self.metrics.add(step, held_out=look.summary)
        return look


def train(
    config: TrainConfig,
    built: Built,
    folder: Path,
    engine: Engine,
    shards: Shards,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Evaluation:
    """Train a variant to its last step, from its last checkpoint where there is one; returns the last look at it.

    Every ``eval_every`` steps it is measured and a checkpoint written. Raises `Stopped` after SIGINT or SIGTERM, with a
    checkpoint written; `VitprobeError` where a loss is not finite, an image file has vanished or the disk is full, with
    the last checkpoint intact.
    """
    stepper = Stepper.make(config, built, engine)
    shards.on_main(lambda: checkpoint.recover(folder))
    start = _load(stepper, folder)
    if start in _kept(config):  # it may have ended before it was kept
        shards.on_main(lambda: checkpoint.keep(folder, start))
    if config.compile:
        stepper.compile()
    metrics = Metrics(folder, start=start, tensorboard=config.tensorboard) if engine.is_main else None
    run = _Run(stepper, folder, shards, metrics, start, Progress(start, config.steps), on_progress)
    try:
        with _failures_told(folder, shards), _signals() as asked:
            return _steps(run, asked)
    finally:
        if metrics is not None:
            metrics.close()


@contextmanager
def _failures_told(folder: Path, shards: Shards) -> Iterator[None]:
    """Say of a failure which checkpoint is whole, and let no process wait for one that has failed."""
    try:
        yield
    except Stopped:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        advice = "try a smaller --batch-size, or --accumulation 2 or more"
        shards.abandon(error)
        raise VitprobeError(f"out of memory; {advice}; {checkpoint.intact(folder)}") from error
    except InputError as error:
        shards.abandon(error)
        raise InputError(f"{error}; {checkpoint.intact(folder)}") from error
    except BaseException as error:
        shards.abandon(error)
        if isinstance(error, RuntimeError) and shards.world > 1:
            shards.heed()
            if "peer" in str(error):  # a collective that another process did not come to
                raise VitprobeError(f"another process has ended; {checkpoint.intact(folder)}") from error
        raise


def _steps(run: _Run, asked: list[int]) -> Evaluation:
    stepper, start = run.stepper, run.start
    config, kept = stepper.config, _kept(stepper.config)
    look = run.evaluate(start) if start in (0, config.steps) else None
    run.on_progress(run.progress)
    batches = stepper.built.stream.batches(start * config.accumulation, config.steps * config.accumulation)
    run.start_clock(start)
    for done, terms in stepper.steps(batches, start):
        run.waiting.append((done, terms))
        due = done % config.eval_every == 0 or done == config.steps
        stop = run.shards.any(bool(asked)) and done < config.steps
        save = due or stop or done in kept
        if save or done % config.log_every == 0:
            run.look()
        if due:
            look = run.evaluate(done)
        run.progress.step = done
        run.on_progress(run.progress)
        if save:
            _save(run, done, keep=done in kept)
            run.start_clock(done)
        if stop:
            message = f"stopped at step {done} of {config.steps}; {checkpoint.intact(run.folder)}"
            raise Stopped(message, asked[0] if asked else int(signal.SIGTERM))
    assert look is not None  # the last step is measured, and a finished run at once
    return look


def _save(run: _Run, step: int, *, keep: bool) -> None:
    """Write a checkpoint; all processes gather, the main one writes."""
    stepper = run.stepper
    state = gathered(stepper.built.objective.state_dict())
    optimizer = gathered_optimizer(stepper.optimizer.state_dict())
    if stepper.engine.is_main:
        with checkpoint.writing(run.folder) as aside:
            save_variant(stepper.built, stepper.built.whole(state), aside, step)
            about = {"variant": stepper.built.variant.name, "steps": stepper.config.steps}
            checkpoint.write_state(aside, step=step, objective=state, optimizer=optimizer, about=about)
        if keep:
            checkpoint.keep(run.folder, step)
    stepper.engine.wait()


def _kept(config: TrainConfig) -> set[int]:
    """Return the steps whose checkpoints are kept, spread evenly so that one can see artifacts come."""
    return {round(config.steps * (i + 1) / config.keep) for i in range(config.keep)}


def _load(stepper: Stepper, folder: Path) -> int:
    """Go on from the last checkpoint; returns its step, 0 where there is none."""
    saved = checkpoint.read(folder)
    if saved is None:
        return 0
    objective, optimizer = stepper.built.objective, stepper.optimizer
    own = objective.state_dict()
    wrong = [n for n in {*own, *saved.objective} if n not in own or n not in saved.objective]
    wrong += [n for n in own if n in saved.objective and own[n].shape != saved.objective[n].shape]
    if wrong:
        raise WeightsError(f"the checkpoint in {folder} is of another architecture ({wrong[0]}); give another --out")
    objective.load_state_dict(scatter(saved.objective, own))
    optimizer.load_state_dict(scatter_optimizer(saved.optimizer, optimizer))
    return saved.step


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Turn SIGINT and SIGTERM into an entry of a list, so that a step is finished first; a second one ends at once."""
    asked: list[int] = []

    def note(number: int, _frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: signals are someone else's
        pass
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
