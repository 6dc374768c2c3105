"""Draw what networks reach over the number of training images, and the tail of their norms beneath."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vitprobe.plots import style
from vitprobe.probes.data_sizes import DataSizes

MARKS = (("s", style.OUTLIERS), ("o", style.INK), ("^", "#2b8a7e"), ("D", "#7a5195"), ("v", "#8a6d00"))
"""A mark and a colour for each network, in their order: the marks tell them apart in grey."""
HELD, TRAINED = "-", (0, (1, 1.2))
"""How held-out accuracy is drawn, and training accuracy."""
SPREAD = 0.035
"""Marks of different networks stand this far apart, in decades, so that their intervals can be seen."""


class DataSizesDisplay:
    """Draw one quantity of all networks on one data set over the number of training images."""

    def __init__(self, result: DataSizes, what: str) -> None:
        """Prepare to draw ``accuracy``, held out and in training, or ``norms``: the largest, in medians."""
        self.result, self.what = result, what

    def places(self, model: int) -> np.ndarray:
        """Return where the marks of a network stand: (S,) training images, a little aside."""
        return self.result.sizes * 10 ** (SPREAD * (model - (len(self.result.names) - 1) / 2))

    def values(self, model: int) -> np.ndarray:
        """Return the quantity of a network: (S,), the mean over seeds."""
        if self.what == "accuracy":
            return self.result.accuracy[model]
        return (self.result.maximum[model] / self.result.median[model]).mean(axis=1)

    @style.paper()
    def plot(self, ax: Axes) -> "DataSizesDisplay":
        """Draw into ``ax``."""
        self.ax_, self.lines_, self.trained_, self.bars_ = ax, [], [], []
        for m in range(len(self.result.names)):
            (mark, colour), x = MARKS[m % len(MARKS)], self.places(m)
            self.lines_ += ax.plot(x, self.values(m), marker=mark, color=colour, linestyle=HELD)
            if self.what == "accuracy":
                seen = self.result.train_accuracy[m].mean(axis=1)
                look = {"marker": mark, "markerfacecolor": "white", "markersize": 3, "linewidth": 0.9}
                self.trained_ += ax.plot(x, seen, color=colour, linestyle=TRAINED, **look)
                ends = [self.result.interval(m, s) for s in range(len(x))]
                self.bars_.append(ax.vlines(x, *zip(*ends, strict=True), color=colour, linewidth=1.0))
        sizes = self.result.sizes
        ax.set_xscale("log")
        ax.set_xlim(sizes[0] / 1.4, sizes[-1] * 1.4)
        ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
        ax.minorticks_off()
        ax.set_xlabel("training images")
        return self


@style.paper()
def draw_data_sizes(results: Mapping[str, DataSizes]) -> Figure:
    """Draw held-out and training accuracy over training images, a column a data set, and the norms' tail beneath.

    After figures 3 to 5 of Dosovitskiy et al. (arXiv 2010.11929): all networks of a column spent the same number of
    operations on each set. Bars are Wilson's 95 % intervals over held-out images. Columns share their scales.
    """
    figure = style.new_figure(5.0)
    grid = figure.add_gridspec(2, len(results), height_ratios=(1.5, 1))
    rows = [[figure.add_subplot(grid[row, i]) for i in range(len(results))] for row in range(2)]
    for ax, (name, one) in zip(rows[0], results.items(), strict=True):
        DataSizesDisplay(one, "accuracy").plot(ax)
        ax.set_xlabel("")
        style.set_title(ax, name, _note(one))
        chance = 1 / len(one.summary["classes"])
        ax.axhline(chance, color=style.FAINT, linewidth=0.8, zorder=0)
        ax.annotate("chance", (one.sizes[-1] * 1.38, chance), ha="right", va="bottom", color=style.FAINT, fontsize=6.5)
        ax.set_ylim(0, 1.02)
        style.percent_ticks(ax.yaxis, 5)
    for ax, one in zip(rows[1], results.values(), strict=True):
        DataSizesDisplay(one, "norms").plot(ax)
    _share_log_scale(rows[1], [DataSizesDisplay(one, "norms") for one in results.values()])
    rows[0][0].set_ylabel("accuracy")
    rows[1][0].set_ylabel("largest norm, in medians")
    figure.legend(handles=_handles(next(iter(results.values()))), loc="outside lower center", ncols=3)
    return figure


def _note(one: DataSizes) -> str:
    return f"{one.summary['flops']:.2g} operations a training"


def _share_log_scale(axes: Sequence[Axes], displays: Sequence[DataSizesDisplay]) -> None:
    found = [value for one in displays for m in range(len(one.result.names)) for value in one.values(m)]
    found = [value for value in found if np.isfinite(value)] or [1.0]
    for ax in axes:
        style.log_scale(ax.yaxis, 0.95, 1.15 * max(found), most=6)


def _handles(one: DataSizes) -> list[Line2D]:
    """Return the legend's entries: the networks with their parameters, then what the lines mean."""
    looks = zip(one.summary["models"], MARKS, strict=False)
    found = [
        Line2D([], [], marker=mark, color=colour, label=f"{row['name']}, {row['parameters'] / 1e6:.2f} M parameters")
        for row, (mark, colour) in looks
    ]
    bars = "held out, with its 95 % interval over images"
    found.append(Line2D([], [], color=style.FAINT, linestyle=HELD, marker="|", markersize=7, label=bars))
    hollow = {"marker": "o", "markerfacecolor": "white", "markersize": 3}
    found.append(Line2D([], [], color=style.FAINT, linestyle=TRAINED, label="on training images", **hollow))
    return found
