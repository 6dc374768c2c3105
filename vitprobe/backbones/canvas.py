"""Canvases: an image with a margin of real content around what a model sees, to shift the model's window over."""

from vitprobe.backbones.base import Transform
from vitprobe.errors import ArgumentError

INTERPOLATION = "bicubic"
"""Where a model's own transform does not say how it resizes."""


def canvas_transform(transform: Transform, image_size: tuple[int, int], margin: int) -> Transform:
    """Return a transform to canvases: PIL image -> (3, height + 2 margin, width + 2 margin), normalised as the model's.

    The image is scaled, its sides' ratio kept, until it covers the canvas, and cropped around the middle: nothing is
    padded. The interpolation is that of the model's own transform, the scale is not: things appear larger than in the
    model's own crop, by the ratio of canvas to window times the share of the image's side that the crop keeps.
    ``image_size`` is (height, width) of the model's window and ``margin`` that on each side, both in pixels. Raises
    `ArgumentError` for a negative margin or an empty window.
    """
    from timm.data.transforms import MaybeToTensor, ResizeKeepRatio
    from torchvision.transforms import CenterCrop, Compose, Normalize

    if margin < 0 or min(image_size) < 1:
        raise ArgumentError(f"got a margin of {margin} px around {image_size} px; give 0 or more, around 1 or more")
    size = (image_size[0] + 2 * margin, image_size[1] + 2 * margin)
    steps = getattr(transform.apply, "transforms", ())
    ways = [step.interpolation for step in steps if getattr(step, "interpolation", None) is not None]
    scale = ResizeKeepRatio(size, longest=0.0)  # covers
    scale.interpolation = ways[0] if ways else ResizeKeepRatio(size, interpolation=INTERPOLATION).interpolation
    normalise = Normalize(mean=list(transform.mean), std=list(transform.std))
    apply = Compose([scale, CenterCrop(size), MaybeToTensor(), normalise])
    return Transform(apply, transform.mean, transform.std)
