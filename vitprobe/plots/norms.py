"""Draw what ``norms`` found: how many tokens have which norm, block by block, and kind by kind."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vitprobe.plots import style
from vitprobe.plots.norm_maps import Results, draw_attention, draw_examples, draw_frequency, norm_label, place
from vitprobe.probes.norm_stats import KINDS, PATCHES, NormStats

NUM_BINS = 80
WIDE = 20
"""Norms are drawn on a logarithmic axis where the largest is this many times the median."""


def norm_bins(all_stats: Sequence[NormStats]) -> style.Bins:
    """Span the patch norms and cutoffs of all results by bins that are no finer than a few bins of the counts."""
    spans = []
    for stats in all_stats:
        used = np.flatnonzero(stats.counts[stats.point, PATCHES])
        spans += [stats.edges[used[0]], stats.edges[used[-1] + 1]]
        spans += [stats.summary["cutoff"]] * (stats.summary["cutoff"] is not None)
    low, high = min(spans), max(spans)
    is_log = high / min(stats.summary["norm"]["median"] for stats in all_stats) >= WIDE
    fine = max(((stats.edges >= low) & (stats.edges <= high)).sum() for stats in all_stats)
    return style.Bins.over(low, high, number=int(np.clip(fine // 4, 10, NUM_BINS)), is_log=is_log)


class HistogramDisplay:
    """Draw how many patch tokens have which norm, at the summary's point, and where the rule cuts."""

    def __init__(self, stats: NormStats, title: str) -> None:
        self.stats, self.title = stats, title

    @style.paper()
    def plot(self, ax: Axes | None = None, *, bins: style.Bins | None = None) -> "HistogramDisplay":
        """Draw into ``ax``, or into a figure of its own; ``bins`` are those of all models that are compared."""
        ax = ax or style.new_figure(2.8).add_subplot()
        self.ax_, self.figure_ = ax, ax.figure
        self.bins_ = bins or norm_bins([self.stats])
        cutoff, counts = self.stats.summary["cutoff"], self.stats.counts[self.stats.point, PATCHES]
        edges, counts = self.bins_.gather(self.stats.edges, counts, cut=cutoff)
        over = edges[:-1] >= (math.inf if cutoff is None else cutoff)
        self.bars_ = ax.stairs(np.where(over, 0, counts), edges, fill=True, color=style.BULK)
        self.outlier_bars_ = ax.stairs(np.where(over, counts, 0), edges, fill=True, color=style.OUTLIERS)
        ax.set_yscale("log")
        ax.set_ylim(0.7, 6 * counts.max())
        low, high = self.bins_.edges[0], self.bins_.edges[-1]
        if self.bins_.is_log:
            style.log_scale(ax.xaxis, low / 1.1, high * 1.1, most=style.num_chars(ax, style.SMALL) // 6)
        else:
            ax.set_xlim(low - 0.03 * (high - low), high + 0.03 * (high - low))
            ax.ticklabel_format(axis="x", useOffset=False)
        self._draw_cutoff(cutoff)
        ax.set_xlabel(style.wrap(norm_label([self.stats]), style.num_chars(ax, style.NORMAL)))
        ax.set_ylabel("patch tokens per bin")
        style.set_title(ax, self.title, f"{place(self.stats)}, verdict: {self.stats.summary['verdict']}")
        return self

    def _draw_cutoff(self, cutoff: float | None) -> None:
        """Mark the cutoff and say how much lies over it, on the side where there is room."""
        ax, summary = self.ax_, self.stats.summary
        self.cutoff_line_ = None
        if cutoff is None:
            text = f"rule {summary['rule']}: no cutoff" if summary["bimodal"] else "one mode: no outliers"
            self.text_ = ax.text(0.98, 0.97, text, transform=ax.transAxes, ha="right", va="top")
            return
        self.cutoff_line_ = ax.axvline(cutoff, color=style.INK, linestyle="--", linewidth=0.9)
        text = f"{style.percent(summary['outlier_fraction'])} over {style.number(cutoff)}"
        text += "" if summary["bimodal"] else "\n(one mode)"
        to_right = ax.transAxes.inverted().transform(ax.transData.transform((cutoff, 1)))[0] < 0.6
        self.text_ = ax.annotate(
            text,
            (cutoff, 0.97),
            (4 if to_right else -4, 0),
            xycoords=ax.get_xaxis_transform(),
            textcoords="offset points",
            ha="left" if to_right else "right",
            va="top",
        )


@style.paper()
def draw_histograms(results: Results) -> Figure:
    """Draw the histograms of patch norms of all models, on the same axes."""
    columns = style.num_columns(len(results))
    figure, axes = style.panels(len(results), height=2.6 if len(results) == 1 else 2.1)
    bins = norm_bins([stats for _, stats in results])
    for ax, (title, stats) in zip(axes, results, strict=True):
        HistogramDisplay(stats, title).plot(ax, bins=bins)
        ax.set_xlabel("")
    top = max(ax.get_ylim()[1] for ax in axes)
    for ax in axes:
        ax.set_ylim(0.7, top)
    style.label_outer(axes, columns)
    figure.supxlabel(norm_label([stats for _, stats in results]), fontsize=style.NORMAL)
    return figure


class BlocksDisplay:
    """Draw how patch norms are distributed in each block, over the share of outliers there."""

    def __init__(self, stats: NormStats, title: str) -> None:
        self.stats, self.title = stats, title
        points = len(stats.counts)
        self.num_blocks = len(stats.received_attention)
        self.has_final_norm = points > self.num_blocks
        self.x = np.arange(points) + np.where(np.arange(points) == self.num_blocks, 0.8, 0.0)
        """(S,) places on the x axis; the final norm stands apart."""

    @style.paper()
    def plot(
        self,
        ax: Axes | None = None,
        *,
        share_ax: Axes | None = None,
        limits: tuple[float, float] | None = None,
        most: float | None = None,
    ) -> "BlocksDisplay":
        """Draw into ``ax``, and the shares of outliers into ``share_ax``; without either, into a figure of its own.

        ``limits`` of the norms and the ``most`` outliers are those of all models that are compared.
        """
        if ax is None:
            figure = style.new_figure(3.4)
            ax, share_ax = figure.subplots(2, 1, height_ratios=(3, 1))
            figure.legend(handles=block_handles([self.stats]), loc="outside lower center", ncols=5)
        self.ax_, self.share_ax_, self.figure_ = ax, share_ax, ax.figure
        self._draw_norms(ax, limits or norm_limits([self.stats]))
        style.set_title(ax, self.title)
        if share_ax is not None:
            ax.tick_params(axis="x", labelbottom=False)
            ax.set_xlabel("")
            self._draw_shares(share_ax, most or self.stats.outlier_fractions.max())
        return self

    def _draw_norms(self, ax: Axes, limits: tuple[float, float]) -> None:
        stats = self.stats
        levels = {level: stats.quantiles[:, PATCHES, i] for i, level in enumerate(stats.levels)}
        for low, high, colour in style.BANDS:
            for x, part in self._parts():
                below, above = levels[low][part], levels[high][part]
                if len(below) == 1:
                    below, above = below.repeat(2), above.repeat(2)
                ax.fill_between(x, below, above, color=colour, linewidth=0)
        self.medians_ = self._draw_line(ax, levels[0.5], color=style.INK)
        maxima = stats.maxima[:, PATCHES]
        self.maxima_ = self._draw_line(ax, maxima, color=style.INK, linestyle=":", marker="o", markersize=2.5)
        (self.cutoffs_,) = ax.plot(self.x, stats.cutoffs, "_", color=style.OUTLIERS, markersize=5, markeredgewidth=1.5)
        self._mark(ax)
        style.log_scale(ax.yaxis, *limits)
        ax.set_ylabel("patch norm (L2)")

    def _parts(self) -> list[tuple[np.ndarray, slice]]:
        """Return x and points of the blocks, and of the final norm; a single point is given a width."""
        parts = [slice(0, self.num_blocks)] + [slice(self.num_blocks, None)] * self.has_final_norm
        xs = [self.x[part] for part in parts]
        return [(x if len(x) > 1 else x + np.array([-0.3, 0.3]), part) for x, part in zip(xs, parts, strict=True)]

    def _draw_line(self, ax: Axes, values: np.ndarray, **look: object) -> Line2D:
        """Draw a line through the blocks, and a dash at the final norm; return the former."""
        lines = []
        for x, part in self._parts():
            single = len(values[part]) == 1
            y = values[part].repeat(2) if single else values[part]
            lines += ax.plot(x, y, **({**look, "marker": ""} if single else look))
        return lines[0]

    def _draw_shares(self, ax: Axes, most: float) -> None:
        stats = self.stats
        blocks = slice(0, self.num_blocks)
        look = {"color": style.OUTLIERS, "marker": "o", "markersize": 2.5, "linewidth": 0.9}
        (self.shares_,) = ax.plot(self.x[blocks], stats.outlier_fractions[blocks], **look)
        ax.plot(self.x[self.num_blocks :], stats.outlier_fractions[self.num_blocks :], **look)
        point = stats.point
        look = {"color": style.INK, "markersize": 4.5, "clip_on": False}
        (self.measured_,) = ax.plot(self.x[point], stats.outlier_fractions[point], "D", **look)
        self._mark(ax)
        ax.set_ylim(-0.08 * (most or 0.01), 1.25 * (most or 0.01))
        style.percent_ticks(ax.yaxis, 2)
        if not most:
            ax.set_yticks([0])
        ax.set_ylabel("outliers")
        if not stats.outlier_fractions.any():
            ax.text(0.5, 0.55, "no outliers", transform=ax.transAxes, ha="center", va="center")

    def _mark(self, ax: Axes) -> None:
        """Mark the onset of outliers, and label the axis of blocks."""
        onset = self.stats.summary["onset_block"]
        if onset is not None:
            self.onset_line_ = ax.axvline(onset, color=style.FAINT, linestyle="--", linewidth=0.9, zorder=0.5)
        style.label_blocks(ax, self.num_blocks, has_final_norm=self.has_final_norm)


def block_handles(all_stats: Sequence[NormStats]) -> list[Artist]:
    """Return the entries of a legend for one or several `BlocksDisplay`."""
    look = {"linestyle": "", "color": style.OUTLIERS}
    cutoff = Line2D([], [], marker="_", markersize=7, markeredgewidth=1.5, label="cutoff", **look)
    onset = Line2D([], [], color=style.FAINT, linestyle="--", linewidth=0.9, label="onset of outliers")
    return [
        *style.band_handles(),
        *[cutoff] * any(np.isfinite(stats.cutoffs).any() for stats in all_stats),
        Line2D([], [], marker="o", markersize=2.5, color=style.OUTLIERS, label="share of outliers"),
        Line2D([], [], marker="D", markersize=4.5, color=style.INK, linestyle="", label="reported point"),
        *[onset] * any(stats.summary["onset_block"] is not None for stats in all_stats),
    ]


def norm_limits(all_stats: Sequence[NormStats], *, kinds: bool = False) -> tuple[float, float]:
    """Return the ends of a norm axis: of patches at all points, or of all kinds of tokens at the summary's point."""
    low, high = math.inf, 0.0
    for stats in all_stats:
        where = (stats.point, slice(None)) if kinds else (slice(None), PATCHES)
        low = min(low, np.nanmin(stats.quantiles[where]))
        high = max(high, np.nanmax(stats.maxima[where]))
    return 0.85 * low, 1.18 * high


@style.paper()
def draw_blocks(results: Results) -> Figure:
    """Draw norms and shares of outliers by block for all models, on the same axes."""
    columns = style.num_columns(len(results))
    rows = -(-len(results) // columns)
    figure = style.new_figure(rows * (2.9 if len(results) == 1 else 2.4) + 0.5)
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=(3, 1) * rows)
    limits = norm_limits([stats for _, stats in results])
    most = max(stats.outlier_fractions.max() for _, stats in results)
    upper = [figure.add_subplot(grid[2 * (i // columns), i % columns]) for i in range(len(results))]
    lower = [figure.add_subplot(grid[2 * (i // columns) + 1, i % columns]) for i in range(len(results))]
    for (title, stats), ax, share_ax in zip(results, upper, lower, strict=True):
        BlocksDisplay(stats, title).plot(ax, share_ax=share_ax, limits=limits, most=most)
    style.label_outer(upper, columns)
    style.label_outer(lower, columns, keep_x=True)
    figure.legend(handles=block_handles([stats for _, stats in results]), loc="outside lower center", ncols=5)
    return figure


class KindsDisplay:
    """Draw how the norms of CLS, registers and patches are distributed at the summary's point."""

    def __init__(self, stats: NormStats, title: str) -> None:
        self.stats, self.title = stats, title

    @style.paper()
    def plot(self, ax: Axes | None = None, *, limits: tuple[float, float] | None = None) -> "KindsDisplay":
        """Draw into ``ax``, or into a figure of its own; ``limits`` are those of all models that are compared."""
        if ax is None:
            figure = style.new_figure(2.8, width=style.WIDTH / 2)
            figure.legend(handles=style.band_handles(""), loc="outside lower center", ncols=3)
            ax = figure.add_subplot()
        self.ax_, self.figure_ = ax, ax.figure
        stats, x = self.stats, np.arange(len(KINDS))
        at = {level: stats.quantiles[stats.point, :, i] for i, level in enumerate(stats.levels)}
        self.bars_ = [
            ax.bar(x, at[high] - at[low], width, bottom=at[low], color=colour)
            for (low, high, colour), width in zip(style.BANDS, (0.3, 0.45, 0.6), strict=True)
        ]
        self.medians_ = ax.hlines(at[0.5], x - 0.3, x + 0.3, color=style.INK)
        (self.maxima_,) = ax.plot(x, stats.maxima[stats.point], "o", color=style.INK, markersize=2.5)
        for i in np.flatnonzero(np.isnan(at[0.5])):
            ax.text(i, 0.5, "none", transform=ax.get_xaxis_transform(), ha="center", color=style.FAINT)
        style.log_scale(ax.yaxis, *(limits or norm_limits([stats], kinds=True)))
        ax.set_xticks(x, ["CLS", "registers", "patches"], fontsize=style.SMALL - 0.5)
        ax.set_xlim(-0.6, len(KINDS) - 0.4)
        ax.set_ylabel("token norm (L2)")
        style.set_title(ax, self.title, place(stats))
        return self


@style.paper()
def draw_kinds(results: Results) -> Figure:
    """Draw norms by kind of token, all models side by side on the same axis."""
    columns = min(len(results), 4)
    figure, axes = style.panels(len(results), height=2.4, columns=columns)
    figure.set_figwidth(style.WIDTH / 2 if columns == 1 else style.WIDTH)
    limits = norm_limits([stats for _, stats in results], kinds=True)
    for ax, (title, stats) in zip(axes, results, strict=True):
        KindsDisplay(stats, title).plot(ax, limits=limits)
    style.label_outer(axes, columns, keep_x=True)
    figure.legend(handles=style.band_handles(""), loc="outside lower center", ncols=5 if columns > 1 else 3)
    return figure


FIGURES: dict[str, Callable[[Results], Figure]] = {
    "histogram": draw_histograms,
    "blocks": draw_blocks,
    "kinds": draw_kinds,
    "frequency": draw_frequency,
    "examples": draw_examples,
    "attention": draw_attention,
}
"""What draws the figures of ``norms``, by the stem of the file that it is saved in."""
