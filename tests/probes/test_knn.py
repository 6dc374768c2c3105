"""k nearest neighbours against a brute-force count, on classes that separate and on labels that mean nothing."""

import numpy as np
import pytest
import torch

from vitprobe.errors import ArgumentError
from vitprobe.inputs.loading import ImageBatch
from vitprobe.probes.knn import gather_features, knn_accuracy, wilson_interval


def clouds(number, spread, *, seed, classes=5, width=16):
    """Features around one direction a class, of very different lengths, and their labels."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    labels = rng.integers(0, classes, number)
    features = (centres[labels] + spread * rng.normal(size=(number, width))) * rng.lognormal(0, 2, (number, 1))
    return features.astype(np.float32), labels


def by_hand(bank, bank_labels, queries, query_labels, k, temperature):
    """The protocol in plain loops, in float64."""
    right = 0
    for query, label in zip(queries.astype(float), query_labels, strict=True):
        cosines = [float(query @ b / np.linalg.norm(query) / np.linalg.norm(b)) for b in bank.astype(float)]
        votes = {}
        for i in sorted(range(len(bank)), key=lambda i: -cosines[i])[:k]:
            votes[bank_labels[i]] = votes.get(bank_labels[i], 0.0) + np.exp(cosines[i] / temperature)
        right += max(votes, key=votes.get) == label
    return right / len(queries)


@pytest.mark.parametrize(("k", "temperature"), [(20, 0.07), (1, 0.07), (20, 10.0), (50, 0.02)])
def test_it_agrees_with_plain_loops(k, temperature):
    bank, queries = clouds(120, 1.5, seed=0), clouds(90, 1.5, seed=1)
    found = knn_accuracy(*bank, *queries, k=k, temperature=temperature)
    expected = by_hand(*bank, *queries, k, temperature)
    assert 0.3 < expected < 0.95  # neither too easy nor hopeless, or a wrong vote would not show
    assert found.accuracy == pytest.approx(expected)
    assert (found.num_bank, found.num_queries, found.k) == (120, 90, k)


def test_near_neighbours_weigh_more():
    """One neighbour at cosine 1 against two at 0.8: at the paper's temperature the one wins, at a high one the two."""
    angle = np.arccos(0.8)
    bank = np.array([[1, 0], [np.cos(angle), np.sin(angle)], [np.cos(angle), -np.sin(angle)]], np.float32)
    labels, query = np.array(["near", "far", "far"]), np.array([[3, 0]], np.float32)
    assert knn_accuracy(bank, labels, query, np.array(["near"]), k=3).accuracy == 1
    assert knn_accuracy(bank, labels, query, np.array(["near"]), k=3, temperature=5).accuracy == 0


def test_a_low_temperature_does_not_overflow():
    bank, queries = clouds(60, 0.5, seed=0), clouds(60, 0.5, seed=1)
    low, first = knn_accuracy(*bank, *queries, temperature=1e-4), knn_accuracy(*bank, *queries, k=1)
    assert low.accuracy == first.accuracy


def test_classes_that_separate_are_all_right_and_lengths_do_not_matter():
    bank, queries = clouds(200, 0.05, seed=0), clouds(100, 0.05, seed=1)
    found = knn_accuracy(*bank, *queries)
    assert found.accuracy == 1.0 and found.interval[0] > 0.95 and found.interval[1] == 1.0


def test_labels_that_mean_nothing_are_at_chance():
    (bank, _), (queries, _) = clouds(1000, 0.05, seed=0), clouds(1000, 0.05, seed=1)
    rng = np.random.default_rng(2)
    found = knn_accuracy(bank, rng.integers(0, 10, 1000), queries, rng.integers(0, 10, 1000))
    assert found.interval[0] < found.chance < found.interval[1]
    assert found.chance == pytest.approx(0.1, abs=0.03)


def test_chance_is_the_share_of_the_most_frequent_class():
    (bank, _), (queries, _) = clouds(10, 1, seed=0), clouds(8, 1, seed=1)
    labels = np.array([0] * 6 + [1] * 4)
    assert knn_accuracy(bank, labels, queries, np.array([0, 0, 0, 1, 1, 1, 1, 7])).chance == 3 / 8
    assert knn_accuracy(bank, np.arange(10) % 2, queries, np.array([0] * 6 + [7] * 2)).chance == 3 / 8  # mean of 6, 0


def test_a_small_bank_votes_as_a_whole():
    bank, queries = clouds(7, 0.5, seed=0), clouds(20, 0.5, seed=1)
    found = knn_accuracy(*bank, *queries)
    assert found.k == 7 and found.accuracy == by_hand(*bank, *queries, 7, 0.07)


@pytest.mark.parametrize(("right", "number"), [(0, 10), (3, 10), (10, 10), (817, 1000)])
def test_the_interval_is_wilsons(right, number):
    """Its ends are the shares p at which (right / number - p)^2 = z^2 p (1 - p) / number."""
    for end in wilson_interval(right, number):
        distance, noise = (right / number - end) ** 2, 1.95996398454005**2 * end * (1 - end) / number
        assert distance == pytest.approx(noise, abs=1e-12)
    low, high = wilson_interval(right, number)
    assert 0 <= low <= right / number <= high <= 1 and high - low > 0.01


def test_what_cannot_be_compared_is_refused():
    bank, labels = clouds(30, 1, seed=0)
    queries = bank[:5], labels[:5]
    cases = [
        ((bank, np.zeros(30), *queries), "one class"),
        ((bank, labels[:29], *queries), r"\(30, 16\) with labels \(29,\)"),
        ((bank[:, :8], labels, *queries), "width 8"),
        ((bank[:0], labels[:0], *queries), "N at least 1"),
        ((bank, labels, bank[:5], labels[:5] + 50), "one numbering"),
        ((np.where(np.arange(30)[:, None] == 3, np.nan, bank), labels, *queries), "1 of 30 bank features"),
        ((bank, labels, bank[:5] * np.float32(np.inf), labels[:5]), "5 of 5 query features"),
    ]
    for arguments, says in cases:
        with pytest.raises(ArgumentError, match=says):
            knn_accuracy(*arguments)
    for wrong in ({"k": 0}, {"temperature": 0.0}):
        with pytest.raises(ArgumentError, match="k is 1 or more"):
            knn_accuracy(bank, labels, *queries, **wrong)


def batches(images, size):
    for i in range(0, len(images), size):
        part = images[i : i + size]
        where = tuple(range(100 + i, 100 + i + len(part)))
        yield ImageBatch(tuple(map(str, where)), part, ("",) * len(part), where)


def test_features_come_in_order_in_float32_without_gradients():
    images = torch.rand(7, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(48, 5, generator=torch.Generator().manual_seed(1), requires_grad=True)
    seen = []

    def features(x):
        got = x.flatten(1) @ weight
        seen.append((got.requires_grad, got.dtype))
        return got

    found, indices = gather_features(features, batches(images, 3), "cpu")
    assert found.dtype == np.float32 and indices.tolist() == list(range(100, 107))
    assert found == pytest.approx((images.flatten(1) @ weight).detach().numpy(), abs=1e-6)
    half, _ = gather_features(features, batches(images, 3), torch.device("cpu"), torch.bfloat16)
    assert half.dtype == np.float32 and 0 < np.abs(half - found).max() < 0.1
    assert seen == [(False, torch.float32)] * 3 + [(False, torch.bfloat16)] * 3


def test_features_of_nothing_are_none_and_those_of_a_wrong_shape_are_refused():
    images = torch.rand(2, 3, 4, 4)
    features, indices = gather_features(lambda x: x.flatten(1), [], "cpu")
    assert features.shape == (0, 0) and indices.shape == (0,)
    for wrong in (lambda x: x, lambda x: x.flatten(1).mean(0, keepdim=True)):
        with pytest.raises(ArgumentError, match="are needed"):
            gather_features(wrong, batches(images, 2), "cpu")
