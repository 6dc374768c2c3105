"""Draw how far features, the pooled vector and outliers move with the image when it is shifted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from vitprobe.plots import style
from vitprobe.probes.translation import TranslationResult
from vitprobe.probes.translation_pass import POOLED
from vitprobe.probes.translation_sums import COMPARED

PART_HEIGHT = 2.5
"""Inches that a model's part of a page needs."""
AXES = {"x": (0, 1), "y": (1, 0), "xy": (1, 1)}
"""Directions by whether the window goes down, and whether it goes right."""
WITHOUT = "moved_without"
LOOKS: dict[str, dict[str, Any]] = {
    "moved": {"color": style.INK, "marker": "o", "zorder": 5},
    WITHOUT: {"color": "#2b8a7e", "marker": "^", "linestyle": (0, (4, 1.5)), "zorder": 4},
    "nearest": {"color": style.INK, "marker": "x", "linestyle": "", "zorder": 4},
    "unmoved": {"color": style.OUTLIERS, "marker": "s", "linestyle": (0, (6, 1.5, 1, 1.5)), "zorder": 3},
    "image": {"color": style.FAINT, "linestyle": (0, (1, 1)), "zorder": 2},
    "place": {"color": style.FAINT, "linestyle": (0, (7, 3)), "linewidth": 0.8, "zorder": 2},
}
LABELS = {
    "moved": "content's place",
    WITHOUT: "same, no outliers",
    "nearest": "nearest to it",
    "unmoved": "unmoved place",
    "image": "image's other places",
    "place": "other images there",
}
"""What the shifted map is set beside."""
BARS = {
    "content": ("with the content", style.INK, ""),
    "both": ("both", "#5b98c6", "///"),
    "place": ("at their place", style.OUTLIERS, ""),
    "neither": ("neither", "#e8e8e8", ""),
}
MODELS = (
    (style.INK, "o", "-"),
    (style.OUTLIERS, "s", (0, (4, 1.5))),
    ("#2b8a7e", "^", (0, (1, 1))),
    ("#7a5195", "D", (0, (6, 1.5, 1, 1.5))),
    ("#8a6d00", "v", (0, (7, 3))),
    (style.FAINT, "P", (0, (3, 1, 1, 1, 1, 1))),
)
"""Colour, marker and dash of each model of a comparison: told apart in grey."""


@dataclass(frozen=True)
class Scale:
    """Hold the axes that several models share."""

    pixels: tuple[float, float]
    """Smallest and largest shift."""
    error: float
    """Upper end of errors of features."""
    pooled: float
    """Upper end of errors of pooled vectors."""
    has_outliers: bool
    """Whether any model has outliers: then every part has a place for them."""
    axes: tuple[str, ...]
    """Directions that were measured."""


def shared_scale(results: Sequence[TranslationResult]) -> Scale:
    """Return axes that hold what all results show."""
    sides = np.abs(np.concatenate([one.shifts for one in results])).max(axis=1)
    sides = sides[sides > 0]
    names = [COMPARED.index(name) for name in ("moved", "nearest", "unmoved")]
    error = _most([one.errors[:, names] for one in results] + [one.error_intervals[:, names] for one in results])
    first = POOLED.index("error")
    pooled = _most([one.pooled[first] for one in results] + [one.pooled_intervals[first] for one in results])
    axes = tuple(name for name in AXES if any(len(_along(one, name)) for one in results))
    span = (float(sides.min()), float(sides.max())) if len(sides) else (1.0, 2.0)
    outliers = any(one.summary["num_outliers"] for one in results)
    return Scale(span, max(1.08, 1.04 * error), max(0.1, 1.08 * pooled), outliers, axes)


def has_both(result: TranslationResult) -> bool:
    """Tell whether there are errors without outliers to draw beside those with them."""
    return bool(result.summary["num_outliers"]) and bool(np.isfinite(result.errors[1]).any())


def _most(arrays: Sequence[np.ndarray]) -> float:
    values = np.concatenate([array.ravel() for array in arrays])
    return float(values[np.isfinite(values)].max(initial=0))


def _along(result: TranslationResult, axis: str) -> np.ndarray:
    """Return the numbers of the shifts along one direction, shortest first."""
    goes = (result.shifts != 0).astype(int)  # (S, 2)
    found = np.flatnonzero((goes == AXES[axis]).all(axis=1))
    return found[np.argsort(_pixels(result, found), kind="stable")]


def _pixels(result: TranslationResult, which: np.ndarray) -> np.ndarray:
    return np.abs(result.shifts[which]).max(axis=1, initial=0)


def _line(ax: Axes, x: np.ndarray, y: np.ndarray, intervals: np.ndarray | None, **look: Any) -> Line2D:
    """Draw one line, with its intervals where it has them."""
    (line,) = ax.plot(x, y, **look)
    if intervals is not None:
        ax.vlines(x, *intervals.T, color=look["color"], linewidth=0.8, zorder=look.get("zorder", 2) - 0.5)
    return line


def _pixel_axis(ax: Axes, scale: Scale, axis: str) -> None:
    low, high = scale.pixels
    style.log_scale(ax.xaxis, low / 1.25, max(high, 2 * low) * 1.25, most=7)
    ax.set_xlabel(f"shift along {axis} (px)" if axis else "shift (px)")


def _mark_steps(ax: Axes, result: TranslationResult, axis: str, scale: Scale) -> None:
    """Rule the shifts by whole steps, as far as the axis goes, up to 8 of them."""
    step = result.summary["step"][0 if axis == "y" else 1]
    for number in (1, 2, 4, 8):
        if scale.pixels[0] <= number * step <= scale.pixels[1]:
            ax.axvline(number * step, color="#c8c8c8", linewidth=0.6, linestyle=(0, (1, 2)), zorder=0)


def draw_errors(ax: Axes, result: TranslationResult, axis: str, scale: Scale) -> dict[str, Line2D]:
    """Draw the errors of features along one direction, and return the lines by the names of `LOOKS`."""
    along = _along(result, axis)
    x, lines = _pixels(result, along), {}
    kinds = {name: 0 for name in LOOKS} | {WITHOUT: 1}
    for name, look in LOOKS.items():
        if name == WITHOUT and not has_both(result):
            continue
        row = COMPARED.index("moved" if name == WITHOUT else name)
        y, intervals = result.errors[kinds[name], row, along], result.error_intervals[kinds[name], row, along]
        shown = np.isfinite(y)
        if name == "nearest":  # at whole steps it is the same
            shown &= y != result.errors[0, COMPARED.index("moved"), along]
        has_bars = name in ("moved", WITHOUT, "unmoved")  # of the others, bars would only cover these
        lines[name] = _line(ax, x[shown], y[shown], intervals[shown] if has_bars else None, **look)
    if not np.isfinite(result.errors[:, :, along]).any():
        ax.text(0.5, 0.5, "no places in common", ha="center", color=style.FAINT, transform=ax.transAxes)
    ax.axhline(1, color=style.FAINT, linewidth=0.6, zorder=1)
    _mark_steps(ax, result, axis, scale)
    _pixel_axis(ax, scale, axis)
    ax.set_ylim(-0.03, scale.error)
    ax.set_ylabel("distance (1: as chance)")
    step = result.summary["step"][0 if axis == "y" else 1]
    style.set_title(ax, f"features, along {axis}", f"dotted: {step} px steps")
    return lines


def draw_pooled(ax: Axes, result: TranslationResult, scale: Scale) -> list[Line2D]:
    """Draw the error of the pooled vector, a line a direction."""
    lines, row = [], POOLED.index("error")
    for axis, dash, marker in zip(scale.axes, ("-", (0, (4, 1.5)), (0, (1, 1))), "osD", strict=False):
        along = _along(result, axis)
        look = {"color": style.INK, "linestyle": dash, "marker": marker, "label": axis}
        look |= {} if dash == "-" else {"markerfacecolor": "white"}
        x, values = _pixels(result, along), result.pooled[row, along]
        lines.append(_line(ax, x, values, result.pooled_intervals[row, along], **look))
    _pixel_axis(ax, scale, "")
    ax.set_ylim(-0.03 * scale.pooled, 1.35 * scale.pooled)  # with room for the legend
    ax.legend(loc="upper left", ncols=2, handlelength=1.8, columnspacing=1, borderpad=0)
    style.set_title(ax, "pooled vector", "1: as another image")
    return lines


def draw_outliers(ax: Axes, result: TranslationResult) -> None:
    """Draw where the outliers of images shifted by whole steps were before, a bar a shift, and what chance gives."""
    rows = [row for row in result.summary["shifts"] if _is_whole(row["steps"]) and row["num_places"]]
    rows = [row for row in rows if row["outliers"]["content"]["value"] is not None]
    for y, row in enumerate(rows):
        left = 0.0
        for name, (_, colour, hatch) in BARS.items():
            value = row["outliers"][name]["value"]
            ax.barh(y, value, left=left, height=0.7, color=colour, hatch=hatch, edgecolor="white", linewidth=0.4)
            left += value
        chance = row["outliers"]["chance"]["value"]
        for colour, width in (("white", 2.8), ("black", 1.2)):  # seen on dark and on light
            ax.plot([chance, chance], [y - 0.45, y + 0.45], color=colour, linewidth=width)
    ax.set_yticks(range(len(rows)), [_shift_label(row["shift"]) for row in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlim(0, 1)
    style.percent_ticks(ax.xaxis, 2)
    ax.set_xlabel("outliers")
    note = "" if rows else "none" if not result.summary["num_outliers"] else "none seen at whole shifts"
    ax.text(0.5, 0.5, note, ha="center", color=style.FAINT, transform=ax.transAxes)
    style.set_title(ax, "outliers were", "black line: chance")


def _is_whole(steps: Sequence[float]) -> bool:
    return any(steps) and all(float(step).is_integer() for step in steps)


def _shift_label(shift: Sequence[int]) -> str:
    return ", ".join(f"{name} {pixels} px" for name, pixels in zip("yx", shift, strict=True) if pixels)


def handles(results: Sequence[TranslationResult]) -> list[Line2D | Patch]:
    """Return the legend's entries for a model's part of a page."""
    has_outliers, both = any(one.summary["num_outliers"] for one in results), any(map(has_both, results))
    lines = [Line2D([], [], label=LABELS[n], **look) for n, look in LOOKS.items() if both or n != WITHOUT]
    bars = [Patch(facecolor=c, hatch=h, edgecolor="white", label=label) for label, c, h in BARS.values()]
    return [*lines, *(bars if has_outliers else [])]


@style.paper()
def page_part(figure: SubFigure | Figure, result: TranslationResult, *, scale: Scale) -> None:
    """Draw one model: errors of its features by direction, its pooled vector, its outliers where any model has some."""
    columns = [*scale.axes, "pooled", *(["outliers"] if scale.has_outliers else [])]
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    for i, (ax, column) in enumerate(zip(axes, columns, strict=True)):
        if column in AXES:
            draw_errors(ax, result, column, scale)
            if i:
                ax.set_ylabel("")
                ax.tick_params(axis="y", labelleft=False)
        elif column == "pooled":
            draw_pooled(ax, result, scale)
        else:
            draw_outliers(ax, result)
    entries = handles([result])
    columns = {"ncols": 5 if len(entries) > 6 else 3, "handlelength": 2.2, "columnspacing": 1.2}
    figure.legend(handles=entries, loc="outside lower center", **columns)


def compare_lines(ax: Axes, results: Sequence[TranslationResult], axis: str, what: str, scale: Scale) -> list[Line2D]:
    """Draw one of `COMPARED`, or ``pooled``, of all models along one direction; filled marks are whole steps."""
    lines = []
    for i, one in enumerate(results):
        along, look = _along(one, axis), _model_look(i)
        x, whole = _pixels(one, along), [_is_whole(one.summary["shifts"][k]["steps"]) for k in along]
        values, intervals = _quantity(one, what)
        lines.append(_line(ax, x, values[0, along], intervals[along], **look))
        ax.plot(x[whole], values[0, along][whole], **look | {"linestyle": "", "markerfacecolor": look["color"]})
        if has_both(one) and what != "pooled":
            ax.plot(x, values[1, along], **look | {"marker": "", "linewidth": 0.6})
    _pixel_axis(ax, scale, axis)
    top = scale.pooled if what == "pooled" else scale.error
    ax.axhline(1, color=style.FAINT, linewidth=0.6, zorder=1)
    ax.set_ylim(-0.03 * top, top)
    ax.set_ylabel("distance")
    return lines


def _quantity(result: TranslationResult, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Return values by kind, (2, S), or (1, S) of the pooled vector, and the intervals of the first, (S, 2)."""
    if what == "pooled":
        row = POOLED.index("error")
        return result.pooled[row : row + 1], result.pooled_intervals[row]
    row = COMPARED.index(what)
    return result.errors[:, row], result.error_intervals[0, row]


def _model_look(number: int) -> dict[str, Any]:
    colour, marker, dash = MODELS[number % len(MODELS)]
    return {"color": colour, "marker": marker, "linestyle": dash, "markerfacecolor": "white", "zorder": 3}


@style.paper()
def compare(results_by_title: Mapping[str, TranslationResult]) -> Figure | None:
    """Draw several models' errors on the same axes; None for fewer than two."""
    if len(results_by_title) < 2:
        return None
    results = list(results_by_title.values())
    scale = shared_scale(results)
    titles = {
        "moved": ("from the content's place", "0: equal, 1: as chance"),
        "unmoved": ("from the unmoved place", "0: equal, 1: as chance"),
        "pooled": ("pooled vectors", "0: equal, 1: as another image"),
    }
    panels, columns = [(what, axis) for what in titles for axis in scale.axes], len(scale.axes)
    whole, axes = style.panels(len(panels), height=2.1, columns=columns)
    for ax, (what, axis) in zip(axes, panels, strict=True):
        compare_lines(ax, results, axis, what, scale)
        style.set_title(ax, f"{titles[what][0]}, along {axis}", titles[what][1])
    style.label_outer(axes, columns, keep_x=True)
    names = [Line2D([], [], label=style.shorten(t, 40), **_model_look(i)) for i, t in enumerate(results_by_title)]
    filled = Line2D([], [], color=style.FAINT, marker="o", linestyle="", label="whole steps of the model")
    thin = [Line2D([], [], color=style.FAINT, linewidth=0.6, label="without outliers")]
    thin *= any(map(has_both, results))
    whole.legend(handles=[*names, filled, *thin], loc="outside lower center", ncols=3, handlelength=3.5)
    return whole


@style.paper()
def figure(results_by_title: Mapping[str, TranslationResult]) -> Figure:
    """Draw each model's part, one under the other, on shared axes."""
    scale = shared_scale(list(results_by_title.values()))
    whole = style.new_figure(PART_HEIGHT * len(results_by_title))
    parts = whole.subfigures(len(results_by_title), 1, squeeze=False)[:, 0]
    for part, (title, result) in zip(parts, results_by_title.items(), strict=True):
        part.suptitle(style.wrap(title, 100), fontsize=style.LARGE, x=0.01, ha="left", parse_math=False)
        page_part(part, result, scale=scale)
    return whole
