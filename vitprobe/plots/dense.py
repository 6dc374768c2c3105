"""Draw what linear maps read of every pixel: classes or depths beside the truth, and the score of each class."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from vitprobe.plots import style
from vitprobe.plots.norm_maps import bare
from vitprobe.probes.dense import Examples

PALETTE = (
    "#bdbdbd", "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#332288", "#882255",
    "#999933", "#117733",
)  # fmt: skip
"""Of classes, the most frequent first: grey, the colours of Okabe and Ito, and four of Tol's muted ones."""
VOID = (1.0, 1.0, 1.0)
"""Of pixels without a truth."""
DEPTHS = "cividis_r"
"""Near is light and far is dark: lightness falls evenly, and hardly differs for colour-blind readers."""
MOST_NAMED = 12
"""Classes that a legend names."""
MOST_BARS = 30
"""Classes whose score is drawn."""
ALIKE = 12.0
"""Images whose pixels differ by less than this many of 255 grey levels, on average, show the same crop."""


@dataclass(frozen=True)
class Read:
    """Hold what was read of one model, as figures need it."""

    title: str
    examples: Examples
    classes: tuple[str, ...] = ()
    """Names of C classes; empty for depths."""
    iou: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """(C,) nan where a class is neither in truth nor predicted."""
    intervals: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    """(C, 2) 95 %"""
    position: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """(C,) IoU of the position alone."""
    shares: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """(C,) share of the test's pixels."""
    unit: str = ""
    """Of depths."""


def class_colors(reads: Sequence[Read]) -> np.ndarray:
    """Give each class a colour, the most frequent the most distinct: (C, 3) in [0, 1]; beyond the palette, hues."""
    order = np.argsort(-reads[0].shares, kind="stable")
    colors = np.zeros((len(order), 3))
    for rank, one in enumerate(order):
        extra = rank - len(PALETTE)
        hue = colorsys.hsv_to_rgb(extra * 0.618034 % 1, (0.45, 0.7, 0.95)[extra % 3], (0.95, 0.7, 0.5)[extra // 3 % 3])
        colors[one] = to_rgb(PALETTE[rank]) if extra < 0 else hue
    return colors


def paint(classes: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Colour a map of classes (H, W), -1 where void: (H, W, 3)."""
    return np.where((classes >= 0)[..., None], colors[classes.clip(0)], VOID)


class MaskDisplay:
    """Draw the classes of the pixels of one image, and under it how many are right."""

    def __init__(self, read: Read, image: int, *, truth: bool = False) -> None:
        examples = read.examples
        self.classes = (examples.truth if truth else examples.predicted)[image]
        told = examples.truth[image]
        self.right = None if truth or not (told >= 0).any() else float((self.classes == told)[told >= 0].mean())
        self.read = read

    def plot(self, ax: Axes | None = None, *, colors: np.ndarray | None = None) -> "MaskDisplay":
        """Draw into ``ax``, or into a figure of its own."""
        self.ax_ = ax if ax is not None else style.new_figure(2.5, width=2.5).add_subplot()
        self.figure_ = self.ax_.figure
        colors = class_colors([self.read]) if colors is None else colors
        self.image_ = self.ax_.imshow(paint(self.classes, colors), interpolation="nearest")
        bare(self.ax_)
        if self.right is not None:
            self.ax_.set_xlabel(f"{style.percent(self.right)} right", fontsize=style.SMALL - 1, labelpad=2)
        return self


class DepthDisplay:
    """Draw the depths of the pixels of one image, and under it their root mean squared error."""

    def __init__(self, read: Read, image: int, *, truth: bool = False) -> None:
        examples = read.examples
        self.depths, told = (examples.truth if truth else examples.predicted)[image], examples.truth[image]
        known = np.isfinite(told)
        squares = (self.depths[known] - told[known]) ** 2
        self.error = None if truth or not known.any() else float(np.sqrt(squares.mean()))
        self.read = read

    def plot(self, ax: Axes | None = None, *, limits: tuple[float, float] | None = None) -> "DepthDisplay":
        """Draw into ``ax``, or into a figure of its own; ``limits`` are the ends of the scale of all that is shown."""
        self.ax_ = ax if ax is not None else style.new_figure(2.5, width=2.5).add_subplot()
        self.figure_ = self.ax_.figure
        scale = Normalize(*(limits or depth_limits([self.read])))
        self.image_ = self.ax_.imshow(self.depths, cmap=DEPTHS, norm=scale, interpolation="nearest")
        bare(self.ax_)
        if self.error is not None:
            self.ax_.set_xlabel(f"RMSE {self.error:.3g}", fontsize=style.SMALL - 1, labelpad=2)
        return self


def depth_limits(reads: Sequence[Read]) -> tuple[float, float]:
    """Return the least and the largest true depth of the examples of all models, or of what was read where none is."""
    every = np.concatenate([read.examples.truth.ravel() for read in reads])
    every = every[np.isfinite(every)]
    if not len(every):
        every = np.concatenate([read.examples.predicted.ravel() for read in reads])
    return float(every.min()), float(every.max())


def _same_pictures(one: Examples, other: Examples) -> bool:
    """Tell whether two models saw the same images in the same crop, whatever their size."""
    if one.names.tolist() != other.names.tolist():
        return False
    first, second = sorted((one.images, other.images), key=lambda images: images.shape[1])
    rows, cols = (np.arange(n) * second.shape[i] // n for i, n in enumerate(first.shape[1:3], 1))
    return np.abs(first.astype(float) - second[:, rows][:, :, cols]).mean() < ALIKE


def _rows(reads: Sequence[Read]) -> list[tuple[str, Read]]:
    """Say what stands in each row of pictures: images, their truth, and the reading of every model that saw them so."""
    groups: list[list[Read]] = []
    for read in reads:
        own = next((group for group in groups if _same_pictures(group[0].examples, read.examples)), None)
        groups += [[read]] if own is None else []
        if own is not None:
            own.append(read)
    return [row for own in groups for row in [("image", own[0]), ("truth", own[0]), *[("read", read) for read in own]]]


def _lay_out(rows: Sequence[tuple[str, Read]], *, extra: float) -> tuple[Figure, list[list[Axes]]]:
    """Make a figure with a line of axes for each row, and ``extra`` inches for what stands below."""
    number = max(len(read.examples.names) for _, read in rows)
    column = min(6.2 / number, 1.7)
    heights = [column * read.examples.truth.shape[1] / read.examples.truth.shape[2] for _, read in rows]
    figure = style.new_figure(sum(heights) + 0.34 * len(heights) + extra, width=column * number + 0.8)
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - 0.1 / figure.get_figheight()))  # for the topmost title
    grid = figure.add_gridspec(len(heights), number, height_ratios=heights)
    return figure, [[figure.add_subplot(grid[r, c]) for c in range(number)] for r in range(len(heights))]


def _fill(line: Sequence[Axes], kind: str, read: Read, make: type, **look: object) -> list[AxesImage]:
    """Draw one row; returns its maps."""
    shown = []
    for i, ax in enumerate(line):
        if i >= len(read.examples.names):
            ax.set_axis_off()
        elif kind == "image":
            ax.imshow(read.examples.images[i])
            bare(ax)
            name = str(read.examples.names[i]).replace("\\", "/").rsplit("/", 1)[-1]
            short = style.shorten(name, style.num_chars(ax, style.SMALL - 1) - 3)
            ax.set_xlabel(short, fontsize=style.SMALL - 1, labelpad=2, parse_math=False)
        else:
            shown.append(make(read, i, truth=kind == "truth").plot(ax, **look).image_)
    line[0].set_title(" ", fontsize=style.NORMAL, pad=3)  # keeps the room
    style.note_above(line[0], {"image": "images", "truth": "truth"}.get(kind, read.title))
    return shown


@style.paper()
def draw_masks(reads: Sequence[Read]) -> Figure:
    """Draw the first test images, the true classes of their pixels, and what each model's map makes of them."""
    rows, colors = _rows(reads), class_colors(reads)
    figure, lines = _lay_out(rows, extra=0.9)
    for line, (kind, read) in zip(lines, rows, strict=True):
        _fill(line, kind, read, MaskDisplay, colors=colors)
    counts = sum(
        np.bincount(one[one >= 0].ravel(), minlength=len(colors))
        for read in reads
        for one in (read.examples.truth, read.examples.predicted)
    )
    named = [int(one) for one in np.argsort(-counts, kind="stable")[:MOST_NAMED] if counts[one]]
    named.sort(key=lambda one: -reads[0].shares[one])
    entries = [Patch(facecolor=colors[one], label=style.printable(reads[0].classes[one])) for one in named]
    if any((read.examples.truth < 0).any() for read in reads):
        entries.append(Patch(facecolor=VOID, edgecolor=style.FAINT, linewidth=0.5, label="no class known"))
    columns = max(2, int(figure.get_figwidth() / 1.25))
    left = int((counts > 0).sum()) - len(named)
    title = f"{left} rarer classes are not named" if left > 0 else None
    figure.legend(handles=entries, loc="outside lower center", ncols=min(columns, len(entries)), title=title)
    return figure


@style.paper()
def draw_depths(reads: Sequence[Read]) -> Figure:
    """Draw the first test images, the true depths of their pixels, and what each model's map makes of them."""
    rows, limits = _rows(reads), depth_limits(reads)
    figure, lines = _lay_out(rows, extra=0.7)
    for line, (kind, read) in zip(lines, rows, strict=True):
        shown = _fill(line, kind, read, DepthDisplay, limits=limits)
        last = shown[0] if shown else None
    bar = figure.colorbar(
        last,
        ax=[ax for line in lines for ax in line],
        location="bottom",
        aspect=40,
        shrink=0.6,
        fraction=0.02,
        pad=0.015,
    )
    bar.set_label(f"depth, {reads[0].unit}; one scale for all, from the least to the largest true depth shown")
    return figure


class ClassesDisplay:
    """Draw the intersection over union of each class as a bar with its interval, the most frequent class on top."""

    def __init__(self, read: Read, order: np.ndarray) -> None:
        """``order``: which classes stand from top to bottom."""
        self.read, self.order = read, order

    @style.paper()
    def plot(self, ax: Axes | None = None) -> "ClassesDisplay":
        """Draw into ``ax``, or into a figure of its own."""
        ax = ax if ax is not None else style.new_figure(0.9 + 0.18 * len(self.order), width=4).add_subplot()
        self.ax_, self.figure_ = ax, ax.figure
        read, order, y = self.read, self.order, np.arange(len(self.order))
        self.bars_ = ax.barh(y, np.nan_to_num(read.iou[order]), height=0.7, color=style.BULK)
        self.intervals_ = ax.hlines(y, *read.intervals[order].T, color=style.INK, linewidth=1.0)
        (self.position_,) = ax.plot(
            read.position[order], y, "|", color=style.OUTLIERS, markersize=7, markeredgewidth=1.3
        )
        for at in np.flatnonzero(np.isnan(read.iou[order])):
            ax.text(0.01, at, "not here", va="center", fontsize=style.SMALL - 1, color=style.FAINT)
        ax.set_yticks(y, [style.shorten(read.classes[one], 20) for one in order], parse_math=False)
        ax.tick_params(axis="y", length=0)
        ax.set_ylim(len(order) - 0.4, -0.6)
        ax.set_xlim(0, 1)
        style.percent_ticks(ax.xaxis, 4)
        ax.set_xlabel("intersection over union")
        known = np.isfinite(read.iou)
        style.set_title(ax, read.title, f"mean of {known.sum()} classes: {style.percent(read.iou[known].mean())}")
        return self


@style.paper()
def draw_classes(reads: Sequence[Read]) -> Figure:
    """Draw the score of each class for all models beside each other, on one axis."""
    order = np.argsort(-reads[0].shares, kind="stable")[:MOST_BARS]
    columns = min(len(reads), 3)
    figure, axes = style.panels(len(reads), height=0.75 + 0.17 * len(order), columns=columns)
    figure.set_figwidth(4.2 if columns == 1 else style.WIDTH)
    for i, (ax, read) in enumerate(zip(axes, reads, strict=True)):
        ClassesDisplay(read, order).plot(ax)
        if i % columns:
            ax.tick_params(axis="y", labelleft=False)
    entries = [
        Patch(facecolor=style.BULK, label="linear map of patch features"),
        Line2D([], [], color=style.INK, label="95 % interval"),
        Line2D([], [], linestyle="", marker="|", color=style.OUTLIERS, markersize=7, label="position alone"),
    ]
    rest = len(reads[0].shares) - len(order)
    title = "the most frequent class on top" + (f"; {rest} rarer ones are not drawn" if rest > 0 else "")
    figure.legend(handles=entries, title=title, loc="outside lower center", ncols=3 if columns > 1 else 2)
    return figure
