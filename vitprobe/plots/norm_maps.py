"""Draw where ``norms`` found outlier tokens: on the grid, in images, and what attention they receive."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import MaxNLocator

from vitprobe.plots import style
from vitprobe.probes.norm_stats import NormStats

Results = Sequence[tuple[str, NormStats]]
"""(title, result) of each model."""
WIDE = 10
"""Norm maps are drawn on a logarithmic scale where the largest norm shown is this many times its model's median."""
ALIKE = 8.0
"""Thumbnails whose pixels differ by less than this many of 255 grey levels, on average, show the same crop."""


def place(stats: NormStats) -> str:
    """Say at which point of the model the summary is."""
    return "after the final norm" if stats.summary["norm_point"] == "final_norm" else f"block {stats.summary['block']}"


def whose(stats: NormStats) -> str:
    """Say at which point tokens were called outliers."""
    return f"outliers {place(stats).replace('block', 'of block')}"


def norm_label(all_stats: Sequence[NormStats]) -> str:
    """Return the label of an axis of norms, which says of which point they are."""
    finals = {stats.summary["norm_point"] == "final_norm" for stats in all_stats}
    places = {place(stats) for stats in all_stats}
    if finals == {True}:
        return "token norm (L2 after the final norm)"
    if finals == {True, False}:
        return "token norm (L2 at the point that the title names)"
    block = places.pop() if len(places) == 1 else "the block that the title names"
    return f"token norm (L2 of the residual stream after {block}, before the final norm)"


class FrequencyDisplay:
    """Draw how often each grid position is an outlier, and how many outliers an image has."""

    def __init__(self, stats: NormStats, title: str) -> None:
        self.stats, self.title = stats, title

    @style.paper()
    def plot(
        self,
        ax: Axes | None = None,
        *,
        count_ax: Axes | None = None,
        most: float | None = None,
    ) -> "FrequencyDisplay":
        """Draw the map into ``ax`` and outliers per image into ``count_ax``; without either, into an own figure.

        ``most`` is the upper end of the colour scale of all models that are compared.
        """
        alone = ax is None
        if ax is None:
            ax, count_ax = style.new_figure(2.4, width=5.2).subplots(1, 2)
        self.ax_, self.count_ax_, self.figure_ = ax, count_ax, ax.figure
        stats = self.stats
        (rows, cols), (height, width) = stats.outlier_frequency.shape, stats.example_images.shape[1:3]
        self.image_ = ax.imshow(
            stats.outlier_frequency,
            cmap=style.SEQUENTIAL,
            vmin=0,
            vmax=most or stats.outlier_frequency.max() or 1,
            interpolation="nearest",
            aspect=(height / rows) / (width / cols),
        )
        ax.set_xticks([0, cols - 1] if cols > 1 else [0])
        ax.set_yticks([0, rows - 1] if rows > 1 else [0])
        ax.set_xlabel("column", labelpad=-6)
        ax.set_ylabel("row", labelpad=-6)
        ax.spines[["top", "right"]].set_visible(True)
        style.set_title(ax, self.title, whose(stats), panels=1 if count_ax is None else 2)
        if not stats.outlier_frequency.any():
            ax.text(0.5, 0.5, "no outliers", transform=ax.transAxes, ha="center", va="center")
        if count_ax is not None:
            self._draw_counts(count_ax)
            count_ax.set_box_aspect(height / width)
        if alone:
            share_bar(ax.figure, self.image_, [ax, count_ax])
        return self

    def _draw_counts(self, ax: Axes) -> None:
        counts = self.stats.outliers_per_image
        self.counts_ = ax.stairs(counts, np.arange(len(counts) + 1) - 0.5, fill=True, color=style.OUTLIERS)
        ax.set_ylim(0, 1.08 * max(counts.max(), 1))
        ax.set_xlim(-0.5 - 0.02 * len(counts), max(len(counts), 2) - 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.set_xlabel("outliers in an image")
        ax.set_ylabel("images")


def share_bar(figure: Figure, image: AxesImage, axes: Sequence[Axes], *, rows: int = 1) -> None:
    """Add the colour bar of a map of shares beside ``axes`` in so many rows."""
    bar = figure.colorbar(image, ax=axes, shrink=min(0.8, 1.6 / rows), aspect=16)
    bar.set_label("share of images")
    style.percent_ticks(bar.ax.yaxis)


@style.paper()
def draw_frequency(results: Results) -> Figure:
    """Draw how often each grid position is an outlier, for all models on the same colour scale."""
    columns = min(len(results), 2)
    rows = -(-len(results) // columns)
    width = style.WIDTH if columns == 2 else 5.2
    side = ((width - 0.9) / columns - 0.95) / 2
    tall = [side * stats.example_images.shape[1] / stats.example_images.shape[2] for _, stats in results]
    heights = [0.95 + max(tall[columns * row : columns * (row + 1)]) for row in range(rows)]
    figure = style.new_figure(sum(heights), width=width)
    grid = figure.add_gridspec(rows, 2 * columns, height_ratios=heights)
    most = max(stats.outlier_frequency.max() for _, stats in results)
    longest = max(len(stats.outliers_per_image) for _, stats in results)
    shown = []
    for i, (title, stats) in enumerate(results):
        row, column = i // columns, 2 * (i % columns)
        ax, count_ax = (figure.add_subplot(grid[row, column + k]) for k in (0, 1))
        shown.append(FrequencyDisplay(stats, title).plot(ax, count_ax=count_ax, most=most))
        count_ax.set_xlim(-0.5 - 0.02 * longest, max(longest, 2) - 0.5)
    axes = [ax for display in shown for ax in (display.ax_, display.count_ax_)]
    share_bar(figure, shown[0].image_, axes, rows=rows)
    return figure


class ExamplesDisplay:
    """Draw the norm maps of the first images, with the outlier patches outlined.

    ``multiples``, (least, most), are the ends of the colour scale in multiples of the model's median norm: models that
    are given the same ones can be compared, whatever their norms (DeiT-III's ordinary tokens are at 300 to 600).
    """

    def __init__(self, stats: NormStats, title: str, *, multiples: tuple[float, float] | None = None) -> None:
        self.stats, self.title = stats, title
        median = stats.summary["norm"]["median"]
        least, most = multiples or norm_multiples([stats])
        self.is_log = bool(most > WIDE and least > 0)
        room = max(0.0, 0.01 * most - (most - least)) / 2  # norms that are all but equal shall look equal
        self.norm = (LogNorm if self.is_log else Normalize)((least - room) * median, (most + room) * median)

    @style.paper()
    def plot(self, ax: Sequence[Axes] | None = None) -> "ExamplesDisplay":
        """Draw one map into each of the axes ``ax``, as many as there are images, or pictures and maps in a figure."""
        if ax is None:
            rows = _example_rows([(self.title, self.stats)])[1]
            draw_pictures(rows[0], self.stats)
            ax = rows[1]
        self.ax_, self.figure_ = list(ax), ax[0].figure
        height, width = self.stats.example_images.shape[1:3]
        maps = zip(self.ax_, self.stats.example_norms, self.stats.example_outliers, strict=True)
        self.images_, self.outlines_ = [], []
        for one, norms, outliers in maps:
            extent = (0, width, height, 0)
            look = {"cmap": style.NORMS, "norm": self.norm, "interpolation": "nearest"}
            self.images_.append(one.imshow(norms, extent=extent, **look))
            self.outlines_.append(outline(one, outliers, (height, width)))
            bare(one)
        found = "" if self.stats.summary["outlier_fraction"] else ", no outliers"
        title = f"{self.title} ({place(self.stats)}{found})"
        self.ax_[0].set_title(" ", fontsize=style.NORMAL, pad=3)  # keeps the room
        style.note_above(self.ax_[0], title)
        bar = self.figure_.colorbar(self.images_[0], ax=self.ax_, pad=0.01, aspect=12)
        bar.set_label("token norm" + (", log" if self.is_log else ""))
        if self.is_log:
            style.log_scale(bar.ax.yaxis, self.norm.vmin, self.norm.vmax, most=4)
        else:
            bar.ax.yaxis.set_major_locator(MaxNLocator(4))
            bar.ax.ticklabel_format(useOffset=False)
        return self


def norm_multiples(models: Sequence[NormStats]) -> tuple[float, float]:
    """Return the least and the largest norm in the maps of all models, in multiples of each model's median."""
    medians = [stats.summary["norm"]["median"] for stats in models]
    least = min(float(s.example_norms.min()) / m for s, m in zip(models, medians, strict=True))
    return least, max(float(s.example_norms.max()) / m for s, m in zip(models, medians, strict=True))


def outline(ax: Axes, mask: np.ndarray, size: tuple[int, int]) -> LineCollection:
    """Draw the border of a mask (rows, cols) that is laid over ``size`` = (height, width): white on black."""
    padded = np.pad(mask, 1)
    height, width = size[0] / mask.shape[0], size[1] / mask.shape[1]
    across = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])  # (n, 2) edges under row - 1
    down = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])  # (n, 2) edges left of column
    lines = [[(c * width, r * height), ((c + 1) * width, r * height)] for r, c in across]
    lines += [[(c * width, r * height), (c * width, (r + 1) * height)] for r, c in down]
    effects = [Stroke(linewidth=1.5, foreground="black"), Normal()]
    drawn = LineCollection(lines, colors="white", linewidths=0.7, capstyle="projecting", path_effects=effects)
    return ax.add_collection(drawn, autolim=False)


def bare(ax: Axes) -> None:
    """Take ticks and frame off a picture."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def draw_pictures(axes: Sequence[Axes], stats: NormStats) -> None:
    """Draw the example images as the model sees them, with their file names below."""
    chars = style.num_chars(axes[0], style.SMALL - 1) - 3
    for ax, image, name in zip(axes, stats.example_images, stats.example_names, strict=True):
        ax.imshow(image, extent=(0, image.shape[1], image.shape[0], 0))
        bare(ax)
        short = style.shorten(str(name).replace("\\", "/").rsplit("/", 1)[-1], chars)
        ax.set_xlabel(short, fontsize=style.SMALL - 1, labelpad=2, parse_math=False)


def same_pictures(one: NormStats, other: NormStats) -> bool:
    """Tell whether two models saw the same images in the same crop."""
    if one.example_images.shape != other.example_images.shape or any(one.example_names != other.example_names):
        return False
    return np.abs(one.example_images.astype(float) - other.example_images).mean() < ALIKE


def _example_rows(results: Results) -> tuple[Figure, list[list[Axes]]]:
    """Make a figure with a row of axes for pictures wherever they change, and one for each model's maps."""
    rows = []
    for i, (_, stats) in enumerate(results):
        rows += [stats] * (2 if i == 0 or not same_pictures(results[i - 1][1], stats) else 1)
    most = max(len(stats.example_images) for stats in rows)
    column = min(6.1 / most, 2.2)
    heights = [min(column * stats.example_images.shape[1] / stats.example_images.shape[2], 2.6) for stats in rows]
    figure = style.new_figure(sum(heights) + 0.2 * len(heights) + 0.4, width=column * most + 0.9)
    grid = figure.add_gridspec(len(rows), most, height_ratios=heights)
    return figure, [[figure.add_subplot(grid[r, c]) for c in range(len(s.example_images))] for r, s in enumerate(rows)]


@style.paper()
def draw_examples(results: Results) -> Figure:
    """Draw the first images, and under them each model's norm maps; colours mean the same multiple of its median."""
    figure, rows = _example_rows(results)
    multiples = norm_multiples([stats for _, stats in results])
    rest = iter(rows)
    for i, (title, stats) in enumerate(results):
        if i == 0 or not same_pictures(results[i - 1][1], stats):
            draw_pictures(next(rest), stats)
        ExamplesDisplay(stats, title, multiples=multiples).plot(next(rest))
    note = norm_label([stats for _, stats in results]) + "\nwhite outlines: outliers"
    note += "; a colour means the same multiple of the model's median norm" if len(results) > 1 else ""
    figure.supxlabel(note, fontsize=style.SMALL, color=style.FAINT)
    return figure


class AttentionDisplay:
    """Draw the attention that outliers and the other patches receive in each block."""

    def __init__(self, stats: NormStats, title: str) -> None:
        self.stats, self.title = stats, title

    @style.paper()
    def plot(self, ax: Axes | None = None, *, limits: tuple[float, float] | None = None) -> "AttentionDisplay":
        """Draw into ``ax``, or into a figure of its own; ``limits`` are those of all models that are compared."""
        alone = ax is None
        ax = ax or style.new_figure(2.8).add_subplot()
        self.ax_, self.figure_ = ax, ax.figure
        received = self.stats.received_attention
        blocks = np.arange(len(received))
        look = {"color": style.OUTLIERS, "markersize": 3}
        (self.outliers_,) = ax.plot(blocks, received[:, 0], "o-", zorder=3, label="outliers", **look)
        (self.others_,) = ax.plot(blocks, received[:, 1], "s--", color=style.INK, markersize=2.5, label="other patches")
        ax.axhline(1, color=style.FAINT, linestyle=":", linewidth=0.9, label="uniform share", zorder=0.5)
        if np.isnan(received[:, 0]).all():
            ax.text(0.98, 0.95, "no outliers", transform=ax.transAxes, ha="right", va="top")
        style.log_scale(ax.yaxis, *(limits or attention_limits([self.stats])))
        style.label_blocks(ax, len(received))
        ax.set_ylabel("attention received\n(× uniform share)")
        style.set_title(ax, self.title, whose(self.stats))
        if alone:
            ax.figure.legend(loc="outside lower center", ncols=3)
        return self


def attention_limits(all_stats: Sequence[NormStats]) -> tuple[float, float]:
    """Return the ends of an axis of attention that holds all results and the uniform share."""
    values = np.concatenate([stats.received_attention.ravel() for stats in all_stats] + [[1.0]])
    values = values[np.isfinite(values) & (values > 0)]
    return min(values.min(), 0.5) / 1.3, max(values.max(), 2) * 1.3


@style.paper()
def draw_attention(results: Results) -> Figure:
    """Draw the attention that outliers receive, for all models on the same axis."""
    columns = style.num_columns(len(results))
    figure, axes = style.panels(len(results), height=2.5 if len(results) == 1 else 2.0)
    limits = attention_limits([stats for _, stats in results])
    for ax, (title, stats) in zip(axes, results, strict=True):
        AttentionDisplay(stats, title).plot(ax, limits=limits)
    style.label_outer(axes, columns, keep_x=True)
    figure.legend(handles=axes[0].get_legend_handles_labels()[0], loc="outside lower center", ncols=3)
    return figure
