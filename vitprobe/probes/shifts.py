"""Shifts of a window over a canvas, and where on the base map the places of a shifted map have come from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vitprobe.errors import ArgumentError

FRACTIONS = (0.25, 0.5, 0.75)
"""Of a patch, or of a convolutional network's stride."""
WHOLE = (1, 2, 4)
"""Patches, or strides."""
Shift = tuple[int, int]
"""(down, right) in pixels, by which the window goes; what it shows goes the other way."""


def default_shifts(*steps: tuple[int, int], axes: str = "xy") -> tuple[Shift, ...]:
    """List the shifts by `FRACTIONS` and `WHOLE` steps, (height, width) in pixels, of one model or of several.

    ``axes``: ``x`` to the right, ``y`` down, ``d`` both at once. A fraction that is no whole number of pixels is
    rounded up from a half on. Raises `ArgumentError` without a step, for a step under 1 px and for an unknown axis.
    """
    if not steps or min(side for step in steps for side in step) < 1:
        raise ArgumentError(f"got steps {steps}; give (height, width) in pixels of one model or more, 1 or more each")
    if not axes or set(axes) - set("xyd"):
        raise ArgumentError(f"got axes {axes!r}; allowed are x, y and d (diagonal)")
    moves = {"x": (0, 1), "y": (1, 0), "d": (1, 1)}
    found: set[tuple[str, Shift]] = set()
    for height, width in steps:
        for much in (*FRACTIONS, *WHOLE):
            down, right = (int(much * side + 0.5) for side in (height, width))
            found |= {(axis, (down * moves[axis][0], right * moves[axis][1])) for axis in axes}
    ordered = sorted(found, key=lambda one: (axes.index(one[0]), sum(one[1])))
    return tuple(dict.fromkeys(shift for _, shift in ordered if shift != (0, 0)))


def needed_margin(shifts: Sequence[Shift]) -> int:
    """Return the margin in pixels that a canvas needs for shifts to all sides."""
    return max((abs(pixels) for shift in shifts for pixels in shift), default=0)


def check_shifts(shifts: Sequence[Shift], canvas: tuple[int, int], window: tuple[int, int]) -> tuple[Shift, ...]:
    """Return each shift once. Raises `ArgumentError` where there is none, or one leads beyond the canvas's margin."""
    margins = [(whole - part) // 2 for whole, part in zip(canvas, window, strict=True)]
    if any((whole - part) % 2 or whole < part for whole, part in zip(canvas, window, strict=True)):
        got, need = ("{} x {} px".format(*size) for size in (canvas, window))
        raise ArgumentError(f"got a canvas of {got}; it is a window of {need} with the same margin on both sides")
    once = tuple(dict.fromkeys((int(down), int(right)) for down, right in shifts))
    if not once:
        raise ArgumentError("got no shift; give one or more, (down, right) in pixels")
    for shift in once:
        if any(abs(pixels) > margin for pixels, margin in zip(shift, margins, strict=True)):
            raise ArgumentError(f"got a shift of {shift} px; the canvas has a margin of {margins[0]} x {margins[1]} px")
    return once


def window_at(canvases: Tensor, shift: Shift, window: tuple[int, int]) -> Tensor:
    """Cut windows out of canvases, the middle one for a shift of 0: (B, 3, H + 2m, W + 2m) -> (B, 3, H, W)."""
    top, left = (
        (whole - part) // 2 + pixels for whole, part, pixels in zip(canvases.shape[-2:], window, shift, strict=True)
    )
    return canvases[..., top : top + window[0], left : left + window[1]]


@dataclass(frozen=True)
class Axis:
    """Hold what the places of a shifted map and of the base map have in common along one axis."""

    first: int
    last: int
    """Places of the shifted map, from ``first`` on and before ``last``, whose content the base map has too."""
    whole: int
    """The place ``p`` of the shifted map shows what lies at ``p + whole + share`` of the base map."""
    share: float
    """From 0 on, under 1."""
    length: int
    """Places of a map."""

    @classmethod
    def of(cls, pixels: int, *, step: int, length: int, border: int) -> "Axis":
        """Find the common places, ``border`` of them at each end of both maps left out."""
        whole, rest = divmod(pixels, step)
        first = max(border, border - whole)
        last = min(length - border, length - border - whole - bool(rest))
        return cls(first, max(first, last), whole, rest / step, length)

    @property
    def nearest(self) -> int:
        """How many places on the nearest one lies; half a step leads on."""
        return self.whole + (self.share >= 0.5)

    @property
    def corners(self) -> tuple[tuple[int, float], ...]:
        """How many places on the neighbours lie that are interpolated, and their weights."""
        return ((self.whole, 1 - self.share), *([(self.whole + 1, self.share)] if self.share else []))

    def cut(self, places: int) -> slice:
        """Return the common places, so many places on."""
        return slice(self.first + places, self.last + places)

    @property
    def edges(self) -> list[int]:
        """The distance of each common place from the nearer end, of either map: (n,)."""
        steps = (0, *(places for places, _ in self.corners))
        return [
            min(min(p + on, self.length - 1 - p - on) for on in steps) for p in range(self.first, self.last)
        ]  # fmt: skip


@dataclass(frozen=True)
class Overlap:
    """Hold which places of a shifted map have their content on the base map, and take it from there, n of them."""

    shift: Shift
    rows: Axis
    cols: Axis

    @classmethod
    def of(cls, shift: Shift, *, step: tuple[int, int], grid: tuple[int, int], border: int) -> "Overlap":
        """Find the places that a shift in pixels leaves in common, of maps with a step in pixels."""
        parts = zip(shift, step, grid, strict=True)
        return cls(shift, *(Axis.of(pixels, step=s, length=n, border=border) for pixels, s, n in parts))

    @property
    def number(self) -> int:
        """n, the places in common."""
        return (self.rows.last - self.rows.first) * (self.cols.last - self.cols.first)

    @property
    def is_whole(self) -> bool:
        """Whether the shift is by whole steps, and not by 0."""
        return not (self.rows.share or self.cols.share) and self.shift != (0, 0)

    @property
    def is_elsewhere(self) -> bool:
        """Whether the place nearest to where content has gone is another one."""
        return bool(self.rows.nearest or self.cols.nearest)

    def stayed(self, maps: Tensor) -> Tensor:
        """Take the same places: (..., rows, cols) -> (..., n)."""
        return maps[..., self.rows.cut(0), self.cols.cut(0)].flatten(-2)

    def nearest(self, maps: Tensor) -> Tensor:
        """Take the places nearest to where the content is: (..., rows, cols) of the base map -> (..., n)."""
        return maps[..., self.rows.cut(self.rows.nearest), self.cols.cut(self.cols.nearest)].flatten(-2)

    def moved(self, maps: Tensor) -> Tensor:
        """Interpolate between the 1, 2 or 4 places about the content: (..., rows, cols) of the base map -> (..., n)."""
        found = [weight * maps[..., self.rows.cut(a), self.cols.cut(b)] for a, b, weight in self._corners()]
        return sum(found[1:], found[0]).flatten(-2)

    def moved_mask(self, mask: Tensor) -> Tensor:
        """Tell where all places that `moved` interpolates are in a mask: (..., rows, cols) bool -> (..., n)."""
        found = [mask[..., self.rows.cut(a), self.cols.cut(b)] for a, b, _ in self._corners()]
        return torch.stack(found).all(dim=0).flatten(-2)

    @cached_property
    def rings(self) -> Tensor:
        """Distance of each place, and of the one it is set beside, from the border of its map: (n,) int64."""
        rows, cols = torch.tensor(self.rows.edges).view(-1, 1), torch.tensor(self.cols.edges)
        return torch.minimum(*torch.broadcast_tensors(rows, cols)).flatten().long()

    @property
    def num_rings(self) -> int:
        """K, the distances from the border that a map has."""
        return (min(self.rows.length, self.cols.length) + 1) // 2

    def _corners(self) -> Iterator[tuple[int, int, float]]:
        return ((a, b, u * v) for a, u in self.rows.corners for b, v in self.cols.corners)
