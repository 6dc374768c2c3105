"""COCO 20k, the images of LOST (arXiv 2109.14279, section 4): a list of images of COCO's train2014, with boxes.

Like `images`, this file is shared ground inside `vitprobe.inputs`.
"""

import json
import re
from array import array
from collections.abc import Callable, Iterator
from functools import partial
from io import TextIOWrapper
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vitprobe.errors import InputError
from vitprobe.inputs.archives import one_line
from vitprobe.inputs.images import os_reason, safe_name, why_not_readable
from vitprobe.inputs.sources import FileItem
from vitprobe.inputs.truth_base import Request, TruthSource
from vitprobe.inputs.truth_files import below, file_boxes, lines, listed

LIST = "coco_20k_filenames.txt"
CHUNK = 2**20
"""Characters that are read at a time."""
MAX_VALUE = 2**26
"""Characters of the largest value that is held: one annotation with its outline, or all licences."""
_SPACE = re.compile(r"[ \t\r\n]*")


def open_coco20k(request: Request) -> TruthSource:
    """Return the images of LOST's list with their boxes; crowds are left out and corners rounded, as LOST does.

    Raises InputError where something is not there, for images to train on, of which there are none, and for a SPLIT.
    """
    if request.part is not None or request.split == "train":
        got = f"no split {request.part!r}" if request.part is not None else "nothing to train on"
        raise InputError(f"{safe_name(request.text)}: {got}; coco20k is one list of images to test on")
    table = request.file(LIST, f"annotations/{LIST}")
    truth = request.file("annotations/instances_train2014.json", "instances_train2014.json")
    folder = request.folder("train2014", "images/train2014")
    there = set(listed(folder, (".jpg",)))
    paths = [below(folder, PurePosixPath(line).name, table) for line in lines(table)]
    rows = request.draw([path for path in paths if path in there])
    found = read_boxes(truth, {_number(path, table) for path in rows})
    boxes = [found.get(_number(path, table)) for path in rows]
    kept = [(path, its) for path, its in zip(rows, boxes, strict=True) if its is not None]
    if not kept:
        raise InputError(f"{safe_name(request.text)}: {safe_name(truth.name)} knows none of the images of {LIST}")
    names = [str(path) for path, _ in kept]
    lost = [(path, "no such file") for path in paths if path not in there]
    lost += [(path, f"not in {truth.name}") for path, its in zip(rows, boxes, strict=True) if its is None]
    return TruthSource(
        name="coco20k",
        items=[FileItem(name) for name in names],
        raw_boxes=partial(file_boxes, names, [its for _, its in kept]),
        skipped=tuple((safe_name(str(path)), reason) for path, reason in lost),
    )


def _number(path: Path, table: Path) -> int:
    """Return the number that COCO knows an image by: that at the end of its name."""
    found = re.search(r"(\d+)$", path.stem)
    if found is None:
        raise InputError(f"{safe_name(str(table))}: {safe_name(path.name)!r} is no name of a COCO image")
    return int(found[1])


def read_boxes(path: Path, wanted: set[int]) -> dict[int, np.ndarray]:
    """Return the boxes (G, 4) float64, x0, y0, x1, y1 rounded, of the wanted images that the file knows, by number.

    The file is read once, one annotation after the other, so that memory grows with their number by 40 bytes each and
    not with the file (450 MB, several times that as objects). Raises InputError where it is no such file.
    """
    known: set[int] = set()
    owners, corners = array("q"), array("d")
    shown = safe_name(str(path))

    def image(one: Any) -> None:
        known.add(int(one["id"]))

    def annotation(one: Any) -> None:
        if int(one["image_id"]) in wanted and not one.get("iscrowd"):
            x, y, width, height = (float(number) for number in one["bbox"])
            owners.append(int(one["image_id"]))
            corners.extend(map(round, (x, y, x + width, y + height)))

    try:
        seen = _read(path, {"images": image, "annotations": annotation})
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"{shown}: no annotations as COCO writes them: {one_line(repr(error))}") from None
    if lost := {"images", "annotations"} - seen:
        raise InputError(f"{shown}: no {min(lost)} in it; COCO's instances_train2014.json is needed")
    boxes = np.array(corners, np.float64).reshape(-1, 4)  # (G, 4)
    numbers = np.array(owners, np.int64)  # (G,)
    order = np.argsort(numbers, kind="stable")
    starts, ends = (np.searchsorted(numbers[order], sorted(wanted), side=side) for side in ("left", "right"))
    spans = zip(sorted(wanted), starts, ends, strict=True)
    return {number: boxes[order[start:end]] for number, start, end in spans if number in known}


def _read(path: Path, each: dict[str, Callable[[Any], None]]) -> set[str]:
    """Call ``each[key]`` with every member of the arrays of a JSON object that it names; return the names it has."""
    if reason := why_not_readable(path):
        raise InputError(f"{safe_name(str(path))}: {reason}")
    try:
        with open(path, encoding="utf-8") as file:
            stream, seen = _Stream(file), set()
            for key in stream.members("{}"):
                if key not in each:
                    stream.value()
                    continue
                seen.add(key)
                for member in stream.members("[]"):
                    each[key](member)
            return seen
    except OSError as error:
        raise InputError(f"{safe_name(str(path))}: {os_reason(error, path)}") from None


class _Stream:
    """Read the values of a JSON text one after the other, holding a part of it."""

    def __init__(self, file: TextIOWrapper) -> None:
        self._file = file
        self._text, self._at = "", 0
        self._decoder = json.JSONDecoder()

    def members(self, ends: str) -> Iterator[Any]:
        """Yield the members of an array ``[]``, or the names of an object ``{}``, each value of which is read next."""
        self._expect(ends[0])
        if self._next() == ends[1]:
            self._at += 1
            return
        while True:
            member = self.value()
            if ends == "{}":
                self._expect(":")
            yield member
            if self._next() == ends[1]:
                self._at += 1
                return
            self._expect(",")

    def value(self) -> Any:
        """Read one value; more of the text is read until it is whole."""
        self._next()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                if len(self._text) - self._at > MAX_VALUE or not self._more():
                    raise
                continue
            if end == len(self._text) and self._more():  # a number may go on
                continue
            self._at = end
            return value

    def _next(self) -> str:
        """Return the next character that is no blank; empty at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _expect(self, character: str) -> None:
        if (got := self._next()) != character:
            raise ValueError(f"{got!r} where {character!r} is due")
        self._at += 1

    def _more(self) -> bool:
        """Read on, as much again as is held, and let go of what was used; False at the end."""
        more = self._file.read(max(CHUNK, len(self._text) - self._at))
        if more:
            self._text, self._at = self._text[self._at :] + more, 0
        return bool(more)
