"""Positions: planted 2-D ones are found, shuffled and random ones are not; numbers against scipy and slow loops."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from vitprobe import backbones
from vitprobe.probes.position_similarity import (
    LINES,
    GridPairs,
    PositionResult,
    analyse_positions,
    cosine,
    line_weights,
    measure_position_similarity,
    patch_positions,
)


def sine_cosine(grid, width=32):
    """2-D sine-cosine positions: half of the width says the row, half the column."""
    row, col = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    waves = 1 / 100 ** (np.arange(width // 4) / (width // 4))
    return np.concatenate([f(x[:, None] * waves) for x in (row, col) for f in (np.sin, np.cos)], axis=1)


def isotropic(grid, reach=2.0):
    """Positions whose similarity depends on distance alone."""
    row, col = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    squared = (row[:, None] - row) ** 2 + (col[:, None] - col) ** 2
    return np.linalg.cholesky(np.exp(-squared / (2 * reach**2)) + 1e-9 * np.eye(len(row)))


def noise(grid, width=32, seed=0):
    return np.random.default_rng(seed).normal(size=(grid[0] * grid[1], width))


def test_planted_positions_are_found():
    found = analyse_positions(sine_cosine((7, 9)), (7, 9)).summary
    assert found["answer"] == "nearer are more alike" and found["distance"]["value"] > 0.7
    for key in ("distance", "row", "column"):
        assert found[key]["value"] > found[key]["shuffled_interval"][1] and found[key]["p_value"] == 1 / 200
        assert found["centred"][key]["p_value"] == 1 / 200


def test_the_same_positions_shuffled_are_not():
    grid = (7, 9)
    table = sine_cosine(grid)[np.random.default_rng(1).permutation(63)]
    found = analyse_positions(table, grid).summary
    assert found["answer"] == "as if shuffled" and found["distance"]["p_value"] > 0.05


def test_random_positions_give_even_p_values():
    found = [analyse_positions(noise((6, 6), seed=seed), (6, 6), seed=seed).summary for seed in range(40)]
    for key in ("distance", "row", "column"):
        p = np.array([one[key]["p_value"] for one in found])
        assert 0.35 < p.mean() < 0.65 and (p <= 0.05).sum() <= 6


def test_similarity_by_distance_alone_shows_no_rows_and_columns():
    """Rows and columns are beyond what distance explains: 0 where distance explains all."""
    found = analyse_positions(isotropic((12, 12)), (12, 12)).summary
    assert found["distance"]["value"] > 0.99
    assert abs(found["row"]["value"]) < 0.001 and abs(found["column"]["value"]) < 0.001


def test_rows_alone_are_told_from_columns():
    rows = np.repeat(noise((7, 1)), 7, axis=0) + 0.1 * noise((7, 7), seed=1)
    found = analyse_positions(rows, (7, 7)).summary
    assert found["row"]["p_value"] == 1 / 200 and found["row"]["value"] > 0.5
    assert found["column"]["value"] < found["column"]["shuffled_interval"][1]


def test_it_is_what_scipy_says():
    grid, table = (4, 6), noise((4, 6))
    found = analyse_positions(table, grid)
    near, similar = [], []
    for i in range(24):
        for j in range(i):
            near.append(-np.hypot(i // 6 - j // 6, i % 6 - j % 6))
            similar.append(table[i] @ table[j] / np.linalg.norm(table[i]) / np.linalg.norm(table[j]))
            assert found.similarity[i // 6, i % 6, j // 6, j % 6] == pytest.approx(similar[-1], abs=1e-6)
    assert found.summary["distance"]["value"] == pytest.approx(spearmanr(near, similar).statistic)
    assert found.summary["similarity_mean"] == pytest.approx(np.mean(similar))
    assert found.summary["similarity_range"] == pytest.approx([min(similar), max(similar)])


def test_rows_against_elsewhere_is_what_a_slow_loop_says():
    grid, table = (5, 6), noise((5, 6))
    similar = cosine(table)
    pairs = GridPairs.over(grid, np.arange(30))
    elsewhere: dict[float, list[float]] = {}
    on_line: list[tuple[float, float]] = []
    for i in range(30):
        for j in range(i):
            down, across = abs(i // 6 - j // 6), abs(i % 6 - j % 6)
            if down and across:
                elsewhere.setdefault(float(np.hypot(down, across)), []).append(similar[i, j])
            elif not down:
                on_line.append((float(across), similar[i, j]))
    knots = sorted(elsewhere)
    means = [np.mean(elsewhere[knot]) for knot in knots]
    inside = [(at, value) for at, value in on_line if knots[0] <= at <= knots[-1]]
    expected = np.mean([value - np.interp(at, knots, means) for at, value in inside])
    weights = line_weights(pairs, pairs.same_row)
    assert weights @ similar[pairs.first, pairs.second] == pytest.approx(expected)
    assert analyse_positions(table, grid).summary["row"]["value"] == pytest.approx(expected)


def test_similarity_by_distance():
    grid, table = (3, 4), noise((3, 4))
    found, similar = analyse_positions(table, grid), cosine(table).reshape(3, 4, 3, 4)
    rows = np.mean([similar[r, c, r, c + 2] for r in range(3) for c in range(2)])
    assert found.by_distance[LINES.index("same row"), 1] == pytest.approx(rows)
    columns = np.mean([similar[0, c, 2, c] for c in range(4)])
    assert found.by_distance[LINES.index("same column"), 1] == pytest.approx(columns)
    assert np.isnan(found.by_distance[LINES.index("same column"), 2])


def test_grids_of_one_row_have_nothing_beside_it():
    found = analyse_positions(noise((1, 8)), (1, 8)).summary
    assert "absent" in found["row"] and "absent" in found["column"] and "value" in found["distance"]
    assert "all alike" in analyse_positions(np.ones((6, 4)), (2, 3)).summary["absent"]
    assert "fewer than 3" in analyse_positions(noise((1, 2)), (1, 2)).summary["absent"]


def test_large_grids_are_sampled():
    found = analyse_positions(sine_cosine((40, 40), 8), (40, 40))
    assert found.summary["num_positions"] == 576 and found.similarity.shape == (40, 40, 40, 40)
    assert found.summary["distance"]["value"] > 0.5


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("organism", 0), ("organism-reg4", 0), ("reference-vit-ti", 1), ("open_clip:ViT-B-32", 1)],
)
def test_a_models_table_is_laid_on_its_grid(name, prefix):
    """What a table adds to a patch is what the row of the table for it says: seen from the outside."""
    weights = "hub" if name.startswith("organism") else "random"
    backbone = backbones.load(name, weights=weights, image_size=(96, 128))
    rows, cols = backbone.layout().grid
    table = patch_positions(backbone)
    assert table.num_prefix == prefix and table.patches.shape == (rows * cols, backbone.width)
    parameter = dict(backbone.module.named_parameters())[backbone.parameter_names("positions")[0]]
    with torch.no_grad():
        flat = parameter.view(-1, parameter.shape[-1])
        flat[len(flat) - rows * cols :] = torch.from_numpy(sine_cosine((rows, cols), backbone.width)).float()
    found = measure_position_similarity(backbone).summary
    assert found["grid"] == [rows, cols] and found["distance"]["p_value"] == 1 / 200
    assert found["resized"] is False and found["prefix_rows_left_out"] == prefix


def test_rotary_models_have_no_table():
    backbone = backbones.load("timm:vit_small_patch16_rope_224", weights="random", image_size=(64, 64))
    found = measure_position_similarity(backbone)
    assert "rotary" in found.summary["absent"] and found.similarity.size == 0


def test_a_resized_table_is_said():
    found = measure_position_similarity(backbones.load("scenes-content", image_size=(48, 48))).summary
    assert found["resized"] and found["native_image_size"] == [32, 32] and "32 x 32 px" in found["note"]
    assert not measure_position_similarity(backbones.load("scenes-content")).summary["resized"]


def test_it_is_read_back():
    found = analyse_positions(noise((3, 4)), (3, 4))
    again = PositionResult.read(found.arrays(), found.summary)
    assert again.summary == found.summary and np.array_equal(again.similarity, found.similarity)
