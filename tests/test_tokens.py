"""Token positions: every layout tiles its tokens, and the grid is undone exactly."""

import pytest
import torch

from vitprobe.errors import ArgumentError
from vitprobe.tokens import TokenLayout

GRIDS = [(3, 5), (5, 3), (1, 7), (4, 4)]


def layouts(grid: tuple[int, int]) -> list[TokenLayout]:
    """Registers before the patches, behind them, none; with CLS first, last, and without it."""
    size = grid[0] * grid[1]
    return [
        TokenLayout.prefix_first(has_cls=True, num_registers=4, grid=grid),
        TokenLayout.prefix_first(has_cls=False, num_registers=2, grid=grid),
        TokenLayout.prefix_first(has_cls=False, num_registers=0, grid=grid),
        TokenLayout(slice(0, 1), slice(1 + size, 3 + size), slice(1, 1 + size), grid),
        TokenLayout(slice(size, size + 1), slice(size + 1, size + 1), slice(0, size), grid),
    ]


@pytest.mark.parametrize("grid", GRIDS)
def test_grid_and_back(grid: tuple[int, int]) -> None:
    patches = torch.randn(2, grid[0] * grid[1], 6)
    for layout in layouts(grid):
        laid = layout.to_grid(patches)
        assert laid.shape == (2, *grid, 6)
        assert torch.equal(laid[:, grid[0] - 1, 0], patches[:, (grid[0] - 1) * grid[1]])  # row by row
        assert torch.equal(layout.from_grid(laid), patches)


@pytest.mark.parametrize("grid", GRIDS)
def test_all_tokens_on_the_grid_leave_the_prefix_out(grid: tuple[int, int]) -> None:
    for layout in layouts(grid):
        tokens = torch.arange(layout.num_tokens).expand(2, 3, -1)
        laid = layout.to_grid(tokens, dim=2)
        expected = [[layout.patch_position(r, c) for c in range(grid[1])] for r in range(grid[0])]
        assert laid.shape == (2, 3, *grid)
        assert laid[1, 2].tolist() == expected
        assert layout.to_grid(tokens, dim=-1).tolist() == laid.tolist()
        assert layout.from_grid(laid, dim=2).tolist() == tokens[:, :, layout.patches].tolist()


@pytest.mark.parametrize("grid", GRIDS)
def test_every_token_is_of_one_kind(grid: tuple[int, int]) -> None:
    for layout in layouts(grid):
        positions = [p for kind in ("cls", "registers", "patches") for p in layout.positions(kind)]
        assert sorted(positions) == list(range(layout.num_tokens))
        assert layout.num_tokens == len(layout.prefix) + layout.num_patches
        assert set(layout.prefix).isdisjoint(layout.positions("patches"))
        assert "".join(layout.kinds) == "".join(kind for kind in layout.kinds if layout.positions(kind))


def test_prefix_names_cls_then_registers() -> None:
    assert TokenLayout.prefix_first(has_cls=True, num_registers=4, grid=(2, 3)).prefix == (0, 1, 2, 3, 4)
    assert TokenLayout(slice(0, 1), slice(7, 9), slice(1, 7), (2, 3)).prefix == (0, 7, 8)
    assert TokenLayout(slice(8, 9), slice(0, 2), slice(2, 8), (2, 3)).prefix == (8, 0, 1)
    assert TokenLayout(None, slice(0, 0), slice(0, 6), (2, 3)).prefix == ()


def test_kinds_leave_out_what_a_model_lacks() -> None:
    assert list(TokenLayout.prefix_first(has_cls=False, num_registers=0, grid=(2, 3)).kinds) == ["patches"]
    layout = TokenLayout.prefix_first(has_cls=True, num_registers=0, grid=(2, 3))
    assert list(layout.kinds) == ["cls", "patches"]
    assert layout.positions("registers") == ()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((slice(0, 1), slice(1, 3), slice(2, 8)), "overlap or leave a gap"),  # a register is a patch
        ((slice(0, 1), slice(0, 0), slice(2, 8)), "overlap or leave a gap"),  # token 1 is nothing
        ((None, slice(0, 0), slice(1, 7)), "overlap or leave a gap"),  # token 0 is nothing
        ((slice(0, 1), slice(1, 1), slice(0, 6)), "overlap or leave a gap"),  # CLS is a patch
        ((slice(0, 2), slice(2, 2), slice(2, 8)), "CLS slice of 2 tokens"),
        ((slice(0, 1), slice(1, 1), slice(1, 6)), "2 x 3 does not hold 5 patches"),
    ],
)
def test_slices_that_do_not_tile_are_refused(parts: tuple, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        TokenLayout(*parts, grid=(2, 3))


def test_patch_position_is_row_major() -> None:
    layout = TokenLayout.prefix_first(has_cls=True, num_registers=4, grid=(2, 3))
    assert [layout.patch_position(r, c) for r in range(2) for c in range(3)] == [5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("patch", [(2, 0), (0, 3), (-1, 0), (0, -1)])
def test_patch_off_the_grid_is_refused(patch: tuple[int, int]) -> None:
    with pytest.raises(ArgumentError, match="2 rows and 3 columns"):
        TokenLayout.prefix_first(has_cls=True, num_registers=0, grid=(2, 3)).patch_position(*patch)


def test_wrong_sizes_are_refused() -> None:
    layout = TokenLayout.prefix_first(has_cls=True, num_registers=0, grid=(2, 3))
    with pytest.raises(ArgumentError, match="got 5 tokens along axis 1; the layout has 6 patches, 7 tokens"):
        layout.to_grid(torch.zeros(1, 5))
    with pytest.raises(ArgumentError, match=r"got a grid of \(3, 2\); the layout has \(2, 3\)"):
        layout.from_grid(torch.zeros(1, 3, 2))
