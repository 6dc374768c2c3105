"""Marks by kind of token: where they stand, what lies beyond an axis, and what the legend says."""

import pytest

from vitprobe.plots.kinds import LOOKS, KindDisplay, KindPanel, Mark, draw_kinds
from vitprobe.plots.local_probes import draw_local


def marks_of(ax):
    return [line for line in ax.lines if line.get_linestyle() == "None"]


def test_every_mark_stands_at_its_value_on_the_line_of_its_model():
    rows = [
        ("one", [Mark("normal", 0.3, (0.2, 0.4)), Mark("outlier", 0.6, (0.5, 0.7)), Mark("chance", 0.1)]),
        ("two", [Mark("normal", 0.8)]),
    ]
    display = KindDisplay(KindPanel("title", "accuracy", rows, second="more")).plot()
    places = [(float(m.get_xdata()[0]), float(m.get_ydata()[0])) for m in display.marks_]
    assert [x for x, _ in places] == [0.3, 0.6, 0.1, 0.8]
    assert [round(y) for _, y in places] == [0, 0, 0, 1] and len({y for _, y in places}) == 4
    bars = [path.vertices[:, 0].tolist() for c in display.ax_.collections[1:] for path in c.get_paths()]
    assert bars == [[0.2, 0.4], [0.5, 0.7]]
    low, high = display.ax_.get_xlim()
    assert low == 0 and 0.8 < high <= 1
    shown = [text.get_text() for text in display.figure_.legends[0].get_texts()]
    assert shown == [LOOKS[kind][0] for kind in ("normal", "outlier", "chance")]


def test_what_lies_beyond_the_axis_is_an_arrow_with_its_number():
    rows = [("one", [Mark("normal", 2.0, (1.0, 9.0)), Mark("outlier by normal", 140.2, (120.0, 150.0))])]
    display = KindDisplay(KindPanel("title", "error", rows, is_share=False, limit=4.0)).plot()
    inside, beyond = display.marks_
    assert float(beyond.get_xdata()[0]) == 4.0 and beyond.get_marker() == ">" and inside.get_marker() == "o"
    assert [text.get_text() for text in display.ax_.texts] == ["140"]
    assert display.ax_.get_xlim()[1] < 5
    (bars,) = [c for c in display.ax_.collections if len(c.get_paths()) and c.get_linewidths()[0] == 1.0]
    assert bars.get_paths()[0].vertices[:, 0].tolist() == [1.0, 4.0]


def test_kinds_are_told_apart_without_colour():
    looks = [(look["marker"], look.get("markerfacecolor"), look["color"]) for _, look in LOOKS.values()]
    assert len(set(looks)) == len(looks)
    shapes = {kind: LOOKS[kind][1]["marker"] for kind in ("normal", "outlier", "cls", "register", "random", "chance")}
    assert len(set(shapes.values())) == len(shapes)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_panels_share_a_legend_that_covers_nothing(number):
    rows = [("a model of a rather long name, planted", [Mark("normal", 0.5, (0.4, 0.6)), Mark("cls", 0.9)])] * 2
    figure = draw_kinds([KindPanel(f"panel {i}", "accuracy", rows) for i in range(number)], note="bars: 95 %")
    figure.draw_without_rendering()
    assert len(figure.axes) == number and figure.legends[0].get_title().get_text() == "bars: 95 %"
    legend = figure.legends[0].get_window_extent()
    assert all(not legend.overlaps(ax.get_tightbbox()) for ax in figure.axes)


def score(trained, tested, position, distance, pixels):
    values = {"position": position, "distance": distance, "pixels": pixels}
    own = {name: {"value": value, "interval": [0.9 * value, 1.1 * value]} for name, value in values.items()}
    return {
        "trained_on": trained,
        "tested_on": tested,
        **own,
        "chance": {"position": 0.01, "distance": 7.0, "pixels": 9.0},
    }


def test_a_probe_on_tokens_unlike_its_own_does_not_squeeze_the_others():
    scores = [score("normal", "normal", 0.4, 0.8, 6.0), score("random", "random", 0.01, 7.1, 9.1)]
    far = [*scores, score("outlier", "outlier", 0.2, 5.0, 8.0), score("normal", "outlier", 0.0, 7.5, 400.0)]
    figure = draw_local([("plain", {"unit": "model", "scores": scores}), ("far", {"unit": "model", "scores": far})])
    position, distance, pixels = figure.axes
    assert len(marks_of(position)) == 3 + 6
    assert pixels.get_xlim()[1] < 20 and [text.get_text() for text in pixels.texts if text.get_text() == "400"]
    assert 7.5 in [float(m.get_xdata()[0]) for m in marks_of(distance)]  # within bounds it stands where it is
    assert pixels.get_xlabel() == "L2 of the error, model units"
