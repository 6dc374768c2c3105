"""Choose a learning rate by a part held out of the training images (arXiv 2010.11929, appendix B.1.1)."""

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitprobe.errors import ArgumentError
from vitprobe.probes.knn import wilson_interval
from vitprobe.probes.shards import Shards
from vitprobe.results import to_json
from vitprobe.training.build import build
from vitprobe.training.checkpoint import LAST, write_text
from vitprobe.training.engine import Engine
from vitprobe.training.finetune import Job
from vitprobe.training.loop import Diverged, Progress, train
from vitprobe.training.variants import Variant

FOLDER = "search"
Show = Callable[[str, int], AbstractContextManager[Callable[[Progress], None]]]
"""Opens a progress bar, given a title and the number of steps."""


@dataclass(frozen=True)
class Tried:
    """Hold what one rate gave on the images held out to choose it."""

    lr: float
    accuracy: float | None
    """None where the loss became infinite."""
    interval: tuple[float, float] | None
    """Wilson's 95 %."""
    num_images: int


def choose_rate(
    job: Job, variant: Variant, folder: Path, engine: Engine, shards: Shards, show: Show
) -> tuple[float, tuple[Tried, ...]]:
    """Return the rate of highest accuracy, of equals the lowest, and what each gave; one rate is not tried.

    What was tried is kept in ``folder/search/VARIANT.json``, and not tried again. Raises `ArgumentError` where none
    gave a finite loss.
    """
    rates = job.plan.rates
    if len(rates) == 1:
        return rates[0], ()
    path = folder / FOLDER / f"{variant.name}.json"
    tried = _read(path, rates) if path.exists() else _try_all(job, variant, folder, engine, shards, show)
    if not path.exists():
        write_text(path, to_json([asdict(one) for one in tried]) + "\n")
        for rate in rates:  # the weights of a search are of no more use
            shutil.rmtree(_place(folder, variant, rate) / LAST, ignore_errors=True)
    good = [one for one in tried if one.accuracy is not None]
    if not good:
        raise ArgumentError(f"the loss became infinite with each --lr of {', '.join(map(str, rates))}; give lower ones")
    return max(good, key=lambda one: (one.accuracy, -one.lr)).lr, tried


def _try_all(job: Job, variant: Variant, folder: Path, engine: Engine, shards: Shards, show: Show) -> tuple[Tried, ...]:
    data = job.development()
    number, found = len(data.held), []
    for rate in job.plan.rates:
        config = job.training(variant, rate)
        built = build(config, variant, data, shards)
        try:
            with show(f"{job.data.name}, {variant.title}, trying lr {rate:g}", config.steps) as on_progress:
                place = _place(folder, variant, rate)
                look = train(config, built, place, engine, shards, on_progress=on_progress)
        except Diverged:
            found.append(Tried(rate, None, None, number))
        else:
            accuracy = look.summary["accuracy"]
            found.append(Tried(rate, accuracy, wilson_interval(round(accuracy * number), number), number))
        del built
        engine.accelerator.free_memory()
    return tuple(found)


def _place(folder: Path, variant: Variant, rate: float) -> Path:
    return folder / FOLDER / variant.name / f"lr-{rate:g}"


def _read(path: Path, rates: tuple[float, ...]) -> tuple[Tried, ...]:
    stored: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    tried = tuple(Tried(**one | {"interval": one["interval"] and tuple(one["interval"])}) for one in stored)
    assert {one.lr for one in tried} == set(rates), "the options of a run do not change"
    return tried
