"""Shifts, windows, and which places two maps have in common."""

import numpy as np
import pytest
import torch

from vitprobe.errors import ArgumentError
from vitprobe.probes.shifts import Overlap, check_shifts, default_shifts, needed_margin, window_at


def test_shifts_by_default_are_fractions_and_whole_steps():
    assert default_shifts((16, 16), axes="x") == ((0, 4), (0, 8), (0, 12), (0, 16), (0, 32), (0, 64))
    assert default_shifts((14, 14), axes="y") == ((4, 0), (7, 0), (11, 0), (14, 0), (28, 0), (56, 0))
    assert default_shifts((4, 8), axes="d") == ((1, 2), (2, 4), (3, 6), (4, 8), (8, 16), (16, 32))
    both = default_shifts((16, 16), (32, 32))
    assert [right for down, right in both if not down] == [4, 8, 12, 16, 24, 32, 64, 128]
    assert both == default_shifts((32, 32), (16, 16)) and needed_margin(both) == 128
    assert default_shifts((1, 1), axes="x") == ((0, 1), (0, 2), (0, 4))


@pytest.mark.parametrize(("steps", "axes"), [([], "x"), ([(0, 4)], "x"), ([(4, 4)], "z"), ([(4, 4)], "")])
def test_steps_that_are_none_are_refused(steps, axes):
    with pytest.raises(ArgumentError):
        default_shifts(*steps, axes=axes)


def test_windows_are_cut_where_the_shift_says():
    canvases = torch.arange(2 * 3 * 10 * 14).view(2, 3, 10, 14)
    assert torch.equal(window_at(canvases, (0, 0), (4, 8)), canvases[:, :, 3:7, 3:11])
    assert torch.equal(window_at(canvases, (-3, 2), (4, 8)), canvases[:, :, 0:4, 5:13])


def test_shifts_beyond_the_canvas_are_refused():
    assert check_shifts([(0, 3), (0, 3), (-3, 1)], (10, 14), (4, 8)) == ((0, 3), (-3, 1))
    for shifts, canvas, match in [
        ([(0, 4)], (10, 14), "margin of 3 x 3 px"),
        ([(-4, 0)], (10, 14), "margin"),
        ([], (10, 14), "no shift"),
        ([(0, 1)], (11, 14), "same margin"),
        ([(0, 1)], (2, 14), "same margin"),
    ]:
        with pytest.raises(ArgumentError, match=match):
            check_shifts(shifts, canvas, (4, 8))


def by_hand(pixels, step, length, border):
    """Places of the shifted map whose origin lies between kept places of the base map."""
    kept = range(border, length - border)
    found = []
    for p in kept:
        at = p + pixels / step
        if int(np.floor(at)) in kept and int(np.ceil(at)) in kept:
            found.append((p, at))
    return found


@pytest.mark.parametrize("border", [0, 1, 2])
@pytest.mark.parametrize("pixels", [0, 1, 2, 3, 4, 7, 8, 23, 40, -1, -2, -4, -6, -9])
def test_places_in_common_are_those_found_by_hand(pixels, border):
    rows, cols = by_hand(pixels, 4, 7, border), by_hand(-pixels, 2, 5, border)
    overlap = Overlap.of((pixels, -pixels), step=(4, 2), grid=(7, 5), border=border)
    assert overlap.number == len(rows) * len(cols)
    linear = torch.arange(7.0).view(-1, 1) * 10 + torch.arange(5.0)  # which interpolation gives back exactly
    places = [(p, q) for p in rows for q in cols]
    assert overlap.moved(linear).tolist() == pytest.approx([10 * p[1] + q[1] for p, q in places])
    assert overlap.stayed(linear).tolist() == [10 * p[0] + q[0] for p, q in places]
    near = [10 * np.floor(p[1] + 0.5) + np.floor(q[1] + 0.5) for p, q in places]
    assert overlap.nearest(linear).tolist() == near
    rings = []
    for p, q in places:
        on_rows = [p[0], int(np.floor(p[1])), int(np.ceil(p[1]))]
        on_cols = [q[0], int(np.floor(q[1])), int(np.ceil(q[1]))]
        rings.append(min(*(min(v, 6 - v) for v in on_rows), *(min(v, 4 - v) for v in on_cols)))
    assert overlap.rings.tolist() == rings and max(rings, default=0) < overlap.num_rings == 3


def test_masks_need_every_place_that_is_interpolated():
    mask = torch.ones(1, 5, 6, dtype=torch.bool)
    mask[0, 2, 3] = False
    overlap = Overlap.of((2, 2), step=(4, 4), grid=(5, 6), border=0)  # half a place both ways: 4 x 5 in common
    lost = (~overlap.moved_mask(mask)).view(4, 5).nonzero().tolist()
    assert lost == [[1, 2], [1, 3], [2, 2], [2, 3]]
    whole = Overlap.of((4, 0), step=(4, 4), grid=(5, 6), border=0)
    assert (~whole.moved_mask(mask)).view(4, 6).nonzero().tolist() == [[1, 3]] and whole.is_whole
    assert not overlap.is_whole and overlap.is_elsewhere
    assert not Overlap.of((1, 0), step=(4, 4), grid=(5, 6), border=0).is_elsewhere
    assert not Overlap.of((0, 0), step=(4, 4), grid=(5, 6), border=0).is_whole
