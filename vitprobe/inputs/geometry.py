"""Where a pixel of an image's file comes to lie when the model's own transform resizes and crops it.

Like `images`, this file is shared ground inside `vitprobe.inputs`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitprobe.errors import ArgumentError

BOUND = 8
"""Sides are cropped to at most so many times each other before the transform, as `ImageLoader` does by default."""
STILL = frozenset({
    "ToTensor", "MaybeToTensor", "PILToTensor", "MaybePILToTensor", "ToImage", "ToDtype", "ToPureTensor",
    "ConvertImageDtype", "Normalize", "MaybeConvertMode", "_convert_to_rgb", "Identity",
})  # fmt: skip
"""Steps of torchvision, timm and open_clip that move no pixel."""
LIBRARIES = ("torchvision", "timm", "open_clip", "torch")


@dataclass(frozen=True)
class Bound:
    """Crop the long side around the middle to `limit` times the short side, as `vitprobe.inputs.images.bounded`."""

    limit: int = BOUND


@dataclass(frozen=True)
class Resize:
    """Resize to (height, width), or the short side to one number and the long side in proportion, rounded down."""

    size: tuple[int, ...]


@dataclass(frozen=True)
class ResizeKeepRatio:
    """Resize, the ratio of the sides kept, until one side has its target: the other covers or undercuts its own."""

    size: tuple[int, int]
    longest: float = 0.0
    """0: the image covers the target; 1: the target covers the image; a mix of the two ratios in between."""


@dataclass(frozen=True)
class CentreCrop:
    """Crop (height, width) from the middle; where the image is smaller, it is padded on both sides."""

    size: tuple[int, int]


Step = Bound | Resize | ResizeKeepRatio | CentreCrop


@dataclass(frozen=True)
class _Side:
    """Follow one side of an image, in pixels: where a coordinate goes, and which pixel each pixel is taken from."""

    length: int
    """Of the side as it is now."""
    scale: float
    shift: float
    """A coordinate x of the file is at scale * x + shift."""
    low: float
    high: float
    """The part of the side that holds image: outside is padding."""
    source: np.ndarray
    """(length,) int64 pixel of the file under the middle of each pixel, -1 for padding."""

    @classmethod
    def whole(cls, length: int) -> "_Side":
        return cls(length, 1.0, 0.0, 0.0, float(length), np.arange(length))

    def resized(self, length: int) -> "_Side":
        factor = length / self.length
        middles = (2 * np.arange(length) + 1) * self.length // (2 * length)  # whole numbers: no rounding
        scaled = (factor * number for number in (self.scale, self.shift, self.low, self.high))
        return _Side(length, *scaled, self.source[middles])

    def cropped(self, first: int, length: int) -> "_Side":
        """Keep `length` pixels from `first` on; what lies outside the side is padding."""
        place = np.arange(first, first + length)
        is_inside = (place >= 0) & (place < self.length)
        source = np.where(is_inside, self.source[place.clip(0, self.length - 1)], -1)
        low, high = (float(np.clip(end - first, 0, length)) for end in (self.low, self.high))
        return _Side(length, self.scale, self.shift - first, low, high, source)


@dataclass(frozen=True)
class Geometry:
    """Hold the resizes and crops of a transform, in order, for masks, depths and boxes."""

    steps: tuple[Step, ...] = ()

    def boxes(self, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Return boxes (G, 4) of an image of (height, width) as the model sees them: (G', 4) float64, cut at the crop.

        Boxes are x0, y0, x1, y1, ends exclusive; those of which nothing is left are dropped. Raises ArgumentError for
        another shape.
        """
        rows, cols = self._sides(size)
        placed = _placed(boxes, rows, cols, is_cut=True)  # (G, 4)
        return placed[_areas(placed) > 0]

    def inside(self, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Return the share of each box's area that the model sees: (G,) float64 in [0, 1], 0 for a box without area."""
        rows, cols = self._sides(size)
        whole, cut = (_areas(_placed(boxes, rows, cols, is_cut=is_cut)) for is_cut in (False, True))  # (G,)
        return np.divide(cut, whole, out=np.zeros_like(cut), where=whole > 0)

    def nearest(self, values: np.ndarray) -> np.ndarray:
        """Return values of pixels (h, w) as the model sees them, (H, W), each that of the pixel under its middle.

        The type is kept; padding is -1, nan in floats, False in masks. Raises ArgumentError for another shape, and for
        unsigned numbers, which have no such value.
        """
        if values.ndim != 2:
            raise ArgumentError(f"got values of shape {values.shape}; allowed is one for each pixel, (h, w)")
        if values.dtype.kind not in "bif":
            raise ArgumentError(f"got values of type {values.dtype}; allowed are signed integers, floats and bool")
        rows, cols = self._sides(values.shape)
        seen = values[np.ix_(rows.source, cols.source)]  # (H, W)
        seen[rows.source < 0] = seen[:, cols.source < 0] = {"b": False, "i": -1, "f": np.nan}[values.dtype.kind]
        return seen

    def _sides(self, size: tuple[int, int]) -> tuple[_Side, _Side]:
        rows, cols = (_Side.whole(int(side)) for side in size)
        for step in self.steps:
            rows, cols = _taken(step, rows, cols)
        return rows, cols


def read_geometry(apply: Callable[..., Any], *, bound: int = BOUND) -> Geometry:
    """Return the resizes and crops of a model's evaluation transform, read off its steps.

    `apply` is a `Compose` of torchvision, such as timm's `create_transform` and open_clip's `image_transform_v2` give
    (`backbone.transform.apply`). `bound` is that of the loader, which crops before the transform. Raises ArgumentError,
    naming it, for a step that is not known to resize, to crop, or to move no pixel.
    """
    if not _is_of_library(apply) or type(apply).__name__ != "Compose":
        raise ArgumentError(f"got the transform {_name(apply)}; a Compose of torchvision can be followed")
    read = (_read(step) for step in apply.transforms)
    return Geometry((Bound(bound), *(step for step in read if step is not None)))


def _read(step: Any) -> Step | None:
    """Read one step of a transform; None where it moves no pixel."""
    name = getattr(step, "__name__", None) or type(step).__name__
    if _is_of_library(step):
        if name in STILL:
            return None
        if name in _READERS and not _is_random(step):
            return _READERS[name](step)
    allowed = f"{', '.join(_READERS)}, without chance, and steps that move no pixel"
    raise ArgumentError(f"got a transform with the step {_name(step)}; those that can be followed are {allowed}")


def _resize(step: Any) -> Resize | None:
    size = (step.size,) if isinstance(step.size, int) else tuple(step.size or ())
    if not size or (len(size) == 1 and getattr(step, "max_size", None) is not None):
        raise ArgumentError(f"got a transform with the step {_name(step)}; a Resize with max_size cannot be followed")
    return Resize(size)


_READERS: Mapping[str, Callable[[Any], Step]] = {
    "Resize": _resize,
    "ResizeKeepRatio": lambda step: ResizeKeepRatio(tuple(step.size), float(step.longest)),
    "CenterCrop": lambda step: CentreCrop(tuple(step.size)),
    "CenterCropOrPad": lambda step: CentreCrop(tuple(step.size)),
}


def _is_of_library(step: Any) -> bool:
    module = getattr(step, "__module__", None) if hasattr(step, "__name__") else type(step).__module__
    return (module or "").partition(".")[0] in LIBRARIES


def _is_random(step: Any) -> bool:
    return any(getattr(step, f"random_{name}_prob", 0) > 0 for name in ("scale", "aspect"))


def _name(step: Any) -> str:
    return " ".join((getattr(step, "__qualname__", None) or repr(step)).split())[:120]


def _taken(step: Step, rows: _Side, cols: _Side) -> tuple[_Side, _Side]:
    """Take both sides through one step, with the roundings of the libraries."""
    height, width = rows.length, cols.length
    if isinstance(step, Bound):
        kept = min(height, step.limit * width), min(width, step.limit * height)
        return tuple(
            side.cropped((side.length - keep) // 2, keep) for side, keep in zip((rows, cols), kept, strict=True)
        )
    if isinstance(step, CentreCrop):
        return tuple(
            side.cropped(_first(side.length, keep), keep) for side, keep in zip((rows, cols), step.size, strict=True)
        )
    size = _resized(step, height, width)
    return rows.resized(size[0]), cols.resized(size[1])


def _resized(step: Resize | ResizeKeepRatio, height: int, width: int) -> tuple[int, int]:
    if isinstance(step, ResizeKeepRatio):
        ratios = height / step.size[0], width / step.size[1]
        ratio = max(ratios) * step.longest + min(ratios) * (1.0 - step.longest)
        return round(height / ratio), round(width / ratio)
    if len(step.size) == 2:
        return step.size
    short = step.size[0]
    long = int(short * max(height, width) / min(height, width))
    return (long, short) if width <= height else (short, long)


def _first(length: int, keep: int) -> int:
    """Return the first pixel of a crop from the middle; below 0 where the side is padded."""
    return round((length - keep) / 2) if length >= keep else -((keep - length) // 2)


def _placed(boxes: np.ndarray, rows: _Side, cols: _Side, *, is_cut: bool) -> np.ndarray:
    boxes = np.asarray(boxes, np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ArgumentError(f"got boxes of shape {boxes.shape}; allowed are x0, y0, x1, y1 of each, (G, 4)")
    sides = (cols, rows, cols, rows)
    placed = boxes * [side.scale for side in sides] + [side.shift for side in sides]  # (G, 4)
    return placed.clip([side.low for side in sides], [side.high for side in sides]) if is_cut else placed


def _areas(boxes: np.ndarray) -> np.ndarray:
    return np.prod((boxes[:, 2:] - boxes[:, :2]).clip(0), axis=1)  # (G,)
