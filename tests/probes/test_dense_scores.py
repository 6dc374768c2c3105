"""Scores of pixels against plain loops over pixels, classes and images."""

from math import sqrt

import numpy as np
import pytest
import torch

from vitprobe.errors import ArgumentError
from vitprobe.probes.by_image import image_weights
from vitprobe.probes.dense_scores import DepthErrors, MaskCounts, confusion_sums, depth_sums, iou, mean_iou

CLASSES = 5


def masks(number, *, seed, void=0.2):
    """Pairs of prediction and truth that often agree; class 3 is in neither, class 4 is predicted alone."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(number):
        truth = rng.integers(0, 3, (6, 9))
        predicted = np.where(rng.random((6, 9)) < 0.6, truth, rng.choice([0, 1, 2, 4], (6, 9)))
        truth[rng.random((6, 9)) < void] = -1
        found.append((predicted, truth))
    return found


def slow(pairs, weights=None):
    """IoU of each class, and pixel accuracy, pixel by pixel."""
    top, bottom, right, number = np.zeros(CLASSES), np.zeros(CLASSES), 0.0, 0.0
    for weight, (predicted, truth) in zip(np.ones(len(pairs)) if weights is None else weights, pairs, strict=True):
        for p, t in zip(predicted.ravel().tolist(), truth.ravel().tolist(), strict=True):
            if t < 0:
                continue
            number += weight
            right += weight * (p == t)
            for c in range(CLASSES):
                top[c] += weight * (p == c and t == c)
                bottom[c] += weight * (p == c or t == c)
    each = [t / b if b else None for t, b in zip(top, bottom, strict=True)]
    there = [one for one in each if one is not None]
    return each, sum(there) / len(there), right / number


def gathered(pairs, *, size=2, seed=0):
    counts = MaskCounts(CLASSES, seed=seed)
    sums = [confusion_sums(torch.from_numpy(p), torch.from_numpy(t), CLASSES) for p, t in pairs]
    for start in range(0, len(pairs), size):
        part = sums[start : start + size]
        counts.add(tuple(range(start, start + len(part))), np.stack(part))
    return counts


def test_scores_agree_with_loops_over_pixels():
    pairs = masks(7, seed=0)
    found, (each, mean, accuracy) = gathered(pairs).score(), slow(pairs)
    assert found.mean_iou == pytest.approx(mean) and found.accuracy == pytest.approx(accuracy)
    assert [None if np.isnan(one) else pytest.approx(one) for one in found.iou] == each
    assert each[3] is None and each[4] == 0 and 0.2 < mean < 0.8
    truth = np.concatenate([t[t >= 0] for _, t in pairs])
    assert found.shares == pytest.approx(np.bincount(truth, minlength=CLASSES) / len(truth))
    assert found.num_images == 7


def test_replicates_are_scores_of_weighted_images():
    pairs = masks(5, seed=1)
    found = gathered(pairs, seed=3).score()
    weights = image_weights(range(5), seed=3)  # (5, R)
    for r in (0, 17, 999):
        assert found.replicates[r] == pytest.approx(slow(pairs, weights[:, r])[1])
    low, high = np.nanquantile(found.replicates, (0.025, 0.975))  # a replicate may have no image
    assert found.mean_iou_interval == pytest.approx((low, high)) and low < found.mean_iou < high
    assert found.iou_intervals[0, 0] < found.iou[0] < found.iou_intervals[0, 1]
    assert np.isnan(found.iou_intervals[3]).all() and found.iou_intervals[4].tolist() == [0, 0]


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """Images whose share of right pixels differs: 60 draws of 30 images each."""
    inside = 0
    for draw in range(60):
        rng = np.random.default_rng(draw)
        truth = torch.from_numpy(rng.integers(0, 2, (30, 40)))
        right = torch.from_numpy(rng.random((30, 40)) < rng.uniform(0.4, 1.0, (30, 1)))
        counts = MaskCounts(2, seed=draw)
        sums = [confusion_sums(torch.where(r, t, 1 - t), t, 2) for r, t in zip(right, truth, strict=True)]
        counts.add(range(30), np.stack(sums))
        low, high = counts.score().accuracy_interval
        inside += low <= 0.7 <= high
    assert 50 <= inside < 60


def test_it_does_not_matter_how_images_are_split():
    pairs = masks(6, seed=2)
    whole, parts = gathered(pairs, size=6), gathered(pairs, size=1)
    assert np.array_equal(whole.sums, parts.sums) and whole.replicates == pytest.approx(parts.replicates)
    first, second = MaskCounts(CLASSES), MaskCounts(CLASSES)
    for i, (p, t) in enumerate(pairs):
        one = confusion_sums(torch.from_numpy(p), torch.from_numpy(t), CLASSES)[None]
        (first if i % 2 else second).add((i,), one)
    first.merge(second)
    assert first.replicates == pytest.approx(whole.replicates) and first.score().mean_iou == whole.score().mean_iou
    for other in (MaskCounts(CLASSES, seed=1), MaskCounts(2)):
        with pytest.raises(ArgumentError, match="cannot be merged"):
            first.merge(other)


def test_void_images_are_left_out_and_one_image_has_no_interval():
    (predicted, truth), *_ = masks(1, seed=4)
    void = np.full_like(truth, -1)
    found = gathered([(predicted, truth), (predicted, void)]).score()
    assert found.num_images == 1 and found.mean_iou_interval is None and np.isnan(found.iou_intervals).all()
    assert found.mean_iou == pytest.approx(slow([(predicted, truth)])[1])
    with pytest.raises(ArgumentError, match="no pixel of the test images has a class"):
        gathered([(predicted, void)]).score()
    assert np.isnan(mean_iou(np.zeros((2, 3)))) and np.isnan(iou(np.zeros((2, 3)))).all()


def test_a_constant_guess_needs_no_second_pass():
    pairs = masks(4, seed=5)
    made, by_hand = gathered(pairs).constant(1), gathered([(np.full_like(p, 1), t) for p, t in pairs])
    assert np.array_equal(made.sums, by_hand.sums) and made.replicates == pytest.approx(by_hand.replicates)
    assert made.score().mean_iou == pytest.approx(by_hand.score().mean_iou)


def test_depth_errors_agree_with_loops_over_pixels():
    rng = np.random.default_rng(0)
    truths = rng.uniform(0.5, 4, (5, 6, 9)).astype(np.float32)
    predicted = (truths * rng.lognormal(0, 0.3, truths.shape)).astype(np.float32)
    truths[rng.random(truths.shape) < 0.3] = np.nan
    truths[2] = np.nan
    errors = DepthErrors()
    sums = np.stack(
        [depth_sums(torch.from_numpy(p), torch.from_numpy(t)) for p, t in zip(predicted, truths, strict=True)]
    )
    errors.add((0, 1), sums[:2])
    errors.add((2, 3, 4), sums[2:])
    rmse, relative, within, every = [], [], [], []
    for p, t in zip(predicted.astype(float), truths.astype(float), strict=True):
        pixels = [(a, b) for a, b in zip(p.ravel(), t.ravel(), strict=True) if b == b]
        if not pixels:
            continue
        squares = [(a - b) ** 2 for a, b in pixels]
        every += squares
        rmse.append(sqrt(sum(squares) / len(squares)))
        relative.append(sum(abs(a - b) / b for a, b in pixels) / len(pixels))
        within.append(sum(max(a / b, b / a) < 1.25 for a, b in pixels) / len(pixels))
    wanted = {"rmse": rmse, "pooled_mse": every, "abs_rel": relative, "delta1": within}
    for name, values in wanted.items():
        found = errors.means.estimate(name)
        assert found.value == pytest.approx(np.mean(values), rel=1e-5) and found.num_images == 4, name
        assert found.interval[0] < found.value < found.interval[1]
    assert 0.3 < np.mean(within) < 0.8
    other = DepthErrors()
    other.add((7,), sums[:1])
    errors.merge(other)
    assert errors.means.estimate("rmse").num_images == 5


def test_right_depths_have_no_error():
    depths = torch.rand(4, 6) + 0.5
    assert depth_sums(depths, depths).tolist() == [0, 0, 0, 1, 24]
