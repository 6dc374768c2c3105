"""Load images in batches, in the order of the source, through worker processes; skip and name what cannot be read."""

import hashlib
import os
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitprobe.errors import ArgumentError, InputError, VitprobeError
from vitprobe.inputs.images import Item, bounded

FEW_ITEMS = 64
"""Fewer items than these are read in the process itself: starting workers takes longer than reading."""
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
    ) -> None:
        """Prepare to read `items` with `transform`, from a PIL image to (3, H, W); nothing is read yet.

        `workers` is the number of processes, 0 for none, None to choose. Sides are cropped to at most `bound` times
        each other before the transform. Raises ArgumentError for a batch size or a bound below 1, or negative workers.
        """
        for name, value, least in (("batch size", batch_size, 1), ("bound", bound, 1), ("workers", workers or 0, 0)):
            if value < least:
                raise ArgumentError(f"{name} of {value}; give {least} or more")
        self.workers = _num_workers(len(items)) if workers is None else min(workers, len(items))
        self._reading = _Reading(items, transform, bound)
        self._batch_size = batch_size
        self._reset()

    def _reset(self) -> None:
        self.skipped: list[tuple[str, str]] = []
        """(name, reason) of each image that could not be read, in source order."""
        self.notes: Counter[str] = Counter()
        """How many of the images that were read had which note."""
        self.num_read = 0
        """Images given out."""
        self._digest = hashlib.sha256()

    def digest(self) -> str:
        """Return the SHA-256, in hexadecimal, of the digests of the images given out so far, in source order."""
        return self._digest.hexdigest()

    def __iter__(self) -> Iterator[ImageBatch]:
        """Return an iterator over the batches; the counts start again.

        It raises VitprobeError where a worker process was killed, and ArgumentError where the transform gives something
        other than (3, H, W) or images of different sizes.
        """
        self._reset()
        return self._batches()

    def _batches(self) -> Iterator[ImageBatch]:
        batches = self._started()
        try:
            while (loaded := _next(batches)) is not None:
                batch = self._batch(loaded)
                if batch is not None:
                    yield batch
        finally:
            del batches  # ends the workers

    def _started(self) -> Iterator[list[_Loaded]]:
        with _interrupts_held(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of more workers than cores, and of a fork beside threads
            return iter(
                DataLoader(
                    self._reading,
                    batch_size=self._batch_size,
                    shuffle=False,
                    num_workers=self.workers,
                    collate_fn=_as_they_are,
                    worker_init_fn=_start_worker,
                    generator=torch.Generator(),  # its own, or it draws from the global one
                )
            )

    def _batch(self, loaded: Sequence[_Loaded]) -> ImageBatch | None:
        for one in loaded:
            if one.is_fatal:
                raise ArgumentError(one.reason)
        self.skipped += [(one.name, one.reason) for one in loaded if one.pixels is None]
        good = [one for one in loaded if one.pixels is not None]
        if not good:
            return None
        sizes = sorted({one.pixels.shape for one in good})
        if len(sizes) > 1:
            raise ArgumentError(f"the transform gave images of sizes {sizes[0]} and {sizes[-1]}; one size is needed")
        for one in good:
            self.notes.update(one.notes)
            self._digest.update(one.digest.encode())
        self.num_read += len(good)
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


def _next(batches: Iterator[list[_Loaded]]) -> list[_Loaded] | None:
    try:
        return next(batches, None)
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        raise VitprobeError(
            "a process that reads images was killed, perhaps for want of memory; use fewer workers, or 0"
        ) from error


def _as_they_are(loaded: list[_Loaded]) -> list[_Loaded]:
    return loaded


def _start_worker(_worker: int) -> None:
    torch.set_num_threads(1)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold back Ctrl-C while workers start: they keep it held, and the main process, which gets it after, ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _num_workers(num_items: int) -> int:
    if num_items < FEW_ITEMS:
        return 0
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(MAX_WORKERS, cores // 2))
