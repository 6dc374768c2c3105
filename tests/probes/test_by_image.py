"""Means over images with their intervals, against slow loops and against what they must cover."""

import numpy as np
import pytest
import torch

from vitprobe.errors import ArgumentError
from vitprobe.probes.by_image import FEWEST, REPLICATES, Estimate, ImageMeans, image_weights, outlier_mask, split_sums
from vitprobe.tokens import TokenLayout

LAYOUT = TokenLayout.prefix_first(has_cls=True, num_registers=2, grid=(2, 3))


def drawn(images, seed=0):
    """Values (B, P) and which patches are outliers, some images without any."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(images, 6)), rng.random((images, 6)) < 0.25


def gathered(values, outliers, splits, *, seed=3):
    parts = []
    for chosen in splits:
        part = ImageMeans(("outliers", "others", "difference"), seed=seed)
        part.add(chosen, split_sums(values[chosen], outliers[chosen]))
        parts.append(part)
    for other in parts[1:]:
        parts[0].merge(other)
    return parts[0]


def test_means_and_intervals_are_those_of_a_loop():
    values, outliers = drawn(12)
    means = gathered(values, outliers, [range(12)])
    weights = [np.random.default_rng((3, i)).poisson(1.0, REPLICATES) for i in range(12)]
    pooled = [v for i in range(12) for v, o in zip(values[i], outliers[i], strict=True) if o]
    one = means.estimate("outliers")
    assert one.value == pytest.approx(np.mean(pooled)) and one.num_images == outliers.any(axis=1).sum() < 12
    repeated = []
    for r in range(REPLICATES):
        top = sum(weights[i][r] * values[i][outliers[i]].sum() for i in range(12))
        bottom = sum(weights[i][r] * outliers[i].sum() for i in range(12))
        repeated += [top / bottom] if bottom else []
    assert one.interval == pytest.approx(tuple(np.quantile(repeated, (0.025, 0.975))))
    both = [i for i in range(12) if 0 < outliers[i].sum() < 6]
    differences = [values[i][outliers[i]].mean() - values[i][~outliers[i]].mean() for i in both]
    assert means.estimate("difference").value == pytest.approx(np.mean(differences))
    assert means.estimate("difference").num_images == len(both)


def test_the_split_of_images_does_not_matter():
    values, outliers = drawn(10)
    whole = gathered(values, outliers, [range(10)])
    parts = gathered(values, outliers, [[7, 2], [9, 0, 1, 3], [8, 4, 5, 6]])
    for name in whole.names:
        one, other = whole.estimate(name), parts.estimate(name)
        assert one.value == pytest.approx(other.value) and one.interval == pytest.approx(other.interval)
    with pytest.raises(ArgumentError, match="seeds"):
        whole.merge(ImageMeans(whole.names, seed=4))


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng, covered = np.random.default_rng(0), 0
    for trial in range(100):
        values = 1.0 + rng.normal(size=(40, 1)) + 0.3 * rng.normal(size=(40, 5))  # patches of an image resemble
        means = ImageMeans(["mean"], seed=trial)
        means.add(range(40), {"mean": (values.sum(axis=1), np.full(40, 5))})
        low, high = means.estimate("mean").interval
        covered += low <= 1.0 <= high
    assert 88 <= covered <= 99


def test_nothing_few_and_enough():
    empty = ImageMeans(["mean"]).estimate("mean")
    assert empty == Estimate(None, None, 0) and empty.exceeds(0) == "not clear"
    one = ImageMeans(["mean"])
    one.add([0], {"mean": (np.array([3.0]), np.array([1]))})
    assert one.estimate("mean") == Estimate(3.0, None, 1)
    sure = (1.0, 2.0)
    assert Estimate(1.5, sure, FEWEST - 1).exceeds(0) == "not clear"
    assert [Estimate(1.5, sure, FEWEST).exceeds(than) for than in (0, 1.5, 3)] == ["yes", "not clear", "no"]


def test_weights_depend_on_seed_and_position_alone():
    weights = image_weights([5, 2, 5], seed=1)
    assert weights.shape == (3, REPLICATES) and (weights[0] == weights[2]).all() and (weights[0] != weights[1]).any()
    assert (image_weights([5], seed=2) != weights[0]).any()
    assert weights.mean() == pytest.approx(1, abs=0.1) and weights.var() == pytest.approx(1, abs=0.15)


def test_outliers_are_patches_at_or_over_the_cutoff():
    norms = torch.arange(18.0).reshape(2, 9)  # CLS and two registers, then patches 3..8 and 12..17
    mask = outlier_mask(norms, LAYOUT, 8.0)
    assert mask.tolist() == [[False] * 5 + [True], [True] * 6]
    assert not outlier_mask(norms, LAYOUT, None).any()
    norms[1, 4] = torch.nan
    with pytest.raises(ArgumentError, match="not finite"):
        outlier_mask(norms, LAYOUT, 8.0)
