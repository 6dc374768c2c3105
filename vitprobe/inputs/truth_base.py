"""What a set of images with truths is, and what was asked for: NAME:ROOT[:SPLIT], to train or to test, how many.

Like `images`, this file is shared ground inside `vitprobe.inputs`.
"""

import os
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from vitprobe.errors import InputError
from vitprobe.inputs.geometry import Geometry
from vitprobe.inputs.images import Item, safe_name
from vitprobe.inputs.truth_layouts import LAYOUTS

HAS = ("labels", "boxes", "masks", "depth", "captions")
SPLITS = ("train", "test", "whole")
Row = TypeVar("Row")


@dataclass(frozen=True, eq=False)
class TruthSource:
    """Hold N images with what is known of them; boxes, masks and depths are read when they are asked for."""

    name: str
    """Short, printable, for titles: ``camvid, test``."""
    items: Sequence[Item]
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)
    """(N,) int64 class of each image by task, -1 where it has none; a set with one task calls it ``class``."""
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the classes of each task."""
    mask_classes: tuple[str, ...] = ()
    """Names of the classes of pixels; empty without masks."""
    captions: Sequence[str] | None = None
    depth_unit: str = ""
    """``m``, or ``of the farthest`` for scenes; empty without depths."""
    raw_boxes: Callable[[int], tuple[tuple[int, int], np.ndarray]] | None = None
    """(height, width) of an image's file and its boxes (G, 4) there: x0, y0, x1, y1, ends exclusive."""
    raw_mask: Callable[[int], np.ndarray] | None = None
    """(h, w) int64 class of each pixel of an image's file, -1 where void."""
    raw_depth: Callable[[int], np.ndarray] | None = None
    """(h, w) float32 depth of each pixel of an image's file, nan where it was not measured."""
    skipped: tuple[tuple[str, str], ...] = ()
    """(name, reason) of what was found unreadable while listing."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.items)

    @property
    def has(self) -> frozenset[str]:
        """What is known of the images, of `HAS`."""
        there = (self.labels, self.raw_boxes, self.raw_mask, self.raw_depth, self.captions)
        return frozenset(name for name, one in zip(HAS, there, strict=True) if one)

    def boxes(self, index: int, geometry: Geometry) -> np.ndarray:
        """Return an image's boxes as the model sees them: (G, 4) float64, cut at the crop; G may be 0."""
        size, boxes = self.raw_boxes(index)
        return geometry.boxes(boxes, size)

    def mask(self, index: int, geometry: Geometry) -> np.ndarray:
        """Return the class of each pixel as the model sees it: (H, W) int64, -1 where void."""
        return geometry.nearest(self.raw_mask(index))

    def depth(self, index: int, geometry: Geometry) -> np.ndarray:
        """Return the depth of each pixel as the model sees it: (H, W) float32, nan where it was not measured."""
        return geometry.nearest(self.raw_depth(index))


@dataclass(frozen=True)
class Request:
    """Hold what was asked for."""

    text: str
    name: str
    """The first word, such as ``camvid``."""
    root: Path
    part: str | None
    """SPLIT, where the text names one."""
    split: str
    """``train``, ``test``, or ``whole`` where nothing is trained."""
    limit: int | None
    seed: int

    def which(self, train: str, test: str) -> str:
        """Return the part of the set that is meant, where its own parts to train and to test on are these.

        A part named by the text is to test on. Raises InputError where images to train on are asked for beside a part
        that holds the training images.
        """
        if self.part is None or (self.split == "train" and not _holds_training(self.part)):
            return train if self.split == "train" else test
        if self.split == "train":
            raise InputError(
                f"{safe_name(self.text)}: nothing is left to train on beside {self.part!r}, which holds the training "
                "images and serves to test on; name another split, or none"
            )
        return self.part

    def draw(self, rows: Sequence[Row]) -> list[Row]:
        """Return at most `limit` of the rows, drawn by the seed as `open_inputs` does, in their order.

        Raises InputError where there is no row.
        """
        if not rows:
            raise InputError(f"{safe_name(self.text)}: no image with its annotation; {self.need()}")
        if self.limit is None or self.limit >= len(rows):
            return list(rows)
        return [rows[at] for at in sorted(random.Random(self.seed).sample(range(len(rows)), self.limit))]

    def title(self, part: str) -> str:
        """Return the name for figures, such as ``camvid, test``."""
        return safe_name(f"{self.name}, {part}")

    def folder(self, *names: str) -> Path:
        """Return the first of these folders in ROOT that is there. Raises InputError where none is."""
        return self._first(names, os.path.isdir, "folder")

    def file(self, *names: str) -> Path:
        """Return the first of these files in ROOT that is there. Raises InputError where none is."""
        return self._first(names, os.path.isfile, "file")

    def missing(self, sought: str) -> InputError:
        """Return the error for something that is not there: what, where the set is got from, how it must lie."""
        return InputError(f"{safe_name(self.text)}: no {safe_name(sought)}; {self.need()}")

    def need(self) -> str:
        """Return what ROOT must hold, and where that is got from."""
        known = LAYOUTS[self.name]
        source = f"; get it from {known.source} (nothing is fetched)" if known.source else ""
        return f"ROOT must hold {known.layout}{source}"

    def _first(self, names: Sequence[str], is_there: Callable[[Path], bool], kind: str) -> Path:
        found = next((self.root / name for name in names if is_there(self.root / name)), None)
        if found is None:
            raise self.missing(f"{kind} {' or '.join(str(self.root / name) for name in names)}")
        return found


def read_request(text: str, *, split: str, limit: int | None, seed: int) -> Request:
    """Read NAME:ROOT[:SPLIT]; a ROOT with a colon in its name is that folder. Raises InputError without a ROOT."""
    name, _, rest = text.partition(":")
    found = None if os.path.exists(os.path.expanduser(rest)) else re.fullmatch(r"(.+):([\w+\-]+)", rest)
    root, part = (found[1], found[2]) if found else (rest, None)
    if not root:
        raise InputError(f"{safe_name(text)}: no folder; give {LAYOUTS[name].grammar}")
    return Request(text, name, Path(os.path.expanduser(root)), part, split, limit, seed)


def _holds_training(part: str) -> bool:
    return re.fullmatch(r"(\w+_)?train(ing|val)?(-\w+)?", part) is not None
