"""Run a dataset in worker processes: none of them heeds Ctrl-C, each takes one thread, and a killed one is an error.

Like `images`, this file is shared ground inside `vitprobe.inputs`.
"""

import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from vitprobe.errors import VitprobeError

T = TypeVar("T")

FEW_ITEMS = 64
"""Fewer items than these are read in the process itself: starting workers takes longer than reading."""

PREFETCH = 2
"""How many batches each worker works ahead."""


def num_cores() -> int:
    """Return how many processor cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def start_reading(
    dataset: Dataset[Any], batches: Iterable[Sequence[int]], *, collate: Callable[[list[Any]], T], workers: int
) -> Iterator[T]:
    """Return an iterator over `collate([dataset[index] for index in batch])`, in order; take from it with `next_of`.

    What passes from a worker goes through a pipe: give arrays of numpy, since tensors would need shared memory, of
    which a container often has too little. Each worker has at most `PREFETCH` batches ready or in the making, and one
    is begun when one is taken. Deleting the iterator ends the workers.
    """
    with _interrupts_held(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of more workers than cores, and of a fork beside threads
        return iter(
            DataLoader(
                dataset,
                batch_sampler=batches,
                num_workers=workers,
                prefetch_factor=PREFETCH if workers else None,
                collate_fn=collate,
                worker_init_fn=_start_worker,
                generator=torch.Generator(),  # its own, or it draws from the global one
            )
        )


def next_of(batches: Iterator[T]) -> T | None:
    """Return the next of what `start_reading` began, None at the end; VitprobeError where a worker was killed."""
    try:
        return next(batches, None)
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        raise VitprobeError(
            "a process that reads images was killed, perhaps for want of memory; use fewer workers, or 0"
        ) from error


def _start_worker(_worker: int) -> None:
    torch.set_num_threads(1)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM while workers start; they keep them held.

    Where a whole group of processes gets one, the main process goes on reading until it ends its workers itself.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
