"""Draw numbers by kind of token as dots with intervals, a line for each model.

Like `style`, this file is shared ground inside `vitprobe.plots`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from vitprobe.plots import style

TEAL = "#2b8a7e"
LOOKS: dict[str, tuple[str, dict[str, Any]]] = {
    "normal": ("normal patch", {"marker": "o", "color": style.INK, "markersize": 4.5, "markerfacecolor": style.BULK}),
    "outlier": ("outlier patch", {"marker": "D", "color": style.OUTLIERS, "markersize": 4.2}),
    "outlier by normal": (
        "outlier patch, probe of normal patches",
        {"marker": "D", "color": style.OUTLIERS, "markersize": 4.2, "markerfacecolor": "white"},
    ),
    "cls": ("CLS", {"marker": "s", "color": style.INK, "markersize": 4.2}),
    "register": ("register (each)", {"marker": "^", "color": TEAL, "markersize": 4.5, "markerfacecolor": "white"}),
    "top": ("patch of highest score", {"marker": "o", "color": style.INK, "markersize": 4.8}),
    "top of others": (
        "the same, outliers left out",
        {"marker": "o", "color": style.INK, "markersize": 4.8, "markerfacecolor": "white"},
    ),
    "random": ("random features", {"marker": "x", "color": style.FAINT, "markersize": 4.5, "markeredgewidth": 1.1}),
    "random patch": (
        "random patch",
        {"marker": "d", "color": style.FAINT, "markersize": 5.5, "markerfacecolor": "white"},
    ),
    "centre": ("patch in the middle", {"marker": "+", "color": style.FAINT, "markersize": 6, "markeredgewidth": 1.2}),
    "chance": ("without looking", {"marker": "|", "color": style.FAINT, "markersize": 9, "markeredgewidth": 1.4}),
    "outlier chance": (
        "outlier patch, without looking",
        {"marker": "|", "color": style.OUTLIERS, "markersize": 9, "markeredgewidth": 1.4},
    ),
}
"""(what the legend says, look) of each kind, in the order of the legend. Controls are grey."""
STEP, SPAN = 0.2, 0.8
"""How far apart the marks of one model stand, so that they do not cover each other, and what all of them take at most;
models are 1 apart."""


@dataclass(frozen=True)
class Mark:
    """Hold one number of one model."""

    kind: str
    """Of `LOOKS`."""
    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class KindPanel:
    """Hold what one panel draws."""

    title: str
    axis: str
    """Label of the x axis."""
    rows: list[tuple[str, Sequence[Mark]]]
    """(model, its marks), from top to bottom."""
    is_share: bool = True
    """Whether numbers are shares, from 0 to 1, and drawn in percent from 0 on."""
    second: str = ""
    """Second line of the title."""
    limit: float | None = None
    """End of the axis; what lies beyond is drawn as an arrow at it, with its number."""


class KindDisplay:
    """Draw one panel: a line for each model, on it a mark for each kind."""

    def __init__(self, panel: KindPanel) -> None:
        self.panel = panel

    @style.paper()
    def plot(self, ax: Axes | None = None) -> "KindDisplay":
        """Draw into ``ax``, or into a figure of its own."""
        panel, alone = self.panel, ax is None
        ax = ax if ax is not None else style.new_figure(_height(panel), width=4.6).add_subplot()
        self.ax_, self.figure_, self.marks_ = ax, ax.figure, []
        at = np.arange(len(panel.rows))
        ax.hlines(at, 0, 1, transform=ax.get_yaxis_transform(), color="#e8e8e8", linewidth=0.6, zorder=0)
        for y, (_, marks) in zip(at, panel.rows, strict=True):
            asides = min(STEP, SPAN / max(len(marks), 1)) * (np.arange(len(marks)) - (len(marks) - 1) / 2)
            for mark, aside in zip(marks, asides, strict=True):
                look = LOOKS[mark.kind][1]
                if panel.limit is not None and mark.value > panel.limit:
                    self._beyond(mark, y + aside, look)
                    continue
                if mark.interval is not None:
                    ends = [end if panel.limit is None else min(end, panel.limit) for end in mark.interval]
                    ax.hlines(y + aside, *ends, color=look["color"], linewidth=1.0, zorder=2)
                self.marks_ += ax.plot(mark.value, y + aside, linestyle="", clip_on=False, zorder=3, **look)
        ax.set_yticks(at, [style.wrap(name, 22) for name, _ in panel.rows], parse_math=False)
        ax.set_ylim(len(at) - 0.45, -0.55)
        ax.tick_params(axis="y", length=0)
        self._scale()
        ax.set_xlabel(panel.axis)
        style.set_title(ax, panel.title, panel.second)
        if alone:
            ax.figure.legend(handles=handles([panel]), loc="outside lower center", ncols=2)
        return self

    def _beyond(self, mark: Mark, y: float, look: dict[str, Any]) -> None:
        """Draw a mark that is off the axis as an arrow at its end, with its number."""
        self.marks_ += self.ax_.plot(
            self.panel.limit, y, linestyle="", clip_on=False, zorder=3, **look | {"marker": ">"}
        )
        text = f"{mark.value:.3g}"
        place = {"xytext": (-5, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
        self.ax_.annotate(text, (self.panel.limit, y), fontsize=style.SMALL - 0.5, color=look["color"], **place)

    def _scale(self) -> None:
        ax, marks = self.ax_, [mark for _, own in self.panel.rows for mark in own]
        ends = [end for mark in marks for end in (mark.value, *(mark.interval or ()))]
        low, high = min(ends, default=0.0), min(max(ends, default=1.0), self.panel.limit or np.inf)
        room = 0.05 * (high - low) or 0.05
        if self.panel.is_share:
            ax.set_xlim(0.0 if low < 0.5 else max(0.0, low - room), min(1.0, high + room))
            style.percent_ticks(ax.xaxis, 5)
            return
        ax.set_xlim(0.0 if 0 <= low < 0.5 * high else low - room, high + room)
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))


def handles(panels: Sequence[KindPanel]) -> list[Line2D]:
    """Return the legend's entries of the kinds that are shown."""
    shown = {mark.kind for panel in panels for _, marks in panel.rows for mark in marks}
    return [Line2D([], [], linestyle="", label=text, **look) for kind, (text, look) in LOOKS.items() if kind in shown]


@style.paper()
def draw_kinds(panels: Sequence[KindPanel], *, note: str) -> Figure:
    """Draw panels beside each other, with one legend for all; ``note`` says what the bars are."""
    columns = style.num_columns(len(panels)) if len(panels) > 1 else 1
    tall = max(map(_height, panels), default=1.0)
    figure, axes = style.panels(len(panels), height=tall, columns=columns)
    for i, (ax, panel) in enumerate(zip(axes, panels, strict=True)):
        KindDisplay(panel).plot(ax)
        is_first = i % columns == 0
        if not is_first and [name for name, _ in panel.rows] == [name for name, _ in panels[i - 1].rows]:
            ax.tick_params(axis="y", labelleft=False)
    entries = handles(panels)
    rows = -(-len(panels) // columns)
    figure.set_figheight(rows * tall + 0.3 + 0.16 * -(-len(entries) // 4))
    figure.legend(handles=entries, title=note, title_fontsize=style.SMALL, loc="outside lower center", ncols=4)
    return figure


def _height(panel: KindPanel) -> float:
    """Return how high a panel is, in inches: as its models need whose marks do not cover each other."""
    most = max((len(marks) for _, marks in panel.rows), default=1)
    return 0.75 + len(panel.rows) * max(0.34, 0.055 * most + 0.1)
