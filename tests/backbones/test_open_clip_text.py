"""Text towers that are read back and found, and what is said of classes."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
from timm.data import ImageNetInfo

from vitprobe import backbones
from vitprobe.backbones import open_clip_text
from vitprobe.backbones.base import ModelSpec
from vitprobe.backbones.open_clip_text import fill_prompts, find_text, imagenet_names, read_text
from vitprobe.errors import ArgumentError, WeightsError

sys.path.append(str(Path(__file__).parent))  # tests are no package
from made_clip import left_beside, made_clip

SAID = ("a photo of a red square", "two discs")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder of open_clip, and the model that open_clip makes of it."""
    folder = made_clip(tmp_path_factory.mktemp("clip") / "whole", quick_gelu=True)
    return folder, open_clip.create_model(f"local-dir:{folder}").eval()


@pytest.fixture
def beside(clip, tmp_path):
    """What training with captions leaves of the same text tower."""
    config = json.loads((clip[0] / "open_clip_config.json").read_text())["model_cfg"]
    left_beside(tmp_path / "final", clip[1], config, quick_gelu=True)
    return tmp_path / "final"


@torch.no_grad()
def says_the_same(text, own):
    tokens = text.tokenize(SAID)
    found, wanted = text.module(tokens), own.encode_text(open_clip.SimpleTokenizer(context_length=24)(list(SAID)))
    assert torch.equal(found, wanted) and (found[0] - found[1]).abs().max() > 0.1
    return True


def test_a_tower_beside_a_checkpoint_is_read_back(clip, beside):
    text = read_text(beside)
    assert text.embed_dim == 24 and text.quick_gelu and not text.module.eval().training
    assert says_the_same(text, clip[1])
    assert text.logit_scale == pytest.approx(clip[1].logit_scale.item())


def test_towers_are_found_where_they_belong(clip, beside):
    spec = backbones.load(str(clip[0])).spec
    assert says_the_same(find_text(spec), clip[1])
    trained = ModelSpec("final", "timm", f"local-dir:{beside}", "model.safetensors", "", (32, 32), 4)
    assert says_the_same(find_text(trained), clip[1])
    elsewhere = replace(trained, architecture="local-dir:/nowhere")
    assert says_the_same(find_text(elsewhere, given=str(beside)), clip[1])
    for given in (f"open_clip:local-dir:{clip[0]}", str(clip[0])):
        assert says_the_same(find_text(elsewhere, given=given), clip[1])
    from_file = replace(spec, weights="mine.safetensors")
    file = str(clip[0] / "open_clip_model.safetensors")
    assert says_the_same(find_text(from_file, given=file), clip[1])
    with pytest.raises(ArgumentError, match=r"loaded from mine\.safetensors; say where"):
        find_text(from_file)


def test_a_random_vision_tower_has_a_random_text_tower(beside, monkeypatch):
    asked, text = [], read_text(beside)
    monkeypatch.setattr(open_clip_text, "load_text", lambda spec, weights: asked.append((spec, weights)) or text)
    spec = ModelSpec("openclip-b16", "open_clip", "ViT-B-16", "random (seed 0)", "", (224, 224), 0)
    for weights, given in (("random (seed 0)", ""), ("laion2b_s34b_b88k", ""), ("x", "openclip-b32")):
        text.module.train()
        assert not find_text(replace(spec, weights=weights), given=given).module.training
    assert [weights for _, weights in asked] == ["random", "hub", "hub"]
    assert asked[2][0].architecture == "ViT-B-32" and asked[2][0].weights == "laion2b_s34b_b79k"


def test_models_without_a_text_tower_are_refused_in_one_line(tmp_path, clip, beside):
    organism = backbones.load("organism").spec
    spec = backbones.load(str(clip[0])).spec
    other = made_clip(tmp_path / "other", hf_tokenizer_name="bert-base-uncased")
    for asked, given, said in (
        (organism, "", "organism has no text tower"),
        (organism, "nowhere", "no text tower is at 'nowhere'"),
        (spec, str(tmp_path / "none.pt"), "no text tower is at"),
        (spec, f"open_clip:local-dir:{other}", "reads tokens of bert-base-uncased"),
    ):
        with pytest.raises(ArgumentError, match=said) as caught:
            find_text(asked, given=given)
        assert "\n" not in str(caught.value)
    (beside / "text.safetensors").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"text\.safetensors is no whole"):
        read_text(beside)
    (beside / "text.safetensors").unlink()
    with pytest.raises(WeightsError, match="no weights at"):
        read_text(beside)


def test_prompts_are_those_of_open_clip():
    found = fill_prompts(["tench", "red car"], "openai80")
    assert len(found) == 2 and len(found[0]) == 80
    assert found[1] == tuple(template("red car") for template in OPENAI_IMAGENET_TEMPLATES)
    assert fill_prompts(["tench"], "single") == (("a photo of a tench",),)
    with pytest.raises(ArgumentError, match="allowed are single, openai80"):
        fill_prompts(["tench"], "all")


def test_names_of_imagenet_follow_their_numbers():
    numbers = ImageNetInfo("imagenet-1k").label_names()
    assert imagenet_names(numbers) == tuple(IMAGENET_CLASSNAMES)
    some = imagenet_names(["n02084071_dog", "n01443537"])
    assert some is None  # a dog of no breed is no class of ImageNet-1k
    assert imagenet_names(["n01443537_goldfish", "n01440764"]) == ("goldfish", "tench")
    assert imagenet_names(["red", "green"]) is None and imagenet_names([]) is None
