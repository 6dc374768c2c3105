"""Replaced registers as they are drawn: points hold the result's numbers, models are told apart without colour."""

import numpy as np
import pytest

from vitprobe.plots.replacement import PANELS, PanelDisplay, Replaced, draw_replaced, look_of

WAYS = ("zero", "mean")


def made(seed=0, *, ways=WAYS, without=()):
    rng = np.random.default_rng(seed)
    numbers = {}
    for panel in PANELS:
        for way in ("clean", *ways):
            value = rng.uniform(0.1, 0.9)
            numbers[f"{way}.{panel.quantity}"] = np.array([value, value - 0.05, value + 0.05])
    return Replaced(ways, {k: v for k, v in numbers.items() if k.partition(".")[2] not in without}, "majority", 0.2)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.quantity)
def test_points_are_the_numbers(panel):
    results = [("a", made()), ("b", made(1))]
    display = PanelDisplay(results, panel).plot()
    ways = ("clean", *WAYS) if panel.has_clean else WAYS
    assert display.ways == list(ways)
    for points, (_, one) in zip(display.points_, results, strict=True):
        np.testing.assert_array_equal(points.get_ydata(), [one.numbers[f"{way}.{panel.quantity}"][0] for way in ways])
    low, high = display.ax_.get_ylim()
    ends = [one.numbers[f"{way}.{panel.quantity}"] for _, one in results for way in ways]
    assert low <= min(end[1] for end in ends) and max(end[2] for end in ends) <= high
    names = [label.get_text() for label in display.ax_.get_xticklabels()]
    assert names == ["as is"] * panel.has_clean + list(WAYS)


def test_points_of_two_models_do_not_cover_each_other():
    display = PanelDisplay([("a", made()), ("b", made(1)), ("c", made(2))], PANELS[0]).plot()
    every = np.concatenate([points.get_xdata() for points in display.points_])
    assert np.diff(np.sort(every)).min() > 0.1
    assert len({look_of(i)["marker"] for i in range(6)}) == 6


def test_a_wide_span_is_logarithmic():
    one = made()
    one.numbers["zero.patches"][:] = 0.5, 0.4, 0.6
    one.numbers["mean.patches"][:] = 1e-4, 0.5e-4, 2e-4
    (panel,) = (panel for panel in PANELS if panel.quantity == "patches")
    assert PanelDisplay([("a", one)], panel).plot().ax_.get_yscale() == "log"
    one.numbers["mean.patches"][:] = 0.4, 0.3, 0.5
    assert PanelDisplay([("a", one)], panel).plot().ax_.get_yscale() == "linear"


@pytest.mark.parametrize(
    "results",
    [
        [("a model $x$", made())],
        [("a", made(ways=("zero", "mean", "noise", "shuffle"))), ("b", made(1))],
        [("a", made(without=("cls",)))],
    ],
)
def test_figures_draw_whole(results, recwarn):
    figure = draw_replaced(results)
    figure.draw_without_rendering()
    names = [text.get_text() for ax in figure.axes if ax.get_legend() for text in ax.get_legend().get_texts()]
    assert names == [*(title for title, _ in results), "chance (majority); no difference"] and not recwarn.list


def test_a_model_without_cls_leaves_its_place_empty():
    (panel,) = (panel for panel in PANELS if panel.quantity == "cls")
    display = PanelDisplay([("a", made(without=("cls",)))], panel).plot()
    assert np.isnan(display.points_[0].get_ydata()).all()
    assert [text.get_text() for text in display.ax_.texts if text.get_text() == "none has it"] == ["none has it"]


def test_intervals_that_are_not_there_are_not_drawn(recwarn):
    one = made()
    for value in one.numbers.values():
        value[1:] = np.nan
    draw_replaced([("a", one)]).draw_without_rendering()
    assert not recwarn.list
