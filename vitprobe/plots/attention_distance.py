"""Draw mean attention distance: each head by block, beside uniform and permuted attention, and what patches miss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from vitprobe.plots import style
from vitprobe.plots.curves import DASHES, MARKERS
from vitprobe.plots.kinds import TEAL
from vitprobe.probes.attention_distance import KINDS, OWN, PARTS, AttentionDistanceResult

LOOKS = (
    {"marker": "o", "color": style.INK, "markerfacecolor": style.INK},
    {"marker": "o", "color": style.OUTLIERS, "markerfacecolor": "white"},
)
"""Of `KINDS`: filled, open."""
SHARES = {"CLS": (style.INK, ""), "registers": (style.BULK, ""), "outliers": (style.OUTLIERS, "////")}
"""(colour, hatch) of each of `PARTS` that is drawn."""
APART = 0.19
"""Half of what lies between the dots of both kinds, in blocks."""
COLOURS = (style.INK, style.OUTLIERS, TEAL, "#7a5195", "#8a6d00", style.FAINT)
PART_HEIGHT = 3.3
"""Inches that a model's part of a figure needs."""


@dataclass(frozen=True)
class Scale:
    """Hold the ends of axes that all models share."""

    pixels: float
    share: float


def shared_scale(results: Sequence[AttentionDistanceResult]) -> Scale:
    """Return axes that hold all models' distances, with the distance of uniform attention, and all their shares."""
    measured = [x for r in results for x in (r.uniform[0, :, 0], r.distance[:, 0], r.distance_permuted[:, 0, 0])]
    far = [float(np.max(x, initial=1.0, where=np.isfinite(x))) for x in measured]
    most = [float(_bars(result).sum(axis=0).max()) for result in results]
    return Scale(1.05 * max(far), min(1.0, 1.15 * max(0.04, *most)))


def _bars(result: AttentionDistanceResult) -> np.ndarray:
    """Return shares of the whole attention, (3, L) by `SHARES`, heads averaged, of all patches."""
    return result.shares[0, [PARTS.index(part) for part in SHARES]].mean(axis=-1)


class DistanceDisplay:
    """Draw the distance of every head by block, a dot a head, and what chance gives."""

    def __init__(self, result: AttentionDistanceResult, scale: Scale | None = None) -> None:
        self.result, self.scale = result, scale or shared_scale([result])

    @style.paper()
    def plot(self, ax: Axes | None = None) -> "DistanceDisplay":
        """Draw into ``ax``, or into a figure of its own."""
        ax = ax if ax is not None else style.new_figure(2.6, width=style.WIDTH / 2).add_subplot()
        self.ax_, self.figure_, self.dots_ = ax, ax.figure, []
        found, x = self.result, np.arange(len(self.result.summary["blocks"]), dtype=float)
        low, high = found.distance_permuted[:, 0, 0]  # (L, H) each
        has = np.isfinite(low).any(axis=-1)
        ends = np.where(np.isfinite(low), low, np.inf).min(-1), np.where(np.isfinite(high), high, -np.inf).max(-1)
        for block in x[has].astype(int):
            span = ends[1][block] - ends[0][block]
            ax.bar(block, span, bottom=ends[0][block], width=0.94, color="0.84", zorder=0)
        self.uniform_ = ax.axhline(found.uniform[0, 0, 0], color=style.FAINT, linestyle=(0, (4, 2)), linewidth=0.9)
        both = len(found.distance) > 1
        for kind, look in zip(range(len(found.distance)), LOOKS, strict=False):
            at = x + (2 * kind - 1) * APART * both
            spots = np.repeat(at, found.distance.shape[-1])
            dots = {"linestyle": "none", "markersize": 3.2, "markeredgewidth": 0.7, "alpha": 0.9}
            self.dots_ += ax.plot(spots, found.distance[kind, 0].ravel(), **dots, **look)
        ax.set_ylim(0, self.scale.pixels)
        ax.set_ylabel("distance, pixels")
        label_measured(ax, found)
        return self


class ShareDisplay:
    """Draw what part of the patches' attention falls on CLS, registers and outliers, by block, heads averaged."""

    def __init__(self, result: AttentionDistanceResult, scale: Scale | None = None) -> None:
        self.result, self.scale = result, scale or shared_scale([result])

    @style.paper()
    def plot(self, ax: Axes | None = None) -> "ShareDisplay":
        """Draw into ``ax``, or into a figure of its own."""
        ax = ax if ax is not None else style.new_figure(1.5, width=style.WIDTH / 2).add_subplot()
        self.ax_, self.figure_, self.bars_ = ax, ax.figure, []
        base = np.zeros(len(self.result.summary["blocks"]))
        for share, (colour, hatch) in zip(_bars(self.result), SHARES.values(), strict=True):
            look = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.4, "width": 0.8}
            self.bars_.append(ax.bar(np.arange(len(base)), share, bottom=base, **look))
            base = base + share
        ax.set_ylim(0, self.scale.share)
        ax.set_ylabel("attention on\nprefix, outliers")
        style.percent_ticks(ax.yaxis, 3)
        label_measured(ax, self.result)
        return self


def label_measured(ax: Axes, result: AttentionDistanceResult) -> None:
    """Label an x axis with the blocks that were measured."""
    blocks = result.summary["blocks"]
    style.label_blocks(ax, len(blocks))
    ticks = ax.get_xticks().astype(int)
    ax.set_xticks(ticks, [str(blocks[i]) for i in ticks])


@style.paper()
def page_part(figure: SubFigure, result: AttentionDistanceResult, *, scale: Scale) -> None:
    """Draw one model's part of a page: distances of its heads above, shares of prefix tokens and outliers below."""
    above, below = figure.subplots(2, 1, height_ratios=(2.6, 1), sharex=True)
    DistanceDisplay(result, scale).plot(above)
    ShareDisplay(result, scale).plot(below)
    above.set_xlabel("")
    above.tick_params(axis="x", labelbottom=False)
    style.set_title(above, "mean attention distance of each head", f"{_note(result)}; own patch: 0 px", panels=1)
    is_wide = figure.bbox.width > 1.6 * figure.bbox.height  # alone in its row
    figure.legend(handles=_handles([result]), loc="outside lower center", ncols=4 if is_wide else 2)


def _note(result: AttentionDistanceResult) -> str:
    summary = result.summary
    if "absent" in summary:
        return summary["absent"]
    asked = summary["queries"]
    few = f"{asked['asking patches']} of " if asked["asking patches"] < asked["of"] else "all "
    return f"{summary['num_images']} images, {few}{asked['of']:,} patches as queries"


def _handles(results: Sequence[AttentionDistanceResult]) -> list[Line2D | Patch]:
    """Return the entries of a legend, of what is there in any of the models."""
    both = any(len(result.distance) > 1 for result in results)
    handles = [
        Line2D([], [], linestyle="none", markersize=3.5, label=f"a head, {kind}" if both else "a head", **look)
        for kind, look in zip(KINDS[: 1 + both], LOOKS, strict=False)
    ]
    handles.append(Line2D([], [], color=style.FAINT, linestyle=(0, (4, 2)), linewidth=0.9, label="uniform attention"))
    handles.append(Patch(color="0.84", label="places permuted"))
    for part, (colour, hatch) in SHARES.items():
        if any(result.shares[0, PARTS.index(part)].any() for result in results):
            handles.append(Patch(facecolor=colour, hatch=hatch, edgecolor="white", label=f"on {part}"))
    return handles


class LocalityDisplay:
    """Draw the locality of models by depth: mean over heads, with its interval over images; open marks: no outliers."""

    def __init__(self, results: Mapping[str, AttentionDistanceResult]) -> None:
        self.results = results

    @style.paper()
    def plot(self, ax: Axes | None = None) -> "LocalityDisplay":
        """Draw into ``ax``, or into a figure of its own."""
        ax = ax if ax is not None else style.new_figure(2.4).add_subplot()
        self.ax_, self.figure_, self.lines_ = ax, ax.figure, []
        for i, (title, result) in enumerate(self.results.items()):
            depth = (np.array(result.summary["blocks"]) + 1) / result.summary["num_blocks"]
            colour = COLOURS[i % len(COLOURS)]
            look = {"linestyle": DASHES[i % len(DASHES)], "marker": MARKERS[i % len(MARKERS)], "color": colour}
            short = style.shorten(title, 24)
            for kind, label, fill in zip(KINDS, (short, f"{short}, {KINDS[1]}"), (colour, "white"), strict=True):
                if (of_kind := result.summary["averages"].get(kind)) is None:
                    continue
                own = of_kind[OWN[0]]
                values = np.array(own["locality"], float)  # None becomes nan
                low, high = np.array(own["locality_ci"], float).T
                self.lines_ += ax.plot(depth, values, label=label, markerfacecolor=fill, **look)
                ax.vlines(depth, low, high, color=colour, linewidth=0.7)
        ax.axhline(0, color=style.FAINT, linewidth=0.7)
        ax.set(xlabel="block, as a part of the model's depth", ylabel="locality index", xlim=(0, 1.03))
        return self


@style.paper()
def compare(results_by_title: Mapping[str, AttentionDistanceResult]) -> Figure | None:
    """Draw several models side by side on shared scales, and their locality together; None for fewer than two."""
    if len(results_by_title) < 2:
        return None
    results = list(results_by_title.values())
    columns = min(style.num_columns(len(results)), len(results))
    rows = -(-len(results) // columns)
    figure = style.new_figure(rows * 2.9 + 2.5)
    parts = figure.subfigures(rows + 1, 1, height_ratios=[2.9] * rows + [2.3])
    scale = shared_scale(results)
    for r in range(rows):
        own = list(results_by_title.items())[r * columns : (r + 1) * columns]
        grid = parts[r].subplots(2, columns, height_ratios=(2.6, 1), squeeze=False)
        for c in range(columns):
            if c >= len(own):
                grid[0, c].set_axis_off()
                grid[1, c].set_axis_off()
                continue
            title, result = own[c]
            above, below = grid[0, c], grid[1, c]
            DistanceDisplay(result, scale).plot(above)
            ShareDisplay(result, scale).plot(below)
            above.set_xlabel("")
            above.tick_params(axis="x", labelbottom=False)
            for ax in (above, below) if c else ():
                ax.set_ylabel("")
                ax.tick_params(axis="y", labelleft=False)
            style.set_title(above, title, _note(result), panels=1)
        if r == rows - 1:
            parts[r].legend(handles=_handles(results), loc="outside lower center", ncols=4)
    last = LocalityDisplay(results_by_title).plot(parts[-1].subplots()).ax_
    style.set_title(
        last, "locality of attention", "1 - distance / uniform distance; mean over heads, 95 % interval", panels=1
    )
    parts[-1].legend(*last.get_legend_handles_labels(), loc="outside right center")
    return figure


def figure(results_by_title: Mapping[str, AttentionDistanceResult]) -> Figure:
    """Draw several models as `compare` does, one model as its part of a page."""
    several = compare(results_by_title)
    return several if several is not None else _alone(*next(iter(results_by_title.items())))


@style.paper()
def _alone(title: str, result: AttentionDistanceResult) -> Figure:
    one = style.new_figure(PART_HEIGHT + 0.3, width=0.7 * style.WIDTH)
    one.suptitle(style.printable(title), x=0.02, ha="left", parse_math=False)
    page_part(one.subfigures(), result, scale=shared_scale([result]))
    return one
