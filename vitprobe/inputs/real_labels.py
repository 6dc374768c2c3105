"""Read the reassessed labels of ImageNet's validation images, ReaL (Beyer et al., arXiv 2006.07159): a set an image.

The file is `real.json` of github.com/google-research/reassessed-imagenet: a list of 50,000 lists, in the order of the
images ILSVRC2012_val_00000001 on, each with the classes that raters found in the image. Some lists are empty: no class
fits, and by the paper's rule such images are left out. timm carries a copy of the file, so that none need be fetched.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from vitprobe.errors import InputError
from vitprobe.inputs.images import safe_name
from vitprobe.inputs.truth_files import text

NUM_IMAGES, NUM_CLASSES = 50_000, 1000
"""Images of ILSVRC2012's validation part, and its classes."""
MAX_BYTES = 2**24
"""Bytes of the largest file that is read: the true one has 0.4 MB."""
SOURCE = "give real.json of github.com/google-research/reassessed-imagenet"


def read_real(
    path: str | Path | None, names: Sequence[str], *, classes: Sequence[str] | None = None
) -> tuple[frozenset[int] | None, ...]:
    """Return for each image of these file names its set of classes; None where the set is empty: leave it out.

    `path` is `real.json`, or None for timm's copy. An image is found by the number in its file name, such as 293 in
    ``val/n01440764/ILSVRC2012_val_00000293.JPEG``. Classes are numbered there in the order of their WordNet ids. That
    is the order of folders named by these ids when sorted, and of the heads of models of timm; with `classes` (names of
    folders: ids, or ids and words, ``n01440764_tench``), a set holds positions there, in whatever order they stand.

    Raises InputError where the file cannot be read or is another, for a name without a number from 1 to 50,000, and
    for `classes` that are not the 1,000 of ImageNet.
    """
    lists = _read(_own_copy() if path is None else Path(path))
    position = list(range(NUM_CLASSES)) if classes is None else _positions(classes)
    found = (lists[_number(name) - 1] for name in names)
    return tuple(frozenset(position[one] for one in sets) if sets else None for sets in found)


def _read(path: Path) -> list[list[int]]:
    shown = safe_name(str(path))
    try:
        lists = json.loads(text(path, MAX_BYTES))
    except (ValueError, RecursionError):
        raise InputError(f"{shown}: not JSON; {SOURCE}") from None
    if not isinstance(lists, list) or len(lists) != NUM_IMAGES:
        what = f"a list of {len(lists):,}" if isinstance(lists, list) else "no list"
        raise InputError(f"{shown}: {what}, where a list of {NUM_IMAGES:,} lists is needed; {SOURCE}")
    for at, one in enumerate(lists):
        if not isinstance(one, list) or not all(type(c) is int and 0 <= c < NUM_CLASSES for c in one):
            raise InputError(
                f"{shown}: what it says of image {at + 1:,} is no list of classes from 0 to {NUM_CLASSES - 1}; {SOURCE}"
            )
    return lists


def _own_copy() -> Path:
    """Return the path of the copy that timm is installed with."""
    import timm.data

    return Path(timm.data.__file__).parent / "_info" / "imagenet_real_labels.json"


def _number(name: str) -> int:
    """Return the number of a validation image."""
    found = re.search(r"ILSVRC2012_val_([0-9]{8})(?![0-9])[^/\\]*$", name)
    if found is None or not 1 <= int(found[1]) <= NUM_IMAGES:
        raise InputError(
            f"{safe_name(name)}: no number of ImageNet's validation images in its name, by which ReaL labels are "
            f"found; it must be called as ILSVRC2012_val_00000001.JPEG, up to {NUM_IMAGES:,}"
        )
    return int(found[1])


def _positions(classes: Sequence[str]) -> list[int]:
    """Return the position in `classes` of each class in the order of WordNet ids."""
    from timm.data import ImageNetInfo

    if len(classes) != NUM_CLASSES:
        raise InputError(
            f"{len(classes):,} classes; ReaL labels are of ImageNet's {NUM_CLASSES:,}: give its validation part with "
            "the classes of the whole training part"
        )
    ids = [found[0] if (found := re.match(r"n[0-9]{8}(?![0-9])", name)) else name for name in classes]
    at = {one: position for position, one in enumerate(ids)}
    order = sorted(ImageNetInfo("imagenet-1k").label_names())
    known = frozenset(order)
    strange = next((name for name, one in zip(classes, ids, strict=True) if one not in known), None)
    if strange is not None or len(at) != NUM_CLASSES:
        name = repr(safe_name(strange)) if strange is not None else "named twice, one of them"
        raise InputError(
            f"class {name} is none of ImageNet's {NUM_CLASSES:,} WordNet ids; ReaL labels need folders named "
            "n01440764 or n01440764_tench"
        )
    return [at[one] for one in order]
