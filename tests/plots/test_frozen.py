"""Scores are drawn where they are, controls look like controls, and the legend covers nothing."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from vitprobe.plots import style
from vitprobe.plots.frozen import Score, ScorePanel, ScoresDisplay, draw_scores, handles, looks


def panel(title: str = "majority", *, models: int = 3, is_share: bool = True) -> ScorePanel:
    """Scores of some models, each with a second one and two controls."""
    rows = []
    for i in range(models):
        value = 0.5 + 0.1 * i
        own = [Score("CLS", value, (value - 0.05, value + 0.07)), Score("without outliers", value + 0.02)]
        controls = [Score("most frequent class, always", 0.2, is_control=True), Score("noise", 0.21, is_control=True)]
        rows.append((f"model {i}, of a rather long name with several words", own + controls))
    return ScorePanel(title, "accuracy", rows, is_share, "scenes, test")


def test_dots_and_bars_are_the_scores(pyplot):
    drawn = ScoresDisplay(panel()).plot()
    assert [float(dot.get_xdata()[0]) for dot in drawn.dots_[:4]] == pytest.approx([0.5, 0.52, 0.2, 0.21])
    ends = [bar.get_segments()[0][:, 0].tolist() for bar in drawn.bars_]
    assert ends == [pytest.approx([v - 0.05, v + 0.07]) for v in (0.5, 0.6, 0.7)]
    heights = [float(dot.get_ydata()[0]) for dot in drawn.dots_]
    assert (
        heights[0] < 0 < heights[1] and heights[2] == heights[3] == 0
    )  # two scores beside each other, controls between
    low, high = drawn.ax_.get_xlim()
    assert 0 <= low < 0.2 and 0.77 < high <= 1
    assert drawn.ax_.yaxis_inverted() and len(drawn.ax_.get_yticks()) == 3


def test_it_draws_into_given_axes_and_returns_itself(pyplot):
    _, ax = pyplot.subplots()
    display = ScoresDisplay(panel())
    assert display.plot(ax) is display and display.ax_ is ax and not ax.figure.legends


def test_a_label_looks_the_same_everywhere_and_controls_are_of_one_colour():
    panels = [panel("a"), panel("b", models=1)]
    found = looks(panels)
    assert list(found) == ["CLS", "without outliers", "most frequent class, always", "noise"]
    assert [found[name]["color"] == style.OUTLIERS for name in found] == [False, False, True, True]
    assert len({(look["marker"], look.get("markerfacecolor")) for look in found.values()}) == 4
    assert [entry.get_label() for entry in handles(panels)] == list(found)


def test_numbers_that_are_no_shares_are_not_in_percent(pyplot):
    drawn = ScoresDisplay(panel(is_share=False)).plot()
    drawn.figure_.canvas.draw()
    labels = [tick.get_text() for tick in drawn.ax_.get_xticklabels()]
    assert labels and not any("%" in label for label in labels)
    one = ScorePanel("RMSE", "RMSE, m", [("model", [Score("features", 0.3)])], is_share=False)
    low, high = ScoresDisplay(one).plot().ax_.get_xlim()
    assert low < 0.3 < high


@pytest.mark.parametrize("number", [1, 2, 4])
def test_the_legend_covers_no_panel(number):
    figure = draw_scores([panel(f"task {i}") for i in range(number)], note="bars: Wilson's 95 %")
    FigureCanvasAgg(figure).draw()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
    for ax in figure.axes:
        assert not box.overlaps(ax.get_tightbbox())
    assert len(figure.axes) == number and legend.get_title().get_text() == "bars: Wilson's 95 %"
    widths = [ax.get_position().width for ax in figure.axes]
    assert np.ptp(widths) < 0.05 and min(widths) > 0.25
