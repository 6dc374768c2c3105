"""Give out images whose truth can be read; name the others, so that one bad mask does not end a run."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from vitprobe.errors import InputError
from vitprobe.inputs.loading import ImageBatch, ImageLoader
from vitprobe.inputs.truths import TruthSource

RAW = {"boxes": "raw_boxes", "masks": "raw_mask", "depth": "raw_depth"}
"""What reads a truth from its file, by what an item needs."""
KEPT = 64
"""Truths kept in memory: several readers look at those of one batch."""


def cached(source: TruthSource) -> TruthSource:
    """Return the source with the truths that were read last kept in memory."""
    found = {name: getattr(source, name) for name in RAW.values()}
    return replace(source, **{name: lru_cache(KEPT)(read) for name, read in found.items() if read is not None})


class TrustedLoader:
    """Iterate over a loader's batches, without images whose boxes, masks or depths cannot be read."""

    def __init__(self, loader: ImageLoader, source: TruthSource, needs: Collection[str]) -> None:
        """Prepare to check the truths in ``needs``, as far as the source has such, that items read of each image."""
        self._loader, self._names = loader, [RAW[need] for need in RAW if need in needs]
        self._reads = [getattr(source, name) for name in self._names if getattr(source, name) is not None]
        self._bad: list[tuple[str, str]] = []

    def __len__(self) -> int:
        """Return the number of images to read."""
        return len(self._loader)

    @property
    def skipped(self) -> Sequence[tuple[str, str]]:
        """(name, reason) of each image that could not be read, or whose truth could not."""
        return (*self._loader.skipped, *self._bad)

    @property
    def num_read(self) -> int:
        """Images given out."""
        return self._loader.num_read - len(self._bad)

    def digest(self) -> str:
        """Return the digest of the images that were read, those of a bad truth among them."""
        return self._loader.digest()

    def __iter__(self) -> Iterator[ImageBatch]:
        """Iterate over the batches; the counts start again."""
        self._bad = []
        for batch in self._loader:
            told = zip(batch.names, batch.indices, strict=True)
            good = [i for i, (name, index) in enumerate(told) if self._is_good(name, index)]
            if len(good) == len(batch.indices):
                yield batch
            elif good:
                yield replace(batch, images=batch.images[good], **{k: _of(getattr(batch, k), good) for k in _LISTS})

    def _is_good(self, name: str, index: int) -> bool:
        try:
            for read in self._reads:
                read(index)
        except InputError as error:
            self._bad.append((name, str(error)))
            return False
        return True


_LISTS = ("names", "digests", "indices")


def _of(values: tuple[Any, ...], chosen: Sequence[int]) -> tuple[Any, ...]:
    return tuple(values[i] for i in chosen)
