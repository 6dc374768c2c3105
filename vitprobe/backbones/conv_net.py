"""Convolutional networks of timm: ResNet, BiT's ResNetV2, ConvNeXt, RegNet; and loading and creating them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from vitprobe.backbones.timm_build import (
    SCENES,
    Preset,
    build_blank,
    build_drawn,
    build_new,
    build_pretrained,
    check_keywords,
    made_by,
    source_of,
    stored_args,
    timm_transform,
)
from vitprobe.backbones.trunk import ModelSpec, Transform, Trunk, digest_module
from vitprobe.backbones.weights import check_weights
from vitprobe.backbones.zoo import HUB, LOCAL, read_config
from vitprobe.errors import ArgumentError, RecordingError

ALLOWED = "allowed are timm's ResNet, ResNetV2 (BiT), ConvNeXt and RegNet"
PATTERNS, SOME = ("resnet*", "convnext*", "regnet*"), ("resnet50", "resnetv2_50x1_bit", "convnext_tiny")
"""What a wrong name is compared with, and what is named where nothing is near it."""
SMALL = {"scenes-resnet": Preset("resnet18", (32, 32), {"channels": (64, 64, 80, 96), "output_stride": 8}, data=SCENES)}
"""A ResNet-18 for images of 32 px, of 0.9 million parameters: 8 x 8 positions after its stem, 4 x 4 at the end."""


@dataclass(frozen=True)
class Family:
    """Name the parts of one of timm's classes, as its parameters do."""

    patterns: Mapping[str, str]
    first_block: int
    """The number of the first stage in the names."""
    stage: str
    """The name of a stage, its number left open."""


FAMILIES: dict[str, Family] = {
    "ResNet": Family(
        {"patch_embedding": r"(conv1|bn1)\..*", "block": r"layer(\d+)\..*", "head": r"fc\..*"}, 1, "layer{}"
    ),
    "ResNetV2": Family(
        {
            "patch_embedding": r"stem\..*",
            "block": r"stages\.(\d+)\..*",
            "final_norm": r"norm\..*",
            "head": r"head\..*",
        },
        0,
        "stages.{}",
    ),
    "ConvNeXt": Family(
        {
            "patch_embedding": r"stem\..*",
            "block": r"stages\.(\d+)\..*",
            "final_norm": r"(norm_pre|head\.norm)\..*",
            "head": r"head\.(pre_logits|fc)\..*",
            "layer_scale": r"stages\..*\.gamma",
        },
        0,
        "stages.{}",
    ),
    "RegNet": Family(
        {"patch_embedding": r"stem\..*", "block": r"s(\d+)\..*", "final_norm": r"final_conv\..*", "head": r"head\..*"},
        1,
        "s{}",
    ),
}
"""The classes of timm that are read here; stages are what `Trunk` calls blocks, the stem is the patch embedding."""


class ConvNet(Trunk):
    """Adapt a convolutional network of timm whose last features are a map, pooled by averaging or the like.

    It has no tokens: no CLS, no registers, no attention. When it is built it checks once, on one small image, that the
    map, its stride and the pooled vector are what it says.
    """

    stride: tuple[int, int]
    """Pixels per position of the last map, (down, across)."""

    def __init__(self, module: nn.Module, spec: ModelSpec, transform: Transform) -> None:
        refuse(module, spec.name)
        self.module, self.spec, self.transform = module, spec, transform
        family = FAMILIES[type(module).__name__]
        self.parameter_patterns, self.first_block = dict(family.patterns), family.first_block
        stages = (re.fullmatch(family.patterns["block"], name) for name, _ in module.named_parameters())
        self.num_blocks = len({found[1] for found in stages if found})
        self.width = module.head_hidden_size
        self.stride = _stride(module)
        self.check_map()

    def block(self, index: int) -> nn.Module:
        """The module of stage ``index``, from 0."""
        name = FAMILIES[type(self.module).__name__].stage
        return self.module.get_submodule(name.format(self.check_block(index) + self.first_block))

    def feature_map(self, images: Tensor) -> Tensor:
        """Compute the last map before pooling, (B, 3, height, width) -> (B, D, rows, cols), with gradients.

        Rows and columns are the sides over `stride`, rounded up. A norm after the last stage is in it where the network
        has it before the pool (BiT), and is not where it comes after (most ConvNeXt).
        """
        return self.module.forward_features(images)

    def pool(self, maps: Tensor) -> Tensor:
        """Pool what `feature_map` gave to the vector that the head reads: (B, D, rows, cols) -> (B, D)."""
        return self.module.forward_head(maps, pre_logits=True)

    def features(self, images: Tensor) -> Tensor:
        return self.pool(self.feature_map(images))

    @torch.no_grad()
    def filters(self) -> Tensor:
        """Return the filters of the first convolution, (D, 3, k, k), as the product uses them.

        BiT standardises the weights of each filter first (Qiao et al., arXiv 1903.10520); then these are those.
        """
        from timm.layers import StdConv2d, StdConv2dSame

        found = (part for part in self.module.modules() if isinstance(part, nn.Conv2d) and part.in_channels == 3)
        conv = next(found)
        weight = conv.weight.detach().clone()
        if not isinstance(conv, StdConv2d | StdConv2dSame):
            return weight
        flat = weight.flatten(1).float()  # (D, 3*k*k)
        spread = (flat.var(dim=1, unbiased=False, keepdim=True) + conv.eps).sqrt()
        return ((flat - flat.mean(dim=1, keepdim=True)) / spread).view_as(weight).to(weight.dtype)

    def replace_head(self, num_classes: int, generator: torch.Generator) -> None:
        module, like = self.module, next(self.module.parameters())
        with torch.random.fork_rng(devices=[like.device] if like.is_cuda else []):
            module.reset_classifier(num_classes)
        if not num_classes:
            return
        head = module.get_classifier().to(like)
        with torch.no_grad():
            weight = torch.empty(head.weight.shape)  # (K, D), or (K, D, 1, 1) where the head is a convolution
            head.weight.copy_(nn.init.normal_(weight, std=0.01, generator=generator))  # as timm fills ResNetV2's
            head.bias.zero_()

    @torch.no_grad()
    def check_map(self) -> None:
        """Check map, stride and pooled vector on one image of 4 positions a side.

        Raises `RecordingError` where they are not as stated: a library has changed, or the pool has been taken off.
        """
        was_training = [(part, part.training) for part in self.module.modules()]
        self.module.eval()
        try:
            size = (4 * self.stride[0], 4 * self.stride[1])
            images = torch.zeros(1, 3, *size).to(next(self.module.parameters()))
            maps = self.feature_map(images)
            pooled = self.pool(maps)
        except (AttributeError, RuntimeError) as error:
            detail = " ".join(str(error).split())[:160]
            raise RecordingError(f"{self.spec.name} cannot be run ({detail}); was it built with 4 stages?") from error
        finally:
            for part, training in was_training:
                part.training = training
        if tuple(maps.shape[-2:]) != (4, 4) or tuple(pooled.shape) != (1, self.width):
            raise RecordingError(
                f"{self.spec.name} gives a map of {tuple(maps.shape)} and pools it to {tuple(pooled.shape)}, not 4 x 4 "
                f"positions of stride {self.stride} and (1, {self.width}); build it with a pool, global_pool avg"
            )


def refuse(module: nn.Module, name: str) -> None:
    """Raise `ArgumentError`, by name, for a model that is none of `FAMILIES`."""
    if type(module).__name__ not in FAMILIES or not type(module).__module__.startswith("timm.models."):
        raise ArgumentError(f"{name} is a {type(module).__name__}, no convolutional network read here; {ALLOWED}")


def is_conv(name: str) -> bool:
    """Tell whether a model's name, as `load_conv` takes it, is one of `FAMILIES`, without building anything.

    A repository of the hub is asked for its config. Raises `WeightsError` where that cannot be had.
    """
    from timm.models import is_model, model_entrypoint

    architecture = _architecture(name)
    if architecture.startswith((HUB, LOCAL)):
        try:
            source = source_of(ModelSpec(name, "timm", architecture, "", "", (0, 0), 0))
            path = Path(source.removeprefix(LOCAL)) / "config.json"
            architecture = read_config(path, label=name, kind="architecture")["architecture"]
        except ArgumentError:  # open_clip's, or none: loading it says which
            return False
    base = architecture.split(".")[0]
    homes = {f"timm.models.{family.lower()}" for family in FAMILIES}
    return architecture in SMALL or (is_model(base) and model_entrypoint(base).__module__ in homes)


def load_conv(
    name: str,
    *,
    weights: str = "hub",
    image_size: tuple[int, int] | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> ConvNet:
    """Load a convolutional network in evaluation mode.

    ``name``: timm's, with or without ``timm:`` before it, ``hf-hub:ORG/NAME``, a checkpoint's folder. ``weights``,
    ``seed``: as in `vitprobe.backbones.load`. ``image_size``: (height, width) in pixels, any from one stride on; by
    default the size the weights were made for. Raises `ArgumentError` for a name or a size that is not allowed,
    `WeightsError` where weights cannot be had.
    """
    check_weights(weights)
    spec = ModelSpec(name, "timm", _architecture(name), "", "", (0, 0), 0)
    source = source_of(spec)
    seen = _look(spec, source)
    cfg = seen.pretrained_cfg
    size = _size(image_size or tuple(cfg["input_size"][1:]), _stride(seen), name)
    if weights == "random":
        module = build_drawn(source, seed=seed).eval()
    else:
        module = build_pretrained(spec, source, cfg, weights=weights)[0].eval()
    made = made_by(cfg, weights=weights, seed=seed)
    spec = replace(spec, image_size=size, weights=made, digest=digest_module(module))
    conv = ConvNet(module, spec, timm_transform(module, size))
    conv.model_args = stored_args(spec, source)
    conv.module.to(device)
    return conv


def create_conv(
    arch: str,
    *,
    image_size: tuple[int, int] | None = None,
    seed: int = 0,
    num_classes: int = 0,
    overrides: Mapping[str, Any] = MappingProxyType({}),
) -> ConvNet:
    """Build a convolutional network with random weights, in evaluation mode.

    ``arch``: a row of `SMALL`, or timm's name. ``overrides``: timm's own keywords, e.g. ``channels``, ``layers``,
    ``output_stride`` (8, 16 or 32) of a ResNet, ``depths`` and ``dims`` of a ConvNeXt. The rest is as in
    `vitprobe.backbones.create.create`.
    Raises `ArgumentError`, in one line, for a name, a keyword or a size that does not fit.
    """
    preset = SMALL.get(arch)
    architecture = preset.architecture if preset else arch.removeprefix("timm:")
    seen = _look(ModelSpec(arch, "timm", architecture, "", "", (0, 0), 0), architecture)
    args = {**(preset.model_args if preset else {}), **overrides}
    check_keywords(arch, args, type(seen))
    if type(num_classes) is not int or num_classes < 0:
        raise ArgumentError(f"got a head of {num_classes!r} classes; give a whole number, 0 for none")
    size = tuple(image_size or (preset.image_size if preset else seen.pretrained_cfg["input_size"][1:]))
    data = {**(preset.data if preset else {}), "input_size": (3, *size)}
    module = build_new(arch, architecture, {**args, "num_classes": num_classes}, data=data, seed=seed)
    _size(size, _stride(module), arch)
    spec = ModelSpec(arch, "timm", architecture, f"random (seed {seed})", digest_module(module), size, 0)
    conv = ConvNet(module, spec, timm_transform(module, size))
    conv.model_args = args
    return conv


def _architecture(name: str) -> str:
    """Return what timm calls the model: a name, ``hf-hub:`` or ``local-dir:``; a folder is the last."""
    found = name.removeprefix("timm:")
    is_folder = bool(found) and not found.startswith((HUB, LOCAL)) and Path(found).is_dir()
    return f"{LOCAL}{found}" if is_folder else found


def _look(spec: ModelSpec, source: str) -> nn.Module:
    module = build_blank(spec, source, patterns=PATTERNS, by_default=SOME)
    refuse(module, spec.name)
    return module


def _stride(module: nn.Module) -> tuple[int, int]:
    return (module.feature_info[-1]["reduction"],) * 2


def _size(size: tuple[int, int], stride: tuple[int, int], name: str) -> tuple[int, int]:
    """Return the size if the last map has a position. Raises `ArgumentError` otherwise."""
    if any(type(side) is not int or side < step for side, step in zip(size, stride, strict=True)):
        got = " x ".join(map(str, size))
        raise ArgumentError(f"got images of {got} px for {name}, whose last map has a stride of {stride[0]}; give more")
    return size
