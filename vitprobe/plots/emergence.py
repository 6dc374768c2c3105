"""Draw what a search for emergent artifacts found: a line for each training, beside what the criterion asks for."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vitprobe.plots import style
from vitprobe.probes import emergence

Run = Mapping[str, Any]
"""``name`` and ``blocks``: what `vitprobe.probes.emergence.Emergence.as_dict` gives of each block. Of pictures, whose
objects nobody knows, ``norms`` in its place: the lines of the blocks in the summary of ``norms``."""
ASKED = {"color": style.OUTLIERS, "linewidth": 0.9, "linestyle": (0, (4, 2))}
LOOKS = {
    "highest": {"marker": "o", "color": style.INK, "linestyle": "none"},
    "base": {"marker": "|", "color": style.FAINT, "linestyle": "none", "markersize": 7},
}


def summit(run: Run) -> Mapping[str, Any]:
    """Return the block of a run with the largest 99th percentile of norms over their median."""
    blocks = run.get("blocks") or [_of_norms(line["norm"]) for line in run["norms"]]
    return max(blocks, key=lambda block: block["p99"])


def _of_norms(norm: Mapping[str, float]) -> dict[str, Any]:
    unknown = {"q95": np.nan, "background": np.nan, "background_base": np.nan, "received": [np.nan]}
    return unknown | {"p99": norm["p99"] / norm["median"], "largest": norm["max"] / norm["median"]}


class SearchDisplay:
    """Draw one quantity of every run, from top to bottom in the order given."""

    def __init__(self, runs: Sequence[Run], quantity: str) -> None:
        if quantity not in ("tail", "place", "attention"):
            raise ValueError(f"got {quantity}; allowed are tail, place and attention")
        self.runs, self.quantity = runs, quantity

    @style.paper()
    def plot(self, ax: Axes | None = None) -> "SearchDisplay":
        """Draw into ``ax``, or into a figure of its own."""
        ax = ax or style.new_figure(0.9 + 0.17 * len(self.runs), width=style.WIDTH / 2).add_subplot()
        self.ax_, self.figure_ = ax, ax.figure
        rows, blocks = np.arange(len(self.runs)), [summit(run) for run in self.runs]
        ax.hlines(rows, 0, 1, transform=ax.get_yaxis_transform(), color="#e4e4e4", linewidth=0.6, zorder=0)
        getattr(self, f"_{self.quantity}")(rows, blocks)
        ax.set_yticks(rows, [run["name"] for run in self.runs])
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.tick_params(axis="y", length=0)
        return self

    def _tail(self, rows: np.ndarray, blocks: list[Mapping[str, Any]]) -> None:
        ax = self.ax_
        ends = np.array([[one["q95"], one["largest"]] for one in blocks])  # (n, 2)
        starts = np.where(np.isnan(ends[:, 0]), [one["p99"] for one in blocks], ends[:, 0])
        ax.hlines(rows, starts, ends[:, 1], color=style.BULK, linewidth=2.5)
        ax.plot([one["p99"] for one in blocks], rows, **LOOKS["highest"])
        ax.axvline(emergence.MIN_P99, **ASKED)
        style.log_scale(ax.xaxis, 1, max(1.1 * np.nanmax(ends), 1.2 * emergence.MIN_P99), most=5)
        style.set_title(ax, "norm / median", "95 % to largest; dot: 99 %")

    def _place(self, rows: np.ndarray, blocks: list[Mapping[str, Any]]) -> None:
        ax = self.ax_
        ax.plot([one["background"] for one in blocks], rows, **LOOKS["highest"], clip_on=False)
        ax.plot([one["background_base"] for one in blocks], rows, **LOOKS["base"])
        ax.axvline(emergence.MIN_BACKGROUND, **ASKED)
        ax.set_xlim(0, 1)
        style.percent_ticks(ax.xaxis, 3)
        style.set_title(ax, "on background", "bar: of all patches")

    def _attention(self, rows: np.ndarray, blocks: list[Mapping[str, Any]]) -> None:
        ax = self.ax_
        most = np.array([max(one["received"]) for one in blocks])
        ax.plot(most, rows, **LOOKS["highest"])
        ax.axvline(emergence.MIN_RECEIVED, **ASKED)
        style.log_scale(
            ax.xaxis,
            min(0.5, 0.8 * np.nanmin(most, initial=1)),
            1.3 * max(np.nanmax(most, initial=0), emergence.MIN_RECEIVED),
            most=5,
        )
        style.set_title(ax, "attention received", "× uniform, highest block")


@style.paper()
def draw_search(runs: Sequence[Run]) -> Figure:
    """Draw norms, place and attention of the 1 % of largest norm, or of outliers where there are any.

    Each at the block whose 99th percentile over the median is largest; a dashed line is what the criterion asks for.
    """
    figure = style.new_figure(1.15 + 0.17 * len(runs))
    axes = figure.subplots(1, 3, sharey=True, gridspec_kw={"width_ratios": (1.25, 1, 1.05)})
    for ax, quantity in zip(axes, ("tail", "place", "attention"), strict=True):
        SearchDisplay(runs, quantity).plot(ax)
    entries = [
        Line2D([], [], label="1 % of largest norm, or outliers where norms have two modes", **LOOKS["highest"]),
        Line2D([], [], label="asked for", **ASKED),
    ]
    figure.legend(handles=entries, loc="outside lower center", ncols=2)
    return figure


class GrowthDisplay:
    """Draw the 99th percentile of norms over their median by block: a line a checkpoint, from light to dark."""

    def __init__(self, readings: Sequence[tuple[int, Sequence[Mapping[str, Any]]]]) -> None:
        self.readings = sorted(readings, key=lambda one: one[0])

    @style.paper()
    def plot(self, ax: Axes | None = None) -> "GrowthDisplay":
        """Draw into ``ax``, or into a figure of its own."""
        ax = ax or style.new_figure(2.6, width=style.WIDTH / 2).add_subplot()
        self.ax_, self.figure_ = ax, ax.figure
        shades = np.linspace(0.75, 0.0, len(self.readings))
        ends = {self.readings[0][0], self.readings[-1][0]}
        for shade, (step, blocks) in zip(shades, self.readings, strict=True):
            line = [(one["block"], one["p99"]) for one in blocks]
            ax.plot(*zip(*line, strict=True), "o-", color=str(shade), label=f"{step:,}" if step in ends else None)
        ax.axhline(emergence.MIN_P99, **ASKED)
        style.label_blocks(ax, len(self.readings[0][1]))
        ax.set_ylim(1, None)
        ax.set_ylabel("99 % of norms / median")
        ax.legend(title=f"step ({len(self.readings)} checkpoints)", loc="upper left", ncols=2, handlelength=1.2)
        return self


@style.paper()
def draw_growth(readings: Mapping[str, Sequence[tuple[int, Sequence[Mapping[str, Any]]]]]) -> Figure:
    """Draw the growth of the tail in several trainings beside each other, on one scale; keys are titles."""
    columns = style.num_columns(len(readings))
    figure, axes = style.panels(len(readings), height=2.2, columns=columns)
    for ax, (title, reading) in zip(axes, readings.items(), strict=True):
        GrowthDisplay(reading).plot(ax)
        style.set_title(ax, title)
    highest = max(emergence.MIN_P99, *(one["p99"] for r in readings.values() for _, blocks in r for one in blocks))
    for ax in axes:
        ax.set_ylim(1, 1.3 * highest)
    style.label_outer(axes, columns)
    return figure
