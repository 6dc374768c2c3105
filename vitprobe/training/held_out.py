"""Held-out images: read once through the model's own transform, with what is known of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from vitprobe.backbones.base import Transform
from vitprobe.inputs.labels import Labelled
from vitprobe.inputs.loading import ImageBatch, ImageLoader

IN_MEMORY = 2**30
"""Bytes of transformed images that are kept rather than read again at every evaluation."""


@dataclass
class Reader:
    """Read a set of images in batches, again and again; small sets are kept in memory."""

    images: Labelled
    transform: Transform
    batch_size: int
    workers: int | None
    positions: Sequence[int]
    """Positions in the set of what this process reads."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    """SHA-256 of each image that was read the last time."""
    _kept: list[ImageBatch] | None = None

    def __iter__(self) -> Iterator[ImageBatch]:
        """Yield the batches in order; their ``indices`` are positions in the whole set."""
        if self._kept is not None:
            yield from self._kept
            return
        items = [self.images.items[i] for i in self.positions]
        loader = ImageLoader(items, self.transform, batch_size=self.batch_size, workers=self.workers)
        kept, size, digests = [], 0, []
        for batch in loader:
            digests += batch.digests
            moved = ImageBatch(
                batch.names, batch.images, batch.digests, tuple(self.positions[i] for i in batch.indices)
            )
            size += batch.images.nbytes
            if size <= IN_MEMORY:
                kept.append(moved)
            yield moved
        self.skipped[:], self.digests[:] = loader.skipped, digests
        if size <= IN_MEMORY:
            self._kept = kept


@dataclass(frozen=True)
class HeldOut:
    """Hold what training is measured on, and the training images whose features vote in the k-NN measure."""

    reader: Reader
    bank: Reader
    truth: Mapping[str, Tensor] = field(default_factory=dict)
    """Of all held-out scenes, by task; empty for pictures."""

    @property
    def labels(self) -> np.ndarray | None:
        """(N,) labels of all held-out images."""
        return self.reader.images.labels

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.reader.images.classes

    @property
    def captions(self) -> Sequence[str] | None:
        """(N,) captions of all held-out images."""
        return self.reader.images.captions
