"""Mean attention distance: how far from itself each head of each block looks, in pixels, and how local that is.

The random control permutes places. It tells that places matter, not why: images are smooth, so attention by content
alone also falls on near patches, without any knowledge of positions. Of a ViT-Ti with random weights and no positions
half of the heads were more local than chance on photographs, and all of them where keys were made the queries.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from itertools import pairwise
from operator import add
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitprobe.backbones.base import Backbone
from vitprobe.errors import ArgumentError
from vitprobe.probes.attention_geometry import (
    MEASURES,
    NUM_PERMUTATIONS,
    SHARES,
    Geometry,
    Keys,
    RowSums,
    query_lattice,
    read_rows,
)
from vitprobe.probes.attention_means import DistanceAccumulator, Reading, interval_over
from vitprobe.probes.batch import Batch
from vitprobe.probes.by_image import METHOD, outlier_mask
from vitprobe.probes.passes import run_pass
from vitprobe.recorder import Site, token_norms

KINDS = ("all patches", "without outliers")
"""Which patches count, as queries and as keys."""
OWN = ("with the own patch", "without the own patch")
"""Whether the asking patch itself counts, at distance 0."""
PARTS = (*SHARES, "each outlier")
ROUNDING = 1e-6
"""Uniform attention has the same locality under every permutation, up to this."""
CHUNK_NUMBERS = 2**25
"""Numbers of a chunk of rows, B x H x Q x T: 128 MiB, of which a few copies stand at a time."""
FEWEST_HEADS = 40
"""A chunk also holds about so many numbers, places of permutations, for each image, query and key."""


@dataclass(frozen=True)
class AttentionDistanceResult:
    """Hold mean attention distances of L blocks and H heads, for M kinds of patches: `KINDS`, or the first alone.

    The axis of 2 after M is `OWN`. Distances are in pixels of the image that the model reads. Intervals have (low,
    high) first. What no row of attention has measured is nan, and so is an interval of fewer than two images.
    """

    summary: dict[str, Any]
    distance: np.ndarray
    """(M, 2, L, H) distance between the asking patch and the others, weighted by attention."""
    distance_ci: np.ndarray
    """(2, M, 2, L, H)"""
    distance_permuted: np.ndarray
    """(2, M, 2, L, H) the least and the greatest with the keys' places permuted: outside is no chance, at 5 %."""
    locality: np.ndarray
    """(M, 2, L, H) 1 - distance / uniform: 0 where places do not matter, 1 where all is on the own patch."""
    locality_ci: np.ndarray
    """(2, M, 2, L, H)"""
    locality_permuted: np.ndarray
    """(2, M, 2, L, H)"""
    near: np.ndarray
    """(M, 2, L, H) share of attention on the 3 x 3 neighbourhood."""
    near_ci: np.ndarray
    """(2, M, 2, L, H)"""
    near_permuted: np.ndarray
    """(2, M, 2, L, H)"""
    uniform: np.ndarray
    """(2, M, 2) distance, and share on the 3 x 3 neighbourhood, of uniform attention: exact, and also what any
    attention has on average over all permutations of places."""
    shares: np.ndarray
    """(M, 5, L, H) shares of the whole attention of the asking patches, by `PARTS`."""
    shares_ci: np.ndarray
    """(2, M, 5, L, H)"""

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by the names of their fields."""
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}

    @classmethod
    def read(cls, arrays: Mapping[str, np.ndarray], summary: Mapping[str, Any]) -> "AttentionDistanceResult":
        """Build a result back from what was stored of `arrays` and ``summary``."""
        return cls(summary=dict(summary), **arrays)


class DistanceReader:
    """Read attention distances of some blocks, batch by batch; `accumulator` has what was gathered."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        cutoff: float | None,
        blocks: Iterable[int] | None = None,
        max_queries: int = 256,
        seed: int = 0,
    ) -> None:
        """Prepare to read; the arguments are those of `measure_attention_distance`, and so is what is raised."""
        self._blocks = tuple(range(backbone.num_blocks)) if blocks is None else tuple(map(backbone.check_block, blocks))
        if not self._blocks:
            raise ArgumentError("got no block to measure; name at least one, or none for all")
        if cutoff is not None and not math.isfinite(cutoff):
            raise ArgumentError(f"got a cutoff of {cutoff}; give a finite norm, or none")
        self._backbone, self._layout = backbone, backbone.layout()
        grid, patch = self._layout.grid, backbone.patch_size
        lattice, queries = query_lattice(grid, max_queries)
        self._device = next(backbone.module.parameters()).device
        self._geometry = Geometry.on_grid(grid, patch, queries, device=self._device)
        draw, patches = np.random.default_rng(seed), self._layout.num_patches
        self._permutations = np.stack([draw.permutation(patches) for _ in range(NUM_PERMUTATIONS)])  # (K, P)
        self._norms = Site("resid_post", backbone.num_blocks - 1, reduce=token_norms)
        self.accumulator = DistanceAccumulator(
            {
                "model": backbone.spec.name,
                "digest": backbone.spec.digest,
                "image_size": list(backbone.spec.image_size),
                "patch_size": list(patch),
                "grid": list(grid),
                "num_blocks": backbone.num_blocks,
                "blocks": list(self._blocks),
                "num_registers": self._layout.num_registers,
                "cutoff": cutoff,
                "queries": {"asking patches": len(queries), "lattice": list(lattice), "of": patches},
                "seed": seed,
            }
        )

    def take(self, batch: Batch, *, autocast: torch.dtype | None = None) -> None:
        """Run the model on a batch and take it in: once for norms where there is a cutoff, once for attention."""
        cutoff = self.accumulator.settings["cutoff"]
        outliers = np.zeros((len(batch.images), self._layout.num_patches), bool)  # (B, P)
        if cutoff is not None:
            norms = self._run(batch, [self._norms], autocast)[self._norms]
            outliers = outlier_mask(norms, self._layout, cutoff)
        counted = [np.ones_like(outliers)] + [~outliers] * (cutoff is not None)
        sets = [Keys.lay_out(mask, self._permutations, device=self._device) for mask in counted]
        sites = self._sites(sets, torch.from_numpy(outliers).float().to(self._device))
        taken = self._run(batch, [site for of_block in sites for site in of_block], autocast)
        of_blocks = [reduce(add, (taken[site] for site in of_block)) for of_block in sites]
        asked = [keys.asking(self._geometry).sum(1) for keys in sets]
        self.accumulator.update(
            Reading(
                indices=batch.indices,
                sums=RowSums(
                    *(torch.stack(parts, dim=1) for parts in zip(*(vars(x).values() for x in of_blocks), strict=True))
                ),
                asked=torch.stack(asked, dim=1).cpu().numpy(),
                uniform=torch.stack([keys.uniform(self._geometry) for keys in sets], dim=1).cpu().numpy(),
                outliers=outliers.sum(axis=1),
            )
        )

    def _sites(self, sets: Sequence[Keys], outliers: Tensor) -> list[list[Site]]:
        """Name the rows of each block, in chunks of queries that bound the memory they take."""
        layout, geometry = self._layout, self._geometry
        patches = layout.positions("patches")
        width = len(outliers) * max(self._backbone.num_heads, FEWEST_HEADS) * layout.num_tokens
        number = -(-len(geometry.queries) // max(1, CHUNK_NUMBERS // width))
        ends = [len(geometry.queries) * i // number for i in range(number + 1)]
        chunks = [geometry.part(slice(*pair)) for pair in pairwise(ends)]
        return [
            [
                Site(
                    "attention_rows",
                    block,
                    queries=tuple(patches[q] for q in chunk.queries.tolist()),
                    reduce=partial(read_rows, layout=layout, geometry=chunk, sets=sets, outliers=outliers),
                )
                for chunk in chunks
            ]
            for block in self._blocks
        ]

    def _run(self, batch: Batch, sites: Sequence[Site], autocast: torch.dtype | None) -> Mapping[Site, Any]:
        reader = _Taken(sites)
        run_pass(self._backbone, [batch], [reader], autocast=autocast)
        return reader.taken


class _Taken:
    """Keep what one batch has left, as a `passes.Reader`."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self.sites = sites
        self.taken: Mapping[Site, Any] = {}

    def update(self, batch: Batch, taken: Mapping[Site, Any], output: Tensor) -> None:
        """Keep it."""
        self.taken = taken


def measure_attention_distance(
    backbone: Backbone,
    batches: Iterable[Batch],
    *,
    cutoff: float | None,
    blocks: Iterable[int] | None = None,
    max_queries: int = 256,
    seed: int = 0,
    on_batch: Callable[[Batch], None] | None = None,
    autocast: torch.dtype | None = None,
) -> AttentionDistanceResult:
    """Measure how far each head looks: Dosovitskiy et al. (arXiv 2010.11929), figure 7 and appendix D.7.

    A patch whose norm after the last block is ``cutoff`` or over is an outlier (None: there are none). Where there is
    any, all is measured with outliers, and again without them as queries and keys; since only the last block tells
    them, each batch then runs twice. ``blocks``: those measured, by default all. Of more patches than ``max_queries``
    an even lattice asks. Rows are float32, and reduced in chunks while the model runs. Raises `ArgumentError` for a
    block that the model does not have, or numbers that are not finite; `InputError` without any image.
    """
    reader = DistanceReader(backbone, cutoff=cutoff, blocks=blocks, max_queries=max_queries, seed=seed)
    for batch in batches:
        reader.take(batch, autocast=autocast)
        if on_batch is not None:
            on_batch(batch)
    return summarise(reader.accumulator)


def summarise(accumulator: DistanceAccumulator) -> AttentionDistanceResult:
    """Put together what was gathered. Raises `InputError` without images."""
    means, replicates = accumulator.means()
    number, kinds = accumulator.num_images, slice(0, 2 if accumulator.num_outliers else 1)
    found = {name: value[kinds] for name, value in means.items()}
    again = {name: value[:, kinds] for name, value in replicates.items() if name != "uniform"}
    ranges = {f"{name}_permuted": value[:, kinds] for name, value in accumulator.permuted().items()}
    uniform = np.moveaxis(found.pop("uniform"), -1, 0)  # (2, M, 2)
    blocks = {name: _over_heads(value) for name, value in found.items()}
    blocks |= {f"{name}_ci": interval_over(_over_heads(value), number) for name, value in again.items()}
    low, high = ranges["locality_permuted"]
    blocks |= {
        "lowest head": np.fmin.reduce(found["distance"], axis=-1),
        "highest head": np.fmax.reduce(found["distance"], axis=-1),
        "heads more local than chance": (found["locality"] > high + ROUNDING).sum(axis=-1),
        "heads less local than chance": (found["locality"] < low - ROUNDING).sum(axis=-1),
        "heads measured": np.isfinite(found["locality"]).sum(axis=-1),
    }
    intervals = {f"{name}_ci": interval_over(value, number) for name, value in again.items()}
    return AttentionDistanceResult(
        _summary(accumulator, uniform, blocks), uniform=uniform, **found, **intervals, **ranges
    )


def _over_heads(values: np.ndarray) -> np.ndarray:
    """Average over the last axis what is finite; nan where nothing is."""
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(finite, values, 0).sum(axis=-1) / finite.sum(axis=-1)


def _summary(accumulator: DistanceAccumulator, uniform: np.ndarray, blocks: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Say what was chosen, and give means over heads by block: (M, 2 or 5, L) each, intervals (2, M, 2 or 5, L)."""
    settings, number, patches = accumulator.settings, accumulator.num_images, math.prod(accumulator.settings["grid"])
    outliers = {"cutoff": settings["cutoff"], "share of patches": accumulator.num_outliers / (number * patches)}
    outliers["images with"] = accumulator.num_with_outliers
    if not accumulator.num_outliers:
        why = "the rule found none" if settings["cutoff"] is None else "no patch is at or over the cutoff"
        outliers["absent"] = f"nothing is measured without outliers: {why}"
    averages: dict[str, Any] = {}
    for k, kind in enumerate(KINDS[: uniform.shape[1]]):
        averages[kind] = {"shares": {part: _listed(blocks["shares"][k, s]) for s, part in enumerate(PARTS)}}
        for o, own in enumerate(OWN):
            at = {f"uniform {name}": _listed(x) for name, x in zip(MEASURES, uniform[:, k, o], strict=True)}
            at |= {name: _listed(x[..., k, o, :]) for name, x in blocks.items() if not name.startswith("shares")}
            averages[kind][own] = at
    return {
        **settings,
        **({"absent": "a grid of one patch has no distances"} if patches == 1 else {}),
        "num_images": number,
        "outliers": outliers,
        "averages": averages,
        "averaged": "over heads that leave anything to patches, by block",
        "interval": METHOD,
        "distance": "pixels, centre to centre of patches; the share of each row of attention that falls on patches is "
        "brought to 1; mean over asking patches, then over images",
        "random control": f"range of {NUM_PERMUTATIONS} permutations of the keys' places, each the same in "
        "all images (5 % of measurements lie outside by chance); the mean over all permutations is the distance of "
        "uniform attention, against which locality is measured; beyond it places "
        "matter, by positions or because near patches of an image are alike",
    }


def _listed(values: np.ndarray) -> Any:
    """Return numbers as JSON can hold them; intervals, (2, L), as L pairs."""
    values = np.asarray(values)
    return [_listed(x) for x in values.T] if values.ndim else float(values) if np.isfinite(values) else None
