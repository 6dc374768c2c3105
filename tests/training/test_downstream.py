"""Sets to fine-tune to: their own test images, what is split off, what is refused; published settings by set."""

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from timm.data import ImageNetInfo

from vitprobe.errors import ArgumentError, InputError
from vitprobe.inputs.labels import Labelled
from vitprobe.training.downstream import Amounts, Downstream, open_downstream
from vitprobe.training.finetune import resolve_finetune
from vitprobe.training.finetune_recipes import SetPlan, plan_set

sys.path.append(str(Path(__file__).parent))  # tests are no package
from made_sets import write_pictures, write_set, write_task

ALL = Amounts()
SIZE = (32, 32)


def names(images: Labelled) -> set[str]:
    return {item.name for item in images.items}


@pytest.mark.parametrize("held", ["test", "val", "validation"])
def test_a_folder_with_test_images_of_its_own(held: str, tmp_path: Path) -> None:
    write_set(tmp_path / "set", train=4, test=3)
    (tmp_path / "set" / "test").rename(tmp_path / "set" / held)
    found = open_downstream(str(tmp_path / "set"), (), ALL, SIZE)
    assert (len(found.train), len(found.test), found.name, found.is_whole) == (8, 6, "set", True)
    assert not names(found.train) & names(found.test)
    assert all(f"/{held}/" in name for name in names(found.test))
    assert "its own test images" in found.held_out


def test_a_fifth_is_held_out_where_there_are_none(tmp_path: Path) -> None:
    write_pictures(tmp_path / "set", 20, seed=0)
    found = open_downstream(str(tmp_path / "set"), (), ALL, SIZE)
    assert (len(found.train), len(found.test), found.is_whole) == (32, 8, False)
    assert Counter(found.test.labels) == {0: 4, 1: 4}
    again = open_downstream(str(tmp_path / "set"), (), Amounts(seed=7), SIZE)
    assert names(again.test) == names(found.test)  # whatever the seed


def test_fewer_images_keep_the_shares_of_the_classes(tmp_path: Path) -> None:
    write_set(tmp_path / "set", train=20, test=10)
    found = open_downstream(str(tmp_path / "set"), (), Amounts(limit=10, num_held_out=8), SIZE)
    assert Counter(found.train.labels) == {0: 5, 1: 5}
    assert Counter(found.test.labels) == {0: 4, 1: 4}
    assert not found.is_whole and found.held_out.endswith("; 8 of these 20")


def test_held_out_images_of_their_own(tmp_path: Path) -> None:
    write_pictures(tmp_path / "set", 6, seed=0)
    write_pictures(tmp_path / "other", 3, seed=1)
    found = open_downstream(str(tmp_path / "set"), (str(tmp_path / "other"),), ALL, SIZE)
    assert (len(found.train), len(found.test)) == (12, 6) and found.held_out == "--held-out other"
    with pytest.raises(ArgumentError, match="12 held-out images are trained on too"):
        open_downstream(str(tmp_path / "set"), (str(tmp_path / "set"),), ALL, SIZE)
    (tmp_path / "other" / "green").rename(tmp_path / "other" / "blue")
    with pytest.raises(InputError, match=r"'blue' .* is not among the 2 classes"):
        open_downstream(str(tmp_path / "set"), (str(tmp_path / "other"),), ALL, SIZE)


def test_scenes_are_told_apart_by_the_colour_of_most_objects() -> None:
    found = open_downstream("scenes:single", (), Amounts(limit=40, num_held_out=12), SIZE)
    assert (len(found.train), len(found.test)) == (40, 12)
    assert not {item.index for item in found.train.items} & {item.index for item in found.test.items}
    assert found.train.items[0].config.size == SIZE
    with pytest.raises(ArgumentError, match="got --held-out with scenes"):
        open_downstream("scenes", ("x",), ALL, SIZE)


def test_a_task_of_vtab(tmp_path: Path) -> None:
    write_task(tmp_path / "svhn", 10, 30)
    found = open_downstream(f"vtab:{tmp_path / 'svhn'}", (), ALL, SIZE)
    assert (found.name, found.task, found.group, found.published) == ("svhn", "svhn", "natural", "vtab")
    assert (len(found.train), len(found.test), len(found.classes)) == (30, 30, 10)


def made(text: str, classes: tuple[str, ...] = ("a", "b"), task: str | None = None) -> Downstream:
    from vitprobe.training.downstream import _published

    empty = Labelled("x", [], np.zeros(0, np.int64), classes, None, ())
    return Downstream(text, "x", empty, empty, "its own", "vtab" if task else _published(text, classes), task)


def plan(data: Downstream, recipe: str = "vit", **asked: Any) -> SetPlan:
    given = {name: asked.pop(name) for name in ("batch_size", "warmup", "num_registers") if name in asked}
    base = resolve_finetune({"recipe": recipe, **given}).base
    shared = {"steps": None, "rates": (), "development": None, "smoothing": (0.0,), "augment_given": False}
    return plan_set(recipe, base, data, asked.pop("size", (384, 384)), **shared | asked)


WORDNET = tuple(sorted(ImageNetInfo("imagenet-1k").label_names()))


@pytest.mark.parametrize(
    ("data", "steps", "rates", "share"),
    [
        (made("torchvision:CIFAR10:data"), 10_000, (0.001, 0.003, 0.01, 0.03), 0.02),
        (made("timm:torch/cifar100:data"), 10_000, (0.001, 0.003, 0.01, 0.03), 0.02),
        (made("torchvision:OxfordIIITPet:data"), 500, (0.001, 0.003, 0.01, 0.03), 0.1),
        (made("torchvision:Flowers102:data"), 500, (0.001, 0.003, 0.01, 0.03), 0.1),
        (made("imagenet", WORDNET), 20_000, (0.003, 0.01, 0.03, 0.06), 0.01),
        (made("vtab:r/dtd", task="dtd"), 2500, (0.01,), 0.2),
    ],
)
def test_published_settings(data: Downstream, steps: int, rates: tuple[float, ...], share: float) -> None:
    """Table 4 and appendix B.1.1 of arXiv 2010.11929."""
    found = plan(data)
    assert (found.steps, found.rates, found.development) == (steps, rates, share)
    base = resolve_finetune({"recipe": "vit"}).base
    own = (base.optimizer, base.momentum, base.weight_decay, base.batch_size, base.clip, base.schedule, base.warmup)
    assert own == ("sgd", 0.9, 0.0, 512, 1.0, "cosine", 0)
    assert base.zero_head and base.min_lr == 0
    assert found.augment == ("none" if data.task else "crop")
    assert not [said for said in found.departures if "steps" in said or "rates" in said or "px, not" in said]
    assert any("average of the weights" in said for said in found.departures) == (data.published == "imagenet")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"steps": 50}, "50 steps, not 10,000"),
        ({"rates": (0.1,)}, "rates 0.1, not 0.001, 0.003, 0.01, 0.03"),
        ({"development": 0.1}, "0.1 of the training images held out to choose the rate, not 0.02"),
        ({"batch_size": 64}, "64 images a step, not 512"),
        ({"warmup": 5}, "5 steps of warm-up, not 0"),
        ({"size": (32, 48)}, "images of 32 x 48 px, not 384 x 384"),
        ({"smoothing": (0.0, 0.1)}, "label smoothing"),
        ({"num_registers": (4,)}, "register tokens"),
    ],
)
def test_what_is_not_as_published_is_said(asked: dict[str, Any], said: str) -> None:
    data = made("torchvision:CIFAR10:data")
    assert not any(said in one for one in plan(data).departures)
    assert any(said in one for one in plan(data, **asked).departures)


def test_the_warm_up_of_the_authors_code_is_said_where_it_has_one() -> None:
    said = "no warm-up, of which the paper says nothing; the authors' code has one of 500"
    assert said in plan(made("torchvision:CIFAR10:data")).departures
    assert said not in plan(made("torchvision:CIFAR10:data"), warmup=500).departures
    assert said not in plan(made("torchvision:Flowers102:data")).departures


def test_a_rate_chosen_by_other_images_than_those_of_vtab_is_said() -> None:
    said = "the rate is chosen by training images drawn by chance, not by VTAB's val200"
    assert said not in plan(made("vtab:r/dtd", task="dtd")).departures
    assert said in plan(made("vtab:r/dtd", task="dtd"), rates=(0.01, 0.03)).departures


def test_fewer_images_are_said() -> None:
    data = made("torchvision:CIFAR10:data")
    said = "not all of the set's own training and test images"
    assert said not in plan(data).departures
    assert said in plan(replace(data, is_whole=False)).departures


def test_a_set_without_published_steps_needs_some() -> None:
    with pytest.raises(ArgumentError, match=r"the paper has no number of steps; give --steps"):
        plan(made("photos"))
    found = plan(made("photos"), steps=30)
    assert found.steps == 30 and "the paper has no settings for x" in found.departures
    assert plan(made("photos"), "small").departures == ("of no paper",)
