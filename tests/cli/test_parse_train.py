"""Options of ``train-registers`` as they are read: names, types, and what a recipe says of the objective."""

import pytest

from vitprobe.cli.parse_train import options
from vitprobe.errors import ArgumentError
from vitprobe.training.config import EXTRA
from vitprobe.training.recipes import RECIPES, resolve


def test_names_and_types_are_those_of_the_config() -> None:
    asked = {"num_reg": [1, 4], "arch_arg": ["depth=2", "qkv_bias=false"], "task": ["count"], "data": ["scenes"]}
    given = options(asked | {"image_size": "32x48", "lr": 1e-3, "model": None, "held_out": []})
    assert given == {
        "num_registers": (1, 4),
        "arch_args": {"depth": 2, "qkv_bias": False},
        "tasks": ("count",),
        "data": ("scenes",),
        "image_size": (32, 48),
        "lr": 1e-3,
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("koleo=1", 1),
        ("koleo=0.2", 0.2),
        ("mask_ratio=0,1", (0, 1)),
        ("local_size=16", 16),
        ("local_size=16,24", (16, 24)),
        ("local_size=none", None),
        ("num_local=0", 0),
        ("teacher_momentum=0.9,1", (0.9, 1)),
    ],
)
def test_values_of_an_objective_that_are_taken(text: str, value: object) -> None:
    given = options({"objective": "self-distillation", "objective_arg": [text]})
    assert given["extra"] == {text.partition("=")[0]: value}
    assert resolve(given).option(text.partition("=")[0]) == value


def test_every_default_is_taken() -> None:
    for objective, extra in EXTRA.items():
        texts = [f"{k}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in extra.items()]
        assert options({"objective": objective, "objective_arg": texts}).get("extra", {}) == extra


def test_a_recipe_says_which_objective_it_is_for() -> None:
    found = {recipe: resolve(options({"recipe": recipe})).objective for recipe in RECIPES}
    assert found == {
        "small": "supervised",
        "deit3": "supervised",
        "vit": "supervised",
        "clip": "text",
        "dinov2": "self-distillation",
        "ph-reg": "retrofit",
    }
    assert resolve(options({"recipe": "deit3", "objective": "text"})).objective == "text"
    with pytest.raises(ArgumentError, match="the recipe clip is for --objective text"):
        options({"recipe": "clip", "objective": "supervised"})
