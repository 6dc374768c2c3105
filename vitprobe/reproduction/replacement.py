"""Registers replaced by zeros, means, noise and other images' registers (arXiv 2604.14433): what depends on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vitprobe.errors import ArgumentError
from vitprobe.plots.replacement import Replaced, draw_replaced
from vitprobe.probes.by_image import METHOD, Estimate
from vitprobe.probes.frozen import ImageFeatureReader, known
from vitprobe.probes.linear import C_GRID
from vitprobe.probes.passes import Reader
from vitprobe.probes.replacement import (
    CLEAN,
    NUM_POOL,
    WAYS,
    RegisterStatsReader,
    ReplacementReader,
    blocks_of,
    differences,
    read_classes,
    ways_of,
)
from vitprobe.reproduction.base import Drawn, Found, Item, Measurement, Row, Setting

NONE = "no registers to replace"
FEATURES = "cls+mean"
TASK = "majority"
"""The task of scenes that is taken where none is asked for."""
SAID = {
    "zero": "zeros, which no training has shown the model",
    "mean": "mean over training images, by register, block and dimension",
    "noise": "Gaussian noise of that mean and of the standard deviation over training images, drawn by image and block",
    "shuffle": "registers of one training image at all blocks; which one, the seed and the image's position decide",
}
CHANGED = {"cls": "1 - cosine of CLS", "mean": "1 - cosine of the mean patch", "patches": "1 - cosine of patches"}


@dataclass(frozen=True)
class ReplacementOptions:
    """Hold what the item leaves open."""

    blocks: str | tuple[int, ...] = "all"
    """Before which blocks registers are replaced: ``all`` from block 1 on, the ``last``, or their numbers."""
    task: str = ""
    """Whose classes are read; by default the first that the set has, of scenes the majority colour."""
    ways: tuple[str, ...] = WAYS
    num_pool: int = NUM_POOL
    """Training images whose registers others are given."""
    solver: str = "sklearn"


class Replacements(Measurement):
    """Measure one model: what its registers are like on training images, then what replacing them does to others."""

    def __init__(self, setting: Setting, options: ReplacementOptions) -> None:
        """Prepare to read. Raises `ArgumentError` for blocks, ways or a task that are none."""
        self.setting, self.options = setting, options
        self.task = choose_task(tuple(setting.train.labels), options.task)
        self.ways = ways_of(options.ways)
        self.has_registers = bool(setting.backbone.layout().num_registers)
        self.readers: dict[str, ImageFeatureReader] = {}
        if not self.has_registers:
            return
        blocks = blocks_of(options.blocks, setting.block, setting.backbone.spec.name)
        self.stats = RegisterStatsReader(setting.backbone, blocks=blocks, num_pool=options.num_pool, seed=setting.seed)
        for name in ("train", CLEAN, *self.ways):
            path = setting.folder / f"{name}.npy"
            self.readers[name] = ImageFeatureReader(setting.backbone, path, block=setting.block)

    def train_readers(self) -> Sequence[Reader]:
        """Return what reads registers and features; nothing of a model without registers."""
        return (self.stats, self.readers["train"]) if self.has_registers else ()

    def test_readers(self) -> Sequence[Reader]:
        """Return what reads untouched features, and what runs the model again."""
        if not self.has_registers:
            return ()
        self.replaced = ReplacementReader(
            self.setting.backbone,
            self.stats.result(),
            block=self.setting.block,
            ways=self.ways,
            followers={way: self.readers[way] for way in self.ways},
            autocast=self.setting.autocast,
            seed=self.setting.seed,
        )
        return (self.readers[CLEAN], self.replaced)

    def found(self) -> Found:
        """Return accuracies and changes of every way; without registers, that there are none."""
        if not self.has_registers:
            return Found((), {"note": NONE})
        setting, stats = self.setting, self.stats.result()
        train = known(self.readers["train"].finish(), setting.train.labels[self.task], FEATURES)
        labels = setting.test.labels[self.task]
        tests = {way: known(self.readers[way].finish(), labels, FEATURES) for way in (CLEAN, *self.ways)}
        device = next(setting.backbone.module.parameters()).device
        fit, read = read_classes(
            train.features, train.labels, {way: one.features for way, one in tests.items()},
            solver=self.options.solver, device=device, seed=setting.seed,
        )  # fmt: skip
        indices = self.readers[CLEAN].finish().images
        indices = indices[labels[indices] >= 0]
        accuracies, apart = differences(read, tests[CLEAN].labels, indices, seed=setting.seed)
        estimates = {f"{way}.accuracy": one for way, one in accuracies.items()}
        estimates |= {f"{way}.difference": one for way, one in apart.items()}
        estimates |= {name: self.replaced.means.estimate(name) for name in self.replaced.means.names}
        site = self.readers[CLEAN].site
        summary = {
            "ways": {way: SAID[way] for way in self.ways},
            "replaced": f"what enters blocks {', '.join(map(str, stats.blocks))}",
            "blocks": list(stats.blocks),
            "features": f"{FEATURES}, {site.kind}" + (f" of block {site.block}" if site.block is not None else ""),
            "task": self.task,
            "chance": chance(train.labels, tests[CLEAN].labels),
            "c": fit.strength,
            "c_grid": list(C_GRID),
            "held_out": list(fit.held_out),
            "solver": self.options.solver,
            "notes": list(fit.notes),
            "num_train": len(train.labels),
            "num_test": len(tests[CLEAN].labels),
            "num_register_images": stats.num_images,
            "pool": len(stats.donor_names),
            "own_difference": self.replaced.own_difference,
            "own_images": self.replaced.num_own,
            "interval": f"accuracy: Wilson, 95 %; all else: {METHOD}",
        }
        rows = rows_of(estimates, self.ways, self.replaced.changes)
        own = Row(
            "largest change, own registers put back", self.replaced.own_difference, "of features", self.replaced.num_own
        )
        arrays = {name: _numbers(one) for name, one in estimates.items()}
        return Found((*rows, own), summary, arrays)


def choose_task(tasks: Sequence[str], asked: str) -> str:
    """Return the task whose classes are read. Raises `ArgumentError` for one that the set does not have."""
    if asked and asked not in tasks:
        raise ArgumentError(f"got task {asked!r}; the set has {', '.join(tasks)}")
    return asked or (TASK if TASK in tasks else tasks[0])


def chance(train: np.ndarray, test: np.ndarray) -> float:
    """Return the share of test images of the training set's most frequent class (the mean over those that tie)."""
    classes, sizes = np.unique(train, return_counts=True)
    return float(np.mean([(test == one).mean() for one in classes[sizes == sizes.max()]]))


def rows_of(estimates: Mapping[str, Estimate], ways: Sequence[str], changes: Sequence[str]) -> list[Row]:
    """List accuracies, differences, changes and the largest patch norms."""

    def row(what: str, name: str, unit: str, key: str = "") -> Row:
        one = estimates[name]
        return Row(what, one.value, unit, one.num_images, one.interval, key=key)

    rows = [row("accuracy, registers as is", f"{CLEAN}.accuracy", "share")]
    rows += [row(f"accuracy, {way}", f"{way}.accuracy", "share") for way in ways]
    rows += [row(f"accuracy less as is, {way}", f"{way}.difference", "share", f"difference.{way}") for way in ways]
    rows += [row(f"{CHANGED[what]}, {way}", f"{way}.{what}", "1 - cosine") for what in changes for way in ways]
    rows += [row("largest patch norm, registers as is", f"{CLEAN}.largest", "medians")]
    rows += [row(f"largest patch norm, {way}", f"{way}.largest", "medians") for way in ways]
    return rows


def _numbers(one: Estimate) -> np.ndarray:
    """Return an estimate with the ends of its interval: (3,), nan where there is none."""
    return np.array([one.value, *(one.interval or (np.nan, np.nan))], float)


def draw(drawn: Drawn) -> dict[str, Figure]:
    """Draw all models that have registers; nothing where none has."""
    known_ones = [(title, found) for title, found in drawn if found.arrays]
    if not known_ones:
        return {}
    return {"replaced": draw_replaced([(title, unpack(found)) for title, found in known_ones])}


def unpack(found: Found) -> Replaced:
    """Return what is drawn of one model."""
    summary: Mapping[str, Any] = found.summary
    return Replaced(tuple(summary["ways"]), found.arrays, summary["task"], summary["chance"])


ITEMS = {"replace": Item(Replacements, draw, ReplacementOptions)}
