"""Options of a training: what recipes fill in, what is refused, and what comes back from JSON."""

import json

import pytest

from vitprobe.errors import ArgumentError
from vitprobe.results import to_json
from vitprobe.training.config import EXTRA, OBJECTIVES, TrainConfig
from vitprobe.training.recipes import BY_OBJECTIVE, RECIPES, refuse_unread, resolve, with_steps
from vitprobe.training.variants import Variant, variants


def test_options_survive_json() -> None:
    config = resolve({"objective": "self-distillation", "num_registers": (1, 4), "extra": {"koleo": 0.0}, "lr": 1e-4})
    again = TrainConfig.from_dict(json.loads(to_json(config.as_dict())))
    assert again.as_dict() == config.as_dict()
    assert again.option("koleo") == 0.0
    assert again.option("num_prototypes") == BY_OBJECTIVE["self-distillation"]["extra"]["num_prototypes"]
    assert again.option("mask_ratio") == EXTRA["self-distillation"]["mask_ratio"]
    assert again.as_dict() == TrainConfig.from_dict(again.as_dict()).as_dict()


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_a_whole_config(recipe: str) -> None:
    objective = {"clip": "text", "dinov2": "self-distillation", "ph-reg": "retrofit"}.get(recipe, "supervised")
    config = resolve({"recipe": recipe, "objective": objective})
    for name, value in RECIPES[recipe].items():
        assert name == "extra" or getattr(config, name) == value


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_objective_changes_the_small_recipe(objective: str) -> None:
    config = resolve({"objective": objective})
    for name, value in BY_OBJECTIVE[objective].items():
        assert getattr(config, name) == value


def test_what_is_given_wins() -> None:
    assert resolve({"recipe": "deit3", "weight_decay": 0.3, "lr": None}).weight_decay == 0.3
    assert resolve({"recipe": "deit3", "steps": 10}).epochs is None


def test_a_recipes_rate_follows_the_batch() -> None:
    assert resolve({"recipe": "deit3", "batch_size": 512}).lr == 3e-3  # its code does not scale it
    dino = {"recipe": "dinov2", "objective": "self-distillation", "batch_size": 256}
    assert resolve(dino).lr == pytest.approx(2e-3)
    assert resolve({**dino, "lr": 1e-3}).lr == 1e-3


def test_epochs_become_steps_and_a_recipes_warm_up_is_capped() -> None:
    config = with_steps(resolve({"recipe": "deit3", "batch_size": 50, "epochs": 2.0}), 1001, warmup_given=False)
    assert (config.steps, config.warmup) == (41, 4)
    assert with_steps(resolve({"steps": 50, "warmup": 20}), None, warmup_given=True).warmup == 20
    with pytest.raises(ArgumentError, match="--warmup 50 for 50 steps"):
        with_steps(resolve({"steps": 50, "warmup": 50}), None, warmup_given=True)
    with pytest.raises(ArgumentError, match="give --steps"):
        with_steps(resolve({"epochs": 2.0}), None, warmup_given=False)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"objective": "text", "ema": 0.9}, "--ema, which text does not read"),
        ({"mixup": 0.5}, "--mixup, which is not for scenes"),
        ({"data": ("photos",), "tasks": ("count",)}, "--task, which is for scenes alone"),
        ({"objective": "retrofit", "model": "organism", "drop_path": 0.1}, "--drop-path"),
    ],
)
def test_options_that_nobody_would_read_are_refused(asked: dict, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        refuse_unread(asked, resolve(asked))
    refuse_unread({"ema": 0.9}, resolve({"ema": 0.9}))
    refuse_unread({"mixup": 0.5}, resolve({"mixup": 0.5, "data": ("photos",)}))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"num_registers": (-1,)}, "--num-reg"),
        ({"num_registers": ()}, "--num-reg"),
        ({"objective": "magic"}, "supervised, text"),
        ({"recipe": "best"}, "deit3"),
        ({"steps": 0}, "--steps 0"),
        ({"lr": 0.0}, "--lr"),
        ({"lr": float("nan")}, "--lr"),
        ({"batch_size": 10, "accumulation": 3}, "--accumulation"),
        ({"trainable": ("everything",)}, "registers"),
        ({"extra": {"koleo": 1}}, "supervised has no option koleo"),
        ({"drop_path": 1.0}, "--drop-path"),
        ({"schedule": "step"}, "cosine, linear"),
    ],
)
def test_bad_options_get_one_line(asked: dict, said: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        resolve(asked)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_stored_options_are_refused() -> None:
    with pytest.raises(ArgumentError, match="does not know"):
        TrainConfig.from_dict(TrainConfig().as_dict() | {"colour": "red"})


def names(**asked: object) -> list[str]:
    return [one.name for one in variants(resolve(asked))]


def test_the_control_comes_first() -> None:
    assert names() == ["reg0", "reg4"]
    assert names(num_registers=(16, 1, 0, 4)) == ["reg0", "reg1", "reg4", "reg16"]
    assert names(num_registers=(4,), control=False) == ["reg4"]


def test_a_retrofit_has_four_variants() -> None:
    assert names(objective="retrofit") == ["reg0", "reg4", "reg0-plain", "reg4-plain"]
    assert names(objective="retrofit", control=False) == ["reg4"]
    assert names(objective="retrofit", control=False, extra={"denoise": False}) == ["reg4-plain"]
    assert Variant(0, False).title == "no registers, no denoising"
    assert Variant(1).title == "1 register"
