"""What every network shares, transformer or convolutional: its spec, its transform, one vector an image, its head."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor, nn

from vitprobe.backbones.weights import SUFFIXES
from vitprobe.errors import ArgumentError

KINDS = ("registers", "cls", "positions", "patch_embedding", "final_norm", "head", "layer_scale", "block")
"""The kinds of parameters that have a name; a family has patterns for those that it has."""

MADE = ("random", "planted", "nothing planted")
"""How ``weights`` begin where nobody trained them; every figure's title says so."""


@dataclass(frozen=True)
class ModelSpec:
    """Say exactly which model a result came from; stored in every checkpoint and result."""

    name: str
    """What the user asked for, e.g. ``dinov2-l14``."""
    library: str
    """``timm``, ``open_clip`` or ``vitprobe`` (organisms, what is shipped, the reference ViT)."""
    architecture: str
    """The library's name of the architecture."""
    weights: str
    """Pretrained tag, file name, ``random (seed 0)`` or ``planted (seed 0)``."""
    digest: str
    """sha256 of the parameters and buffers as they are used, after any resizing."""
    image_size: tuple[int, int]
    """(height, width) in pixels."""
    num_registers: int
    paradigm: str = "unknown"
    """``supervised``, ``text-supervised``, ``self-supervised``, ``planted`` or ``unknown``."""
    pos_embed: str = "timm"
    """How positions came to another image size: ``timm`` (the library's own way) or ``official`` (DINOv2's hub)."""

    @property
    def title(self) -> str:
        """The name for a figure's title; says so where the weights are random, planted or from a file."""
        if self.weights.startswith(MADE):
            return f"{self.name}, {self.weights.split(' (')[0]}"
        return f"{self.name}, {self.weights}" if self.weights.endswith(SUFFIXES) else self.name


@dataclass(frozen=True)
class Transform:
    """A model's own evaluation transform, with the numbers needed to undo its normalisation."""

    apply: Callable[..., Tensor]
    """PIL image -> (3, height, width) float tensor."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, image: object) -> Tensor:
        return self.apply(image)

    def pixels(self, images: Tensor) -> Tensor:
        """Undo the normalisation: (B, 3, H, W) as the model sees it -> the same in [0, 1]."""
        mean = images.new_tensor(self.mean).view(1, 3, 1, 1)
        std = images.new_tensor(self.std).view(1, 3, 1, 1)
        return (images * std + mean).clamp(0, 1)


class Trunk(ABC):
    """Wrap a network so that a training loop need not know whether it has tokens."""

    spec: ModelSpec
    module: nn.Module
    transform: Transform
    num_blocks: int
    """Blocks of a transformer, stages of a convolutional network."""
    width: int
    """Of the tokens, or of the vector that a convolutional network's head reads."""
    parameter_patterns: Mapping[str, str]
    """What `parameter_names` looks for, by kind; that of ``block`` has the block's number as its first group."""
    first_block: int = 0
    """The number that the module's own names give to block 0."""
    model_args: Mapping[str, Any] = MappingProxyType({})
    """What the library must be told, beside the architecture's name, to build this model again."""

    def __call__(self, images: Tensor) -> Tensor:
        """Run the network as its library does: (B, 3, height, width) -> its pooled output."""
        return self.module(images)

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Compute one vector an image, (B, D'): what the head reads, or, of a CLIP tower, its embedding."""

    def reset_head(self, num_classes: int, *, seed: int = 0, zero: bool = False) -> None:
        """Put a new head of ``num_classes`` outputs, or none for 0, in place of the model's own.

        ``zero``: its weight and bias are zeros, as a head is for fine-tuning (Dosovitskiy et al., arXiv 2010.11929,
        section 3.2), so that every class is as likely before the first step. Raises `ArgumentError` for a number that
        is none.
        """
        if type(num_classes) is not int or num_classes < 0:
            raise ArgumentError(f"got a head of {num_classes!r} classes; give a whole number, 0 for none")
        before = list(self.module.parameters())  # held, so that no new one takes the place of an old in memory
        self.replace_head(num_classes, torch.Generator().manual_seed(seed))
        if zero:
            old = {id(parameter) for parameter in before}
            with torch.no_grad():
                for parameter in self.module.parameters():
                    if id(parameter) not in old:
                        parameter.zero_()
        self.spec = replace(self.spec, digest=digest_module(self.module))

    @abstractmethod
    def replace_head(self, num_classes: int, generator: torch.Generator) -> None:
        """Do what `reset_head` says; the weights come from the generator, which is the CPU's."""

    def parameter_names(self, kind: str) -> tuple[str, ...]:
        """Name the parameters of one kind as ``module.named_parameters`` does; empty where the model has none.

        Kinds: registers, cls, positions, patch_embedding, block:0 and on, last_block, final_norm (of tokens or of the
        pooled vector), head, layer_scale. Raises `ArgumentError` for any other.
        """
        name, _, number = (f"block:{self.num_blocks - 1}" if kind == "last_block" else kind).partition(":")
        if (name == "block") != number.isdecimal() or name not in KINDS:
            raise ArgumentError(f"got {kind!r}; kinds: last_block, {', '.join(KINDS)} (as block:0)")
        index = str(self.check_block(int(number)) + self.first_block) if number else None
        pattern = self.parameter_patterns.get(name, "(?!)")  # which nothing matches
        found = ((n, re.fullmatch(pattern, n)) for n, _ in self.module.named_parameters())
        return tuple(n for n, match in found if match and (index is None or match[1] == index))

    def rewrap(self, module: nn.Module, spec: ModelSpec) -> Self:
        """Wrap a copy or a variant of the module in an adapter of the same family, `model_args` and all."""
        wrapped = type(self)(module, spec, self.transform)
        wrapped.model_args = dict(self.model_args)
        return wrapped

    def check_block(self, index: int) -> int:
        """Return ``index`` if it names a block. Raises `ArgumentError` otherwise."""
        if not 0 <= index < self.num_blocks:
            raise ArgumentError(f"got block {index}; {self.spec.name} has blocks 0 to {self.num_blocks - 1}")
        return index


def digest_module(module: nn.Module) -> str:
    """Hash the parameters and buffers of a module, names, types and bytes, in the order of their names (sha256)."""
    sha = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().view(-1)
        sha.update(memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else b"")
    return sha.hexdigest()
