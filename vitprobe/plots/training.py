"""Draw what training with registers changed: norms by block, attention maps, curves over training, a sweep over R."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vitprobe.plots import style
from vitprobe.plots.attention import AttentionMapDisplay, color_limit, draw_maps
from vitprobe.plots.curves import draw_curves
from vitprobe.plots.norm_maps import bare
from vitprobe.plots.norms import BlocksDisplay, block_handles, draw_histograms, norm_limits
from vitprobe.plots.sweep import FEWEST, draw_sweep
from vitprobe.probes.comparison import VariantResult
from vitprobe.probes.norm_stats import KINDS, NormStats

Results = Sequence[VariantResult]
MOST_ROWS = 4
"""Of more variants, attention maps stand in columns, one for each."""
REGISTERS = "#3a7d44"


@style.paper()
def draw_norms(results: Results) -> Figure:
    """Draw patch norms and shares of outliers by block, and the registers' median norm, all on the same axes."""
    stats = [one.norms for one in results]
    columns = len(results) if len(results) <= 3 else 3 if len(results) in (5, 6) else 4
    rows = -(-len(results) // columns)
    figure = style.new_figure(rows * 2.5 + 0.6)
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=(3, 1) * rows)
    low, high = norm_limits(stats)
    medians = [register_medians(one) for one in stats]
    known = np.concatenate([[low / 0.85, high / 1.18], *medians])
    limits = 0.85 * np.nanmin(known), 1.18 * np.nanmax(known)
    most = max(one.outlier_fractions.max() for one in stats)
    upper, lower = (
        [figure.add_subplot(grid[2 * (i // columns) + k, i % columns]) for i in range(len(stats))] for k in (0, 1)
    )
    for one, median, ax, share_ax in zip(results, medians, upper, lower, strict=True):
        shown = BlocksDisplay(one.norms, one.title).plot(ax, share_ax=share_ax, limits=limits, most=most)
        ax.plot(shown.x, median, color=REGISTERS, linestyle="-.", marker="s", markersize=2.5)
        ax.set_ylabel("norm (L2)")
    style.label_outer(upper, columns)
    style.label_outer(lower, columns, keep_x=True)
    handles = block_handles(stats)
    if any(np.isfinite(median).any() for median in medians):
        look = {"color": REGISTERS, "linestyle": "-.", "marker": "s", "markersize": 2.5}
        handles.append(Line2D([], [], label="median of registers", **look))
    figure.legend(handles=handles, loc="outside lower center", ncols=5)
    return figure


def register_medians(stats: NormStats) -> np.ndarray:
    """Return the median norm of registers at each point, (S,); nan without registers."""
    return stats.quantiles[:, KINDS.index("registers"), list(stats.levels).index(0.5)]


def draw_histogram(results: Results) -> Figure:
    """Draw the histograms of patch norms at the last block, on the same axes (Darcet et al., figure 7)."""
    return draw_histograms([(one.title, one.norms) for one in results])


def draw_attention(results: Results) -> Figure:
    """Draw attention maps of the same held-out images on one colour scale: variants in rows, or many in columns."""
    if len(results) <= MOST_ROWS:
        return draw_maps([(one.title, one.maps) for one in results])
    return _draw_columns(results)


@style.paper()
def _draw_columns(results: Results) -> Figure:
    """Draw images in rows; their pictures stand in the first column, then the maps of each variant."""
    found = [one.maps for one in results]
    images = min(len(found[0].images), 6)
    height, width = found[0].images.shape[1:3]
    side = (style.WIDTH - 0.6) / (len(results) + 1) - 0.04
    figure = style.new_figure(images * (side * height / width + 0.15) + 0.65)
    grid = figure.add_gridspec(images, len(results) + 2, width_ratios=[1] * (len(results) + 1) + [0.08])
    limit = color_limit(found)
    for i in range(images):
        ax = figure.add_subplot(grid[i, 0])
        ax.imshow(found[0].images[i])
        bare(ax)
        for c, one in enumerate(results, start=1):
            ax = figure.add_subplot(grid[i, c])
            display = AttentionMapDisplay(one.maps, i, block=-1).plot(ax, limit=limit)
            ax.set_xlabel(style.percent(display.prefix), fontsize=style.SMALL - 1, labelpad=2)
            if i == 0:
                ax.set_title(style.wrap(one.title, 13), fontsize=style.SMALL, loc="center", parse_math=False)
    bar = figure.colorbar(display.image_, cax=figure.add_subplot(grid[:, -1]), extend="max")
    bar.set_label("attention (× uniform share)")
    note = (
        f"attention from {found[0].summary['query']}, block {found[0].summary['blocks'][-1]}; white outlines: outlier"
    )
    note += " patches; under each map: attention on CLS and registers,\nwhich a map does not show; colours end at the"
    figure.supxlabel(f"{note} 99.5% quantile of all maps", fontsize=style.SMALL, color=style.FAINT)
    return figure


FIGURES: dict[str, Callable[[Results], Figure]] = {
    "norms": draw_norms,
    "histogram": draw_histogram,
    "attention": draw_attention,
    "curves": draw_curves,
    "sweep": draw_sweep,
}
"""What draws the figures of ``train-registers``, by the stem of the file that it is saved in."""


def figures(results: Results) -> dict[str, Callable[[Results], Figure]]:
    """Return the figures that a comparison has: a sweep needs `FEWEST` numbers of registers."""
    is_sweep = len({one.num_registers for one in results}) >= FEWEST
    return {name: draw for name, draw in FIGURES.items() if name != "sweep" or is_sweep}
