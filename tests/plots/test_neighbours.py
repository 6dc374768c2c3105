"""What figure 5 a shows is what the result holds."""

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from vitprobe.plots import neighbours, style
from vitprobe.probes.neighbours import NeighbourAccumulator


def made(*, shift=0.3, share=0.05, images=12, seed=0):
    rng = np.random.default_rng(seed)
    outliers = rng.random((images, 80)) < share
    cosine = (0.4 + 0.2 * rng.normal(size=outliers.shape) + shift * outliers).clip(-1, 1)
    accumulator = NeighbourAccumulator()
    accumulator.update(range(images), cosine.astype(np.float32), outliers)
    return accumulator.result()


def test_lines_and_marks_are_the_densities_and_means():
    found = made()
    shown = neighbours.NeighbourDisplay(found, "organism").plot()
    for line, density in zip(shown.lines_, found.density, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), density)
    assert [m.get_xdata()[0] for m in shown.means_] == [found.summary[k]["value"] for k in ("outliers", "others")]
    assert shown.ax_.get_ylim()[1] > found.density.max() and shown.ax_.get_xlim()[0] < 0
    texts = " ".join(text.get_text() for text in shown.ax_.texts)
    low, high = found.summary["difference"]["interval"]
    assert f"{found.summary['difference']['value']:+.2f} [{low:+.2f}, {high:+.2f}]" in texts


def test_no_outliers_are_said():
    shown = neighbours.NeighbourDisplay(made(share=0), "organism-clean").plot()
    assert np.isnan(shown.lines_[0].get_ydata()).all() and len(shown.means_) == 1
    assert "no outliers" in [text.get_text() for text in shown.ax_.texts]
    labels = [text.get_text() for text in shown.figure_.legends[0].get_texts()]
    assert labels == ["other patches", "mean"]


def test_a_negative_difference_has_a_minus():
    assert neighbours.difference(made(shift=-0.3).summary).startswith("by image: −0.")
    lone = made(images=1, share=0.5)
    assert neighbours.difference(lone.summary).count("[") == 0


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_models_share_axes_and_draw_whole(number, pyplot):
    before = dict(matplotlib.rcParams)
    results = [(f"model-{i}, random $x_{i}$", made(shift=0.1 * i, share=0.04 * i, seed=i)) for i in range(number)]
    figure = neighbours.draw_neighbours(results)
    FigureCanvasAgg(figure).draw()
    assert len({ax.get_xlim() for ax in figure.axes}) == len({ax.get_ylim() for ax in figure.axes}) == 1
    assert len(figure.axes) == number and figure.get_figwidth() <= style.WIDTH
    assert not pyplot.get_fignums() and dict(matplotlib.rcParams) == before
    notes = [n.get_window_extent().transformed(figure.dpi_scale_trans.inverted()) for n in figure.findobj(Annotation)]
    box, (width, height) = Bbox.union([figure.get_tightbbox(), *notes]), figure.get_size_inches()
    assert box.x0 > -0.02 and box.y0 > -0.02 and box.x1 < width + 0.02 and box.y1 < height + 0.02, "text is cut off"


def test_displays_draw_into_given_axes(pyplot):
    figure, ax = pyplot.subplots()
    shown = neighbours.NeighbourDisplay(made(), "x")
    assert shown.plot(ax) is shown and shown.ax_ is ax and figure.axes == [ax]
