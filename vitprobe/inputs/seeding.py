"""Draw what a training stream draws from (seed, position) alone: the order of the images, and each one's augmentation.

Like `images`, this file is shared ground inside `vitprobe.inputs`.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch

from vitprobe.errors import ArgumentError

_ORDER, _AUGMENT = range(2)


def rank_rows(batch_size: int, *, seed: int, rank: int, world: int, workers: int | None) -> range:
    """Return the rows of each batch that process `rank` of `world` gives; ArgumentError for what is not allowed."""
    if world < 1 or batch_size < 1 or batch_size % world:
        raise ArgumentError(f"batch size of {batch_size} for {world} processes; give a multiple of {max(1, world)}")
    if not 0 <= rank < world:
        raise ArgumentError(f"process {rank} of {world}; give 0 to {world - 1}")
    if seed < 0 or (workers or 0) < 0:
        raise ArgumentError(f"seed {seed}, {workers} workers; give 0 or more of both")
    share = batch_size // world
    return range(rank * share, (rank + 1) * share)


def seed_generators(seed: int, position: int) -> None:
    """Seed the global generators of `random`, numpy and torch (of the CPU) from (seed, position)."""
    words = np.random.SeedSequence((seed, _AUGMENT, position)).generate_state(3, np.uint64)
    random.seed(int(words[0]))
    np.random.seed(words[1:2].view(np.uint32))
    torch.default_generator.manual_seed(int(words[2]) >> 1)  # not torch.manual_seed, which seeds the GPUs too


@contextmanager
def generators_kept() -> Iterator[None]:
    """Set the global generators, at the end, back to where they were."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


@lru_cache(maxsize=4)  # positions come in order, so an epoch's order serves until the next begins
def epoch_order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of the images in one epoch, (N,) int64, each once; do not write into it."""
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(num_images)  # (N,)
