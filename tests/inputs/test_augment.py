"""Transforms of training images: shapes, what stays and what changes, and where their randomness comes from."""

import pickle
import random

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image
from torch import Tensor

from vitprobe.errors import ArgumentError
from vitprobe.inputs.augment import (
    KINDS,
    MultiCrop,
    multi_crop_transform,
    plain_transform,
    supervised_transform,
    text_transform,
)
from vitprobe.inputs.seeding import generators_kept, seed_generators

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def picture(height: int = 40, width: int = 60) -> Image.Image:
    """A smooth picture with a colour of its own at each place."""
    rows, cols = np.mgrid[:height, :width]
    pixels = np.stack([255 * rows / height, 255 * cols / width, 127 + 100 * np.sin(rows / 3)], 2)
    return Image.fromarray(pixels.astype(np.uint8))


def crops(num_local: int = 3) -> MultiCrop:
    return multi_crop_transform((24, 32), 12, num_local, (0.32, 1.0), (0.05, 0.32), MEAN, STD)


def pixels(tensor: Tensor) -> Tensor:
    """Undo the normalisation: (3, H, W) in [0, 1]."""
    return tensor * torch.tensor(STD).reshape(3, 1, 1) + torch.tensor(MEAN).reshape(3, 1, 1)


def drawn(transform, position: int, image: Image.Image | None = None) -> tuple[Tensor, ...]:
    with generators_kept():
        seed_generators(0, position)
        views = transform(image or picture())
    return (views,) if isinstance(views, Tensor) else views


RANDOM = {
    **{kind: lambda kind=kind: supervised_transform(kind, (24, 32), MEAN, STD) for kind in KINDS if kind != "none"},
    "text": lambda: text_transform((24, 32), MEAN, STD),
    "multi-crop": crops,
}


@pytest.mark.parametrize("name", RANDOM)
def test_draws_come_from_the_seeded_generators_alone(name: str) -> None:
    transform = RANDOM[name]()
    first, again, other = (drawn(transform, position, picture(40, 44)) for position in (1, 1, 2))
    assert [tuple(view.shape) for view in first][:1] == [(3, 24, 32)]
    assert all(view.dtype == torch.float32 for view in first)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(first, other, strict=True))
    copy = pickle.loads(pickle.dumps(transform))  # a worker that is not forked gets it so
    assert all(torch.equal(one, two) for one, two in zip(first, drawn(copy, 1, picture(40, 44)), strict=True))
    low, high = pixels(first[0]).aminmax()
    assert -1e-5 <= low < high <= 1 + 1e-5


def test_outer_generators_are_left_alone() -> None:
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    for name in RANDOM:
        drawn(RANDOM[name](), 0)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


@pytest.mark.parametrize("size", [20, (20, 20), (24, 32)])
def test_plain_takes_the_middle_of_what_covers(size: int | tuple[int, int]) -> None:
    height, width = (size, size) if isinstance(size, int) else size
    got = plain_transform(size, MEAN, STD)(picture())
    scale = max(height / 40, width / 60)
    small = picture().resize((round(60 * scale), round(40 * scale)), Image.Resampling.BICUBIC)
    left, top = round((small.width - width) / 2), round((small.height - height) / 2)
    want = np.array(small.crop((left, top, left + width, top + height)), np.float32).transpose(2, 0, 1) / 255
    torch.testing.assert_close(pixels(got), torch.from_numpy(want), atol=1e-5, rtol=0)
    assert torch.equal(supervised_transform("none", size, MEAN, STD)(picture()), got)


def test_light_keeps_small_pictures_but_for_shift_and_flip() -> None:
    image = picture(32, 32)
    padded = np.pad(np.array(image), ((4, 4), (4, 4), (0, 0)), mode="reflect").transpose(2, 0, 1)
    allowed = {
        cut[:, :, ::step].tobytes(): (top, left, step)
        for top in range(9)
        for left in range(9)
        for cut in [padded[:, top : top + 32, left : left + 32]]
        for step in (1, -1)
    }
    transform = supervised_transform("light", 32, MEAN, STD)
    found = set()
    for position in range(300):
        got = (pixels(drawn(transform, position, image)[0]) * 255).round().byte().numpy()
        found.add(allowed[got.tobytes()])
    assert len(found) > 100  # of 9 x 9 x 2
    assert {step for *_, step in found} == {1, -1}


def test_three_augment_solarises_greys_or_blurs_and_crop_does_not() -> None:
    """Told on an image of one colour: solarising makes it dark, greying takes the colour away, a crop leaves it."""
    image = Image.new("RGB", (64, 64), (200, 40, 40))
    seen = {"grey": 0, "solarised": 0, "kept": 0}
    transform = supervised_transform("three-augment", 32, MEAN, STD)
    for position in range(300):
        red, green, blue = pixels(drawn(transform, position, image)[0])[:, 16, 16].tolist()
        kind = "grey" if abs(red - green) < 0.02 else "solarised" if red < 0.45 else "kept"
        seen[kind] += 1
        assert abs(green - blue) < 0.1
    assert all(60 < count < 140 for count in seen.values()), seen  # a third each: 100, deviation 8
    plain = supervised_transform("crop", 32, MEAN, STD)
    for position in range(20):
        torch.testing.assert_close(
            pixels(drawn(plain, position, image)[0])[:, 16, 16], torch.tensor([200, 40, 40]) / 255, atol=1e-5, rtol=0
        )


def test_text_is_what_open_clip_trains_with() -> None:
    theirs = image_transform(32, is_train=True, mean=MEAN, std=STD)
    for position in range(5):
        assert torch.equal(drawn(text_transform(32, MEAN, STD), position)[0], drawn(theirs, position)[0])


def test_multi_crop_gives_two_global_crops_and_then_local_ones() -> None:
    views = drawn(crops(), 0)
    assert [tuple(view.shape) for view in views] == [(3, 24, 32)] * 2 + [(3, 12, 12)] * 3
    assert len(drawn(crops(0), 0)) == 2
    assert not torch.equal(views[2], views[3])


def test_multi_crop_blurs_and_solarises_as_often_as_it_says() -> None:
    """On noise: a blurred crop is smooth; on a bright colour: a solarised one is dark."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    transform = multi_crop_transform(64, 64, 1, (1.0, 1.0), (1.0, 1.0), MEAN, STD)
    rough = np.zeros(3)
    for position in range(200):
        for view, tensor in enumerate(drawn(transform, position, noise)):
            change = pixels(tensor).diff(dim=2).abs().mean() / pixels(tensor).std()
            rough[view] += change > 0.9  # 1.1 for noise as it is; about a quarter of the blurs are too slight to tell
    first, second, local = rough / 200
    assert first < 0.35 < 0.5 < local < 0.75 < 0.85 < second
    bright, dark = Image.new("RGB", (64, 64), (250, 250, 250)), np.zeros(3)
    for position in range(200):
        for view, tensor in enumerate(drawn(transform, position, bright)):
            dark[view] += pixels(tensor).mean() < 0.3
    assert dark[0] == dark[2] == 0
    assert 20 < dark[1] < 60  # a fifth of 200; deviation 6


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: supervised_transform("strong", 32, MEAN, STD), "augmentation 'strong'; give one of three-augment, "),
        (
            lambda: multi_crop_transform(32, 16, 2, (0.0, 1.0), (0.1, 0.3), MEAN, STD),
            r"global scale \(0.0, 1.0\); give",
        ),
        (lambda: multi_crop_transform(32, 16, 2, (0.3, 1.0), (0.5, 0.3), MEAN, STD), r"local scale \(0.5, 0.3\); give"),
        (lambda: multi_crop_transform(32, 4, 2, (0.3, 1.0), (0.1, 0.3), MEAN, STD), "sides from 4 px; give .* 5 px"),
        (lambda: multi_crop_transform(32, 16, -1, (0.3, 1.0), (0.1, 0.3), MEAN, STD), "-1 local crops"),
    ],
)
def test_arguments_are_checked(make, says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        make()
