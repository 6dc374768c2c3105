"""What the figures of ``norms`` show is what the result holds: checked on the artists, without pixel baselines."""

from itertools import pairwise
from types import ModuleType

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from vitprobe.plots import norm_maps, norms, style
from vitprobe.probes.evidence import PatchReadings
from vitprobe.probes.norm_stats import KINDS, NormStats
from vitprobe.probes.norms import NormAccumulator
from vitprobe.probes.outliers import OutlierRule
from vitprobe.tokens import TokenLayout

PATCHES = KINDS.index("patches")
IMAGES, ONSET, PATCH = 20, 2, 8


def make_stats(
    *,
    outliers: bool = True,
    ratio: float = 6.0,
    has_cls: bool = True,
    num_registers: int = 0,
    grid: tuple[int, int] = (6, 8),
    num_blocks: int = 4,
    final_norm: bool = False,
    rule: str = "auto",
    median: float = 45.0,
    spread: float = 0.12,
    names: tuple[str, ...] | None = None,
    seed: int = 0,
) -> NormStats:
    """Build a result from drawn norms: bulk around ``median``, 4 % of patches ``ratio`` times that from `ONSET` on."""
    rng = np.random.default_rng(seed)
    layout = TokenLayout.prefix_first(has_cls=has_cls, num_registers=num_registers, grid=grid)
    points, patches = num_blocks + final_norm, layout.num_patches
    accumulator = NormAccumulator(layout, num_blocks, 16, (points - 1,), has_final_norm=final_norm)
    drawn = median * np.exp(rng.normal(0, spread, (points, IMAGES, layout.num_tokens)))
    mask = (rng.random((IMAGES, patches)) < 0.04) & outliers
    drawn[ONSET:, :, layout.patches] *= np.where(mask, ratio, 1)
    drawn = drawn.astype(np.float32)
    names = names or tuple(f"folder/photo_{i:03d}.jpg" for i in range(IMAGES))
    even, rank = np.ones((IMAGES, patches)), rng.random((IMAGES, patches))
    received = np.where(mask, 12.0, 0.9) * np.ones((num_blocks, 1, 1))
    shown = drawn[-1][:, layout.patches]
    readings = PatchReadings(names, shown, shown, even.astype(int), even, rank, rank, rank, rank, received)
    accumulator.update(drawn, {points - 1: readings})
    pixels = torch.from_numpy(np.random.default_rng(0).random((IMAGES, 3, grid[0] * PATCH, grid[1] * PATCH)))
    accumulator.examples.add(names, tuple(range(IMAGES)), pixels, shown.reshape(IMAGES, *grid))
    return accumulator.result(OutlierRule.parse(rule), point=points - 1)


@pytest.fixture(scope="module")
def planted() -> NormStats:
    """A result with outliers."""
    stats = make_stats()
    assert stats.summary["bimodal"] and stats.summary["onset_block"] == ONSET
    return stats


@pytest.fixture(scope="module")
def clean() -> NormStats:
    """A result without outliers."""
    stats = make_stats(outliers=False, median=20, seed=1)
    assert stats.summary["cutoff"] is None
    return stats


@pytest.fixture(scope="module")
def cases(planted: NormStats, clean: NormStats) -> dict[str, list[tuple[str, NormStats]]]:
    """Lists of results that a figure must be able to draw."""
    odd = make_stats(grid=(9, 4), ratio=30, seed=2)
    registers = make_stats(num_registers=4, seed=3)
    bare = make_stats(has_cls=False, outliers=False, seed=4)
    final = make_stats(final_norm=True, seed=5)
    equal = make_stats(outliers=False, median=9.8, spread=1e-7)
    one_block = make_stats(num_blocks=1, outliers=False, rule="150")
    cjk = make_stats(names=tuple(f"写真_$x_{i}\udcff.jpg" for i in range(IMAGES)))
    everything = [planted, clean, odd, registers, bare, final, one_block, cjk]
    return {
        "one": [("dinov2-s14", planted)],
        "clean": [("dinov2-s14, random", clean)],
        "two": [("organism, planted", planted), ("dinov2-s14, random", clean)],
        "registers": [("reg0", planted), ("reg4", registers)],
        "no cls": [("siglip", bare)],
        "final norm": [("clip", final)],
        "not square": [("tall", odd)],
        "one block": [("short", one_block)],
        "odd names": [("$x_1$ 模型", cjk)],
        "equal norms": [("after a norm without gains", equal)],
        "five": [(f"model-{i}", stats) for i, stats in enumerate(everything[:5])],
        "eight": [(f"a-long-name-of-a-model-{i}, random", stats) for i, stats in enumerate(everything)],
    }


SINGLE = ("one", "clean", "no cls", "final norm", "not square", "one block", "odd names", "equal norms")
CASES = (*SINGLE, "two", "registers", "five", "eight")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stem", norms.FIGURES)
def test_figures_draw_whole(stem: str, case: str, cases: dict, pyplot: ModuleType) -> None:
    before = dict(matplotlib.rcParams)
    figure = norms.FIGURES[stem](cases[case])
    FigureCanvasAgg(figure).draw()
    assert isinstance(figure, Figure) and figure.get_figwidth() <= style.WIDTH
    assert not pyplot.get_fignums() and dict(matplotlib.rcParams) == before
    shown = "".join("".join(text.split()) for text in all_texts(figure))
    assert all("".join(style.printable(title).split()) in shown for title, _ in cases[case])
    notes = [
        note.get_window_extent().transformed(figure.dpi_scale_trans.inverted()) for note in figure.findobj(Annotation)
    ]
    box, (width, height) = Bbox.union([figure.get_tightbbox(), *notes]), figure.get_size_inches()
    assert box.x0 > -0.02 and box.y0 > -0.02 and box.x1 < width + 0.02 and box.y1 < height + 0.02, "text is cut off"


DISPLAYS = (
    norms.HistogramDisplay,
    norms.BlocksDisplay,
    norms.KindsDisplay,
    norm_maps.FrequencyDisplay,
    norm_maps.AttentionDisplay,
)


@pytest.mark.parametrize("display", DISPLAYS)
def test_displays_draw_into_given_axes(display: type, planted: NormStats, pyplot: ModuleType) -> None:
    figure, ax = pyplot.subplots()
    shown = display(planted, "dinov2-s14")
    assert shown.plot(ax) is shown
    assert shown.ax_ is ax and shown.figure_ is figure and pyplot.get_fignums() == [figure.number]
    assert ax.get_title(loc="left") == "dinov2-s14" and figure.axes == [ax]


@pytest.mark.parametrize("display", [*DISPLAYS, norm_maps.ExamplesDisplay])
def test_displays_make_their_own_figure(display: type, planted: NormStats, pyplot: ModuleType) -> None:
    shown = display(planted, "dinov2-s14").plot()
    FigureCanvasAgg(shown.figure_).draw()
    assert not pyplot.get_fignums()


def test_histogram_holds_every_token_and_the_cutoff(planted: NormStats) -> None:
    shown = norms.HistogramDisplay(planted, "x").plot()
    bulk, edges, _ = shown.bars_.get_data()
    over = shown.outlier_bars_.get_data().values
    cutoff = planted.summary["cutoff"]
    assert bulk.sum() + over.sum() == planted.summary["num_patch_tokens"]
    assert over.sum() == round(planted.summary["outlier_fraction"] * planted.summary["num_patch_tokens"])
    assert cutoff in edges and set(edges) <= set(planted.edges)
    assert not over[edges[:-1] < cutoff].any() and not bulk[edges[:-1] >= cutoff].any()
    assert list(shown.cutoff_line_.get_xdata()) == [cutoff, cutoff]
    assert f"over {cutoff:.0f}" in shown.text_.get_text() and "%" in shown.text_.get_text()
    assert shown.ax_.get_xscale() == "linear" and shown.ax_.get_yscale() == "log"


def test_histogram_says_that_there_are_none(clean: NormStats) -> None:
    shown = norms.HistogramDisplay(clean, "x").plot()
    assert shown.text_.get_text() == "one mode: no outliers" and shown.cutoff_line_ is None
    assert "verdict: none" in " ".join(all_texts(shown.figure_))


def test_histogram_draws_a_cutoff_beyond_all_norms() -> None:
    shown = norms.HistogramDisplay(make_stats(outliers=False, rule="150"), "x").plot()
    assert shown.ax_.get_xlim()[1] > 150 and "0 % over 150" in shown.text_.get_text()
    assert shown.bars_.get_data().values.sum() == IMAGES * 48


def test_histograms_share_bins_and_turn_logarithmic(planted: NormStats, clean: NormStats) -> None:
    wide = make_stats(ratio=40)
    axes = norms.draw_histograms([("a", planted), ("b", clean), ("c", wide)]).axes
    assert len({ax.get_xlim() for ax in axes}) == len({ax.get_ylim() for ax in axes}) == 1
    assert {ax.get_xscale() for ax in axes} == {"log"}


def test_norm_labels_say_where() -> None:
    block, final = make_stats(outliers=False), make_stats(outliers=False, final_norm=True)
    assert "after block 3, before the final norm" in norm_maps.norm_label([block])
    assert norm_maps.norm_label([final]) == "token norm (L2 after the final norm)"
    assert "title" in norm_maps.norm_label([block, final])


def test_blocks_draw_quantiles_maxima_and_shares(planted: NormStats) -> None:
    shown = norms.BlocksDisplay(planted, "x").plot()
    median = planted.quantiles[:, PATCHES, list(planted.levels).index(0.5)]
    np.testing.assert_array_equal(shown.medians_.get_ydata(), median)
    np.testing.assert_array_equal(shown.maxima_.get_ydata(), planted.maxima[:, PATCHES])
    np.testing.assert_array_equal(shown.cutoffs_.get_ydata(), planted.cutoffs)
    np.testing.assert_array_equal(shown.shares_.get_ydata(), planted.outlier_fractions)
    assert list(shown.onset_line_.get_xdata()) == [ONSET, ONSET]
    assert shown.measured_.get_xdata() == [planted.point]
    assert shown.ax_.get_yscale() == "log"


def test_blocks_draw_the_final_norm_apart() -> None:
    shown = norms.BlocksDisplay(make_stats(final_norm=True), "x").plot()
    ticks = [label.get_text() for label in shown.share_ax_.get_xticklabels()]
    assert ticks == ["0", "1", "2", "3", "final\nnorm"]
    assert len(shown.medians_.get_xdata()) == 4 and shown.x[-1] - shown.x[-2] > 1
    assert shown.measured_.get_xdata() == [shown.x[-1]]


def test_blocks_share_scales(planted: NormStats, clean: NormStats) -> None:
    axes = norms.draw_blocks([("a", planted), ("b", clean)]).axes
    assert axes[0].get_ylim() == axes[1].get_ylim() and axes[2].get_ylim() == axes[3].get_ylim()


def test_kinds_draw_quantiles_and_say_what_is_absent(planted: NormStats) -> None:
    shown = norms.KindsDisplay(planted, "x").plot()
    levels = list(planted.levels)
    for bars, (low, high, _) in zip(shown.bars_, style.BANDS, strict=True):
        bottom, top = planted.quantiles[planted.point, PATCHES, [levels.index(low), levels.index(high)]]
        assert bars[PATCHES].get_y() == bottom and bars[PATCHES].get_y() + bars[PATCHES].get_height() == top
    np.testing.assert_array_equal(shown.maxima_.get_ydata(), planted.maxima[planted.point])
    assert [text.get_text() for text in shown.ax_.texts].count("none") == 1


def test_frequency_draws_the_map_and_outliers_per_image(planted: NormStats) -> None:
    shown = norm_maps.FrequencyDisplay(planted, "x").plot()
    np.testing.assert_array_equal(shown.image_.get_array(), planted.outlier_frequency)
    np.testing.assert_array_equal(shown.counts_.get_data().values, planted.outliers_per_image)
    assert shown.image_.get_interpolation() == "nearest"


def test_frequency_shares_its_colour_scale(planted: NormStats, clean: NormStats) -> None:
    figure = norm_maps.draw_frequency([("a", planted), ("b", clean)])
    images = [image for ax in figure.axes for image in ax.images]
    assert [image.get_clim() for image in images] == [(0, planted.outlier_frequency.max())] * 2
    assert all_texts(figure).count("no outliers") == 1


def test_examples_draw_norms_and_outline_outliers(planted: NormStats) -> None:
    shown = norm_maps.ExamplesDisplay(planted, "x").plot()
    assert planted.example_outliers.any()
    for i, (image, lines) in enumerate(zip(shown.images_, shown.outlines_, strict=True)):
        np.testing.assert_array_equal(image.get_array(), planted.example_norms[i])
        assert image.get_interpolation() == "nearest" and image.get_extent() == [0, 64, 48, 0]
        assert bool(lines.get_segments()) == planted.example_outliers[i].any()
    assert len({image.get_clim() for image in shown.images_}) == 1


def test_outlines_go_round_what_touches() -> None:
    mask = np.zeros((2, 3), bool)
    mask[1, 1:] = True
    lines = norm_maps.outline(Figure().add_subplot(), mask, (20, 60)).get_segments()
    drawn = {frozenset(map(tuple, line)) for line in np.array(lines).tolist()}
    corners = [(20, 10), (40, 10), (60, 10), (60, 20), (40, 20), (20, 20), (20, 10)]
    assert drawn == {frozenset(pair) for pair in pairwise(corners)} and len(lines) == 6


def test_examples_are_logarithmic_where_norms_are_far_apart(planted: NormStats) -> None:
    assert isinstance(norm_maps.ExamplesDisplay(make_stats(ratio=30), "x").norm, LogNorm)
    assert not norm_maps.ExamplesDisplay(planted, "x").is_log


def test_examples_repeat_pictures_only_where_they_change(planted: NormStats, clean: NormStats) -> None:
    same = norm_maps.draw_examples([("a", planted), ("b", clean)])
    other = norm_maps.draw_examples([("a", planted), ("b", make_stats(grid=(8, 4)))])
    assert sum(len(ax.images) for ax in same.axes) == 3 * 6 and sum(len(ax.images) for ax in other.axes) == 4 * 6
    assert "photo_000.jpg" in all_texts(same)


def test_attention_draws_what_was_received(planted: NormStats, clean: NormStats) -> None:
    shown = norm_maps.AttentionDisplay(planted, "x").plot()
    np.testing.assert_array_equal(shown.outliers_.get_ydata(), planted.received_attention[:, 0])
    np.testing.assert_array_equal(shown.others_.get_ydata(), planted.received_attention[:, 1])
    figure = norm_maps.draw_attention([("a", planted), ("b", clean)])
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    assert [text.get_text() for text in figure.axes[1].texts].count("no outliers") == 1


@pytest.mark.parametrize(
    ("share", "text"), [(0.024, "2.4 %"), (0.02, "2.0 %"), (1, "100 %"), (0, "0 %"), (1e-6, "< 0.001 %")]
)
def test_percent(share: float, text: str) -> None:
    assert style.percent(share) == text


def test_names_are_shortened_in_the_middle() -> None:
    assert style.shorten("n01440764_tench.jpg", 12) == "n01440…h.jpg"
    assert style.shorten("a.jpg", 12) == "a.jpg"


def all_texts(figure: Figure) -> list[str]:
    """Return every text of a figure."""
    return [text.get_text() for text in figure.findobj(Text)]


def test_colours_of_several_models_mean_the_same_multiple_of_the_median(planted: NormStats, clean: NormStats) -> None:
    figure = norm_maps.draw_examples([("a", planted), ("b", clean)])
    ends = [image.get_clim() for ax in figure.axes for image in ax.images if image.get_array().ndim == 2]
    medians = [s.summary["norm"]["median"] for s in (planted, clean) for _ in s.example_names]
    multiples = {tuple(np.round(np.array(end) / median, 6)) for end, median in zip(ends, medians, strict=False)}
    assert len(multiples) == 1
