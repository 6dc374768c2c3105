"""Backbones from scratch: timm's own model with timm's own weights of a seed, and one line for what cannot be."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

from vitprobe.backbones.base import digest_module
from vitprobe.backbones.create import SMALL, create
from vitprobe.backbones.timm_eva import TimmEva
from vitprobe.backbones.timm_vit import TimmViT
from vitprobe.errors import ArgumentError


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("arch", "width", "depth", "parameters"), [("scenes-tiny", 96, 8, 907_488), ("scenes-small", 128, 12, 2_397_312)]
)
def test_presets(arch: str, width: int, depth: int, parameters: int) -> None:
    backbone = create(arch)
    assert (backbone.width, backbone.num_blocks, backbone.num_heads, backbone.patch_size) == (width, depth, 4, (4, 4))
    assert backbone.layout().grid == (8, 8)
    assert sum(p.numel() for p in backbone.module.parameters()) == parameters
    assert all((gamma == 0.1).all() for block in backbone.module.blocks for gamma in (block.ls1.gamma, block.ls2.gamma))
    assert not backbone.module.training
    spec = backbone.spec
    assert (spec.name, spec.library, spec.architecture) == (arch, "timm", "vit_tiny_patch16_224")
    assert (spec.weights, spec.paradigm, spec.num_registers) == ("random (seed 0)", "unknown", 0)
    assert (spec.title, spec.digest) == (f"{arch}, random", digest_module(backbone.module))
    assert backbone.model_args == SMALL[arch].model_args
    assert backbone(noise(2, 3, 32, 32)).shape == (2, width)


def test_the_presets_transform_resizes_and_nothing_more() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    transform = create("scenes-tiny").transform
    assert torch.allclose(transform(Image.fromarray(pixels)), torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1)
    wide = Image.fromarray(np.repeat(pixels, 3, axis=1))  # squeezed whole, not cropped
    expected = np.asarray(wide.resize((32, 32), Image.Resampling.BILINEAR), dtype=np.float32).transpose(2, 0, 1)
    assert torch.allclose(transform(wide), torch.from_numpy(expected) / 127.5 - 1, atol=1e-5)


def test_weights_are_timms_of_the_seed() -> None:
    state = torch.get_rng_state()
    args = {"patch_size": 8, "depth": 2, "init_values": 0.3, "drop_path_rate": 0.1}
    one = create("vit_tiny_patch16_224", image_size=(32, 48), seed=5, num_classes=3, overrides=args)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        own = timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), num_classes=3, **args)
    assert digest_module(own) == one.spec.digest
    assert one.spec.image_size == (32, 48) and one.layout().grid == (4, 6)
    assert one(noise(1, 3, 32, 48)).shape == (1, 3)
    assert one.module.blocks[1].drop_path1.drop_prob == pytest.approx(0.1)
    assert one.model_args == args
    same = {"image_size": (32, 48), "num_classes": 3, "overrides": args}
    assert create("vit_tiny_patch16_224", seed=5, **same).spec.digest == one.spec.digest
    assert create("vit_tiny_patch16_224", seed=6, **same).spec.digest != one.spec.digest


def test_overrides_win_over_a_preset() -> None:
    args = {"depth": 2, "class_token": False, "global_pool": "avg", "reg_tokens": 2, "no_embed_class": True}
    backbone = create("scenes-tiny", image_size=(32, 16), overrides=args)
    layout = backbone.layout()
    assert (backbone.num_blocks, layout.cls, layout.num_registers, layout.grid) == (2, None, 2, (8, 4))
    assert backbone.spec.num_registers == 2
    assert backbone.model_args == {**SMALL["scenes-tiny"].model_args, **args}


@pytest.mark.parametrize(
    ("arch", "adapter", "size"),
    [("deit3_small_patch16_224", TimmViT, (64, 96)), ("eva02_tiny_patch14_224", TimmEva, (56, 84))],
)
def test_timms_names(arch: str, adapter: type, size: tuple[int, int]) -> None:
    backbone = create(arch, image_size=size, overrides={"depth": 2})
    assert type(backbone) is adapter
    assert (backbone.spec.name, backbone.spec.architecture) == (arch, arch)
    assert backbone.transform(Image.new("RGB", (300, 200))).shape == (3, *size)
    assert create(arch, overrides={"depth": 1}).spec.image_size == (224, 224)


@pytest.mark.parametrize(
    ("arch", "kwargs", "match"),
    [
        ("vit_smal_patch16_224", {}, "no architecture vit_smal_patch16_224 .* near it: vit_small_patch16_224"),
        ("scenes-tin", {}, "near it: scenes-tiny"),
        ("resnet18", {}, "resnet18 is a ResNet, no plain ViT"),
        ("deit_tiny_distilled_patch16_224", {}, "VisionTransformerDistilled|distillation token"),
        ("scenes-tiny", {"overrides": {"dept": 3}}, r"VisionTransformer \(scenes-tiny\) takes no dept; near it: depth"),
        ("eva02_tiny_patch14_224", {"overrides": {"reg_tokens": 3}}, "Eva .* takes no reg_tokens; .*num_reg_tokens"),
        ("scenes-tiny", {"overrides": {"img_size": 64}}, "it is set elsewhere: image_size"),
        ("scenes-tiny", {"image_size": (33, 32)}, "an image height of 33 px; .*: 32 or 36"),
        ("scenes-tiny", {"overrides": {"patch_size": 0}}, "a patch of 0 px"),
        ("scenes-tiny", {"overrides": {"patch_size": 5}}, "the patch, 5 px: 30 or 35"),
        ("scenes-tiny", {"overrides": {"num_heads": 5}}, "width 96 and 5 heads, which must divide it, as 1, 2, 3, 4"),
        ("scenes-tiny", {"overrides": {"depth": 0}}, "got depth 0"),
        ("scenes-tiny", {"overrides": {"embed_dim": "96"}}, "got embed_dim '96'"),
        ("scenes-tiny", {"overrides": {"global_pool": "sum"}}, "timm cannot build scenes-tiny with .*global_pool=sum"),
        ("scenes-tiny", {"overrides": {"class_token": False}}, "timm cannot build .*class_token=False"),
        ("eva02_tiny_patch14_224", {"overrides": {"num_heads": 32}}, "heads of width 6; .* a multiple of 4"),
        ("scenes-tiny", {"num_classes": -1}, "a head of -1 classes"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(arch: str, kwargs: dict, match: str) -> None:
    with pytest.raises(ArgumentError, match=match) as caught:
        create(arch, **kwargs)
    assert "\n" not in str(caught.value)
