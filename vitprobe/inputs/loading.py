"""Load images in batches, in the order of the source, through worker processes; skip and name what cannot be read."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from vitprobe.errors import ArgumentError, InputError
from vitprobe.inputs.images import Item, bounded
from vitprobe.inputs.workers import FEW_ITEMS, next_of, num_cores, start_reading

MAX_WORKERS = 4
"""How many workers are started where the caller does not say."""


@dataclass(frozen=True)
class ImageBatch:
    """Hold the transformed images of one batch: at least one, at most the batch size."""

    names: tuple[str, ...]
    images: Tensor
    """(B, 3, H, W) float32, on the CPU."""
    digests: tuple[str, ...]
    """SHA-256 of each image's bytes."""
    indices: tuple[int, ...]
    """Position of each image in the source, from 0."""


@dataclass(frozen=True)
class _Loaded:
    """Carry one image, or why there is none, from a worker process."""

    index: int
    name: str
    pixels: np.ndarray | None = None
    """(3, H, W) float32; through a pipe, since the shared memory of a container is often too small for batches."""
    digest: str = ""
    notes: tuple[str, ...] = ()
    reason: str = ""
    """Why there are no pixels."""
    is_fatal: bool = False
    """Whether the reason is the transform's fault, and would come back for each image."""


@dataclass
class Account:
    """Count what was read, skipped and done to images; accounts of shares of a source add up in its order."""

    skipped: list[tuple[str, str]] = field(default_factory=list)
    """(name, reason) of each image that could not be read, in source order."""
    notes: Counter[str] = field(default_factory=Counter)
    """How many of the images that were read had which note."""
    num_read: int = 0
    """Images given out."""
    digests: bytearray = field(default_factory=bytearray)
    """32 bytes for each of them, in source order."""

    def add(self, loaded: Sequence[_Loaded]) -> None:
        """Take in one batch as it was read."""
        self.skipped += [(one.name, one.reason) for one in loaded if one.pixels is None]
        for one in loaded:
            if one.pixels is not None:
                self.notes.update(one.notes)
                self.digests += bytes.fromhex(one.digest)
                self.num_read += 1

    def extend(self, later: "Account") -> None:
        """Add what was read of the images that come next in the source."""
        self.skipped += later.skipped
        self.notes.update(later.notes)
        self.num_read += later.num_read
        self.digests += later.digests

    def digest(self) -> str:
        """Return the SHA-256, in hexadecimal, of the digests, each in hexadecimal."""
        return hashlib.sha256(self.digests.hex().encode()).hexdigest()


class ImageLoader:
    """Iterate over `items` in batches, and count what was read, skipped and done to the images on the way."""

    def __init__(
        self,
        items: Sequence[Item],
        transform: Callable[[Image.Image], Tensor],
        *,
        batch_size: int = 8,
        workers: int | None = None,
        bound: int = 8,
        indices: Sequence[int] | None = None,
    ) -> None:
        """Prepare to read `items` with `transform`, from a PIL image to (3, H, W); nothing is read yet.

        `workers` is the number of processes, 0 for none, None to choose. Sides are cropped to at most `bound` times
        each other before the transform. `indices` are the positions of the items to read, by default all. Raises
        ArgumentError for a batch size or a bound below 1, or negative workers.
        """
        for name, value, least in (("batch size", batch_size, 1), ("bound", bound, 1), ("workers", workers or 0, 0)):
            if value < least:
                raise ArgumentError(f"{name} of {value}; give {least} or more")
        self._indices = range(len(items)) if indices is None else indices
        self.workers = _num_workers(len(self)) if workers is None else min(workers, len(self))
        self._reading = _Reading(items, transform, bound)
        self._batch_size = batch_size
        self.account = Account()
        """What was read, skipped and done so far."""

    def __len__(self) -> int:
        """Return the number of images to read."""
        return len(self._indices)

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(name, reason) of each image that could not be read, in source order."""
        return self.account.skipped

    @property
    def notes(self) -> Counter[str]:
        """How many of the images that were read had which note."""
        return self.account.notes

    @property
    def num_read(self) -> int:
        """Images given out."""
        return self.account.num_read

    def digest(self) -> str:
        """Return the SHA-256, in hexadecimal, of the digests of the images given out so far, in source order."""
        return self.account.digest()

    def __iter__(self) -> Iterator[ImageBatch]:
        """Return an iterator over the batches; the counts start again.

        It raises VitprobeError where a worker process was killed, and ArgumentError where the transform gives something
        other than (3, H, W) or images of different sizes.
        """
        self.account = Account()
        return self._batches()

    def _batches(self) -> Iterator[ImageBatch]:
        steps = range(0, len(self), self._batch_size)
        indices = (self._indices[first : first + self._batch_size] for first in steps)
        batches = start_reading(self._reading, indices, collate=_as_they_are, workers=self.workers)
        try:
            while (loaded := next_of(batches)) is not None:
                batch = self._batch(loaded)
                if batch is not None:
                    yield batch
        finally:
            del batches  # ends the workers

    def _batch(self, loaded: Sequence[_Loaded]) -> ImageBatch | None:
        for one in loaded:
            if one.is_fatal:
                raise ArgumentError(one.reason)
        good = [one for one in loaded if one.pixels is not None]
        sizes = sorted({one.pixels.shape for one in good})
        if len(sizes) > 1:
            raise ArgumentError(f"the transform gave images of sizes {sizes[0]} and {sizes[-1]}; one size is needed")
        self.account.add(loaded)
        if not good:
            return None
        return ImageBatch(
            names=tuple(one.name for one in good),
            images=torch.from_numpy(np.stack([one.pixels for one in good])),  # (B, 3, H, W)
            digests=tuple(one.digest for one in good),
            indices=tuple(one.index for one in good),
        )


class _Reading(Dataset[_Loaded]):
    """Read and transform one item; this is what worker processes run."""

    def __init__(self, items: Sequence[Item], transform: Callable[[Image.Image], Tensor], bound: int) -> None:
        self._items = items
        self._transform = transform
        self._bound = bound

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> _Loaded:
        item = self._items[index]
        try:
            decoded = bounded(item.read(), self._bound)
        except InputError as error:
            return _Loaded(index, item.name, reason=str(error))
        try:
            image = self._transform(decoded.image)
        except (OSError, ValueError, RuntimeError) as error:
            text = " ".join(str(error).split())[:160]
            return _Loaded(index, item.name, reason=f"the transform failed: {type(error).__name__}: {text}")
        if not isinstance(image, Tensor) or image.ndim != 3 or image.shape[0] != 3:
            got = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            reason = f"the transform gave {got}; a tensor of shape (3, H, W) is needed"
            return _Loaded(index, item.name, reason=reason, is_fatal=True)
        pixels = image.detach().to(torch.float32).contiguous().numpy()
        return _Loaded(index, item.name, pixels=pixels, digest=decoded.digest, notes=decoded.notes)


def _as_they_are(loaded: list[_Loaded]) -> list[_Loaded]:
    return loaded


def _num_workers(num_items: int) -> int:
    return 0 if num_items < FEW_ITEMS else max(1, min(MAX_WORKERS, num_cores() // 2))
