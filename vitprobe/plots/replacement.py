"""Draw what replacing registers does to accuracy, to features and to patch norms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vitprobe.plots import style
from vitprobe.plots.curves import MARKERS
from vitprobe.probes.replacement import CLEAN

COLOURS = (style.INK, style.OUTLIERS, "#2b8a7e", "#7a5195", style.FAINT)
WIDE = 20
"""A panel is logarithmic where its largest value is this many times its least."""


@dataclass(frozen=True)
class Replaced:
    """Hold what is drawn of one model."""

    ways: tuple[str, ...]
    numbers: Mapping[str, np.ndarray]
    """(3,) value and ends of its interval, nan for none, by way and quantity: ``zero.accuracy``."""
    task: str
    chance: float


@dataclass(frozen=True)
class Panel:
    """Name what one panel draws."""

    quantity: str
    title: str
    second: str
    label: str
    has_clean: bool
    kind: str
    """``share``, ``difference`` of shares, or ``ratio``."""


PANELS = (
    Panel("accuracy", "linear classification", "bars: Wilson, 95 %", "accuracy", True, "share"),
    Panel("difference", "change of accuracy", "bars: 95 % over images", "accuracy, less as is", False, "difference"),
    Panel("cls", "change of CLS", "bars: 95 % over images", "1 - cosine with as is", False, "ratio"),
    Panel("patches", "change of patches", "bars: 95 % over images", "1 - cosine with as is", False, "ratio"),
    Panel("largest", "largest patch norm", "an image's, mean of all", "× median as is", True, "ratio"),
)

Results = Sequence[tuple[str, Replaced]]
"""(title, result) of each model."""


class PanelDisplay:
    """Draw one quantity of all models by way of replacing."""

    def __init__(self, results: Results, panel: Panel) -> None:
        self.results, self.panel = results, panel
        ways = dict.fromkeys(way for _, one in results for way in one.ways)
        self.ways = [CLEAN] * panel.has_clean + list(ways)

    def values(self, one: Replaced) -> np.ndarray:
        """Return (number of ways, 3) value and ends of the interval; nan for what a model has not."""
        none = np.full(3, np.nan)
        return np.stack([one.numbers.get(f"{way}.{self.panel.quantity}", none) for way in self.ways])

    @style.paper()
    def plot(self, ax: Axes | None = None) -> "PanelDisplay":
        """Draw into ``ax``, or into a figure of its own."""
        ax = ax if ax is not None else style.new_figure(2.4, width=style.WIDTH / 2).add_subplot()
        self.ax_, self.figure_, self.points_ = ax, ax.figure, []
        number, every = len(self.results), []
        for i, (_, one) in enumerate(self.results):
            values = self.values(one)  # (W, 3)
            x = np.arange(len(self.ways)) + 0.5 * (i - (number - 1) / 2) / max(number, 2)
            ax.vlines(x, values[:, 1], values[:, 2], color=look_of(i)["color"], linewidth=0.9)
            self.points_ += ax.plot(x, values[:, 0], linestyle="", **look_of(i))
            every.append(values)
        self._scale(np.concatenate(every))
        names = ["as is" if way == CLEAN else way for way in self.ways]
        ax.set_xticks(range(len(names)), names)
        ax.set_xlim(-0.5, len(names) - 0.5)
        ax.set_ylabel(self.panel.label)
        style.set_title(ax, self.panel.title, self.panel.second)
        return self

    def _scale(self, values: np.ndarray) -> None:
        """Fit the axis to values and intervals (n, 3)."""
        ax, known = self.ax_, values[np.isfinite(values)]
        if not len(known):
            ax.set_yticks([])
            ax.text(0.5, 0.55, "none has it", transform=ax.transAxes, ha="center", va="center", color=style.FAINT)
            return
        low, high = known.min(), known.max()
        if self.panel.kind == "share":
            chances = [one.chance for _, one in self.results]
            for i, chance in enumerate(chances):
                ax.axhline(chance, color=look_of(i)["color"], linestyle=":", linewidth=0.9, zorder=0.5)
            low = min(low, *chances)
        if self.panel.kind == "difference":
            ax.axhline(0, color=style.FAINT, linestyle=":", linewidth=0.9, zorder=0.5)
            low, high = min(low, -0.01), max(high, 0.01)
        positive = known[known > 0]
        if self.panel.kind == "ratio" and len(positive) and high > WIDE * positive.min():
            style.log_scale(ax.yaxis, positive.min() / 1.4, 1.4 * high, most=6)
            return
        low = min(low, 0) if self.panel.kind == "ratio" else low
        room = 0.08 * ((high - low) or 0.01)
        ax.set_ylim(low - room, high + room)
        if self.panel.kind != "ratio":
            style.percent_ticks(ax.yaxis)


def look_of(model: int) -> dict[str, Any]:
    """Return the colour and marker of a model, by its place."""
    colour = COLOURS[model % len(COLOURS)]
    face = "white" if model % 2 else colour
    return {"color": colour, "marker": MARKERS[model % len(MARKERS)], "markersize": 4.5, "markerfacecolor": face}


@style.paper()
def draw_replaced(results: Results) -> Figure:
    """Draw accuracy, its difference to that with registers as they are, changes of features and the largest norms."""
    figure, axes = style.panels(len(PANELS) + 1, height=2.1, columns=3)
    for ax, panel in zip(axes, PANELS, strict=False):
        PanelDisplay(results, panel).plot(ax)
    tasks = list(dict.fromkeys(one.task for _, one in results))
    handles = [
        Line2D([], [], linestyle="", label=style.printable(title), **look_of(i)) for i, (title, _) in enumerate(results)
    ]
    dotted = {"color": style.FAINT, "linestyle": ":", "linewidth": 0.9}
    handles.append(Line2D([], [], label=f"chance ({', '.join(tasks)}); no difference", **dotted))
    axes[-1].set_axis_off()
    axes[-1].legend(handles=handles, loc="center left", handlelength=1.6)
    return figure
