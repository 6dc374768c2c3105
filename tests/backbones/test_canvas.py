"""Canvases: covered by the image, in its proportions, normalised as the model's own transform does."""

import numpy as np
import pytest
import torch
from PIL import Image

from vitprobe import backbones
from vitprobe.backbones.base import Transform
from vitprobe.backbones.canvas import canvas_transform
from vitprobe.errors import ArgumentError
from vitprobe.inputs.geometry import CentreCrop, ResizeKeepRatio, read_geometry


def picture(width, height):
    """Red rises from left to right, green from top to bottom, blue is full: padding would be told by its blue."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, np.full_like(red, 255)], axis=-1).round().astype(np.uint8))


@pytest.fixture(scope="module")
def own():
    return backbones.load("deit3-s16", weights="random").transform


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (97, 533), (256, 256), (70, 50)])
def test_the_image_covers_the_canvas(own, size):
    made = canvas_transform(own, (48, 64), 13)
    pixels = made.pixels(made(picture(*size)).unsqueeze(0))[0]  # (3, 74, 90)
    assert pixels.shape == (3, 74, 90) and pixels.dtype == torch.float32
    assert pixels[2].min() > 0.999  # nothing was padded
    scale = max(90 / size[0], 74 / size[1])  # one for both sides: covered, and in its proportions
    for channel, axis, side, kept in ((0, 1, size[0], 90), (1, 0, size[1], 74)):
        spread = pixels[channel].amax(dim=1 - axis).diff().mean().item() * (side - 1)
        assert spread * scale == pytest.approx(1, rel=0.15)
        assert pixels[channel].mean().item() == pytest.approx(0.5, abs=0.02)  # from the middle
        assert kept / scale <= side + 1


def test_it_is_normalised_and_scaled_as_the_model(own):
    made = canvas_transform(own, (224, 224), 16)
    assert (made.mean, made.std) == (own.mean, own.std)
    assert made.apply.transforms[0].interpolation == own.apply.transforms[0].interpolation
    grey = made(Image.new("RGB", (300, 280), (127, 127, 127)))
    expected = (127 / 255 - torch.tensor(own.mean)) / torch.tensor(own.std)
    torch.testing.assert_close(grey.mean(dim=(1, 2)), expected)
    assert read_geometry(made.apply).steps[1:] == (ResizeKeepRatio((256, 256)), CentreCrop((256, 256)))


def test_a_transform_that_tells_no_interpolation_is_scaled_bicubically(own):
    plain = Transform(lambda image: image, (0.5,) * 3, (0.5,) * 3)
    assert canvas_transform(plain, (32, 32), 4).apply.transforms[0].interpolation.value == "bicubic"


@pytest.mark.parametrize(("size", "margin"), [((32, 32), -1), ((0, 32), 4)])
def test_what_is_no_canvas_is_refused(own, size, margin):
    with pytest.raises(ArgumentError, match="margin"):
        canvas_transform(own, size, margin)
