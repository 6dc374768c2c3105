"""Images of any other input, with a class each where one can be had, split as the input itself is or by seed.

Like `images`, this file is shared ground inside `vitprobe.inputs`.
"""

import os
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vitprobe.errors import InputError
from vitprobe.inputs.images import safe_name
from vitprobe.inputs.labels import Labelled, open_labelled
from vitprobe.inputs.named_sets import is_named, named_parts
from vitprobe.inputs.truth_base import TruthSource
from vitprobe.inputs.truth_files import folders

HELD_OUT = 5
"""One in so many images is held out to test on where a set has no splits of its own."""
TRAIN, TEST = ("train", "training"), ("test", "val", "valid", "validation")
"""Names of folders, and beginnings of names of Parquet files, in order of preference."""


@dataclass(frozen=True)
class _Parts:
    """Hold the inputs that a set's own splits are."""

    train: tuple[str, ...]
    """Empty where nothing is left to train on."""
    test: tuple[str, ...]


def open_other(text: str, *, split: str, limit: int | None, seed: int) -> TruthSource:
    """Return what `open_labelled` takes: folders, Parquet files, tar shards, sets of torchvision and timm.

    Labels are those of `open_labelled`, under ``class``; there are none where it finds none, and none in a set split by
    seed with classes too small to be split. Raises InputError where there is no image, or none to train on;
    ArgumentError where there are too few to hold one out.
    """
    parts = _parts(text)
    if parts is None:
        found = _labelled((text,))
        found = found if split == "whole" else _by_seed(found, seed)[split == "test"]
    elif split == "train":
        if not parts.train:
            raise InputError(
                f"{safe_name(text)}: nothing is left to train on beside the split that it names, which holds the "
                "training images and serves to test on; name another split, or none"
            )
        found = _labelled(parts.train)
    else:
        found = _to_test_on(parts, split)
    if limit is not None and limit < len(found):
        found = found.take(sorted(random.Random(seed).sample(range(len(found)), limit)))
    is_split = parts is not None or split != "whole"
    return TruthSource(
        name=f"{_title(text)}, {'train' if split == 'train' else 'test'}" if is_split else _title(text),
        items=found.items,
        labels={} if found.labels is None else {"class": found.labels},
        classes={} if found.labels is None else {"class": found.classes},
        skipped=found.skipped,
    )


def _parts(text: str) -> _Parts | None:
    """Return the splits that a set has of its own, or None."""
    if is_named(text):
        train, test = named_parts(text)
        return None if test is None else _Parts((train,) if train else (), (test,))
    if not os.path.isdir(text):
        return None
    folder = Path(text)
    for base in (folder, folder / "data"):  # data: as on the Hugging Face hub
        train, test = _parquet(base, TRAIN), _parquet(base, TEST)
        if train and test:
            return _Parts(train, test)
    inside = folders(folder)
    train = next((name for name in TRAIN if name in inside), None)
    held = [name for name in TEST if name in inside]
    if train is None or not held:
        return None
    has_classes = bool(folders(folder / train))
    test = next((name for name in held if bool(folders(folder / name)) == has_classes), held[0])
    return _Parts((str(folder / train),), (str(folder / test),))


def _parquet(folder: Path, words: Sequence[str]) -> tuple[str, ...]:
    """Return the Parquet files of the first word that has any: ``train.parquet``, ``train-00000-of-00002.parquet``."""
    names = sorted(path.name for path in folder.glob("*.parquet")) if folder.is_dir() else []
    for word in words:
        if found := [name for name in names if re.fullmatch(rf"{word}(-\d+-of-\d+\S*)?\.parquet", name)]:
            return tuple(str(folder / name) for name in found)
    return ()


def _to_test_on(parts: _Parts, split: str) -> Labelled:
    """Open the part to test on; its classes are numbered as those of the part to train on, where there is one."""
    if split == "whole" or not parts.train:
        return _labelled(parts.test)
    try:
        classes = open_labelled(parts.train, need="labels").classes
    except InputError:  # it is not there, or has no labels
        return _labelled(parts.test)
    return open_labelled(parts.test, need="labels", classes=classes)


def _labelled(inputs: Sequence[str]) -> Labelled:
    """Open inputs with labels, or without where there are none."""
    try:
        return open_labelled(inputs, need="labels")
    except InputError:  # no labels, or nothing at all: that is said here
        return open_labelled(inputs, need="nothing")


def _by_seed(found: Labelled, seed: int) -> tuple[Labelled, Labelled]:
    """Hold out a fifth of the images, of each class where there are enough of each."""
    number = max(1, round(len(found) / HELD_OUT))
    if found.labels is not None and number > len(found) - len(set(found.labels.tolist())):
        found = replace(found, labels=None, classes=())
    return found.split(number, seed=seed)


def _title(text: str) -> str:
    if is_named(text):
        return safe_name(text.split(":")[1])
    return safe_name(os.path.basename(os.path.abspath(text)) or text)
