"""Open images together with what is known of each: its class, its caption.

Like `images`, this file is shared ground inside `vitprobe.inputs`.
"""

import os
import random
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from vitprobe.errors import ArgumentError, InputError
from vitprobe.inputs import annotations
from vitprobe.inputs.annotations import CAPTION_MEMBERS, CAPTION_NAMES, LABEL_MEMBERS, LABEL_NAMES, Label
from vitprobe.inputs.archives import ParquetItem, TarItem
from vitprobe.inputs.images import Item, safe_name
from vitprobe.inputs.named_sets import KnownFile, KnownRow, is_named, open_named
from vitprobe.inputs.sources import FileItem, open_inputs
from vitprobe.inputs.vtab_lists import is_vtab, list_vtab

NEEDS = ("labels", "captions", "nothing")
CLASS_CAPTION = "a photo of a {}"
"""What captions are made of from class names, as for CLIP's zero-shot classifiers (arXiv 2103.00020, section 3.1.4)."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """Hold images with what is known of each."""

    name: str
    """Short, printable, for titles."""
    items: Sequence[Item]
    labels: np.ndarray | None
    """(N,) int64 position in `classes`; None where labels were not asked for."""
    classes: tuple[str, ...]
    """Names of all classes, also of those without an image here; empty without labels."""
    captions: Sequence[str] | None
    """(N,), or None where captions were not asked for."""
    skipped: tuple[tuple[str, str], ...]
    """(name, reason) of what was found unreadable, or without a label or caption, while listing."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.items)

    def take(self, indices: Sequence[int] | np.ndarray) -> "Labelled":
        """Return the images at these positions, in this order."""
        chosen = [int(index) for index in indices]
        return replace(
            self,
            items=[self.items[index] for index in chosen],
            labels=None if self.labels is None else self.labels[chosen],
            captions=None if self.captions is None else [self.captions[index] for index in chosen],
        )

    def split(self, held_out: int, *, seed: int) -> tuple["Labelled", "Labelled"]:
        """Return (the rest, `held_out` images drawn by `seed`), both in the original order.

        Where there are labels, each class gives its share, and keeps at least one image in the rest. Raises
        ArgumentError where that leaves too few images, or for less than 1.
        """
        counts = self._counts()
        num_kept = int((counts > 0).sum())
        most = len(self.items) - num_kept
        if not 1 <= held_out <= most:
            kept = "one" if self.labels is None else f"one of each of {num_kept:,} classes"
            raise ArgumentError(
                f"{held_out:,} of the {len(self.items):,} images of {self.name} to hold out; "
                f"{f'1 to {most:,}' if most > 0 else 'none'} can be, since {kept} must be left to train on; "
                "hold out fewer, or give held-out images of their own"
            )
        chosen = self._draw(held_out, seed, keep_one=True)
        rest = np.setdiff1d(np.arange(len(self.items)), chosen)
        return self.take(rest), self.take(chosen)

    def sample(self, number: int, *, seed: int) -> "Labelled":
        """Return `number` images drawn by `seed`, in the original order; where there are labels, a share of each class.

        Raises ArgumentError unless 1 <= number <= N.
        """
        if not 1 <= number <= len(self.items):
            raise ArgumentError(f"{number:,} images to draw from {self.name}; give 1 to {len(self.items):,}")
        return self.take(self._draw(number, seed, keep_one=False))

    def _counts(self) -> np.ndarray:
        """Return the number of images of each class, or of all of them where there are no labels."""
        return np.array([len(self.items)]) if self.labels is None else np.bincount(self.labels)

    def _draw(self, number: int, seed: int, *, keep_one: bool) -> np.ndarray:
        """Return `number` positions, sorted, shared among the classes; `keep_one` leaves one image of each."""
        groups = np.zeros(len(self.items), np.int64) if self.labels is None else self.labels
        counts = self._counts()  # (C,)
        generator = np.random.default_rng((seed, len(self.items)))
        shares = _shares(number, counts, counts - (counts > 0) * keep_one, generator)
        order = generator.permutation(len(self.items))
        by_class = order[np.argsort(groups[order], kind="stable")]
        rank = np.empty_like(order)  # place of each image among those of its class, in the random order
        rank[by_class] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.flatnonzero(rank < shares[groups])


def _shares(number: int, counts: np.ndarray, most: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Divide `number` among classes in proportion to `counts`, at most `most` each; ties are drawn."""
    wanted = number * counts / counts.sum()
    shares = np.minimum(np.floor(wanted).astype(np.int64), most)
    while (left := number - int(shares.sum())) > 0:
        ahead = np.lexsort((generator.random(len(counts)), shares - wanted))  # who is furthest below its share
        shares[[at for at in ahead if shares[at] < most[at]][:left]] += 1
    return shares


def open_labelled(
    inputs: Sequence[str],
    *,
    label: str | None = None,
    caption: str | None = None,
    need: str,
    limit: int | None = None,
    seed: int = 0,
    classes: tuple[str, ...] | None = None,
) -> Labelled:
    """Return the images that `inputs` stand for, with labels, captions or nothing, as `need` says; no image is read.

    Inputs are those of `open_inputs`, the named sets of `named_sets` and the tasks of `vtab_lists`. The label of a file
    is the name of the folder that holds it; in Parquet files and WebDataset shards `label` and `caption` name the
    column, member or key, and without them the usual names are looked for (see `annotations`). `caption="class"` makes
    captions from class names.
    Classes stand in order of their names or numbers, or as the data set itself orders them; with `classes`, of another
    part of the same set, labels are positions there. An image without what is needed is left out and named in
    `skipped`. `limit` keeps a random subset as in `open_inputs`. Raises ArgumentError for a value that is not allowed,
    InputError where there are no labels, no captions, a single class, or a class that is not among `classes`.
    """
    if need not in NEEDS:
        raise ArgumentError(f"need {need!r}; give one of {', '.join(NEEDS)}")
    if limit is not None and limit < 1:
        raise ArgumentError(f"limit of {limit} images; give 1 or more")
    named = {text: open_named(text) for text in inputs if is_named(text)}
    named |= {text: list_vtab(text) for text in inputs if is_vtab(text)}
    source = open_inputs(inputs, extra={text: partial(list, found.items) for text, found in named.items()})
    found = Labelled(source.name, source.items, None, (), None, source.skipped)
    if need == "labels" or caption == "class":
        found = _with_labels(found, label, {one.classes for one in named.values()}, classes)
    if caption == "class":
        spoken = class_captions(found.classes)
        found = replace(found, captions=[spoken[at] for at in found.labels])
    elif need == "captions":
        found = _with_captions(found, caption)
    if limit is not None and limit < len(found.items):
        found = found.take(sorted(random.Random(seed).sample(range(len(found.items)), limit)))
    return found


def class_captions(classes: Sequence[str]) -> tuple[str, ...]:
    """Return what `caption="class"` says of each class. Raises InputError for a name that is a number."""
    return tuple(CLASS_CAPTION.format(_spoken(name)) for name in classes)


def _with_labels(
    found: Labelled, label: str | None, orders: set[tuple[str, ...]], classes: tuple[str, ...] | None
) -> Labelled:
    def from_parquet(path: str) -> list[Label | None]:
        values, names = annotations.parquet_labels(path, label)
        orders.add(names)
        return values

    raw = _told(found.items, from_parquet, lambda path: annotations.tar_labels(path, label), _own_label)
    found, raw = _complete(found, raw, "label", _sought(label, LABEL_NAMES, LABEL_MEMBERS))
    if classes is None:
        _refuse_one_class(found, raw)
    order = _order(raw, orders) if classes is None else classes
    positions = {name: at for at, name in enumerate(order)}
    unknown = Counter(str(value) for value in raw if str(value) not in positions)
    if unknown:
        name, number = unknown.most_common(1)[0]
        first = next(item for item, value in zip(found.items, raw, strict=True) if str(value) == name)
        raise InputError(
            f"class {name!r} of {found.name} ({number:,} images, such as {first.name}) is not among the "
            f"{len(order):,} classes to be told apart: {_few(order)}"
        )
    return replace(found, labels=np.array([positions[str(value)] for value in raw], np.int64), classes=order)


def _with_captions(found: Labelled, caption: str | None) -> Labelled:
    raw = _told(
        found.items,
        lambda path: annotations.parquet_captions(path, caption),
        lambda path: annotations.tar_captions(path, caption),
        lambda _item: None,
    )
    sought = f"{_sought(caption, CAPTION_NAMES, CAPTION_MEMBERS)}; 'class' makes captions of class names"
    found, raw = _complete(found, raw, "caption", sought)
    return replace(found, captions=raw)


def _told(
    items: Sequence[Item],
    from_parquet: Callable[[str], Sequence[Any]],
    from_tar: Callable[[str], dict[int, Any]],
    otherwise: Callable[[Item], Any],
) -> list[Any]:
    """Return what is told of each item; each archive is read once."""
    read: dict[Hashable, Any] = {}
    told = []
    for item in items:
        if isinstance(item, ParquetItem):
            if item.path not in read:
                read[item.path] = from_parquet(item.path)
            told.append(read[item.path][item.row])
        elif isinstance(item, TarItem):
            if item.path not in read:
                read[item.path] = from_tar(item.path)
            told.append(read[item.path].get(item.offset))
        else:
            told.append(otherwise(item))
    return told


def _own_label(item: Item) -> Label | None:
    if isinstance(item, KnownFile | KnownRow):
        return item.label
    if isinstance(item, FileItem):
        folder = os.path.dirname(item.path)
        name = os.path.basename(folder)
        return safe_name(os.path.basename(os.path.abspath(folder)) if name in ("", ".", "..") else name)
    return None


def _sought(name: str | None, names: Sequence[str], members: Sequence[str]) -> str:
    endings = ", ".join(f".{ending}" for ending in ((name,) if name else members))
    keys = name or ", ".join(names)
    return f"in Parquet files a column, in tar shards a key of .json, named {keys}; in shards members {endings}"


def _complete(found: Labelled, told: list[Any], what: str, where: str) -> tuple[Labelled, list[Any]]:
    """Leave out the images of which nothing is told."""
    kept = [at for at, one in enumerate(told) if one is not None]
    if not kept:
        raise InputError(f"none of the {len(told):,} images of {found.name} has a {what}; looked for {where}")
    if len(kept) == len(told):
        return found, told
    bare = tuple((item.name, f"no {what}") for item, one in zip(found.items, told, strict=True) if one is None)
    return replace(found.take(kept), skipped=(*found.skipped, *bare)), [told[at] for at in kept]


def _refuse_one_class(found: Labelled, raw: Sequence[Label]) -> None:
    if len({str(value) for value in raw}) > 1:
        return
    why = "their label"
    if isinstance(found.items[0], FileItem):
        why = "the folder that holds them; put each class in a folder of its own"
    raise InputError(f"one class only: all {len(raw):,} images of {found.name} are {str(raw[0])!r}, {why}")


def _order(raw: Sequence[Label], orders: set[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the classes in the order that the data set itself has, else by number, else by name."""
    seen = set(raw)
    whole = [order for order in orders if order]
    if len(whole) == 1 and seen <= set(whole[0]):
        return whole[0]
    if all(isinstance(value, int) for value in seen):
        return tuple(str(value) for value in sorted(seen))
    return tuple(sorted({str(value) for value in seen}))


def _spoken(name: str) -> str:
    """Return a class name as one says it: `n01440764_tench` and, by WordNet's words in timm, `n01440764` as `tench`."""
    found = re.fullmatch(r"(n\d{8})(?:[_ -](.+))?", name)
    if found is not None:
        try:
            name = found[2] or _wordnet().label_name_to_description(found[1]).partition(",")[0]
        except KeyError:
            raise InputError(f"class {name} is no WordNet number that timm knows; call it {name}_WORD") from None
    spoken = " ".join(name.replace("_", " ").split())
    if not re.search(r"[^\W\d]", spoken):
        raise InputError(f"class {name!r} is a number, and no caption can be made of it; give captions of their own")
    return spoken


@lru_cache(maxsize=1)
def _wordnet() -> Any:
    from timm.data import ImageNetInfo

    return ImageNetInfo("imagenet-22k")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10:,} more" if len(names) > 10 else "")
