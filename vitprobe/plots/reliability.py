"""Draw reliability diagrams: accuracy against confidence by bins, and how the confidences are spread."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from vitprobe.plots import style
from vitprobe.probes.reliability import Reliability

Results = Mapping[str, Reliability]
"""Results by the titles of their panels."""
BAR = {"facecolor": style.BULK, "edgecolor": style.INK, "linewidth": 0.5}
GAP = {"facecolor": "none", "edgecolor": style.OUTLIERS, "linewidth": 0.6, "hatch": "//////"}
BAND = {"color": style.INK, "linewidth": 0.9}
DIAGONAL = {"color": style.FAINT, "linewidth": 0.7, "linestyle": "--"}
MEANS = (
    ("accuracy", {"color": style.INK, "linewidth": 1.1}),
    ("confidence", {"color": style.OUTLIERS, "linewidth": 1.1, "linestyle": (0, (2, 1.2))}),
)
"""(of the summary, look) of the two means over all images, as lines over the histogram."""
HEIGHTS = (3.2, 1.0)
"""Of diagram and histogram."""
CAP = 0.006
"""Half the width of a cap of a band, in confidence."""


class ReliabilityDisplay:
    """Draw one diagram over the histogram of its confidences (after Guo et al., arXiv 1706.04599, figure 1).

    A bar is the accuracy of the images in a bin of confidence, the hatched part how far it is from their mean
    confidence: beyond the bar where they are over-confident, inside it where they are under-confident. The thin line is
    where the accuracy of labels drawn from the model's own probabilities lies in 95 % of cases.
    """

    def __init__(self, found: Reliability, title: str) -> None:
        self.found, self.title = found, title

    @style.paper()
    def plot(self, ax: Sequence[Axes] | None = None, *, most: float | None = None) -> "ReliabilityDisplay":
        """Draw into two axes ``ax``, diagram and histogram, or into a figure of its own.

        ``most`` is the end of the histogram's axis, a share of the images.
        """
        alone = ax is None
        if ax is None:
            ax = _axes(1, 1)[1][0]
        self.ax_, self.figure_ = list(ax), ax[0].figure
        self._draw_bins(ax[0])
        self._draw_histogram(ax[1], most or highest([self.found]))
        self.note_ = self._write(ax[0])
        if alone:
            _legend(self.figure_, columns=2)
        return self

    def _draw_bins(self, ax: Axes) -> None:
        found = self.found
        some = found.counts > 0
        left, width = found.edges[:-1][some], np.diff(found.edges)[some]
        accuracy, confidence, band = found.bin_accuracy[some], found.confidence[some], found.band[some]
        look = {"align": "edge", "zorder": 1}
        self.bars_ = ax.bar(left, accuracy, width, **look, **BAR)
        gaps = np.abs(accuracy - confidence)
        self.gaps_ = ax.bar(left, gaps, width, bottom=np.minimum(accuracy, confidence), **look | {"zorder": 2}, **GAP)
        self.bands_ = ax.vlines(confidence, *band.T, zorder=3, **BAND)
        for end in band.T:
            ax.hlines(end, confidence - CAP, confidence + CAP, zorder=3, **BAND)
        ax.plot([0, 1], [0, 1], zorder=0.5, **DIAGONAL)
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 1)
        ax.set_yticks(np.linspace(0, 1, 5))
        style.percent_ticks(ax.yaxis)
        ax.set_ylabel("accuracy")
        ax.tick_params(axis="x", labelbottom=False)

    def _draw_histogram(self, ax: Axes, most: float) -> None:
        found = self.found
        shares = found.counts / found.counts.sum()
        self.shares_ = ax.bar(found.edges[:-1], shares, np.diff(found.edges), align="edge", **BAR)
        means = [ax.axvline(found.summary[name], zorder=3, **look) for name, look in MEANS]
        self.means_ = dict(zip((name for name, _ in MEANS), means, strict=True))
        ax.set_xlim(0, 1)
        ax.set_ylim(0, most)
        style.percent_ticks(ax.yaxis, 2)
        style.percent_ticks(ax.xaxis, 5)
        ax.set_xlabel("confidence")
        ax.set_ylabel("images")

    def _write(self, ax: Axes) -> Any:
        """Write the title, and under it the numbers: above the axes, where nothing is covered."""
        text = words(self.found)
        place = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom", "linespacing": 1.25}
        note = ax.annotate(text, (0, 1), (0, 3), fontsize=style.SMALL, color=style.FAINT, parse_math=False, **place)
        note.set_in_layout(False)  # the title keeps its room, and it may be longer than the axes are wide
        room = 6 + 1.3 * style.SMALL * (text.count("\n") + 1)
        ax.set_title(style.wrap(self.title, style.num_chars(ax, style.LARGE)), parse_math=False, pad=room)
        return note


def words(found: Reliability) -> str:
    """Say accuracy and expected calibration error with their 95 % intervals, and what chance alone gives, in lines.

    With too few wrong images the error has no interval that could be told: see `Reliability.ece_ci`.
    """
    error, is_sure = found.summary["ece"], not found.summary.get("too_few")
    return "\n".join(
        (
            f"accuracy {_range(found.accuracy, found.accuracy_ci)}",
            f"ECE {_range(found.ece, found.ece_ci)}" if is_sure else f"ECE {100 * found.ece:.1f} %, no interval",
            f"if calibrated, ECE up to {100 * error['calibrated_most']:.1f} %",
        )
    )


def _range(value: float, interval: tuple[float, float]) -> str:
    return f"{100 * value:.1f} % ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def highest(results: Sequence[Reliability]) -> float:
    """Return the end of an axis of shares of images that suits all histograms."""
    return min(1.0, 1.08 * max(float(found.counts.max() / found.counts.sum()) for found in results))


def _axes(number: int, columns: int) -> tuple[Figure, list[list[Axes]]]:
    """Make a figure with a pair of axes for each diagram, aligned in rows and columns."""
    rows = -(-number // columns)
    figure = style.new_figure(rows * 3.1 + 0.5, width=style.WIDTH if columns > 1 else 0.55 * style.WIDTH)
    figure.get_layout_engine().set(wspace=0.04)  # between the ends of two scales
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=HEIGHTS * rows)
    places = [(2 * (i // columns), i % columns) for i in range(number)]
    return figure, [[figure.add_subplot(grid[row + part, col]) for part in (0, 1)] for row, col in places]


def _legend(figure: Figure, *, columns: int) -> None:
    means = [Line2D([], [], label=f"mean {name}", **look) for name, look in MEANS]
    handles = [
        Patch(label="accuracy", **BAR),
        Patch(label="gap to confidence", **GAP),
        Line2D([], [], label="95 % if calibrated", color=BAND["color"], linestyle="", marker="|", markersize=8),
        *means,
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


@style.paper()
def figure(results_by_title: Results) -> Figure:
    """Draw a diagram for each result, on the same axes."""
    results = list(results_by_title.items())
    columns = style.num_columns(len(results))
    drawn, axes = _axes(len(results), columns)
    most = highest([found for _, found in results])
    for i, (pair, (title, found)) in enumerate(zip(axes, results, strict=True)):
        ReliabilityDisplay(found, title).plot(pair, most=most)
        if i % columns:
            for ax in pair:
                ax.set_ylabel("")
                ax.tick_params(axis="y", labelleft=False)
        if i + columns < len(results):
            pair[1].set_xlabel("")
            pair[1].tick_params(axis="x", labelbottom=False)
    _legend(drawn, columns=5 if columns > 1 else 2)
    return drawn
