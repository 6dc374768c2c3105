"""One voice where a launcher (``torchrun``, ``accelerate launch``) has started the program several times over."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vitprobe.errors import VitprobeError

LINGER = 2.0
"""Seconds for which a process that has failed before it was connected lets the main one speak: the first process that
ends in an error makes the launcher end the others."""


def launched() -> tuple[int, int]:
    """Return this process's rank and how many there are, as the launcher has said; (0, 1) without one."""
    rank, world = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    return (int(rank), int(world)) if rank.isdecimal() and world.isdecimal() else (0, 1)


@contextmanager
def one_voice() -> Iterator[None]:
    """Silence all processes but the main one, and have the main one clean up where the launcher ends it."""
    rank, world = launched()
    if world == 1:
        with _cleaning_up():
            yield
        return
    if rank == 0:
        signal.signal(signal.SIGTERM, _stop)
    else:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends by itself now, with its own exit code
        if rank and sys.exc_info()[0] is not None and not _connected():
            time.sleep(LINGER)


@contextmanager
def _cleaning_up() -> Iterator[None]:
    """Have a process that is told to end, by a batch scheduler or ``timeout``, leave as little behind as by Ctrl-C."""
    try:
        before = signal.signal(signal.SIGTERM, _end)
    except ValueError:  # not the main thread: signals are someone else's
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, _frame: Any) -> None:
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def _stop(_signal: int, _frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise VitprobeError(
        "stopped by the launcher, perhaps because another process was killed for want of memory; nothing was written"
    )


def _connected() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_initialized()
