"""The figures of a comparison show what it holds: checked on the artists, and on every text's place."""

import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from vitprobe.plots import curves, style, sweep, training
from vitprobe.plots.attention import color_limit
from vitprobe.probes.comparison import VariantResult, compare

sys.path.append(str(Path(__file__).parents[1] / "probes"))  # tests are no package
from made_variants import make_variant

LONG = {"steps": 100_000, "log_every": 20, "eval_every": 2000, "knn": False}


def unknown(one: VariantResult) -> VariantResult:
    """Return a variant of which nothing was finite or measured over training."""
    nothing = {name: np.full_like(getattr(one.curve, name), np.nan) for name in ("loss", "measure", "knn", "tail")}
    return replace(one, curve=replace(one.curve, **nothing), measures={})


@pytest.fixture(scope="module")
def cases() -> dict[str, list[VariantResult]]:
    """Lists of variants that every figure must be able to draw."""
    found = {r: make_variant(r, outliers="artifacts" if r < 2 else "", num_blocks=3) for r in (0, 1, 2, 4, 8, 16)}
    plain = [make_variant(r, family="-plain", measure="agreement", num_blocks=3) for r in (0, 1, 4, 16)]
    as_plain = [make_variant(r, measure="agreement", num_blocks=3, curve={"knn": False}) for r in (0, 1, 4, 16)]
    return {
        "one": [found[4]],
        "control": [found[0]],
        "two": [found[0], found[4]],
        "clean": [make_variant(r, curve={"steps": 2, "eval_every": 1}, num_blocks=1) for r in (0, 4)],
        "long": [make_variant(r, curve=LONG, outliers="content", images=6) for r in (0, 4, 8)],
        "nothing known": [unknown(found[0]), unknown(found[4])],
        "sweep": list(found.values()),
        "two families": [*as_plain, *plain],
        "wide": [make_variant(r, grid=(3, 8), num_blocks=2) for r in (0, 1, 2, 3, 4)],
    }


WHOLE = [
    *(("norms", case) for case in ("control", "two", "clean", "sweep", "two families", "wide")),
    *(("histogram", case) for case in ("two", "clean", "sweep")),
    *(("attention", case) for case in ("one", "clean", "two families", "wide")),
    *(("curves", case) for case in ("one", "control", "clean", "long", "nothing known", "sweep", "two families")),
    *(("sweep", case) for case in ("sweep", "two families", "wide")),
]


def test_every_figure_is_looked_at():
    assert {stem for stem, _ in WHOLE} == set(training.FIGURES)


@pytest.mark.parametrize(("stem", "case"), WHOLE)
def test_figures_draw_whole(stem, case, cases, pyplot):
    results = cases[case]
    drawn = training.figures(results)
    assert ("sweep" in drawn) == (case in ("sweep", "two families", "wide"))
    before = dict(matplotlib.rcParams)
    figure = drawn[stem](results)
    FigureCanvasAgg(figure).draw()
    assert isinstance(figure, Figure) and figure.get_figwidth() <= style.WIDTH and figure.get_figheight() <= 9.5
    assert not pyplot.get_fignums() and dict(matplotlib.rcParams) == before
    shown = "".join("".join(text.get_text().split()) for text in figure.findobj(Text))
    if stem != "sweep":
        assert all("".join(one.title.split()) in shown for one in results)
    notes = [n.get_window_extent().transformed(figure.dpi_scale_trans.inverted()) for n in figure.findobj(Annotation)]
    box, (width, height) = Bbox.union([figure.get_tightbbox(), *notes]), figure.get_size_inches()
    assert box.x0 > -0.02 and box.y0 > -0.02 and box.x1 < width + 0.02 and box.y1 < height + 0.02, "text is cut off"
    legends = [legend.get_window_extent() for legend in figure.findobj(Legend)]
    axes = [ax.get_tightbbox() for ax in figure.axes if ax.axison]
    assert not any(legend.overlaps(ax) for legend in legends for ax in axes), "a legend covers something"


def test_norms_by_block_share_scales_and_show_registers(cases):
    figure = training.draw_norms(cases["sweep"])
    upper, lower = figure.axes[:6], figure.axes[6:]
    assert len({ax.get_ylim() for ax in upper}) == len({ax.get_ylim() for ax in lower}) == 1
    for ax, one in zip(upper, cases["sweep"], strict=True):
        line = next(line for line in ax.lines if line.get_color() == training.REGISTERS)
        expected = one.norms.quantiles[:, 1, list(one.norms.levels).index(0.5)]
        np.testing.assert_array_equal(line.get_ydata(), expected)
        assert np.isnan(expected).all() == (one.num_registers == 0)
        assert ax.get_ylim()[1] > np.nanmax(np.append(expected, one.norms.maxima[:, 2]))


@pytest.mark.parametrize(("case", "rows"), [("two", True), ("sweep", False)])
def test_attention_shows_the_same_images_on_one_scale(case, rows, cases):
    results = cases[case]
    figure = training.draw_attention(results)
    images = [image for ax in figure.axes for image in ax.images]
    maps = [image for image in images if image.get_array().ndim == 2]
    assert len(images) - len(maps) == 4 and len(maps) == 4 * len(results)
    assert {image.get_clim() for image in maps} == {(0, color_limit([one.maps for one in results]))}
    order = [(v, i) for v in range(len(results)) for i in range(4)] if rows else None
    for image, (v, i) in zip(maps, order or [(v, i) for i in range(4) for v in range(len(results))], strict=True):
        found = results[v].maps
        np.testing.assert_allclose(image.get_array(), found.maps[i, 0, 0] * found.num_tokens)


QUANTITIES = {
    "last": (curves.LAST, lambda c: c.outlier_fraction),
    "highest": (curves.HIGHEST, lambda c: c.outlier_fractions.max(axis=1)),
    "tail": (curves.TAIL, lambda c: c.tail),
    "knn": (curves.KNN, lambda c: c.knn),
    "measure": (curves.measure("accuracy"), lambda c: c.measure),
}


@pytest.mark.parametrize("name", QUANTITIES)
def test_curves_hold_what_was_measured(name, cases, pyplot):
    quantity, values = QUANTITIES[name]
    figure, ax = pyplot.subplots()
    shown = curves.CurveDisplay(cases["two"], quantity).plot(ax)
    assert shown.ax_ is ax and shown.figure_ is figure
    for line, one in zip(shown.lines_, cases["two"], strict=True):
        np.testing.assert_array_equal(line.get_xdata(), one.curve.eval_steps)
        np.testing.assert_array_equal(line.get_ydata(), values(one.curve))
        low, high = ax.get_ylim()
        assert low < values(one.curve).min() and values(one.curve).max() < high


def test_displays_make_their_own_figure(cases, pyplot):
    for display in (
        curves.CurveDisplay(cases["two"], curves.LAST),
        curves.LossDisplay(cases["two"]),
        sweep.SweepDisplay(cases["sweep"], sweep.NORMS),
    ):
        FigureCanvasAgg(display.plot().figure_).draw()
    assert not pyplot.get_fignums()


def test_a_short_loss_is_drawn_as_logged_and_a_long_one_smoothed(cases):
    short = curves.LossDisplay(cases["two"]).plot()
    np.testing.assert_array_equal(short.lines_[0].get_ydata(), cases["two"][0].curve.loss)
    assert short.raw_ == []
    long = curves.LossDisplay(cases["long"]).plot()
    curve = cases["long"][0].curve
    raw, line = long.raw_[0].get_ydata(), long.lines_[0].get_ydata()
    assert len(curve.loss) == 5000 and max(len(raw), len(line)) <= 2 * curves.POINTS
    assert set(raw) <= set(curve.loss) and (raw.min(), raw.max()) == (curve.loss.min(), curve.loss.max())
    assert set(line) <= set(curve.smoothed()) and f"mean of {curve.window}" in "".join(
        text.get_text() for text in long.ax_.texts
    )
    assert long.raw_[0].get_alpha() < 0.5 and long.raw_[0].get_zorder() < long.lines_[0].get_zorder()


def test_a_loss_that_falls_far_is_drawn_on_a_logarithmic_axis(cases):
    one = cases["two"][0]
    falling = replace(one, curve=replace(one.curve, loss=np.geomspace(100, 0.1, len(one.curve.loss))))
    assert curves.LossDisplay([falling]).plot().ax_.get_yscale() == "log"
    assert curves.LossDisplay([one]).plot().ax_.get_yscale() == "linear"


def test_what_is_not_there_is_said(cases):
    def said(shown):
        return [text.get_text() for text in shown.ax_.texts]

    nothing = cases["nothing known"]
    assert "not measured" in said(curves.CurveDisplay(nothing, curves.measure("accuracy")).plot())
    assert "not finite" in said(curves.LossDisplay(nothing).plot())
    assert "no outliers" in said(curves.CurveDisplay(cases["clean"], curves.LAST).plot())
    assert "no outliers" not in said(curves.CurveDisplay(cases["two"], curves.LAST).plot())
    titles = [ax.get_title(loc="left") for ax in curves.draw_curves(cases["long"]).axes]
    assert "k-NN accuracy" not in titles and "accuracy" in titles


def test_variants_are_told_apart_in_grey(cases):
    for case in ("two", "sweep", "two families"):
        drawn = curves.looks(cases[case])
        assert len({str(look["linestyle"]) for look in drawn}) == len({look["marker"] for look in drawn}) == len(drawn)
        grey = [np.dot(to_rgb(look["color"]), (0.299, 0.587, 0.114)) for look in drawn]
        assert max(grey) < 0.75  # dark enough on white
    assert curves.looks(cases["two"])[0]["color"] == style.OUTLIERS


def test_both_shares_of_outliers_have_one_scale(cases):
    axes = curves.draw_curves(cases["two"]).axes
    last, highest = (ax for ax in axes if ax.get_title(loc="left") == "outlier patches")
    assert last.get_ylim() == highest.get_ylim()


@pytest.mark.parametrize(("last", "label"), [(2, "2"), (9000, "8000"), (200_000, "200k"), (1_000_000, "1M")])
def test_steps_are_written_short(last, label, cases):
    one = cases["two"][0]
    at = replace(one, curve=replace(one.curve, eval_steps=np.array([0, last]), steps=np.array([last])))
    ax = Figure().add_subplot()
    curves.label_steps(ax, [at])
    ax.figure.draw_without_rendering()
    texts = [tick.get_text() for tick in ax.get_xticklabels()]
    assert label in texts and "0" in texts and 3 <= len(texts) <= 8


def test_thinning_keeps_extremes_and_order():
    x, y = np.arange(100_000), np.random.default_rng(0).normal(size=100_000)
    y[777], y[50_000:50_200] = 99, np.nan
    thin_x, thin_y = curves.thinned(x, y)
    assert len(thin_x) <= 2 * curves.POINTS and (np.diff(thin_x) > 0).all()
    np.testing.assert_array_equal(thin_y, y[thin_x])
    assert np.nanmax(thin_y) == 99 and np.nanmin(thin_y) == np.nanmin(y) and np.isnan(thin_y).any()
    assert curves.thinned(x[:100], y[:100])[1] is not None and len(curves.thinned(x[:100], y[:100])[0]) == 100


def test_a_sweep_draws_the_table_with_intervals(cases):
    rows = compare(cases["sweep"])
    shown = sweep.SweepDisplay(cases["sweep"], sweep.OUTLIERS).plot()
    assert [tick.get_text() for tick in shown.ax_.get_xticklabels()] == ["0", "1", "2", "4", "8", "16"]
    np.testing.assert_array_equal(shown.lines_[0].get_ydata(), [row["outlier_fraction"] for row in rows])
    np.testing.assert_array_equal(shown.lines_[1].get_ydata(), [row["highest"]["outlier_fraction"] for row in rows])
    bars = shown.ax_.collections[0].get_segments()
    np.testing.assert_array_equal([bar[:, 1] for bar in bars], [row["outlier_fraction_ci"] for row in rows])
    assert np.abs(shown.lines_[0].get_xdata() - np.arange(6)).max() < 0.25
    measures = sweep.SweepDisplay(cases["sweep"], sweep.measure_panel("accuracy")).plot()
    np.testing.assert_array_equal(measures.lines_[0].get_ydata(), [one.measures["accuracy"] for one in cases["sweep"]])


def test_families_of_a_sweep_are_lines_of_their_own(cases):
    results = cases["two families"]
    shown = sweep.SweepDisplay(results, sweep.NORMS).plot()
    rows = compare(results)
    assert len(shown.lines_) == 2
    for line, own in zip(shown.lines_, (rows[:4], rows[4:]), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), [row["p99_over_median"] for row in own])
    labels = [handle.get_label() for handle in sweep.handles(results)]
    assert labels[:2] == ["denoising", "no denoising"]
    assert len(sweep.handles(cases["sweep"])) == 2
