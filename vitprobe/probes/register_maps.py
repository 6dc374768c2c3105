"""What CLS and each register attend to: maps, their means over images, and how far two of them overlap."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitprobe.backbones.base import Backbone
from vitprobe.errors import ArgumentError, InputError
from vitprobe.probes.batch import Batch
from vitprobe.probes.by_image import METHOD, Estimate, ImageMeans, image_weights, interval_of, outlier_mask
from vitprobe.recorder import Site, token_norms

MEASURES = ("cosine", "intersection")
"""Of two maps over the P patches: their cosine, and the sum of the lesser of both, each brought to a sum of 1."""
KINDS = ("image", "shuffled", "between")
"""Both maps of one image; what is expected of them with the positions of one shuffled; maps of different images."""
NUM_POOL = 64
"""Images whose maps are kept to be set against each other; chosen at random, whatever their number and order."""
THUMBNAIL = 224
"""Longest side, in pixels, of the pictures that are kept."""
SMALLEST = 1e-30


@dataclass(frozen=True)
class RegisterMaps:
    """Hold maps of the Q queries, CLS (if there is one) and the R registers, heads averaged, at one block."""

    summary: dict[str, Any]
    maps: np.ndarray
    """(N, Q, rows, cols) float32 attention to each patch, after softmax, not renormalised, of the first N images."""
    mean_maps: np.ndarray
    """(Q, rows, cols) their mean over all images."""
    prefix: np.ndarray
    """(Q, Q) mean attention of each query (first axis) to CLS and to each register."""
    cosine: np.ndarray
    """(3, Q, Q) overlap of two queries' maps, mean over images, by `KINDS`; nan where it cannot be measured."""
    intersection: np.ndarray
    """(3, Q, Q) the same of the other measure."""
    outliers: np.ndarray
    """(N, rows, cols) bool patches at or over the cutoff."""
    images: np.ndarray
    """(N, h, w, 3) uint8"""
    names: np.ndarray
    """(N,) names of the images."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by the names of their fields."""
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}

    @property
    def queries(self) -> list[str]:
        """``CLS``, ``register 0`` ...: the names of the queries."""
        return self.summary["queries"]

    @property
    def num_tokens(self) -> int:
        """T, the number of tokens: 1 / T is the uniform share."""
        return int(np.prod(self.mean_maps.shape[1:])) + len(self.mean_maps)


def mean_of_heads(rows: Tensor) -> Tensor:
    """Average rows of the pattern over heads: (B, H, Q, T) -> (B, Q, T)."""
    return rows.mean(dim=1)


class RegisterMapReader:
    """Read what CLS and each register attend to, as batches pass; memory does not grow with the number of images."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        block: int,
        cutoff: float | None = None,
        num_shown: int = 6,
        num_pool: int = NUM_POOL,
        seed: int = 0,
    ) -> None:
        """Prepare to read attention of a block; a patch whose norm after it is ``cutoff`` or over is an outlier.

        ``num_shown`` of the first images are kept for figures, ``num_pool`` random ones to be set against each other.
        Raises `ArgumentError` for a block that the model does not have, or numbers below 1 and 2.
        """
        if type(num_shown) is not int or type(num_pool) is not int or num_shown < 1 or num_pool < 2:
            raise ArgumentError(f"got {num_shown} images to show and {num_pool} to compare; give at least 1 and 2")
        self._backbone, self._layout, self._cutoff = backbone, backbone.layout(), cutoff
        self._block, self._num_shown, self._num_pool = backbone.check_block(block), num_shown, num_pool
        self._seed, self._prefix = seed, self._layout.prefix
        self._rows = Site("attention_rows", block, queries=self._prefix, reduce=mean_of_heads)
        self._norms = Site("resid_post", block, reduce=token_norms)
        self.sites: Sequence[Site] = (self._rows, self._norms) if self._prefix else ()
        self.queries = ["CLS"] * (self._layout.cls is not None)
        self.queries += [f"register {k}" for k in range(self._layout.num_registers)]
        self._groups = groups_of(self._layout.cls is not None, self._layout.num_registers)
        size = len(self.queries)
        self.num_images = 0
        self._maps = np.zeros((size, self._layout.num_patches))
        self._shares = np.zeros((size, size))
        self._overlaps = {f"{m}.{k}": np.zeros((size, size)) for m in MEASURES for k in KINDS[:2]}
        self._means = ImageMeans([f"{name}.{group}" for name in self._overlaps for group in self._groups], seed=seed)
        self._shown: list[dict[str, np.ndarray]] = []
        self._names: list[str] = []
        self._pool: dict[int, tuple[float, np.ndarray]] = {}

    def update(self, batch: Batch, taken: Mapping[Site, Any], output: Tensor) -> None:
        """Take in one batch. Raises `ArgumentError` for norms that are not finite."""
        self.num_images += len(batch.indices)
        if not self._prefix:
            return
        rows = taken[self._rows]  # (B, Q, T)
        maps = rows[:, :, self._layout.patches]  # (B, Q, P)
        self._maps += maps.double().sum(0).cpu().numpy()
        self._shares += rows[:, :, list(self._prefix)].double().sum(0).cpu().numpy()
        found = {
            f"{measure}.{kind}": value.double().cpu().numpy()  # (B, Q, Q)
            for kind, overlaps in (("image", overlap(maps, maps)), ("shuffled", overlap_if_shuffled(maps)))
            for measure, value in overlaps.items()
        }
        ones, sums = np.ones(len(maps)), {}
        for name, value in found.items():
            self._overlaps[name] += value.sum(0)
            for group, mask in self._groups.items():
                sums[f"{name}.{group}"] = (value[:, mask].mean(1), ones)
        if sums:
            self._means.add(batch.indices, sums)
        self._keep(batch, maps.cpu().numpy())
        self._show(batch, maps, taken[self._norms])

    def _keep(self, batch: Batch, maps: np.ndarray) -> None:
        """Keep the maps of the images to which chance, by their positions in the source, gave the least numbers."""
        for index, own in zip(batch.indices, maps, strict=True):
            self._pool[index] = (float(np.random.default_rng((self._seed, index, 1)).random()), own)
        for index in sorted(self._pool, key=lambda i: self._pool[i][0])[self._num_pool :]:
            del self._pool[index]

    def _show(self, batch: Batch, maps: Tensor, norms: Tensor) -> None:
        left = self._num_shown - len(self._names)
        over = outlier_mask(norms, self._layout, self._cutoff)
        if left <= 0:
            return
        pixels = self._backbone.transform.pixels(batch.images[:left])
        scale = min(1.0, THUMBNAIL / max(pixels.shape[-2:]))
        if scale < 1:
            size = [round(side * scale) for side in pixels.shape[-2:]]
            pixels = torch.nn.functional.interpolate(pixels, size=size, mode="area")
        self._shown.append(
            {
                "maps": self._layout.to_grid(maps[:left], dim=2).float().cpu().numpy(),
                "outliers": over[:left].reshape(-1, *self._layout.grid),
                "images": (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy(),
            }
        )
        self._names += batch.names[:left]

    def result(self) -> RegisterMaps:
        """Put together what was read. Raises `InputError` without images, `ArgumentError` without CLS and registers."""
        if not self.num_images:
            raise InputError("no image could be read; nothing was measured")
        if not self._prefix:
            raise ArgumentError(f"{self._backbone.spec.name} has neither CLS nor registers, whose maps could be drawn")
        between, estimates = compare_images(self._pool, self._groups, seed=self._seed)
        for name in self._overlaps:
            for group in self._groups:
                estimates.setdefault(group, {})[name] = self._means.estimate(f"{name}.{group}").as_dict()
        matrices = {
            measure: np.stack([*(self._overlaps[f"{measure}.{k}"] / self.num_images for k in KINDS[:2]), matrix])
            for measure, matrix in between.items()
        }
        return RegisterMaps(
            summary={
                "queries": self.queries,
                "num_registers": self._layout.num_registers,
                "block": self._block,
                "head": "mean",
                "num_images": self.num_images,
                "num_compared": len(self._pool),
                "cutoff": self._cutoff,
                "overlaps": estimates,
                "interval": METHOD,
            },
            mean_maps=(self._maps / self.num_images).reshape(-1, *self._layout.grid),
            prefix=self._shares / self.num_images,
            names=np.array(self._names),
            **matrices,
            **{name: np.concatenate([part[name] for part in self._shown]) for name in self._shown[0]},
        )


def groups_of(has_cls: bool, num_registers: int) -> dict[str, np.ndarray]:
    """Return the pairs of queries whose overlaps are averaged, as masks (Q, Q), by name; only those that are there.

    ``registers``: two different registers; ``cls_register``: CLS and a register; ``register``, ``cls``: a query and
    itself, which says something of different images, or of shuffled positions, alone.
    """
    is_cls = np.arange(has_cls + num_registers) < has_cls  # (Q,)
    same = np.eye(len(is_cls), dtype=bool)
    masks = {
        "registers": ~is_cls[:, None] & ~is_cls & ~same,
        "cls_register": is_cls[:, None] != is_cls,
        "register": same & ~is_cls,
        "cls": same & is_cls,
    }
    return {name: mask for name, mask in masks.items() if mask.any()}


def overlap(one: Tensor, other: Tensor) -> dict[str, Tensor]:
    """Measure how far maps overlap: (..., Q, P) twice -> (..., Q, Q) by `MEASURES`, queries of ``one`` first.

    Histogram intersection is that of Swain and Ballard (1991, doi 10.1007/BF00130487).
    """
    p, q = (x.float() / x.float().sum(-1, keepdim=True).clamp_min(SMALLEST) for x in (one, other))
    cosine = _unit(p) @ _unit(q).transpose(-1, -2)
    rows = [torch.minimum(p[..., [a], :], q).sum(-1) for a in range(p.shape[-2])]  # (..., Q) each
    return {"cosine": cosine, "intersection": torch.stack(rows, dim=-2)}


def overlap_if_shuffled(maps: Tensor) -> dict[str, Tensor]:
    """Compute the overlap that is expected where one map's patches are shuffled: (B, Q, P) -> (B, Q, Q).

    The mean over all orders, exactly: of the cosine sum(p) sum(q) / (P |p| |q|), of the intersection the mean over all
    pairs of patches of the lesser, times P.
    """
    p = maps.float() / maps.float().sum(-1, keepdim=True).clamp_min(SMALLEST)  # (B, Q, P)
    number = p.shape[-1]
    share = _unit(p).sum(-1) / number**0.5  # (B, Q)
    ordered = p.sort(-1).values
    below = torch.nn.functional.pad(ordered.cumsum(-1), (1, 0))  # (B, Q, P + 1) sum of the k least
    rows = []
    for a in range(p.shape[1]):
        own = p[:, [a]].expand_as(p).contiguous()  # (B, Q, P)
        rank = torch.searchsorted(ordered, own, right=True)
        rows.append((below.gather(-1, rank) + own * (number - rank)).sum(-1) / number)
    return {"cosine": share[:, :, None] * share[:, None], "intersection": torch.stack(rows, dim=1)}


def compare_images(
    pool: Mapping[int, tuple[float, np.ndarray]], groups: Mapping[str, np.ndarray], *, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
    """Set the maps of each image against those of every other: mean overlaps (Q, Q), and their means by group.

    What overlaps between images is driven by position. Intervals resample images, and leave pairs of one image out.
    """
    maps = torch.from_numpy(np.stack([pool[index][1] for index in sorted(pool)]))  # (K, Q, P)
    number, size = maps.shape[:2]
    found = {measure: np.zeros((number, number, size, size)) for measure in MEASURES}
    for i in range(number):
        for measure, value in overlap(maps[i].expand_as(maps), maps).items():
            found[measure][i] = value.numpy()  # (K, Q, Q)
    weights = image_weights(sorted(pool), seed=seed)  # (K, replicates)
    apart = ~np.eye(number, dtype=bool)
    pairs = np.maximum(weights.sum(0) ** 2 - (weights**2).sum(0), 0)
    matrices, estimates = {}, {}
    for measure, every in found.items():
        matrices[measure] = every[apart].mean(0) if number > 1 else np.full((size, size), np.nan)
        for group, mask in groups.items():
            value = every[:, :, mask].mean(-1) * apart  # (K, K)
            with np.errstate(invalid="ignore", divide="ignore"):
                replicates = np.einsum("ir,ij,jr->r", weights, value, weights, optimize=True) / pairs
            mean = float(value[apart].mean()) if number > 1 else None
            estimate = Estimate(mean, interval_of(replicates) if number > 2 else None, number)
            estimates.setdefault(group, {})[f"{measure}.between"] = estimate.as_dict()
    return matrices, estimates


def _unit(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(SMALLEST)
