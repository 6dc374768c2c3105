"""Attention maps: what chosen tokens attend to, laid on the patch grid: the probe behind ``attn-maps``."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitprobe.backbones.base import Backbone
from vitprobe.errors import ArgumentError, InputError
from vitprobe.probes.batch import Batch
from vitprobe.probes.histogram import NormHistogram
from vitprobe.probes.outliers import OutlierRule
from vitprobe.probes.passes import run_pass
from vitprobe.recorder import Site, token_norms
from vitprobe.tokens import TokenLayout


@dataclass(frozen=True)
class Query:
    """Name the tokens whose attention is asked for; where there are several, their rows are averaged."""

    name: str
    """What it is called in titles: ``CLS``, ``the registers``, ``patch (3, 4)``, ``all patches``."""
    positions: tuple[int, ...]

    @classmethod
    def parse(cls, text: str | None, layout: TokenLayout) -> "Query":
        """Read ``cls``, ``registers``, ``register:K``, ``R,C`` or ``mean`` for a model's layout.

        None takes the CLS token, in a model without one the registers, in a model without either all patches. Raises
        `ArgumentError` for a token that the model does not have.
        """
        text = text.strip().lower() if text is not None else _default(layout)
        if text in ("cls", "registers"):
            if not (positions := layout.positions(text)):
                have = ", ".join([*(k for k in layout.kinds if k != "patches"), "R,C", "mean"])
                raise ArgumentError(f"got query {text}, which the model has not; it has {have}")
            return cls("CLS" if text == "cls" else f"mean of {len(positions)} registers", positions)
        if text == "mean":
            return cls("mean of all patches", layout.positions("patches"))
        if found := re.fullmatch(r"register:(\d+)", text):
            number = int(found[1])
            if number >= layout.num_registers:
                raise ArgumentError(f"got query {text}; the model has {layout.num_registers} registers, from 0")
            return cls(f"register {number}", (layout.positions("registers")[number],))
        if found := re.fullmatch(r"(\d+)\s*,\s*(\d+)", text):
            row, col = int(found[1]), int(found[2])
            return cls(f"patch ({row}, {col})", (layout.patch_position(row, col),))
        raise ArgumentError(f"got query {text!r}; allowed are cls, registers, register:K, R,C (row, column) and mean")


def _default(layout: TokenLayout) -> str:
    return next((kind for kind in ("cls", "registers") if layout.positions(kind)), "mean")


@dataclass(frozen=True)
class AttentionMaps:
    """Hold attention maps of N images: L blocks, H heads (1 where heads are averaged)."""

    summary: dict[str, Any]
    maps: np.ndarray
    """(N, L, H, rows, cols) float32 attention from the query to each patch, after softmax, not renormalised."""
    prefix_mass: np.ndarray
    """(N, L, H, number of prefix tokens) attention from the query to CLS and registers, in that order."""
    outliers: np.ndarray
    """(N, rows, cols) bool patches over the rule's cutoff at the last block asked for."""
    norms: np.ndarray
    """(N, rows, cols) float32 token norms there."""
    rollout: np.ndarray
    """(N, rows, cols) float32 attention rollout from the query, or (0, rows, cols) where it was not asked for."""
    images: np.ndarray
    """(N, H, W, 3) uint8 images as the model saw them."""
    names: np.ndarray
    """(N,) names of the images."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by the names of their fields."""
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}

    @property
    def num_tokens(self) -> int:
        """T, the number of tokens: 1 / T is the uniform share."""
        return int(np.prod(self.maps.shape[-2:])) + self.prefix_mass.shape[-1]


class AttentionReader:
    """Read what a query attends to, as batches pass; all that figures need of each image is kept in memory."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        query: str | None = None,
        blocks: Sequence[int] | None = None,
        head: int | str = "mean",
        rollout: bool = False,
        most: int | None = None,
    ) -> None:
        """Prepare to read; arguments and what is raised are those of `measure_attention`.

        ``most``: how many of the first images are kept; None for all.
        """
        self._backbone, self._layout, self._head, self._most = backbone, backbone.layout(), head, most
        self._query = Query.parse(query, self._layout)
        self._blocks = [backbone.check_block(b) for b in (blocks if blocks is not None else [backbone.num_blocks - 1])]
        check_head(backbone, head)
        self._named = _sites(backbone, self._query, self._blocks, rollout=rollout)
        self.sites = tuple(self._named.values())
        self._kept: list[dict[str, np.ndarray]] = []
        self._names: list[str] = []

    def update(self, batch: Batch, taken: Mapping[Site, Any], output: Tensor) -> None:
        """Take in one batch."""
        left = len(batch.names) if self._most is None else self._most - len(self._names)
        if left <= 0:
            return
        got = {name: taken[site] for name, site in self._named.items()}
        read = _read(self._backbone, batch, got, self._query, self._layout, head=self._head)
        self._kept.append({name: value[:left] for name, value in read.items()})
        self._names += batch.names[:left]

    def result(self, rule: OutlierRule) -> "AttentionMaps":
        """Put the images together; outliers are those of the rule at the last block asked for, over these images."""
        if not self._kept:
            raise InputError("no image could be read; nothing was measured")
        found = {name: np.concatenate([part[name] for part in self._kept]) for name in self._kept[0]}
        cutoff = rule.cutoff(NormHistogram.of(found["norms"]))
        outliers = found["norms"] >= (np.inf if cutoff is None else cutoff)
        entropy = found.pop("entropy")
        summary = _summary(found, outliers, entropy, self._query, self._blocks, self._head, cutoff, rule)
        return AttentionMaps(summary=summary, outliers=outliers, names=np.array(self._names), **found)


def measure_attention(
    backbone: Backbone,
    batches: Iterable[Batch],
    *,
    query: str | None = None,
    blocks: Sequence[int] | None = None,
    head: int | str = "mean",
    rule: OutlierRule,
    rollout: bool = False,
    autocast: torch.dtype | None = None,
    on_batch: Callable[[Batch], None] | None = None,
) -> AttentionMaps:
    """Measure what a query attends to, over batches of images.

    Attention is computed for the asked-for queries from the model's own queries and keys (or its weights), in float32;
    fused attention stays on. ``head``: ``mean``, ``all`` or a number. ``rollout`` adds attention rollout (`roll_out`).
    Raises `ArgumentError` for a block, head or query that the model does not have, `InputError` without images.
    """
    reader = AttentionReader(backbone, query=query, blocks=blocks, head=head, rollout=rollout)
    run_pass(backbone, batches, [reader], autocast=autocast, on_batch=on_batch)
    return reader.result(rule)


def check_head(backbone: Backbone, head: int | str) -> None:
    """Raise `ArgumentError` for a number that names no head of a model."""
    if isinstance(head, int) and not 0 <= head < backbone.num_heads:
        raise ArgumentError(f"got head {head}; {backbone.spec.name} has heads 0 to {backbone.num_heads - 1}")


def roll_out(patterns: Sequence[Tensor], query: Sequence[int]) -> Tensor:
    """Roll attention out over the blocks: per block (B, T, T), from the first on -> (B, T), rows adding up to 1.

    Abnar and Zuidema (2020, arXiv 2005.00928, section 3): each block's pattern, averaged over heads, is mixed with the
    identity for the residual connection, 0.5 A + 0.5 I, its rows are normalised, and the blocks are multiplied. Only
    the query's row of the product is computed, from the last block back, for every image of the batch.
    """
    row = patterns[-1].new_zeros(len(patterns[-1]), 1, patterns[-1].shape[-1])
    row[:, :, list(query)] = 1 / len(query)
    for pattern in reversed(patterns):
        mixed = pattern + torch.eye(pattern.shape[-1], device=pattern.device)
        row = row @ (mixed / mixed.sum(dim=-1, keepdim=True))  # (B, 1, T)
    return row[:, 0]


def _sites(backbone: Backbone, asked: Query, blocks: Sequence[int], *, rollout: bool) -> dict[str, Site]:
    """Rows of the query at the asked blocks, norms at the last of them, patterns of all blocks for rollout."""

    def mean_row(rows: Tensor) -> Tensor:  # (B, H, Q, T) -> (B, H, T)
        return rows.mean(dim=2)

    many = len(asked.positions) > 64  # averaged in chunks, since (B, H, P, T) numbers would not fit
    kind, reduce = ("received_attention", None) if many else ("attention_rows", mean_row)
    sites = {f"rows{i}": Site(kind, i, queries=asked.positions, reduce=reduce) for i in blocks}
    sites["norms"] = Site("resid_post", blocks[-1], reduce=token_norms)
    if rollout:
        mean_head = _mean_head
        sites |= {f"pattern{i}": Site("pattern", i, reduce=mean_head) for i in range(backbone.num_blocks)}
    return sites


def _mean_head(pattern: Tensor) -> Tensor:  # (B, H, T, T) -> (B, T, T)
    return pattern.mean(dim=1)


def _read(
    backbone: Backbone,
    batch: Batch,
    got: Mapping[str, Any],
    asked: Query,
    layout: TokenLayout,
    *,
    head: int | str,
) -> dict[str, np.ndarray]:
    """Lay out what one batch left: its maps, prefix mass, entropy, norms, rollout and pixels."""
    rows = torch.stack([value for name, value in got.items() if name.startswith("rows")], dim=1)  # (B, L, H, T)
    entropy = -(rows * rows.clamp_min(1e-30).log2()).sum(dim=-1)  # (B, L, H) bits, before heads are averaged
    if head == "mean":
        rows = rows.mean(dim=2, keepdim=True)
    elif isinstance(head, int):
        rows, entropy = rows[:, :, [head]], entropy[:, :, [head]]
    rolled = torch.zeros(0, layout.num_tokens)
    if f"pattern{0}" in got:
        rolled = roll_out([got[f"pattern{i}"] for i in range(backbone.num_blocks)], asked.positions)
    pixels = (backbone.transform.pixels(batch.images) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    found = {
        "maps": layout.to_grid(rows, dim=3),
        "prefix_mass": rows[..., list(layout.prefix)],
        "norms": layout.to_grid(got["norms"]),
        "rollout": layout.to_grid(rolled),
        "entropy": entropy,
        "images": pixels,
    }
    return {name: value.cpu().numpy() for name, value in found.items()}


def _summary(
    found: dict[str, np.ndarray],
    outliers: np.ndarray,
    entropy: np.ndarray,
    asked: Query,
    blocks: Sequence[int],
    head: int | str,
    cutoff: float | None,
    rule: OutlierRule,
) -> dict[str, Any]:
    maps, prefix = found["maps"], found["prefix_mass"]
    on_outliers = (maps * outliers[:, None, None]).sum(axis=(-2, -1))  # (N, L, H)
    tokens = maps.shape[-2] * maps.shape[-1] + prefix.shape[-1]
    return {
        "num_images": len(maps),
        "query": asked.name,
        "query_positions": list(asked.positions) if len(asked.positions) <= 16 else len(asked.positions),
        "blocks": list(blocks),
        "head": head,
        "num_tokens": tokens,
        "entropy_bits": entropy.mean(axis=0).tolist(),
        "entropy_bits_uniform": float(np.log2(tokens)),
        "prefix_share": prefix.sum(axis=-1).mean(axis=0).tolist(),
        "outlier_share": on_outliers.mean(axis=0).tolist(),
        "outlier_fraction": float(outliers.mean()),
        "outlier_block": blocks[-1],
        "rule": str(rule),
        "cutoff": cutoff,
    }
