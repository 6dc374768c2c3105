"""Boxes: found in the features of one image by LOST, brought to pixels, and compared; (x0, y0, x1, y1), ends exclusive.

LOST is Simeoni et al., "Localizing Objects with Self-Supervised Transformers and no Labels" (arXiv 2109.14279).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import torch
from torch import Tensor, nn

from vitprobe.errors import ArgumentError

HIT_IOU = 0.5
"""Least IoU at which a box counts as right: CorLoc of Deselaers et al. (ECCV 2010), as LOST takes it (arXiv 2109.14279,
section 4)."""
_SLACK = 1.0
"""Pixels by which a box may stand over the image's edge: what rounding leaves after a resize."""
FEATURES = ("queries", "keys", "values", "resid_post")
CENTRINGS = ("none", "image mean")
WEIGHTS = ("real", "binary")
_CHUNK = 2**26
"""Entries of the Gram matrices that are held at a time: 256 MB."""

LONGEST = 224
"""Longest side, in pixels, of the pictures that are kept for figures."""
Boxes = Callable[[int], Sequence[Sequence[float]] | np.ndarray] | Mapping[int, Sequence[Sequence[float]]]
"""The true boxes of an image, (G, 4), by its position in the source; G may be 0."""
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class DiscoverySettings:
    """Say what LOST reads and how; stored beside the score. Raises `ArgumentError` for a value that is not allowed."""

    features: str
    """``keys`` (LOST), ``queries``, ``values`` (Darcet et al., Table 3, for DeiT-III and OpenCLIP), heads
    side by side; or ``resid_post``."""
    block: int
    """From 0. LOST reads the last; Darcet et al. do not say; Jiang et al. take the best of the last four."""
    bias: float = 0.0
    """Added to every entry of the Gram matrix. LOST has none; Darcet et al. add one and do not publish it. Its scale is
    that of the features' squares unless they are normalised."""
    centring: str = "none"
    """``none`` (LOST), or ``image mean``: the image's mean patch is taken off each feature, before they are normalised.
    In neither paper; public adaptations do it, since features with a common direction have no negative product."""
    normalise: bool = False
    """Whether each patch's feature is brought to L2 norm 1 (Jiang et al.). LOST does not."""
    k: int = 100
    """Patches of lowest degree that may join the seed (LOST); all, where the image has fewer."""
    weights: str = "real"
    """What is summed for the mask: ``real``, the products themselves (LOST's code); ``binary``, 1 where they are
    positive, as the paper's graph has them (its equations 1 to 3): then the mask is every patch with a positive
    product with any that joined."""

    def __post_init__(self) -> None:
        for name, allowed in (("features", FEATURES), ("centring", CENTRINGS), ("weights", WEIGHTS)):
            if getattr(self, name) not in allowed:
                raise ArgumentError(f"got {name} {getattr(self, name)!r}; allowed are {', '.join(allowed)}")
        if type(self.block) is not int or self.block < 0 or type(self.k) is not int or self.k < 1:
            raise ArgumentError(f"got block {self.block!r}, k {self.k!r}; whole numbers, from 0 and from 1 on")
        if not isfinite(self.bias):
            raise ArgumentError(f"got bias {self.bias}; give a finite number")

    @property
    def label(self) -> str:
        """The settings in a line, for tables and titles; k and weights only where they are not LOST's own."""
        parts = [f"{self.features} of block {self.block}", f"bias {self.bias:g}"]
        parts += ["centred"] * (self.centring != "none") + ["normalised"] * self.normalise
        parts += [f"k {self.k}"] * (self.k != 100) + [f"{self.weights} weights"] * (self.weights != "real")
        return ", ".join(parts)


@dataclass(frozen=True)
class Discovery:
    """Hold what LOST has found in one image."""

    box: tuple[int, int, int, int] | None
    """(x0, y0, x1, y1) in patches, ends exclusive; None where the seed is not in the mask: its product with no patch
    that may join it, itself included, is positive."""
    seed: tuple[int, int]
    """(row, col) of the patch of lowest degree, the first of several."""
    degrees: np.ndarray
    """(rows, cols) int: with how many other patches each one's product is positive."""
    mask: np.ndarray
    """(rows, cols) bool: where the sum over the similar patches is positive; the box is around the seed's part."""
    num_similar: int
    """Patches that have joined the seed, itself among them where its own product is positive."""

    @property
    def is_arbitrary(self) -> bool:
        """Whether all degrees are equal, so that the seed is the first patch and says nothing of the image."""
        return bool(self.degrees.min() == self.degrees.max())


def discover(features: Tensor, grid: tuple[int, int], settings: DiscoverySettings) -> Discovery:
    """Find one object from the features of an image's patches: (P, D), on a grid (rows, cols), P = rows * cols.

    Features that share a direction have positive products throughout; without centring or a negative bias all degrees
    are then equal, the seed is the first patch and the box the whole image: `Discovery.is_arbitrary` says so. Raises
    `ArgumentError` for features of another shape, or not finite.
    """
    return discover_many(features[None], grid, (settings,))[settings][0]


def discover_many(
    features: Tensor, grid: tuple[int, int], settings: Iterable[DiscoverySettings]
) -> dict[DiscoverySettings, tuple[Discovery, ...]]:
    """Do what `discover` does for B images at each of several settings: (B, P, D) -> B discoveries a setting.

    The features are those of one kind and block: ``features`` and ``block`` of the settings are not looked at. Products
    are taken in float32, once for all settings that differ in bias, k and weights only.
    """
    if features.ndim != 3 or not features.numel() or features.shape[1] != grid[0] * grid[1]:
        shape, number = tuple(features.shape), grid[0] * grid[1]
        raise ArgumentError(f"got features {shape}; a grid of {grid[0]} x {grid[1]} needs {number} patches an image")
    if not features.isfinite().all():
        raise ArgumentError("got features that are not finite; try float32, or check the weights")
    found: dict[DiscoverySettings, list[Discovery]] = {each: [] for each in settings}
    with torch.autocast(features.device.type, enabled=False):
        for part in features.float().split(max(1, _CHUNK // features.shape[1] ** 2)):
            grams: dict[tuple[str, bool], Tensor] = {}
            for each, seen in found.items():
                key = (each.centring, each.normalise)
                if key not in grams:
                    grams[key] = _gram(part, each)  # (b, P, P)
                seen += _expand(grams[key], grid, each)
    return {each: tuple(seen) for each, seen in found.items()}


def _gram(x: Tensor, settings: DiscoverySettings) -> Tensor:
    """Return the products of all pairs of patches, before the bias: (B, P, D) -> (B, P, P)."""
    if settings.centring == "image mean":
        x = x - x.mean(dim=1, keepdim=True)
    if settings.normalise:
        x = nn.functional.normalize(x, dim=-1)
    return x @ x.transpose(1, 2)


def _expand(gram: Tensor, grid: tuple[int, int], settings: DiscoverySettings) -> list[Discovery]:
    """Choose the seed, let similar patches join it, and draw the box (LOST, section 3): gram (B, P, P)."""
    gram = gram + settings.bias
    positive = gram > 0  # (B, P, P)
    degrees = positive.sum(dim=2) - positive.diagonal(dim1=1, dim2=2).long()  # (B, P) without the patch itself
    order = degrees.argsort(dim=1, stable=True)  # (B, P) of equals, the first comes first
    seeds, potentials = order[:, 0], order[:, : settings.k]  # (B,), (B, k)
    beside_seed = positive[torch.arange(len(gram), device=gram.device), seeds]  # (B, P)
    similar = torch.zeros_like(beside_seed).scatter_(1, potentials, beside_seed.gather(1, potentials))  # (B, P)
    summed = gram if settings.weights == "real" else positive.float()
    masks = (similar.float()[:, None] @ summed)[:, 0] > 0  # (B, P)
    numbers = similar.sum(dim=1).tolist()
    degrees, masks = (x.cpu().numpy().reshape(-1, *grid) for x in (degrees, masks))
    places = [divmod(seed, grid[1]) for seed in seeds.tolist()]
    return [
        Discovery(box=_box(mask, seed), seed=seed, degrees=degree, mask=mask, num_similar=number)
        for seed, degree, mask, number in zip(places, degrees, masks, numbers, strict=True)
    ]


def _box(mask: np.ndarray, seed: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Bound the part of the mask that hangs together with the seed, by sides; None where the seed is not in it."""
    from scipy.ndimage import label

    if not mask[seed]:
        return None
    parts, _ = label(mask)  # neighbours by sides only
    rows, cols = np.nonzero(parts == parts[seed])
    return int(cols.min()), int(rows.min()), int(cols.max()) + 1, int(rows.max()) + 1


def to_pixels(box: Sequence[float], patch_size: tuple[int, int], image_size: tuple[int, int]) -> Box:
    """Bring a box in units of patches to pixels; ``patch_size`` and ``image_size`` are (height, width).

    The box is clipped to the image, as LOST's code does where a padded image ends before its last patch.
    """
    (high, wide), (height, width) = patch_size, image_size
    x0, y0, x1, y1 = box
    return x0 * wide, y0 * high, min(x1 * wide, width), min(y1 * high, height)


def box_iou(a: np.ndarray | Sequence, b: np.ndarray | Sequence) -> np.ndarray:
    """Compute the intersection over union of boxes: (..., 4) and (..., 4), which broadcast -> (...) float64.

    Areas are those of half-open boxes, (x1 - x0) (y1 - y0): boxes of VOC's files, whose ends belong to the box, need
    ``xmin - 1`` and ``ymin - 1`` first. Raises `ArgumentError` for boxes that are not (..., 4).
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if not (a.ndim and b.ndim and a.shape[-1] == b.shape[-1] == 4):
        raise ArgumentError(f"got boxes {a.shape} and {b.shape}; give (..., 4): x0, y0, x1, y1")
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])  # (..., 2)
    shared = np.prod(np.maximum(sides, 0.0), axis=-1)
    union = _area(a) + _area(b) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def best_iou(box: Sequence[float] | None, truth: np.ndarray) -> float:
    """Return the largest IoU of a box with any true one, (G, 4); 0 where there is no box."""
    return 0.0 if box is None or not len(truth) else float(box_iou(box, truth).max())


def checked_boxes(boxes: Iterable[Sequence[float]], image_size: tuple[int, int], name: str) -> np.ndarray:
    """Return an image's true boxes as (G, 4) float64, in pixels of the image as the model sees it; G may be 0.

    Raises `ArgumentError`, with the image's ``name``, for a box that is empty or not inside (height, width): boxes of
    the file's own pixels have to go through the resize and the crop that the image went through.
    """
    listed = [tuple(box) for box in boxes]
    if odd := [box for box in listed if len(box) != 4]:
        raise ArgumentError(f"{name}: got a box of {len(odd[0])} numbers; give 4: x0, y0, x1, y1")
    found = np.array(listed, dtype=np.float64).reshape(-1, 4)  # (G, 4)
    ends = np.array(image_size[::-1])  # width, height
    first, last = np.split(found, 2, axis=1)  # (G, 2) each: x, y
    wrong = ~((first >= -_SLACK) & (last <= ends + _SLACK) & (first < last)).all(axis=1)  # nan is wrong too
    if wrong.any():
        shown = ", ".join(f"{side:g}" for side in found[wrong][0])
        raise ArgumentError(
            f"{name}: got box ({shown}); give x0 < x1 <= {ends[0]}, y0 < y1 <= {ends[1]}, in pixels as the model sees"
        )
    return found


def picture(pixels: Tensor) -> np.ndarray:
    """Return one image, (1, 3, H, W) in [0, 1], as a small picture: (h, w, 3) uint8."""
    scale = min(1.0, LONGEST / max(pixels.shape[-2:]))
    if scale < 1:
        size = [round(side * scale) for side in pixels.shape[-2:]]
        pixels = nn.functional.interpolate(pixels, size=size, mode="area")
    return (pixels[0] * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0.0), axis=-1)
