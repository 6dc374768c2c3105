"""Draw variants over training: loss, held-out measures, outlier fractions and the tail of norms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from vitprobe.plots import style
from vitprobe.probes.comparison import VariantResult
from vitprobe.probes.curves import Curve

Results = Sequence[VariantResult]
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)), (0, (7, 3)), (0, (3, 1, 1, 1, 1, 1)), (0, (2, 2.5)))
DASHES += ((0, (7, 2, 3, 2)),)
MARKERS = "o^sDvPX*"
"""One variant has one dash and one marker: told apart in grey."""
NUM_MARKERS = 6
"""Markers on a curve of many points."""
POINTS = 1500
"""A longer line is drawn by the least and the greatest value of as many stretches: the same ink, a smaller file."""
STEEP = 10
"""A loss that falls by more than this factor has a logarithmic axis."""
MEASURES = {
    "knn": "k-NN accuracy",
    "zero_shot_accuracy": "zero-shot accuracy",
    "retrieval": "captions found again",
    "agreement": "cosine with the teacher",
}
NARROWEST = 0.02
"""Least height of an axis of held-out measures: a smaller difference shall look small."""


@dataclass(frozen=True)
class Quantity:
    """Name what one panel draws of a curve at each look at held-out images."""

    title: str
    second: str
    """What stands under the title."""
    values: Callable[[Curve], np.ndarray]
    kind: str
    """``share`` of tokens from 0, ``measure`` in percent, ``cosine``, or ``ratio`` of norms."""


HELD_OUT = "on held-out images"
LAST = Quantity("outlier patches", "last block", lambda curve: curve.outlier_fraction, "share")
HIGHEST = Quantity("outlier patches", "block that has most of them", lambda curve: curve.highest, "share")
TAIL = Quantity("tail of patch norms", "p99 / median, last block", lambda curve: curve.tail, "ratio")
KNN = Quantity(MEASURES["knn"], HELD_OUT, lambda curve: curve.knn, "measure")


def measure(name: str) -> Quantity:
    """Return the quantity that an objective calls its held-out measure."""
    is_share = name.endswith("accuracy") or name in ("knn", "retrieval")
    label = MEASURES.get(name, name.replace("_", " "))
    return Quantity(label, HELD_OUT, lambda curve: curve.measure, "measure" if is_share else "cosine")


def looks(results: Results) -> list[dict[str, Any]]:
    """Return how the line of each variant looks: the control warm and unbroken, registers darker the more there are."""
    numbers = sorted({one.num_registers for one in results} - {0})
    shades = matplotlib.colormaps["viridis"](np.linspace(0.7, 0.05, len(numbers)) if len(numbers) != 1 else [0.15])
    colours = {0: style.OUTLIERS} | dict(zip(numbers, map(tuple, shades), strict=True))
    found = []
    for i, one in enumerate(results):
        look = {"color": colours[one.num_registers], "linestyle": DASHES[i % len(DASHES)]}
        look |= {"marker": MARKERS[i % len(MARKERS)], "zorder": 2 + 0.01 * i}
        found.append(look | ({"markerfacecolor": "white"} if one.family else {}))
    return found


class CurveDisplay:
    """Draw one quantity of all variants over training, a line each."""

    def __init__(self, results: Results, quantity: Quantity) -> None:
        self.results, self.quantity = results, quantity

    @style.paper()
    def plot(self, ax: Axes | None = None, *, most: float | None = None) -> "CurveDisplay":
        """Draw into ``ax``, or into a figure of its own; ``most`` is the upper end of an axis of shares."""
        ax, alone = ax or style.new_figure(2.8, width=style.WIDTH / 2).add_subplot(), ax is None
        self.ax_, self.figure_, self.lines_ = ax, ax.figure, []
        every = []
        for i, (one, look) in enumerate(zip(self.results, looks(self.results), strict=True)):
            values = self.quantity.values(one.curve)
            every.append(values)
            look |= {"markevery": _markers(len(values), i), "markersize": 3.2}
            self.lines_ += ax.plot(one.curve.eval_steps, values, **look)
        label_steps(ax, self.results)
        scale(ax, np.concatenate(every), self.quantity.kind, most)
        style.set_title(ax, self.quantity.title, self.quantity.second)
        if alone:
            ax.figure.legend(handles=handles(self.results), loc="outside lower center", ncols=2)
        return self


class LossDisplay:
    """Draw the training loss of all variants; of a long run smoothed, with the loss as it was logged faint behind."""

    def __init__(self, results: Results) -> None:
        self.results = results

    @style.paper()
    def plot(self, ax: Axes | None = None) -> "LossDisplay":
        """Draw into ``ax``, or into a figure of its own."""
        ax, alone = ax or style.new_figure(2.8, width=style.WIDTH / 2).add_subplot(), ax is None
        self.ax_, self.figure_, self.lines_, self.raw_ = ax, ax.figure, [], []
        for i, (one, look) in enumerate(zip(self.results, looks(self.results), strict=True)):
            steps, values = one.curve.steps, one.curve.smoothed()
            if one.curve.window > 1:
                faint = {"color": look["color"], "linewidth": 0.4, "alpha": 0.2, "zorder": 1}
                self.raw_ += ax.plot(*thinned(steps, one.curve.loss), **faint)
                steps, values = thinned(steps, values)
            look |= {"markevery": _markers(len(steps), i), "markersize": 3.2}
            self.lines_ += ax.plot(steps, values, **look)
        label_steps(ax, self.results)
        _scale_loss(ax, self.results)
        window = max(one.curve.window for one in self.results)
        style.set_title(ax, "training loss", f"mean of {window} logged; faint: raw" if window > 1 else "as logged")
        if alone:
            ax.figure.legend(handles=handles(self.results), loc="outside lower center", ncols=2)
        return self


def _scale_loss(ax: Axes, results: Results) -> None:
    """Fit the axis to the smoothed lines: a few steps that went wild would leave the rest flat."""
    values = np.concatenate([one.curve.smoothed() for one in results])
    values = values[np.isfinite(values)]
    if not len(values):
        return _say(ax, "not finite")
    low, high = values.min(), values.max()
    if low > 0 and high / low > STEEP:
        return style.log_scale(ax.yaxis, low / 1.2, high * 1.2, most=5)
    middle, half = (low + high) / 2, max(0.56 * (high - low), 0.05 * abs(high), 1e-3)
    ax.set_ylim(middle - half, middle + half)
    ax.yaxis.set_major_locator(_ticks())
    return None


def scale(ax: Axes, values: np.ndarray, kind: str, most: float | None = None) -> None:
    """Fit a y axis to values of a kind (see `Quantity`), or say why there is nothing to see."""
    values = values[np.isfinite(values)]
    if not len(values):
        ax.set_yticks([])
        return _say(ax, "not measured")
    if kind == "share":
        most = most if most is not None else values.max()
        ax.set_ylim(-0.05 * (most or 0.01), 1.1 * (most or 0.01))
        style.percent_ticks(ax.yaxis)
        ax.yaxis.set_major_locator(_ticks())
        return None if values.any() else _say(ax, "no outliers")
    if kind == "ratio":
        return _scale_ratio(ax, values)
    middle, half = (values.max() + values.min()) / 2, 0.54 * max(np.ptp(values), NARROWEST)
    ax.set_ylim(middle - half, middle + half)
    if kind == "measure":
        style.percent_ticks(ax.yaxis)
    ax.yaxis.set_major_locator(_ticks())
    return None


def _scale_ratio(ax: Axes, values: np.ndarray) -> None:
    high = values.max()
    if high > STEEP:
        return style.log_scale(ax.yaxis, 0.9, 1.2 * high, most=5)
    ax.set_ylim(1 - 0.06 * (max(high, 1.5) - 1), 1 + 1.1 * (max(high, 1.5) - 1))
    return ax.yaxis.set_major_locator(_ticks())


def _say(ax: Axes, text: str) -> None:
    ax.text(0.5, 0.55, text, transform=ax.transAxes, ha="center", va="center", color=style.FAINT)


def _ticks(*, integer: bool = False) -> MaxNLocator:
    return MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], min_n_ticks=3, integer=integer)


def label_steps(ax: Axes, results: Results) -> None:
    """Label an x axis with training steps, from 0 to the last of all variants: 500, 20k, 1.5M."""
    last = max(int(steps[-1]) for one in results for steps in (one.curve.steps, one.curve.eval_steps) if len(steps))
    ax.set_xlim(-0.03 * last, 1.03 * last)
    ax.xaxis.set_major_locator(_ticks(integer=True))
    unit, sign = (1e6, "M") if last >= 1e6 else (1e3, "k") if last >= 1e4 else (1, "")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step / unit:g}{sign if step else ''}"))
    ax.set_xlabel("training step")


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return at most 2 x `POINTS` points of a line: the least and the greatest of each stretch, in their order."""
    if len(x) <= 2 * POINTS:
        return x, y
    kept = []
    for part in np.array_split(np.arange(len(x)), POINTS):
        known = part[np.isfinite(y[part])]
        kept += sorted({known[y[known].argmin()], known[y[known].argmax()]}) if len(known) else [part[0]]
    return x[kept], y[kept]


def _markers(points: int, variant: int) -> tuple[int, int]:
    """Return from which point on, and how often, a line has markers: all of a few, else staggered by variant."""
    step = max(1, points // NUM_MARKERS) if points > 2 * NUM_MARKERS else 1
    return (variant * step // len(MARKERS), step)


def handles(results: Results) -> list[Line2D]:
    """Return the entries of a legend: a line for each variant."""
    titles = [style.printable(one.title) for one in results]
    return [Line2D([], [], label=t, markersize=3.2, **look) for t, look in zip(titles, looks(results), strict=True)]


@style.paper()
def draw_curves(results: Results) -> Figure:
    """Draw loss, held-out measures, outlier fractions and the tail of norms over training, a line a variant."""
    figure = style.new_figure(4.1)
    grid = figure.add_gridspec(2, 3)
    axes = [[figure.add_subplot(grid[row, column]) for column in range(3)] for row in range(2)]
    has_knn = any(one.curve.has_knn for one in results)
    LossDisplay(results).plot(axes[0][0])
    CurveDisplay(results, measure(results[0].curve.measure_name)).plot(axes[0][1])
    entries = handles(results)
    if has_knn:
        CurveDisplay(results, KNN).plot(axes[0][2])
        figure.legend(handles=entries, loc="outside lower center", ncols=4, handlelength=3.5)
    else:
        axes[0][2].set_axis_off()
        axes[0][2].legend(handles=entries, loc="center", handlelength=3.5)
    most = max(float(np.nanmax(one.curve.highest, initial=0.0)) for one in results)
    for ax, quantity in zip(axes[1], (LAST, HIGHEST, TAIL), strict=True):
        CurveDisplay(results, quantity).plot(ax, most=most)
    return figure
