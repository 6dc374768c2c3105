import numpy as np
import pytest
import torch

from vitprobe.probes.patches import (
    centred_norms,
    massive_dimension,
    neighbour_cosine,
    patch_contrast,
    rank_within_image,
)
from vitprobe.tokens import TokenLayout

LAYOUT = TokenLayout.prefix_first(has_cls=True, num_registers=2, grid=(3, 4))


def test_neighbour_cosine_agrees_with_a_loop():
    x = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(0))
    got = neighbour_cosine(x, LAYOUT).reshape(2, 3, 4)
    grid = x.double().reshape(2, 3, 4, 5)
    for b, r, c in np.ndindex(2, 3, 4):
        near = [(r + i, c + j) for i, j in ((0, 1), (1, 0), (0, -1), (-1, 0)) if 0 <= r + i < 3 and 0 <= c + j < 4]
        cosines = [torch.cosine_similarity(grid[b, r, c], grid[b, i, j], dim=0) for i, j in near]
        assert got[b, r, c].item() == pytest.approx(torch.stack(cosines).mean().item(), abs=1e-6)


def test_equal_patches_have_cosine_one_and_a_lone_patch_has_none():
    assert neighbour_cosine(torch.ones(1, 12, 5), LAYOUT).allclose(torch.ones(1, 12))
    alone = TokenLayout.prefix_first(has_cls=False, num_registers=0, grid=(1, 1))
    assert neighbour_cosine(torch.ones(1, 1, 5), alone).isnan().all()


def test_contrast_is_the_spread_of_luminance_in_row_major_patches():
    pixels = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    got = patch_contrast(pixels, (4, 6))  # 2 x 2 patches
    assert got.shape == (2, 4)
    corner = pixels[1, :, 0:4, 6:12].numpy()  # row 0, column 1
    luminance = 0.299 * corner[0] + 0.587 * corner[1] + 0.114 * corner[2]
    assert got[1, 1].item() == pytest.approx(luminance.std(), rel=1e-4)


def test_ranks_leave_ties_out():
    values = torch.tensor([[0.0, 0.0, 0.0, 0.3, 0.5]])
    assert rank_within_image(values).tolist() == [[0, 0, 0, 0.75, 1]]
    assert rank_within_image(torch.ones(1, 4)).tolist() == [[0.5] * 4]


def test_ranks_average_to_one_half_without_ties():
    values = torch.rand(3, 50, generator=torch.Generator().manual_seed(0)).double()
    assert rank_within_image(values, tolerance=1e-9).mean(dim=1).allclose(torch.full((3,), 0.5))


def test_a_common_vector_does_not_change_centred_norms():
    x = torch.randn(2, 12, 6, generator=torch.Generator().manual_seed(0))
    assert centred_norms(x + 100).allclose(centred_norms(x), atol=1e-3)
    assert centred_norms(torch.ones(1, 5, 3)).abs().max() == 0


def test_the_massive_dimension_is_found_and_measured_for_large_tokens_only():
    x = torch.randn(1, 40, 16, generator=torch.Generator().manual_seed(0))
    x[0, 7, 3] = -500.0
    dimension, ratio = massive_dimension(x)
    assert dimension[0, 7] == 3
    assert ratio.isfinite().sum() == 2 and ratio[0, 7].isfinite()
    assert ratio[0, 7].item() == pytest.approx(500 / x[0, 7].abs().median().item(), rel=1e-5)
