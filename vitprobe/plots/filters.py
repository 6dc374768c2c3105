"""Draw the principal components of first filters as pictures, and how much each explains beside random filters."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from vitprobe.plots import style
from vitprobe.plots.attention_distance import COLOURS
from vitprobe.plots.curves import DASHES
from vitprobe.probes.filters import FilterResult

PART_HEIGHT = 3.7
"""Inches that a model's part of a page needs."""
COLUMNS = 7
"""Pictures in a row: 28 make four."""
CLIPPED = 99.5
"""Percentile of all values at which colours end."""
RANDOM = {"color": style.FAINT, "linewidth": 0.9}


def shared_scale(results: Sequence[FilterResult]) -> float:
    """Return the value, in units of a component's root mean square, at which colours end in all pictures."""
    values = [np.abs(_scaled(one)).ravel() for one in results if one.components.size]
    return float(np.percentile(np.concatenate(values), CLIPPED)) if values else 1.0


@style.paper()
def page_part(figure: SubFigure, result: FilterResult, *, scale: float) -> None:
    """Draw one model's components as pictures, and under them what each explains."""
    if "absent" in result.summary:
        return say_absent(figure, "first filters", result.summary["absent"])
    is_wide = figure.bbox.width > 1.6 * figure.bbox.height  # alone in its row
    top, bottom = figure.subplots(1, 2) if is_wide else figure.subplots(2, 1, height_ratios=(3, 1))
    draw_pictures(top, result, scale=scale)
    title = "patch-embedding filters" if result.summary["what"] == "patch embedding" else "filters, first convolution"
    style.set_title(top, title, words(result))
    _draw_explained(bottom, {title: result})
    figure.legend(*bottom.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return None


def draw_pictures(ax: Axes, result: FilterResult, *, scale: float) -> None:
    """Draw the components as colour patches, `COLUMNS` in a row; 0 is grey, ``scale`` the end of every colour."""
    pictures = _scaled(result).transpose(0, 2, 3, 1)  # (K, height, width, 3)
    number, height, width, _ = pictures.shape
    columns = min(COLUMNS, number)
    gap = max(1, round(min(height, width) / 10))
    rows = -(-number // columns)
    canvas = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, 3))
    for i, picture in enumerate(pictures):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        canvas[top : top + height, left : left + width] = (0.5 + picture / (2 * scale)).clip(0, 1)
    ax.imshow(canvas, interpolation="nearest")
    ax.set_axis_off()


def words(result: FilterResult) -> str:
    """Say how smooth the filters are beside random ones."""
    low = result.summary["low_frequency"]
    ends = " to ".join(f"{100 * end:.0f}" for end in low["random_range"])
    return f"low frequencies: {style.percent(low['value'])} of energy (random {ends} %)"


def _look(model: int) -> dict[str, Any]:
    """Return how the line of a model looks, the same as in its other comparisons."""
    return {"color": COLOURS[model % len(COLOURS)], "linestyle": DASHES[model % len(DASHES)]}


def say_absent(figure: SubFigure, title: str, why: str) -> None:
    """Say in an empty panel why there is nothing in it."""
    ax = figure.subplots()
    ax.set_axis_off()
    style.set_title(ax, title)
    ax.text(0.5, 0.5, style.wrap(why, 44), ha="center", va="center", color=style.FAINT, parse_math=False)


def _draw_explained(ax: Axes, results_by_title: Mapping[str, FilterResult]) -> None:
    """Draw the variance that the first components explain together: a line a model, a thin one of random filters."""
    for i, (title, one) in enumerate(results_by_title.items()):
        shown = one.summary["num_shown"]
        look, at = _look(i), np.arange(1, shown + 1)
        ax.plot(at, np.cumsum(one.explained[:shown]), label=style.printable(title), **look)
        random, dash = np.cumsum(one.random_explained[:shown]), {"linestyle": look["linestyle"]}
        ax.plot(at, random, label="random filters" if i == 0 else None, **RANDOM | dash)
    _label(ax, "cumulative variance")


def _draw_low(ax: Axes, results_by_title: Mapping[str, FilterResult]) -> None:
    """Draw the share of low frequencies of each shown component; thin lines: the mean of random components."""
    for i, (title, one) in enumerate(results_by_title.items()):
        look, at = _look(i), np.arange(1, len(one.low_frequency) + 1)
        ax.plot(at, one.low_frequency, label=style.printable(title), **look)
        chance = one.summary["low_frequency_shown"]["random"]
        ax.plot(at[[0, -1]], [chance] * 2, **RANDOM | {"linestyle": look["linestyle"]})
    _label(ax, "energy")


def _label(ax: Axes, what: str) -> None:
    """Label axes of a share by component."""
    ax.set_ylim(0, 1.03)
    ax.set_xlim(0.5, None)
    ax.set_xlabel("component")
    ax.set_ylabel(what)
    ax.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    style.percent_ticks(ax.yaxis)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1])


@style.paper()
def compare(results_by_title: Mapping[str, FilterResult]) -> Figure | None:
    """Draw several models' components on one scale, and their curves together; None with fewer than two models."""
    there = {title: one for title, one in results_by_title.items() if "absent" not in one.summary}
    if len(there) < 2:
        return None
    columns = style.num_columns(len(there))
    rows, scale = -(-len(there) // columns), shared_scale(list(there.values()))
    each = style.WIDTH / columns * 4 / 7 + 0.45
    figure = style.new_figure(rows * each + 2.5)
    upper, lower = figure.subfigures(2, 1, height_ratios=(rows * each, 2.5))
    axes = upper.subplots(rows, columns, squeeze=False).ravel()
    for ax, (title, one) in zip(axes, there.items(), strict=False):
        draw_pictures(ax, one, scale=scale)
        shape = " x ".join(map(str, one.summary["shape"][1:]))
        short = style.shorten(title, style.num_chars(ax, style.LARGE))
        style.set_title(ax, short, f"{one.summary['num_filters']} of {shape} px")
    for ax in axes[len(there) :]:
        ax.set_axis_off()
    left, right = lower.subplots(1, 2)
    _draw_explained(left, there)
    style.set_title(left, "variance explained", "grey: random filters")
    _draw_low(right, there)
    style.set_title(right, "energy below half Nyquist", "grey: random components")
    lower.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3, handlelength=3.5)
    return figure


def _scaled(result: FilterResult) -> np.ndarray:
    """Return components (K, 3, height, width) with a root mean square of 1: filters of all sizes share a scale."""
    return result.components * np.sqrt(np.prod(result.components.shape[1:]))
