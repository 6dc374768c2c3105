"""What ``norms`` found: the arrays that its figures draw, and the summary that its users cite."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitprobe.probes.evidence import Evidence, EvidenceAccumulator
from vitprobe.probes.histogram import EDGES, NormHistogram
from vitprobe.probes.outliers import DEFAULT_RULES, Bimodality, OutlierRule, find_two_modes
from vitprobe.probes.verdict import judge

KINDS = ("cls", "registers", "patches")
PATCHES = KINDS.index("patches")
LEVELS = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
ATTENDED = 5.0
"""A token that receives this many times the uniform share of attention counts as attended to."""
THUMBNAIL = 224
"""Longest side, in pixels, of the example images that are kept for the figures."""


class Examples:
    """Keep the first images of the source, with their norm maps, for the figures."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.kept: dict[int, tuple[str, np.ndarray, np.ndarray]] = {}

    def wants(self, indices: tuple[int, ...]) -> bool:
        """Tell whether any image of these positions would be kept."""
        return len(self.kept) < self.most or min(indices) < max(self.kept)

    def add(self, names: tuple[str, ...], indices: tuple[int, ...], pixels: Tensor, norms: np.ndarray) -> None:
        """Keep those of a batch that come first: pixels (B, 3, H, W) in [0, 1], norms (B, rows, cols)."""
        scale = min(1.0, THUMBNAIL / max(pixels.shape[-2:]))
        if scale < 1:
            size = [round(side * scale) for side in pixels.shape[-2:]]
            pixels = torch.nn.functional.interpolate(pixels, size=size, mode="area")
        small = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        self.kept |= {i: (name, small[j], norms[j]) for j, (i, name) in enumerate(zip(indices, names, strict=True))}
        self.kept = {i: self.kept[i] for i in sorted(self.kept)[: self.most]}

    def merge(self, other: "Examples") -> None:
        """Keep the first of both."""
        self.kept |= other.kept
        self.kept = {i: self.kept[i] for i in sorted(self.kept)[: self.most]}


@dataclass(frozen=True)
class NormCounts:
    """Hold norms of all points as they were counted."""

    counts: np.ndarray
    """(S, 3, NUM_BINS)"""
    maxima: np.ndarray
    """(S, 3)"""
    num_blocks: int
    num_images: int

    def patches(self, point: int) -> NormHistogram:
        """Return the histogram of patch norms at a point."""
        return NormHistogram(self.counts[point, PATCHES])


@dataclass(frozen=True)
class NormStats:
    """Hold the result of ``norms`` for one model. S points: the L blocks, then the final norm if it was asked for."""

    summary: dict[str, Any]
    edges: np.ndarray
    """(n + 1,) edges of the bins that were used."""
    counts: np.ndarray
    """(S, 3, n) tokens by point, kind (cls, registers, patches) and bin."""
    levels: np.ndarray
    """(Q,) shares for which quantiles are given."""
    quantiles: np.ndarray
    """(S, 3, Q); nan where the model has no such token."""
    maxima: np.ndarray
    """(S, 3)"""
    cutoffs: np.ndarray
    """(S,) cutoff of the rule at each point; nan where it finds none."""
    outlier_fractions: np.ndarray
    """(S,) share of patch tokens at or over the cutoff."""
    outlier_frequency: np.ndarray
    """(rows, cols) share of images whose patch there is an outlier, at the summary's point."""
    outliers_per_image: np.ndarray
    """(most + 1,) number of images with 0, 1, 2 ... outliers."""
    received_attention: np.ndarray
    """(L, 2) attention received by outliers and by the other patches, in multiples of the uniform share."""
    example_images: np.ndarray
    """(E, h, w, 3) uint8"""
    example_norms: np.ndarray
    """(E, rows, cols) token norms at the summary's point."""
    example_outliers: np.ndarray
    """(E, rows, cols) bool"""
    example_names: np.ndarray
    """(E,) names of the images."""

    @property
    def point(self) -> int:
        """The point that the summary is of: its block, or S - 1 for the final norm."""
        return len(self.counts) - 1 if self.summary["norm_point"] == "final_norm" else self.summary["block"]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by the names of their fields."""
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}


def summarise(
    counts: NormCounts,
    evidence: Mapping[int, EvidenceAccumulator],
    examples: Examples,
    *,
    rule: OutlierRule,
    point: int,
    all_rules: bool = False,
) -> NormStats:
    """Apply a rule to every point, judge the measured ones, and lay out what figures need of point ``point``."""
    cutoffs = [rule.cutoff(counts.patches(p)) for p in range(len(counts.counts))]
    fractions = [counts.patches(p).fraction_above(c) for p, c in enumerate(cutoffs)]
    found = {p: evidence[p].result(cutoffs[p]) for p in evidence}
    summary = point_summary(counts, cutoffs, rule, point, found[point])
    others = [p for p in range(counts.num_blocks)]
    summary["blocks"] = [_brief(counts, cutoffs, fractions, rule, p, found.get(p)) for p in others]
    if all_rules:
        norms = counts.patches(point)
        rows = [(r, r.cutoff(norms)) for r in dict.fromkeys((*DEFAULT_RULES, rule))]
        summary["all_rules"] = [
            {"rule": str(r), "cutoff": c, "outlier_fraction": norms.fraction_above(c)} for r, c in rows
        ]
    used = np.flatnonzero(counts.counts.sum(axis=(0, 1)))
    low, high = used[0], used[-1] + 1
    names, images, maps = zip(*examples.kept.values(), strict=True)
    cutoff = cutoffs[point]
    return NormStats(
        summary=summary,
        edges=EDGES[low : high + 1],
        counts=counts.counts[:, :, low:high],
        levels=np.array(LEVELS),
        quantiles=np.array([[[NormHistogram(k).quantile(q) for q in LEVELS] for k in s] for s in counts.counts]),
        maxima=counts.maxima,
        cutoffs=np.array([np.nan if c is None else c for c in cutoffs]),
        outlier_fractions=np.array(fractions),
        outlier_frequency=evidence[point].frequency(cutoff),
        outliers_per_image=evidence[point].outliers_per_image(cutoff),
        received_attention=np.array(found[point].received_attention, dtype=float),
        example_images=np.stack(images),
        example_norms=np.stack(maps),
        example_outliers=np.stack(maps) >= (np.inf if cutoff is None else cutoff),
        example_names=np.array(names),
    )


def point_summary(
    counts: NormCounts, cutoffs: list[float | None], rule: OutlierRule, point: int, evidence: Evidence
) -> dict[str, Any]:
    """Return what is said of one point, as JSON can hold it."""
    norms = counts.patches(point)
    modes = find_two_modes(norms)
    verdict = judge(modes, evidence)
    final = point == counts.num_blocks
    received = [over for over, _ in evidence.received_attention if over is not None]
    return {
        "num_images": counts.num_images,
        "num_patch_tokens": norms.total,
        "block": counts.num_blocks - 1 if final else point,
        "norm_point": "final_norm" if final else "resid_post",
        "rule": str(rule),
        "cutoff": cutoffs[point],
        "bimodal": modes.bimodal,
        "outlier_fraction": norms.fraction_above(cutoffs[point]),
        "outlier_fraction_ci": list(evidence.outlier_fraction_ci),
        "onset_block": None if final else onset(counts, cutoffs, rule, point),
        "norm": norm_summary(counts, point, PATCHES),
        "norm_by_kind": {
            kind: norm_summary(counts, point, k) for k, kind in enumerate(KINDS) if counts.counts[point, k].any()
        },
        "verdict": verdict.answer,
        "evidence": {
            "reasons": list(verdict.reasons),
            "bimodality": _bimodality(modes),
            "attended_blocks": sum(value >= ATTENDED for value in received),
            **evidence.as_dict(),
        },
    }


def norm_summary(counts: NormCounts, point: int, kind: int) -> dict[str, float]:
    """Return median, 99th percentile and maximum of one kind of token at one point."""
    norms = NormHistogram(counts.counts[point, kind])
    largest = float(counts.maxima[point, kind])  # exact, where a quantile is only as fine as its bin
    return {"median": min(norms.median, largest), "p99": min(norms.quantile(0.99), largest), "max": largest}


def onset(counts: NormCounts, cutoffs: list[float | None], rule: OutlierRule, point: int) -> int | None:
    """Return the block at which outliers set in.

    It is the first block from which on, up to the measured one, every block has at least half the measured block's
    outlier fraction, each by the rule's own cutoff there. None where the measured block has no outliers, and for a
    percentile, which finds the same share everywhere.
    """
    fractions = [counts.patches(p).fraction_above(cutoffs[p]) for p in range(point + 1)]
    if not fractions[point] or rule.kind == "percentile":
        return None
    first = point
    while first > 0 and fractions[first - 1] >= fractions[point] / 2:
        first -= 1
    return first


def _brief(
    counts: NormCounts,
    cutoffs: list[float | None],
    fractions: list[float],
    rule: OutlierRule,
    point: int,
    evidence: Evidence | None,
) -> dict[str, Any]:
    """Return the line of one block in the table of all blocks; with its verdict where evidence was gathered."""
    line = {
        "block": point,
        "norm": norm_summary(counts, point, PATCHES),
        "cutoff": cutoffs[point],
        "bimodal": find_two_modes(counts.patches(point)).bimodal,
        "outlier_fraction": fractions[point],
    }
    if evidence is None:
        return line
    whole = point_summary(counts, cutoffs, rule, point, evidence)
    return line | {key: whole[key] for key in ("outlier_fraction_ci", "onset_block", "verdict", "evidence")}


def _bimodality(modes: Bimodality) -> dict[str, Any]:
    names = ("cutoff", "share", "ratio", "depth", "p_value", "beyond_gap")
    return {name: getattr(modes, name) for name in names}
