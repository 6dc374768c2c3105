"""Distances on the grid, lattices of queries, and permutations of places."""

from itertools import permutations

import numpy as np
import pytest
import torch

from vitprobe.probes.attention_geometry import Geometry, Keys, query_lattice

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("grid", "most", "shape"),
    [
        ((37, 37), 256, (16, 16)),
        ((14, 14), 256, (14, 14)),
        ((6, 8), 20, (3, 6)),
        ((1, 1000), 256, (1, 256)),
        ((1000, 1), 256, (256, 1)),
        ((5, 5), 1, (1, 1)),
    ],
)
def test_a_lattice_is_even_and_no_larger_than_asked(grid: tuple[int, int], most: int, shape: tuple[int, int]) -> None:
    found, patches = query_lattice(grid, most)
    assert found == shape
    assert len(set(patches)) == len(patches) == shape[0] * shape[1] <= most
    at = np.array([divmod(p, grid[1]) for p in patches])
    for axis in (0, 1):
        lines = np.unique(at[:, axis])
        assert len(lines) == shape[axis]
        gaps = np.diff(lines)
        assert not len(gaps) or gaps.max() - gaps.min() <= 1
        assert abs(lines.mean() - (grid[axis] - 1) / 2) <= 0.5  # in the middle


def test_distances_are_in_pixels() -> None:
    geometry = Geometry.on_grid((2, 3), (8, 4), [0, 5], device=CPU)
    assert geometry.distance[0].tolist() == pytest.approx([0, 4, 8, 8, np.hypot(8, 4), np.hypot(8, 8)])
    assert geometry.near.tolist() == [[1, 1, 0, 1, 1, 0], [0, 1, 1, 0, 1, 1]]
    assert geometry.part(slice(1, 2)).own.tolist() == [[0, 0, 0, 0, 0, 1]]


def all_keys(counted: list[bool]) -> Keys:
    """Every permutation of four patches."""
    table = np.array(list(permutations(range(4))))
    return Keys.lay_out(np.array([counted]), table, device=CPU)


@pytest.mark.parametrize("counted", [[True] * 4, [True, False, True, True]])
def test_over_all_permutations_any_attention_is_uniform(counted: list[bool]) -> None:
    geometry = Geometry.on_grid((2, 2), (8, 4), range(4), device=CPU)
    keys = all_keys(counted)
    rows = torch.rand(4, 4, generator=torch.Generator().manual_seed(0)) * keys.counted
    uniform = keys.uniform(geometry)[0]
    asking = keys.asking(geometry)[0]
    for o, kept in enumerate((torch.ones(4, 4), 1 - geometry.own)):
        weights = rows * kept / (rows * kept).sum(1, keepdim=True)
        for m, matrix in enumerate((geometry.distance, geometry.near * kept)):
            moved = keys.permuted(geometry, matrix, with_own=o == 0)[0]  # (Q, P, K)
            mean = torch.einsum("qp,qpk->qk", weights, moved)[asking].mean()
            assert mean.item() == pytest.approx(uniform[o, m].item(), rel=1e-5)


def test_permutations_stay_among_the_patches_that_count() -> None:
    draw = np.random.default_rng(0)
    table = np.stack([draw.permutation(12) for _ in range(20)])
    counted = draw.random((5, 12)) < 0.6
    places = Keys.lay_out(counted, table, device=CPU).places.numpy()
    for k in range(20):
        for b in range(5):
            own = np.flatnonzero(counted[b])
            assert sorted(places[k, b, own]) == own.tolist()
            straight = own[counted[b, table[k, own]]]
            assert (places[k, b, straight] == table[k, straight]).all()  # as alike in all images as can be
    whole = Keys.lay_out(np.ones((2, 12), bool), table, device=CPU).places.numpy()
    assert (whole == table[:, None]).all()


def test_the_own_patch_is_left_alone_where_it_does_not_count() -> None:
    """Moved by hand: the patch put on the own place goes where the own patch was sent."""
    geometry = Geometry.on_grid((2, 3), (8, 4), [1, 4], device=CPU)
    table = np.stack([np.random.default_rng(seed).permutation(6) for seed in range(30)])
    keys = Keys.lay_out(np.ones((1, 6), bool), table, device=CPU)
    found = keys.permuted(geometry, geometry.distance, with_own=False)[0]
    for q, own in enumerate((1, 4)):
        for k, places in enumerate(table.tolist()):
            moved = list(places)
            moved[places.index(own)], moved[own] = places[own], own
            assert sorted(moved) == list(range(6))
            assert found[q, :, k].tolist() == pytest.approx(geometry.distance[q, moved].tolist())
