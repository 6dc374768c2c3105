"""Draw what registers cost: FLOPs and parameters over their number."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator

from vitprobe.plots import style
from vitprobe.plots.curves import DASHES, MARKERS
from vitprobe.probes.flops import RegisterCosts

Results = Sequence[tuple[str, RegisterCosts]]
"""(title, result) of each model at each size."""
COLOURS = (style.INK, style.OUTLIERS, "#2b8a7e", "#7a5195", style.FAINT)
ABREAST = 0.05
"""Ticks nearer than this share of the axis leave their label out."""


class CostsDisplay:
    """Draw the increase of one quantity, ``flops`` or ``parameters``, over the number of registers: a line each."""

    def __init__(self, results: Results, quantity: str) -> None:
        self.results, self.quantity = list(results), quantity
        if quantity == "parameters":  # they depend on the size of the images by a table of positions alone
            self.shown = sorted({one.name: i for i, (_, one) in enumerate(self.results)}.values())
        else:
            self.shown = list(range(len(self.results)))

    @style.paper()
    def plot(self, ax: Axes | None = None) -> "CostsDisplay":
        """Draw into ``ax``, or into a figure of its own."""
        ax = ax if ax is not None else style.new_figure(2.6, width=style.WIDTH / 2).add_subplot()
        self.ax_, self.figure_, self.lines_ = ax, ax.figure, []
        looks, highest = looks_of(len(self.results)), 0.0
        for i in self.shown:
            costs = self.results[i][1]
            values = costs.flops_increase if self.quantity == "flops" else costs.parameters_increase
            self.lines_ += ax.plot(costs.numbers, values, **looks[i])
            highest = max(highest, float(values.max()))
        ax.set_ylim(-0.03 * (highest or 0.01), 1.08 * (highest or 0.01))
        style.percent_ticks(ax.yaxis)
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        self._label_numbers(ax)
        ax.set_ylabel("increase over no registers")
        title = {"flops": "FLOPs", "parameters": "parameters"}[self.quantity]
        second = "of one image" if self.quantity == "flops" else "of the vision tower"
        style.set_title(ax, title, second, panels=2)
        return self

    def _label_numbers(self, ax: Axes) -> None:
        numbers = np.unique(np.concatenate([costs.numbers for _, costs in self.results])).tolist()
        last = max(numbers[-1], 1)
        ax.set_xlim(-0.03 * last, 1.03 * last)
        kept = numbers[:1]
        for number in numbers[1:]:
            kept += [number] * (number - kept[-1] >= ABREAST * last)
        ax.xaxis.set_major_locator(FixedLocator(kept))
        ax.set_xlabel("number of registers")


def looks_of(number: int) -> list[dict[str, Any]]:
    """Return how each of so many lines looks: a colour, a dash and a marker of its own."""
    return [
        {
            "color": COLOURS[i % len(COLOURS)],
            "linestyle": DASHES[i % len(DASHES)],
            "marker": MARKERS[i % len(MARKERS)],
            "markerfacecolor": "white" if i % 2 else COLOURS[i % len(COLOURS)],
            "markersize": max(5.5 - 0.6 * i, 2.5),  # of lines that coincide, both are seen
        }
        for i in range(number)
    ]


@style.paper()
def draw_costs(results: Results) -> Figure:
    """Draw by how much FLOPs and parameters grow (as Darcet et al., arXiv 2309.16588, figure 12)."""
    figure, axes = style.panels(2, height=2.5)
    for ax, quantity in zip(axes, ("flops", "parameters"), strict=True):
        CostsDisplay(results, quantity).plot(ax)
    axes[1].set_ylabel("")
    looks = zip(results, looks_of(len(results)), strict=True)
    handles = [Line2D([], [], label=style.printable(title), **look) for (title, _), look in looks]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 3), handlelength=3.5)
    return figure
