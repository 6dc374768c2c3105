"""Registers in open_clip's own tower, which has no slot for them, and its embedding at any image size."""

import math
from typing import Any

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from vitprobe.backbones.base import mask_patches


class RegisterVisionTransformer(VisionTransformer):
    """Hold open_clip's ``VisionTransformer``, its names of weights, and ``reg_token``, (1, R, D).

    Registers stand between CLS and patches. They come in after the position embedding (and after patch dropout) and
    before ``ln_pre``, as Darcet et al. put them in (arXiv 2309.16588), and are dropped where tokens are pooled or
    handed out. Made of a tower that exists, by `put_registers`.
    """

    reg_token: nn.Parameter

    def _embeds(self, x: Tensor) -> Tensor:
        return embed(self, x)

    def _pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super()._pool(without_registers(self, x))

    def forward_intermediates(
        self, x: Tensor, indices: Any = None, output_fmt: str = "NCHW", output_extra_tokens: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Do as open_clip does, to the patches alone; the extra tokens are CLS and the registers."""
        output = super().forward_intermediates(x, indices, output_fmt="NLC", output_extra_tokens=True, **kwargs)
        number, grid = self.reg_token.shape[1], [s // p for s, p in zip(x.shape[-2:], self.patch_size, strict=True)]
        registers, patches = zip(
            *(y.split([number, y.shape[1] - number], dim=1) for y in output["image_intermediates"]), strict=True
        )
        if output_fmt == "NCHW":
            patches = [y.transpose(1, 2).unflatten(-1, grid).contiguous() for y in patches]  # (B, D, rows, cols)
        output["image_intermediates"] = list(patches)
        cls = output.pop("image_intermediates_prefix")
        if output_extra_tokens:
            output["image_intermediates_prefix"] = [torch.cat(pair, 1) for pair in zip(cls, registers, strict=True)]
        return output

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that take no weight decay."""
        return super().no_weight_decay() | {"reg_token"}


def put_registers(module: VisionTransformer, values: Tensor) -> None:
    """Make a tower of open_clip, in place, one that holds registers, (R, D)."""
    module.__class__ = RegisterVisionTransformer
    module.reg_token = nn.Parameter(values.to(module.conv1.weight).unsqueeze(0))  # (1, R, D)


def without_registers(module: VisionTransformer, x: Tensor) -> Tensor:
    """Take the registers out of all tokens: (B, 1 + R + P, D) -> (B, 1 + P, D)."""
    token = getattr(module, "reg_token", None)
    if token is None:
        return x
    cls, _, patches = x.split([1, token.shape[1], x.shape[1] - 1 - token.shape[1]], dim=1)
    return torch.cat([cls, patches], dim=1)


def embed(
    module: VisionTransformer, images: Tensor, masked: Tensor | None = None, mask_token: Tensor | None = None
) -> Tensor:
    """Do what open_clip's ``_embeds`` does, for images of any size: (B, 3, height, width) -> (B, T, D).

    ``masked`` and ``mask_token`` as in `Backbone.tokens`.
    """
    x = module.conv1(images)  # (B, D, rows, cols)
    grid = tuple(x.shape[-2:])
    x = mask_patches(x.flatten(2).transpose(1, 2), masked, mask_token)  # (B, P, D)
    cls = module.class_embedding.expand(len(x), 1, -1).to(x.dtype)
    table = resize_table(module.positional_embedding, tuple(module.grid_size), grid)
    x = module.patch_dropout(torch.cat([cls, x], dim=1) + table.to(x.dtype))  # (B, 1 + P, D)
    registers = getattr(module, "reg_token", None)
    if registers is not None:
        cls, patches = x.split([1, x.shape[1] - 1], dim=1)
        x = torch.cat([cls, registers.expand(len(x), -1, -1).to(x.dtype), patches], dim=1)  # (B, T, D)
    return module.ln_pre(x)


def resize_table(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resize positions of CLS and a grid, (1 + rows * cols, D), to another grid as open_clip does when it loads.

    Bicubic, antialiased, rows and columns apart; CLS keeps its own.
    """
    if old == new:
        return table
    first, rest = table.split([1, old[0] * old[1]])
    rest = rest.float().unflatten(0, old).permute(2, 0, 1).unsqueeze(0)  # (1, D, rows, cols)
    rest = nn.functional.interpolate(rest, size=new, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([first, rest[0].permute(1, 2, 0).flatten(0, 1).to(table.dtype)])


def resize_positions(state: dict[str, Tensor], grid: tuple[int, int], *, native: tuple[int, int]) -> None:
    """Resize ``positional_embedding``, (1 + rows * cols, D), in place to another grid; CLS keeps its own.

    The stored table is taken to be of the grid that the config names, or else square, as every published one is. Where
    it is neither, it is left to be refused.
    """
    table = state.get("positional_embedding")
    if table is None or table.ndim != 2:
        return
    side = math.isqrt(table.shape[0] - 1)
    old = native if math.prod(native) == table.shape[0] - 1 else (side, side)
    if math.prod(old) == table.shape[0] - 1:
        state["positional_embedding"] = resize_table(table, tuple(old), tuple(grid))
