"""Draw the parts of a generated scene: random numbers by counter, silhouettes, occlusion, colours, backgrounds.

Only additions, multiplications, divisions and comparisons are used, one rounding each, so an image has the same bits
whatever batch it is drawn in. Lengths are in units of the image's short side; y points down.
"""

import math
from collections import Counter

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

KINDS = ("disc", "square", "triangle", "cross")
"""Shape kinds; a scene's `kinds` are positions in this tuple."""
COLOURS = {
    "blue": (0.04, 0.12, 0.78),
    "red": (0.82, 0.06, 0.06),
    "green": (0.06, 0.66, 0.12),
    "pink": (0.96, 0.38, 0.76),
    "cyan": (0.20, 0.92, 0.96),
    "yellow": (1.00, 0.90, 0.06),
}
"""RGB in [0, 1] of each named colour, from dark to light; a scene's `colours` are positions in this order."""
BACKGROUNDS = ("plain", "graded", "textured")
"""Background kinds; a scene's `background` is a position in this tuple."""

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
NUMBERS += ("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty")

SQUARE, TRIANGLE, ARM, ARM_WIDTH = 0.88, 1.4, 1.15, 0.4
"""Half side of the square, circumradius of the triangle, half length and half width of the cross's arms, in radii."""
AREAS = (math.pi, 4 * SQUARE**2, 0.75 * math.sqrt(3) * TRIANGLE**2, 8 * ARM * ARM_WIDTH - 4 * ARM_WIDTH**2)
"""Area of each kind in squared radii, in the order of `KINDS`."""

_STEP, _MIX_A, _MIX_B = 0x9E3779B97F4A7C15 - 2**64, 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
_TEXTURE_CELLS, _SMOOTH_CELLS = 32, 5


def image_keys(seed: int, start: int, num: int) -> Tensor:
    """Give (num,) int64 keys, one for each image `start, start + 1, ...` of this seed."""
    return _mix(_mix(torch.tensor([seed])) + torch.arange(start, start + num))


def uniform(keys: Tensor, stream: int, num: int) -> Tensor:
    """Draw (B, num) float32 in [0, 1) that depend on each image's key and on the stream alone."""
    lanes = _words(keys, stream, -(-num // 2)).view(torch.int32)[:, :num]  # (B, num)
    return ((lanes >> 8) & 0xFFFFFF).float() * 2.0**-24


def fine_noise(keys: Tensor, stream: int, num: int) -> Tensor:
    """Draw (B, num) float32 noise of mean 0 and standard deviation 1: 256 equally likely levels in +-1.73."""
    lanes = _words(keys, stream, -(-num // 8)).view(torch.uint8)[:, :num]  # (B, num)
    return (lanes.float() - 127.5) * math.sqrt(12 / (256**2 - 1))


def pick(draw: Tensor, allowed: Tensor) -> Tensor:
    """Turn uniform draws into equally likely entries of `allowed` (N,); the shape is the draws'."""
    return allowed[(draw * len(allowed)).long()]


def spread(draw: Tensor, slots: int) -> Tensor:
    """Give (B, K) values in [0, 1), all different within an image, neighbours far apart; `draw` (B, 1) moves them."""
    steps = draw + torch.arange(slots) * 0.618034  # (B, K)
    return steps - steps.floor()


def axis(pixels: int, *, short: int) -> Tensor:
    """Give (pixels,) float32 positions of the pixel centres, in units of the short side."""
    return (torch.arange(pixels) + 0.5) / short


def silhouettes(
    centres: Tensor, radii: Tensor, tilts: Tensor, kinds: Tensor, used: Tensor, *, size: tuple[int, int]
) -> Tensor:
    """Rasterise whole shapes, before occlusion: (B, K, H, W) bool, True at pixel centres inside.

    `centres` (B, K, 2) are x, y, `radii` (B, K), `tilts` (B, K) tangents of half the angle, `kinds` and `used` (B, K);
    a slot that is not used stays empty.
    """
    masks = torch.zeros(*used.shape, *size, dtype=torch.bool)  # (B, K, H, W)
    xs, ys = axis(size[1], short=min(size)), axis(size[0], short=min(size))
    for kind in range(len(KINDS)):
        at = (used & (kinds == kind)).nonzero(as_tuple=True)
        radius, tilt = radii[at][:, None], tilts[at][:, None]  # (N, 1)
        x, y = (xs - centres[at][:, :1]) / radius, (ys - centres[at][:, 1:]) / radius  # (N, W), (N, H)
        if KINDS[kind] == "disc":
            masks[at] = (x * x)[:, None, :] + (y * y)[:, :, None] <= 1.0  # (N, H, W)
            continue
        scale = 1.0 + tilt * tilt
        cos, sin = (1.0 - tilt * tilt) / scale, 2.0 * tilt / scale  # (N, 1)
        across = (cos * x)[:, None, :] + (sin * y)[:, :, None]  # (N, H, W)
        down = (cos * y)[:, :, None] - (sin * x)[:, None, :]  # (N, H, W)
        masks[at] = _inside(KINDS[kind], across, down)
    return masks


def _inside(kind: str, across: Tensor, down: Tensor) -> Tensor:
    wide = across.abs_()
    if kind == "triangle":
        return (down <= TRIANGLE / 2) & (wide * math.sqrt(3) <= down + TRIANGLE)
    tall = down.abs_()
    if kind == "square":
        return torch.maximum(wide, tall) <= SQUARE
    return (torch.maximum(wide, tall) <= ARM) & (torch.minimum(wide, tall) <= ARM_WIDTH)


def occlude(masks: Tensor, least: Tensor | None = None) -> Tensor:
    """Keep the visible pixels of shapes (B, K, H, W) whose slots go from nearest to farthest; the result is disjoint.

    With `least` (B, K), a shape with fewer visible pixels than that is left out whole, and then hides nothing.
    """
    free = torch.ones_like(masks[:, 0])  # (B, H, W)
    visible = torch.empty_like(masks)
    for slot in range(masks.shape[1]):
        seen = masks[:, slot] & free  # (B, H, W)
        if least is not None:
            seen &= (seen.sum((1, 2)) >= least[:, slot])[:, None, None]
        visible[:, slot] = seen
        free ^= seen
    return visible


def backgrounds(kinds: Tensor, keys: Tensor, stream: int, *, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Draw backgrounds of `kinds` (B,): images (B, 3, H, W), not yet clamped, and their depth (B, H, W).

    They are nearly grey, so no background has a colour of the palette. Depth is 1, or a plane from 0.9 to 1 along the
    gradient of a graded background. Streams `stream` to `stream + 3` are used.
    """
    height, width = size
    draw = uniform(keys, stream, 9)  # (B, 9)
    grey, tint = 0.15 + 0.7 * draw[:, :1], 0.12 * (draw[:, 1:4] - 0.5)  # (B, 1), (B, 3)
    image = (grey + tint)[:, :, None, None].repeat(1, 1, height, width)  # (B, 3, H, W)
    depth = torch.ones(len(kinds), height, width)  # (B, H, W)
    graded = kinds == BACKGROUNDS.index("graded")
    plane = _plane(draw[graded, 4:6], size=size)  # (G, H, W)
    depth[graded] = (0.95 + 0.1 * plane).clamp_(max=1.0)
    away = torch.where(grey < 0.5, 1.0, -1.0) * (0.25 + 0.25 * draw[:, 8:9])  # (B, 1): towards the middle, not to white
    slope = away + 0.2 * (draw[:, 6:9] - 0.5)  # (B, 3)
    image[graded] += slope[graded][:, :, None, None] * (plane + 0.5)[:, None]  # (G, 3, H, W)
    textured = kinds == BACKGROUNDS.index("textured")
    image[textured] += _texture(keys[textured], stream + 1, size=size)
    return image, depth


def paint(
    ground: Tensor, far: Tensor, *, masks: Tensor, colours: Tensor, shades: Tensor, depths: Tensor
) -> tuple[Tensor, Tensor]:
    """Lay objects with visible `masks` over a background: images (B, 3, H, W) and depth (B, H, W).

    `ground` and `far` are what `backgrounds` gives; `colours`, `shades` (1 is the palette's own colour, less is darker)
    and `depths` are (B, K).
    """
    owner = torch.zeros(far.shape, dtype=torch.uint8)  # (B, H, W): 0, or the slot + 1
    for slot in range(masks.shape[1]):
        owner.masked_fill_(masks[:, slot], slot + 1)
    at, owned = owner.flatten(1).long(), owner > 0  # (B, HW), (B, H, W)
    table = torch.tensor(list(COLOURS.values()))[colours.clamp(0)] * shades[:, :, None]  # (B, K, 3)
    table = pad(table.transpose(1, 2), (1, 0))  # (B, 3, K + 1)
    objects = table.gather(2, at[:, None].expand(-1, 3, -1)).reshape(ground.shape)  # (B, 3, H, W)
    near = pad(depths, (1, 0)).gather(1, at).reshape(far.shape)  # (B, H, W)
    return torch.where(owned[:, None], objects, ground), torch.where(owned, near, far)


def boxes(masks: Tensor, present: Tensor) -> Tensor:
    """Give the box x0, y0, x1, y1 of each mask (B, K, H, W): (B, K, 4) int64, ends exclusive, -1 where absent."""
    ends = []
    for lines in (masks.any(2).byte(), masks.any(3).byte()):  # (B, K, W), (B, K, H)
        ends.append((lines.argmax(2), lines.shape[2] - lines.flip(2).argmax(2)))
    (x0, x1), (y0, y1) = ends
    return torch.stack([x0, y0, x1, y1], 2).where(present[:, :, None], torch.tensor(-1))  # (B, K, 4)


def tally(kinds: Tensor, colours: Tensor) -> Tensor:
    """Count the objects of each kind and colour: (B, K) twice, -1 where absent, to (B, kinds, colours)."""
    cells = len(KINDS) * len(COLOURS)
    both = torch.where(kinds >= 0, kinds * len(COLOURS) + colours, cells)  # (B, K)
    return one_hot(both, cells + 1).sum(1)[:, :-1].reshape(-1, len(KINDS), len(COLOURS))


def untie(kinds: Tensor, colours: Tensor, draw: Tensor, *, wish: Tensor) -> Tensor:
    """Recolour one object of each scene whose most frequent colour is tied, in one of the tied colours.

    Which object and colour is drawn (B, K, colours), among those that make an identical pair where one is wished (B,)
    and none elsewhere, if there are such. Gives colours (B, K).
    """
    counts = tally(kinds, colours)  # (B, kinds, colours)
    totals = counts.sum(1)  # (B, colours)
    tied = totals == totals.amax(1, keepdim=True)
    twin = counts[torch.arange(len(kinds))[:, None], kinds.clamp(0)] > 0  # (B, K, colours): it would make a pair
    other = (kinds >= 0)[:, :, None] & (colours[:, :, None] != torch.arange(len(COLOURS)))
    score = (tied[:, None] & other) * (1.0 + (twin == wish[:, None, None]) + draw)  # (B, K, colours)
    best = score.flatten(1).argmax(1)  # (B,)
    rows = (tied.sum(1) > 1).nonzero()[:, 0]
    colours = colours.clone()
    colours[rows, best[rows] // len(COLOURS)] = best[rows] % len(COLOURS)
    return colours


def _plane(draw: Tensor, *, size: tuple[int, int]) -> Tensor:
    """Give planes (G, H, W) in [-0.5, 0.5] that rise along the drawn directions (G, 2)."""
    slope = draw - 0.5
    slope = slope / (slope.abs().sum(1, keepdim=True) + 1e-6)  # (G, 2)
    xs, ys = axis(size[1], short=size[1]) - 0.5, axis(size[0], short=size[0]) - 0.5
    return (slope[:, :1] * xs)[:, None, :] + (slope[:, 1:] * ys)[:, :, None]  # (G, H, W)


def _texture(keys: Tensor, stream: int, *, size: tuple[int, int]) -> Tensor:
    """Draw smooth noise plus a fine texture that comes and goes over the image: (G, 3, H, W) around 0."""
    smooth = uniform(keys, stream, 4 * _SMOOTH_CELLS**2).reshape(-1, 4, _SMOOTH_CELLS, _SMOOTH_CELLS) - 0.5
    smooth = _enlarge(smooth, size=size)  # (G, 4, H, W)
    cells = tuple(max(2, round(_TEXTURE_CELLS * side / min(size))) for side in size)
    fine = fine_noise(keys, stream + 1, cells[0] * cells[1]).reshape(-1, 1, *cells)
    contrast = 0.05 + 0.13 * uniform(keys, stream + 2, 1)[:, :, None, None]  # (G, 1, 1, 1)
    rough = (smooth[:, 3:] * 4.0 + 0.6).clamp_(0.0, 1.0) * contrast  # (G, 1, H, W)
    brightness = smooth[:, :1] * 0.4 + _enlarge(fine, size=size) * rough  # (G, 1, H, W)
    return brightness + smooth[:, :3] * 0.12  # (G, 3, H, W)


def _enlarge(grid: Tensor, *, size: tuple[int, int]) -> Tensor:
    """Interpolate a grid (G, C, h, w) linearly to (G, C, H, W); written out, so that its bits do not depend on G."""
    for dim, pixels in ((3, size[1]), (2, size[0])):
        cells = grid.shape[dim]
        place = ((torch.arange(pixels) + 0.5) * (cells / pixels) - 0.5).clamp(0, cells - 1)
        low = place.long().clamp(max=cells - 2)
        share = (place - low).reshape(-1, *(1,) * (3 - dim))  # (W,) or (H, 1)
        lower, upper = grid.index_select(dim, low), grid.index_select(dim, low + 1)  # (G, C, h, W), then (G, C, H, W)
        grid = lower * (1.0 - share) + upper * share
    return grid


def _words(keys: Tensor, stream: int, num: int) -> Tensor:
    """Draw (B, num) int64 words, all 64 bits of them random."""
    return _mix(_mix(keys + stream)[:, None] + torch.arange(num) * _STEP)  # (B, num)


def _mix(words: Tensor) -> Tensor:
    """Scramble int64 words one to one (the finaliser of splitmix64; products wrap round)."""
    words = words + _STEP
    words = (words ^ ((words >> 30) & (2**34 - 1))) * _MIX_A
    words = (words ^ ((words >> 27) & (2**37 - 1))) * _MIX_B
    return words ^ ((words >> 31) & (2**33 - 1))


def caption(kinds: list[int], colours: list[int], background: int) -> str:
    """Describe a scene exactly, in English: kinds and colours of its slots (-1 where empty), and its background."""
    groups = Counter((colour, kind) for kind, colour in zip(kinds, colours, strict=True) if kind >= 0)
    phrases = []
    for (colour, kind), number in groups.items():
        plural = "" if number == 1 else "es" if KINDS[kind] == "cross" else "s"
        phrases.append(f"{'a' if number == 1 else NUMBERS[number]} {tuple(COLOURS)[colour]} {KINDS[kind]}{plural}")
    listed = " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)
    total = sum(groups.values())
    return f"{NUMBERS[total]} shape{'s' * (total > 1)}: {listed} on a {BACKGROUNDS[background]} background"
