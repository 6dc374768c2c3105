"""What probes share that set outlier patches beside the others: which they are, means and intervals over images."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from vitprobe.errors import ArgumentError
from vitprobe.tokens import TokenLayout

REPLICATES = 1000
"""Bootstrap replicates. In each an image has a Poisson(1) weight, drawn from its position in the source: they merge."""
METHOD = f"95 % percentile interval of {REPLICATES} Poisson bootstrap replicates over images"
FEWEST = 6
"""Fewest images that decide anything: of 5, even all on one side are by chance in 1 of 16 cases (a sign test)."""
NO_OUTLIERS = "no outliers: nothing to compare"


@dataclass(frozen=True)
class Estimate:
    """Hold a mean with its interval; None where there is nothing to average, or fewer than two images."""

    value: float | None
    interval: tuple[float, float] | None
    """95 %, by `METHOD`."""
    num_images: int
    """Images that contributed."""

    def as_dict(self) -> dict[str, Any]:
        """Return the estimate as JSON can hold it."""
        return asdict(self)

    def exceeds(self, other: float) -> str:
        """Answer whether the mean is over a number: ``yes``, ``no`` (it is under it), or ``not clear``.

        It is clear where the whole interval lies on one side, and at least `FEWEST` images contributed.
        """
        if self.interval is None or self.num_images < FEWEST or self.interval[0] <= other <= self.interval[1]:
            return "not clear"
        return "yes" if self.interval[0] > other else "no"


def outlier_mask(norms: Tensor, layout: TokenLayout, cutoff: float | None) -> np.ndarray:
    """Tell which patches are outliers, norm at or over the cutoff: norms (B, T) -> (B, P) bool; none without a cutoff.

    Raises `ArgumentError` for norms that are not finite.
    """
    found = norms[:, layout.patches].cpu().numpy()  # (B, P)
    if bad := int((~np.isfinite(found)).sum()):
        raise ArgumentError(f"{bad} of {found.size} token norms are not finite; try float32, or check the weights")
    return found >= (np.inf if cutoff is None else cutoff)


def image_weights(indices: Sequence[int], *, seed: int) -> np.ndarray:
    """Draw each image's weight in each replicate from (seed, its position in the source) alone: (B, `REPLICATES`)."""
    return np.stack([np.random.default_rng((seed, index)).poisson(1.0, REPLICATES) for index in indices]).astype(float)


def interval_of(values: np.ndarray) -> tuple[float, float] | None:
    """Return the central 95 % of the finite values; None without any."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


class ImageMeans:
    """Gather means, each a sum over images divided by another; constant memory, and merges in any order."""

    def __init__(self, names: Sequence[str], *, seed: int = 0) -> None:
        self.names, self.seed = tuple(names), seed
        self.sums = np.zeros((len(names), 2))
        """(Q, 2) what is divided, and by what."""
        self.replicates = np.zeros((len(names), 2, REPLICATES))
        self.num_images = np.zeros(len(names), np.int64)
        """(Q,) images that have anything to divide by."""

    def add(self, indices: Sequence[int], sums: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """Take in images: for every name what is divided and by what, (B,) each; an image without has 0 and 0."""
        values = np.array([sums[name] for name in self.names], float)  # (Q, 2, B)
        self.sums += values.sum(axis=-1)
        self.replicates += values @ image_weights(indices, seed=self.seed)
        self.num_images += (values[:, 1] > 0).sum(axis=-1)

    def merge(self, other: "ImageMeans") -> None:
        """Add what another has gathered from other images. Raises `ArgumentError` where the two do not match."""
        if (self.names, self.seed) != (other.names, other.seed):
            raise ArgumentError("means of different quantities or seeds cannot be merged")
        self.sums += other.sums
        self.replicates += other.replicates
        self.num_images += other.num_images

    def estimate(self, name: str) -> Estimate:
        """Return a mean with its interval."""
        q = self.names.index(name)
        (top, bottom), number = self.sums[q], int(self.num_images[q])
        if not number:
            return Estimate(None, None, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            replicates = self.replicates[q, 0] / self.replicates[q, 1]
        return Estimate(float(top / bottom), interval_of(replicates) if number > 1 else None, number)


def split_sums(values: np.ndarray, outliers: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Sum a quantity of patches (B, P) by image and kind, for `ImageMeans`.

    ``outliers`` and ``others``: sum and number. ``difference``: mean of the outliers less that of the others, and 1, of
    an image that has both; 0 and 0 of one that has not.
    """
    number = outliers.sum(axis=1), (~outliers).sum(axis=1)  # (B,) each
    total = (values * outliers).sum(axis=1, dtype=float), (values * ~outliers).sum(axis=1, dtype=float)
    both = (number[0] > 0) & (number[1] > 0)
    means = [t / np.maximum(n, 1) for t, n in zip(total, number, strict=True)]
    difference = np.where(both, means[0] - means[1], 0.0)
    return {"outliers": (total[0], number[0]), "others": (total[1], number[1]), "difference": (difference, both)}
