"""Images with a class each, in layouts of their own: ImageNet's folders and CUB-200-2011, which has boxes too.

Like `images`, this file is shared ground inside `vitprobe.inputs`.
"""

import os
import re
from functools import partial
from pathlib import Path

import numpy as np

from vitprobe.errors import InputError
from vitprobe.inputs.images import safe_name
from vitprobe.inputs.sources import FileItem
from vitprobe.inputs.truth_base import Request, TruthSource
from vitprobe.inputs.truth_files import below, file_boxes, folders, lines, listed


def open_imagenet(request: Request) -> TruthSource:
    """Return ImageNet, or anything laid out like it: SPLIT/CLASS/IMAGE, classes by name.

    Classes are those of the asked split and of train, so that all splits number them alike. Raises InputError where the
    split is not there, or holds no folders of classes.
    """
    part = request.which("train", "val")
    folder = request.folder(part)
    own = folders(folder)
    if not own:
        raise InputError(
            f"{safe_name(request.text)}: {safe_name(str(folder))} holds no folder of a class; sort its images into "
            f"folders, {part}/WNID/NAME.JPEG"
        )
    classes = tuple(sorted({*own, *folders(request.root / "train")}))
    number = {name: at for at, name in enumerate(classes)}
    rows = request.draw([(str(path), number[name]) for name in own for path in listed(folder / name)])
    return TruthSource(
        name=request.title(part),
        items=[FileItem(path) for path, _ in rows],
        labels={"class": np.array([at for _, at in rows], np.int64)},
        classes={"class": tuple(safe_name(name) for name in classes)},
    )


def open_cub(request: Request) -> TruthSource:
    """Return CUB-200-2011 as distributed, with a class and a box for each image, split as it says itself.

    Raises InputError where it is not there, or its lists do not agree.
    """
    part = request.which("train", "test")
    if part not in ("train", "test"):
        raise InputError(f"{safe_name(request.text)}: no split {part!r}; cub has train and test")
    base = next((name for name in ("CUB_200_2011", ".") if (request.root / name / "images.txt").is_file()), ".")
    folder = request.folder(f"{base}/images")
    names, labels, training, boxes = (
        _numbered(request.file(f"{base}/{name}.txt"), words)
        for name, words in (("images", 1), ("image_class_labels", 1), ("train_test_split", 1), ("bounding_boxes", 4))
    )
    spoken = {
        key: re.sub(r"^\d+\.", "", name) for key, (name,) in _numbered(request.file(f"{base}/classes.txt"), 1).items()
    }
    order = {key: at for at, key in enumerate(sorted(spoken, key=int))}
    rows, skipped = [], []
    table = request.root / base / "images.txt"
    try:
        chosen = [key for key in names if training[key][0] == str(int(part == "train"))]
        for key in chosen:
            path = below(folder, names[key][0], table)
            box = np.array([boxes[key]], np.float64)  # (1, 4) x, y, width, height
            row = str(path), order[labels[key][0]], np.hstack([box[:, :2], box[:, :2] + box[:, 2:]])
            if os.path.isfile(path):
                rows.append(row)
            else:
                skipped.append((safe_name(row[0]), "no such file"))
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{safe_name(str(table))}: its images and the lists beside it do not agree ({error})"
        ) from None
    rows = request.draw(rows)
    paths = [path for path, _, _ in rows]
    return TruthSource(
        name=request.title(part),
        items=[FileItem(path) for path in paths],
        labels={"class": np.array([at for _, at, _ in rows], np.int64)},
        classes={"class": tuple(safe_name(spoken[key]) for key in order)},
        raw_boxes=partial(file_boxes, paths, [box for _, _, box in rows]),
        skipped=tuple(skipped),
    )


def _numbered(table: Path, words: int) -> dict[str, list[str]]:
    """Return the words of each line of a list by the number in front of them."""
    found = {}
    for line in lines(table):
        key, *rest = line.split()
        if not key.isdecimal() or len(rest) != words:
            raise InputError(f"{safe_name(str(table))}: {safe_name(line)!r} is no number and {words} more words")
        found[key] = rest
    return found
