"""What the figures of translation show is what the results hold."""

from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch.nn.functional import conv2d

from vitprobe.plots import style, translation
from vitprobe.probes.feature_maps import FeatureMaps, Seen
from vitprobe.probes.shifts import default_shifts
from vitprobe.probes.translation import measure_translation
from vitprobe.probes.translation_sums import COMPARED


def made(*, step=4, cutoff=6.0, axes="xy", size=32, seed=0):
    """A result of a convolution without padding, of random images."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 3, step, step, generator=draw) / step

    def see(images):
        maps = conv2d(images, weight, stride=step)
        return Seen(maps, maps.norm(dim=1), maps.mean(dim=(2, 3)))

    images = torch.randn(6, 3, size + 32, size + 32, generator=draw)
    batch = SimpleNamespace(names=("x",) * 6, indices=tuple(range(6)), images=images)
    mapped = FeatureMaps("x", see, (step, step), (size, size))
    return measure_translation(mapped, [batch], shifts=default_shifts((4, 4), axes=axes), cutoff=cutoff)


def test_lines_are_the_errors():
    found = made()
    scale = translation.shared_scale([found])
    assert scale.pixels == (1, 16) and scale.axes == ("x", "y") and scale.has_outliers and scale.error >= 1.08
    for axis, column in (("x", 1), ("y", 0)):
        ax = style.new_figure(2.5).add_subplot()
        lines = translation.draw_errors(ax, found, axis, scale)
        along = np.flatnonzero(found.shifts[:, column])
        for name in ("moved", "unmoved", "place", "image"):
            x, y = lines[name].get_data()
            assert x.tolist() == [1, 2, 3, 4, 8, 16]
            np.testing.assert_array_equal(y, found.errors[0, COMPARED.index(name), along])
        np.testing.assert_array_equal(lines["moved_without"].get_ydata(), found.errors[1, 0, along])
        assert lines["nearest"].get_xdata().tolist() == [1, 2, 3]  # at whole steps it is the same
        ends = [segment[:, 1] for segment in ax.collections[0].get_segments()]
        np.testing.assert_array_equal(ends, found.error_intervals[0, 0, along])


def test_pooled_lines_and_bars_are_the_numbers():
    found = made()
    figure = style.new_figure(2.5)
    left, right = figure.subplots(1, 2)
    lines = translation.draw_pooled(left, found, translation.shared_scale([found]))
    np.testing.assert_array_equal(lines[0].get_ydata(), found.pooled[0, found.shifts[:, 1] > 0])
    np.testing.assert_array_equal(lines[1].get_ydata(), found.pooled[0, found.shifts[:, 0] > 0])
    translation.draw_outliers(right, found)
    labels = [label.get_text() for label in right.get_yticklabels()]
    assert labels == [f"{axis} {pixels} px" for axis in "xy" for pixels in (4, 8, 16)]
    whole = [i for i, shift in enumerate(found.shifts) if max(shift) % 4 == 0]
    widths = np.array([bar.get_width() for bar in right.patches]).reshape(6, 4)
    assert widths == pytest.approx(found.outliers[[0, 2, 1, 3]][:, whole].T)  # content, both, place, neither
    assert widths.sum(axis=1) == pytest.approx(1)


def test_a_model_without_outliers_has_no_lines_of_them():
    clean, full = made(cutoff=None), made()
    alone, both = translation.shared_scale([clean]), translation.shared_scale([clean, full])
    assert not alone.has_outliers and both.has_outliers
    lines = translation.draw_errors(style.new_figure(2.5).add_subplot(), clean, "x", alone)
    assert "moved_without" not in lines
    for scale, number in ((alone, 3), (both, 4)):
        figure = style.new_figure(translation.PART_HEIGHT)
        translation.page_part(figure.subfigures(1, 1), clean, scale=scale)
        assert len(figure.axes) == number
    assert any(text.get_text() == "none" for text in figure.axes[-1].texts)


def test_a_map_too_small_is_said():
    found = made(step=32, cutoff=None)
    assert "absent" in found.summary
    figure = translation.figure({"small": found})
    FigureCanvasAgg(figure).draw()
    assert any(text.get_text() == "no places in common" for text in figure.axes[0].texts)
    assert np.isfinite(figure.axes[-1].lines[0].get_ydata()).all()  # the pooled vector is there


@pytest.mark.parametrize("axes", ["x", "xy", "xyd"])
def test_models_share_axes_and_draw_whole(axes, pyplot):
    before = dict(matplotlib.rcParams)
    results = {f"a-long-name-of-a-model-{i}, $x_{i}$": made(axes=axes, step=2**i, cutoff=6.0) for i in (2, 3)}
    whole = translation.figure(results)
    FigureCanvasAgg(whole).draw()
    per_model = len(axes) + 2
    assert len(whole.axes) == 2 * per_model
    for column in range(len(axes) + 1):
        pair = whole.axes[column], whole.axes[column + per_model]
        assert len({(ax.get_xlim(), ax.get_ylim()) for ax in pair}) == 1
    compared = translation.compare(results)
    FigureCanvasAgg(compared).draw()
    assert len(compared.axes) == 3 * len(axes) and translation.compare(dict([*results.items()][:1])) is None
    first, second = compared.axes[0].lines[0], compared.axes[0].lines[3]  # line, whole steps, without outliers
    for line, one in zip((first, second), results.values(), strict=True):
        along = [i for i, (down, right) in enumerate(one.shifts) if right and not down]
        np.testing.assert_array_equal(line.get_ydata(), one.errors[0, 0, along])
    assert compared.axes[0].lines[1].get_xdata().tolist() == [4, 8, 16]
    assert compared.axes[0].lines[4].get_xdata().tolist() == [8, 16]
    for figure in (whole, compared):
        box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert box.x0 > -0.02 and box.y0 > -0.02 and box.x1 < width + 0.02 and box.y1 < height + 0.02
    assert not pyplot.get_fignums() and dict(matplotlib.rcParams) == before
