"""Scores of predictions for every pixel: intersection over union of classes, errors of depth; sums that merge."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vitprobe.errors import ArgumentError
from vitprobe.probes.by_image import REPLICATES, ImageMeans, image_weights, interval_of

INTERSECTION, PREDICTED, TRUE = range(3)
DELTA = 1.25
"""Largest ratio, either way, of a depth that counts as right (Eigen et al., arXiv 1406.2283, section 4)."""


def confusion_sums(predicted: Tensor, truth: Tensor, num_classes: int) -> np.ndarray:
    """Count pixels where ``truth`` (H, W) is a class, not -1: (C, 3) int64 intersection, predicted, true of a class."""
    known = truth >= 0
    predicted, truth = predicted[known], truth[known]  # (n,) each
    right = predicted[predicted == truth]
    counts = [torch.bincount(one, minlength=num_classes) for one in (right, predicted, truth)]
    return torch.stack(counts, 1).cpu().numpy()


def iou(sums: np.ndarray) -> np.ndarray:
    """Compute intersection over union: (..., C, 3) -> (..., C); nan for a class neither predicted nor true."""
    union = sums[..., PREDICTED] + sums[..., TRUE] - sums[..., INTERSECTION]
    return np.where(union > 0, sums[..., INTERSECTION] / np.maximum(union, 1), np.nan)


def mean_iou(sums: np.ndarray) -> np.ndarray:
    """Average over the classes that are predicted or true anywhere: (..., C, 3) -> (...); nan without any."""
    each = iou(sums)
    there = np.isfinite(each)
    return np.where(there, each, 0).sum(-1) / np.where(there.any(-1), there.sum(-1), np.nan)


@dataclass(frozen=True)
class MaskScore:
    """Hold how well the classes of pixels were told; intervals are 95 %, by `by_image.METHOD`."""

    mean_iou: float
    """Over the classes that occur in truth or prediction, of all images together."""
    mean_iou_interval: tuple[float, float] | None
    accuracy: float
    """Share of pixels whose class is right, of those that have one."""
    accuracy_interval: tuple[float, float] | None
    iou: np.ndarray
    """(C,) nan for a class neither in truth nor predicted."""
    iou_intervals: np.ndarray
    """(C, 2) nan where there is none."""
    shares: np.ndarray
    """(C,) share of the pixels that are of a class."""
    replicates: np.ndarray
    """(1000,) mean IoU in each replicate. Its weights depend on seed and position of an image alone: the difference of
    two models on the same images, replicate by replicate, has an interval of its own."""
    num_images: int
    """Images with a pixel of known class."""


class MaskCounts:
    """Gather confusion sums over images, and what they would be in each bootstrap replicate; memory is constant."""

    def __init__(self, num_classes: int, *, seed: int = 0) -> None:
        self.seed, self.num_images = seed, 0
        self.sums = np.zeros((num_classes, 3), np.int64)
        self.replicates = np.zeros((num_classes, 3, REPLICATES))

    def add(self, indices: Sequence[int], sums: np.ndarray) -> None:
        """Take in images: their positions in the source, and `confusion_sums` of each, (B, C, 3)."""
        known = sums[..., TRUE].sum(1) > 0  # (B,)
        if known.any():
            weights = image_weights(np.asarray(indices)[known].tolist(), seed=self.seed)  # (B, R)
            self.replicates += np.einsum("bck,br->ckr", sums[known].astype(float), weights, optimize=True)
        self.sums += sums.sum(0)
        self.num_images += int(known.sum())

    def merge(self, other: "MaskCounts") -> None:
        """Add what another has gathered from other images. Raises `ArgumentError` where the two do not match."""
        if (self.seed, self.sums.shape) != (other.seed, other.sums.shape):
            raise ArgumentError("counts of different classes or seeds cannot be merged")
        self.sums += other.sums
        self.replicates += other.replicates
        self.num_images += other.num_images

    def constant(self, guess: int) -> "MaskCounts":
        """Return what the guess of one class for every pixel would have given on the same images."""
        made = MaskCounts(len(self.sums), seed=self.seed)
        made.num_images = self.num_images
        for own, its in ((self.sums, made.sums), (self.replicates, made.replicates)):
            its[:, TRUE] = own[:, TRUE]
            its[guess, PREDICTED], its[guess, INTERSECTION] = own[:, TRUE].sum(0), own[guess, TRUE]
        return made

    def score(self) -> MaskScore:
        """Score what was gathered. Raises `ArgumentError` where no pixel has a class."""
        if not self.num_images:
            raise ArgumentError("no pixel of the test images has a class; give masks that are not void")
        replicates = np.moveaxis(self.replicates, -1, 0)  # (R, C, 3)
        classes = [interval_of(one) or (np.nan, np.nan) for one in iou(replicates).T]
        means, true = mean_iou(replicates), self.sums[:, TRUE]
        with np.errstate(invalid="ignore", divide="ignore"):
            accuracies = replicates[..., INTERSECTION].sum(1) / replicates[..., TRUE].sum(1)
        several = self.num_images > 1
        return MaskScore(
            mean_iou=float(mean_iou(self.sums)),
            mean_iou_interval=interval_of(means) if several else None,
            accuracy=float(self.sums[:, INTERSECTION].sum() / true.sum()),
            accuracy_interval=interval_of(accuracies) if several else None,
            iou=iou(self.sums),
            iou_intervals=np.array(classes) if several else np.full((len(true), 2), np.nan),
            shares=true / true.sum(),
            replicates=means,
            num_images=self.num_images,
        )


DEPTH_SCORES = ("rmse", "pooled_mse", "abs_rel", "delta1")
"""Mean over images of each image's RMSE; mean squared error of all pixels; mean over images of each image's mean
absolute error over the true depth, and of its share of pixels within a ratio of `DELTA`."""


def depth_sums(predicted: Tensor, truth: Tensor) -> np.ndarray:
    """Compare depths where ``truth`` (H, W) is not nan: (5,) mean squared error, RMSE, relative error, share, pixels.

    All nan but the last, 0, for an image without any.
    """
    known = torch.isfinite(truth)
    p, t = (one[known].cpu().double() for one in (predicted, truth))  # (n,) each
    squared, ratio = ((p - t) ** 2).mean(), torch.maximum(p / t, t / p)
    found = [squared, squared.sqrt(), ((p - t).abs() / t).mean(), (ratio < DELTA).double().mean()]
    return np.array([*(float(one) for one in found), len(t)])


class DepthErrors:
    """Gather errors of depth over images; memory is constant."""

    def __init__(self, *, seed: int = 0) -> None:
        self.means = ImageMeans(DEPTH_SCORES, seed=seed)

    def add(self, indices: Sequence[int], sums: np.ndarray) -> None:
        """Take in images: their positions in the source, and `depth_sums` of each, (B, 5)."""
        pixels, there = sums[:, 4], (sums[:, 4] > 0).astype(float)
        squared, rmse, relative, share = np.where(there, sums[:, :4].T, 0.0)  # (B,) each
        pairs = ((rmse, there), (squared * pixels, pixels), (relative, there), (share, there))
        self.means.add(indices, dict(zip(DEPTH_SCORES, pairs, strict=True)))

    def merge(self, other: "DepthErrors") -> None:
        """Add what another has gathered from other images."""
        self.means.merge(other.means)
