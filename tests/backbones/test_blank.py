"""Towers without weights: shape for shape what is loaded, with registers as they are put in by training."""

import json

import pytest

from vitprobe.backbones import load
from vitprobe.backbones.blank import blank, native_size
from vitprobe.errors import ArgumentError
from vitprobe.registers.insert import insert


def shapes(module):
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("timm:vit_tiny_patch16_224", (64, 96)),  # positions cover CLS
        ("deit3-s16", None),  # positions of patches alone
        ("timm:vit_small_patch14_dinov2", (56, 56)),
        ("timm:eva02_tiny_patch14_224", (56, 56)),
        ("open_clip:ViT-B-32", (64, 64)),
        ("scenes-content", None),
        ("reference-vit-ti", (64, 96)),
    ],
)
@pytest.mark.parametrize("number", [0, 4])
def test_shapes_are_those_of_a_model_that_registers_were_put_into(name, size, number):
    weights = {} if name == "scenes-content" else {"weights": "random"}
    real = insert(load(name, image_size=size, **weights), number)
    made = blank(name, num_registers=number, image_size=size)
    assert shapes(made) == shapes(real.module)
    assert native_size(made) == real.spec.image_size
    assert {p.device.type for p in made.parameters()} == {"meta"} and not made.training


@pytest.mark.parametrize(
    ("name", "held"),
    [("dinov2-reg-s14", 4), ("scenes-content-reg4", 4), ("timm:vit_small_patch16_dinov3", 4), ("openclip-b16", 0)],
)
def test_a_model_has_its_own_registers_unless_others_are_asked_for(name, held):
    own, none, more = (blank(name, num_registers=number) for number in (None, 0, 6))
    count = [sum(p.numel() for p in module.parameters()) for module in (own, none, more)]
    width = own.conv1.out_channels if hasattr(own, "conv1") else own.embed_dim
    assert [count[0] - count[1], count[2] - count[1]] == [held * width, 6 * width]


def test_a_tag_and_a_folder_name_a_tower_too(tmp_path):
    assert shapes(blank("open_clip:ViT-B-32/openai")) == shapes(blank("openclip-b32"))
    assert native_size(blank("dinov2-s14")) == (518, 518)
    model_args = {"reg_tokens": 2, "depth": 2}
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 3, "pretrained_cfg": {}, "model_args": model_args}
    (tmp_path / "config.json").write_text(json.dumps(config))
    made = blank(str(tmp_path))
    assert made.reg_token.shape == (1, 2, 192) and len(made.blocks) == 2 and made.head.out_features == 3
    assert blank(f"local-dir:{tmp_path}", num_registers=5).reg_token.shape == (1, 5, 192)


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("dino", {}, "got model 'dino'"),
        ("hf-hub:timm/vit_tiny_patch16_224", {}, "of architectures alone"),
        ("timm:resnet50", {}, "no plain ViT"),
        ("timm:no_such_vit", {}, "timm has no model"),
        ("open_clip:RN50", {}, "ResNet"),
        ("deit3-s16", {"num_registers": -1}, "whole number"),
        ("deit3-s16", {"num_registers": 2.0}, "whole number"),
        ("deit3-s16", {"image_size": (200, 224)}, "multiple of the patch"),
        ("openclip-b16", {"image_size": (224, 200)}, "multiple of the patch"),
    ],
)
def test_what_is_no_plain_vit_is_refused(name, more, said):
    with pytest.raises(ArgumentError, match=said) as error:
        blank(name, **more)
    assert "\n" not in str(error.value)
