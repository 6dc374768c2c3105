"""A training small enough for a test: a ViT of 2 blocks on generated scenes, six steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitprobe.probes.shards import Shards
from vitprobe.training.build import Built, build, sizes
from vitprobe.training.config import TrainConfig
from vitprobe.training.data import open_data
from vitprobe.training.engine import Engine
from vitprobe.training.evaluation import Evaluation
from vitprobe.training.loop import train
from vitprobe.training.recipes import resolve
from vitprobe.training.variants import Variant

SMALL: dict[str, Any] = {
    "arch_args": {"depth": 2, "embed_dim": 32, "num_heads": 2},
    "steps": 6,
    "batch_size": 8,
    "num_held_out": 12,
    "num_bank": 24,
    "eval_every": 3,
    "log_every": 1,
    "warmup": 2,
    "workers": 0,
    "device": "cpu",
}
EXTRA = {
    "supervised": {},
    "text": {"text_width": 16, "text_layers": 1, "text_heads": 2, "embed_dim": 16},
    "self-distillation": {"num_prototypes": 32, "head_width": 64, "num_local": 2, "freeze_last_layer": 2},
    "retrofit": {"num_views": 3},
}


def small_config(**asked: Any) -> TrainConfig:
    """The options of a small training, changed by ``asked``."""
    objective = asked.get("objective", "supervised")
    given = SMALL | {"extra": EXTRA[objective]} | asked
    if objective == "retrofit" and "model" not in asked:
        given |= {"model": "organism", "image_size": (64, 64), "batch_size": 2}
    if given.get("model"):
        given.pop("arch_args", None)
    return resolve(given)


TWO = Variant(2)


def small_built(config: TrainConfig, variant: Variant = TWO, shards: Shards | None = None) -> Built:
    """One variant of a small training, ready."""
    shards = shards or Shards.alone("cpu")
    if config.objective == "retrofit" and variant.denoise is None:
        variant = Variant(variant.num_registers, True)
    return build(config, variant, open_data(config, *sizes(config)), shards)


def small_run(config: TrainConfig, folder: Path, variant: Variant = TWO, **kwargs: Any) -> Evaluation:
    """Train one variant into a folder, in this process alone."""
    built = small_built(config, variant)
    return train(config, built, folder, Engine.open(config), Shards.alone("cpu"), **kwargs)


@pytest.fixture(scope="session")
def make_config() -> Callable[..., TrainConfig]:
    """The function `small_config`."""
    return small_config


@pytest.fixture(scope="session")
def make_built() -> Callable[..., Built]:
    """The function `small_built`."""
    return small_built


@pytest.fixture(scope="session")
def run_small() -> Callable[..., Evaluation]:
    """The function `small_run`."""
    return small_run
