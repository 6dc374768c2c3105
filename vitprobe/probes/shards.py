"""Measure in several processes: each its share of the images, one answer; an error in one ends all of them.

The processes are those of ``torchrun`` or ``accelerate launch``. What passes between them are counts in main memory,
over gloo, whatever the model runs on.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypeVar

import torch

from vitprobe.errors import ArgumentError, InputError
from vitprobe.probes.link import Link
from vitprobe.probes.norms import NormAccumulator

T = TypeVar("T")


@dataclass(frozen=True)
class Shards:
    """Say which process of how many this is, and pass values between them; by itself where there is only one.

    As a context manager it makes an error in any process end all: ``with Shards.open("auto") as shards``. The main
    process raises the first error, wherever it came from; the others raise theirs, or `StoppedError`, when the main
    process ends.
    """

    rank: int
    world: int
    local_rank: int
    """Which process of its machine this is."""
    device: str
    """Where this process runs the model."""
    link: Link | None = field(default=None, repr=False, compare=False)

    @classmethod
    def alone(cls, device: str = "auto") -> "Shards":
        """Return the only process, whatever a launcher has started."""
        return cls(0, 1, 0, _own_device(device, None))

    @classmethod
    def open(cls, device: str = "auto") -> "Shards":
        """Join the processes that a launcher has started, as ``WORLD_SIZE``, ``RANK`` and ``LOCAL_RANK`` say.

        All of them must call it. ``device``: ``auto`` and ``cuda`` give each process the GPU of its local rank;
        anything else is taken as it is. Alone, nothing is initialised. Raises `ArgumentError` where the variables do
        not fit together.
        """
        world = _variable("WORLD_SIZE", 1)
        if world <= 1:
            return cls.alone(device)
        rank = _variable("RANK")
        local = _variable("LOCAL_RANK", rank)
        if rank >= world or not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            raise ArgumentError(
                f"got WORLD_SIZE={world}, RANK={rank} and no launcher; start with torchrun or accelerate launch, "
                "or unset them"
            )
        own = _own_device(device, local)
        return cls(rank, world, local, own, Link(rank, world, on_gpu=own.startswith("cuda")))

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def share(self, items: Sequence[T], *, chunk: int = 1) -> Sequence[T]:
        """Return this process's part of a sequence: contiguous, of whole chunks, as many as the others' to within one.

        Contiguous, because parts set one after another then stand in the order of the source, and archives are read
        from front to back. With the batch size as ``chunk``, batches are those of a single process, and so are their
        numbers to the last bit: kernels round differently for batches of different sizes.
        """
        number = -(-len(items) // chunk)
        first, last = (-(-number * rank // self.world) * chunk for rank in (self.rank, self.rank + 1))
        return items[first:last]

    def gather(self, value: T) -> list[T] | None:
        """Return the values of all processes, in order of rank, in the main process; None in the others."""
        if self.link is None:
            return [value]
        if self.is_main:
            return [value, *(self.link.receive(rank) for rank in range(1, self.world))]
        self.link.send(value)
        return None

    def gather_all(self, value: T) -> list[T]:
        """Return the values of all processes, in order of rank, in every process."""
        gathered = self.gather(value)
        return self.on_main(lambda: gathered)

    def any(self, flag: bool) -> bool:
        """Tell every process whether any raised a flag; all must ask. Costs no wait for a GPU."""
        return flag if self.link is None else self.link.any(flag)

    def on_main(self, work: Callable[[], T]) -> T:
        """Run ``work`` in the main process, and return what it gave in every process."""
        if self.link is None:
            return work()
        if not self.is_main:
            return self.link.receive(0)
        value = work()
        self.link.send(value)
        return value

    def first_here(self, work: Callable[[], T]) -> T:
        """Run ``work`` in the first process of each machine, then in the others: they find what it has fetched."""
        first = self.local_rank == 0
        value = work() if first else None
        self.gather_all(None)
        return value if first else work()

    def heed(self) -> None:
        """Raise where another process has failed: a look that costs well under a millisecond, for once a batch."""
        if self.link is not None:
            self.link.heed()

    def abandon(self, error: BaseException) -> None:
        """End this process with the news of an error, where the main one waits in a collective; see `Link.abandon`."""
        if self.link is not None:
            self.link.abandon(error)

    def __enter__(self) -> "Shards":
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell the others of an error; a process that is not the main one waits until that has had its say."""
        if self.link is None:
            return
        if error is None:
            self.link.settle()
        else:
            self.link.fail(error)


def merge_norms(shards: Shards, accumulator: NormAccumulator | None, *, to_all: bool = True) -> NormAccumulator | None:
    """Merge what all processes have gathered from their images, in every process, or, if not ``to_all``, in the main.

    Give None where a process had no image. Counts are those of a single process exactly, and so are the bootstrap's
    weights, which are drawn by the images' names; sums of floating-point numbers, added in another order, agree to 1e-9
    of their size. The main process's accumulator is changed. Raises `InputError` where no process had an image.
    """
    link = shards.link
    if link is not None and not shards.is_main:
        link.send(accumulator)
        merged = link.receive(0) if to_all else None
    else:
        merged = accumulator
        for rank in range(1, shards.world):  # one at a time: each may hold hundreds of megabytes
            other = link.receive(rank)
            if merged is None:
                merged = other
            elif other is not None:
                merged.merge(other)
        if link is not None and to_all:
            link.send(merged)
    if merged is None and (to_all or shards.is_main):
        raise InputError("no image could be read; nothing was measured")
    return merged


def _own_device(device: str, local_rank: int | None) -> str:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device != "cuda" or local_rank is None or not torch.cuda.is_available():
        return device
    return f"cuda:{local_rank % torch.cuda.device_count()}"


def _variable(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise ArgumentError(f"got {name}={text!r} in the environment; a launcher sets it to a number, else unset it")
    return int(text)
