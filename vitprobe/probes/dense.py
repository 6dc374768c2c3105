"""What a linear map reads, from single patch tokens, of the class and the depth of every pixel (Table 2 a).

Darcet et al. (arXiv 2309.16588) follow DINOv2 (Oquab et al., arXiv 2304.07193, section 7.4): a linear layer on frozen
patch tokens, upsampled bilinearly. Here the map is fitted to drawn pixels by logistic or ridge regression.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vitprobe.backbones.base import Backbone
from vitprobe.probes.batch import Batch
from vitprobe.probes.dense_sample import PixelSample, Truth
from vitprobe.probes.dense_scores import DepthErrors, MaskCounts, confusion_sums, depth_sums
from vitprobe.probes.feature_file import feature_site
from vitprobe.probes.linear import C_GRID, fit_logistic, fit_ridge
from vitprobe.probes.linear_fit import LinearMap, hold_out
from vitprobe.recorder import Site

STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4)
"""Pixels for which the mean of all positions counts in that of each, of which the best on held-out images is taken."""
FEATURES, POSITION, NOISE, CONSTANT = "features", "position", "noise", "constant"


@dataclass(frozen=True)
class DenseFit:
    """Hold what is known, after training, of the pixels of a patch: from its features, its position, or nothing."""

    features: LinearMap
    """To one logit a class of ``classes``, or to a depth."""
    noise: LinearMap
    """The same, fitted to random features."""
    position: np.ndarray
    """(P, K) logits, or depths, of each position of the grid."""
    constant: float
    """The most frequent class, or the mean depth."""
    classes: np.ndarray
    """(K,) classes that were drawn in training, sorted; empty for depth."""
    strengths: Mapping[str, float]
    """Of the L2 term (C, or alpha), and of the shrinkage of positions, as chosen on held-out images."""
    notes: tuple[str, ...]


def fit_masks(
    sample: PixelSample,
    *,
    grid: Sequence[float] = C_GRID,
    seed: int = 0,
    solver: str = "torch",
    device: torch.device | str = "cpu",
) -> DenseFit:
    """Fit the classes of drawn pixels by logistic regression, C chosen by the accuracy on a fifth of the images.

    Of positions, by the shares of classes there, shrunk to those of all positions. Raises `ArgumentError` for pixels of
    one class, and what `fit_logistic` refuses.
    """
    fits = {
        kind: fit_logistic(
            getattr(sample, kind), sample.targets, groups=sample.images,
            grid=grid, seed=seed, solver=solver, device=device,
        )
        for kind in (FEATURES, NOISE)
    }  # fmt: skip
    classes, codes, counts = np.unique(sample.targets, return_inverse=True, return_counts=True)
    shares, strength = _by_position(sample, codes, len(classes), seed)
    return DenseFit(
        features=fits[FEATURES].map,
        noise=fits[NOISE].map,
        position=np.log(shares),
        constant=float(classes[counts.argmax()]),
        classes=classes,
        strengths={kind: fit.strength for kind, fit in fits.items()} | {POSITION: strength},
        notes=fits[FEATURES].notes,
    )


def fit_depth(sample: PixelSample, *, seed: int = 0) -> DenseFit:
    """Fit the depths of drawn patches by ridge regression, alpha chosen by the error on a fifth of the images.

    Of positions, by the mean there, shrunk to that of all positions.
    """
    targets = sample.targets[:, None]
    fits = {
        kind: fit_ridge(getattr(sample, kind), targets, groups=sample.images, seed=seed) for kind in (FEATURES, NOISE)
    }
    means, strength = _by_position(sample, None, 1, seed)
    return DenseFit(
        features=fits[FEATURES].map,
        noise=fits[NOISE].map,
        position=means,
        constant=float(targets.mean()),
        classes=np.array([]),
        strengths={kind: fit.strength for kind, fit in fits.items()} | {POSITION: strength},
        notes=fits[FEATURES].notes,
    )


def _by_position(sample: PixelSample, codes: np.ndarray | None, number: int, seed: int) -> tuple[np.ndarray, float]:
    """Average targets over each position, shrunk to the mean of all: (P, K) shares, or (P, 1) depths; and how much."""

    def table(rows: np.ndarray, strength: float) -> np.ndarray:
        patches, size = sample.patches[rows], sample.grid[0] * sample.grid[1]
        if codes is None:
            sums = np.bincount(patches, sample.targets[rows], size)[:, None]  # (P, 1)
        else:
            sums = np.bincount(patches * number + codes[rows], minlength=size * number).reshape(size, number)
        counts = np.bincount(patches, minlength=size)[:, None]
        return (sums + strength * sums.sum(0) / len(rows)) / (counts + strength)

    def error(found: np.ndarray, rows: np.ndarray) -> float:
        told = found[sample.patches[rows]]  # (n, K)
        if codes is None:
            return float(((told[:, 0] - sample.targets[rows]) ** 2).mean())
        return float((told.argmax(1) != codes[rows]).mean())

    rest, held = hold_out(np.zeros(len(sample.images), int) if codes is None else codes, sample.images, seed)
    errors = [error(table(rest, strength), held) for strength in STRENGTHS[::-1]]
    strength = STRENGTHS[::-1][int(np.argmin(errors))]
    found = table(np.arange(len(sample.images)), strength)
    return found, strength


class PatchMap:
    """Map the features of patches (P, D) to K numbers each, on a device."""

    def __init__(self, found: LinearMap, device: torch.device | str) -> None:
        weight = found.weight / found.std  # (K, D) float64: standardising and mapping in one
        self.weight = torch.from_numpy(weight.astype(np.float32)).to(device)
        self.bias = torch.from_numpy((found.bias - weight @ found.mean).astype(np.float32)).to(device)

    def __call__(self, features: Tensor) -> Tensor:
        return F.linear(features.float(), self.weight, self.bias)  # (P, K)


def upsample(values: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Lay numbers of patches on the grid and upsample bilinearly, corners not aligned: (P, K) -> (K, H, W)."""
    maps = values.T.reshape(1, -1, *grid)  # (1, K, rows, cols)
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)[0]


@dataclass(frozen=True)
class Examples:
    """Hold E test images with what is true of them and what was read from the features."""

    images: np.ndarray
    """(E, H, W, 3) uint8, as the model sees them."""
    names: np.ndarray
    """(E,)"""
    truth: np.ndarray
    """(E, H, W) classes, int16, -1 where void; or depths, float32, nan where not measured."""
    predicted: np.ndarray
    """(E, H, W) of the same kind."""


class DenseReader:
    """Read every pixel of the test images by each map, and gather the scores; no map of an image is kept."""

    def __init__(
        self,
        backbone: Backbone,
        truth: Truth,
        fit: DenseFit,
        *,
        block: int,
        point: str = "auto",
        decide: Callable[[Tensor], Tensor],
        compare: Callable[[Tensor, Tensor], np.ndarray],
        gathered: Mapping[str, MaskCounts | DepthErrors],
        seed: int = 0,
        shown: Sequence[int] = (0, 1, 2, 3),
    ) -> None:
        """Prepare to read ``backbone``.

        ``decide``: from upsampled outputs (K, H, W) to predictions (H, W). ``compare``: from those and the truth to
        what an image adds to the scores. ``gathered``: where it is added, by name of the map. ``shown``: positions of
        the images that figures show.
        """
        self.site = feature_site(backbone, block, point)
        self.sites: Sequence[Site] = (self.site,)
        self.gathered = gathered
        self._backbone, self._truth, self._fit, self._seed = backbone, truth, fit, seed
        self._layout, self._size = backbone.layout(), tuple(backbone.spec.image_size)
        self._decide, self._compare, self._shown = decide, compare, frozenset(shown)
        self._device = next(backbone.module.parameters()).device
        self._maps = {kind: PatchMap(getattr(fit, kind), self._device) for kind in (FEATURES, NOISE)}
        self._fixed = {POSITION: self._draw(torch.from_numpy(fit.position).float().to(self._device))}
        if not len(fit.classes):
            self._fixed[CONSTANT] = torch.full_like(self._fixed[POSITION], fit.constant)
        self._examples: dict[str, list[Any]] = {"images": [], "names": [], "truth": [], "predicted": []}

    def _draw(self, values: Tensor) -> Tensor:
        return self._decide(upsample(values, self._layout.grid, self._size))  # (H, W)

    def update(self, batch: Batch, taken: Mapping[Site, Any], output: Tensor) -> None:
        """Read and score each image of a batch."""
        tokens = taken[self.site][:, self._layout.patches]  # (B, P, D)
        added: dict[str, list[np.ndarray]] = {name: [] for name in self.gathered}
        for i, index in enumerate(batch.indices):
            truth = self._truth(index)
            told = torch.from_numpy(truth).to(self._device)
            noise = np.random.default_rng((self._seed, index, 1)).standard_normal(tuple(tokens[i].shape), np.float32)
            noise = torch.from_numpy(noise).to(self._device)
            found = {name: self._draw(self._maps[name](x)) for name, x in ((FEATURES, tokens[i]), (NOISE, noise))}
            for name, kept in added.items():
                kept.append(self._compare((found | self._fixed)[name], told))
            if index in self._shown:
                self._keep(batch, i, truth, found[FEATURES])
        for name, kept in added.items():
            self.gathered[name].add(batch.indices, np.stack(kept))

    def _keep(self, batch: Batch, i: int, truth: np.ndarray, predicted: Tensor) -> None:
        pixels = self._backbone.transform.pixels(batch.images[i : i + 1])[0]  # (3, H, W)
        kind = np.int16 if truth.dtype.kind == "i" else np.float32
        self._examples["images"].append((pixels * 255).round().byte().permute(1, 2, 0).cpu().numpy())
        self._examples["names"].append(batch.names[i])
        self._examples["truth"].append(truth.astype(kind))
        self._examples["predicted"].append(predicted.cpu().numpy().astype(kind))

    def examples(self) -> Examples:
        """Return the images that figures show, as far as they could be read."""
        return Examples(**{name: np.array(one) for name, one in self._examples.items()})


def mask_reader(
    backbone: Backbone, truth: Truth, fit: DenseFit, *, num_classes: int, seed: int = 0, **where: Any
) -> DenseReader:
    """Make the reader that tells the class of every pixel: that of the largest upsampled logit."""
    classes = torch.from_numpy(fit.classes).to(next(backbone.module.parameters()).device)
    return DenseReader(
        backbone,
        truth,
        fit,
        decide=lambda logits: classes[logits.argmax(0)],
        compare=lambda predicted, told: confusion_sums(predicted, told, num_classes),
        gathered={name: MaskCounts(num_classes, seed=seed) for name in (FEATURES, POSITION, NOISE)},
        seed=seed,
        **where,
    )


def depth_reader(
    backbone: Backbone, truth: Truth, fit: DenseFit, *, limits: tuple[float, float], seed: int = 0, **where: Any
) -> DenseReader:
    """Make the reader that tells the depth of every pixel, cut to ``limits``, which are over 0."""
    return DenseReader(
        backbone,
        truth,
        fit,
        decide=lambda depths: depths[0].clamp(*limits),
        compare=depth_sums,
        gathered={name: DepthErrors(seed=seed) for name in (FEATURES, POSITION, NOISE, CONSTANT)},
        seed=seed,
        **where,
    )
