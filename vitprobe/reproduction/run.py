"""Measure several items of one model on one set of images, with as few forward passes as they need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from vitprobe.backbones.base import Backbone
from vitprobe.errors import VitprobeError
from vitprobe.inputs.truths import TruthSource
from vitprobe.probes.batch import Batch
from vitprobe.probes.norms import NormReader
from vitprobe.probes.passes import Reader, run_pass
from vitprobe.recorder import Recorder, Site
from vitprobe.reproduction.base import Found, Item, Progress, Setting
from vitprobe.reproduction.table import NEEDS, Entry
from vitprobe.reproduction.trusted import TrustedLoader

TRUTHS = {"labels": "labels", "masks": "masks", "depth": "depth", "boxes": "boxes"}
"""What a set of images must have, by what an item needs."""
SPLIT_BY_SEED = " (a set that is split by seed must leave an image of each class to train on)"


@dataclass(frozen=True)
class Task:
    """Name an item that is asked for, with its options."""

    entry: Entry
    item: Item
    options: Any


def lacks(entry: Entry, train: TruthSource | None, test: TruthSource | None) -> str:
    """Say what an item needs that a set of images does not have; empty where it has all."""
    if "training" in entry.needs and train is None:
        return f"needs {NEEDS['training']}"
    both = [one for one in ((train, test) if "training" in entry.needs else (test,)) if one is not None]
    missing = [
        NEEDS[need] for need, what in TRUTHS.items() if need in entry.needs and any(what not in o.has for o in both)
    ]
    why = SPLIT_BY_SEED if "training" in entry.needs and NEEDS["labels"] in missing else ""
    return f"needs {' and '.join(missing)}{why}" if missing else ""


def measure(
    tasks: Sequence[Task],
    setting: Setting,
    loaders: Mapping[str, TrustedLoader],
    *,
    progress: Progress,
) -> dict[str, Found | str]:
    """Measure items of one model on one set of images; what an item found, or why it could not be measured, by name.

    Three passes serve all items: norms of the test images, whose cutoffs tell outliers; then the training images; then
    the test images again. A pass that nobody needs is not run. ``loaders`` has ``train`` and ``test``, as far as there
    are such images. An item whose reader refuses what it sees is left out, and the others go on.
    """
    if setting.backbone is not None and setting.test is not None:
        norms = NormReader(setting.backbone, blocks=[setting.block], seed=setting.seed)
        _pass("norms", setting, loaders["test"], [_Guard("norms", norms, setting.backbone)], progress)
        setting = replace(setting, progress=progress, norms=norms.accumulator.result(setting.rule, point=setting.block))
    found: dict[str, Found | str] = {}
    started: dict[str, Any] = {}
    guards: dict[int, _Guard] = {}
    for task in tasks:
        name = task.entry.name
        if reason := lacks(task.entry, setting.train, setting.test):
            found[name] = reason
            continue
        folder = setting.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        try:
            started[name] = task.item.measure(replace(setting, folder=folder), task.options)
        except VitprobeError as error:
            found[name] = str(error)
    for split in ("train", "test"):
        wanted: dict[str, list[_Guard]] = {}
        for name, measurement in started.items():
            if name not in found:
                wanted[name] = _asked(name, measurement, split, setting.backbone, guards, found)
        each = list(dict.fromkeys(guard for own in wanted.values() for guard in own))
        if each and split in loaders:
            _pass(split, setting, loaders[split], each, progress)
        for name, own in wanted.items():
            if name not in found and (failed := next((guard for guard in own if guard.error), None)):
                found[name] = failed.error
    for name, measurement in started.items():
        if name not in found:
            try:
                found[name] = measurement.found()
            except VitprobeError as error:
                found[name] = str(error)
    return {task.entry.name: found[task.entry.name] for task in tasks}


def _asked(
    name: str,
    measurement: Any,
    split: str,
    backbone: Backbone | None,
    guards: dict[int, "_Guard"],
    found: dict[str, Found | str],
) -> list["_Guard"]:
    """Ask an item for its readers of one split; each reader has one guard, whoever shares it."""
    try:
        readers = measurement.train_readers() if split == "train" else measurement.test_readers()
        return [guards.setdefault(id(reader), _Guard(name, reader, backbone)) for reader in readers]
    except VitprobeError as error:
        found[name] = str(error)
        return []


def _pass(title: str, setting: Setting, loader: TrustedLoader, readers: Sequence["_Guard"], progress: Progress) -> None:
    with progress(f"{setting.model}: {title}", len(loader)) as advance:
        run_pass(
            setting.backbone,
            loader,
            readers,
            autocast=setting.autocast,
            on_batch=lambda batch: advance(len(batch.names)),
        )
    for reader in readers:
        if reader.is_vital and reader.error:
            raise reader.failure


class _Guard:
    """Keep what one item's reader refuses from the others."""

    def __init__(self, name: str, reader: Reader, backbone: Backbone) -> None:
        """Look at the reader's sites at once. Raises `RecordingError` for one that the model does not have."""
        self.reader, self.sites, self.is_vital = reader, tuple(reader.sites), name == "norms"
        Recorder(backbone, self.sites)
        self.failure: VitprobeError | None = None

    @property
    def error(self) -> str:
        """What the reader has refused; empty for nothing."""
        return "" if self.failure is None else str(self.failure)

    def update(self, batch: Batch, taken: Mapping[Site, Any], output: Tensor) -> None:
        """Pass a batch on, unless the reader has failed before."""
        if self.failure is not None:
            return
        try:
            self.reader.update(batch, taken, output)
        except VitprobeError as error:
            self.failure = error


def cutoff_words(setting: Setting) -> str:
    """Say how outliers were told from the rest, for a summary."""
    cutoff = setting.cutoff
    where = f"block {setting.block}, rule {setting.rule}"
    return f"{where}: no outliers" if cutoff is None else f"{where}: norm of {cutoff:.4g} and over"


def share(values: np.ndarray) -> float | None:
    """Return the mean of what is finite as JSON can hold it; None for nothing."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None
