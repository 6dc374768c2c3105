"""The first principal component of patch features, and how far outliers stand out in it.

Figure 20 of Darcet et al. (arXiv 2309.16588) shows it whitened, from -3 to 3 standard deviations, over the feature maps
that the models put out. The paper does not say over which patches it is fitted: all images' or each image's own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from vitprobe.backbones.base import Backbone
from vitprobe.errors import ArgumentError, InputError
from vitprobe.probes.batch import Batch
from vitprobe.probes.by_image import (
    METHOD,
    NO_OUTLIERS,
    REPLICATES,
    Estimate,
    ImageMeans,
    image_weights,
    interval_of,
    outlier_mask,
)
from vitprobe.probes.norm_stats import Examples
from vitprobe.recorder import Site, token_norms

OVER = ("images", "each")
POINTS = ("output", "resid_post", "final_norm")
FITS = ("all", "without_outliers")
"""What a component is fitted on: all patches, or those that are no outliers. The second has not seen the outliers
and fits the noise of the others, so its AUROC can be a little under 0.5 by that alone: of Gaussian features, the worst
case, 0.45 with 40 D patches and 0.47 with 200 D."""
CLAIM = "outliers stand out in the first principal component of all patches"
NUM_SHARES = 10
"""Components whose share of the variance is kept."""
CHANCE = 0.5
LIMIT = 3.0
"""Standard deviations at which the figure's scale ends."""


@dataclass(frozen=True)
class Component:
    """Hold the first principal component of patches."""

    mean: np.ndarray
    """(D,)"""
    direction: np.ndarray
    """(D,) of norm 1; its sign means nothing."""
    variance: float
    """Along the direction."""
    shares: np.ndarray
    """(K,) share of the variance of the first components."""

    def scores(self, patches: np.ndarray) -> np.ndarray:
        """Project patches (..., D) on the component, in its standard deviations: (...)."""
        return (patches.astype(float) - self.mean) @ self.direction / np.sqrt(self.variance)


class Moments:
    """Sum patches and their products: their principal components are exact, however the images came; merges.

    It takes D x D numbers where scikit-learn's `IncrementalPCA`, which keeps its first components alone, is an
    approximation that depends on the order of the images.
    """

    def __init__(self, width: int) -> None:
        self.number = 0
        self.total = np.zeros(width)
        self.products = np.zeros((width, width))

    def add(self, patches: Tensor) -> None:
        """Take in patches (n, D)."""
        x = (patches.cpu() if patches.device.type == "mps" else patches).double()  # mps has no float64
        self.number += len(x)
        self.total += x.sum(dim=0).cpu().numpy()
        self.products += (x.T @ x).cpu().numpy()

    def merge(self, other: "Moments") -> None:
        """Add what another has summed."""
        self.number += other.number
        self.total += other.total
        self.products += other.products

    def component(self) -> Component:
        """Return the first component. Raises `InputError` where patches do not differ."""
        from scipy.linalg import eigh

        if self.number < 2:
            raise InputError(f"got {self.number} patches; a principal component needs 2 or more that differ")
        mean = self.total / self.number
        covariance = (self.products - self.number * np.outer(mean, mean)) / (self.number - 1)
        width = len(mean)
        values, vectors = eigh(covariance, subset_by_index=[max(0, width - NUM_SHARES), width - 1])  # rising
        if not values[-1] > 0:
            raise InputError("the patches do not differ; there is no principal component")
        shares = values[::-1].clip(0) / np.trace(covariance)
        return Component(mean, vectors[:, -1], float(values[-1]), shares)


def image_component(patches: np.ndarray) -> Component:
    """Fit the first component of an image's patches, (n, D), by scikit-learn's `PCA`; direction 0 if all are equal."""
    x = patches.astype(float)
    if not np.ptp(x, axis=0).any():  # nothing to see, and nothing to fit
        return Component(x.mean(axis=0), np.zeros(x.shape[1]), 1.0, np.zeros(1))
    fit = PCA(1, svd_solver="arpack", random_state=0).fit(x)
    return Component(fit.mean_, fit.components_[0], float(fit.explained_variance_[0]), fit.explained_variance_ratio_)


def oriented(scores: np.ndarray) -> np.ndarray:
    """Give scores the sign that has the longer tail positive, by their third moment: one that models can share."""
    return -scores if ((scores - scores.mean()) ** 3).sum() < 0 else scores


def auroc(ranks: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> float:
    """Return the chance that a positive ranks over a negative, ties half, by weights: (n,) each; nan without both.

    ``ranks`` are whole numbers from 0 on, equal for equal scores: the inverse of `numpy.unique`.
    """
    above, below = np.bincount(ranks, weights * positive), np.bincount(ranks, weights * ~positive)
    pairs = above.sum() * below.sum()
    return float(above @ (np.cumsum(below) - below / 2) / pairs) if pairs else float("nan")


def separation(scores: np.ndarray, outliers: np.ndarray, indices: Sequence[int], *, seed: int) -> Estimate:
    """Estimate the AUROC of outliers by the scores' size, (N, P) each, over the patches of all N images together.

    The interval is over images, given by their positions in the source; the component is held as it is.
    """
    number = int(outliers.any(axis=1).sum())
    if not number or outliers.all():
        return Estimate(None, None, 0)
    ranks, mask = np.unique(np.abs(scores), return_inverse=True)[1].ravel(), outliers.ravel()
    weights = image_weights(indices, seed=seed)  # (N, R)
    repeated = [auroc(ranks, mask, weights[:, r].repeat(scores.shape[1])) for r in range(REPLICATES)]
    interval = interval_of(np.array(repeated)) if number > 1 else None
    return Estimate(auroc(ranks, mask, np.ones(ranks.size)), interval, number)


@dataclass(frozen=True)
class Components:
    """Hold the first principal component of one model's patches, fitted twice: in the order of `FITS`."""

    summary: dict[str, Any]
    """Claim and answer; ``variance``, ``auroc`` and ``beyond`` (share of outliers over 3 standard deviations) by fit,
    each an `Estimate`; counts, choices."""
    shares: np.ndarray
    """(2, K) share of the variance of the first components; one, the mean over images, where each image has its own."""
    example_maps: np.ndarray
    """(2, E, rows, cols) scores of the first images' patches, in standard deviations of the component's fit."""
    example_outliers: np.ndarray
    """(E, rows, cols) bool"""
    example_images: np.ndarray
    """(E, h, w, 3) uint8"""
    example_names: np.ndarray
    """(E,)"""

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by the names of their fields."""
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}


class ComponentReader:
    """Read patch features as batches pass: their moments of all images, and themselves of the first."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        block: int,
        cutoff: float | None,
        over: str = "images",
        point: str = "output",
        num_shown: int = 8,
        num_scored: int = 64,
        seed: int = 0,
    ) -> None:
        """Prepare to read. Outliers have a norm at or over ``cutoff`` after ``block``; there are none without one.

        ``over``: the component is that of all ``images``, or of ``each``. ``point``: ``resid_post`` of the block;
        ``final_norm``, after the norm that follows the last block; ``output``, the latter where the model has it and
        the block is the last, else the former. The features of the first ``num_scored`` images, P x D numbers each, are
        held in memory, to be scored once the component is known; of these the first ``num_shown`` are drawn. Raises
        `ArgumentError` for what is not allowed or what the model does not have.
        """
        for name, got, allowed in (("over", over, OVER), ("point", point, POINTS)):
            if got not in allowed:
                raise ArgumentError(f"got {name} {got!r}; allowed are {', '.join(allowed)}")
        if not 1 <= num_shown <= num_scored:
            raise ArgumentError(
                f"got {num_shown} images to show of {num_scored} scored; show 1 or more, and score them"
            )
        self._backbone, self._layout, self._cutoff = backbone, backbone.layout(), cutoff
        self._over, self._num_scored, self._seed = over, num_scored, seed
        self._block, self._point = block, _point(backbone, backbone.check_block(block), point)
        self._features = Site(self._point, block if self._point == "resid_post" else None)
        self._norms = Site("resid_post", block, reduce=token_norms)
        self.sites = (self._features, self._norms)
        self.moments = {kind: Moments(backbone.width) for kind in ("outliers", "others")}
        self._examples = Examples(num_shown)
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        """Features (P, D) and outliers (P,) of the images that are scored, by position in the source."""
        self._num_images = 0

    def update(self, batch: Batch, taken: Mapping[Site, Any], output: Tensor) -> None:
        """Take in one batch. Raises `ArgumentError` for norms that are not finite."""
        norms, outliers = taken[self._norms], outlier_mask(taken[self._norms], self._layout, self._cutoff)
        patches = taken[self._features][:, self._layout.patches].float()  # (B, P, D)
        for kind, mask in (("outliers", outliers), ("others", ~outliers)):
            self.moments[kind].add(patches[torch.from_numpy(mask).to(patches.device)])
        for i, index in enumerate(batch.indices):
            if len(self._kept) < self._num_scored or index < max(self._kept):
                self._kept[index] = patches[i].cpu().numpy(), outliers[i]
        self._kept = {index: self._kept[index] for index in sorted(self._kept)[: self._num_scored]}
        if self._examples.wants(batch.indices):
            pixels = self._backbone.transform.pixels(batch.images)
            shown = norms[:, self._layout.patches].cpu().numpy().reshape(len(outliers), *self._layout.grid)
            self._examples.add(batch.names, batch.indices, pixels, shown)
        self._num_images += len(outliers)

    def result(self) -> Components:
        """Fit and score. Raises `InputError` without any image, or where patches do not differ."""
        if not self._num_images:
            raise InputError("no image was measured; nothing can be said of its patches")
        features, outliers = (np.stack(parts) for parts in zip(*self._kept.values(), strict=True))  # (N, P, D), (N, P)
        fitted = [self._fit(features, outliers, without=without) for without in (False, True)]
        scores, shares, variances = zip(*fitted, strict=True)
        number = {kind: moments.number for kind, moments in self.moments.items()}
        aurocs = [separation(s, outliers, list(self._kept), seed=self._seed) for s in scores]
        beyond = [self._beyond(s, outliers) for s in scores]
        summary = {
            "claim": CLAIM,
            "answer": aurocs[0].exceeds(CHANCE) if number["outliers"] else NO_OUTLIERS,
            "over": self._over,
            "point": self._point,
            "block": self._block,
            "variance": _by_fit(variances),
            "auroc": _by_fit(aurocs),
            "beyond": _by_fit(beyond),
            "num_images": self._num_images,
            "num_scored": len(self._kept),
            "num_outliers": number["outliers"],
            "num_others": number["others"],
            "interval": f"{METHOD}; the component is held",
        }
        names, images, norms = zip(*self._examples.kept.values(), strict=True)
        maps = np.stack(scores)[:, : len(names)].reshape(2, len(names), *self._layout.grid)
        over = np.stack(norms) >= (np.inf if self._cutoff is None else self._cutoff)
        return Components(summary, np.stack(shares), maps, over, np.stack(images), np.array(names))

    def _fit(
        self, features: np.ndarray, outliers: np.ndarray, *, without: bool
    ) -> tuple[np.ndarray, np.ndarray, Estimate]:
        """Return scores (N, P), shares of the variance (K,), and that of the first component."""
        if self._over == "images":
            moments = Moments(features.shape[-1])
            moments.merge(self.moments["others"])
            if not without:
                moments.merge(self.moments["outliers"])
            component = moments.component()
            share = Estimate(float(component.shares[0]), None, self._num_images)
            return oriented(component.scores(features)), component.shares, share
        pairs = list(zip(features, outliers, strict=True))
        fits = [image_component(x[~mask] if without and not mask.all() else x) for x, mask in pairs]
        scores = np.stack([oriented(fit.scores(x)) for fit, x in zip(fits, features, strict=True)])
        means = ImageMeans(["share"], seed=self._seed)
        means.add(list(self._kept), {"share": (np.array([fit.shares[0] for fit in fits]), np.ones(len(fits)))})
        share = means.estimate("share")
        return scores, np.array([share.value]), share

    def _beyond(self, scores: np.ndarray, outliers: np.ndarray) -> Estimate:
        """Return the share of outliers that the figure's scale cuts off."""
        means = ImageMeans(["beyond"], seed=self._seed)
        over = (np.abs(scores) > LIMIT) & outliers
        means.add(list(self._kept), {"beyond": (over.sum(axis=1), outliers.sum(axis=1))})
        return means.estimate("beyond")


def _point(backbone: Backbone, block: int, asked: str) -> str:
    """Return where features are read, ``resid_post`` or ``final_norm``."""
    has_norm = backbone.final_norm is not None and block == backbone.num_blocks - 1
    if asked == "final_norm" and not has_norm:
        raise ArgumentError(
            f"{backbone.spec.name} has no norm that all tokens pass right after block {block}; give resid_post"
        )
    return asked if asked != "output" else "final_norm" if has_norm else "resid_post"


def _by_fit(estimates: Sequence[Estimate]) -> dict[str, Any]:
    return {fit: estimate.as_dict() for fit, estimate in zip(FITS, estimates, strict=True)}
