"""Fine-tuning: a head of zeros, published settings by set, what is learned and what cannot be, how a rate is chosen."""

import contextlib
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vitprobe.errors import ArgumentError
from vitprobe.inputs.labels import open_labelled
from vitprobe.inputs.stream import TrainBatch
from vitprobe.probes.shards import Shards
from vitprobe.results import to_json
from vitprobe.training import rates
from vitprobe.training.build import build
from vitprobe.training.engine import Engine
from vitprobe.training.finetune import FinetuneConfig, Job, chance, open_job, resolve_finetune, with_size
from vitprobe.training.loop import train
from vitprobe.training.rates import choose_rate
from vitprobe.training.variants import Variant

sys.path.append(str(Path(__file__).parent))  # tests are no package
from made_sets import write_model, write_set

PLAIN = Variant(0, smoothing=0.0)
QUICK: dict[str, Any] = {"steps": 20, "batch_size": 16, "eval_every": 20, "log_every": 1, "workers": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, a set that can be learned, and one that cannot."""
    folder = tmp_path_factory.mktemp("place")
    write_model(folder / "model")
    write_set(folder / "colours")
    write_set(folder / "nothing", learnable=False)
    return folder


def make_job(place: Path, data: str = "colours", **asked: Any) -> Job:
    given = QUICK | {"model": str(place / "model"), "data": (str(place / data),), "lr": (0.1,)} | asked
    config, sizes = with_size(resolve_finetune(given))
    return open_job(config, config.data[0], sizes.chosen)


def shown(title: str, steps: int) -> Any:
    return contextlib.nullcontext(lambda _: None)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_it_begins_at_exactly_uniform_probabilities(place: Path, smoothing: float) -> None:
    job = make_job(place, smoothing=(smoothing,))
    (variant,) = job.config.variants
    built = build(job.training(variant, 0.1), variant, job.watched(), Shards.alone("cpu"))
    batch = next(built.stream.batches(0, 1))
    assert built.objective(batch)["loss"].item() == pytest.approx(math.log(2), abs=2e-7)  # of float32
    logits = built.objective.variant()(batch.views[0])
    assert (logits == 0).all() and torch.equal(logits.softmax(1), torch.full_like(logits, 0.5))
    feature = built.objective.variant().features(batch.views[0])
    assert feature.std(0).mean() > 1e-3  # the head alone says nothing


def test_the_head_learns_at_the_first_step_and_the_tower_at_the_second(place: Path) -> None:
    """With a head of zeros nothing reaches the tower's weights, until the head is none."""
    job = make_job(place)
    built = build(job.training(PLAIN, 0.1), PLAIN, job.watched(), Shards.alone("cpu"))
    batch: TrainBatch = next(built.stream.batches(0, 1))
    built.objective(batch)["loss"].backward()
    heads = set(built.backbone.parameter_names("head"))
    sizes = {name: float(p.grad.abs().sum()) for name, p in built.backbone.module.named_parameters()}
    assert all((size > 0) == (name in heads) for name, size in sizes.items()), sizes


def test_options_come_back_from_json(place: Path) -> None:
    job = make_job(place, lr=(0.1, 0.2), smoothing=(0.0, 0.1), num_registers=(2,), image_size=(24, 24))
    stored = json.loads(to_json(job.config.as_dict()))
    assert FinetuneConfig.from_dict(stored) == job.config
    names = [one.name for one in job.config.variants]
    assert names == ["reg0-smooth0", "reg2-smooth0", "reg0-smooth0.1", "reg2-smooth0.1"]
    assert [one.title for one in job.config.variants[2:]] == [
        "no registers, smoothing 0.1",
        "2 registers, smoothing 0.1",
    ]
    alone = make_job(place, num_registers=(2,), control=False)
    assert [one.name for one in alone.config.variants] == ["reg2-smooth0"]


def test_sizes_by_recipe(place: Path) -> None:
    """The published size where the patch divides it, what is asked for, else the model's own."""
    model = {"model": str(place / "model")}
    found = [with_size(resolve_finetune(model | more)) for more in ({"recipe": "vit"}, {}, {"image_size": (24, 32)})]
    assert [config.base.image_size for config, _ in found] == [(384, 384), (16, 16), (24, 32)]
    assert [sizes.chosen_tokens for _, sizes in found] == [96 * 96, 16, 48]
    assert [sizes.resized for _, sizes in found] == [True, False, True]
    assert {sizes.own_tokens for _, sizes in found} == {16}


def accuracy_of(job: Job, folder: Path) -> float:
    config = job.training(PLAIN, job.plan.rates[0])
    built = build(config, PLAIN, job.watched(), Shards.alone("cpu"))
    return train(config, built, folder, Engine.open(config), Shards.alone("cpu")).summary["accuracy"]


def test_what_can_be_learned_is_and_what_cannot_is_not(place: Path, tmp_path: Path) -> None:
    assert chance(make_job(place).data)[0] == 0.5
    assert accuracy_of(make_job(place), tmp_path / "a") >= 0.9
    nothing = accuracy_of(make_job(place, "nothing"), tmp_path / "b")
    assert 0.25 < nothing < 0.75  # 60 images: outside by chance once in ten thousand times


def test_the_best_rate_is_chosen_on_images_that_are_not_trained_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(place, lr=(1e-60, 0.1, 3e38), clip=0.0, momentum=0.0, steps=20, development=0.25)
    data = job.development()
    assert (len(data.train), len(data.held)) == (60, 20)
    assert not {item.name for item in data.train.items} & {item.name for item in data.held.items}
    assert not {item.name for item in job.data.test.items} & {item.name for item in data.held.items}
    engine, shards = Engine.open(job.config.base), Shards.alone("cpu")
    rate, tried = choose_rate(job, PLAIN, tmp_path, engine, shards, shown)
    assert rate == 0.1
    assert [one.lr for one in tried] == [1e-60, 0.1, 3e38]
    assert tried[1].accuracy > tried[0].accuracy == 0.5  # too small a rate to change a number
    assert tried[2].accuracy is None
    assert not list(tmp_path.rglob("model.safetensors"))  # of no more use

    def again(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(rates, "train", again)
    assert choose_rate(job, PLAIN, tmp_path, engine, shards, shown) == (rate, tried)
    one = replace(job, plan=replace(job.plan, rates=(0.3,)))
    assert choose_rate(one, PLAIN, tmp_path, engine, shards, shown) == (0.3, ())


def test_of_equal_rates_the_lowest_is_taken(place: Path, tmp_path: Path) -> None:
    job = make_job(place, lr=(0.2, 0.1))
    (tmp_path / "search").mkdir()
    tried = [{"lr": lr, "accuracy": 0.75, "interval": [0.5, 0.9], "num_images": 8} for lr in job.plan.rates]
    (tmp_path / "search" / "reg0-smooth0.json").write_text(json.dumps(tried))
    engine = Engine.open(job.config.base)
    assert choose_rate(job, PLAIN, tmp_path, engine, Shards.alone("cpu"), shown)[0] == 0.1
    for one in tried:
        one["accuracy"] = one["interval"] = None
    (tmp_path / "search" / "reg0-smooth0.json").write_text(json.dumps(tried))
    with pytest.raises(ArgumentError, match=r"the loss became infinite with each --lr of 0\.2, 0\.1; give lower ones"):
        choose_rate(job, PLAIN, tmp_path, engine, Shards.alone("cpu"), shown)


def test_a_model_with_registers_is_fine_tuned_as_it_is(tmp_path: Path, place: Path) -> None:
    model = str(write_model(tmp_path / "reg", registers=2))
    job = make_job(place, model=model)
    built = build(job.training(PLAIN, 0.1), PLAIN, job.watched(), Shards.alone("cpu"))
    assert built.backbone.layout().num_registers == 2
    with pytest.raises(ArgumentError, match="has 2 registers already"):
        make_job(place, model=model, num_registers=(4,))


def test_labels_of_held_out_images_are_those_of_the_training_images(place: Path) -> None:
    job = make_job(place)
    train_part, test_part = (
        open_labelled([str(place / "colours" / part)], need="labels") for part in ("train", "test")
    )
    assert job.data.classes == train_part.classes == ("green", "red")
    assert np.array_equal(job.data.test.labels, test_part.labels)
