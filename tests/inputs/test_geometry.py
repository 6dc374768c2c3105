"""Masks and boxes taken through the geometry lie where the models' own transforms put the picture."""

import pickle
from functools import lru_cache

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from timm.data import create_transform
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms import v2

from vitprobe.backbones import load
from vitprobe.backbones.base import Transform
from vitprobe.backbones.open_clip_vit import open_clip_transform
from vitprobe.errors import ArgumentError
from vitprobe.inputs.geometry import Bound, CentreCrop, Geometry, Resize, read_geometry
from vitprobe.inputs.images import Decoded, bounded

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0))
HALF = (0.5, 0.5, 0.5)
SIZES = {"landscape": (150, 223), "portrait": (401, 260), "large": (600, 599), "wide": (40, 400)}
"""(height, width) of the pictures."""


def timm_transform(size: tuple[int, int], **options: object) -> Transform:
    made = create_transform((3, *size), mean=HALF, std=HALF, interpolation="bicubic", is_training=False, **options)
    return Transform(made, HALF, HALF)


def longest(size: tuple[int, int]) -> Transform:
    config = PreprocessCfg(size=size, resize_mode="longest")
    return Transform(image_transform_v2(config, is_train=False), config.mean, config.std)


MODELS = {
    "organism": lambda: load("organism").transform,
    "organism 224 x 320": lambda: load("organism", image_size=(224, 320)).transform,
    "deit3-s16": lambda: load("deit3-s16", weights="random").transform,
    "dinov2-s14 at 518": lambda: load("dinov2-s14", weights="random", image_size=(518, 518)).transform,
    "open_clip": lambda: open_clip_transform({}, (224, 224)),
    "open_clip 320 x 224": lambda: open_clip_transform({}, (320, 224)),
    "open_clip squash": lambda: open_clip_transform({"resize_mode": "squash"}, (224, 224)),
    "open_clip longest": lambda: longest((224, 224)),
    "timm crop of 0.875": lambda: timm_transform((224, 224), crop_pct=0.875),
    "timm squash": lambda: timm_transform((96, 160), crop_pct=0.9, crop_mode="squash"),
    "timm border": lambda: timm_transform((96, 160), crop_pct=1.0, crop_mode="border"),
    "timm border, cropped": lambda: timm_transform((224, 224), crop_pct=0.9, crop_mode="border"),
    "small into a larger crop": lambda: Transform(
        transforms.Compose([transforms.Resize((90, 70)), transforms.CenterCrop((81, 101)), transforms.ToTensor()]),
        (0.0,) * 3, (1.0,) * 3,
    ),
    "v2": lambda: Transform(
        v2.Compose([v2.Resize(96), v2.CenterCrop(80), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]),
        (0.0,) * 3, (1.0,) * 3,
    ),
}  # fmt: skip


@lru_cache
def transform(name: str) -> Transform:
    return MODELS[name]()


def drawn(height: int, width: int) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """Four coloured rectangles on black: the picture, the class of each pixel (0 for black), the boxes."""
    cuts = np.array([(0.05, 0.08, 0.3, 0.35), (0.55, 0.1, 0.93, 0.4), (0.1, 0.5, 0.45, 0.96), (0.6, 0.6, 0.9, 1.0)])
    boxes = np.rint(cuts * [width, height, width, height]).astype(int)
    pixels, classes = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.int64)
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        pixels[y0:y1, x0:x1], classes[y0:y1, x0:x1] = COLOURS[number], number + 1
    return Image.fromarray(pixels), classes, boxes


def seen(name: str, image: Image.Image) -> np.ndarray:
    """The class of each pixel as the true transform shows it: (H, W), by the nearest colour; 0 for black, grey too."""
    through = transform(name)
    pixels = through.pixels(through.apply(bounded(Decoded(image, (), "")).image)[None])[0]  # (3, H, W)
    palette = torch.tensor([(0, 0, 0), *COLOURS, (128, 128, 128)]) / 255  # (6, 3); timm pads with grey
    classes = (pixels.permute(1, 2, 0)[:, :, None] - palette).square().sum(-1).argmin(-1).numpy()
    return classes % (len(COLOURS) + 1)


def interior(classes: np.ndarray) -> np.ndarray:
    """Pixels all of whose neighbours, two steps away, are of their class: those no blur can reach."""
    padded = np.pad(classes, 2, mode="edge")
    height, width = classes.shape
    shifts = ((dy, dx) for dy in range(5) for dx in range(5))
    return np.logical_and.reduce([padded[dy : dy + height, dx : dx + width] == classes for dy, dx in shifts])


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("name", MODELS)
def test_masks_and_boxes_follow_the_picture(name: str, size: tuple[int, int]) -> None:
    image, classes, boxes = drawn(*size)
    geometry = pickle.loads(pickle.dumps(read_geometry(transform(name).apply)))
    truth, mask = seen(name, image), geometry.nearest(classes)
    assert mask.shape == truth.shape and mask.dtype == np.int64
    sure = interior(mask)
    assert sure.mean() > 0.6
    assert np.array_equal(mask.clip(0)[sure], truth[sure])
    shares = geometry.inside(boxes, size)
    placed = geometry.boxes(boxes, size)
    assert placed.dtype == np.float64 and len(placed) == (shares > 0).sum()
    for number, (x0, y0, x1, y1) in zip(np.flatnonzero(shares > 0) + 1, placed, strict=True):
        rows, cols = (np.flatnonzero((truth == number).any(axis)) for axis in (1, 0))
        if min(x1 - x0, y1 - y0) < 2:  # a sliver that the blur may hide
            continue
        found = (cols[0], rows[0], cols[-1] + 1, rows[-1] + 1)
        assert np.abs(np.array(found) - (x0, y0, x1, y1)).max() <= 1.0
    for number in np.flatnonzero(shares == 0) + 1:
        assert (truth == number).sum() <= 0.01 * truth.size


@pytest.mark.parametrize("name", ["deit3-s16", "timm border", "open_clip longest"])
def test_another_place_would_be_seen(name: str) -> None:
    """The comparison above fails for a mask that is three pixels off."""
    image, classes, _ = drawn(*SIZES["portrait"])
    truth, mask = seen(name, image), read_geometry(transform(name).apply).nearest(classes).clip(0)
    moved = np.roll(mask, 3, axis=1)
    assert np.array_equal(mask[interior(mask)], truth[interior(mask)])
    assert not np.array_equal(moved[interior(mask)], truth[interior(mask)])


def test_nearest_is_aligned_with_the_middle_of_pixels() -> None:
    halved = Geometry((Resize((2, 3)),)).nearest(np.arange(24, dtype=np.int64).reshape(4, 6))
    assert halved.tolist() == [[7, 9, 11], [19, 21, 23]]  # the middle of 2 x 2 is a corner: the pixel after it
    thirds = Geometry((Resize((1, 3)),)).nearest(np.arange(9.0)[None])
    assert thirds.tolist() == [[1.0, 4.0, 7.0]]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 53), np.uint8))
    for size in ((20, 31), (90, 111), (37, 53), (36, 106)):
        pillow = np.asarray(image.resize(size[::-1], Image.Resampling.NEAREST))
        assert np.array_equal(Geometry((Resize(size),)).nearest(np.asarray(image, np.int16)), pillow)


def test_padding_and_types() -> None:
    geometry = Geometry((CentreCrop((4, 3)),))
    for dtype, fill in ((np.int64, -1), (np.int16, -1), (bool, False), (np.float32, np.nan)):
        made = geometry.nearest(np.ones((1, 5), dtype))
        assert made.dtype == dtype
        expected = np.full((4, 3), fill, dtype)
        expected[1] = 1
        assert np.array_equal(made, expected, equal_nan=dtype is np.float32)
    for values, says in ((np.zeros((2, 2), np.uint8), "type uint8"), (np.zeros(4), r"shape \(4,\)")):
        with pytest.raises(ArgumentError, match=says):
            geometry.nearest(values)


def test_boxes_are_cut_and_dropped() -> None:
    geometry = Geometry((Bound(8), Resize((100,)), CentreCrop((100, 100))))
    size = (50, 150)  # doubled to 100 x 300, columns 100 to 199 kept: 50 to 99 of the file
    boxes = np.array([[0, 0, 40, 50], [40, 10, 60, 30], [60, 0, 70, 50], [70, 10, 70, 20], [0, 0, 150, 50]])
    assert geometry.boxes(boxes, size).tolist() == [[0, 20, 20, 60], [20, 0, 40, 100], [0, 0, 100, 100]]
    assert geometry.inside(boxes, size) == pytest.approx([0, 0.5, 1, 0, 1 / 3])
    assert geometry.boxes(np.zeros((0, 4)), size).shape == (0, 4)
    with pytest.raises(ArgumentError, match=r"shape \(4,\)"):
        geometry.boxes(np.zeros(4), size)


def test_the_bound_of_the_loader() -> None:
    """200 x 10 px are cropped to the middle 80 before the transform; without the bound they are not."""
    apply = transforms.Compose([transforms.Resize((10, 80))])
    box = np.array([[50, 0, 70, 10]])
    assert read_geometry(apply).boxes(box, (10, 200)).tolist() == [[0, 0, 10, 10]]
    assert read_geometry(apply, bound=20).boxes(box, (10, 200)).tolist() == [[20, 0, 28, 10]]


class Turned(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.flip(-1)


@pytest.mark.parametrize(
    ("apply", "says"),
    [
        (transforms.Compose([transforms.Resize(8), transforms.RandomHorizontalFlip()]), "the step RandomHorizontal"),
        (transforms.Compose([transforms.FiveCrop(8)]), "the step FiveCrop"),
        (transforms.Compose([Turned()]), r"the step Turned\(\)"),
        (transforms.Compose([lambda image: image]), "the step .*<lambda>"),
        (transforms.Compose([transforms.Resize(8, max_size=12)]), "max_size"),
        (create_transform((3, 8, 8), is_training=True), "the step RandomResizedCropAndInterpolation"),
        (create_transform((3, 8, 8), is_training=True, train_crop_mode="rkrr"), "the step ResizeKeepRatio"),
        (np.asarray, "the transform asarray; a Compose"),
        (nn.Identity(), r"the transform Identity\(\); a Compose"),
    ],
)
def test_what_is_not_known_is_refused(apply: object, says: str) -> None:
    with pytest.raises(ArgumentError, match=says) as error:
        read_geometry(apply)
    assert "\n" not in str(error.value)
