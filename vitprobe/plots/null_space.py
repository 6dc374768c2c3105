"""Draw the spectrum of the value projection, and how much of what it reads of outliers and other patches is lost."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from vitprobe.plots import style
from vitprobe.probes.null_space import NullSpace

Results = Sequence[tuple[str, NullSpace]]
"""(title, result) of each model."""
LOWEST = 1e-4
"""Relative singular values that are smaller are drawn here."""
DEPTHS = "viridis"
"""Of blocks: lightness rises evenly with depth, so it reads in grey."""
MEASURED = {"color": style.INK, "linewidth": 1.8}
"""Look of the measured block, and of its heads in thinner lines."""
LOOKS = (
    {"color": style.OUTLIERS, "linewidth": 1.5, "zorder": 4},
    {"color": style.INK, "linestyle": (0, (4, 1.5)), "zorder": 3},
    {"color": style.FAINT, "linestyle": ":", "zorder": 2},
)
"""Of outliers, other patches and random directions."""
LABELS = ("outliers", "other patches", "random directions")


class NullSpaceDisplay:
    """Draw singular values of all blocks, those of the measured block's heads, and where patches lie among them."""

    def __init__(self, found: NullSpace, title: str) -> None:
        self.found, self.title = found, title

    @style.paper()
    def plot(self, axes: Sequence[Axes] | None = None) -> "NullSpaceDisplay":
        """Draw into three axes, or into a figure of its own."""
        alone = axes is None
        axes = axes if axes is not None else style.new_figure(2.8).subplots(1, 3)
        self.axes_, self.figure_ = list(axes), axes[0].figure
        self._draw_blocks(axes[0])
        self._draw_heads(axes[1])
        self._draw_energy(axes[2])
        axes[0].set_title(" ", pad=4)  # keeps the room
        title = style.shorten(self.title, 2 * style.num_chars(axes[0], style.LARGE))
        style.note_above(axes[0], f"{title} (block {self.found.summary['block']})", fontsize=style.LARGE)
        if alone:
            self.figure_.legend(handles=handles([self.found]), loc="outside lower center", ncols=3)
        return self

    def _draw_blocks(self, ax: Axes) -> None:
        """Draw the singular values of every block's whole value projection, the measured block's over the others."""
        spectrum, block = self.found.spectrum, self.found.summary["block"]
        x = (np.arange(spectrum.shape[1]) + 1) / spectrum.shape[1]
        shades = matplotlib.colormaps[DEPTHS](np.linspace(0.9, 0.15, len(spectrum)))
        self.blocks_ = []
        for i, (values, shade) in enumerate(zip(spectrum, shades, strict=True)):
            look = MEASURED | {"zorder": 3} if i == block else {"color": shade, "linewidth": 0.7}
            self.blocks_ += ax.plot(x, values.clip(LOWEST), **look)
        self._spectrum_axis(ax)
        ax.set_xlabel("share of the directions")
        ax.set_ylabel("singular value\n(× the largest)")

    def _draw_heads(self, ax: Axes) -> None:
        """Draw the singular values of each head of the measured block."""
        x = np.arange(self.found.heads.shape[1]) + 1
        look = MEASURED | {"linewidth": 0.7}
        self.heads_ = [ax.plot(x, values.clip(LOWEST), **look)[0] for values in self.found.heads]
        self._spectrum_axis(ax)
        ax.set_xlim(1 - 0.03 * len(x), 1.03 * len(x))
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.set_xlabel("direction in a head")

    def _spectrum_axis(self, ax: Axes) -> None:
        eps = self.found.summary["eps"]
        ax.axhline(eps, color=style.FAINT, linewidth=0.7, linestyle="--", zorder=0.5)
        style.log_scale(ax.yaxis, LOWEST / 1.5, 1.6, most=5)
        ax.set_yticks([1, 1e-1, 1e-2, 1e-3, LOWEST], ["1", "0.1", "0.01", "0.001", f"≤ {LOWEST:.4f}"])

    def _draw_energy(self, ax: Axes) -> None:
        """Draw which share of patches' squared norm lies along directions of at most a singular value."""
        found, block = self.found, self.found.summary["block"]
        values = found.spectrum[block][::-1].clip(LOWEST)  # rising
        even = np.full((1, len(values)), 1 / len(values))
        self.energy_ = []
        for energy, look in zip(np.concatenate([found.energy, even]), LOOKS, strict=True):
            if np.isnan(energy).any():
                continue
            y = np.cumsum(energy[::-1])
            self.energy_ += ax.step(np.r_[LOWEST / 2, values, 2], np.r_[0, y, y[-1]], where="post", **look)
        ax.axvline(found.summary["eps"], color=style.FAINT, linewidth=0.7, linestyle="--", zorder=0.5)
        style.log_scale(ax.xaxis, LOWEST / 1.5, 1.6)
        ax.set_xticks([LOWEST, 1e-2, 1], [f"≤ {LOWEST:.4f}", "0.01", "1"])
        ax.set_ylim(-0.03, 1.05)
        style.percent_ticks(ax.yaxis)
        ax.set_yticks([0, 0.5, 1])
        ax.set_xlabel("up to singular value\n(× the largest)")
        ax.set_ylabel("squared norm read")
        look = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "right", "va": "bottom"}
        self.note_ = ax.annotate(gains(found), (1, 1), (0, 3), fontsize=style.SMALL, color=style.FAINT, **look)
        self.note_.set_in_layout(False)


def gains(found: NullSpace) -> str:
    """Say how strongly the value projection passes on outliers, other patches and random directions."""
    mean = {name: found.summary["gain"][name]["value"] for name in ("outliers", "others")}
    mean["random"] = found.summary["random"]["gain"]
    known = [f"{name} {value:.2g}" for name, value in mean.items() if value is not None]
    return ("gain: " if found.summary["num_outliers"] else "no outliers; gain: ") + ", ".join(known)


def handles(results: Sequence[NullSpace]) -> list[Line2D]:
    """Return the entries of a legend."""
    has_outliers = any(found.summary["num_outliers"] for found in results)
    shades, eps = matplotlib.colormaps[DEPTHS]([0.9, 0.15]), results[0].summary["eps"]
    lines = [Line2D([], [], label=label, **look) for label, look in zip(LABELS, LOOKS, strict=True)]
    return [
        Line2D([], [], color=shades[0], linewidth=0.9, label="first block"),
        Line2D([], [], color=shades[1], linewidth=0.9, label="last block"),
        Line2D([], [], label="the block named", **MEASURED),
        *(lines if has_outliers else lines[1:]),
        Line2D([], [], color=style.FAINT, linewidth=0.7, linestyle="--", label=f"null below {eps:g}"),
    ]


@style.paper()
def draw_null_space(results: Results) -> Figure:
    """Draw all models, a row each, on the same axes (after Darcet et al., arXiv 2309.16588, figure 14)."""
    figure = style.new_figure(1.75 * len(results) + 0.7)
    axes = figure.subplots(len(results), 3, squeeze=False)
    for i, (row, (title, found)) in enumerate(zip(axes, results, strict=True)):
        NullSpaceDisplay(found, title).plot(row)
        row[1].tick_params(axis="y", labelleft=False)
        if i + 1 < len(results):
            for ax in row:
                ax.set_xlabel("")
    figure.legend(handles=handles([found for _, found in results]), loc="outside lower center", ncols=4)
    return figure
