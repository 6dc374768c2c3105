"""Diagrams show the result's bins and numbers, share their axes, and cover nothing."""

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation

from vitprobe.plots import style
from vitprobe.plots.reliability import ReliabilityDisplay, figure, highest, words
from vitprobe.probes.reliability import measure_reliability


def made(gap=0.1, *, number=500, low=0.3, seed=0):
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(low, 1, number)
    probabilities = np.stack([confidence, *[(1 - confidence) / 9] * 9], axis=1)
    return measure_reliability(probabilities, np.where(rng.random(number) < confidence - gap, 0, 1), num_draws=100)


@pytest.mark.parametrize("gap", [0.2, -0.1])
def test_bars_are_accuracies_and_gaps_reach_the_confidence(gap):
    found = made(gap)
    shown = ReliabilityDisplay(found, "x").plot()
    some = found.counts > 0
    assert 5 < some.sum() < len(some)
    np.testing.assert_allclose([bar.get_height() for bar in shown.bars_], found.bin_accuracy[some])
    np.testing.assert_allclose([bar.get_x() for bar in shown.bars_], found.edges[:-1][some])
    spans = [sorted((bar.get_y(), bar.get_y() + bar.get_height())) for bar in shown.gaps_]
    expected = np.sort(np.stack([found.bin_accuracy, found.confidence], axis=1)[some])
    np.testing.assert_allclose(spans, expected)
    segments = np.array(shown.bands_.get_segments())  # (bins, 2 ends, x and y)
    np.testing.assert_allclose(segments[:, :, 1], found.band[some])
    np.testing.assert_allclose(segments[:, 0, 0], found.confidence[some])


def test_the_histogram_holds_all_images_and_both_means():
    found = made()
    shown = ReliabilityDisplay(found, "x").plot()
    heights = [bar.get_height() for bar in shown.shares_]
    np.testing.assert_allclose(heights, found.counts / 500)
    assert sum(heights) == pytest.approx(1) and shown.ax_[1].get_ylim()[1] == highest([found]) >= max(heights)
    at = {name: line.get_xdata()[0] for name, line in shown.means_.items()}
    assert at == {"accuracy": found.accuracy, "confidence": found.summary["confidence"]}


def test_numbers_are_told_with_their_intervals_and_control():
    found = made()
    lines = ReliabilityDisplay(found, "x").plot().note_.get_text().split("\n")
    assert lines == words(found).split("\n")
    low, high = found.ece_ci
    assert lines[1] == f"ECE {100 * found.ece:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
    assert lines[0].startswith(f"accuracy {100 * found.accuracy:.1f} % (")
    assert lines[2] == f"if calibrated, ECE up to {100 * found.summary['ece']['calibrated_most']:.1f} %"


def test_an_interval_of_too_few_wrong_images_is_not_told():
    found = measure_reliability(np.full((90, 2), [0.97, 0.03]), np.zeros(90, int), num_draws=100)
    assert words(found).split("\n")[1] == "ECE 3.0 %, no interval"


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_models_draw_whole_on_shared_axes(number, pyplot):
    before = dict(matplotlib.rcParams)
    results = {f"a long name of a model $x_{i}$, fine-tuned": made(0.05 * i, low=0.1 + 0.1 * i) for i in range(number)}
    drawn = figure(results)
    FigureCanvasAgg(drawn).draw()
    diagrams, histograms = drawn.axes[::2], drawn.axes[1::2]
    assert len(diagrams) == number and drawn.get_figwidth() <= style.WIDTH
    for axes in (diagrams, histograms):
        assert len({(ax.get_xlim(), ax.get_ylim()) for ax in axes}) == 1
        assert np.ptp([ax.get_position().width for ax in axes]) < 1e-3
        assert np.ptp([ax.get_position().height for ax in axes]) < 1e-3
    assert histograms[0].get_ylim()[1] == highest(list(results.values()))
    assert not pyplot.get_fignums() and dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("number", [1, 3, 4])
def test_the_text_covers_nothing(number):
    drawn = figure({f"a long name of a model {i}, fine-tuned at 384 px": made(seed=i) for i in range(number)})
    canvas = FigureCanvasAgg(drawn)
    canvas.draw()
    page, (legend,) = drawn.bbox, drawn.legends
    texts = [note.get_window_extent() for note in drawn.findobj(Annotation) if note.get_text()]
    assert len(texts) == number
    titles = [ax._left_title.get_window_extent() for ax in drawn.axes[::2]]
    for box in (*texts, *titles, legend.get_window_extent()):
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
    for i, text in enumerate(texts):
        assert not any(text.overlaps(ax.get_window_extent()) for ax in drawn.axes)
        assert not any(text.overlaps(other) for other in (*titles, *texts[:i]))
    assert not any(legend.get_window_extent().overlaps(ax.get_tightbbox()) for ax in drawn.axes)


def test_bars_and_gaps_differ_without_colour():
    shown = ReliabilityDisplay(made(), "x").plot()
    assert {bar.get_hatch() for bar in shown.bars_} == {None} and {bar.get_hatch() for bar in shown.gaps_} != {None}
    assert len({str(line.get_linestyle()) for line in shown.means_.values()}) == 2


def test_it_draws_into_given_axes(pyplot):
    drawn, axes = pyplot.subplots(2, 1)
    shown = ReliabilityDisplay(made(), "x").plot(axes, most=0.9)
    assert shown.figure_ is drawn and shown.ax_ == list(axes) and axes[1].get_ylim()[1] == 0.9
    assert not drawn.legends
