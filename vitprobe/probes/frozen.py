"""What one vector an image tells of its class: linear classification of frozen features, and nearest neighbours.

The protocol nearest to it is that of DINOv2 (Oquab et al., arXiv 2304.07193), which table 2 a of Darcet et al.
(arXiv 2309.16588) follows: a linear classifier on CLS, and on the mean of the patches beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitprobe.backbones.base import Backbone
from vitprobe.errors import ArgumentError, InputError
from vitprobe.probes.batch import Batch
from vitprobe.probes.feature_file import FeatureFile, feature_site
from vitprobe.probes.knn import TEMPERATURE, K, KnnResult, knn_accuracy
from vitprobe.probes.linear import C_GRID, LogisticResult, logistic_probe
from vitprobe.recorder import Site, token_norms

FEATURES = ("cls", "cls+mean", "mean")
"""CLS, CLS and the mean of the patches side by side, the mean of the patches."""


@dataclass(frozen=True)
class ImageFeatures:
    """Hold the vectors of N images, on disk, and what their means were taken over."""

    rows: np.ndarray
    """(N, kD) float32, a memory map: mean of the patches, CLS if there is one, mean of the patches under the cutoff if
    there is one. In this order, whatever is asked for stands side by side."""
    images: np.ndarray
    """(N,) position of each image in its source."""
    width: int
    """D"""
    has_cls: bool
    has_cutoff: bool
    num_patches: int
    """Patches of all images."""
    num_outliers: int
    """Those at or over the cutoff; 0 where there is none."""
    num_all_outliers: int
    """Images that have no patch under the cutoff; the mean of all their patches stands in both places."""

    def take(self, features: str, *, without_outliers: bool = False) -> np.ndarray:
        """Return one of `FEATURES`, (N, D) or (N, 2 D), still on disk; a model without CLS gives the mean for all.

        Raises `ArgumentError` for other features, and for a mean without outliers where no cutoff was given.
        """
        if features not in FEATURES:
            raise ArgumentError(f"got features {features!r}; allowed are {', '.join(FEATURES)}")
        if without_outliers and not self.has_cutoff:
            raise ArgumentError("no cutoff was given, so no patch is an outlier; ask for the mean of all patches")
        mean = self.rows.shape[1] // self.width - 1 if without_outliers else 0
        cls = 1 if self.has_cls else mean
        parts = {"cls": (cls, cls), "mean": (mean, mean), "cls+mean": (min(cls, mean), max(cls, mean))}[features]
        return self.rows[:, parts[0] * self.width : (parts[1] + 1) * self.width]


class ImageFeatureReader:
    """Gather one row an image into a file: CLS, the mean of the patches, and the mean of those that are no outliers."""

    def __init__(
        self, backbone: Backbone, path: Path, *, block: int, point: str = "auto", cutoff: float | None = None
    ) -> None:
        """Prepare to read ``backbone`` at a point (see `feature_site`); norms of ``block`` from ``cutoff`` on, None
        where the rule found none, make a patch an outlier."""
        self.site = feature_site(backbone, block, point)
        self._norms = Site("resid_post", block, reduce=token_norms)
        self.sites: Sequence[Site] = (self.site,) if cutoff is None else (self.site, self._norms)
        self._layout, self._width, self._cutoff = backbone.layout(), backbone.width, cutoff
        kinds = 1 + (self._layout.cls is not None) + (cutoff is not None)
        self._file = FeatureFile(path, kinds * backbone.width)
        self._images: list[int] = []
        self._outliers, self._only_outliers = 0, 0
        self._found: ImageFeatures | None = None

    def update(self, batch: Batch, taken: Mapping[Site, Any], output: Tensor) -> None:
        """Write the rows of a batch."""
        tokens = taken[self.site].float()  # (B, T, D)
        patches = tokens[:, self._layout.patches]  # (B, P, D)
        parts = [patches.mean(1)]
        if self._layout.cls is not None:
            parts.append(tokens[:, self._layout.cls].flatten(1))
        if self._cutoff is not None:
            kept = taken[self._norms][:, self._layout.patches] < self._cutoff  # (B, P)
            self._outliers += int((~kept).sum())
            self._only_outliers += int((~kept.any(1)).sum())
            kept = kept | ~kept.any(1, keepdim=True)
            weights = kept.float() / kept.sum(1, keepdim=True)  # (B, P)
            parts.append(torch.einsum("bp,bpd->bd", weights, patches))
        self._file.add(torch.cat(parts, 1).cpu().numpy())
        self._images += batch.indices

    def finish(self) -> ImageFeatures:
        """Close the file and return what was gathered; asked again, the same. Raises `InputError` without any image."""
        if not self._images:
            raise InputError("no image could be read; there are no features")
        if self._found is None:
            rows, layout = self._file.finish(), self._layout
            self._found = ImageFeatures(
                rows=rows,
                images=np.array(self._images, dtype=np.int64),
                width=self._width,
                has_cls=layout.cls is not None,
                has_cutoff=self._cutoff is not None,
                num_patches=len(rows) * layout.num_patches,
                num_outliers=self._outliers,
                num_all_outliers=self._only_outliers,
            )
        return self._found


@dataclass(frozen=True)
class Known:
    """Hold the features of N images whose class is known."""

    features: np.ndarray
    """(N, D), on disk where all images have a class, else in memory."""
    labels: np.ndarray
    """(N,)"""


def known(found: ImageFeatures, labels: np.ndarray, features: str, *, without_outliers: bool = False) -> Known:
    """Return features beside classes: ``labels`` are those of the whole source, -1 where an image has none."""
    own, rows = np.asarray(labels)[found.images], found.take(features, without_outliers=without_outliers)
    return Known(rows, own) if (own >= 0).all() else Known(rows[own >= 0], own[own >= 0])


def classify(
    train: Known,
    test: Known,
    *,
    seeds: Sequence[int] = (0,),
    grid: Sequence[float] = C_GRID,
    solver: str = "sklearn",
    device: torch.device | str = "cpu",
) -> list[LogisticResult]:
    """Train and test a logistic regression, once a seed; the seed draws the images on which C is chosen.

    See `logistic_probe`, which also says what is refused.
    """
    return [
        logistic_probe(
            train.features, train.labels, test.features, test.labels,
            grid=grid, seed=seed, solver=solver, device=device,
        )
        for seed in seeds
    ]  # fmt: skip


def nearest(train: Known, test: Known, *, k: int = K, temperature: float = TEMPERATURE) -> KnnResult:
    """Classify test images by their nearest training images, as DINO does; see `knn_accuracy`."""
    return knn_accuracy(train.features, train.labels, test.features, test.labels, k=k, temperature=temperature)
