"""How figures look: sizes, colours, scales and words that all displays share. Nothing here touches global settings."""

import math
import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

WIDTH = 7.0
"""Width of a figure in inches: the text of a one-column paper."""
SMALL, NORMAL, LARGE = 7, 8, 9
"""Font sizes in points: notes, labels, titles."""

BULK, OUTLIERS, INK, FAINT = "#8fb8d9", "#c8450b", "#0b2a4a", "#707070"
"""Ordinary tokens light, outliers darker, lines darkest: told apart in grey, and by readers who see no red or green."""
BANDS = ((0.01, 0.99, "#dbe8f3"), (0.05, 0.95, "#a9c9e2"), (0.25, 0.75, "#5b98c6"))
"""Bands of quantiles, widest and lightest first: (from, to, colour)."""
SEQUENTIAL = "magma_r"
"""For shares: from pale to black with evenly falling lightness, so it prints in grey and needs no hue; one image of
many still differs from none."""
NORMS = "cividis"
"""For norms over a picture: lightness rises evenly, hardly differs for colour-blind readers, and leaves white for
outlines."""

RC: dict[str, Any] = {
    "font.size": NORMAL,
    "axes.titlesize": LARGE,
    "axes.labelsize": NORMAL,
    "axes.titlelocation": "left",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "hatch.linewidth": 0.5,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "vitprobe",
}


def paper() -> AbstractContextManager[None]:
    """Set fonts and lines for a paper inside a ``with`` block, or a decorated function; use it around saving too."""
    return matplotlib.rc_context(RC)


def new_figure(height: float, *, width: float = WIDTH) -> Figure:
    """Make an empty figure that pyplot does not know of, so that nothing need be closed."""
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def num_columns(panels: int) -> int:
    """Return how many panels stand side by side."""
    return 1 if panels == 1 else 3 if panels in (3, 5, 6, 9) else 2


def panels(number: int, *, height: float, columns: int | None = None) -> tuple[Figure, list[Axes]]:
    """Make a figure of ``number`` panels, each ``height`` inches high."""
    columns = columns or num_columns(number)
    rows = -(-number // columns)
    figure = new_figure(rows * height + 0.3)
    grid = figure.add_gridspec(rows, columns)
    return figure, [figure.add_subplot(grid[i // columns, i % columns]) for i in range(number)]


def label_outer(axes: Sequence[Axes], columns: int, *, keep_x: bool = False) -> None:
    """Keep tick labels and axis labels of a grid of panels with shared scales only on its left and lower rim."""
    for i, ax in enumerate(axes):
        if i % columns:
            ax.set_ylabel("")
            ax.tick_params(axis="y", labelleft=False)
        if i + columns < len(axes) and not keep_x:
            ax.set_xlabel("")
            ax.tick_params(axis="x", labelbottom=False)


def set_title(ax: Axes, title: str, second: str = "", *, panels: float = 1) -> None:
    """Write a title, wrapped to the width of so many panels, and a second line in smaller type under it."""
    if second:
        note_above(ax, second, fontsize=NORMAL, color=FAINT)
    ax.set_title(wrap(title, int(panels * num_chars(ax, LARGE))), parse_math=False, pad=4 + (NORMAL + 4) * bool(second))


def note_above(ax: Axes, text: str, **look: Any) -> None:
    """Write a line above a panel that may be longer than the panel is wide, without moving other panels."""
    place = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom"}
    ax.annotate(printable(text), (0, 1), (0, 2), parse_math=False, **place, **look).set_in_layout(False)


def num_chars(ax: Axes, size: float) -> int:
    """Return about how many characters of a size in points fit across a panel."""
    inches = 1.15 * ax.get_position().width * ax.figure.bbox.width / ax.figure.dpi  # the layout widens panels later
    return max(int(inches * 72 / (0.56 * size)), 8)


def wrap(text: str, chars: int) -> str:
    """Break a text into lines of at most ``chars`` characters, as far as it can be read by the font."""
    return "\n".join(textwrap.wrap(printable(text), chars, break_on_hyphens=True)) or " "


def shorten(text: str, chars: int) -> str:
    """Leave out the middle of a text that is longer than ``chars``."""
    text = printable(text)
    if len(text) <= chars:
        return text
    tail = (chars - 1) // 2
    return f"{text[: chars - 1 - tail]}…{text[len(text) - tail :]}"


def printable(text: str) -> str:
    """Replace what the font cannot draw (names may be of any script, or of broken bytes) by a question mark."""
    known = _glyphs(findfont(FontProperties()))
    return "".join(c if ord(c) in known and c.isprintable() else "?" for c in text)


@lru_cache(maxsize=4)
def _glyphs(path: str) -> frozenset[int]:
    return frozenset(get_font(path).get_charmap())


@dataclass(frozen=True)
class Bins:
    """Hold the bins of a drawn histogram: one axis for all that is drawn together."""

    edges: np.ndarray
    """(n + 1,) edges that are aimed at; each histogram's own lie on the nearest edges of its finer counts."""
    is_log: bool

    @classmethod
    def over(cls, low: float, high: float, *, number: int, is_log: bool) -> "Bins":
        """Divide a span evenly, or evenly in its logarithm."""
        return cls((np.geomspace if is_log else np.linspace)(low, high, number + 1), is_log)

    def gather(self, edges: np.ndarray, counts: np.ndarray, *, cut: float | None) -> tuple[np.ndarray, np.ndarray]:
        """Join fine bins: return edges (m + 1,), of which ``cut`` is one, and counts (m,)."""
        wanted = self.edges.copy()
        if cut is not None:
            wanted[1 + np.abs(wanted[1:-1] - cut).argmin()] = cut
        at = np.unique(np.searchsorted(edges, wanted).clip(0, len(edges) - 1))
        return edges[at], np.diff(np.concatenate([[0], np.cumsum(counts)])[at])


def percent(share: float) -> str:
    """Write a share in percent, with two digits: ``2.4 %``."""
    value = 100 * share
    if 0 < value < 0.001:
        return "< 0.001 %"
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:#.2g} %"


def percent_ticks(axis: Axis, ticks: int = 4) -> None:
    """Label an axis of shares in percent, without needless zeros."""
    axis.set_major_locator(MaxNLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g} %"))


def number(value: float) -> str:
    """Write a norm with three digits and no exponent, as far as that can be: ``151``, ``4.02``, ``12300``."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def log_scale(axis: Axis, low: float, high: float, *, most: int = 9) -> None:
    """Make an axis logarithmic from low to high, with plain numbers at ``most`` 1, 2, 5 of every
    decade, else 1, 3, else decades alone; at even steps where the axis is short.
    """
    ax = axis.axes
    set_scale, set_limits = (ax.set_xscale, ax.set_xlim) if axis.axis_name == "x" else (ax.set_yscale, ax.set_ylim)
    set_scale("log")
    set_limits(low, high)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    if high / low < 6:
        ticks = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        axis.set_minor_locator(NullLocator())
    else:
        for steps in ((1, 2, 5), (1, 3), (1,)):
            ticks = [step * 10.0**power for power in powers for step in steps]
            if sum(low <= t <= high for t in ticks) <= most:
                break
        axis.set_minor_locator(LogLocator(subs=tuple(range(2, 10))))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_locator(FixedLocator([t for t in ticks if low <= t <= high]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}"))


def label_blocks(ax: Axes, num_blocks: int, *, has_final_norm: bool = False) -> None:
    """Label an x axis with block numbers, and with the final norm at its end if it is shown."""
    step = max(1, math.ceil(num_blocks / 8))
    ticks = [(float(i), str(i)) for i in range(0, num_blocks, step)]
    ticks += [(num_blocks + 0.8, "final\nnorm")] * has_final_norm
    ax.set_xticks(*zip(*ticks, strict=True))
    ax.set_xlim(-0.5, num_blocks - 0.5 + 1.8 * has_final_norm)
    ax.set_xlabel("block")


def band_handles(maximum: str = ":") -> list[Patch | Line2D]:
    """Return the legend's entries for bands of quantiles, median and maximum (its line style)."""
    bands = [Patch(color=colour, label=f"{100 * a:g}–{100 * b:g} %") for a, b, colour in reversed(BANDS)]
    return [
        Line2D([], [], color=INK, label="median"),
        *bands,
        Line2D([], [], color=INK, linestyle=maximum, marker="o", markersize=2.5, label="maximum"),
    ]
