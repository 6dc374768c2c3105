"""Hand arrays from worker processes to the process that forked them, through memory that both of them have.

A pipe moves some hundred MB a second, less than a GPU trains on; the shared memory of the system (`/dev/shm`) is often
too small in a container. Like `images`, this file is shared ground inside `vitprobe.inputs`.
"""

import mmap
import multiprocessing
from collections.abc import Sequence
from math import prod

import numpy as np


class Slots:
    """Hold so many places for float32 arrays; make it before the workers start, so that they inherit it."""

    def __init__(self, num_slots: int, num_bytes: int) -> None:
        """Make room for `num_slots` times `num_bytes`; pages take memory when they are first written."""
        self._num_bytes = num_bytes
        self._memory = mmap.mmap(-1, num_slots * num_bytes)

    def put(self, slot: int, arrays: Sequence[Sequence[np.ndarray]]) -> tuple[tuple[int, ...], ...] | None:
        """Stack each group of arrays into a slot and return the shapes; None, and nothing done, where they do not fit.

        The arrays of a group must have one shape.
        """
        shapes = tuple((len(group), *group[0].shape) for group in arrays)
        if sum(4 * prod(shape) for shape in shapes) > self._num_bytes:
            return None
        for group, place in zip(arrays, self.get(slot, shapes), strict=True):
            np.stack(group, out=place)
        return shapes

    def get(self, slot: int, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        """Return what a slot holds, not copied: it changes when the slot is used again."""
        start, arrays = slot * self._num_bytes, []
        for shape in shapes:
            arrays.append(np.frombuffer(self._memory, np.float32, prod(shape), start).reshape(shape))
            start += 4 * prod(shape)
        return arrays


def can_inherit() -> bool:
    """Return whether worker processes are forked here, and so inherit memory; elsewhere arrays go through pipes."""
    chosen = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    return chosen == "fork"
