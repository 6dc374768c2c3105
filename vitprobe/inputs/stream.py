"""Stream training batches that are a function of the seed and the position alone: a run can be cut and go on anywhere.

Position `p` of a stream over N images is image `perm_e[p mod N]` of epoch `e = p div N`, where `perm_e` is drawn from
(seed, e); batch `b` holds positions `b * G` to `(b + 1) * G - 1`. `scene_stream` gives the same kind of batches.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from vitprobe.errors import ArgumentError, InputError
from vitprobe.inputs.labels import Labelled
from vitprobe.inputs.reading import MAX_IN_A_ROW, Chunk, Reading, Views, different_sizes, stacked
from vitprobe.inputs.seeding import generators_kept, rank_rows
from vitprobe.inputs.slots import Slots, can_inherit
from vitprobe.inputs.workers import FEW_ITEMS, PREFETCH, next_of, num_cores, start_reading

MAX_WORKERS = 16
"""How many workers are started where the caller does not say."""
CHUNK = 32
"""Most images that a worker hands over at once: what waits in memory does not grow with the batch."""
MAX_FAILED = 0.1
"""Share of the images that may be unreadable."""


@dataclass(frozen=True, eq=False)
class TrainBatch:
    """Hold the images of one batch, transformed, and what is known of them."""

    views: tuple[Tensor, ...]
    """Each (B, 3, H, W) float32: one, or the crops of a multi-crop transform."""
    indices: Tensor
    """(B,) int64 position in the source; of scenes, their number."""
    labels: Tensor | None = None
    """(B,) int64 position in the classes."""
    captions: tuple[str, ...] | None = None
    truth: Mapping[str, Tensor] = field(default_factory=dict)
    """Of scenes only: the truth of each task, as in `scene_stream`."""

    def to(self, device: torch.device | str) -> "TrainBatch":
        """Return the batch on a device."""
        return TrainBatch(
            views=tuple(view.to(device, non_blocking=True) for view in self.views),
            indices=self.indices.to(device, non_blocking=True),
            labels=None if self.labels is None else self.labels.to(device, non_blocking=True),
            captions=self.captions,
            truth={name: value.to(device, non_blocking=True) for name, value in self.truth.items()},
        )


class ItemStream:
    """Stream batches of transformed images, in an order drawn anew for each epoch."""

    def __init__(
        self,
        labelled: Labelled,
        transform: Callable[[Image.Image], Views],
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        workers: int | None = None,
    ) -> None:
        """Prepare to read; nothing is read yet. `batch_size` is that of all `world` processes together.

        `transform` takes a PIL image to one tensor (3, H, W) or to a tuple of them; `workers` is the number of reading
        processes, 0 for none, None to choose. Raises ArgumentError for values that are not allowed.
        """
        if not len(labelled.items):
            raise ArgumentError(f"no image in {labelled.name} to stream; give at least one")
        self.num_images = len(labelled.items)
        self.rows = rank_rows(batch_size, seed=seed, rank=rank, world=world, workers=workers)
        self.workers = _num_workers(self.num_images, world) if workers is None else workers
        self.skipped: list[tuple[str, str]] = []
        """(name, reason) of each image that could not be read, once, in the order in which they were met."""
        self._labelled = labelled
        self._batch_size = batch_size
        self._reading = Reading(labelled.items, transform, seed)
        self._failed: set[int] = set()

    def batches(self, start: int, stop: int) -> Iterator[TrainBatch]:
        """Return an iterator over this process's part of batches `start` to `stop - 1`.

        An image that cannot be read is named in `skipped`, and the next readable one in the order of the stream stands
        in its place (that of position p + 1, else p + 2, ...), augmented as position p is. Raises InputError where a
        file is there no more, and where more than a tenth of the images cannot be read; ArgumentError where the
        transform gives anything but (3, H, W), or different sizes; VitprobeError where a worker process was killed.
        """
        if not 0 <= start <= stop:
            raise ArgumentError(f"batches {start} to {stop}; give 0 <= start <= stop")
        return self._batches(start, stop)

    def _batches(self, first: int, stop: int) -> Iterator[TrainBatch]:
        if first == stop:
            return
        parts = [self.rows[at : at + CHUNK] for at in range(0, len(self.rows), CHUNK)]
        ahead = PREFETCH * self.workers + 1  # chunks in the making, and the one that is being taken
        slots = self._slots(first, ahead)
        numbered = enumerate((batch * self._batch_size, part) for batch in range(first, stop) for part in parts)
        places = ([(number % ahead, start + row) for row in part] for number, (start, part) in numbered)
        chunks = start_reading(self._reading, places, collate=partial(stacked, slots), workers=self.workers)
        try:
            for _ in range(first, stop):
                yield self._joined(chunks, len(parts), slots)
        finally:
            del chunks  # ends the workers

    def _slots(self, first: int, num_slots: int) -> Slots | None:
        """Make room for what workers give, judged by the first image; None where it goes another way."""
        if not self.workers or not can_inherit():
            return None
        with generators_kept():
            views = self._reading[0, first * self._batch_size].views
        num_bytes = sum(view.nbytes for view in views) * min(CHUNK, len(self.rows))
        return Slots(num_slots, num_bytes) if num_bytes else None

    def _checked(self, chunks: Iterator[Chunk]) -> Chunk:
        """Take the next chunk, note what could not be read, and stop where that is too much."""
        with nullcontext() if self.workers else generators_kept():
            chunk = next_of(chunks)
        for index, reason in chunk.failed:
            if index not in self._failed:
                self._failed.add(index)
                self.skipped.append((self._labelled.items[index].name, reason))
        if chunk.fault:
            raise ArgumentError(chunk.fault)
        if chunk.vanished is not None:
            raise InputError(
                f"{self._labelled.items[chunk.vanished].name}: gone since the images were listed; "
                "put it back, or start again with the images that are there"
            )
        if chunk.is_stuck or len(self._failed) > MAX_FAILED * self.num_images:
            name, reason = self.skipped[-1]
            raise InputError(
                f"{len(self._failed):,} of the {self.num_images:,} images of {self._labelled.name} cannot be read so "
                f"far{f', {MAX_IN_A_ROW} of them in a row' if chunk.is_stuck else ''}, such as {name}: {reason}; "
                f"at most {MAX_FAILED:.0%} may be; leave them out"
            )
        return chunk

    def _joined(self, chunks: Iterator[Chunk], num_chunks: int, slots: Slots | None) -> TrainBatch:
        views: list[Tensor] = []
        indices: list[int] = []
        for _ in range(num_chunks):
            chunk = self._checked(chunks)
            arrays = slots.get(chunk.slot, chunk.shapes) if slots and chunk.shapes else chunk.views
            if not views:
                views = [torch.empty(len(self.rows), *array.shape[1:]) for array in arrays]  # (B, 3, H, W) each
            first, here = (tuple(tuple(view.shape[1:]) for view in made) for made in (views, arrays))
            if first != here:
                raise ArgumentError(different_sizes(first, here))
            for view, array in zip(views, arrays, strict=True):  # copied at once: a slot is used again
                view[len(indices) : len(indices) + len(array)] = torch.from_numpy(array)
            indices += chunk.indices
        known = self._labelled
        return TrainBatch(
            views=tuple(views),
            indices=torch.tensor(indices),
            labels=None if known.labels is None else torch.from_numpy(known.labels[indices]),
            captions=None if known.captions is None else tuple(known.captions[index] for index in indices),
        )


def _num_workers(num_items: int, world: int) -> int:
    """Return how many workers this process starts: with the main one they take its share of the cores."""
    return 0 if num_items < FEW_ITEMS else max(1, min(MAX_WORKERS, num_cores() // world - 1))
