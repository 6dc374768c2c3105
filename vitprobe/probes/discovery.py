"""CorLoc of LOST over a set of images, for many settings at once: the probe behind Table 3 of Darcet et al.

Darcet et al. (arXiv 2309.16588) run LOST (arXiv 2109.14279) on DeiT-III, OpenCLIP and DINOv2; they publish neither the
bias nor the block, so every score stands beside the settings that gave it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitprobe.backbones.base import Backbone
from vitprobe.errors import ArgumentError, InputError
from vitprobe.probes.batch import Batch
from vitprobe.probes.boxes import (
    CENTRINGS,
    HIT_IOU,
    Discovery,
    DiscoverySettings,
    best_iou,
    checked_boxes,
    discover_many,
    to_pixels,
)
from vitprobe.probes.knn import wilson_interval
from vitprobe.recorder import Recorder, Site

PUBLISHED_FEATURES = {"deit3": "values", "openclip": "values", "dinov2": "keys", "dinov2-reg": "keys"}
"""What Table 3 of Darcet et al. (arXiv 2309.16588) reads of each family."""
BIASES = (0.05, 0.0, -0.1, -0.2, -0.3, -0.4, -0.5, -0.6, -0.7, -0.8, -0.9)
"""Biases for normalised features: the range [-1, 0] that Jiang et al. (arXiv 2506.08010) search, in tenths (at -1 no
product is positive), and the 0.05 that a public adaptation to DeiT-III-S adds after centring."""


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
    """Score discoveries of many settings; mergeable. It keeps three small numbers an image and setting, no map."""

    settings: tuple[DiscoverySettings, ...]
    patch_size: tuple[int, int]
    image_size: tuple[int, int]
    records: dict[int, tuple[str, float, np.ndarray] | None] = field(default_factory=dict)
    """By position in the source: name, IoU of the whole image, and (3, S) IoU, without box, arbitrary; None for an
    image without a true box."""

    def __post_init__(self) -> None:
        if not self.settings or len(set(self.settings)) < len(self.settings):
            raise ArgumentError(f"got {len(self.settings)} settings; give one or more, none of them twice")

    def update(self, batch: Batch, found: Mapping[DiscoverySettings, Sequence[Discovery]], boxes: Sequence) -> None:
        """Take in B images: what each setting has found in them, and their true boxes in pixels, (G, 4) each."""
        self._refuse_twice(batch.indices)
        height, width = self.image_size
        for i, (name, index) in enumerate(zip(batch.names, batch.indices, strict=True)):
            truth = checked_boxes(boxes[i], self.image_size, name)  # (G, 4)
            seen = [found[each][i] for each in self.settings]
            drawn = [None if s.box is None else to_pixels(s.box, self.patch_size, self.image_size) for s in seen]
            scores = [[best_iou(box, truth) for box in drawn], [s.box is None for s in seen]]
            numbers = np.array([*scores, [s.is_arbitrary for s in seen]], dtype=np.float64)  # (3, S)
            whole = best_iou((0, 0, width, height), truth)
            self.records[index] = (name, whole, numbers) if len(truth) else None

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
        names, whole, numbers = zip(*kept.values(), strict=True)
        iou, without_box, arbitrary = np.stack(numbers, axis=1)  # (N, S) each
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
            self.settings, summary, iou, **flags, indices=np.array(list(kept), dtype=np.int64), names=np.array(names)
        )

    def _refuse_twice(self, indices: Iterable[int]) -> None:
        if again := [index for index in indices if index in self.records]:
            raise ArgumentError(f"image {again[0]} was measured twice; give each image to one process, once")


def measure_discovery(
    backbone: Backbone,
    batches: Iterable[Batch],
    boxes_by_index: Mapping[int, Sequence[Sequence[float]]],
    settings: Sequence[DiscoverySettings],
    *,
    autocast: torch.dtype | None = None,
    on_batch: Callable[[Batch], None] | None = None,
) -> DiscoveryAccumulator:
    """Run LOST at every one of ``settings`` over batches of images: one forward pass a batch, for all of them.

    ``boxes_by_index`` has the true boxes of each image by its position in the source, in pixels of the image as the
    model sees it, after resize and crop; an image without any is left out of the scores and counted. LOST's own
    protocol runs each image at its native size; here it is the size that the backbone was loaded for. Raises
    `ArgumentError` for a block that the model does not have, or an image or a box that does not fit its size.
    """
    image_size = tuple(backbone.spec.image_size)
    accumulator = DiscoveryAccumulator(tuple(settings), tuple(backbone.patch_size), image_size)
    places = list(dict.fromkeys((each.features, each.block) for each in settings))
    for _, block in places:
        backbone.check_block(block)
    for batch in batches:
        size = tuple(batch.images.shape[-2:])
        if size != image_size:
            got, want = (" x ".join(map(str, s)) for s in (size, image_size))
            raise ArgumentError(f"got images of {got} px; {backbone.spec.name} was loaded for {want}")
        layout, found = backbone.layout(), {}
        for place, features in read_features(backbone, batch.images, places, autocast=autocast).items():
            here = [each for each in settings if (each.features, each.block) == place]
            found |= discover_many(features, layout.grid, here)
        accumulator.update(batch, found, [boxes_by_index.get(index, ()) for index in batch.indices])
        if on_batch is not None:
            on_batch(batch)
    return accumulator


def read_features(
    backbone: Backbone,
    images: Tensor,
    places: Iterable[tuple[str, int]],
    *,
    autocast: torch.dtype | None = None,
) -> dict[tuple[str, int], Tensor]:
    """Run images (B, 3, H, W) once, and return the patches' features of each (kind, block): (B, P, D) float32.

    Heads stand side by side, as in LOST's code; CLS and registers are left out, wherever the layout has them. Queries
    and keys are as attention uses them, after a norm or rotary positions of their own where the model has such.
    """
    layout, device = backbone.layout(), next(backbone.module.parameters()).device

    def patches(x: Tensor) -> Tensor:  # (B, T, D) or (B, H, T, d) -> (B, P, D)
        x = x[..., layout.patches, :].float()
        return x if x.ndim == 3 else x.transpose(1, 2).flatten(2)

    sites = {place: Site(*place, reduce=patches) for place in places}
    with (
        torch.inference_mode(),
        torch.autocast(device.type, dtype=autocast, enabled=autocast is not None),
        Recorder(backbone, list(sites.values())) as recorder,
    ):
        backbone(images.to(device, non_blocking=True))
        taken = recorder.take()
    return {place: taken[site] for place, site in sites.items()}


def sweep(
    family: str,
    num_blocks: int,
    *,
    last: int = 1,
    biases: Sequence[float] = BIASES,
    centrings: Sequence[str] = CENTRINGS,
    features: Sequence[str] | None = None,
) -> tuple[DiscoverySettings, ...]:
    """Return settings for Table 3 of Darcet et al. (arXiv 2309.16588) for a family of the zoo, as ``deit3``.

    Of each of the ``last`` blocks, from the final one back, and of the kind of features that the table reads (or of
    each of ``features``, for any family): LOST as published, then all biases with and without centring on normalised
    features, which alone give a bias one scale for all models. The best cell of a sweep is chosen on the images that
    score it: say so where it is shown. Raises `ArgumentError` for a family that the table has not, or too many blocks.
    """
    if features is None and family not in PUBLISHED_FEATURES:
        raise ArgumentError(f"got family {family!r}; the table has {', '.join(PUBLISHED_FEATURES)}; or name features")
    if not 1 <= last <= num_blocks:
        raise ArgumentError(f"got the last {last} of {num_blocks} blocks; give 1 to {num_blocks}")
    kinds = (PUBLISHED_FEATURES[family],) if features is None else features
    found: list[DiscoverySettings] = []
    for kind, block in product(kinds, range(num_blocks - 1, num_blocks - 1 - last, -1)):
        found.append(DiscoverySettings(kind, block))
        for centring, bias in product(centrings, biases):
            found.append(DiscoverySettings(kind, block, bias, centring, normalise=True))
    return tuple(dict.fromkeys(found))
