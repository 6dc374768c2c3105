"""Token norms of every block, which of them are outliers, and what the outliers are: the probe behind ``norms``."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitprobe.backbones.base import Backbone
from vitprobe.errors import ArgumentError, InputError
from vitprobe.probes.batch import Batch
from vitprobe.probes.evidence import EvidenceAccumulator, PatchReadings
from vitprobe.probes.histogram import NUM_BINS, bin_of
from vitprobe.probes.norm_stats import KINDS, Examples, NormCounts, NormStats, summarise
from vitprobe.probes.outliers import OutlierRule
from vitprobe.probes.passes import run_pass
from vitprobe.probes.patches import (
    FLAT,
    centred_norms,
    massive_dimension,
    neighbour_cosine,
    patch_contrast,
    rank_within_image,
)
from vitprobe.recorder import Site, token_norms
from vitprobe.tokens import TokenLayout

NUM_QUERIES = 16
"""Patches, spread evenly over the grid, whose attention is sampled. Their mean estimates what a token receives without
leaving the fused kernels; the exact column sums (site ``received_attention``) cost a tenth to a third more time."""
NUM_EXAMPLES = 6


@dataclass
class NormAccumulator:
    """Gather norms of all blocks, and evidence at the measured ones; mergeable, of constant memory."""

    layout: TokenLayout
    num_blocks: int
    width: int
    measured: tuple[int, ...]
    """Points at which evidence is gathered: block numbers; ``num_blocks`` stands for after the final norm."""
    has_final_norm: bool = False
    seed: int = 0
    num_images: int = 0
    counts: np.ndarray = field(init=False)
    """(S, 3, NUM_BINS) norms by point, kind of token and bin."""
    maxima: np.ndarray = field(init=False)
    """(S, 3) exact maxima; nan where a kind is absent."""
    evidence: dict[int, EvidenceAccumulator] = field(init=False)
    examples: Examples = field(init=False)

    def __post_init__(self) -> None:
        points = self.num_blocks + self.has_final_norm
        self.counts = np.zeros((points, len(KINDS), NUM_BINS), np.int64)
        self.maxima = np.full((points, len(KINDS)), np.nan)
        make = EvidenceAccumulator
        self.evidence = {
            p: make(self.layout, width=self.width, num_blocks=self.num_blocks, seed=self.seed) for p in self.measured
        }
        self.examples = Examples(NUM_EXAMPLES)

    def update(self, norms: np.ndarray, readings: dict[int, PatchReadings]) -> None:
        """Take in norms (S, B, T) and what the measured points have shown of their patches."""
        self.num_images += norms.shape[1]
        for k, kind in enumerate(KINDS):
            positions = list(self.layout.positions(kind))
            if not positions:
                continue
            chosen = norms[:, :, positions]  # (S, B, n)
            for s, bins in enumerate(bin_of(chosen).reshape(len(norms), -1)):
                self.counts[s, k] += np.bincount(bins, minlength=NUM_BINS)
            self.maxima[:, k] = np.fmax(self.maxima[:, k], chosen.max(axis=(1, 2)))
        for point, batch in readings.items():
            self.evidence[point].update(batch)

    def merge(self, other: "NormAccumulator") -> None:
        """Add what another has gathered from other images. Raises `ArgumentError` where the two do not match."""
        same = (self.layout, self.num_blocks, self.width, self.measured, self.has_final_norm, self.seed)
        if same != (other.layout, other.num_blocks, other.width, other.measured, other.has_final_norm, other.seed):
            raise ArgumentError("norms of different models, sizes, blocks or seeds cannot be merged")
        self.num_images += other.num_images
        self.counts += other.counts
        self.maxima = np.fmax(self.maxima, other.maxima)
        for point, evidence in self.evidence.items():
            evidence.merge(other.evidence[point])
        self.examples.merge(other.examples)

    def result(self, rule: OutlierRule, *, point: int, all_rules: bool = False) -> NormStats:
        """Apply a rule and summarise. Raises `InputError` where no image was measured."""
        if not self.num_images:
            raise InputError("no image was measured; nothing can be said of its norms")
        counts = NormCounts(self.counts, self.maxima, self.num_blocks, self.num_images)
        return summarise(counts, self.evidence, self.examples, rule=rule, point=point, all_rules=all_rules)


class NormReader:
    """Read norms of every block, and evidence at some, as batches pass; `accumulator` has what was gathered."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        blocks: Iterable[int] | None = None,
        after_final_norm: bool = False,
        seed: int = 0,
    ) -> None:
        """Prepare to read; the arguments are those of `measure_norms`, and so is what is raised."""
        measured = tuple(blocks) if blocks is not None else (backbone.num_blocks - 1,)
        measured = (backbone.num_blocks,) if after_final_norm else tuple(backbone.check_block(b) for b in measured)
        if after_final_norm and backbone.final_norm is None:
            raise ArgumentError(f"{backbone.spec.name} has no norm that all its tokens pass after the last block")
        self._backbone, self._layout = backbone, backbone.layout()
        self.accumulator = NormAccumulator(
            self._layout, backbone.num_blocks, backbone.width, measured, has_final_norm=after_final_norm, seed=seed
        )
        self._named = _sites(backbone, self._layout, measured)
        self.sites = tuple(self._named.values())
        self.norms = np.zeros((0, 0, 0), np.float32)
        """(S, B, T) norms of the last batch."""

    def update(self, batch: Batch, taken: Mapping[Site, Any], output: Tensor) -> None:
        """Take in one batch. Raises `ArgumentError` for norms that are not finite."""
        measured, backbone = self.accumulator.measured, self._backbone
        got = {name: taken[site] for name, site in self._named.items()}
        self.norms, readings = _readings(backbone, batch, self._layout, measured, got)
        self.accumulator.update(self.norms, readings)
        if self.accumulator.examples.wants(batch.indices):
            pixels = backbone.transform.pixels(batch.images)
            shown = self.norms[measured[-1]][:, self._layout.patches].reshape(len(batch.names), *self._layout.grid)
            self.accumulator.examples.add(batch.names, batch.indices, pixels, shown)


def measure_norms(
    backbone: Backbone,
    batches: Iterable[Batch],
    *,
    blocks: Iterable[int] | None = None,
    after_final_norm: bool = False,
    autocast: torch.dtype | None = None,
    seed: int = 0,
    on_batch: Callable[[Batch, np.ndarray], None] | None = None,
) -> NormAccumulator:
    """Measure token norms of every block of a backbone over batches of images.

    Norms are L2 over the width of ``resid_post``, in float32, before the final norm. ``blocks`` are those at which
    evidence is gathered (default: the last). ``after_final_norm`` adds the tokens after the final norm as a point of
    their own and gathers the evidence there. ``on_batch`` sees each batch with its norms (S, B, T). Raises
    `ArgumentError` for a block that the model does not have, or norms that are not finite.
    """
    reader = NormReader(backbone, blocks=blocks, after_final_norm=after_final_norm, seed=seed)
    seen = None if on_batch is None else lambda batch: on_batch(batch, reader.norms)
    run_pass(backbone, batches, [reader], autocast=autocast, on_batch=seen)
    return reader.accumulator


def _readings(
    backbone: Backbone, batch: Batch, layout: TokenLayout, measured: tuple[int, ...], got: Mapping[str, Any]
) -> tuple[np.ndarray, dict[int, PatchReadings]]:
    """Lay out what one batch left: norms (S, B, T), and readings at the measured points."""
    points = range(backbone.num_blocks + ("final" in got))
    streams = [got["final"] if p == backbone.num_blocks else got[f"stream{p}"] for p in points]
    norms = torch.stack([s[0] if isinstance(s, tuple) else s for s in streams])  # (S, B, T)
    contrast = patch_contrast(backbone.transform.pixels(batch.images), backbone.patch_size)
    cosine = got["embed"].cpu()
    shared = {
        "names": batch.names,
        "cosine": _array(cosine),
        "contrast": _array(contrast),
        "cosine_rank": _array(rank_within_image(torch.nan_to_num(cosine))),
        "contrast_rank": _array(rank_within_image(contrast.clamp_min(FLAT))),
        "received": _array(torch.stack([got[f"rows{i}"] for i in range(backbone.num_blocks)])),
    }
    readings = {}
    for p in measured:
        all_norms, centred, dimension, massive = streams[p]
        readings[p] = PatchReadings(
            norms=_array(all_norms[:, layout.patches]),
            centred=_array(centred),
            dimension=_array(dimension),
            massive=_array(massive),
            **shared,
        )
    return _array(norms), readings


def _sites(backbone: Backbone, layout: TokenLayout, measured: tuple[int, ...]) -> dict[str, Site]:
    """Name what is recorded: norms everywhere, more at the measured points, sampled attention, the patch embedding."""

    def closer(x: Tensor) -> tuple[Tensor, ...]:
        patches = x[:, layout.patches]
        return (token_norms(x), centred_norms(patches), *massive_dimension(patches))

    def received(rows: Tensor) -> Tensor:  # (B, H, Q, T) -> (B, P), in multiples of the uniform share
        return rows.mean(dim=(1, 2))[:, layout.patches] * layout.num_tokens

    asking = spread_queries(layout)
    sites = {"embed": Site("patch_embed", reduce=lambda x: neighbour_cosine(x, layout))}
    for i in range(backbone.num_blocks):
        sites[f"stream{i}"] = Site("resid_post", i, reduce=closer if i in measured else token_norms)
        sites[f"rows{i}"] = Site("attention_rows", i, queries=asking, reduce=received)
    if backbone.num_blocks in measured:
        sites["final"] = Site("final_norm", reduce=closer)
    return sites


def spread_queries(layout: TokenLayout) -> tuple[int, ...]:
    """Return positions of up to `NUM_QUERIES` patches at the middles of a lattice of cells laid over the grid."""
    side = round(NUM_QUERIES**0.5)
    rows, cols = (sorted({(2 * i + 1) * size // (2 * side) for i in range(side)}) for size in layout.grid)
    return tuple(layout.patch_position(row, col) for row in rows for col in cols)


def _array(x: Tensor) -> np.ndarray:
    return x.detach().cpu().float().numpy() if x.is_floating_point() else x.detach().cpu().numpy()
