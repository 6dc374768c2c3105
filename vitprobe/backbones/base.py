"""What every backbone can be asked: run it, where its tokens are, which module to watch, its attention rows."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitprobe.backbones.trunk import ModelSpec as ModelSpec
from vitprobe.backbones.trunk import Transform as Transform
from vitprobe.backbones.trunk import Trunk
from vitprobe.backbones.trunk import digest_module as digest_module
from vitprobe.errors import ArgumentError, RecordingError
from vitprobe.tokens import TokenLayout


class Backbone(Trunk):
    """Wrap a vision tower so that probes need not know which library it came from.

    Subclasses are final. A subclass states the layout of its tokens and the modules to watch; it refuses, by name,
    what it cannot state, and checks its attention arithmetic once, when it is built (`check_attention`).
    """

    num_heads: int
    patch_size: tuple[int, int]
    """(height, width) of a patch in pixels."""
    final_norm: nn.Module | None
    """The norm that all tokens pass after the last block, or None where only a pooled vector passes it."""
    attention_context: tuple[str, ...] = ()
    """Keywords of the attention module's call that its rows depend on beside what it reads: ``rope``, or none.

    An adapter that names any takes them, as the model passed them, in `query_key_value` and `run_attention`.
    """

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

    def add_registers(self, values: Tensor) -> None:
        """Put registers, (R, D), into a module that has none. Raises `ArgumentError` where it has no place for them."""
        raise ArgumentError(f"{self.spec.name} has no place for registers; timm's ViTs and open_clip's have")

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
