"""Draw object discovery: CorLoc over the settings of LOST, and boxes found beside true ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import Normal, Stroke

from vitprobe.plots import style
from vitprobe.plots.norm_maps import bare

Results = Sequence[tuple[str, Mapping[str, Any]]]
"""(title, summary) of each model."""
Shown = Sequence[tuple[str, Mapping[str, Any], Mapping[str, np.ndarray]]]
"""(title, summary, arrays) of each model."""
WORDS = {"none": "as they are", "image mean": "image mean off"}
FOUND = "#ff8c3a"
"""A box that was found: lighter than `style.OUTLIERS`, so that it shows on dark pictures."""
MOST_EXAMPLES = 6


class SweepDisplay:
    """Draw CorLoc by bias and centring, of one kind of features at one block, as a map with its numbers."""

    def __init__(self, summary: Mapping[str, Any], features: str, block: int, title: str = "") -> None:
        own = [one for one in summary["cells"] if (one["features"], one["block"]) == (features, block)]
        swept = [one for one in own if one["normalise"]]
        self.title, self.place = title, f"{features} of block {block}"
        self.biases = sorted({one["bias"] for one in swept}, reverse=True)
        self.centrings = list(dict.fromkeys(one["centring"] for one in swept))
        self.corloc = np.full((len(self.centrings), len(self.biases)), np.nan)
        for one in swept:
            self.corloc[self.centrings.index(one["centring"]), self.biases.index(one["bias"])] = one["corloc"]
        self.plain = next((one["corloc"] for one in own if not one["normalise"]), None)
        self.whole = summary["whole_image_corloc"]

    @style.paper()
    def plot(self, ax: Axes | None = None, *, limit: float | None = None) -> "SweepDisplay":
        """Draw into ``ax``; ``limit`` is the end of the colour scale of all panels."""
        ax = ax if ax is not None else style.new_figure(1.4).add_subplot()
        self.ax_, self.figure_ = ax, ax.figure
        scale = Normalize(0, limit or float(np.nanmax(self.corloc)) or 1)
        self.image_: AxesImage = ax.imshow(self.corloc, cmap=style.SEQUENTIAL, norm=scale, aspect="auto")
        best = np.unravel_index(np.nanargmax(self.corloc), self.corloc.shape)
        self.texts_ = []
        for (row, col), value in np.ndenumerate(self.corloc):
            red, green, blue, _ = matplotlib.colormaps[style.SEQUENTIAL](scale(value))
            is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
            look = {"color": "white" if is_dark else "black", "weight": "bold" if (row, col) == best else "normal"}
            text = f"{100 * value:.1f}" if value else "0"
            self.texts_.append(ax.text(col, row, text, ha="center", va="center", fontsize=style.SMALL, **look))
        ax.add_patch(Rectangle((best[1] - 0.5, best[0] - 0.5), 1, 1, fill=False, edgecolor=FOUND, linewidth=1.6))
        ax.set_xticks(range(len(self.biases)), [f"{bias:g}".replace("-", "−") for bias in self.biases])
        ax.set_yticks(range(len(self.centrings)), [WORDS[centring] for centring in self.centrings])
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set_xlabel("bias on the products of normalised features (framed: the best of the panel)")
        plain = "" if self.plain is None else f"; LOST as published {style.percent(self.plain)}"
        style.note_above(ax, f"{self.place}{plain}; whole image {style.percent(self.whole)}", color=style.FAINT)
        ax.set_title(style.wrap(self.title, style.num_chars(ax, style.LARGE)), parse_math=False, pad=16)
        return self


@style.paper()
def draw_sweep(results: Results) -> Figure:
    """Draw CorLoc of all settings of all models on one colour scale, in percent; the best of each panel is framed."""
    shown = []
    for title, summary in results:
        for place in dict.fromkeys((one["features"], one["block"]) for one in summary["cells"]):
            shown.append(SweepDisplay(summary, *place, title))
    limit = max(float(np.nanmax(display.corloc)) for display in shown) or 1.0
    rows = max(len(display.centrings) for display in shown)
    figure, axes = style.panels(len(shown), height=0.5 + 0.2 * rows, columns=1)
    for i, (ax, display) in enumerate(zip(axes, shown, strict=True)):
        display.plot(ax, limit=limit)
        if i + 1 < len(shown) and display.biases == shown[i + 1].biases:
            ax.set_xlabel("")
            ax.tick_params(axis="x", labelbottom=False)
    figure.set_figheight(len(shown) * (0.5 + 0.2 * rows) + 0.6)
    bar = figure.colorbar(shown[0].image_, ax=axes, aspect=14 * len(shown), pad=0.015)
    bar.set_label("CorLoc")
    style.percent_ticks(bar.ax.yaxis, 5)
    return figure


class FoundDisplay:
    """Draw one image with true boxes, the box that was found, and the seed."""

    def __init__(self, summary: Mapping[str, Any], arrays: Mapping[str, np.ndarray], image: int) -> None:
        self.picture, self.iou = arrays["example_images"][image], float(arrays["example_iou"][image])
        truth = arrays["example_truth"][image]
        self.truth = truth[np.isfinite(truth).all(axis=1)]
        self.found, self.seed, self.grid = (
            arrays["example_found"][image],
            arrays["example_seeds"][image],
            summary["grid"],
        )

    @style.paper()
    def plot(self, ax: Axes | None = None) -> "FoundDisplay":
        """Draw into ``ax``, or into a figure of its own."""
        ax = ax if ax is not None else style.new_figure(2.4, width=2.4).add_subplot()
        self.ax_, self.figure_, self.boxes_ = ax, ax.figure, []
        height, width = self.picture.shape[:2]
        ax.imshow(self.picture, extent=(0, width, height, 0))
        for box in self.truth:
            self._box(box, {"edgecolor": "white", "linewidth": 1.0})
        if self.found[2] > self.found[0]:
            self._box(self.found, {"edgecolor": FOUND, "linewidth": 1.6, "linestyle": (0, (3, 1.5))})
        row, col = (self.seed + 0.5) / self.grid
        edge = [Stroke(linewidth=2.4, foreground="black"), Normal()]
        ax.plot(col * width, row * height, marker="x", color=FOUND, markersize=5, path_effects=edge)
        ax.set(xlim=(-1, width + 1), ylim=(height + 1, -1))
        bare(ax)
        text = f"IoU {self.iou:.2f}" if self.found[2] > self.found[0] else "no box"
        ax.set_xlabel(text, fontsize=style.SMALL - 1, labelpad=2)
        return self

    def _box(self, box: np.ndarray, look: dict[str, Any]) -> None:
        height, width = self.picture.shape[:2]
        x0, y0, x1, y1 = box * (width, height, width, height)
        under = {"linewidth": look["linewidth"] + 1.4, "edgecolor": "black"}
        for own in (under, look):
            self.boxes_.append(self.ax_.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, **own)))


@style.paper()
def draw_examples(results: Shown) -> Figure:
    """Draw, for each model, the first images with what its best setting finds."""
    num = min(MOST_EXAMPLES, max(len(arrays["example_images"]) for _, _, arrays in results))
    column = min(6.8 / num, 2.2)
    sizes = [arrays["example_images"].shape[1:3] for _, _, arrays in results]
    heights = [column * height / width for height, width in sizes]
    figure = style.new_figure(sum(heights) + 0.32 * len(heights) + 0.35, width=max(column * num + 0.2, 4.4))
    grid = figure.add_gridspec(len(results), num, height_ratios=heights)
    for r, (title, summary, arrays) in enumerate(results):
        axes = [figure.add_subplot(grid[r, c]) for c in range(min(num, len(arrays["example_images"])))]
        for image, ax in enumerate(axes):
            FoundDisplay(summary, arrays, image).plot(ax)
        axes[0].set_title(" ", fontsize=style.NORMAL, pad=3)  # keeps the room
        best = summary["cells"][summary["best"]]
        style.note_above(axes[0], f"{title}: {best['label']}; CorLoc {style.percent(best['corloc'])}")
    handles = [
        Patch(facecolor="none", edgecolor=FOUND, linestyle=(0, (3, 1.5)), linewidth=1.4, label="box found"),
        Patch(facecolor="none", edgecolor="black", linewidth=1.0, label="true boxes (white)"),
        Line2D([], [], color=FOUND, marker="x", linestyle="", markersize=5, label="seed patch"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure
