"""How figures look: sizes, colours, scales and words that all displays share. Nothing here touches global settings."""

import math
import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any

import matplotlib
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
"""For shares: zero is the paper's white, lightness falls evenly, so it prints in grey and needs no hue."""
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


def set_title(ax: Axes, title: str, second: str = "") -> None:
    """Write a panel's title, wrapped to the panel, and a second line in smaller type under it."""
    if second:
        ax.text(0, 1.01, second, transform=ax.transAxes, va="bottom", fontsize=NORMAL, color=FAINT, parse_math=False)
    ax.set_title(wrap(title, num_chars(ax, LARGE)), parse_math=False, pad=4 + (NORMAL + 4) * bool(second))


def num_chars(ax: Axes, size: float) -> int:
    """Return about how many characters of a size in points fit across a panel."""
    inches = ax.get_position().width * ax.figure.get_figwidth()
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


def percent(share: float) -> str:
    """Write a share in percent, with two digits: ``2.4 %``."""
    value = 100 * share
    if 0 < value < 0.001:
        return "< 0.001 %"
    return f"{value:.0f} %" if value >= 10 else f"{value:.2g} %"


def number(value: float) -> str:
    """Write a norm with three digits and no exponent, as far as that can be: ``151``, ``4.02``, ``12300``."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def log_scale(axis: Axis, low: float, high: float) -> None:
    """Make an axis logarithmic from low to high, with plain numbers at 1, 2, 5 where decades alone would be too few."""
    ax = axis.axes
    set_scale, set_limits = (ax.set_xscale, ax.set_xlim) if axis.axis_name == "x" else (ax.set_yscale, ax.set_ylim)
    set_scale("log")
    set_limits(low, high)
    decades = math.log10(high / low)
    steps = (1,) if decades > 3 else (1, 2, 5) if decades > 0.8 else None
    if steps is None:
        ticks = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        axis.set_minor_locator(NullLocator())
    else:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**power for power in powers for step in steps]
        axis.set_minor_locator(LogLocator(subs=tuple(range(2, 10))))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_locator(FixedLocator([t for t in ticks if low <= t <= high]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}"))


def band_handles() -> list[Patch | Line2D]:
    """Return the legend's entries for bands of quantiles, median and maximum."""
    bands = [Patch(color=colour, label=f"{100 * a:g}–{100 * b:g} %") for a, b, colour in reversed(BANDS)]
    return [
        Line2D([], [], color=INK, label="median"),
        *bands,
        Line2D([], [], color=INK, linestyle=":", marker="o", markersize=2.5, label="maximum"),
    ]
