"""Zero-shot classification, end to end: a model of open_clip, and one that was trained with captions here."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import ImageNetInfo

from vitprobe import backbones
from vitprobe.backbones.open_clip_text import fill_prompts, find_text
from vitprobe.errors import ArgumentError
from vitprobe.inputs.labels import open_labelled
from vitprobe.inputs.scene_shapes import BACKGROUNDS
from vitprobe.inputs.truths import TruthSource
from vitprobe.probes.shards import Shards
from vitprobe.probes.zero_shot import describe
from vitprobe.reproduction.zero_shot import GUESS, ITEMS, ZeroShotOptions
from vitprobe.training.build import build, sizes
from vitprobe.training.data import open_data
from vitprobe.training.engine import Engine
from vitprobe.training.loop import train
from vitprobe.training.recipes import resolve
from vitprobe.training.variants import Variant

sys.path.append(str(Path(__file__).parent))  # tests are no package
sys.path.append(str(Path(__file__).parents[1] / "backbones"))
from made_clip import made_clip
from made_settings import figures, loader, run_items, scenes

ITEM = "table2-zero-shot"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder ``red`` and a folder ``green`` of 30 noisy pictures of that colour each."""
    folder, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for channel, name in enumerate(("red", "green")):
        (folder / name).mkdir()
        for number in range(30):
            pixels = draw.integers(0, 120, (32, 32, 3), dtype=np.uint8)
            pixels[..., channel] += 130
            Image.fromarray(pixels).save(folder / name / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def source(pictures) -> TruthSource:
    found = open_labelled([str(pictures)], need="labels")
    return TruthSource("pictures", found.items, {"class": found.labels}, {"class": found.classes})


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    return str(made_clip(tmp_path_factory.mktemp("clip") / "whole"))


@torch.no_grad()
def test_rows_are_those_of_cosines_by_hand(clip, source, tmp_path):
    found = run_items([ITEM], ITEMS, tmp_path, model=clip, test=source)[ITEM]
    backbone = backbones.load(clip)
    described = describe(find_text(backbone.spec), fill_prompts(source.classes["class"], "openai80")).double().numpy()
    right = 0
    for batch in loader(backbone, source):
        for image, index in zip(backbone(batch.images).double().numpy(), batch.indices, strict=True):
            cosines = [image @ one / np.linalg.norm(image) / np.linalg.norm(one) for one in described]
            right += int(np.argmax(cosines)) == source.labels["class"][index]
    assert found.rows[0].value == right / 60 and found.rows[0].number == 60 and found.rows[0].key == ""
    assert found.rows[1].what == f"class: {GUESS}" and found.rows[1].value == 0.5
    score = found.summary["scores"][0]
    assert score["num_prompts"] == 80 and "green" in score["first_prompt"] and sum(score["shares_told"]) == 1
    (figure,) = figures(ITEMS[ITEM], found, found).values()
    assert "nearest description" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_model_that_was_trained_with_captions_classifies(pictures, source, tmp_path):
    asked = {
        "arch_args": {"depth": 2, "embed_dim": 32, "num_heads": 2}, "objective": "text", "data": (str(pictures),),
        "caption": "class", "steps": 40, "eval_every": 40, "lr": 3e-3, "batch_size": 8, "num_held_out": 12,
        "num_bank": 24, "log_every": 20, "warmup": 2, "workers": 0, "device": "cpu",
        "extra": {"text_width": 16, "text_layers": 1, "text_heads": 2, "embed_dim": 16},
    }  # fmt: skip
    config = resolve(asked)
    shards = Shards.alone("cpu")
    built = build(config, Variant(2), open_data(config, *sizes(config)), shards)
    train(config, built, tmp_path / "run", Engine.open(config), shards)
    folder = tmp_path / "run" / "last"
    found = run_items([ITEM], ITEMS, tmp_path / "a", model=str(folder), test=source, prompts="single")[ITEM]
    assert found.rows[0].value > 0.95 and found.rows[0].interval[0] > 0.85
    swapped = replace(source, classes={"class": source.classes["class"][::-1]})
    fooled = run_items([ITEM], ITEMS, tmp_path / "b", model=str(folder), test=swapped, prompts="single")[ITEM]
    assert fooled.rows[0].value == pytest.approx(1 - found.rows[0].value)


def test_scenes_are_told_by_their_background_alone(clip, tmp_path):
    labels = {"background": np.arange(6) % 3, "majority": np.arange(6) % 2}
    test = replace(scenes(6), labels=labels, classes={"background": BACKGROUNDS, "majority": ("red", "blue")})
    found = run_items([ITEM], ITEMS, tmp_path, model=clip, test=test)[ITEM]
    assert [score["task"] for score in found.summary["scores"]] == ["background"]
    assert found.summary["scores"][0]["first_prompt"] == f"shapes on a {BACKGROUNDS[0]} background"
    assert found.summary["scores"][0]["num_prompts"] == 1


def test_imagenet_is_called_by_open_clips_names(clip, source, tmp_path):
    numbers = tuple(ImageNetInfo("imagenet-1k").label_names())
    test = replace(source, name="imagenet, val", items=source.items[:4], classes={"class": numbers})
    found = run_items([ITEM], ITEMS, tmp_path, model=clip, test=test, prompts="single")[ITEM]
    score = found.summary["scores"][0]
    assert score["num_classes"] == 1000 and score["first_prompt"] == "a photo of a tench"
    assert found.rows[0].key == "in1k" and any("published no weights" in note for note in found.summary["notes"])


def test_what_cannot_be_classified_is_said_in_one_line(clip, source, tmp_path):
    numbered = replace(source, classes={"class": ("3", "7")})
    for model, test, asked, said in (
        ("organism", source, {}, "organism has no text tower"),
        (clip, numbered, {}, "nothing can be said of the classes of pictures"),
        (clip, source, {"text": "nowhere"}, "no text tower is at 'nowhere'"),
        ("organism", source, {"text": clip}, "the image tower gives (96,), the text tower 24 numbers"),
    ):
        refused = run_items([ITEM], ITEMS, tmp_path, model=model, test=test, **asked)[ITEM]
        assert refused.startswith(said) and "\n" not in refused
    for wrong in ({"prompts": "many"}, {"text": 3}):
        with pytest.raises(ArgumentError, match="got "):
            ZeroShotOptions(**wrong)
