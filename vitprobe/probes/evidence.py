"""What outlier tokens are like, beside the other patches: gathered while images pass, for any cutoff."""

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vitprobe.probes.histogram import NUM_BINS, Joint, NormHistogram, bin_of, edge_index
from vitprobe.probes.outliers import find_two_modes
from vitprobe.tokens import TokenLayout

REPLICATES = 200
"""Bootstrap replicates. Each image has a Poisson(1) weight in each, drawn from its name: replicates merge."""
FEATURES = ("count", "cosine", "contrast", "cosine_rank", "contrast_rank", "log_centred", "massive", "massive_count")


@dataclass(frozen=True)
class PatchReadings:
    """Hold what one batch has shown of its patches at one block."""

    names: tuple[str, ...]
    norms: np.ndarray
    """(B, P) token norms."""
    centred: np.ndarray
    """(B, P) norms after the image's mean patch is subtracted."""
    dimension: np.ndarray
    """(B, P) dimension of the largest |x|."""
    massive: np.ndarray
    """(B, P) max |x| over median |x|; nan where not computed."""
    cosine: np.ndarray
    """(B, P) mean cosine with the neighbours at the patch embedding; nan on a grid of one patch."""
    contrast: np.ndarray
    """(B, P) standard deviation of luminance."""
    cosine_rank: np.ndarray
    """(B, P) rank of ``cosine`` within the image, 0 to 1."""
    contrast_rank: np.ndarray
    """(B, P) rank of ``contrast`` within the image, 0 to 1."""
    received: np.ndarray
    """(L, B, P) attention received in each block, in multiples of the uniform share."""


@dataclass(frozen=True)
class Contrasted:
    """Set a quantity's mean over outliers beside its mean over the other patches."""

    outliers: float | None
    others: float | None
    rank: float | None = None
    """Mean rank of outliers within their image: 0.5 expected of patches picked at random."""
    rank_ci: tuple[float | None, float | None] = (None, None)
    """95 % bootstrap interval over images."""


@dataclass(frozen=True)
class Evidence:
    """Hold all that is set beside the outlier fraction of one block; None where there is nothing to measure."""

    num_outliers: int
    num_images_with_outliers: int
    outlier_fraction_ci: tuple[float | None, float | None]
    neighbour_cosine: Contrasted
    pixel_contrast: Contrasted
    received_attention: list[tuple[float | None, float | None]]
    """(outliers, others) of each block, in multiples of the uniform share."""
    centred_ratio: float | None
    """Geometric mean of the centred norm of outliers over that of the others."""
    centred_bimodal: bool
    """Whether centred norms of all patches have two modes."""
    top_positions_share: float | None
    """Share of outliers that lie at the 1 % of grid positions (at least one) where they are most frequent."""
    top_positions_if_uniform: float | None
    """The same share expected if as many outliers were drawn evenly over the positions; near 1 % for many."""
    massive_dims: list[tuple[int, float]]
    """Up to three dimensions with the share of outliers in which they are the largest."""
    max_over_median: float | None
    """Mean of max |x| over median |x|, over the outliers among the 5 % of largest norm in their image."""

    def as_dict(self) -> dict[str, Any]:
        """Return the evidence as JSON can hold it."""
        return asdict(self)


class EvidenceAccumulator:
    """Gather evidence at one block; merges, and its memory does not grow with the number of images."""

    def __init__(self, layout: TokenLayout, *, width: int, num_blocks: int, seed: int = 0) -> None:
        patches = layout.num_patches
        self.layout, self.seed, self.num_images = layout, seed, 0
        self.norms = np.zeros(NUM_BINS, np.int64)
        self.centred = np.zeros(NUM_BINS, np.int64)
        self.features = Joint((len(FEATURES),), np.float64)
        self.received = Joint((num_blocks,), np.float64)
        self.positions = Joint((patches,))
        self.dimensions = Joint((width,))
        self.kth_largest = Joint((patches,))
        """How often the k-th largest norm of an image fell in a bin: gives outliers per image at any cutoff."""
        self.replicates = Joint((3, REPLICATES), np.float64)
        """Weighted count, contrast rank and cosine rank in each bootstrap replicate."""

    def update(self, batch: PatchReadings) -> None:
        """Take in one batch."""
        bins = bin_of(batch.norms)  # (B, P)
        num, patches = bins.shape
        self.num_images += num
        self.norms += np.bincount(bins.ravel(), minlength=NUM_BINS)
        self.centred += np.bincount(bin_of(batch.centred).ravel(), minlength=NUM_BINS)
        used, inverse = np.unique(bins, return_inverse=True)
        inverse = inverse.ravel()
        log_centred = np.log2(np.maximum(batch.centred, 1e-9))
        values = (
            None,
            batch.cosine,
            batch.contrast,
            batch.cosine_rank,
            batch.contrast_rank,
            log_centred,
            batch.massive,
        )
        columns = [np.bincount(inverse, weights=_numbers(v), minlength=len(used)) for v in values]
        counted = np.isfinite(batch.massive).astype(float)
        columns.append(np.bincount(inverse, weights=counted.ravel(), minlength=len(used)))
        self.features.add_columns(used, np.stack(columns))
        received = [np.bincount(inverse, weights=_numbers(r), minlength=len(used)) for r in batch.received]
        self.received.add_columns(used, np.stack(received))
        self.positions.add((np.broadcast_to(np.arange(patches), bins.shape),), bins)
        self.dimensions.add((batch.dimension,), bins)
        ordered = -np.sort(-bins, axis=1)
        self.kth_largest.add((np.broadcast_to(np.arange(patches), bins.shape),), ordered)
        for i, name in enumerate(batch.names):
            self._resample(name, bins[i], batch.contrast_rank[i], batch.cosine_rank[i])

    def _resample(self, name: str, bins: np.ndarray, contrast_rank: np.ndarray, cosine_rank: np.ndarray) -> None:
        digest = hashlib.sha256(f"{self.seed} {name}".encode("utf-8", "surrogatepass")).digest()
        weights = np.random.default_rng(int.from_bytes(digest[:8], "little")).poisson(1.0, REPLICATES)
        used, inverse = np.unique(bins, return_inverse=True)
        sums = [
            np.bincount(inverse, weights=_numbers(v), minlength=len(used)) for v in (None, contrast_rank, cosine_rank)
        ]
        self.replicates.add_columns(used, weights[None, :, None] * np.stack(sums)[:, None, :])

    def merge(self, other: "EvidenceAccumulator") -> None:
        """Add what another accumulator has gathered from other images."""
        self.num_images += other.num_images
        self.norms += other.norms
        self.centred += other.centred
        for name in ("features", "received", "positions", "dimensions", "kth_largest", "replicates"):
            getattr(self, name).merge(getattr(other, name))

    def frequency(self, cutoff: float | None) -> np.ndarray:
        """Return the share of images with an outlier at each grid position: (rows, cols)."""
        if cutoff is None or not self.num_images:
            return np.zeros(self.layout.grid)
        return self.positions.from_edge(edge_index(cutoff)).reshape(self.layout.grid) / self.num_images

    def outliers_per_image(self, cutoff: float | None) -> np.ndarray:
        """Count images by their number of outliers, from 0 to the most seen: (most + 1,)."""
        if cutoff is None:
            return np.array([self.num_images])
        at_least = np.concatenate([[self.num_images], self.kth_largest.from_edge(edge_index(cutoff)), [0]])
        exactly = at_least[:-1] - at_least[1:]
        return exactly[: int(np.flatnonzero(exactly)[-1]) + 1] if exactly.any() else np.array([0])

    def result(self, cutoff: float | None) -> Evidence:
        """Summarise what tokens at or over the cutoff are like beside the rest."""
        edge = NUM_BINS if cutoff is None else edge_index(cutoff)
        over = dict(zip(FEATURES, self.features.from_edge(edge), strict=True))
        rest = dict(zip(FEATURES, self.features.total() - self.features.from_edge(edge), strict=True))
        number, others = over["count"], rest["count"]
        replicates, everything = self.replicates.from_edge(edge), self.replicates.total()
        many = self.num_images > 1
        with np.errstate(invalid="ignore", divide="ignore"):
            fractions = replicates[0] / everything[0]
            ranks = replicates[1:] / replicates[0]
            received = np.stack([self.received.from_edge(edge) / number, self._received_rest(edge) / others], axis=1)
        frequency = np.sort(self.positions.from_edge(edge))[::-1]
        top = max(1, round(len(frequency) / 100))
        dims = self.dimensions.from_edge(edge)
        ratio = _mean(over["log_centred"], number), _mean(rest["log_centred"], others)
        return Evidence(
            num_outliers=int(number),
            num_images_with_outliers=int(self.kth_largest.from_edge(edge)[0]),
            outlier_fraction_ci=_interval(fractions) if many else (None, None),
            neighbour_cosine=_contrasted("cosine", over, rest, ranks[1] if many else ranks[1, :0]),
            pixel_contrast=_contrasted("contrast", over, rest, ranks[0] if many else ranks[0, :0]),
            received_attention=[(_clean(a), _clean(b)) for a, b in received],
            centred_ratio=None if None in ratio else float(2 ** (ratio[0] - ratio[1])),
            centred_bimodal=find_two_modes(NormHistogram(self.centred)).bimodal,
            top_positions_share=_mean(frequency[:top].sum(), number),
            top_positions_if_uniform=_top_if_uniform(int(number), len(frequency), top),
            massive_dims=[(int(d), float(dims[d] / number)) for d in np.argsort(-dims)[:3] if dims[d] > 0],
            max_over_median=_mean(over["massive"], over["massive_count"]),
        )

    def _received_rest(self, edge: int) -> np.ndarray:
        return self.received.total() - self.received.from_edge(edge)


def _top_if_uniform(number: int, positions: int, top: int) -> float | None:
    """Estimate the share of the ``top`` fullest of so many positions among ``number`` even draws (64 simulations)."""
    if not number:
        return None
    draws = np.random.default_rng(0).multinomial(number, np.full(positions, 1 / positions), size=64)
    return float(-np.sort(-draws, axis=1)[:, :top].sum(axis=1).mean() / number)


def _numbers(values: np.ndarray | None) -> np.ndarray | None:
    """Flatten, with nan taken as nothing; None stands for a count."""
    return None if values is None else np.nan_to_num(values, nan=0.0).ravel().astype(np.float64)


def _mean(total: float, number: float) -> float | None:
    return float(total / number) if number else None


def _clean(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _interval(values: np.ndarray) -> tuple[float | None, float | None]:
    """Return the central 95 % of the finite values."""
    values = values[np.isfinite(values)]
    if not len(values):
        return (None, None)
    low, high = np.quantile(values, (0.025, 0.975))
    return (float(low), float(high))


def _contrasted(name: str, over: dict[str, float], rest: dict[str, float], ranks: np.ndarray) -> Contrasted:
    number = over["count"]
    return Contrasted(
        outliers=_mean(over[name], number),
        others=_mean(rest[name], rest["count"]),
        rank=_mean(over[f"{name}_rank"], number),
        rank_ci=_interval(ranks) if number else (None, None),
    )
