"""Convolutional networks: the map, its stride, the pooled vector and the head are the library's own."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from vitprobe.backbones import load
from vitprobe.backbones.conv_net import ALLOWED, ConvNet, create_conv, is_conv, load_conv
from vitprobe.backbones.create import create
from vitprobe.backbones.export import export
from vitprobe.backbones.trunk import digest_module
from vitprobe.errors import ArgumentError, RecordingError, WeightsError

FEW = {
    "resnet18": {"channels": (8, 12, 16, 20), "output_stride": 8},
    "resnet10t": {"channels": (8, 12, 16, 20)},
    "resnetv2_50x1_bit": {"channels": (128, 128, 128, 128), "stem_chs": 32},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 20)},
    "regnety_002": {},
}
"""Small networks of every family, and what timm is told beside the name."""


def tiny(name: str, *, num_classes: int = 5, seed: int = 0, size: tuple[int, int] = (64, 96)) -> ConvNet:
    return create_conv(name, image_size=size, seed=seed, num_classes=num_classes, overrides=FEW[name])


def noise(*size: int) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))


@pytest.fixture(params=FEW)
def stirred(request: pytest.FixtureRequest, stir: Callable) -> ConvNet:
    """A network whose parameters are all far from zero."""
    conv = tiny(request.param)
    stir(conv.module, 1)
    return conv


@torch.no_grad()
def test_map_pool_and_head_are_the_modules_own(stirred: ConvNet) -> None:
    images = noise(64, 96)
    maps, pooled, own = stirred.feature_map(images), stirred.features(images), stirred(images)
    rows, cols = (side // step for side, step in zip((64, 96), stirred.stride, strict=True))
    assert maps.shape[2:] == (rows, cols) and pooled.shape == (2, stirred.width) and own.shape == (2, 5)
    head = stirred.module.get_classifier()
    weight = head.weight.flatten(1)  # (K, D)
    assert torch.allclose(pooled @ weight.T + head.bias, own, rtol=1e-4, atol=1e-5)
    means = maps.mean(dim=(2, 3))  # (B, D)
    if stirred.parameter_names("final_norm") and "ConvNeXt" in type(stirred.module).__name__:
        norm = stirred.module.head.norm  # after the pool
        means = F.layer_norm(means, means.shape[1:], norm.weight, norm.bias, norm.eps)
    assert torch.allclose(means, pooled, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("name", "stride"), [("resnet18", 8), ("resnet10t", 32), ("convnext_atto", 32)])
def test_the_stride_is_how_far_an_image_moves_to_move_the_map(name: str, stride: int) -> None:
    """Inside a wide frame of zeros, an image moved by one stride gives the map moved by one position."""
    conv = tiny(name, num_classes=0, size=(256, 256))
    assert conv.stride == (stride, stride)
    frame = torch.zeros(2, 3, 32 * 16, 32 * 16)
    frame[0, :, 240:272, 240:272] = noise(32, 32)[0]
    frame[1] = frame[0].roll(stride, dims=-1)
    first, second = conv.feature_map(frame)
    assert first.shape[-1] == frame.shape[-1] // stride
    assert torch.allclose(first.roll(1, dims=-1), second, atol=1e-5)
    assert not torch.allclose(first, second, atol=1e-3)


def test_odd_sizes_are_rounded_up() -> None:
    assert tiny("resnet18").feature_map(noise(65, 33)).shape[2:] == (9, 5)


@torch.no_grad()
def test_filters_give_the_first_output(stirred: ConvNet) -> None:
    conv = next(part for part in stirred.module.modules() if isinstance(part, torch.nn.Conv2d))
    filters, images = stirred.filters(), noise(32, 32)
    assert filters.shape == conv.weight.shape and filters.shape[1] == 3
    by_hand = F.conv2d(images, filters, conv.bias, stride=conv.stride, padding=(conv.kernel_size[0] - 1) // 2)
    own = conv(images)
    if conv.stride == conv.kernel_size:  # ConvNeXt's patches
        by_hand = F.conv2d(images, filters, conv.bias, stride=conv.stride)
    assert torch.allclose(by_hand, own, rtol=1e-3, atol=1e-4)


def test_every_parameter_has_one_kind(stirred: ConvNet) -> None:
    kinds = ["patch_embedding", *(f"block:{i}" for i in range(stirred.num_blocks)), "final_norm", "head"]
    names = [name for kind in kinds for name in stirred.parameter_names(kind)]
    assert stirred.num_blocks == 4
    assert sorted(names) == sorted(name for name, _ in stirred.module.named_parameters())
    assert stirred.parameter_names("last_block") == stirred.parameter_names("block:3") != ()
    for kind in ("registers", "cls", "positions"):
        assert stirred.parameter_names(kind) == ()
    for wrong in ("block:4", "gamma", "block"):
        with pytest.raises(ArgumentError):
            stirred.parameter_names(wrong)


@torch.no_grad()
def test_heads_are_drawn_from_their_seed_or_zero(stirred: ConvNet) -> None:
    images, state = noise(64, 64), torch.get_rng_state()
    stirred.reset_head(7, seed=3)
    first = stirred.spec.digest
    assert first == digest_module(stirred.module) and stirred(images).shape == (2, 7)
    stirred.reset_head(7, seed=4)
    assert stirred.spec.digest != first
    stirred.reset_head(7, seed=3)
    assert stirred.spec.digest == first
    pooled = stirred.features(images)
    stirred.reset_head(3, zero=True)
    assert torch.equal(stirred(images), torch.zeros(2, 3)) and torch.equal(stirred.features(images), pooled)
    stirred.reset_head(0)
    assert torch.equal(stirred(images), pooled) and torch.equal(torch.get_rng_state(), state)


def test_the_same_seed_gives_the_same_network() -> None:
    one, same, other = (tiny("resnet18", seed=seed).spec for seed in (1, 1, 2))
    assert one == same and one.digest != other.digest
    small = create_conv("scenes-resnet", num_classes=3)
    assert is_conv("scenes-resnet") and small.transform.mean == (0.5,) * 3 != tiny("resnet18").transform.mean
    assert small.feature_map(noise(32, 32)).shape == (2, 96, 4, 4)
    assert (one.title, one.num_registers, one.image_size) == ("resnet18, random", 0, (64, 96))


def test_a_local_file_gives_the_librarys_outputs(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        own = timm.create_model("resnet10t").eval()
    save_file(own.state_dict(), tmp_path / "w.safetensors")
    conv = load_conv("timm:resnet10t", weights=str(tmp_path / "w.safetensors"))
    with torch.no_grad():
        assert torch.equal(conv(noise(64, 64)), own(noise(64, 64)))
    assert conv.spec.weights == "w.safetensors" and conv.spec.digest == digest_module(own)
    assert conv.spec.image_size == (176, 176)  # timm's for this model
    with pytest.raises(WeightsError, match=r"w.safetensors does not fit resnet18 .*another model"):
        load_conv("resnet18", weights=str(tmp_path / "w.safetensors"))
    with pytest.raises(WeightsError, match="allowed are hub, random, or a file that exists"):
        load_conv("resnet18", weights="nowhere")


def test_random_weights_come_from_the_seed() -> None:
    one, same, other = (load_conv("resnet10t", weights="random", seed=seed).spec.digest for seed in (0, 0, 1))
    assert one == same != other


@pytest.mark.parametrize("name", ["resnet18", "resnetv2_50x1_bit", "convnext_atto"])
def test_what_is_exported_is_opened_again(name: str, tmp_path: Path) -> None:
    conv = tiny(name)
    export(conv, tmp_path, classes=list("abcde"))
    again, own = load_conv(str(tmp_path)), timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(again(noise(64, 96)), conv(noise(64, 96)))
        assert torch.equal(own(noise(64, 96)), conv(noise(64, 96)))
    assert again.spec.image_size == (64, 96) and again.transform.mean == conv.transform.mean
    assert json.loads((tmp_path / "config.json").read_text())["label_names"] == list("abcde")
    assert is_conv(str(tmp_path)) and is_conv(f"local-dir:{tmp_path}")
    with pytest.raises(ArgumentError, match="no plain ViT"):
        load(str(tmp_path))


def test_what_is_no_convolutional_network_is_refused_in_one_line(tmp_path: Path) -> None:
    vit = create("scenes-tiny")
    export(vit, tmp_path)
    for name, why in {
        "vit_tiny_patch16_224": "is a VisionTransformer",
        "timm:swin_tiny_patch4_window7_224": "is a SwinTransformer",
        "efficientnet_b0": "is a EfficientNet",
        "vit_small_r26_s32_224": "is a VisionTransformer",
        str(tmp_path): "is a VisionTransformer",
        "resnet19": "timm has no model resnet19; near it: resnet",
        "timm:": "near it: resnet50",
    }.items():
        with pytest.raises(ArgumentError, match=why) as caught:
            load_conv(name, weights="random")
        assert "\n" not in str(caught.value) and (ALLOWED in str(caught.value) or "near it" in str(caught.value))
        assert not is_conv(name)
    assert is_conv("timm:resnet50.a1_in1k") and is_conv("resnetv2_50x1_bit") and not is_conv("dinov2")


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    for given, why in [
        ({"image_size": (16, 64)}, "got images of 16 x 64 px for resnet10t, whose last map has a stride of 32"),
        ({"num_classes": -1}, "got a head of -1 classes"),
        ({"overrides": {"chanels": (8, 8, 8, 8)}}, "takes no chanels; near it: channels"),
        ({"overrides": {"img_size": 32}}, "it is set elsewhere: image_size"),
        ({"overrides": {"output_stride": 7}}, "timm cannot build resnet10t with output_stride=7"),
    ]:
        with pytest.raises(ArgumentError, match=why):
            create_conv("resnet10t", **given)
    for given, why in (({"global_pool": ""}, "build it with a pool"), ({"channels": (8, 8)}, "with 4 stages")):
        with pytest.raises(RecordingError, match=why):
            create_conv("resnet10t", overrides=given)


def test_a_copy_is_wrapped_alike() -> None:
    conv = tiny("resnet18")
    again = conv.rewrap(conv.module, replace(conv.spec, paradigm="supervised"))
    assert type(again) is ConvNet and again.model_args == conv.model_args == FEW["resnet18"]
