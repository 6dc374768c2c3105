"""Draw the patch norms of several models side by side on one axis, outliers apart."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from vitprobe.plots import style
from vitprobe.plots.norms import norm_label
from vitprobe.probes.norm_stats import PATCHES, NormStats

PER_DECADE = 24
"""Steps of a strip in a decade of norms."""


class StripDisplay:
    """Draw a strip: as wide, at each norm, as the logarithm of how many patch tokens have it."""

    def __init__(self, stats: NormStats, title: str) -> None:
        self.stats, self.title = stats, title

    def steps(self) -> tuple[np.ndarray, np.ndarray]:
        """Return edges (n + 1,) of equal steps in log norm, and how many patch tokens lie in each, (n,)."""
        counts, edges = self.stats.counts[self.stats.point, PATCHES], self.stats.edges
        used = np.flatnonzero(counts)
        low, high = edges[used[0]], edges[used[-1] + 1]
        number = max(6, int(np.ceil(PER_DECADE * np.log10(high / low))))
        bins = style.Bins.over(low, high, number=number, is_log=True)
        return bins.gather(edges, counts, cut=self.stats.summary["cutoff"])

    @style.paper()
    def plot(self, ax: Axes | None = None, *, x: float = 0, most: float | None = None) -> "StripDisplay":
        """Draw around ``x``; ``most`` is the largest count of all strips, which is 0.84 wide."""
        ax = ax if ax is not None else style.new_figure(2.6, width=style.WIDTH / 3).add_subplot()
        self.ax_, self.figure_ = ax, ax.figure
        edges, counts = self.steps()
        half = 0.42 * np.log1p(counts) / np.log1p(most or counts.max())  # (n,)
        cutoff = self.stats.summary["cutoff"]
        over = edges[:-1] >= (np.inf if cutoff is None else cutoff)
        look = {"height": np.diff(edges), "align": "edge", "linewidth": 0}
        colours = np.where(over, style.OUTLIERS, style.BULK)
        self.bars_ = ax.barh(edges[:-1], 2 * half, left=x - half, color=colours.tolist(), **look)
        median = self.stats.summary["norm"]["median"]
        (self.median_,) = ax.plot([x - 0.42, x + 0.42], [median, median], color=style.INK)
        if cutoff is not None:
            ax.plot([x - 0.42, x + 0.42], [cutoff, cutoff], color=style.INK, linestyle="--", linewidth=0.9)
        return self


@style.paper()
def draw_strips(results: Sequence[tuple[str, NormStats]]) -> Figure:
    """Draw the patch norms of all models as strips on one axis (as Darcet et al., arXiv 2309.16588, figure 7)."""
    number = len(results)
    figure = style.new_figure(3.2, width=min(style.WIDTH, 1.6 + 1.25 * number))
    ax = figure.add_subplot()
    shown = [StripDisplay(stats, title) for title, stats in results]
    most = max(display.steps()[1].max() for display in shown)
    for x, display in enumerate(shown):
        display.plot(ax, x=x, most=most)
    ends = [display.steps()[0][[0, -1]] for display in shown]
    style.log_scale(ax.yaxis, 0.9 * min(low for low, _ in ends), 1.1 * max(high for _, high in ends))
    chars = max(10, style.num_chars(ax, style.SMALL) // number)
    labels = [f"{style.wrap(title, chars)}\n{_found(stats)}" for title, stats in results]
    ax.set_xticks(range(number), labels, parse_math=False)
    ax.set_xlim(-0.6, number - 0.4)
    ax.set_ylabel("patch norm (L2)")
    ax.set_title(style.wrap(norm_label([stats for _, stats in results]), style.num_chars(ax, style.LARGE)))
    handles = [
        Patch(color=style.BULK, label="patch tokens (width: log of their number)"),
        Line2D([], [], color=style.INK, label="median"),
    ]
    if any(stats.summary["cutoff"] is not None for _, stats in results):
        handles.insert(1, Patch(color=style.OUTLIERS, label="outliers"))
        handles.append(Line2D([], [], color=style.INK, linestyle="--", linewidth=0.9, label="cutoff"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2 if number < 4 else 4)
    return figure


def _found(stats: NormStats) -> str:
    share = stats.summary["outlier_fraction"]
    return f"{style.percent(share)} outliers" if share else "no outliers"
