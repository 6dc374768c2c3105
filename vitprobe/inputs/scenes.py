"""Generate scenes of simple shapes from a seed, with exact ground truth for every pixel and every image.

Image `i` of a seed depends on `(config, seed, i)` alone, and lengths are relative, so the same scene is drawn at
32 and at 224 pixels with the same labels (only the noise is new).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from vitprobe.errors import ArgumentError
from vitprobe.inputs import scene_shapes as shapes
from vitprobe.inputs.scene_shapes import BACKGROUNDS, COLOURS, KINDS

if TYPE_CHECKING:
    from vitprobe.inputs.images import Decoded

COLOUR_NAMES = tuple(COLOURS)
MIN_VISIBLE = 0.3
"""A shape of which a smaller share is visible is left out of the scene."""
_MIN_SIDE, _JUDGED_SIDE, _CHUNK = 16, 32, 2**20
# One stream of random numbers for each thing drawn; the backgrounds use four.
_NUMBER, _SLOTS, _DEPTH, _RADIUS, _KIND, _CELL, _JITTER, _TILT, _COLOUR, _TIE, _NOISE, _SHADE, _BACKGROUND = range(13)


@dataclass(frozen=True)
class SceneConfig:
    """Say what scenes contain. Raises `ArgumentError` for a value that cannot be drawn."""

    size: tuple[int, int] = (32, 32)
    """Height and width in pixels, each at least 16."""
    min_shapes: int = 1
    """Fewest shapes placed, at least 1; those that end up hidden are left out, so a count can be lower."""
    max_shapes: int = 16
    """Most shapes placed, at most 20; this is also K, the number of object slots."""
    radius: tuple[float, float] = (0.1, 0.19)
    """Radius of the farthest and of the nearest shapes, as a share of the short side, in 0.08-0.4."""
    kinds: tuple[str, ...] = KINDS
    palette: tuple[str, ...] = COLOUR_NAMES
    backgrounds: tuple[str, ...] = BACKGROUNDS
    pixel_noise: float = 0.02
    """Standard deviation of the noise on every channel of every pixel, in 0-0.2."""

    def __post_init__(self) -> None:
        if len(self.size) != 2 or not all(isinstance(side, int) and side >= _MIN_SIDE for side in self.size):
            raise ArgumentError(f"scene size {self.size}: give (height, width), whole numbers of at least {_MIN_SIDE}")
        if not 1 <= self.min_shapes <= self.max_shapes < len(shapes.NUMBERS):
            got = f"{self.min_shapes} to {self.max_shapes} shapes"
            raise ArgumentError(f"{got}: give 1 <= min_shapes <= max_shapes <= {len(shapes.NUMBERS) - 1}")
        if len(self.radius) != 2 or not 0.08 <= self.radius[0] <= self.radius[1] <= 0.4:
            raise ArgumentError(f"scene radius {self.radius}: give (farthest, nearest) with 0.08 <= far <= near <= 0.4")
        if not 0 <= self.pixel_noise <= 0.2:
            raise ArgumentError(f"pixel noise {self.pixel_noise}: give a standard deviation from 0 to 0.2")
        for field, allowed in (("kinds", KINDS), ("palette", COLOUR_NAMES), ("backgrounds", BACKGROUNDS)):
            got = getattr(self, field)
            if not isinstance(got, tuple) or not got or len(set(got)) < len(got) or not set(got) <= set(allowed):
                raise ArgumentError(f"scene {field} {got!r}: give a tuple of one or more of {', '.join(allowed)}")


MIXED = SceneConfig()
"""Sparse to crowded, all backgrounds."""
SPARSE = SceneConfig(max_shapes=4, radius=(0.11, 0.2))
"""One to four shapes: most of the image is background."""
CROWDED = SceneConfig(min_shapes=17, max_shapes=20, radius=(0.14, 0.21))
"""Shapes nearly everywhere: blank areas are rare."""
SINGLE = SceneConfig(max_shapes=1, radius=(0.11, 0.2))
"""One shape: a tenth of the image."""
NAMED = {
    "scenes": MIXED,
    "scenes:mixed": MIXED,
    "scenes:sparse": SPARSE,
    "scenes:crowded": CROWDED,
    "scenes:single": SINGLE,
}


@dataclass(frozen=True)
class Scenes:
    """Hold a batch of B scenes with their truth; slots K go from nearest to farthest, and some are empty."""

    images: Tensor
    """(B, 3, H, W) float32 in [0, 1]."""
    masks: Tensor
    """(B, K, H, W) bool visible pixels of each object; disjoint."""
    present: Tensor
    """(B, K) bool whether the slot holds an object."""
    kinds: Tensor
    """(B, K) int64 position in `KINDS`, -1 where absent."""
    colours: Tensor
    """(B, K) int64 position in `COLOUR_NAMES`, -1 where absent."""
    boxes: Tensor
    """(B, K, 4) int64 x0, y0, x1, y1 of the visible pixels, ends exclusive; -1 where absent."""
    depth: Tensor
    """(B, H, W) float32 in (0, 1]: one value an object, nearer is smaller; background 0.9-1."""
    count: Tensor
    """(B,) int64 number of objects, at least 1."""
    majority: Tensor
    """(B,) int64 most frequent colour, never tied; a position in `COLOUR_NAMES`."""
    same: Tensor
    """(B,) bool whether two objects share kind and colour."""
    background: Tensor
    """(B,) int64 position in `BACKGROUNDS`."""

    @cached_property
    def captions(self) -> list[str]:
        """Describe each scene exactly, in English; objects are named from the nearest on."""
        rows = zip(self.kinds.tolist(), self.colours.tolist(), self.background.tolist(), strict=True)
        return [shapes.caption(*row) for row in rows]


@dataclass(frozen=True)
class _Layout:
    centres: Tensor
    """(B, K, 2) x, y in units of the short side."""
    radii: Tensor
    tilts: Tensor
    """(B, K) tangent of half the angle."""
    kinds: Tensor
    depths: Tensor
    """(B, K) strictly rising along the slots."""
    used: Tensor
    """(B, K) bool."""


def generate(num: int, *, config: SceneConfig = MIXED, seed: int, start: int = 0) -> Scenes:
    """Generate scenes `start` to `start + num - 1` of a seed; image `i` is the same however they are asked for.

    Raises `ArgumentError` unless num >= 1, start >= 0 and 0 <= seed < 2**63.
    """
    if num < 1 or start < 0 or not 0 <= seed < 2**63:
        raise ArgumentError(f"num {num}, start {start}, seed {seed}: give num >= 1, start >= 0, 0 <= seed < 2**63")
    chunk = max(1, _CHUNK // (config.max_shapes * config.size[0] * config.size[1]))
    parts = [
        _draw(shapes.image_keys(seed, first, min(chunk, start + num - first)), config)
        for first in range(start, start + num, chunk)
    ]
    if len(parts) == 1:
        return parts[0]
    return Scenes(**{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Scenes)})


def patch_coverage(scenes: Scenes, patch: int) -> Tensor:
    """Give the share of object pixels in each patch: (B, rows, cols) float32 in [0, 1].

    Raises `ArgumentError` when height or width is not a multiple of `patch`, a side in pixels.
    """
    num, _, height, width = scenes.masks.shape
    if patch < 1 or height % patch or width % patch:
        raise ArgumentError(f"patch {patch} on {height} x {width} pixels: give a side that divides height and width")
    covered = scenes.masks.any(1).float()  # (B, H, W)
    return covered.reshape(num, height // patch, patch, width // patch, patch).mean((2, 4))  # (B, rows, cols)


@dataclass(frozen=True)
class SceneItem:
    """Name one scene; it is generated when it is read, in whatever process reads it."""

    seed: int
    index: int
    config: SceneConfig = MIXED

    @property
    def name(self) -> str:
        """Give a name such as `scenes/seed0/000012`, or `scenes:sparse/seed0/000012`."""
        return f"{_kind(self.config)}/seed{self.seed}/{self.index:06d}"

    def read(self) -> "Decoded":
        """Draw the scene as an 8-bit RGB image; the digest is that of its size and pixels."""
        from vitprobe.inputs.images import Decoded

        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # steps are too small to share: on a busy machine two threads took 40 times as long
        try:
            image = generate(1, config=self.config, seed=self.seed, start=self.index).images[0]
        finally:
            torch.set_num_threads(threads)
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()  # (H, W, 3)
        digest = hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()
        return Decoded(image=Image.fromarray(pixels), notes=(), digest=digest)


def scene_items(num: int, *, config: SceneConfig = MIXED, seed: int) -> Sequence[SceneItem]:
    """List the first `num` scenes of a seed, none of them drawn yet."""
    return tuple(SceneItem(seed=seed, index=index, config=config) for index in range(num))


@lru_cache
def _kind(config: SceneConfig) -> str:
    """Return the first name of a config, whatever its size; ``scenes`` for one that has none."""
    return next((name for name, named in NAMED.items() if replace(named, size=config.size) == config), "scenes")


def _draw(keys: Tensor, config: SceneConfig) -> Scenes:
    """Draw one scene a key."""
    layout, wish = _place(keys, config)
    masks, present = _visible(layout, config.size)
    kinds = layout.kinds.where(present, torch.tensor(-1))
    colours = _colour(keys, kinds, wish, config)
    tally = shapes.tally(kinds, colours)  # (B, kinds, colours)
    allowed = torch.tensor([BACKGROUNDS.index(name) for name in config.backgrounds])
    background = shapes.pick(shapes.uniform(keys, _NUMBER, 2)[:, 1], allowed)  # (B,)
    ground = shapes.backgrounds(background, keys, _BACKGROUND, size=config.size)
    shades = 1.0 - 0.28 * shapes.spread(shapes.uniform(keys, _SHADE, 1), config.max_shapes)  # (B, K)
    images, depth = shapes.paint(*ground, masks=masks, colours=colours, shades=shades, depths=layout.depths)
    noise = shapes.fine_noise(keys, _NOISE, images[0].numel()).reshape(images.shape)  # (B, 3, H, W)
    images = (images + noise * config.pixel_noise).clamp_(0.0, 1.0)
    return Scenes(
        images=images,
        masks=masks,
        present=present,
        kinds=kinds,
        colours=colours,
        boxes=shapes.boxes(masks, present),
        depth=depth,
        count=present.sum(1),
        majority=tally.sum(1).argmax(1),
        same=(tally > 1).any(2).any(1),
        background=background,
    )


def _place(keys: Tensor, config: SceneConfig) -> tuple[_Layout, Tensor]:
    """Place shapes, one a cell of a jittered grid; the second answer (B,) says where an identical pair is wished."""
    slots, (height, width) = config.max_shapes, config.size
    span = torch.tensor([width, height]) / min(config.size)  # (2,)
    draw = shapes.uniform(keys, _NUMBER, 1)[:, 0]  # (B,)
    number = config.min_shapes + (draw * (config.max_shapes - config.min_shapes + 1)).long()
    used = shapes.uniform(keys, _SLOTS, slots).argsort(dim=1, stable=True) < number[:, None]  # (B, K)
    near_to_far = shapes.uniform(keys, _DEPTH, slots).sort(1).values  # (B, K)
    spread = 0.3 * (shapes.uniform(keys, _RADIUS, slots) - 0.5)
    far, near = config.radius
    radii = near - (near - far) * (near_to_far + spread).clamp_(0.0, 1.0)  # (B, K)
    cols = -(-slots // max(1, min(slots, round((slots * height / width) ** 0.5))))
    rows = -(-slots // cols)
    cell = shapes.uniform(keys, _CELL, rows * cols).argsort(dim=1, stable=True)[:, :slots]  # (B, K)
    cell = torch.stack([cell % cols, cell // cols], 2).float()  # (B, K, 2)
    jitter = shapes.uniform(keys, _JITTER, 2 * slots).reshape(-1, slots, 2)  # (B, K, 2)
    centres = (cell + 1.3 * jitter - 0.15) / torch.tensor([cols, rows]) * span
    inset = 0.5 * radii[:, :, None]
    kinds, wish = _kinds(keys, config)
    tilts = 0.4 * (shapes.uniform(keys, _TILT, slots) - 0.5)  # up to 23 degrees either way
    centres = torch.minimum(torch.maximum(centres, inset), span - inset)
    depths = 0.1 + 0.7 * near_to_far + 1e-3 * torch.arange(slots)
    return _Layout(centres=centres, radii=radii, tilts=tilts, kinds=kinds, depths=depths, used=used), wish


def _kinds(keys: Tensor, config: SceneConfig) -> tuple[Tensor, Tensor]:
    """Draw kinds (B, K), and the wish (B,) for an identical pair: there, one kind is favoured."""
    slots = config.max_shapes
    draw = shapes.uniform(keys, _KIND, 2 * slots + 2)  # (B, 2K + 2)
    kinds = shapes.pick(draw[:, : -slots - 1], torch.tensor([KINDS.index(name) for name in config.kinds]))
    wish = draw[:, -1] < 0.5
    favoured = wish[:, None] & (draw[:, slots + 1 : -1] < 0.7)  # (B, K)
    return torch.where(favoured, kinds[:, :1], kinds[:, 1:]), wish


def _visible(layout: _Layout, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Give visible masks (B, K, H, W) and which objects stay (B, K), judged at one size so that labels keep."""
    short = min(*size, _JUDGED_SIDE)
    judged = tuple(round(side * short / min(size)) for side in size)
    form = (layout.centres, layout.radii, layout.tilts, layout.kinds)
    least = MIN_VISIBLE * torch.tensor(shapes.AREAS)[layout.kinds] * (layout.radii * short) ** 2  # (B, K) pixels
    masks = shapes.occlude(shapes.silhouettes(*form, layout.used, size=judged), least)
    present = masks.flatten(2).any(2)  # (B, K)
    assert present.any(1).all(), "the nearest shape is always visible"
    if judged != size:
        masks = shapes.occlude(shapes.silhouettes(*form, present, size=size))
    return masks, present


def _colour(keys: Tensor, kinds: Tensor, wish: Tensor, config: SceneConfig) -> Tensor:
    """Colour the objects (B, K): with no identical pair, or with one where it is wished and two share a kind."""
    (num, slots), several = kinds.shape, len(config.palette)
    draw = shapes.uniform(keys, _COLOUR, slots + len(KINDS) * several)
    orders = draw[:, slots:].reshape(num, len(KINDS), several).argsort(dim=2, stable=True)
    alike = (kinds[:, :, None] == kinds[:, None]) & (kinds >= 0)[:, :, None]  # (B, K, K)
    alike = alike.triu(1)
    rank = alike.sum(1) % several  # (B, K) how many nearer objects share the kind
    free = shapes.pick(draw[:, :slots], torch.arange(several))
    distinct = orders[torch.arange(num)[:, None], kinds.clamp(0), rank]  # (B, K)
    colours = torch.where(wish[:, None], free, distinct)
    pair = alike.flatten(1).int().argmax(1)  # (B,) the first
    rows = (wish & alike.any(2).any(1)).nonzero()[:, 0]
    colours[rows, pair[rows] % slots] = colours[rows, pair[rows] // slots]
    palette = torch.tensor([COLOUR_NAMES.index(name) for name in config.palette])
    colours = palette[colours].where(kinds >= 0, torch.tensor(-1))
    draw = shapes.uniform(keys, _TIE, slots * len(COLOURS)).reshape(num, slots, -1)  # (B, K, colours)
    return shapes.untie(kinds, colours, draw, wish=wish)
