"""Calibration errors against plain loops, on confidences of a known gap, and on labels that agree with them exactly."""

import json

import numpy as np
import pytest
import torch

from vitprobe.errors import ArgumentError
from vitprobe.probes.reliability import (
    BINS,
    Reliability,
    fit_temperature,
    measure_reliability,
    real_accuracy,
    softmax,
)
from vitprobe.results import to_json


def made(number, gap=0.0, *, classes=10, seed=0, low=0.2, high=0.999):
    """Probabilities whose prediction is right by its confidence less `gap`, and labels."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(low, high, number)
    top = rng.integers(0, classes, number)
    probabilities = np.repeat((1 - confidence)[:, None] / (classes - 1), classes, axis=1)
    probabilities[np.arange(number), top] = confidence
    right = rng.random(number) < np.clip(confidence - gap, 0, 1)
    return probabilities, np.where(right, top, (top + rng.integers(1, classes, number)) % classes)


def by_hand(probabilities, labels, edges):
    """Every number in plain loops: bins as (count, confidence, accuracy), ECE, MCE, NLL, Brier score."""
    bins = [[] for _ in edges[1:]]
    nll = brier = 0.0
    for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
        confidence = max(row)
        at = next(i for i, upper in enumerate(edges[1:]) if confidence <= upper)
        bins[at].append((confidence, row.index(confidence) == label))
        nll -= np.log(row[label])
        brier += sum((p - (k == label)) ** 2 for k, p in enumerate(row))
    means = [(len(b), *np.mean(b, axis=0)) if b else (0, np.nan, np.nan) for b in bins]
    gaps = [(n, abs(a - c)) for n, c, a in means if n]
    number = len(labels)
    return means, sum(n * g for n, g in gaps) / number, max(g for _, g in gaps), nll / number, brier / number


@pytest.mark.parametrize("bins", [1, 7, BINS])
def test_numbers_agree_with_plain_loops(bins):
    probabilities, labels = made(400, 0.1)
    found = measure_reliability(probabilities, labels, bins=bins, num_draws=100)
    means, ece, mce, nll, brier = by_hand(probabilities, labels, [i / bins for i in range(bins + 1)])
    assert (found.ece, found.mce, found.nll, found.brier) == pytest.approx((ece, mce, nll, brier))
    assert found.accuracy == np.mean(probabilities.argmax(1) == labels)
    shown = np.stack([found.counts, found.confidence, found.bin_accuracy], axis=1)
    np.testing.assert_allclose(shown, means)
    worst = max(range(bins), key=lambda i: np.nan_to_num(abs(means[i][2] - means[i][1])))
    assert found.summary["mce_num_images"] == means[worst][0]
    _, by_mass, *_ = by_hand(probabilities, labels, found.mass_edges.tolist())
    assert found.ece_mass == pytest.approx(by_mass)
    assert len(found.mass_counts) == bins and np.ptp(found.mass_counts) <= 1


def test_a_bin_holds_its_upper_edge_and_ties_stay_together():
    confidence = np.array([0.5, 0.5, 0.5, 0.75, 1.0, 1.0])
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    labels = np.zeros(6, int)
    found = measure_reliability(probabilities, labels, bins=4, num_draws=100)
    assert found.counts.tolist() == [0, 3, 1, 2]
    assert found.mass_edges.tolist() == [0, 0.5, 0.75, 1] and found.mass_counts.tolist() == [3, 1, 2]
    order = np.array([5, 3, 0, 2, 4, 1])
    mixed = np.array([0, 1, 0, 0, 1, 0])
    here, there = (measure_reliability(probabilities[at], mixed[at], bins=4, num_draws=100) for at in (order, ...))
    assert here.ece_mass == there.ece_mass


def outside_band(found):
    """Which bins that hold images have another accuracy than labels drawn from the model's probabilities."""
    some = found.counts > 0
    low, high = found.band[some].T
    return (found.bin_accuracy[some] < low) | (found.bin_accuracy[some] > high)


@pytest.mark.parametrize("gap", [0.05, 0.2, -0.1])
def test_a_known_gap_is_found(gap):
    """Positive control: the error of confidences that are off by the same amount everywhere is that amount."""
    found = measure_reliability(*made(4000, gap, low=0.3, high=0.85), num_draws=300)
    assert found.ece == pytest.approx(abs(gap), abs=0.02) and found.ece_mass == pytest.approx(abs(gap), abs=0.02)
    assert found.summary["overconfidence"] == pytest.approx(gap, abs=0.02)
    for name, interval in (("ece", found.ece_ci), ("ece_mass", found.ece_mass_ci)):
        assert found.summary[name]["exceeds_calibrated"] == "yes"
        assert found.summary[name]["calibrated_most"] < interval[0] < abs(gap) < interval[1] < abs(gap) + 0.04
    assert outside_band(found).mean() > 0.5


def test_labels_that_agree_exceed_the_calibrated_seldom():
    """Negative control: in 1 of 20 sets of labels drawn from the model's own probabilities, as the quantile says."""
    counts, outside = {"ece": 0, "ece_mass": 0}, []
    for seed in range(100):
        found = measure_reliability(*made(300, seed=seed), num_draws=200, seed=seed)
        for name in counts:
            counts[name] += found.summary[name]["exceeds_calibrated"] == "yes"
        outside += outside_band(found).tolist()
    assert 0.02 < np.mean(outside) < 0.06  # 0.05 and a little less, as accuracies come in steps
    assert max(counts.values()) <= 12  # 5 are expected; 13 or more have a chance of 0.1 %
    assert found.ece > 0.02 and found.summary["ece"]["calibrated_mean"] > 0.02  # though nothing is wrong


def test_the_control_is_what_redrawn_labels_show():
    probabilities, labels = made(200, 0.3, classes=4, low=0.3)
    found = measure_reliability(probabilities, labels, num_draws=2000).summary
    rng = np.random.default_rng(9)
    errors = {"ece": [], "ece_mass": []}
    for _ in range(150):
        drawn = np.array([rng.choice(4, p=row) for row in probabilities])
        again = measure_reliability(probabilities, drawn, num_draws=100)
        errors["ece"].append(again.ece)
        errors["ece_mass"].append(again.ece_mass)
    for name, values in errors.items():
        assert found[name]["calibrated_mean"] == pytest.approx(np.mean(values), abs=4 * np.std(values) / np.sqrt(150))
        assert found[name]["calibrated_most"] == pytest.approx(np.quantile(values, 0.95), rel=0.15)


def test_the_interval_is_that_of_images_drawn_again():
    probabilities, labels = made(500, 0.15)
    found = measure_reliability(probabilities, labels, num_draws=2000)
    rng = np.random.default_rng(1)
    edges = [i / BINS for i in range(BINS + 1)]
    drawn = (rng.integers(0, 500, 500) for _ in range(300))
    errors = [by_hand(probabilities[at], labels[at], edges)[1] for at in drawn]
    ends = np.quantile(errors, (0.025, 0.975))
    assert found.summary["ece"]["percentile_interval"] == pytest.approx(tuple(ends), abs=0.012)
    shifted = ends - np.mean(errors) + found.ece
    assert found.ece_ci == pytest.approx(tuple(shifted), abs=0.012)


def test_the_interval_holds_the_error_of_a_calibrated_model_and_the_plain_percentiles_may_not():
    outside = 0
    for seed in range(20):
        found = measure_reliability(*made(300, seed=seed), num_draws=200)
        for name in ("ece", "ece_mass"):
            low, high = found.summary[name]["interval"]
            assert low < found.summary[name]["value"] < high
            outside += found.summary[name]["value"] < found.summary[name]["percentile_interval"][0]
    assert outside > 0


def test_too_few_wrong_images_are_told():
    """All right: no draw from them has a wrong one, so the interval leaves out the error 0 that the model has."""
    sure = np.full((100, 2), [0.97, 0.03])
    for wrong, too_few in ((0, True), (5, True), (6, False), (94, False), (95, True)):
        labels = (np.arange(100) < wrong).astype(int)
        found = measure_reliability(sure, labels, num_draws=200)
        assert found.summary["too_few"] == too_few
        if wrong == 0:
            assert found.ece_ci == pytest.approx((0.03, 0.03))


def test_draws_do_not_depend_on_anything_but_the_seed():
    data = made(3000, 0.02)
    first, same, other = (measure_reliability(*data, num_draws=100, seed=seed).summary for seed in (3, 3, 4))
    assert first == same and first["ece"]["interval"] != other["ece"]["interval"]


def test_a_result_goes_through_json_and_back():
    found = measure_reliability(*made(60), num_draws=100)
    again = Reliability.read(found.arrays(), json.loads(to_json(found.summary)))
    assert (again.ece, again.ece_ci, again.accuracy_ci) == (found.ece, found.ece_ci, found.accuracy_ci)
    assert again.arrays().keys() == found.arrays().keys() and len(found.arrays()) == 9
    for name, values in found.arrays().items():
        np.testing.assert_array_equal(values, again.arrays()[name])


def test_vanished_probabilities_are_counted_and_bounded():
    probabilities = np.array([[1, 0], [1, 0], [0.5, 0.5]], np.float32)
    found = measure_reliability(probabilities, np.array([0, 1, 1]), num_draws=100)
    assert found.summary["num_vanished"] == 1 and found.nll == pytest.approx((87.3365 + np.log(2)) / 3, abs=1e-3)
    assert found.accuracy == 1 / 3  # of two classes alike the lower is the prediction


def test_what_is_no_probability_is_refused():
    good, labels = made(20)
    cases = [
        ((good * 1.01, labels), "20 of 20 images do not sum to 1"),
        ((np.where(np.arange(20)[:, None] == 3, np.nan, good), labels), "1 of 20 images are not finite"),
        ((np.log(good), labels), "give a softmax"),
        ((good[0], labels), r"got \(10,\) numbers"),
        ((good[:, :1], labels), "K at least 2"),
        ((good, labels[:5]), r"labels \(5,\)"),
        ((good[:0], labels[:0]), "N at least 1"),
        ((good, labels + 1 - labels.min()), "0 to 9"),
        ((good, labels.astype(float)), "labels of float64"),
    ]
    for arguments, says in cases:
        with pytest.raises(ArgumentError, match=says) as error:
            measure_reliability(*arguments)
        assert "\n" not in str(error.value)
    for wrong in ({"bins": 0}, {"num_draws": 10}):
        with pytest.raises(ArgumentError, match="100 draws or more"):
            measure_reliability(good, labels, **wrong)


def logits_of(number, temperature, *, seed=0):
    """Logits that are `temperature` times too large, and labels drawn from those of the right size."""
    rng = np.random.default_rng(seed)
    right = rng.normal(size=(number, 6)) * 2
    labels = np.array([rng.choice(6, p=row) for row in softmax(right)])
    return right * temperature, labels


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_is_that_of_a_gradient_descent_and_repairs_the_error(temperature):
    logits, labels = logits_of(3000, temperature)
    found = fit_temperature(logits, labels)
    log = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log], max_iter=200, line_search_fn="strong_wolfe")
    inputs, targets = torch.from_numpy(logits), torch.from_numpy(labels)

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(inputs / log.exp(), targets)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert found == pytest.approx(float(log.exp().detach()), rel=1e-4)
    assert found == pytest.approx(temperature, rel=0.1)
    held_out = logits_of(3000, temperature, seed=1)
    raw, scaled = (measure_reliability(softmax(held_out[0], temperature=t), held_out[1]) for t in (1, found))
    assert raw.accuracy == scaled.accuracy and scaled.summary["ece"]["exceeds_calibrated"] == "no"
    assert temperature == 1 or raw.summary["ece"]["exceeds_calibrated"] == "yes"


def test_there_may_be_no_temperature():
    logits, labels = logits_of(50, 1)
    best = logits.argmax(axis=1)
    assert fit_temperature(logits, best) is None  # all right: the surer the better
    assert fit_temperature(logits, logits.argmin(axis=1)) is None  # never right: nothing is best
    assert fit_temperature(np.zeros_like(logits), labels) is None
    for wrong, says in (((logits[:5], labels), "labels"), ((logits * np.inf, labels), "finite numbers")):
        with pytest.raises(ArgumentError, match=says):
            fit_temperature(*wrong)
    with pytest.raises(ArgumentError, match="give one over 0"):
        softmax(logits, temperature=0)


def test_softmax_is_torchs_and_does_not_overflow():
    logits = np.array([[1e4, 0, -1e4], [1, 2, 3]])
    expected = torch.softmax(torch.from_numpy(logits) / 2, dim=1).numpy()
    np.testing.assert_allclose(softmax(logits, temperature=2), expected)


def test_real_accuracy_leaves_out_images_that_no_class_fits():
    real = [frozenset({1, 2}), frozenset(), None, frozenset({7}), frozenset({0})]
    accuracy, interval, number = real_accuracy(np.array([2, 1, 1, 3, 0]), real)
    assert (accuracy, number) == (2 / 3, 3) and interval[0] < 2 / 3 < interval[1]
    for wrong, says in (
        ((np.array([1]), real), "5 sets"),
        ((np.array([1, 2]), [None, frozenset()]), "none of 2 images"),
        ((np.ones(5), real), "float64"),
    ):
        with pytest.raises(ArgumentError, match=says):
            real_accuracy(*wrong)
