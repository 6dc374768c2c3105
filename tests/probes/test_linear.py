"""Logistic and ridge regression on features that carry the answer, on noise, and against scikit-learn by hand."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from vitprobe.errors import ArgumentError
from vitprobe.probes import linear_fit
from vitprobe.probes.linear import C_GRID, logistic_probe, logistic_probes, over_draws, ridge_probe, ridge_probes
from vitprobe.probes.linear_fit import fit_ridges, fit_sklearn, fit_torch, hold_out


def clouds(number, spread, *, seed, classes=4, width=12):
    """Classes around a point each, on features of very different size and offset, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, number)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    scale = np.random.default_rng(98).lognormal(0, 2, width)
    features = (centres[labels] + spread * rng.normal(size=(number, width))) * scale + 10 * scale
    return features.astype(np.float32), labels


def probabilities(model, features):
    logits = np.concatenate([z for _, z in model(features, np.arange(len(features)))])
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("solver", ["sklearn", "torch"])
def test_features_that_carry_the_label_are_read(solver):
    (train, labels), (test, wanted) = clouds(300, 0.05, seed=0), clouds(200, 0.05, seed=1)
    names = np.array(["cat", "dog", "owl", "rat"])
    found = logistic_probe(train, names[labels], test, names[wanted], solver=solver)
    assert found.accuracy == 1.0 and found.interval[0] > 0.98 and found.predicted.tolist() == names[wanted].tolist()
    assert found.converged and (found.num_train, found.num_test, found.num_classes) == (300, 200, 4)


@pytest.mark.parametrize("solver", ["sklearn", "torch"])
def test_noise_is_at_chance(solver):
    rng = np.random.default_rng(3)
    train, test = rng.normal(size=(400, 8)).astype(np.float32), rng.normal(size=(1000, 8)).astype(np.float32)
    found = logistic_probe(train, np.arange(400) % 5, test, np.arange(1000) % 5, solver=solver)
    assert found.chance == pytest.approx(0.2)
    assert found.interval[0] < 0.2 < found.interval[1]


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("c", [0.01, 1.0])
@pytest.mark.parametrize("fit", [fit_sklearn, fit_torch])
def test_both_solvers_are_scikit_learns_pipeline(fit, c, classes, monkeypatch):
    """Against StandardScaler and LogisticRegression in float64, on classes that overlap, with features in parts."""
    monkeypatch.setattr(linear_fit, "ROWS", 37)
    (train, labels), (test, _) = clouds(200, 1.5, seed=0, classes=classes), clouds(100, 1.5, seed=1)
    scaler = StandardScaler().fit(train.astype(float))
    own = LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(scaler.transform(train.astype(float)), labels)
    expected = own.predict_proba(scaler.transform(test.astype(float)))
    assert 0.02 < np.abs(expected - 1 / classes).mean() < 0.45  # neither flat nor saturated
    for cached in [0, 2**28] if fit is fit_torch else [0]:
        monkeypatch.setattr(linear_fit, "CACHED", cached)
        options = {"max_iter": 1000, "tolerance": 1e-6} | ({"device": "cpu"} if fit is fit_torch else {})
        model, converged, said = fit(train, np.arange(200), labels, c, **options)
        assert converged and said == []
        assert probabilities(model, test) == pytest.approx(expected, abs=1e-3)
        shifted, _, _ = fit(train, np.arange(200), labels, 3 * c, **options)  # another C is seen
        assert np.abs(probabilities(shifted, test) - expected).max() > 5e-3


def test_solvers_agree_at_the_usual_tolerance():
    (train, labels), (test, wanted) = clouds(400, 2.0, seed=0), clouds(300, 2.0, seed=1)
    found = [logistic_probe(train, labels, test, wanted, solver=s) for s in ("sklearn", "torch")]
    assert found[0].c == found[1].c and 0.4 < found[0].accuracy < 0.95
    assert (found[0].predicted == found[1].predicted).mean() > 0.99
    assert found[0].held_out == pytest.approx(found[1].held_out, abs=0.02)


def test_c_is_chosen_on_the_held_out_fifth():
    """One feature that tells beside 60 of noise: a weak L2 term fits the noise."""
    rng = np.random.default_rng(5)
    labels, wanted = np.arange(100) % 2, np.arange(400) % 2
    train, test = (
        np.c_[2 * y - 1 + rng.normal(size=len(y)), 0.8 * rng.normal(size=(len(y), 60))].astype(np.float32)
        for y in (labels, wanted)
    )
    found = logistic_probe(train, labels, test, wanted, seed=1)
    rest, held = hold_out(labels, np.arange(100), 1)
    scores = []
    for c in C_GRID:
        scaler = StandardScaler().fit(train[rest].astype(float))
        own = LogisticRegression(C=c, max_iter=1000).fit(scaler.transform(train[rest].astype(float)), labels[rest])
        scores.append(own.score(scaler.transform(train[held].astype(float)), labels[held]))
    assert found.held_out == pytest.approx(scores) and len(set(scores)) > 1
    assert found.c == C_GRID[int(np.argmax(scores))]
    assert logistic_probe(train, labels, test, wanted, grid=(0.3,)).held_out == ()


def test_a_fifth_of_each_class_is_held_out_and_images_stay_whole():
    codes = np.repeat([0, 1, 2, 3], [50, 25, 1, 24])
    rest, held = hold_out(codes, np.arange(100), 0)
    assert sorted([*rest, *held]) == list(range(100)) and 19 <= len(held) <= 20
    shares = np.bincount(codes[held], minlength=4)
    assert np.abs(shares - np.array([10, 5, 0, 4.8])).max() <= 1 and shares[2] == 0
    assert hold_out(codes, np.arange(100), 1)[1].tolist() != held.tolist()
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(20), 5))
    rest, held = hold_out(codes, groups, 0)
    assert not set(groups[rest]) & set(groups[held]) and len(set(groups[held])) == 4


def test_groups_keep_an_image_from_choosing_by_its_own_copy():
    """Twenty rows an image, noise that names the image: held out row by row it seems to tell the label, else not."""
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(30), 20)
    features = (np.eye(30)[image] + 0.1 * rng.normal(size=(600, 30))).astype(np.float32)
    labels = rng.integers(0, 2, 30)[image]
    test = rng.normal(size=(50, 30)).astype(np.float32), np.arange(50) % 2
    rows, whole = (logistic_probe(features, labels, *test, groups=g) for g in (None, image))
    assert max(rows.held_out) > 0.95 and max(whole.held_out) < 0.8


def test_a_solver_that_stops_early_says_so():
    (train, labels), (test, wanted) = clouds(200, 1.0, seed=0), clouds(100, 1.0, seed=1)
    for solver in ("sklearn", "torch"):
        found = logistic_probe(train, labels, test, wanted, solver=solver, max_iter=2, grid=(0.1, 1.0))
        assert not found.converged
        assert any(note.startswith("C = 0.1, to choose it: ") for note in found.notes)
        assert any("limit" in note.lower() or "iterations" in note.lower() for note in found.notes)
        assert all("\n" not in note for note in found.notes)


def test_a_class_that_is_held_out_whole_leaves_the_others_their_names():
    """Ten images of four rows, the first of a class that all share, the others of one that goes with its image."""
    image = np.repeat(np.arange(10), 4)
    labels = np.where(np.arange(40) % 4 == 0, 99, image)
    features = np.eye(100)[labels].astype(np.float32)
    for solver in ("sklearn", "torch"):
        found = logistic_probe(features, labels, features, labels, groups=image, grid=(1.0, 2.0), solver=solver)
        assert found.held_out == (0.25, 0.25) and found.accuracy == 1.0


def test_a_strength_at_the_end_of_the_grid_is_noted():
    (train, labels), (test, wanted) = clouds(200, 0.05, seed=0), clouds(100, 0.05, seed=1)
    found = logistic_probe(train, labels, test, wanted, grid=(10.0, 1.0))  # both are right, so the stronger
    assert found.c == 1.0 and found.notes == ("C = 1 is the end of its grid; a wider one may do better",)
    assert logistic_probe(train, labels, test, wanted, grid=(1.0,)).notes == ()


def test_constant_features_and_unseen_classes_do_no_harm():
    (train, labels), (test, wanted) = clouds(200, 0.05, seed=0), clouds(100, 0.05, seed=1)
    train[:, 3] = test[:, 3] = 7.3
    wanted = np.where(np.arange(100) < 10, 77, wanted)
    found = logistic_probe(train, labels, test, wanted)
    assert found.accuracy == 0.9


@pytest.mark.parametrize("alpha", [1e-3, 10.0, 1e4])
def test_ridge_is_scikit_learns(alpha, monkeypatch):
    monkeypatch.setattr(linear_fit, "ROWS", 41)
    rng = np.random.default_rng(0)
    (train, _), (test, _) = clouds(150, 1, seed=0), clouds(60, 1, seed=1)
    targets = rng.normal(size=(150, 3)) + train[:, :3] + 5
    scaler = StandardScaler().fit(train.astype(float))
    own = Ridge(alpha).fit(scaler.transform(train.astype(float)), targets)
    expected = own.predict(scaler.transform(test.astype(float)))
    (model,) = fit_ridges(train, targets, np.arange(150), [alpha])
    got = np.concatenate([z for _, z in model(test, np.arange(60))])
    assert got == pytest.approx(expected, rel=1e-6)
    wanted = rng.normal(size=(60, 3))
    found = ridge_probe(train, targets, test, wanted, grid=(alpha,))
    assert found.mse == pytest.approx(((expected - wanted) ** 2).mean())
    assert found.l2 == pytest.approx(np.linalg.norm(expected - wanted, axis=1).mean())
    assert found.constant_mse == pytest.approx(((targets.mean(0) - wanted) ** 2).mean())
    assert found.constant_l2 == pytest.approx(np.linalg.norm(targets.mean(0) - wanted, axis=1).mean())


def test_ridge_reads_what_is_there_and_nothing_from_noise():
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(400, 10)).astype(np.float32), rng.normal(size=(300, 10)).astype(np.float32)
    mixing = rng.normal(size=(10, 4))
    found = ridge_probe(train, train @ mixing + 3, test, test @ mixing + 3)
    assert found.mse < 1e-9 * found.constant_mse and found.alpha == 1e-4
    noise = ridge_probe(train, rng.normal(size=(400, 4)), test, rng.normal(size=(300, 4)))
    assert noise.mse == pytest.approx(noise.constant_mse, rel=0.03) and noise.alpha >= 100
    assert (noise.num_train, noise.num_test, noise.num_targets, len(noise.held_out)) == (400, 300, 4, 11)


def test_alpha_is_chosen_on_the_held_out_fifth():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(60, 30)).astype(np.float32)
    y = x[:, :2] + 2 * rng.normal(size=(60, 2))
    found = ridge_probe(x, y, x, y, grid=(1e3, 1.0, 30.0), seed=4)
    rest, held = hold_out(np.zeros(60, int), np.arange(60), 4)
    scaler = StandardScaler().fit(x[rest].astype(float))
    fits = [Ridge(alpha).fit(scaler.transform(x[rest].astype(float)), y[rest]) for alpha in (1.0, 30.0, 1e3)]
    scores = [((fit.predict(scaler.transform(x[held].astype(float))) - y[held]) ** 2).mean() for fit in fits]
    assert found.held_out == pytest.approx(scores) and found.alpha == (1.0, 30.0, 1e3)[int(np.argmin(scores))]
    blank = ridge_probe(0 * x, y, x, y)  # every alpha does the same
    assert blank.alpha == 1e6 and blank.notes == ("alpha = 1e+06 is the end of its grid; a wider one may do better",)


def test_over_draws_is_mean_and_sample_deviation():
    (train, labels), (test, wanted) = clouds(100, 1.5, seed=0), clouds(100, 1.5, seed=1)
    results = [logistic_probe(train, labels, test[i::3], wanted[i::3], grid=(0.1,)) for i in range(3)]
    values = [r.accuracy for r in results]
    spread = over_draws(results)
    assert spread.mean == pytest.approx(np.mean(values)) and spread.std == pytest.approx(np.std(values, ddof=1))
    assert spread.std > 0 and spread.num_draws == 3
    one = over_draws(results[:1], of="chance")
    assert one.mean == results[0].chance and np.isnan(one.std)
    with pytest.raises(ArgumentError, match="one for each draw"):
        over_draws([])


def test_what_cannot_be_fitted_is_refused_in_one_line():
    (x, y), (test, wanted) = clouds(40, 1, seed=0), clouds(10, 1, seed=1)
    nan = np.where(np.arange(40)[:, None] == 3, np.float32(np.nan), x)
    cases = [
        (logistic_probe, (x, y[:39], test, wanted), {}, r"training features \(40, 12\) with \(39,\)"),
        (logistic_probe, (x, y, test[:, :5], wanted), {}, "widths differ"),
        (logistic_probe, (x[:0], y[:0], test, wanted), {}, "N at least 1"),
        (logistic_probe, (nan, y, test, wanted), {}, "1 of 40 training tokens are not finite"),
        (logistic_probe, (x, y * 0, test, wanted), {}, "one class, 0"),
        (logistic_probe, (x, y, test, wanted + 9), {}, "one numbering"),
        (logistic_probe, (x, y, test, wanted), {"solver": "lbfgs"}, "sklearn and torch"),
        (logistic_probe, (x, y, test, wanted), {"grid": ()}, "a grid of C"),
        (logistic_probe, (x, y, test, wanted), {"grid": (0.0, 1.0)}, "over 0"),
        (logistic_probe, (x, y, test, wanted), {"groups": y[:5]}, "one for each"),
        (logistic_probe, (x[:2], np.arange(2), test, wanted), {}, "too few to hold some out"),
        (ridge_probe, (x, y, test, wanted), {}, r"\(N, D\) and \(N, K\)"),
        (ridge_probe, (x, x * np.inf, test, test), {}, "40 of 40 training tokens are not finite"),
        (ridge_probe, (x, x, test, test[:, :3]), {}, "widths differ"),
        (ridge_probe, (x, x, test, test), {"grid": (-1.0,)}, "a grid of alpha"),
    ]
    for probe, arguments, options, says in cases:
        with pytest.raises(ArgumentError, match=says) as caught:
            probe(*arguments, **options)
        assert "\n" not in str(caught.value)


def test_one_fit_is_tested_on_several_sets():
    (train, labels), first, second = clouds(200, 1.0, seed=0), clouds(80, 1.0, seed=1), clouds(60, 4.0, seed=2)
    both = logistic_probes(train, labels, [first, second], grid=(0.1,))
    assert both == [logistic_probe(train, labels, *one, grid=(0.1,)) for one in (first, second)]
    assert both[0].accuracy > both[1].accuracy + 0.1
    targets = [np.c_[y, -y].astype(float) for _, y in (first, second)]
    tests = [(first[0], targets[0]), (second[0], targets[1])]
    own = Ridge(alpha=10.0).fit((train - train.mean(0)) / train.std(0), np.c_[labels, -labels])
    for found, (x, y) in zip(ridge_probes(train, np.c_[labels, -labels], tests, grid=(10.0,)), tests, strict=True):
        expected = np.linalg.norm(own.predict((x - train.mean(0)) / train.std(0)) - y, axis=1)
        assert found.errors == pytest.approx(expected, abs=1e-5) and found.l2 == pytest.approx(expected.mean())
