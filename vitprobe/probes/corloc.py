"""The score of boxes that were found in images: CorLoc, of many settings at once, and of boxes at random places."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from vitprobe.errors import ArgumentError, InputError
from vitprobe.probes.batch import Batch
from vitprobe.probes.boxes import (
    HIT_IOU,
    Discovery,
    DiscoverySettings,
    best_iou,
    box_iou,
    checked_boxes,
    to_pixels,
)
from vitprobe.probes.knn import wilson_interval

PLACEMENTS = 200
"""Random places of a box, an image, in `random_corloc`."""


@dataclass(frozen=True)
class DiscoveryResult:
    """Hold the scores of S settings over N images that have true boxes, in the order of the source."""

    settings: tuple[DiscoverySettings, ...]
    summary: dict[str, Any]
    """Counts of images, and ``rows``: one a setting, with the setting itself beside its scores."""
    iou: np.ndarray
    """(N, S) best IoU of the box found with any true box; 0 where none was found."""
    without_box: np.ndarray
    """(N, S) bool: the seed lies in the background."""
    arbitrary: np.ndarray
    """(N, S) bool: all degrees are equal."""
    indices: np.ndarray
    """(N,) positions of the images in their source."""
    names: np.ndarray
    """(N,)"""
    boxes: np.ndarray
    """(N, S, 4) float32 box found, in pixels; 0 where none was found."""
    truth: tuple[np.ndarray, ...] = field(repr=False)
    """(G, 4) true boxes of each image, in pixels."""
    image_size: tuple[int, int]

    @property
    def hits(self) -> np.ndarray:
        """(N, S) bool: the box found agrees with a true one."""
        return self.iou >= HIT_IOU

    @property
    def corloc(self) -> np.ndarray:
        """(S,) share of images whose box agrees with a true one."""
        return self.hits.mean(axis=0)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by the names of their fields."""
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}


@dataclass
class DiscoveryAccumulator:
    """Score discoveries of many settings; mergeable. It keeps seven numbers an image and setting, no map."""

    settings: tuple[DiscoverySettings, ...]
    patch_size: tuple[int, int]
    image_size: tuple[int, int]
    records: dict[int, tuple[str, np.ndarray, np.ndarray] | None] = field(default_factory=dict)
    """By position in the source: name, true boxes (G, 4), and (7, S) IoU, without box, arbitrary, box; None for an
    image without a true box."""

    def __post_init__(self) -> None:
        if not self.settings or len(set(self.settings)) < len(self.settings):
            raise ArgumentError(f"got {len(self.settings)} settings; give one or more, none of them twice")

    def update(self, batch: Batch, found: Mapping[DiscoverySettings, Sequence[Discovery]], boxes: Sequence) -> None:
        """Take in B images: what each setting has found in them, and their true boxes in pixels, (G, 4) each."""
        self._refuse_twice(batch.indices)
        for i, (name, index) in enumerate(zip(batch.names, batch.indices, strict=True)):
            truth = checked_boxes(boxes[i], self.image_size, name)  # (G, 4)
            seen = [found[each][i] for each in self.settings]
            drawn = [None if s.box is None else to_pixels(s.box, self.patch_size, self.image_size) for s in seen]
            scores = [[best_iou(box, truth) for box in drawn], [s.box is None for s in seen]]
            corners = np.array([box or (0, 0, 0, 0) for box in drawn]).T  # (4, S)
            numbers = np.array([*scores, [s.is_arbitrary for s in seen], *corners], dtype=np.float64)  # (7, S)
            self.records[index] = (name, truth, numbers) if len(truth) else None

    def merge(self, other: "DiscoveryAccumulator") -> None:
        """Add what another has gathered from other images. Raises `ArgumentError` where the two do not match."""
        same = (self.settings, self.patch_size, self.image_size)
        if same != (other.settings, other.patch_size, other.image_size):
            raise ArgumentError("discoveries of different settings, patches or image sizes cannot be merged")
        self._refuse_twice(other.records)
        self.records |= other.records

    def result(self) -> DiscoveryResult:
        """Score every setting. Raises `InputError` where no image has a true box.

        Intervals are Wilson's, over images: CorLoc is a share of independent images, each a yes or a no, and near 0,
        where models with artifacts lie, a bootstrap's interval shrinks to nothing. To set two models side by side on
        the same images, resample the difference of their ``hits``: intervals of the two are wider than that.
        """
        kept = {index: self.records[index] for index in sorted(self.records) if self.records[index] is not None}
        if not kept:
            raise InputError(f"none of {len(self.records)} images has a true box; CorLoc needs images that have")
        names, truth, numbers = zip(*kept.values(), strict=True)
        iou, without_box, arbitrary, *corners = np.stack(numbers, axis=1)  # (N, S) each
        height, width = self.image_size
        whole = [best_iou((0, 0, width, height), boxes) for boxes in truth]
        hits = (iou >= HIT_IOU).sum(axis=0)
        rows = [
            {
                "label": each.label,
                **asdict(each),
                "corloc": float(hits[s] / len(kept)),
                "corloc_ci": list(wilson_interval(int(hits[s]), len(kept))),
                "mean_iou": float(iou[:, s].mean()),
                "num_without_box": int(without_box[:, s].sum()),
                "num_arbitrary": int(arbitrary[:, s].sum()),
            }
            for s, each in enumerate(self.settings)
        ]
        summary = {
            "num_images": len(kept),
            "num_without_truth": len(self.records) - len(kept),
            "hit_iou": HIT_IOU,
            "whole_image_corloc": float(np.mean(np.array(whole) >= HIT_IOU)),
            "rows": rows,
        }
        flags = {"without_box": without_box.astype(bool), "arbitrary": arbitrary.astype(bool)}
        return DiscoveryResult(
            settings=self.settings,
            summary=summary,
            iou=iou,
            **flags,
            indices=np.array(list(kept), dtype=np.int64),
            names=np.array(names),
            boxes=np.stack(corners, axis=-1).astype(np.float32),
            truth=truth,
            image_size=self.image_size,
        )

    def _refuse_twice(self, indices: Iterable[int]) -> None:
        if again := [index for index in indices if index in self.records]:
            raise ArgumentError(f"image {again[0]} was measured twice; give each image to one process, once")


def random_corloc(result: DiscoveryResult, setting: int, *, seed: int = 0, placements: int = PLACEMENTS) -> float:
    """Return the CorLoc of boxes as large as those that a setting (its number) has found, at random places.

    The mean over images and over places, drawn evenly inside the image from (seed, its position in the source) alone:
    what the size of the boxes gives, without looking at the image. Images in which no box was found count as missed.
    """
    height, width = result.image_size
    shares = np.zeros(len(result.indices))
    for i, (index, (x0, y0, x1, y1), truth) in enumerate(
        zip(result.indices.tolist(), result.boxes[:, setting].astype(float), result.truth, strict=True)
    ):
        if result.without_box[i, setting]:
            continue
        sides = np.array([x1 - x0, y1 - y0])
        room = np.array([width, height]) - sides
        corner = np.random.default_rng((seed, index)).random((placements, 2)) * room  # (R, 2)
        placed = np.concatenate([corner, corner + sides], axis=1)  # (R, 4)
        shares[i] = (box_iou(placed[:, None], truth[None]).max(axis=1) >= HIT_IOU).mean()
    return float(shares.mean())


def chosen_on_halves(result: DiscoveryResult, *, seed: int = 0) -> float:
    """Return the CorLoc of the best setting where it is chosen on other images than those that score it.

    Images are split in two at random; each half is scored at the setting that is best on the other half.
    """
    order = np.random.default_rng(seed).permutation(len(result.indices))
    halves = np.array_split(order, 2)
    hits = 0
    for own, other in (halves, halves[::-1]):
        best = int(result.hits[other].mean(axis=0).argmax()) if len(other) else 0
        hits += int(result.hits[own, best].sum())
    return hits / len(result.indices)
