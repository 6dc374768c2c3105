"""Denoised targets: views are moved back to where they came from, and only what was seen is counted."""

import random

import numpy as np
import pytest
import torch

from vitprobe.tokens import TokenLayout
from vitprobe.training.objectives.retrofit import denoised, shift, spread_views


class Averaging:
    """A stand-in that is equivariant: a token is its patch's mean colour, plus what depends on its position."""

    patch_size = (4, 4)

    def __init__(self, positional: torch.Tensor | float = 0.0) -> None:
        self.positional = positional

    def layout(self, size: tuple[int, int]) -> TokenLayout:
        return TokenLayout.prefix_first(has_cls=True, num_registers=2, grid=(size[0] // 4, size[1] // 4))

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        grid = torch.nn.functional.avg_pool2d(images, 4).permute(0, 2, 3, 1) + self.positional  # (B, rows, cols, 3)
        return torch.cat([torch.full((len(images), 3, 3), 9.0), grid.flatten(1, 2)], dim=1)


@pytest.mark.parametrize(("down", "right"), [(0, 0), (2, 0), (-1, 3), (5, -7), (9, 9)])
def test_shift_moves_and_fills_with_nothing(down: int, right: int) -> None:
    x = torch.arange(1, 36.0).reshape(5, 7)
    found = shift(x, down, right, dims=(0, 1)).numpy()
    expected = np.zeros((5, 7))
    for row in range(5):
        for col in range(7):
            if 0 <= row + down < 5 and 0 <= col + right < 7:
                expected[row + down, col + right] = x[row, col]
    assert np.array_equal(found, expected)


def test_views_of_an_equivariant_model_agree() -> None:
    """Negative control: nothing to average away, so nothing changes, borders included."""
    images = torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    views = spread_views(10, (2, 3), random.Random(0))
    found = denoised(Averaging(), images, views)
    alone = denoised(Averaging(), images, [(0, 0, False)])
    assert torch.allclose(found, alone, atol=1e-6)


def test_what_does_not_move_with_the_image_is_averaged_away() -> None:
    """Positive control: an artifact at a fixed position, planted."""
    images = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    planted = torch.zeros(6, 8, 3)
    planted[2, 5] = 10.0
    clean = denoised(Averaging(), images, [(0, 0, False)])
    views = [(0, 0, False), (1, 0, True), (0, 2, False), (-1, -1, True)]
    found = denoised(Averaging(planted), images, views)
    error = (found - clean).abs().amax(-1)[0]
    assert error[2, 5] == pytest.approx(10 / 4, abs=1e-4)
    flipped = {(2 - down, (7 - 5 if flip else 5) - right) for down, right, flip in views}
    assert {tuple(place) for place in error.gt(0.1).nonzero().tolist()} == flipped


def test_views_are_spread_and_drawn_from_the_given_generator() -> None:
    views = spread_views(8, (3, 5), random.Random(3))
    assert views == spread_views(8, (3, 5), random.Random(3))
    assert views != spread_views(8, (3, 5), random.Random(4))
    assert views[0] == (0, 0, False)
    assert all(abs(down) <= 3 and abs(right) <= 5 for down, right, _ in views)
    assert len({view[:2] for view in views}) == 8
    assert {flip for _, _, flip in views} == {False, True}
    apart = [abs(a[0] - b[0]) + abs(a[1] - b[1]) for a in views for b in views if a != b]
    assert min(apart) >= 2
