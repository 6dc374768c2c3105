"""How far apart patches are, and what rows of attention say of it: the arithmetic behind `attention_distance`.

Distances are between the centres of patches, in pixels of the image that the model reads. A patch is at distance 0 from
itself. All sums are over some keys, the patches that count, and of some queries, those of a lattice that count.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vitprobe.errors import ArgumentError
from vitprobe.tokens import TokenLayout

MEASURES = ("distance", "near")
"""Of a row: mean distance, and share on the 3 x 3 neighbourhood."""
SHARES = ("own patch", "CLS", "registers", "outliers")
"""Where the rest of a row goes; of the outliers together, and of the patch that asks."""
NUM_PERMUTATIONS = 39
"""Where places do not matter, a measurement is as likely as each of its permutations to be the least or the greatest of
all, so it lies outside their range in 2 of 40 cases: a test at 5 %."""
SMALLEST = 1e-6
"""A row that leaves no more than this to the patches says nothing of them: beside 1, float32 hardly holds less."""


def query_lattice(grid: tuple[int, int], max_queries: int) -> tuple[tuple[int, int], tuple[int, ...]]:
    """Choose the asking patches: all of them, or the middles of at most ``max_queries`` even cells laid over the grid.

    Returns the (rows, cols) of the lattice, and its patches, numbered row by row. Raises `ArgumentError` for a number
    below 1.
    """
    if type(max_queries) is not int or max_queries < 1:
        raise ArgumentError(f"got {max_queries!r} queries at most; give a whole number from 1 on")
    rows, cols = grid
    shape = grid
    if rows * cols > max_queries:
        tall = max(1, min(rows, max_queries, math.isqrt(max_queries * rows // cols)))
        shape = (tall, min(cols, max_queries // tall))
    at = [[(2 * i + 1) * size // (2 * number) for i in range(number)] for size, number in zip(grid, shape, strict=True)]
    return shape, tuple(row * cols + col for row in at[0] for col in at[1])


@dataclass(frozen=True)
class Geometry:
    """Hold what depends on the grid alone, for Q asking patches and P patches."""

    queries: Tensor
    """(Q,) int64 numbers of the asking patches, row by row."""
    distance: Tensor
    """(Q, P) float32 distance in pixels; 0 to itself."""
    near: Tensor
    """(Q, P) float32: 1 at the patch itself and its up to 8 neighbours, else 0."""

    @classmethod
    def on_grid(
        cls, grid: tuple[int, int], patch_size: tuple[int, int], queries: Sequence[int], *, device: torch.device
    ) -> "Geometry":
        """Lay patches of (height, width) pixels on a grid of (rows, cols)."""
        cells = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).reshape(-1, 2)  # (P, 2)
        asking = torch.tensor(queries)
        steps = cells[asking, None] - cells  # (Q, P, 2)
        distance = torch.linalg.vector_norm(steps * torch.tensor(patch_size, dtype=torch.float64), dim=-1)
        near = (steps.abs() <= 1).all(-1)
        return cls(asking.to(device), distance.float().to(device), near.float().to(device))

    def part(self, chosen: slice) -> "Geometry":
        """Return the same of some of the asking patches."""
        return Geometry(self.queries[chosen], self.distance[chosen], self.near[chosen])

    @property
    def own(self) -> Tensor:
        """(Q, P) float32: 1 at the asking patch itself, else 0."""
        return torch.zeros_like(self.distance).scatter_(1, self.queries[:, None], 1)


@dataclass(frozen=True)
class Keys:
    """Say which patches of B images count, as queries and as keys, and where the random control puts them."""

    counted: Tensor
    """(B, P) float32, 1 or 0."""
    places: Tensor
    """(K, B, P) int64 the place that each patch is given: K permutations of the patches that count."""

    @classmethod
    def lay_out(cls, counted: np.ndarray, permutations: np.ndarray, *, device: torch.device) -> "Keys":
        """Permute the patches that count, (B, P) bool, by permutations of all, (K, P): all images as alike as can be.

        A patch that is sent to one that does not count goes on to where that one is sent, until it comes to one that
        does (the permutation that is induced on the others, as likely as any other).
        """
        places = np.repeat(permutations[:, None], len(counted), axis=1)  # (K, B, P)
        k, b, j = np.nonzero(counted & ~counted[np.arange(len(counted))[:, None], places])
        while len(k):
            places[k, b, j] = permutations[k, places[k, b, j]]
            stays = ~counted[b, places[k, b, j]]
            k, b, j = k[stays], b[stays], j[stays]
        places = np.where(counted, places, np.arange(counted.shape[1]))
        return cls(torch.from_numpy(counted).float().to(device), torch.from_numpy(places).to(device))

    def asking(self, geometry: Geometry) -> Tensor:
        """(B, Q) bool: the asking patches that count."""
        return self.counted[:, geometry.queries] > 0

    def uniform(self, geometry: Geometry) -> Tensor:
        """Measure attention that is the same to all patches that count: (B, 2, 2) float64, nan where there is none.

        First with the own patch, then without it; each by `MEASURES`. It is also, exactly, the mean over all
        permutations of what any attention gives with its keys' places permuted.
        """
        counted, number = self.counted.double(), self.counted.double().sum(1, keepdim=True)  # (B, P), (B, 1)
        distance, near = counted @ geometry.distance.double().T, counted @ geometry.near.double().T  # (B, Q) each
        asking = self.asking(geometry)
        rows = [(distance / number, near / number), (distance / (number - 1), (near - 1) / (number - 1))]
        means = [[torch.where(asking, row, 0).sum(1) / asking.sum(1) for row in pair] for pair in rows]
        found = torch.stack([torch.stack(pair, dim=1) for pair in means], dim=1)  # (B, 2, 2)
        return torch.where(found.isfinite(), found, torch.nan)

    def permuted(self, geometry: Geometry, matrix: Tensor, *, with_own: bool) -> Tensor:
        """Read a matrix (Q, P) with the keys at their permuted places, 0 for those that do not count: (B, Q, P, K).

        Without the own patch, the others are permuted among themselves: the patch that came to the own patch's place
        goes where the own patch was sent. Of all permutations that leave it alone, each is then as likely.
        """
        moved = matrix[:, self.places].permute(2, 0, 3, 1)  # (B, Q, P, K)
        if not with_own:
            came = self.places.argsort(dim=2)[:, :, geometry.queries].permute(1, 2, 0).unsqueeze(2)  # (B, Q, 1, K)
            sent = self.places[:, :, geometry.queries].permute(2, 0, 1)  # (Q, K, B)
            value = matrix.gather(1, sent.flatten(1)).unflatten(1, sent.shape[1:]).permute(2, 0, 1).unsqueeze(2)
            moved = moved.scatter(2, came, value) * (1 - geometry.own)[:, :, None]
        return moved * self.counted[:, None, :, None]


@dataclass(frozen=True)
class RowSums:
    """Hold sums over asking patches, of B images and H heads, for M sets of keys; float64.

    The patches' share of each row is brought to 1; the axis of 2 after M: with the own patch, and without it.
    """

    measured: Tensor
    """(B, H, M, 2, 2) by `MEASURES`."""
    permuted: Tensor
    """(B, H, M, 2, 2, K) the same with the keys' places permuted."""
    rows: Tensor
    """(B, H, M, 2) how many rows these are; a row that leaves nothing to the patches is left out."""
    shares: Tensor
    """(B, H, M, 4) of `SHARES`, of the whole row."""

    def __add__(self, other: "RowSums") -> "RowSums":
        return RowSums(*(x + y for x, y in zip(vars(self).values(), vars(other).values(), strict=True)))


def read_rows(rows: Tensor, layout: TokenLayout, geometry: Geometry, sets: Sequence[Keys], outliers: Tensor) -> RowSums:
    """Sum what rows of the pattern say, (B, H, Q, T) float32, one a query of the geometry; outliers (B, P) float32."""
    with torch.autocast(rows.device.type, enabled=False):
        patches = rows[..., layout.patches].transpose(1, 2).contiguous()  # (B, Q, H, P)
        on_cls = rows[..., list(layout.positions("cls"))].sum(-1).transpose(1, 2)  # (B, Q, H)
        on_registers = rows[..., list(layout.positions("registers"))].sum(-1).transpose(1, 2)
        on_outliers = (patches @ outliers[:, None, :, None]).squeeze(-1)
        own = (patches * geometry.own[:, None]).sum(-1)
        parts = torch.stack([own, on_cls, on_registers, on_outliers], dim=-1)  # (B, Q, H, 4)
        shares = [
            torch.where(keys.asking(geometry)[..., None, None], parts, 0).sum(1, dtype=torch.float64) for keys in sets
        ]
        read = [[_read(patches, geometry, keys, with_own=with_own) for with_own in (True, False)] for keys in sets]
    measured, permuted, number = (
        torch.stack([torch.stack([pair[i] for pair in pairs], dim=2) for pairs in read], dim=2) for i in range(3)
    )
    return RowSums(measured, permuted, number, torch.stack(shares, dim=2))


def _read(patches: Tensor, geometry: Geometry, keys: Keys, *, with_own: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over queries: patches (B, Q, H, P) -> (B, H, 2) measured, (B, H, 2, K) permuted, (B, H) how many rows."""
    kept = torch.ones_like(geometry.own) if with_own else 1 - geometry.own  # (Q, P)
    matrices = [geometry.distance, geometry.near * kept]
    columns = torch.stack([kept, *matrices], dim=-1) * keys.counted[:, None, :, None]  # (B, Q, P, 3)
    mass, *plain = (patches @ columns).unbind(-1)  # (B, Q, H) each
    permuted = [patches @ keys.permuted(geometry, matrix, with_own=with_own) for matrix in matrices]  # (B, Q, H, K)
    is_read = keys.asking(geometry)[:, :, None] & (mass > SMALLEST)  # (B, Q, H)
    weight = torch.where(is_read, 1 / mass.clamp_min(SMALLEST), 0)
    measured = (torch.stack(plain, dim=-1) * weight[..., None]).sum(1, dtype=torch.float64)
    moved = (torch.stack(permuted, dim=-2) * weight[..., None, None]).sum(1, dtype=torch.float64)
    return measured, moved, is_read.sum(1, dtype=torch.float64)
