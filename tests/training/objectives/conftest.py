"""Pictures of two classes that anyone can tell apart, and batches of noise."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vitprobe.inputs.stream import TrainBatch
from vitprobe.training.engine import Engine


@pytest.fixture(scope="session")
def two_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder ``red`` and a folder ``green`` of 30 noisy pictures of that colour each."""
    folder, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for channel, name in enumerate(("red", "green")):
        (folder / name).mkdir()
        for number in range(30):
            pixels = draw.integers(0, 120, (32, 32, 3), dtype=np.uint8)
            pixels[..., channel] += 130
            Image.fromarray(pixels).save(folder / name / f"{number:02}.png")
    return folder


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., TrainBatch]:
    """The function ``make_batch(*views, seed, ...)``: noise of these shapes, with what else is given."""

    def make(*views: tuple[int, ...], seed: int = 1, **known: object) -> TrainBatch:
        made = tuple(noise(*shape, seed=seed + i) for i, shape in enumerate(views))
        return TrainBatch(made, torch.arange(len(made[0])), **known)

    return make


@pytest.fixture(scope="session")
def open_engine() -> Callable[..., Engine]:
    """The function ``open_engine(config)``, this process's engine."""
    return Engine.open
