"""Linear maps of standardised features, fitted from features that are read in parts; and the split that chooses one."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vitprobe.errors import ArgumentError

HELD_OUT = 5
"""One image in so many of the training images is kept aside to choose the strength."""
ROWS = 8192
"""Features read at a time."""
CACHED = 2**28
"""Numbers of standardised features (1 GiB) up to which ``solver="torch"`` keeps them on the device."""


@dataclass(frozen=True)
class LinearMap:
    """Map standardised features to K numbers."""

    mean: np.ndarray
    std: np.ndarray
    weight: np.ndarray
    """(K, D)"""
    bias: np.ndarray
    """(K,)"""

    def __call__(self, features: np.ndarray, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Map some rows of features (N, D), a part at a time: the rows (n,), and what they are mapped to, (n, K)."""
        for part in parts_of(rows):
            x = (features[part].astype(np.float64) - self.mean) / self.std  # (n, D)
            yield part, x @ self.weight.T + self.bias


@dataclass(frozen=True)
class Fitted:
    """Hold a linear map that was fitted to all training rows, and how its strength was chosen."""

    map: LinearMap
    """To one logit a class, or to K numbers."""
    classes: np.ndarray
    """(K,) class of each logit, sorted; empty for numbers."""
    strength: float
    """C, or alpha."""
    held_out: tuple[float, ...]
    """Accuracy, or mean squared error, on the held-out fifth for each of the grid; empty for a grid of one."""
    converged: bool
    notes: tuple[str, ...]


def fit_sklearn(
    features: np.ndarray, rows: np.ndarray, codes: np.ndarray, c: float, *, max_iter: int, tolerance: float
) -> tuple[LinearMap, bool, list[str]]:
    """Fit with scikit-learn: the map to one logit a class, whether the solver has converged, and what it has said."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, std = moments(features, rows)
    x = np.empty((len(rows), features.shape[1]), np.float32)
    for start, part in enumerate(parts_of(rows)):
        x[start * ROWS : start * ROWS + len(part)] = (features[part] - mean) / std
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", message="The number of unique classes is greater")  # positions are many
        model = LogisticRegression(C=c, max_iter=max_iter, tol=tolerance).fit(x, codes)
    said = [str(one.message).partition("\n\n")[0] for one in caught]  # after it come addresses of a manual
    said = [" ".join(text.split()) for text in said]
    converged = not any(issubclass(one.category, ConvergenceWarning) for one in caught)
    return _of_classes(mean, std, np.c_[model.coef_, model.intercept_].astype(np.float64)), converged, said


def fit_torch(
    features: np.ndarray,
    rows: np.ndarray,
    codes: np.ndarray,
    c: float,
    *,
    max_iter: int,
    tolerance: float,
    device: torch.device | str,
) -> tuple[LinearMap, bool, list[str]]:
    """Fit as `fit_sklearn` does, reading features in parts; loss and gradient are computed on the device, in float32.

    The optimiser is that of scikit-learn, L-BFGS-B of scipy, with its stopping rules; it runs on the CPU in float64.
    """
    from scipy.optimize import minimize

    mean, std = moments(features, rows)
    width, logits = features.shape[1], codes.max() + 1 if codes.max() > 1 else 1  # two classes share one logit
    y = torch.from_numpy(codes).to(device).split(ROWS)

    def read(part: np.ndarray) -> Tensor:
        return torch.from_numpy(((features[part] - mean) / std).astype(np.float32)).to(device)  # (n, D)

    kept = [read(part) for part in parts_of(rows)] if len(rows) * width <= CACHED else None

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = torch.from_numpy(flat.reshape(logits, width + 1).astype(np.float32)).to(device)
        loss, gradient = 0.0, torch.zeros_like(w)  # (K, D + 1), biases last
        for x, target in zip(kept or map(read, parts_of(rows)), y, strict=True):
            z = torch.addmm(w[:, -1], x, w[:, :-1].T)  # (n, K)
            log_p = torch.log_softmax(z if logits > 1 else torch.cat([torch.zeros_like(z), z], 1), 1)
            loss -= log_p.gather(1, target[:, None]).double().sum().item()
            error = log_p.exp().scatter_add(1, target[:, None], -torch.ones_like(z[:, :1]))[:, -logits:]
            gradient += torch.cat([error.T @ x, error.sum(0)[:, None]], 1)
        weights = flat.reshape(logits, width + 1) * (np.arange(width + 1) < width)
        loss = loss / len(rows) + (weights**2).sum() / (2 * c * len(rows))
        return loss, (gradient.cpu().numpy() / len(rows) + weights / (c * len(rows))).astype(np.float64).ravel()

    stop = {"maxiter": max_iter, "gtol": tolerance, "ftol": 64 * np.finfo(float).eps, "maxls": 50}  # scikit-learn's own
    found = minimize(objective, np.zeros(logits * (width + 1)), jac=True, method="L-BFGS-B", options=stop)
    said = [] if found.success else [f"L-BFGS stopped after {found.nit} iterations: {found.message}"]
    return _of_classes(mean, std, found.x.reshape(logits, width + 1)), bool(found.success), said


def _of_classes(mean: np.ndarray, std: np.ndarray, both: np.ndarray) -> LinearMap:
    """Split weights and biases, (K, D + 1); a single logit is that of the second of two classes."""
    both = both if len(both) > 1 else np.concatenate([np.zeros_like(both), both])
    return LinearMap(mean, std, both[:, :-1], both[:, -1])


def fit_ridges(
    features: np.ndarray, targets: np.ndarray, rows: np.ndarray, grid: Sequence[float]
) -> Iterator[LinearMap]:
    """Solve for every alpha from one eigendecomposition of the D x D sums."""
    mean, std = moments(features, rows)
    bias = sum(targets[part].sum(axis=0, dtype=np.float64) for part in parts_of(rows)) / len(rows)  # (K,)
    gram, cross = np.zeros((len(mean), len(mean))), np.zeros((len(mean), len(bias)))
    for part in parts_of(rows):
        x = (features[part] - mean) / std  # (n, D) float64
        gram += x.T @ x
        cross += x.T @ (targets[part] - bias)
    values, vectors = np.linalg.eigh(gram)
    turned = vectors.T @ cross  # (D, K)
    for alpha in grid:
        yield LinearMap(mean, std, (vectors @ (turned / (values.clip(0) + alpha)[:, None])).T, bias)


def parts_of(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Cut rows into parts of at most `ROWS`."""
    return (rows[i : i + ROWS] for i in range(0, len(rows), ROWS))


def moments(features: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and standard deviation, (D,) float64; the latter is 1 where a feature is constant."""
    first, total, squares = features[rows[0]].astype(np.float64), 0.0, 0.0
    for part in parts_of(rows):
        x = features[part] - first  # so that a constant has a deviation of 0 exactly
        total, squares = total + x.sum(0), squares + (x**2).sum(0)
    mean = total / len(rows)
    std = np.sqrt((squares / len(rows) - mean**2).clip(0))
    return first + mean, np.where(std > 0, std, 1.0)


def hold_out(codes: np.ndarray, groups: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split rows into those to fit and those held out, whole groups, by class of a group's first row.

    Groups are laid out class by class, in random order within a class, and every fifth is held out, so that each class
    gives its share to within one; the only group of a class is never held out.
    """
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    label, rng = codes[first], np.random.default_rng(seed)
    order = np.lexsort((rng.random(len(first)), label))
    held = np.zeros(len(first), bool)
    held[order[rng.integers(HELD_OUT) :: HELD_OUT]] = True
    held &= np.bincount(label)[label] > 1
    if not held.any():
        raise ArgumentError(
            f"got {len(first)} training images, too few to hold some out; give {HELD_OUT} a class, or one strength"
        )
    return np.flatnonzero(~held[group]), np.flatnonzero(held[group])
