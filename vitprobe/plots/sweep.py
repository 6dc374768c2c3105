"""Draw variants over their number of registers: outliers, the tail of norms, held-out measures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vitprobe.plots import style
from vitprobe.plots.curves import KNN, TAIL, measure, scale
from vitprobe.probes.comparison import VariantResult, compare

Results = Sequence[VariantResult]
Row = Mapping[str, Any]
FEWEST = 4
"""A sweep is drawn of at least so many numbers of registers."""
LOOKS = ({"color": style.INK, "marker": "o"}, {"color": "#2b8a7e", "marker": "s", "linestyle": (0, (4, 1.5))})
"""Of the first family and of a second, without denoising."""
ASIDE = 0.07
"""How far apart lines stand, so that their intervals do not cover each other; numbers of registers are 1 apart."""


@dataclass(frozen=True)
class Series:
    """Name a line of a panel."""

    value: Callable[[Row], float | None]
    interval: Callable[[Row], Sequence[float | None]] | None = None
    label: str = ""
    look: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Panel:
    """Name what one panel draws of the rows of `compare`."""

    title: str
    second: str
    kind: str
    """See `Quantity`."""
    series: tuple[Series, ...]


HOLLOW = {"markerfacecolor": "white", "linewidth": 0.8}
OUTLIERS = Panel(
    "outlier patches",
    "bars: 95 % interval over images",
    "share",
    (
        Series(lambda row: row["outlier_fraction"], lambda row: row["outlier_fraction_ci"], "last block"),
        Series(
            lambda row: row["highest"]["outlier_fraction"],
            lambda row: row["highest"]["outlier_fraction_ci"],
            "block that has most of them",
            HOLLOW,
        ),
    ),
)
NORMS = Panel(TAIL.title, TAIL.second, TAIL.kind, (Series(lambda row: row["p99_over_median"]),))


class SweepDisplay:
    """Draw a panel: the number of registers in categories, a line for each series and family."""

    def __init__(self, results: Results, panel: Panel) -> None:
        self.panel = panel
        self.numbers = sorted({one.num_registers for one in results})
        pairs = sorted(zip(results, compare(results), strict=True), key=lambda pair: pair[0].num_registers)
        families = dict.fromkeys(one.family for one in results)
        self.families = [[row for one, row in pairs if one.family == family] for family in families]

    @style.paper()
    def plot(self, ax: Axes | None = None) -> "SweepDisplay":
        """Draw into ``ax``, or into a figure of its own."""
        ax = ax or style.new_figure(2.6, width=style.WIDTH / 2).add_subplot()
        self.ax_, self.figure_, self.lines_ = ax, ax.figure, []
        number = len(self.families) * len(self.panel.series)
        every: list[np.ndarray] = []
        for f, rows in enumerate(self.families):
            for s, series in enumerate(self.panel.series):
                aside = ASIDE * (f * len(self.panel.series) + s - (number - 1) / 2)
                x = np.array([self.numbers.index(row["num_registers"]) for row in rows]) + aside
                look = {**LOOKS[f % len(LOOKS)], **(series.look or {}), "zorder": 3 - s}
                every += self._line(x, rows, series, look)
        ax.set_xticks(range(len(self.numbers)), self.numbers)
        ax.set_xlim(-0.5, len(self.numbers) - 0.5)
        ax.set_xlabel("number of registers")
        scale(ax, np.concatenate(every), self.panel.kind)
        style.set_title(ax, self.panel.title, self.panel.second)
        return self

    def _line(self, x: np.ndarray, rows: Sequence[Row], series: Series, look: dict[str, Any]) -> list[np.ndarray]:
        """Draw one line with its intervals; returns all that the axis must hold."""
        values = _floats(series.value(row) for row in rows)
        self.lines_ += self.ax_.plot(x, values, **look)
        if series.interval is None:
            return [values]
        ends = np.stack([_floats(series.interval(row)) for row in rows])  # (n, 2)
        self.ax_.vlines(x, ends[:, 0], ends[:, 1], color=look["color"], linewidth=0.9, zorder=2)
        return [values, ends.ravel()]


def _floats(values: Any) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], float)


def measure_panel(name: str) -> Panel:
    """Return the panel of a held-out measure of the finished variants."""
    quantity = KNN if name == "knn" else measure(name)
    return Panel(quantity.title, quantity.second, quantity.kind, (Series(lambda row: row["measures"].get(name)),))


def handles(results: Results) -> list[Line2D]:
    """Return the entries of a legend: the families where there are several, and the lines of the first panel."""
    families = {one.family: one.title.partition(", ")[2] for one in results}
    found = []
    if len(families) > 1:
        named = next(filter(None, families.values()), "")  # the first family is that without the other's "no"
        titles = [title or named.removeprefix("no ") for title in families.values()]
        found = [Line2D([], [], label=t, **LOOKS[i % len(LOOKS)]) for i, t in enumerate(titles)]
    return found + [
        Line2D([], [], label=one.label, **{**LOOKS[0], "color": style.FAINT, **(one.look or {})})
        for one in OUTLIERS.series
    ]


@style.paper()
def draw_sweep(results: Results) -> Figure:
    """Draw outliers, the tail of norms and held-out measures over R (as Darcet et al., arXiv 2309.16588, figure 8)."""
    names = [results[0].curve.measure_name] + ["knn"] * any(one.curve.has_knn for one in results)
    panels = [OUTLIERS, NORMS, *map(measure_panel, names)]
    figure, axes = style.panels(len(panels), height=2.1, columns=3 if len(panels) == 3 else 2)
    for ax, panel in zip(axes, panels, strict=True):
        SweepDisplay(results, panel).plot(ax)
    figure.legend(handles=handles(results), loc="outside lower center", ncols=4, handlelength=3.5)
    return figure
