"""Draw how much outliers and other patches resemble their neighbours at the patch embedding."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from vitprobe.plots import style
from vitprobe.probes.neighbours import NeighbourCosines

Results = Sequence[tuple[str, NeighbourCosines]]
"""(title, result) of each model."""
LOOKS = (
    {"color": style.OUTLIERS, "linewidth": 1.5, "zorder": 3},
    {"color": style.INK, "linestyle": (0, (4, 1.5)), "zorder": 2},
)
"""Of outliers, and of the other patches."""
LABELS = ("outliers", "other patches")


class NeighbourDisplay:
    """Draw the densities of the cosines of outliers and of the other patches."""

    def __init__(self, found: NeighbourCosines, title: str) -> None:
        self.found, self.title = found, title

    @style.paper()
    def plot(
        self, ax: Axes | None = None, *, low: float | None = None, high: float | None = None
    ) -> "NeighbourDisplay":
        """Draw into ``ax``, or a figure of its own; ``low`` cosine and ``high`` density are those of all models."""
        alone = ax is None
        ax = ax if ax is not None else style.new_figure(2.6, width=style.WIDTH / 2).add_subplot()
        self.ax_, self.figure_ = ax, ax.figure
        found, summary = self.found, self.found.summary
        x = (found.edges[:-1] + found.edges[1:]) / 2
        self.lines_, self.means_ = [], []
        for density, look, name in zip(found.density, LOOKS, ("outliers", "others"), strict=True):
            self.lines_ += ax.plot(x, density, **look)
            if (mean := summary[name]["value"]) is not None:
                (mark,) = ax.plot(mean, -0.035, "^", color=look["color"], transform=ax.get_xaxis_transform())
                mark.set(clip_on=False, markersize=4.5, zorder=5)
                self.means_.append(mark)
        for density, colour in zip(found.density, (style.OUTLIERS, style.BULK), strict=True):
            ax.fill_between(x, np.nan_to_num(density), color=colour, alpha=0.25, linewidth=0)
        ax.set_xlim(least([found]) if low is None else low, 1.0)
        ax.set_ylim(0, 1.06 * (tallest([found]) if high is None else high))
        ax.tick_params(axis="x", pad=5)
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.set_xlabel("cosine with the neighbours")
        ax.set_ylabel(f"density (kernel: {summary['bandwidth']:g})")
        style.set_title(ax, self.title, difference(summary))
        if alone:
            ax.figure.legend(handles=handles([found]), loc="outside lower center", ncols=2)
        return self


def difference(summary: Mapping[str, Any]) -> str:
    """Say how far the means of outliers and others of an image are apart, for a second title."""
    if not summary["num_outliers"]:
        return "no outliers"
    estimate = summary["difference"]
    if estimate["value"] is None:
        return "no image has both kinds"
    text = f"by image: {estimate['value']:+.2f}"
    if estimate["interval"] is not None:
        text += " [{:+.2f}, {:+.2f}]".format(*estimate["interval"])
    return text.replace("-", "−")


def least(results: Sequence[NeighbourCosines]) -> float:
    """Return the lower end of an axis of cosines that leaves out less than 1 patch of 1000 of any kind and model."""
    ends = [1.0]
    for found in results:
        for counts in found.counts:
            if total := counts.sum():
                ends.append(found.edges[np.searchsorted(np.cumsum(counts), 1e-3 * total)])
    return max(-1.0, np.floor(10 * (min(ends) - 0.02)) / 10)


def tallest(results: Sequence[NeighbourCosines]) -> float:
    """Return the largest density of all kinds and models."""
    return max(float(np.nanmax(found.density, initial=0)) for found in results) or 1.0


def handles(results: Sequence[NeighbourCosines]) -> list[Line2D]:
    """Return the entries of a legend."""
    lines = [Line2D([], [], label=label, **look) for label, look in zip(LABELS, LOOKS, strict=True)]
    mean = Line2D([], [], color=style.FAINT, marker="^", linestyle="", markersize=4.5, label="mean")
    has_outliers = any(found.summary["num_outliers"] for found in results)
    return [*(lines if has_outliers else lines[-1:]), mean]


@style.paper()
def draw_neighbours(results: Results) -> Figure:
    """Draw the densities of all models on the same axes (as Darcet et al., arXiv 2309.16588, figure 5a)."""
    columns = style.num_columns(len(results))
    figure, axes = style.panels(len(results), height=2.3, columns=columns)
    models = [found for _, found in results]
    low, high = least(models), tallest(models)
    for ax, (title, found) in zip(axes, results, strict=True):
        NeighbourDisplay(found, title).plot(ax, low=low, high=high)
    style.label_outer(axes, columns)
    figure.legend(handles=handles(models), loc="outside lower center", ncols=3)
    return figure
