"""CorLoc of LOST over a set of images, for many settings at once: the probe behind Table 3 of Darcet et al.

Darcet et al. (arXiv 2309.16588) run LOST (arXiv 2109.14279) on DeiT-III, OpenCLIP and DINOv2; they publish neither the
bias nor the block, so every score stands beside the settings that gave it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitprobe.backbones.base import Backbone
from vitprobe.errors import ArgumentError
from vitprobe.probes.batch import Batch
from vitprobe.probes.boxes import CENTRINGS, Boxes, DiscoverySettings, discover_many, picture
from vitprobe.probes.corloc import DiscoveryAccumulator
from vitprobe.probes.passes import run_pass
from vitprobe.recorder import Recorder, Site
from vitprobe.tokens import TokenLayout

PUBLISHED_FEATURES = {"deit3": "values", "openclip": "values", "dinov2": "keys", "dinov2-reg": "keys"}
"""What Table 3 of Darcet et al. (arXiv 2309.16588) reads of each family."""
BIASES = (0.05, 0.0, -0.1, -0.2, -0.3, -0.4, -0.5, -0.6, -0.7, -0.8, -0.9)
"""Biases for normalised features: the range [-1, 0] that Jiang et al. (arXiv 2506.08010) search, in tenths (at -1 no
product is positive), and the 0.05 that a public adaptation to DeiT-III-S adds after centring."""


class DiscoveryReader:
    """Run LOST at many settings on the images that pass; `accumulator` has the scores, `examples` some pictures."""

    def __init__(
        self, backbone: Backbone, boxes: Boxes, settings: Sequence[DiscoverySettings], *, num_examples: int = 0
    ) -> None:
        """Prepare to read. ``boxes`` are in pixels of the image as the model sees it, after resize and crop.

        An image without any is left out of the scores and counted. LOST's own protocol runs each image at its native
        size; here it is the size that the backbone was loaded for. The first ``num_examples`` images that have boxes
        are kept for figures. Raises `ArgumentError` for a block that the model does not have, or no setting.
        """
        self._backbone, self._layout, self._num_examples = backbone, backbone.layout(), num_examples
        self._boxes = boxes if callable(boxes) else lambda index: boxes.get(index, ())
        size = tuple(backbone.spec.image_size)
        self.accumulator = DiscoveryAccumulator(tuple(settings), tuple(backbone.patch_size), size)
        self._places = feature_sites(backbone, dict.fromkeys((each.features, each.block) for each in settings))
        self.sites: Sequence[Site] = tuple(self._places.values())
        self.examples: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        """By position in the source: picture, (h, w, 3) uint8, and (S, 2) row and column of each setting's seed."""

    def update(self, batch: Batch, taken: Mapping[Site, Any], output: Tensor) -> None:
        """Take in one batch. Raises `ArgumentError` for a box that does not fit, or an image that was seen before."""
        settings, found = self.accumulator.settings, {}
        for place, site in self._places.items():
            features = patch_features(taken[site], self._layout)  # (B, P, D)
            here = [each for each in settings if (each.features, each.block) == place]
            found |= discover_many(features, self._layout.grid, here)
        boxes = [self._boxes(index) for index in batch.indices]
        self.accumulator.update(batch, found, boxes)
        for i, index in enumerate(batch.indices):
            if len(self.examples) < self._num_examples and len(boxes[i]):
                shown = picture(self._backbone.transform.pixels(batch.images[i : i + 1]))
                self.examples[index] = shown, np.array([found[each][i].seed for each in settings])


def measure_discovery(
    backbone: Backbone,
    batches: Iterable[Batch],
    boxes_by_index: Boxes,
    settings: Sequence[DiscoverySettings],
    *,
    autocast: torch.dtype | None = None,
    on_batch: Callable[[Batch], None] | None = None,
) -> DiscoveryAccumulator:
    """Run LOST at every one of ``settings`` over batches of images: one forward pass a batch, for all of them.

    Boxes are those of `DiscoveryReader`. Raises `ArgumentError` for a block that the model does not have, or an image
    or a box that does not fit its size.
    """
    reader = DiscoveryReader(backbone, boxes_by_index, settings)
    rest = iter(batches)
    for first in rest:  # a process without an image has nothing to add, which is no error
        run_pass(backbone, chain([first], rest), [reader], autocast=autocast, on_batch=on_batch)
    return reader.accumulator


def read_features(
    backbone: Backbone,
    images: Tensor,
    places: Iterable[tuple[str, int]],
    *,
    autocast: torch.dtype | None = None,
) -> dict[tuple[str, int], Tensor]:
    """Run images (B, 3, H, W) once, and return the patches' features of each (kind, block): (B, P, D) float32.

    Queries and keys are as attention uses them, after a norm or rotary positions of their own where the model has such.
    """
    device, sites = next(backbone.module.parameters()).device, feature_sites(backbone, places)
    with (
        torch.inference_mode(),
        torch.autocast(device.type, dtype=autocast, enabled=autocast is not None),
        Recorder(backbone, list(sites.values())) as recorder,
    ):
        backbone(images.to(device, non_blocking=True))
        taken = recorder.take()
    return {place: patch_features(taken[site], backbone.layout()) for place, site in sites.items()}


def feature_sites(backbone: Backbone, places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], Site]:
    """Return where each (kind, block) is recorded. Raises `ArgumentError` for a block that the model does not have."""
    return {(kind, block): Site(kind, backbone.check_block(block)) for kind, block in places}


def patch_features(tokens: Tensor, layout: TokenLayout) -> Tensor:
    """Return what was recorded, (B, T, D) or (B, H, T, d), of the patches alone, float32: (B, P, D).

    Heads stand side by side, as in LOST's code; CLS and registers are left out, wherever the layout has them.
    """
    x = tokens[..., layout.patches, :].float()
    return x if x.ndim == 3 else x.transpose(1, 2).flatten(2)


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
