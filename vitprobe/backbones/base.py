"""What every backbone can be asked: run it, where its tokens are, which module to watch, its attention rows."""

import hashlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from vitprobe.backbones.weights import SUFFIXES
from vitprobe.errors import ArgumentError, RecordingError
from vitprobe.tokens import TokenLayout

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


class Backbone(ABC):
    """Wrap a vision tower so that probes need not know which library it came from.

    Subclasses are final. A subclass states the layout of its tokens and the modules to watch; it refuses, by name,
    what it cannot state, and checks its attention arithmetic once, when it is built (`check_attention`).
    """

    spec: ModelSpec
    module: nn.Module
    transform: Transform
    num_blocks: int
    num_heads: int
    width: int
    patch_size: tuple[int, int]
    """(height, width) of a patch in pixels."""
    final_norm: nn.Module | None
    """The norm that all tokens pass after the last block, or None where only a pooled vector passes it."""
    attention_context: tuple[str, ...] = ()
    """Keywords of the attention module's call that its rows depend on beside what it reads: ``rope``, or none.

    An adapter that names any takes them, as the model passed them, in `query_key_value` and `run_attention`.
    """
    parameter_patterns: Mapping[str, str]
    """What `parameter_names` looks for, by kind; that of ``block`` has the block's number as its first group."""
    model_args: Mapping[str, Any] = MappingProxyType({})
    """What the library must be told, beside the architecture's name, to build this model again."""

    @abstractmethod
    def layout(self, image_size: tuple[int, int] | None = None) -> TokenLayout:
        """State the order of the tokens for images of (height, width); by default the size of `spec`."""

    @property
    @abstractmethod
    def patch_embedding(self) -> nn.Module:
        """The module whose output is the patch embedding, before positions and prefix tokens."""

    @abstractmethod
    def patch_tokens(self, output: Tensor) -> Tensor:
        """Bring the output of `patch_embedding` to (B, P, D)."""

    @abstractmethod
    def patch_output(self, tokens: Tensor, like: Tensor) -> Tensor:
        """Undo `patch_tokens`: bring (B, P, D) to the shape of the module's output ``like``."""

    @abstractmethod
    def block(self, index: int) -> nn.Module:
        """The module whose input is `resid_pre` and whose output is `resid_post` of block ``index``, (B, T, D)."""

    @abstractmethod
    def attention(self, index: int) -> nn.Module:
        """The module whose first argument is what attention of block ``index`` reads, (B, T, D)."""

    @abstractmethod
    def second_linear(self, index: int) -> nn.Module:
        """The module whose input is the MLP's neurons of block ``index``, (B, T, N), and whose output the MLP's."""

    @abstractmethod
    def query_key_modules(self, index: int) -> tuple[nn.Module, nn.Module] | None:
        """The modules whose outputs are the queries and keys, (B, H, T, d), used in block ``index``; None if hidden."""

    @abstractmethod
    def query_key_value(self, index: int, x: Tensor, **context: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Compute queries, keys and values, each (B, H, T, d), from what attention of block ``index`` reads.

        Queries and keys are as the product uses them: after their norm, after rotary positions. ``context`` holds
        what `attention_context` names.
        """

    @abstractmethod
    def project_heads(self, index: int, heads: Tensor, x: Tensor) -> Tensor:
        """Bring pattern times values, (B, H, T, d), to the attention module's own output, (B, T, D).

        ``x`` is what attention read, for models that gate their output by it.
        """

    def attention_rows(self, index: int, x: Tensor, queries: Sequence[int], **context: Any) -> Tensor:
        """Compute rows of the pattern from what attention reads: (B, T, D) -> (B, H, Q, T) float32."""
        q, k, _ = self.query_key_value(index, x, **context)
        return pattern_rows(q, k, queries)

    def __call__(self, images: Tensor) -> Tensor:
        """Run the tower as its library does: (B, 3, height, width) -> its pooled output."""
        return self.module(images)

    @abstractmethod
    def tokens(self, images: Tensor, *, masked: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """Compute all tokens, CLS and registers included: (B, 3, height, width) -> (B, T, D), with gradients.

        They are taken after the last block, and after `final_norm` where there is one, in the order that `layout` of
        the images' size states; positions come to another size than the spec's as the library resizes them, in 2-D.
        Patch embeddings that ``masked``, (B, P) bool, names give way to ``mask_token``, (D,), before positions are
        added (iBOT, arXiv 2111.07832). Raises `ArgumentError` for a size or a mask that does not fit the model.
        """

    @abstractmethod
    def pool(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        """Pool what `tokens` gave to the features that the model's own head reads: (B, T, D) -> (B, D)."""

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Compute one vector an image, (B, D'): what the head reads, or, of a CLIP tower, its embedding."""

    def reset_head(self, num_classes: int, *, seed: int = 0) -> None:
        """Put a new head of ``num_classes`` outputs, or none for 0, in place of the model's own."""
        if type(num_classes) is not int or num_classes < 0:
            raise ArgumentError(f"got a head of {num_classes!r} classes; give a whole number, 0 for none")
        self.replace_head(num_classes, torch.Generator().manual_seed(seed))
        self.spec = replace(self.spec, digest=digest_module(self.module))

    @abstractmethod
    def replace_head(self, num_classes: int, generator: torch.Generator) -> None:
        """Do what `reset_head` says; the weights come from the generator, which is the CPU's."""

    def add_registers(self, values: Tensor) -> None:
        """Put registers, (R, D), into a module that has none. Raises `ArgumentError` where it has no place for them."""
        raise ArgumentError(f"{self.spec.name} has no place for registers; timm's ViTs and open_clip's have")

    def parameter_names(self, kind: str) -> tuple[str, ...]:
        """Name the parameters of one kind as ``module.named_parameters`` does; empty where the model has none.

        Kinds: registers, cls, positions, patch_embedding, block:0 and on, last_block, final_norm (of tokens or of the
        pooled vector), head, layer_scale. Raises `ArgumentError` for any other.
        """
        name, _, number = (f"block:{self.num_blocks - 1}" if kind == "last_block" else kind).partition(":")
        if (name == "block") != number.isdecimal() or name not in self.parameter_patterns:
            raise ArgumentError(f"got {kind!r}; kinds: last_block, {', '.join(self.parameter_patterns)} (as block:0)")
        index = str(self.check_block(int(number))) if number else None
        found = ((n, re.fullmatch(self.parameter_patterns[name], n)) for n, _ in self.module.named_parameters())
        return tuple(n for n, match in found if match and (index is None or match[1] == index))

    def rewrap(self, module: nn.Module, spec: ModelSpec) -> "Backbone":
        """Wrap a copy or a variant of the module in an adapter of the same family, `model_args` and all."""
        backbone = type(self)(module, spec, self.transform)
        backbone.model_args = dict(self.model_args)
        return backbone

    def check_block(self, index: int) -> int:
        """Return ``index`` if it names a block. Raises `ArgumentError` otherwise."""
        if not 0 <= index < self.num_blocks:
            raise ArgumentError(f"got block {index}; {self.spec.name} has blocks 0 to {self.num_blocks - 1}")
        return index

    @torch.no_grad()
    def check_attention(self, *, tolerance: float = 1e-4) -> None:
        """Check that rows times values, projected, equal the attention module's own output, in the outer blocks.

        Raises `RecordingError` where they do not: a library has changed under vitprobe, or the model is no plain ViT.
        """
        for index in sorted({0, self.num_blocks - 1}):
            x, context = self.attention_example(index)
            _, _, v = self.query_key_value(index, x, **context)
            heads = self.attention_rows(index, x, range(x.shape[1]), **context) @ v
            own = self.run_attention(index, x, **context)
            error = ((self.project_heads(index, heads, x) - own).abs().max() / own.abs().max().clamp_min(1e-6)).item()
            if not error < tolerance:
                raise RecordingError(
                    f"attention of block {index} of {self.spec.name}, recomputed, differs from the model's own by a "
                    f"relative {error:.1g}; its attention is not of a kind that vitprobe can read"
                )

    def attention_example(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """Make a small input for attention of block ``index``, (1, T, D), and the context that goes with it."""
        return self.random_tokens(7), {}

    def random_tokens(self, num_tokens: int) -> Tensor:
        """Draw Gaussian tokens, (1, T, D), always the same, on the module's device."""
        x = torch.randn(1, num_tokens, self.width, generator=torch.Generator().manual_seed(0))
        return x.to(next(self.module.parameters()).device)

    def run_attention(self, index: int, x: Tensor, **context: Any) -> Tensor:
        """Run the attention module of block ``index`` on what it reads, (B, T, D) -> (B, T, D)."""
        return self.attention(index)(x, **context)


def mask_patches(patches: Tensor, masked: Tensor | None, mask_token: Tensor | None) -> Tensor:
    """Put one token, (D,), in place of the masked patch embeddings, (B, P, D); ``masked`` is (B, P) bool, or None."""
    if masked is None and mask_token is None:
        return patches
    if masked is None or mask_token is None or masked.dtype != torch.bool or masked.shape != patches.shape[:2]:
        raise ArgumentError(f"a mask takes masked, {tuple(patches.shape[:2])} bool, and mask_token, or neither of them")
    return torch.where(masked.unsqueeze(-1), mask_token.to(patches.dtype), patches)  # (B, P, D)


def pattern_rows(q: Tensor, k: Tensor, queries: Sequence[int]) -> Tensor:
    """Compute softmax(q k' / sqrt(d)) for the asked-for queries: (B, H, T, d) twice -> (B, H, Q, T), in float32."""
    scale = 1 / math.sqrt(q.shape[-1])
    with torch.autocast(q.device.type, enabled=False):
        rows = q[:, :, list(queries)].float() * scale  # (B, H, Q, d)
        return (rows @ k.float().transpose(-2, -1)).softmax(dim=-1)  # (B, H, Q, T)


def absorbed_rows(x: Tensor, queries: Sequence[int], *, weight: Tensor, bias: Tensor | None, num_heads: int) -> Tensor:
    """Compute rows of the pattern without any keys: x (B, T, D), in-projection weight (3D, D) -> (B, H, Q, T) float32.

    The key projection is absorbed into the queries, u = q W_k, so that scores = u x'; the key bias adds one number to a
    whole row, which softmax ignores. Costs Q·H·D·T instead of D·D·T multiplications: cheaper while Q < d.
    """
    width = x.shape[-1]
    dim = width // num_heads
    with torch.autocast(x.device.type, enabled=False):
        x, weight = x.float(), weight.float()
        q = nn.functional.linear(x[:, list(queries)], weight[:width], None if bias is None else bias[:width].float())
        q = q.unflatten(-1, (num_heads, dim)) / math.sqrt(dim)  # (B, Q, H, d)
        w_k = weight[width : 2 * width].unflatten(0, (num_heads, dim))  # (H, d, D)
        u = torch.einsum("bqhd,hde->bhqe", q, w_k)  # (B, H, Q, D)
        scores = u.flatten(1, 2) @ x.transpose(1, 2)  # (B, H*Q, T)
        return scores.unflatten(1, (num_heads, -1)).softmax(dim=-1)  # (B, H, Q, T)


def digest_module(module: nn.Module) -> str:
    """Hash the parameters and buffers of a module, names, types and bytes, in the order of their names (sha256)."""
    sha = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().view(-1)
        sha.update(memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else b"")
    return sha.hexdigest()


def check_image_size(image_size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """Return the size if its sides are multiples of the patch; raises `ArgumentError` naming the nearest two."""
    for side, patch, name in zip(image_size, patch_size, ("height", "width"), strict=True):
        if side < patch or side % patch:
            low = max(side // patch, 1) * patch
            near = f"{low} or {low + patch}" if side > patch else f"{patch} or {2 * patch}"
            raise ArgumentError(
                f"got an image {name} of {side} px; it must be a multiple of the patch, {patch} px: {near}"
            )
    return image_size
