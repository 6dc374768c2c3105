"""Read, seed and transform the images of a training stream, position by position; worker processes run this.

Like `images`, this file is shared ground inside `vitprobe.inputs`: `stream` is made of it.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from vitprobe.errors import InputError
from vitprobe.inputs.archives import ParquetItem, TarItem
from vitprobe.inputs.images import Item, bounded
from vitprobe.inputs.named_sets import KnownFile
from vitprobe.inputs.seeding import epoch_order, seed_generators
from vitprobe.inputs.slots import Slots
from vitprobe.inputs.sources import FileItem

MAX_IN_A_ROW = 20
"""How many unreadable images may stand in a row: where a tenth is unreadable, chance makes such a row once in 1e20."""
BOUND = 8
"""Sides are cropped to at most so many times each other, as `ImageLoader` does."""

Views = Tensor | tuple[Tensor, ...]
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Sample:
    """Carry the views of one position, or why there are none."""

    slot: int
    """Which slot they will go to."""
    views: tuple[np.ndarray, ...] = ()
    """Each (3, H, W) float32."""
    index: int = -1
    """Position of the image in the source."""
    failed: tuple[tuple[int, str], ...] = ()
    """(position in the source, reason) of what could not be read on the way to this image."""
    vanished: int | None = None
    """Position in the source of a file that is there no more."""
    fault: str = ""
    """What is wrong with the transform."""


@dataclass(frozen=True)
class Chunk:
    """Carry several samples from the process that read them; see `Sample`."""

    slot: int
    shapes: Shapes | None
    """Each (b, 3, H, W), of what stands in the slot; None where `views` holds it instead."""
    views: tuple[np.ndarray, ...]
    indices: list[int]
    failed: tuple[tuple[int, str], ...]
    vanished: int | None
    fault: str
    is_stuck: bool
    """Whether no image was found for some position."""


class Reading(Dataset[Sample]):
    """Give the sample of (slot, position): see `ItemStream.batches` for what stands in for an unreadable image."""

    def __init__(self, items: Sequence[Item], transform: Callable[[Image.Image], Views], seed: int) -> None:
        self._items = items
        self._transform = transform
        self._seed = seed

    def __getitem__(self, place: tuple[int, int]) -> Sample:
        """Return the sample; the global generators are left as the transform leaves them."""
        slot, position = place
        failed: list[tuple[int, str]] = []
        for instead in range(position, position + MAX_IN_A_ROW):
            epoch, at = divmod(instead, len(self._items))
            index = int(epoch_order(len(self._items), self._seed, epoch)[at])
            try:
                image = bounded(self._items[index].read(), BOUND).image
            except InputError as error:
                if _is_gone(self._items[index]):
                    return Sample(slot, failed=tuple(failed), vanished=index)
                failed.append((index, str(error)))
                continue
            seed_generators(self._seed, position)
            try:
                views = self._transform(image)
            except (OSError, ValueError, RuntimeError) as error:
                text = " ".join(str(error).split())[:160]
                failed.append((index, f"the transform failed: {type(error).__name__}: {text}"))
                continue
            views = (views,) if isinstance(views, Tensor) else views
            fault = _fault(views)
            arrays = () if fault else tuple(view.detach().to(torch.float32).contiguous().numpy() for view in views)
            return Sample(slot, arrays, index, tuple(failed), fault=fault)
        return Sample(slot, failed=tuple(failed))


def stacked(slots: Slots | None, samples: list[Sample]) -> Chunk:
    """Stack the views of the samples, in their slot if there are slots; without views where something is wrong."""
    fault = next((sample.fault for sample in samples if sample.fault), "")
    vanished = next((sample.vanished for sample in samples if sample.vanished is not None), None)
    good = [sample for sample in samples if sample.views]
    sizes = sorted({tuple(view.shape for view in sample.views) for sample in good})
    if len(sizes) > 1:
        fault = fault or different_sizes(sizes[0], sizes[-1])
    shapes, views = None, ()
    if not fault and len(good) == len(samples):
        groups = list(zip(*(sample.views for sample in good), strict=True))
        shapes = slots.put(good[0].slot, groups) if slots else None
        views = () if shapes else tuple(np.stack(group) for group in groups)
    return Chunk(
        slot=samples[0].slot,
        shapes=shapes,
        views=views,
        indices=[sample.index for sample in good],
        failed=tuple(pair for sample in samples for pair in sample.failed),
        vanished=vanished,
        fault=fault,
        is_stuck=len(good) < len(samples) and vanished is None,
    )


def different_sizes(one: Shapes, other: Shapes) -> str:
    """Return what is wrong where a transform gives images of different sizes."""
    first, last = (", ".join(str(tuple(shape)) for shape in dict.fromkeys(shapes)) for shapes in (one, other))
    return f"the transform gave images of sizes {first} and, of another image, {last}; one size is needed"


def _is_gone(item: Item) -> bool:
    return isinstance(item, FileItem | KnownFile | ParquetItem | TarItem) and not os.path.exists(item.path)


def _fault(views: object) -> str:
    """Return what is wrong with what a transform gave; nothing, mostly."""
    if not isinstance(views, tuple) or not views:
        return f"the transform gave {type(views).__name__}; a tensor (3, H, W) or a tuple of such is needed"
    for view in views:
        if not isinstance(view, Tensor) or view.ndim != 3 or view.shape[0] != 3:
            got = tuple(view.shape) if isinstance(view, Tensor) else type(view).__name__
            return f"the transform gave {got}; a tensor of shape (3, H, W) is needed"
    return ""
