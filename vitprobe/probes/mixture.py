"""A mixture of two Gaussians fitted to counted values."""

from dataclasses import dataclass

import numpy as np

MIN_SD = 0.03
"""Smallest spread of a component, in octaves (2 %): keeps a component from collapsing on tokens of equal norm."""
TAILS = (0.002, 0.005, 0.01, 0.03, 0.1, 0.3)
"""Shares of the upper tail from which a component starts: a rare mode is found only by a start near it."""


@dataclass(frozen=True)
class Mixture:
    """Hold a Gaussian mixture on a line."""

    weights: np.ndarray
    """(K,) shares, adding up to 1."""
    means: np.ndarray
    """(K,)"""
    sds: np.ndarray
    """(K,)"""
    log_likelihood: float

    def density(self, x: np.ndarray) -> np.ndarray:
        """Evaluate the density at x (n,)."""
        return np.exp(_log_parts(x, self.weights, self.means, self.sds)).sum(axis=0)


def _log_parts(x: np.ndarray, weights: np.ndarray, means: np.ndarray, sds: np.ndarray) -> np.ndarray:
    z = (x[None] - means[:, None]) / sds[:, None]
    with np.errstate(divide="ignore"):
        return np.log(weights)[:, None] - 0.5 * z**2 - np.log(sds * np.sqrt(2 * np.pi))[:, None]  # (K, n)


def _em(x: np.ndarray, w: np.ndarray, parts: np.ndarray, steps: int = 300) -> Mixture:
    """Fit by expectation-maximisation from responsibilities ``parts`` (K, n) of values x (n,) counted w (n,) times."""
    total, before = w.sum(), -np.inf
    for _ in range(steps):
        mass = (parts * w).sum(axis=1) + 1e-12
        means = (parts * w) @ x / mass
        variances = ((parts * w) * (x[None] - means[:, None]) ** 2).sum(axis=1) / mass
        sds = np.sqrt(np.maximum(variances, MIN_SD**2))
        weights = mass / mass.sum()
        logs = _log_parts(x, weights, means, sds)
        peak = logs.max(axis=0)
        norm = peak + np.log(np.exp(logs - peak).sum(axis=0))
        parts = np.exp(logs - norm)
        likelihood = float(w @ norm)
        if likelihood - before < 1e-7 * total:
            break
        before = likelihood
    return Mixture(weights, means, sds, likelihood)


def fit_two(x: np.ndarray, w: np.ndarray) -> Mixture:
    """Fit two components to sorted values x (n,) counted w (n,) times: the likeliest of several deterministic starts.

    Each start gives the upper tail (one of `TAILS`) to one component and the rest to the other.
    """
    rank = (np.cumsum(w) - w / 2) / w.sum()  # (n,) share of values below each
    fits = []
    for tail in TAILS:
        upper = rank > 1 - tail
        if 0 < (w * upper).sum() < w.sum():
            fits.append(_em(x, w, 0.98 * np.stack([~upper, upper]) + 0.01))
    return max(fits, key=lambda m: m.log_likelihood, default=_em(x, w, np.full((2, len(x)), 0.5)))
