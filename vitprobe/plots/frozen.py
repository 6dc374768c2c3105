"""Draw scores of models beside those of controls, as dots with intervals: a table that can be seen."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from vitprobe.plots import style

LOOKS = (
    {"marker": "o", "color": style.INK, "markersize": 4.5},
    {"marker": "o", "color": style.INK, "markersize": 4.5, "markerfacecolor": "white"},
    {"marker": "s", "color": "#2b8a7e", "markersize": 3.8},
    {"marker": "D", "color": "#2b8a7e", "markersize": 3.8, "markerfacecolor": "white"},
)
"""Of what is measured: the first score of a row, and others like it."""
CONTROLS = (
    {"marker": "|", "color": style.OUTLIERS, "markersize": 8, "markeredgewidth": 1.4},
    {"marker": "x", "color": style.OUTLIERS, "markersize": 4, "markeredgewidth": 1.2},
    {"marker": "^", "color": style.OUTLIERS, "markersize": 4, "markerfacecolor": "white", "markeredgewidth": 0.9},
)
"""Of what knows less than the model, or nothing."""


@dataclass(frozen=True)
class Score:
    """Hold one number of one model."""

    label: str
    """Names it in the legend; the same label has the same look in all panels."""
    value: float
    interval: tuple[float, float] | None = None
    is_control: bool = False


@dataclass(frozen=True)
class ScorePanel:
    """Hold what one panel draws: a row for each model."""

    title: str
    axis: str
    """Label of the x axis."""
    rows: Sequence[tuple[str, Sequence[Score]]]
    """(model, its scores), from top to bottom."""
    is_share: bool = True
    """Whether scores are shares, from 0 to 1, and drawn in percent."""
    second: str = ""
    """Second line of the title."""


def looks(panels: Sequence[ScorePanel]) -> dict[str, dict]:
    """Give every label its look, in the order in which labels come."""
    every = [score for panel in panels for _, scores in panel.rows for score in scores]
    found: dict[str, dict] = {}
    for is_control, own in ((False, LOOKS), (True, CONTROLS)):
        labels = list(dict.fromkeys(score.label for score in every if score.is_control == is_control))
        found |= {label: own[min(i, len(own) - 1)] for i, label in enumerate(labels)}
    return found


class ScoresDisplay:
    """Draw the scores of each model on a line of its own: what was measured filled, controls in another colour."""

    def __init__(self, panel: ScorePanel) -> None:
        self.panel = panel

    @style.paper()
    def plot(self, ax: Axes | None = None, *, shown: dict[str, dict] | None = None) -> "ScoresDisplay":
        """Draw into ``ax``, or into a figure of its own; ``shown`` are the looks of all panels."""
        panel = self.panel
        alone = ax is None
        ax = ax if ax is not None else style.new_figure(0.9 + 0.3 * len(panel.rows)).add_subplot()
        self.ax_, self.figure_, self.dots_, self.bars_ = ax, ax.figure, [], []
        shown = shown or looks([panel])
        rows = np.arange(len(panel.rows))
        ax.hlines(rows, 0, 1, transform=ax.get_yaxis_transform(), color="#e4e4e4", linewidth=0.6, zorder=0)
        for y, (_, scores) in zip(rows, panel.rows, strict=True):
            own = [score for score in scores if not score.is_control]
            asides = {id(score): 0.26 * (i - (len(own) - 1) / 2) for i, score in enumerate(own)}
            for score in scores:
                look, at = shown[score.label], y + asides.get(id(score), 0.0)
                layer = 2 if score.is_control else 3
                if score.interval is not None:
                    self.bars_ += [ax.hlines(at, *score.interval, color=look["color"], linewidth=1.0, zorder=layer)]
                self.dots_ += ax.plot(score.value, at, linestyle="", **look, zorder=layer + 0.5, clip_on=False)
        ax.set_yticks(rows, [style.wrap(name, 24) for name, _ in panel.rows])
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.tick_params(axis="y", length=0)
        self._scale()
        ax.set_xlabel(panel.axis)
        style.set_title(ax, panel.title, panel.second)
        if alone:
            ax.figure.legend(handles=handles([panel]), loc="outside lower center", ncols=3)
        return self

    def _scale(self) -> None:
        ax, panel = self.ax_, self.panel
        values = [score.value for _, scores in panel.rows for score in scores]
        ends = [end for _, scores in panel.rows for score in scores for end in score.interval or ()]
        low, high = min(values + ends), max(values + ends)
        room = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
        if panel.is_share:
            ax.set_xlim(max(0.0, low - room), min(1.0, high + room))
            style.percent_ticks(ax.xaxis, 5)
        else:
            ax.set_xlim(max(0.0, low - room) if low >= 0 else low - room, high + room)
            ax.xaxis.set_major_locator(MaxNLocator(5))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))


def handles(panels: Sequence[ScorePanel]) -> list[Line2D]:
    """Return the entries of a legend."""
    return [Line2D([], [], linestyle="", label=label, **look) for label, look in looks(panels).items()]


@style.paper()
def draw_scores(panels: Sequence[ScorePanel], *, note: str = "bars: 95 % intervals") -> Figure:
    """Draw panels of scores, two beside each other, with one legend for all."""
    columns = 1 if len(panels) == 1 else 2
    lines = max(len(panel.rows) for panel in panels)
    tall = 0.95 + 0.3 * lines
    figure, axes = style.panels(len(panels), height=tall, columns=columns)
    figure.set_figheight(-(-len(panels) // columns) * tall + 0.45)
    figure.get_layout_engine().set(wspace=0.06)  # between the ends of two scales
    shown = looks(panels)
    for i, (ax, panel) in enumerate(zip(axes, panels, strict=True)):
        ScoresDisplay(panel).plot(ax, shown=shown)
        same = i % columns and [name for name, _ in panel.rows] == [name for name, _ in panels[i - 1].rows]
        if same:
            ax.tick_params(axis="y", labelleft=False)
    entries = handles(panels)
    wide = sum(len(entry.get_label()) for entry in entries) > 80
    figure.legend(handles=entries, title=note, loc="outside lower center", ncols=min(3 if wide else 5, len(entries)))
    return figure
