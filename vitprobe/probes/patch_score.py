"""Whether the patch most like CLS lies on an object: Patch Score and Point-in-Box of LaSt-ViT (arXiv 2602.22394)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from vitprobe.backbones.base import Backbone
from vitprobe.errors import ArgumentError, InputError
from vitprobe.probes.batch import Batch
from vitprobe.probes.boxes import Boxes, checked_boxes, picture
from vitprobe.probes.by_image import Estimate, outlier_mask
from vitprobe.probes.feature_file import feature_site
from vitprobe.probes.knn import wilson_interval
from vitprobe.probes.token_means import token_mean
from vitprobe.recorder import Site, token_norms

REFERENCES = ("auto", "cls", "mean")
"""What patches are compared with: CLS (arXiv 2602.22394), the mean of the patches, or CLS where there is one."""


@dataclass(frozen=True)
class PatchScores:
    """Hold, of N images that have true boxes, where the patch of highest score lies; in the order of the source."""

    indices: np.ndarray
    """(N,) position of each image in its source."""
    top: np.ndarray
    """(N, 2) row and column of the patch of highest score."""
    in_box: np.ndarray
    """(N,) bool: its centre lies in a true box."""
    is_outlier: np.ndarray
    """(N,) bool: it is an outlier."""
    others_in_box: np.ndarray
    """(N,) 1 where the centre of the highest that is no outlier lies in a true box, else 0; nan of outliers alone."""
    random: np.ndarray
    """(N,) share of patches whose centre lies in a true box: what a patch at random has."""
    centre: np.ndarray
    """(N,) bool: that of the patch in the middle of the grid (of an even number, the one after the middle) does."""
    difference: np.ndarray
    """(N,) mean score of patches in a box less that of the others; nan where an image lacks either."""
    reference: str
    """``cls`` or ``mean``."""
    point: str
    num_without_truth: int
    """Images without a true box, which are left out."""
    seed: int

    def share(self, name: str) -> Estimate:
        """Return the share of images of one of the fields that are yes or no, with Wilson's 95 % interval."""
        values = np.asarray(getattr(self, name), float)
        values = values[np.isfinite(values)]
        if not len(values):
            return Estimate(None, None, 0)
        right, number = int(values.sum()), len(values)
        return Estimate(right / number, wilson_interval(right, number), number)

    def mean(self, name: str) -> Estimate:
        """Return the mean over images of one of the fields, with a bootstrap's 95 % interval over images."""
        return self._mean(np.asarray(getattr(self, name), float))

    def over_random(self) -> Estimate:
        """Return by how much the top patch's share exceeds that of a random one, paired by image."""
        return self._mean(self.in_box - self.random)

    def _mean(self, values: np.ndarray) -> Estimate:
        kept = np.isfinite(values)
        return token_mean((self.indices[kept], values[kept]), seed=self.seed)


@dataclass(frozen=True)
class Example:
    """Hold one image for a figure."""

    picture: np.ndarray
    """(h, w, 3) uint8"""
    scores: np.ndarray
    """(rows, cols) float32"""
    outliers: np.ndarray
    """(rows, cols) bool"""
    boxes: np.ndarray
    """(G, 4) as shares of width and height."""


class PatchScoreReader:
    """Score the patches of images that pass against their true boxes; a few numbers an image are kept."""

    def __init__(
        self,
        backbone: Backbone,
        boxes: Boxes,
        *,
        block: int,
        cutoff: float | None,
        point: str = "auto",
        reference: str = "auto",
        num_examples: int = 0,
        seed: int = 0,
    ) -> None:
        """Prepare to read features at a point of ``block`` (see `feature_site`).

        Outliers have a norm at or over ``cutoff`` after the block; there are none without one. ``boxes`` are in pixels
        of the image as the model sees it. Raises `ArgumentError` for a point, block or reference that the model does
        not have.
        """
        self._layout, self._backbone, self._cutoff = backbone.layout(), backbone, cutoff
        if reference not in REFERENCES:
            raise ArgumentError(f"got reference {reference!r}; allowed are {', '.join(REFERENCES)}")
        if reference == "cls" and self._layout.cls is None:
            raise ArgumentError(f"{backbone.spec.name} has no CLS; give mean or auto")
        self.reference = "mean" if reference == "mean" or self._layout.cls is None else "cls"
        self._boxes = boxes if callable(boxes) else lambda index: boxes.get(index, ())
        self._features = feature_site(backbone, block, point)
        self._norms = Site("resid_post", backbone.check_block(block), reduce=token_norms)
        self.sites: Sequence[Site] = (self._features, self._norms)
        self._centres = patch_centres(self._layout.grid, backbone.patch_size)  # (P, 2)
        self._records: dict[int, tuple[Any, ...] | None] = {}
        self._num_examples, self._seed = num_examples, seed
        self.examples: dict[int, Example] = {}

    def update(self, batch: Batch, taken: Mapping[Site, Any], output: Tensor) -> None:
        """Take in one batch. Raises `ArgumentError` for a box that does not fit, or numbers that are not finite."""
        outliers = outlier_mask(taken[self._norms], self._layout, self._cutoff)  # (B, P)
        tokens = taken[self._features].float()  # (B, T, D)
        patches = tokens[:, self._layout.patches]  # (B, P, D)
        is_cls = self.reference == "cls"
        target = tokens[:, self._layout.cls] if is_cls else patches.mean(dim=1, keepdim=True)  # (B, 1, D)
        scores = nn.functional.cosine_similarity(patches, target, dim=-1).cpu().numpy()  # (B, P)
        if not np.isfinite(scores).all():
            raise ArgumentError("got features that are not finite; try float32, or check the weights")
        for i, (name, index) in enumerate(zip(batch.names, batch.indices, strict=True)):
            boxes = checked_boxes(self._boxes(index), self._backbone.spec.image_size, name)  # (G, 4)
            self._records[index] = self._record(scores[i], outliers[i], boxes) if len(boxes) else None
            if len(boxes) and len(self.examples) < self._num_examples:
                grid, (height, width) = self._layout.grid, self._backbone.spec.image_size
                shown = picture(self._backbone.transform.pixels(batch.images[i : i + 1]))
                parts = (one[i].reshape(grid) for one in (scores, outliers))
                self.examples[index] = Example(shown, *parts, boxes / (width, height, width, height))

    def _record(self, scores: np.ndarray, outliers: np.ndarray, boxes: np.ndarray) -> tuple[Any, ...]:
        """Say of one image what `PatchScores` holds, in the order of its fields."""
        inside = is_inside(self._centres, boxes)  # (P,)
        rows, cols = self._layout.grid
        top = int(scores.argmax())
        rest = np.where(outliers, -np.inf, scores)
        others = np.nan if outliers.all() else float(inside[int(rest.argmax())])
        both = inside.any() and not inside.all()
        apart = float(scores[inside].mean() - scores[~inside].mean()) if both else np.nan
        middle = inside[rows // 2 * cols + cols // 2]
        return divmod(top, cols), inside[top], outliers[top], others, inside.mean(), middle, apart

    def result(self) -> PatchScores:
        """Return what was found. Raises `InputError` where no image has a true box."""
        kept = {index: self._records[index] for index in sorted(self._records) if self._records[index] is not None}
        if not kept:
            raise InputError(f"none of {len(self._records)} images has a true box; Point-in-Box needs images that have")
        top, in_box, is_outlier, others, random, centre, apart = zip(*kept.values(), strict=True)
        return PatchScores(
            indices=np.array(list(kept), np.int64),
            top=np.array(top),
            in_box=np.array(in_box, bool),
            is_outlier=np.array(is_outlier, bool),
            others_in_box=np.array(others, float),
            random=np.array(random, float),
            centre=np.array(centre, bool),
            difference=np.array(apart, float),
            reference=self.reference,
            point=self._features.kind,
            num_without_truth=len(self._records) - len(kept),
            seed=self._seed,
        )


def patch_centres(grid: tuple[int, int], patch_size: tuple[int, int]) -> np.ndarray:
    """Return x and y of the middle of each patch, in pixels: (P, 2)."""
    rows, cols = np.indices(grid).reshape(2, -1)  # (P,) each
    return np.stack([(cols + 0.5) * patch_size[1], (rows + 0.5) * patch_size[0]], axis=1)


def is_inside(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Tell which points (P, 2) lie in any of the boxes (G, 4), ends exclusive: (P,) bool."""
    x, y = points.T[..., None]  # (P, 1) each
    return ((boxes[:, 0] <= x) & (x < boxes[:, 2]) & (boxes[:, 1] <= y) & (y < boxes[:, 3])).any(axis=1)
