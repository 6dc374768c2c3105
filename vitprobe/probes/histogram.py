"""Norms counted in fixed bins: mergeable, of constant size, the same however the images were split."""

from dataclasses import dataclass

import numpy as np

from vitprobe.errors import ArgumentError

BITS = 10
"""Bins in an octave = 2**BITS: each is 0.05 to 0.1 % wide, so no cutoff is rounded by more than 0.05 %."""
LOWEST, HIGHEST = -8, 16
"""Norms from 2**-8 to 2**16 are told apart; what is smaller or larger is counted in the outermost bin."""
NUM_BINS = (HIGHEST - LOWEST) << BITS
_SHIFT = 23 - BITS
_OFFSET = int(np.float32(2.0**LOWEST).view(np.int32)) >> _SHIFT

EDGES: np.ndarray = (
    ((np.arange(NUM_BINS + 1, dtype=np.int64) + _OFFSET) << _SHIFT).astype(np.int32).view(np.float32).astype(np.float64)
)
"""(NUM_BINS + 1,) edges. They are float32 numbers of BITS bits, so every integer to 2048 is an edge."""
CENTRES: np.ndarray = (EDGES[:-1] + EDGES[1:]) / 2


def bin_of(norms: np.ndarray) -> np.ndarray:
    """Return the bin of each norm, read off the bits of its float32: same shape, int64.

    Raises `ArgumentError` for a norm that is not finite.
    """
    norms = np.ascontiguousarray(norms, dtype=np.float32)
    if not np.isfinite(norms).all():
        bad = int((~np.isfinite(norms)).sum())
        raise ArgumentError(
            f"{bad} of {norms.size} token norms are not finite; try --dtype float32, or check the weights"
        )
    return np.clip((norms.view(np.int32).astype(np.int64) >> _SHIFT) - _OFFSET, 0, NUM_BINS - 1)


def edge_index(cutoff: float) -> int:
    """Return the index of the edge nearest to a cutoff; tokens of that bin and above are over it."""
    upper = int(np.clip(np.searchsorted(EDGES, cutoff), 1, NUM_BINS))
    return upper if EDGES[upper] - cutoff <= cutoff - EDGES[upper - 1] else upper - 1


def snap(cutoff: float) -> float:
    """Round a cutoff to the nearest edge, by at most 0.05 %, so that counts at it are exact."""
    return float(EDGES[edge_index(cutoff)])


@dataclass(frozen=True)
class NormHistogram:
    """Hold how many norms fell into each bin."""

    counts: np.ndarray
    """(NUM_BINS,) int64."""

    @classmethod
    def of(cls, norms: np.ndarray) -> "NormHistogram":
        """Count norms of any shape. Raises `ArgumentError` where one is not finite."""
        return cls(np.bincount(bin_of(norms).ravel(), minlength=NUM_BINS))

    def __add__(self, other: "NormHistogram") -> "NormHistogram":
        return NormHistogram(self.counts + other.counts)

    @property
    def total(self) -> int:
        """Number of norms counted."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Mean norm, to the width of a bin."""
        return float(self.counts @ CENTRES / max(self.total, 1))

    @property
    def std(self) -> float:
        """Standard deviation of the norms, to the width of a bin."""
        return float(np.sqrt(self.counts @ (CENTRES - self.mean) ** 2 / max(self.total, 1)))

    def quantile(self, q: float) -> float:
        """Return the norm below which a share ``q`` of the norms lies, interpolated inside its bin; nan if empty."""
        return weighted_quantile(EDGES, self.counts, q)

    @property
    def median(self) -> float:
        """Median norm."""
        return self.quantile(0.5)

    @property
    def mad(self) -> float:
        """Median distance from the median."""
        distance = np.abs(CENTRES - self.median)
        order = np.argsort(distance)
        cumulated = np.cumsum(self.counts[order])
        return float(distance[order][np.searchsorted(cumulated, self.total / 2)]) if self.total else float("nan")

    def above(self, cutoff: float) -> int:
        """Count the norms at or over a cutoff (rounded to its edge)."""
        return int(self.counts[edge_index(cutoff) :].sum())

    def fraction_above(self, cutoff: float | None) -> float:
        """Return the share of norms at or over a cutoff; 0 for none."""
        return 0.0 if cutoff is None or not self.total else self.above(cutoff) / self.total


def weighted_quantile(edges: np.ndarray, counts: np.ndarray, q: float) -> float:
    """Return the ``q`` quantile of counts between edges, linear inside a bin; nan where nothing was counted."""
    total = counts.sum()
    if not total:
        return float("nan")
    cumulated = np.concatenate([[0], np.cumsum(counts)])
    index = int(np.clip(np.searchsorted(cumulated, q * total, side="left"), 1, len(counts)))
    while counts[index - 1] == 0 and index < len(counts):
        index += 1
    inside = (q * total - cumulated[index - 1]) / counts[index - 1]
    return float(edges[index - 1] + np.clip(inside, 0, 1) * (edges[index] - edges[index - 1]))


class Joint:
    """Sum numbers by norm bin and by something else: an array (..., bins) that stores only the octaves it has seen.

    What is asked of it at the end is the sum over the bins of a cutoff and above, for any cutoff: so the cutoff need
    not be known while the images pass.
    """

    def __init__(self, shape: tuple[int, ...], dtype: type = np.int32) -> None:
        self.shape, self.dtype = shape, dtype
        self.start = self.stop = 0
        self.values = np.zeros((*shape, 0), dtype)

    def _cover(self, low: int, high: int) -> None:
        """Widen the window to whole octaves that hold the bins from low to high."""
        octave = 1 << BITS
        start, stop = low // octave * octave, -(-(high + 1) // octave) * octave
        if self.start == self.stop:
            self.start = self.stop = start
        start, stop = min(start, self.start), max(stop, self.stop)
        if (start, stop) != (self.start, self.stop):
            pad = [(0, 0)] * len(self.shape) + [(self.start - start, stop - self.stop)]
            self.values = np.pad(self.values, pad)
            self.start, self.stop = start, stop

    def add(self, index: tuple[np.ndarray, ...], bins: np.ndarray, amount: np.ndarray | int = 1) -> None:
        """Add ``amount`` at (*index, bins); arrays of one shape, repeated places add up."""
        if bins.size:
            self._cover(int(bins.min()), int(bins.max()))
            np.add.at(self.values, (*index, bins - self.start), amount)

    def add_columns(self, bins: np.ndarray, columns: np.ndarray) -> None:
        """Add ``columns`` (..., n) at n different bins."""
        if bins.size:
            self._cover(int(bins.min()), int(bins.max()))
            self.values[..., bins - self.start] += columns.astype(self.dtype)

    def merge(self, other: "Joint") -> None:
        """Add what another has summed."""
        if other.start < other.stop:
            self._cover(other.start, other.stop - 1)
            self.values[..., other.start - self.start : other.stop - self.start] += other.values

    def from_edge(self, edge: int) -> np.ndarray:
        """Sum over the bins at and above an edge: (...)."""
        return self.values[..., max(edge - self.start, 0) :].sum(axis=-1)

    def total(self) -> np.ndarray:
        """Sum over all bins: (...)."""
        return self.values.sum(axis=-1)
