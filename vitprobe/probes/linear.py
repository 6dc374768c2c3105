"""Logistic and ridge regression on frozen features: what a linear reader finds in one token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch

from vitprobe.errors import ArgumentError
from vitprobe.probes.knn import wilson_interval
from vitprobe.probes.linear_fit import Fitted, LinearMap, fit_ridges, fit_sklearn, fit_torch, hold_out, parts_of

C_GRID = tuple(10.0**k for k in range(-4, 5))
"""Inverse strengths of the L2 term that are tried, in scikit-learn's sense. Darcet et al. do not publish theirs."""
ALPHA_GRID = tuple(10.0**k for k in range(-4, 7))
"""Strengths of ridge's L2 term that are tried, in scikit-learn's sense."""


@dataclass(frozen=True)
class LogisticResult:
    """Hold how many test tokens a logistic regression has classified rightly."""

    accuracy: float
    interval: tuple[float, float]
    """Wilson's 95 % interval of the accuracy, for test images drawn at random; the training set is taken as given."""
    chance: float
    """Share of test tokens of the training set's most frequent class (the mean over the classes that tie)."""
    c: float
    """Inverse strength of the L2 term that was chosen."""
    held_out: tuple[float, ...]
    """Accuracy on the held-out fifth for each C, in the order of the grid; empty for a grid of one."""
    num_train: int
    num_test: int
    num_classes: int
    converged: bool
    """Whether the final fit has; the fits that chose C are in ``notes``."""
    notes: tuple[str, ...]
    """What the solver has warned of, and a C at the end of the grid."""
    predicted: np.ndarray = field(repr=False, compare=False)
    """(M,) class of each test token."""


@dataclass(frozen=True)
class RidgeResult:
    """Hold the error of a ridge regression to K numbers, and of the constant that knows no features."""

    mse: float
    """Mean squared error over test tokens and targets."""
    l2: float
    """Mean over test tokens of the L2 norm of the error."""
    constant_mse: float
    """The same of the mean of the training targets."""
    constant_l2: float
    alpha: float
    held_out: tuple[float, ...]
    """Mean squared error on the held-out fifth for each alpha; empty for a grid of one."""
    num_train: int
    num_test: int
    num_targets: int
    notes: tuple[str, ...]
    errors: np.ndarray = field(repr=False, compare=False)
    """(M,) L2 norm of the error of each test token."""


@dataclass(frozen=True)
class DrawSpread:
    """Hold the mean and the standard deviation of a number over token draws."""

    mean: float
    std: float
    """Sample standard deviation (n - 1); nan of one draw."""
    num_draws: int


def logistic_probe(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, **options: Any
) -> LogisticResult:
    """Train a logistic regression on features (N, D) with labels (N,), and test it on (M, D) with (M,).

    This is the probe of table 1 of Darcet et al. (arXiv 2309.16588). Features are standardised by the training set's
    mean and standard deviation. C is the best, and of equals the strongest, on a fifth of the training images, held out
    by class; then all are fitted. ``groups`` (N,) names each row's image where one has several rows: they stay
    together. Minimised is mean cross-entropy + |W|² / (2 C N), biases free, by L-BFGS until no gradient is over
    ``tolerance``, or ``max_iter`` steps were taken. ``solver``: ``sklearn`` holds all features in memory; ``torch``
    reads them in parts, on ``device``, with the same objective and stopping rule. A class that only the
    test has counts as wrong. Raises `ArgumentError` for shapes that do not match, features not finite, fewer than two
    classes, none shared, or a grid not over 0.
    """
    return logistic_probes(train, train_labels, [(test, test_labels)], **options)[0]


def logistic_probes(
    train: np.ndarray, train_labels: np.ndarray, tests: Sequence[tuple[np.ndarray, np.ndarray]], **options: Any
) -> list[LogisticResult]:
    """Train as `logistic_probe` does, with its options, and test on several sets: (M, D) features, (M,) labels each."""
    checked = [_matching(train, train_labels, *test, ndim=1) for test in tests]
    if not all(np.isin(test_labels, train_labels).any() for train_labels, test_labels in checked):
        raise ArgumentError("no class of the test tokens is in the training set; give labels of one numbering for both")
    fit = fit_logistic(train, train_labels, **options)
    _, sizes = np.unique(train_labels, return_counts=True)
    found = []
    for (test, _), (_, labels) in zip(tests, checked, strict=True):
        predicted = fit.classes[_classify(fit.map, test, np.arange(len(test)))]
        right = int((predicted == labels).sum())
        result = LogisticResult(
            accuracy=right / len(test),
            interval=wilson_interval(right, len(test)),
            chance=float(np.mean([(labels == one).mean() for one in fit.classes[sizes == sizes.max()]])),
            c=fit.strength,
            held_out=fit.held_out,
            num_train=len(train),
            num_test=len(test),
            num_classes=len(fit.classes),
            converged=fit.converged,
            notes=fit.notes,
            predicted=predicted,
        )
        found.append(result)
    return found


def fit_logistic(
    train: np.ndarray,
    labels: np.ndarray,
    *,
    grid: Sequence[float] = C_GRID,
    seed: int = 0,
    groups: np.ndarray | None = None,
    solver: str = "sklearn",
    device: torch.device | str = "cpu",
    max_iter: int = 1000,
    tolerance: float = 1e-4,
) -> Fitted:
    """Fit what `logistic_probe` tests: C chosen on the held-out fifth, then all rows; finite features (N, D)."""
    grid, groups, labels = _grid(grid, "C"), _groups(groups, len(train)), np.asarray(labels)
    if solver not in ("sklearn", "torch"):
        raise ArgumentError(f"got solver {solver!r}; allowed are sklearn and torch")
    classes, codes = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ArgumentError(f"all {len(train)} training tokens are of one class, {classes[0]}; give two or more")
    fit = partial(fit_torch, device=device) if solver == "torch" else fit_sklearn
    fit = partial(fit, max_iter=max_iter, tolerance=tolerance)
    held_out, notes = _try_each(fit, train, codes, grid, *hold_out(codes, groups, seed)) if len(grid) > 1 else ([], [])
    c = grid[int(np.argmax(held_out))] if held_out else grid[0]
    notes += _at_end("C", c, grid)
    model, converged, said = fit(train, np.arange(len(train)), codes, c)
    notes += [f"C = {c:g}: {text}" for text in said]
    return Fitted(model, classes, c, tuple(held_out), converged, tuple(notes))


def _try_each(
    fit: Callable[..., tuple[LinearMap, bool, list[str]]],
    features: np.ndarray,
    codes: np.ndarray,
    grid: Sequence[float],
    rest: np.ndarray,
    held: np.ndarray,
) -> tuple[list[float], list[str]]:
    """Fit the rest with every C: accuracies on what is held out, and what the solver has said."""
    present, own = np.unique(codes[rest], return_inverse=True)
    if len(present) < 2:
        raise ArgumentError(f"{len(rest)} tokens, without those held out, are of one class; give more, or one C")
    scores, notes = [], []
    for c in grid:
        model, _, said = fit(features, rest, own, c)
        scores.append(float((present[_classify(model, features, held)] == codes[held]).mean()))
        notes += [f"C = {c:g}, to choose it: {text}" for text in said]
    return scores, notes


def ridge_probe(
    train: np.ndarray, train_targets: np.ndarray, test: np.ndarray, test_targets: np.ndarray, **options: Any
) -> RidgeResult:
    """Fit ridge regression from features (N, D) to targets (N, K), and test it on (M, D) and (M, K).

    Minimised is the sum of squared errors + alpha |W|², as scikit-learn's ``Ridge`` does, on standardised features,
    with a free bias; solved exactly from D x D sums, in float64, so that features are read in parts. Alpha is the best,
    and of equals the largest, on a fifth of the images, held out as in `logistic_probe`. Raises `ArgumentError` for
    shapes that do not match, numbers that are not finite, or a grid not over 0.
    """
    return ridge_probes(train, train_targets, [(test, test_targets)], **options)[0]


def ridge_probes(
    train: np.ndarray, train_targets: np.ndarray, tests: Sequence[tuple[np.ndarray, np.ndarray]], **options: Any
) -> list[RidgeResult]:
    """Fit as `ridge_probe` does, with its options, and test on several sets: (M, D) features, (M, K) targets each."""
    checked = [_matching(train, train_targets, *test, ndim=2) for test in tests]
    fit = fit_ridge(train, checked[0][0], **options)
    model, found = fit.map, []
    constant = LinearMap(model.mean, model.std, np.zeros_like(model.weight), model.bias)
    for (test, _), (_, targets) in zip(tests, checked, strict=True):
        squares, constant_squares = (_squares(one, test, targets, np.arange(len(test))) for one in (model, constant))
        result = RidgeResult(
            mse=float(squares.mean() / targets.shape[1]),
            l2=float(np.sqrt(squares).mean()),
            constant_mse=float(constant_squares.mean() / targets.shape[1]),
            constant_l2=float(np.sqrt(constant_squares).mean()),
            alpha=fit.strength,
            held_out=fit.held_out,
            num_train=len(train),
            num_test=len(test),
            num_targets=targets.shape[1],
            notes=fit.notes,
            errors=np.sqrt(squares),
        )
        found.append(result)
    return found


def fit_ridge(
    train: np.ndarray,
    targets: np.ndarray,
    *,
    grid: Sequence[float] = ALPHA_GRID,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> Fitted:
    """Fit what `ridge_probe` tests: alpha chosen on the held-out fifth, then all rows; finite features (N, D)."""
    grid, groups = _grid(grid, "alpha")[::-1], _groups(groups, len(train))
    held_out: list[float] = []
    if len(grid) > 1:
        rest, held = hold_out(np.zeros(len(train), int), groups, seed)
        width = targets.shape[1]
        held_out = [
            float(_squares(model, train, targets, held).mean() / width)
            for model in fit_ridges(train, targets, rest, grid)
        ]
    alpha = grid[int(np.argmin(held_out))] if held_out else grid[0]
    (model,) = fit_ridges(train, targets, np.arange(len(train)), [alpha])
    notes = tuple(_at_end("alpha", alpha, grid))
    return Fitted(model, np.array([]), alpha, tuple(held_out[::-1]), True, notes)


def over_draws(results: Sequence[Any], of: str = "accuracy") -> DrawSpread:
    """Compute mean and standard deviation of one number of results over token draws, as tables 1 and 6 of the paper."""
    if not results:
        raise ArgumentError("got no results; give one for each draw")
    values = [float(getattr(result, of)) for result in results]
    return DrawSpread(fmean(values), stdev(values) if len(values) > 1 else float("nan"), len(values))


def _classify(model: LinearMap, features: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.concatenate([logits.argmax(1) for _, logits in model(features, rows)])


def _squares(model: LinearMap, features: np.ndarray, targets: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Compute the squared error of rows of features, summed over targets: (n,)."""
    return np.concatenate([((found - targets[part]) ** 2).sum(1) for part, found in model(features, rows)])


def _matching(
    train: np.ndarray, train_y: Any, test: np.ndarray, test_y: Any, *, ndim: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return labels or targets as arrays, checked against their features."""
    pairs = []
    for what, x, y in (("training", train, np.asarray(train_y)), ("test", test, np.asarray(test_y))):
        if x.ndim != 2 or not x.size or y.ndim != ndim or len(y) != len(x) or not y.size:
            need = "(N, D) and (N,)" if ndim == 1 else "(N, D) and (N, K)"
            raise ArgumentError(f"got {what} features {x.shape} with {y.shape}; {need} are needed, N at least 1")
        bad = sum(int((~np.isfinite(x[part]).all(1)).sum()) for part in parts_of(np.arange(len(x))))
        bad += int((~np.isfinite(y).all(1)).sum()) if ndim == 2 else 0
        if bad:
            raise ArgumentError(f"{bad} of {len(x)} {what} tokens are not finite; try float32, or check the weights")
        pairs.append(y)
    if train.shape[1] != test.shape[1] or pairs[0].shape[1:] != pairs[1].shape[1:]:
        raise ArgumentError(
            f"got training {train.shape}, {pairs[0].shape} and test {test.shape}, {pairs[1].shape}; widths differ"
        )
    return pairs[0], pairs[1]


def _grid(grid: Sequence[float], name: str) -> tuple[float, ...]:
    if not grid or not all(0 < one < np.inf for one in grid):
        raise ArgumentError(f"got a grid of {name} of {tuple(grid)}; give one number over 0, or several")
    return tuple(sorted({float(one) for one in grid}))


def _groups(groups: np.ndarray | None, number: int) -> np.ndarray:
    groups = np.arange(number) if groups is None else np.asarray(groups)
    if groups.shape != (number,):
        raise ArgumentError(f"got groups {groups.shape} of {number} training tokens; give one for each")
    return groups


def _at_end(name: str, chosen: float, grid: Sequence[float]) -> list[str]:
    if len(grid) > 1 and chosen in (min(grid), max(grid)):
        return [f"{name} = {chosen:g} is the end of its grid; a wider one may do better"]
    return []
