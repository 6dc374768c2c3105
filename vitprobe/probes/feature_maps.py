"""Maps of features with places on the image, of transformers and of convolutional networks alike."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vitprobe.backbones.base import Backbone
from vitprobe.errors import ArgumentError
from vitprobe.recorder import Recorder, Site, token_norms

if TYPE_CHECKING:
    from vitprobe.backbones.conv_net import ConvNet


@dataclass(frozen=True)
class Seen:
    """Hold what a model makes of a batch of images, in float32."""

    features: Tensor
    """(B, D, rows, cols)"""
    norms: Tensor | None
    """(B, rows, cols) L2 norms that tell outliers; None where the model has none."""
    pooled: Tensor
    """(B, D') one vector an image."""


@dataclass(frozen=True)
class FeatureMaps:
    """Name a model, say how its map lies on an image, and run it."""

    name: str
    see: Callable[[Tensor], Seen]
    """Runs the model once on images (B, 3, height, width), on whatever device they are."""
    step: tuple[int, int]
    """(height, width) in pixels from one place of the map to the next."""
    image_size: tuple[int, int]
    """(height, width) in pixels."""
    point: str = "features"
    """What the map is, in words."""

    def run(self, images: Tensor) -> Tensor:
        """Return the features alone: (B, 3, height, width) -> (B, D, rows, cols) float32."""
        return self.see(images).features

    def norms(self, images: Tensor) -> Tensor | None:
        """Return the norms alone: (B, 3, height, width) -> (B, rows, cols) float32, or None."""
        return self.see(images).norms


def of_backbone(
    backbone: Backbone,
    block: int | None = None,
    *,
    after_final_norm: bool | None = None,
    autocast: torch.dtype | None = None,
) -> FeatureMaps:
    """Return the patch features after a block, by default the last, and with the final norm where the model has one.

    ``after_final_norm``: False for `resid_post` itself. Norms are those of `resid_post`, in float32. The pooled vector
    is that of the whole model. Raises `ArgumentError` for a block that the model does not have, and for a final norm
    that does not follow it.
    """
    last = backbone.num_blocks - 1
    index = last if block is None else backbone.check_block(block)
    has_norm = backbone.final_norm is not None and index == last
    if after_final_norm and not has_norm:
        raise ArgumentError(f"{backbone.spec.name} has no norm that all tokens pass right after block {index}")
    is_normed = has_norm if after_final_norm is None else after_final_norm
    features = Site("final_norm") if is_normed else Site("resid_post", index)
    norms = Site("resid_post", index, reduce=token_norms)
    layout, device = backbone.layout(), next(backbone.module.parameters()).device

    def see(images: Tensor) -> Seen:
        with (
            torch.inference_mode(),
            torch.autocast(device.type, dtype=autocast, enabled=autocast is not None),
            Recorder(backbone, [features, norms]) as recorder,
        ):
            pooled = backbone.features(images.to(device, non_blocking=True))  # (B, D')
            taken = recorder.take()
        maps = layout.to_grid(taken[features]).permute(0, 3, 1, 2)  # (B, D, rows, cols)
        return Seen(*map(_plain, (maps, layout.to_grid(taken[norms]), pooled)))

    point = f"block {index}, {'after the final norm' if is_normed else 'residual stream'}"
    return FeatureMaps(backbone.spec.title, see, backbone.patch_size, backbone.spec.image_size, point)


def of_conv(conv: "ConvNet", *, autocast: torch.dtype | None = None) -> FeatureMaps:
    """Return the last map of a convolutional network before pooling; norms are over its channels."""
    device = next(conv.module.parameters()).device

    def see(images: Tensor) -> Seen:
        with torch.inference_mode(), torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            maps = conv.feature_map(images.to(device, non_blocking=True))  # (B, D, rows, cols)
            pooled = conv.pool(maps)  # (B, D)
        return Seen(_plain(maps), token_norms(_plain(maps).movedim(1, -1)), _plain(pooled))

    return FeatureMaps(conv.spec.title, see, conv.stride, conv.spec.image_size, "last map before pooling")


def _plain(tensor: Tensor) -> Tensor:
    """Bring to float32, and off a device that cannot sum in float64 (mps)."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).float()
