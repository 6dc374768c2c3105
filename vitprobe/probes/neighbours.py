"""Whether outliers resemble their neighbours: the cosine at the patch embedding, outlier patches against the others.

This is figure 5a of Darcet et al. (arXiv 2309.16588): outliers are those of the norms after a block, the cosine is that
of the patch embedding before positions are added.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from vitprobe.backbones.base import Backbone
from vitprobe.errors import ArgumentError, InputError
from vitprobe.probes.batch import Batch
from vitprobe.probes.by_image import METHOD, NO_OUTLIERS, ImageMeans, outlier_mask, split_sums
from vitprobe.probes.patches import neighbour_cosine
from vitprobe.recorder import Site, token_norms

NUM_BINS = 2000
"""Bins of the cosine from -1 to 1, each 0.001 wide."""
EDGES: np.ndarray = np.linspace(-1, 1, NUM_BINS + 1)
BANDWIDTH = 0.02
"""Standard deviation of the density's Gaussian kernel, in units of cosine. The paper states none. One number for both
kinds and all models, so that curves compare; a rule of thumb would shrink with the number of patches, which are not
independent within an image."""
HIGH = 0.9
"""An outlier is counted that is over this quantile of the other patches of its image."""
TIE = 1e-4
"""Cosines that are closer are taken as equal: those of a plain sky are all 1 up to rounding."""
CLAIM = "outliers resemble their neighbours more than the other patches of their image"
MEANS = ("outliers", "others", "difference", "over_high")


@dataclass(frozen=True)
class NeighbourCosines:
    """Hold the cosines of outlier and other patches with their neighbours; kinds are in this order."""

    summary: dict[str, Any]
    """Claim and answer; the means ``outliers`` and ``others``, ``difference`` of images that have both, ``over_high``,
    the share of outliers over the `HIGH` quantile of the others of their image, each an `Estimate`; counts, choices."""
    edges: np.ndarray
    """(n + 1,) edges of the bins, of -1 to 1."""
    counts: np.ndarray
    """(2, n) patches by kind and bin."""
    density: np.ndarray
    """(2, n) densities in the middle of the bins; nan where there is no such patch."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by the names of their fields."""
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}


class NeighbourAccumulator:
    """Gather cosines by kind; merges, and its memory does not grow with the number of images."""

    def __init__(self, *, seed: int = 0) -> None:
        self.counts = np.zeros((2, NUM_BINS), np.int64)
        self.means = ImageMeans(MEANS, seed=seed)
        self.num_images = 0

    def update(self, indices: Sequence[int], cosine: np.ndarray, outliers: np.ndarray) -> None:
        """Take in images by their positions in the source: cosines (B, P), and which patches are outliers (B, P)."""
        bins = np.floor((cosine.astype(float) + 1) / 2 * NUM_BINS).astype(int).clip(0, NUM_BINS - 1)
        for kind, mask in enumerate((outliers, ~outliers)):
            self.counts[kind] += np.bincount(bins[mask], minlength=NUM_BINS)
        sums = split_sums(cosine, outliers)
        has_both = sums["difference"][1]
        over = np.zeros(len(cosine))
        for i in np.flatnonzero(has_both):
            over[i] = (cosine[i, outliers[i]] > np.quantile(cosine[i, ~outliers[i]], HIGH) + TIE).sum()
        self.means.add(indices, sums | {"over_high": (over, outliers.sum(axis=1) * has_both)})
        self.num_images += len(cosine)

    def merge(self, other: "NeighbourAccumulator") -> None:
        """Add what another has gathered from other images."""
        self.means.merge(other.means)
        self.counts += other.counts
        self.num_images += other.num_images

    def result(self, *, bandwidth: float = BANDWIDTH) -> NeighbourCosines:
        """Summarise. Raises `ArgumentError` for a bandwidth out of bounds, `InputError` without any image."""
        if not self.num_images:
            raise InputError("no image was measured; nothing can be said of its patches")
        outliers, others = self.counts.sum(axis=1).tolist()
        estimates = {name: self.means.estimate(name) for name in MEANS}
        summary = {
            "claim": CLAIM,
            "answer": estimates["difference"].exceeds(0) if outliers else NO_OUTLIERS,
            **{name: estimate.as_dict() for name, estimate in estimates.items()},
            "high": HIGH,
            "num_images": self.num_images,
            "num_outliers": outliers,
            "num_others": others,
            "bandwidth": bandwidth,
            "interval": METHOD,
        }
        density = np.stack([smooth(counts, bandwidth) for counts in self.counts])
        return NeighbourCosines(summary, EDGES, self.counts.copy(), density)


def smooth(counts: np.ndarray, bandwidth: float) -> np.ndarray:
    """Estimate the density of cosines from their counts in the bins of `EDGES`: (n,) -> (n,), nan where all are 0.

    A Gaussian kernel, mirrored at -1 and 1, where cosines end, so that no density lies outside.
    """
    width = 2 / NUM_BINS
    check_bandwidth(bandwidth)
    if not counts.sum():
        return np.full(len(counts), np.nan)
    reach = min(int(np.ceil(5 * bandwidth / width)), len(counts))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * width / bandwidth) ** 2)
    mirrored = np.pad(counts / counts.sum(), reach, mode="symmetric")
    return np.convolve(mirrored, kernel / kernel.sum(), mode="valid") / width


def check_bandwidth(bandwidth: float) -> float:
    """Return a bandwidth. Raises `ArgumentError` for one that is narrower than a bin or wider than 0.5."""
    if not 2 / NUM_BINS <= bandwidth <= 0.5:
        raise ArgumentError(f"got a bandwidth of {bandwidth:g}; give a cosine from {2 / NUM_BINS:g} to 0.5")
    return bandwidth


class NeighbourReader:
    """Read the cosines of patches with their neighbours as batches pass; `accumulator` has what was gathered."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        block: int,
        cutoff: float | None,
        bandwidth: float = BANDWIDTH,
        seed: int = 0,
    ) -> None:
        """Prepare to read. Outliers have a norm at or over ``cutoff`` after ``block``; there are none without one.

        Raises `ArgumentError` for a block that the model does not have, a grid of one patch, or a ``bandwidth`` that
        `check_bandwidth` refuses.
        """
        self._bandwidth = check_bandwidth(bandwidth)
        self._layout, self._cutoff = backbone.layout(), cutoff
        if self._layout.num_patches < 2:
            raise ArgumentError(f"{backbone.spec.name} sees one patch, which has no neighbours; give larger images")
        self._embedded = Site("patch_embed")
        self._norms = Site("resid_post", backbone.check_block(block), reduce=token_norms)
        self.sites = (self._embedded, self._norms)
        self.accumulator = NeighbourAccumulator(seed=seed)

    def update(self, batch: Batch, taken: Mapping[Site, Any], output: Tensor) -> None:
        """Take in one batch. Raises `ArgumentError` for norms that are not finite."""
        outliers = outlier_mask(taken[self._norms], self._layout, self._cutoff)
        cosine = neighbour_cosine(taken[self._embedded], self._layout).cpu().numpy()  # (B, P)
        self.accumulator.update(batch.indices, cosine, outliers)

    def result(self) -> NeighbourCosines:
        """Summarise. Raises `InputError` without any image."""
        return self.accumulator.result(bandwidth=self._bandwidth)
