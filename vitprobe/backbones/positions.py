"""The position table at another image size: as timm makes it, and as DINOv2's own hub makes it."""

import math

import torch
from torch import Tensor, nn

from vitprobe.errors import ArgumentError, WeightsError

OFFSET = 0.1
"""What the hub adds to the new side before dividing: its way around a rounding error of old PyTorch versions."""


def check_official(name: str, architecture: str, *, num_registers: int) -> None:
    """Raise `ArgumentError` unless the architecture is timm's DINOv2 without registers.

    The hub models with registers are resized without the offset and antialiased, which is timm's way to the bit.
    """
    if not architecture.endswith("_patch14_dinov2") or num_registers:
        raise ArgumentError(
            f"got positions 'official' for {name}; they are allowed for DINOv2 without registers (dinov2-s14 and its "
            "like), whose hub resizes them in a way of its own; leave them at 'timm'"
        )


def official_table(table: Tensor, grid: tuple[int, int], *, num_prefix: int, file: str) -> Tensor:
    """Resize a stored table, (1, prefix + side * side, D), to a grid, (1, prefix + rows * cols, D), as the hub does.

    Bicubic, not antialiased, by factors of (new + 0.1) / old an axis, in float32; prefix tokens keep their positions,
    and a table that already has the grid stays as it is. Raises `WeightsError` where the stored grid is not square.
    """
    side = math.isqrt(table.shape[1] - num_prefix)
    if num_prefix + side * side != table.shape[1]:
        raise WeightsError(
            f"{file} has {table.shape[1] - num_prefix} positions, no square; official positions come from a square "
            "table: leave them at 'timm'"
        )
    if (side, side) == tuple(grid):
        return table
    prefix, patches = table.split([num_prefix, side * side], dim=1)
    patches = patches.float().unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, D, side, side)
    factors = [(new + OFFSET) / side for new in grid]
    patches = nn.functional.interpolate(patches, scale_factor=factors, mode="bicubic", antialias=False)
    assert patches.shape[-2:] == tuple(grid), (patches.shape, grid)
    patches = patches.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)  # (1, rows * cols, D)
    return torch.cat([prefix, patches], dim=1)


def set_official(module: nn.Module, state: dict[str, Tensor], *, file: str) -> None:
    """Give timm's DINOv2 the positions of ``state``, the stored tensors, as the hub would resize them."""
    table = state.get("pos_embed")
    if table is None or table.ndim != 3:
        raise WeightsError(
            f"{file} holds no pos_embed of 3 axes, so official positions cannot be made; leave them at 'timm'"
        )
    num_prefix = 0 if module.no_embed_class else module.num_prefix_tokens
    table = official_table(table, module.patch_embed.grid_size, num_prefix=num_prefix, file=file)
    module.pos_embed.data.copy_(table)


def resize_table(table: Tensor, old: tuple[int, int], new: tuple[int, int], *, num_prefix: int) -> Tensor:
    """Resize learned positions, (1, prefix + old rows * cols, D), to a new grid, (1, prefix + new rows * cols, D).

    In 2-D, bicubic and antialiased, in float32, as timm does it to the bit; prefix tokens keep their positions, and the
    table of the old grid is returned itself (Dosovitskiy et al., arXiv 2010.11929, section 3.2).
    """
    if tuple(old) == tuple(new):
        return table
    prefix, patches = table.split([num_prefix, old[0] * old[1]], dim=1)
    grid = patches.float().unflatten(1, old).permute(0, 3, 1, 2)  # (1, D, rows, cols)
    grid = nn.functional.interpolate(grid, size=new, mode="bicubic", antialias=True)
    patches = grid.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)  # (1, rows * cols, D)
    return torch.cat([prefix, patches], dim=1)
