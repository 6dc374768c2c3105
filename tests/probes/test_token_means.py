"""Means over tokens and differences within images, against sums by hand and a slow bootstrap."""

import numpy as np
import pytest

from vitprobe.errors import ArgumentError
from vitprobe.probes.by_image import REPLICATES, image_weights
from vitprobe.probes.knn import wilson_interval
from vitprobe.probes.token_means import joined, paired_difference, token_mean, token_share


def drawn(number, per_image, *, shift=0.0, seed=0, spread=1.0):
    """Tokens of images that differ from each other far more than tokens of one image do."""
    rng = np.random.default_rng(seed)
    images = np.repeat(np.arange(number), per_image)
    common = np.random.default_rng(77).normal(size=number)[images]
    return images, common + shift + 0.1 * spread * rng.normal(size=len(images))


def test_a_mean_and_its_interval_are_those_of_a_slow_count():
    images, values = np.array([3, 3, 8, 8, 8, 5]), np.array([1.0, 2.0, 0.0, 4.0, 5.0, 6.0])
    found = token_mean((images, values), seed=2)
    weights = {index: image_weights([index], seed=2)[0] for index in (3, 5, 8)}
    replicates = []
    for r in range(REPLICATES):
        own = np.array([weights[image][r] for image in images.tolist()])
        if own.sum():
            replicates.append(np.average(values, weights=own))
    assert found.value == pytest.approx(3.0) and found.num_images == 3
    assert found.interval == pytest.approx(np.quantile(replicates, (0.025, 0.975)))


def test_a_difference_is_within_images_and_needs_both():
    one = np.array([1, 1, 2, 4]), np.array([1.0, 3.0, 5.0, 100.0])
    other = np.array([2, 1, 2, 9]), np.array([1.0, 1.0, 2.0, -100.0])
    found = paired_difference(one, other)
    assert found.value == pytest.approx(((2 - 1) + (5 - 1.5)) / 2) and found.num_images == 2
    none = paired_difference((np.array([1]), np.array([1.0])), (np.array([2]), np.array([1.0])))
    assert none.value is None and none.interval is None and none.num_images == 0


def test_what_images_have_in_common_falls_out():
    one, other, far = drawn(60, 4), drawn(60, 3, seed=1), drawn(60, 4, seed=2, shift=0.2)
    means = [token_mean(values).interval for values in (far, other)]
    assert means[0][0] < means[1][1]  # the means' own intervals overlap
    apart = paired_difference(far, other)
    assert apart.interval[0] > 0.1 and apart.exceeds(0) == "yes"
    low, high = paired_difference(one, other).interval  # and nothing is found where there is nothing
    assert low < 0 < high


def test_intervals_cover_the_truth_as_often_as_they_say():
    hits = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        images = np.repeat(np.arange(40), 5)
        values = (rng.normal(size=40) + 1)[images] + 0.3 * rng.normal(size=200)
        low, high = token_mean((images, values), seed=seed).interval
        hits += low <= 1 <= high
    assert hits >= 50  # 57 are expected, 50 or fewer with probability 0.002


def test_a_share_of_all_or_none_has_an_interval():
    images = np.repeat(np.arange(20), 3)
    assert token_share((images, np.zeros(60))).interval == wilson_interval(0, 20)
    assert token_share((images, np.ones(60))).interval == wilson_interval(20, 20)
    some = images, (np.arange(60) % 3 == 0).astype(float)
    assert token_share(some) == token_mean(some) and token_share(some).value == pytest.approx(1 / 3)


def test_draws_are_joined_and_what_is_no_number_is_refused():
    images, values = joined([(np.array([1, 2]), np.array([True, False])), (np.array([1]), np.array([True]))])
    assert images.tolist() == [1, 2, 1] and token_mean((images, values)).value == pytest.approx(2 / 3)
    for bad in (np.array([1.0, np.nan]), np.array([1.0]), np.zeros((2, 1))):
        with pytest.raises(ArgumentError, match="a finite one of each"):
            token_mean((np.array([0, 1]), bad))
