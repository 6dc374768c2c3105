"""Which of a model's tokens are CLS, registers and patches: the only source of token positions in the project."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vitprobe.errors import ArgumentError


@dataclass(frozen=True)
class TokenLayout:
    """State the order of the T tokens of a model at one image size.

    The slices tile ``range(T)`` exactly, in any order: registers may stand before the patches (timm, DINOv2) or after
    them (test-time registers). Raises `ArgumentError` where they do not tile, or do not match the grid.
    """

    cls: slice | None
    """Position of the CLS token, a slice of length 1, or None for a model without one."""
    registers: slice
    """Positions of the R register tokens; empty where R = 0."""
    patches: slice
    """Positions of the P patch tokens, row by row."""
    grid: tuple[int, int]
    """(rows, cols) of the patch grid; rows * cols = P."""

    def __post_init__(self) -> None:
        parts = sorted((s.start, s.stop) for s in self._slices() if s.stop > s.start)
        ends = [0, *(stop for _, stop in parts)]
        if [start for start, _ in parts] != ends[:-1]:
            raise ArgumentError(f"token slices {parts} overlap or leave a gap; they must tile the tokens from 0 on")
        if self.cls is not None and self.cls.stop - self.cls.start != 1:
            raise ArgumentError(
                f"got a CLS slice of {self.cls.stop - self.cls.start} tokens; a model has one CLS token"
            )
        if self.grid[0] * self.grid[1] != self.num_patches:
            raise ArgumentError(f"a grid of {self.grid[0]} x {self.grid[1]} does not hold {self.num_patches} patches")

    @classmethod
    def prefix_first(cls, *, has_cls: bool, num_registers: int, grid: tuple[int, int]) -> "TokenLayout":
        """Build the commonest order: CLS if there is one, registers, patches."""
        first, last = int(has_cls), int(has_cls) + num_registers
        return cls(slice(0, 1) if has_cls else None, slice(first, last), slice(last, last + grid[0] * grid[1]), grid)

    def _slices(self) -> list[slice]:
        return [self.registers, self.patches] + ([self.cls] if self.cls is not None else [])

    @property
    def num_patches(self) -> int:
        """P, the number of patch tokens."""
        return self.patches.stop - self.patches.start

    @property
    def num_registers(self) -> int:
        """R, the number of register tokens."""
        return self.registers.stop - self.registers.start

    @property
    def num_tokens(self) -> int:
        """T, the number of all tokens."""
        return sum(s.stop - s.start for s in self._slices())

    @property
    def prefix(self) -> tuple[int, ...]:
        """Positions of all tokens that are no patches: CLS, then registers."""
        cls = range(self.cls.start, self.cls.stop) if self.cls is not None else range(0)
        return (*cls, *range(self.registers.start, self.registers.stop))

    @property
    def kinds(self) -> dict[str, slice]:
        """The kinds of token that are present, by name: ``cls``, ``registers``, ``patches``."""
        named = {"cls": self.cls, "registers": self.registers, "patches": self.patches}
        return {name: s for name, s in named.items() if s is not None and s.stop > s.start}

    def positions(self, kind: str) -> tuple[int, ...]:
        """Return the positions of the tokens of one kind; empty where the model has none."""
        where = self.kinds.get(kind, slice(0, 0))
        return tuple(range(where.start, where.stop))

    def patch_position(self, row: int, col: int) -> int:
        """Return the position among all tokens of the patch at (row, col). Raises `ArgumentError` off the grid."""
        rows, cols = self.grid
        if not (0 <= row < rows and 0 <= col < cols):
            raise ArgumentError(f"got patch ({row}, {col}); the grid has {rows} rows and {cols} columns, from 0")
        return self.patches.start + row * cols + col

    def to_grid(self, patches: Tensor, *, dim: int = 1) -> Tensor:
        """Lay an axis of P patches, or of all T tokens, on the grid: (B, P, ...) -> (B, rows, cols, ...).

        Raises `ArgumentError` where the axis holds neither P nor T.
        """
        size = patches.shape[dim]
        if size == self.num_tokens and size != self.num_patches:
            patches = patches.narrow(dim, self.patches.start, self.num_patches)
        elif size != self.num_patches:
            raise ArgumentError(
                f"got {size} tokens along axis {dim}; the layout has {self.num_patches} patches, "
                f"{self.num_tokens} tokens"
            )
        return patches.unflatten(dim, self.grid)

    def from_grid(self, grid: Tensor, *, dim: int = 1) -> Tensor:
        """Undo `to_grid`: (B, rows, cols, ...) -> (B, P, ...)."""
        if tuple(grid.shape[dim : dim + 2]) != self.grid:
            raise ArgumentError(f"got a grid of {tuple(grid.shape[dim : dim + 2])}; the layout has {self.grid}")
        return torch.flatten(grid, dim, dim + 1)
