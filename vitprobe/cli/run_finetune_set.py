"""One set of ``vitprobe finetune``: train its variants, and measure them and what they began as on the same images."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitprobe.backbones.base import Backbone, ModelSpec
from vitprobe.cli import echo
from vitprobe.cli.run_train_compare import look, maps_of, trained_spec
from vitprobe.cli.train_progress import training
from vitprobe.inputs.labels import Labelled
from vitprobe.probes.comparison import VariantResult
from vitprobe.probes.curves import Curve
from vitprobe.probes.reliability import Reliability, measure_reliability
from vitprobe.probes.shards import Shards
from vitprobe.training.build import Built, build, make_backbone
from vitprobe.training.data import HELD_OUT_SEED
from vitprobe.training.engine import Engine
from vitprobe.training.finetune import Job
from vitprobe.training.finetuned import Predictions, differ, frozen_scores, norms_of, predict, real_of
from vitprobe.training.held_out import Reader
from vitprobe.training.loop import train
from vitprobe.training.rates import Tried, choose_rate
from vitprobe.training.variants import Variant

BEFORE = "before"
"""The folder's and the row's name of the model as it was loaded."""
MOST_AT_ONCE = 256
"""Images of a batch whose classes are told."""


@dataclass(frozen=True)
class Tuned:
    """Hold what one fine-tuned variant is."""

    result: VariantResult
    spec: ModelSpec
    rate: float
    tried: tuple[Tried, ...]
    predictions: Predictions
    reliability: Reliability
    frozen: dict[str, Any] | None
    real: dict[str, Any] | None


@dataclass(frozen=True)
class SetFound:
    """Hold all that was found on one set."""

    job: Job
    before: VariantResult
    before_frozen: dict[str, Any] | None
    before_spec: ModelSpec
    tuned: tuple[Tuned, ...]
    skipped: tuple[tuple[str, str], ...]
    digests: tuple[str, ...]
    """SHA-256 of each held-out image."""

    def differences(self) -> dict[str, dict[str, Any]]:
        """Return by variant by how much its accuracy exceeds that of the first, paired by image."""
        first = self.tuned[0]
        seed = self.job.config.base.seed
        return {
            one.result.name: {"to": first.result.name, **differ(one.predictions, first.predictions, seed=seed)}
            for one in self.tuned[1:]
        }


class Work:
    """Train and measure on one set: readers that all variants share, and where the numbers are made."""

    def __init__(self, job: Job, folder: Path, engine: Engine) -> None:
        self.job, self.folder, self.engine = job, folder, engine
        self.shards = Shards.alone(str(engine.device))
        self.data = job.watched()
        plain = make_backbone(job.training(job.config.variants[0], job.plan.rates[0]))
        self.own_registers, self.transform = plain.spec.num_registers, plain.transform
        self.watched, self.test = self._reader(self.data.held), self._reader(job.data.test)
        number = job.config.num_frozen
        few = number is not None and number < len(job.data.train)
        images = job.data.train.sample(number, seed=HELD_OUT_SEED) if few else job.data.train
        self.bank = self._reader(images)
        self.skipped = list(self.data.skipped)

    def _reader(self, images: Labelled) -> Reader:
        size = min(MOST_AT_ONCE, self.job.config.base.batch_size)
        return Reader(images, self.transform, size, self.job.config.base.workers, range(len(images)))

    def run(self) -> SetFound:
        """Train every variant, from its checkpoint where there is one, and measure all on the same images."""
        tuned = tuple(self._tune(variant) for variant in self.job.config.variants)
        before, spec, frozen = self._before()
        missing = [*self.skipped, *self.watched.skipped, *self.test.skipped, *self.bank.skipped]
        return SetFound(
            self.job, before, frozen, spec, tuned, tuple(dict.fromkeys(map(tuple, missing))), tuple(self.test.digests)
        )

    def _tune(self, variant: Variant) -> Tuned:
        rate, tried = choose_rate(self.job, variant, self.folder, self.engine, self.shards, self._bar)
        config = self.job.training(variant, rate)
        built = build(config, variant, self.data, self.shards)
        with self._bar(f"{self.job.data.name}, {variant.title}", config.steps) as show:
            place = self.folder / variant.name
            evaluation = train(config, built, place, self.engine, self.shards, on_progress=show)
        result = self._named(look(built, evaluation, place, self.engine.autocast), variant)
        self.skipped += built.stream.skipped
        backbone = built.objective.variant()
        with echo.progress(f"{self.job.data.name}, {result.title}: held-out images", len(self.test.images)) as advance:
            found = predict(backbone, self.test, self.engine.device, self.engine.autocast, advance)
        reliability = measure_reliability(found.probabilities(), found.labels, seed=config.seed)
        real = self.job.config.real and real_of(found, self.test.images, self.job.config.real)
        frozen, spec = self._frozen(backbone, result.title), trained_spec(built)
        self._free(built)
        return Tuned(result, spec, rate, tried, found, reliability, frozen, real or None)

    def _bar(self, title: str, steps: int) -> AbstractContextManager[Callable[[Any], None]]:
        return training(title, steps, shown=True)

    def _named(self, result: VariantResult, variant: Variant) -> VariantResult:
        """Say of a model that came with registers how many it has: none of them are new."""
        if not self.own_registers:
            return result
        title = f"its own {replace(variant, num_registers=self.own_registers).title}"
        return replace(result, title=title, num_registers=self.own_registers)

    def _frozen(self, backbone: Backbone, title: str) -> dict[str, Any] | None:
        if not self.job.config.frozen:
            return None
        number = len(self.bank.images) + len(self.test.images)
        with echo.progress(f"{self.job.data.name}, {title}: frozen features", number) as advance:
            return frozen_scores(
                backbone,
                self.bank,
                self.test,
                self.folder / ".features",
                self.engine.autocast,
                advance,
                seed=self.job.config.base.seed,
            )

    def _before(self) -> tuple[VariantResult, ModelSpec, dict[str, Any] | None]:
        """Measure the model as it was loaded, on the images that the variants are measured on."""
        first, seed = self.job.config.variants[0], self.job.config.base.seed
        backbone = make_backbone(self.job.training(first, self.job.plan.rates[0]))
        backbone.module.to(self.engine.device).eval()
        norms = norms_of(backbone, self.watched, self.engine.autocast, seed=seed)
        maps = maps_of(backbone, self.watched, norms, self.engine.autocast)
        told = {"name": BEFORE, "title": "before fine-tuning", "num_registers": backbone.spec.num_registers}
        result = VariantResult(**told, norms=norms, maps=maps, curve=Curve.of([], "accuracy"), measures={})
        return result, backbone.spec, self._frozen(backbone, result.title)

    def _free(self, built: Built) -> None:
        built.objective.to("cpu")
        self.engine.accelerator.free_memory()  # it keeps what it has wrapped


def rows(found: SetFound) -> list[dict[str, Any]]:
    """Return what is stored of each variant, as JSON can hold it."""
    differences = found.differences()
    return [_row(one, differences.get(one.result.name)) for one in found.tuned]


def _row(one: Tuned, difference: dict[str, Any] | None) -> dict[str, Any]:
    norms = one.result.norms.summary
    return {
        "name": one.result.name,
        "title": one.result.title,
        "num_registers": one.result.num_registers,
        "checkpoint": f"{one.result.name}/last",
        "lr": one.rate,
        "tried": [asdict(each) for each in one.tried],
        "accuracy": one.reliability.accuracy,
        "accuracy_interval": one.reliability.accuracy_ci,
        "num_images": len(one.predictions.labels),
        "reliability": one.reliability.summary,
        "real": one.real,
        "frozen": one.frozen,
        "difference": difference,
        "norms": {key: norms[key] for key in ("verdict", "outlier_fraction", "outlier_fraction_ci", "num_images")},
    }


def arrays_of(found: SetFound) -> dict[str, np.ndarray]:
    """Return the arrays of predictions and reliability, named ``reg0-smooth0/predictions/labels``."""
    every: dict[str, np.ndarray] = {}
    for one in found.tuned:
        for part, own in (("predictions", one.predictions.arrays()), ("reliability", one.reliability.arrays())):
            every |= {f"{one.result.name}/{part}/{name}": value for name, value in own.items()}
    return every
