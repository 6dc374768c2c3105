"""Draw Point-in-Box of models beside controls, and the Patch Scores of images with their true boxes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import Normal, Stroke

from vitprobe.plots import style
from vitprobe.plots.kinds import KindPanel, Mark, draw_kinds
from vitprobe.plots.norm_maps import ALIKE, bare, outline

Results = Sequence[tuple[str, Mapping[str, Any]]]
"""(title, summary) of each model."""
Shown = Sequence[tuple[str, Mapping[str, Any], Mapping[str, np.ndarray]]]
"""(title, summary, arrays) of each model."""
SCORES = "cividis"
"""For cosines over a picture; see `style.NORMS`."""
CLIPPED = 0.005
"""Colours end at this quantile of the scores of patches that are no outliers, and at 1 less it."""
MOST_EXAMPLES = 6
BOX = [Stroke(linewidth=2.2, foreground="black"), Normal()]


def draw_point_in_box(results: Results) -> Figure:
    """Draw how often the patch of highest score lies in a true box, of every model, beside controls."""
    rows = []
    for title, summary in results:
        own = [(kind, one) for kind, one in summary["shares"].items() if one is not None and one["value"] is not None]
        rows.append(
            (title, [Mark(kind, one["value"], one["interval"] and tuple(one["interval"])) for kind, one in own])
        )
    what = " and ".join(dict.fromkeys(summary["reference"] for _, summary in results)).replace("cls", "CLS")
    panel = KindPanel("Point-in-Box", "images whose patch lies in a true box", rows, second=f"cosine with {what}")
    return draw_kinds([panel], note="bars: 95 % interval over images")


class ScoreMapDisplay:
    """Draw the Patch Scores of one image, its true boxes, its outliers and the patch of highest score."""

    def __init__(self, arrays: Mapping[str, np.ndarray], image: int) -> None:
        self.picture, self.scores = arrays["example_images"][image], arrays["example_scores"][image]
        self.outliers, self.top = arrays["example_outliers"][image], arrays["example_top"][image]
        self.is_hit = bool(arrays["example_in_box"][image])
        truth = arrays["example_truth"][image]
        self.truth = truth[np.isfinite(truth).all(axis=1)]

    @style.paper()
    def plot(self, ax: Axes | None = None, *, limits: tuple[float, float] | None = None) -> "ScoreMapDisplay":
        """Draw the map; ``limits`` are the ends of the colour scale of all maps."""
        ax = ax if ax is not None else style.new_figure(2.4, width=2.4).add_subplot()
        self.ax_, self.figure_ = ax, ax.figure
        (height, width), grid = self.picture.shape[:2], np.array(self.scores.shape)
        scale = Normalize(*(limits or (self.scores.min(), self.scores.max())))
        extent = (0, width, height, 0)
        self.image_ = ax.imshow(self.scores, cmap=SCORES, norm=scale, extent=extent, interpolation="nearest")
        outline(ax, self.outliers, (height, width))
        for x0, y0, x1, y1 in self.truth * (width, height, width, height):
            box = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="white", linewidth=1.0, linestyle="--")
            box.set_path_effects(BOX)
            ax.add_patch(box)
        row, col = (self.top + 0.5) / grid
        look = {"marker": "o", "color": style.OUTLIERS, "markeredgecolor": "white", "markersize": 5.5}
        (self.top_,) = ax.plot(col * width, row * height, **look)
        ax.set(xlim=(-1, width + 1), ylim=(height + 1, -1))
        bare(ax)
        ax.set_xlabel("in a box" if self.is_hit else "in no box", fontsize=style.SMALL - 1, labelpad=2)
        return self


@style.paper()
def draw_maps(results: Shown) -> Figure:
    """Draw the first images, and under them each model's scores, on one colour scale that outliers do not set."""
    num = min(MOST_EXAMPLES, max(len(arrays["example_images"]) for _, _, arrays in results))
    rows: list[tuple[str, Any, Any]] = []  # pictures stand wherever they change
    for i, (title, summary, arrays) in enumerate(results):
        if i == 0 or not _same_pictures(results[i - 1][2], arrays):
            rows.append(("", None, arrays))
        rows.append((title, summary, arrays))
    column = min(6.3 / num, 2.2)
    heights = [column * arrays["example_images"].shape[1] / arrays["example_images"].shape[2] for _, _, arrays in rows]
    figure = style.new_figure(sum(heights) + 0.3 * len(heights) + 0.45, width=max(column * num + 0.7, 4.6))
    grid = figure.add_gridspec(len(rows), num + 1, height_ratios=heights, width_ratios=[1] * num + [0.05])
    limits = score_limits([arrays for _, _, arrays in results])
    for r, (title, summary, arrays) in enumerate(rows):
        axes = [figure.add_subplot(grid[r, c]) for c in range(min(num, len(arrays["example_images"])))]
        if summary is None:
            for ax, image in zip(axes, arrays["example_images"], strict=False):
                ax.imshow(image)
                bare(ax)
            continue
        shown = [ScoreMapDisplay(arrays, i).plot(ax, limits=limits) for i, ax in enumerate(axes)]
        axes[0].set_title(" ", fontsize=style.NORMAL, pad=3)  # keeps the room
        top = summary["shares"]["top"]["value"]
        style.note_above(axes[0], f"{title}: top patch in a box in {style.percent(top)} of images")
    bar = figure.colorbar(shown[0].image_, cax=figure.add_subplot(grid[1:, num]), extend="both")
    words = {"cls": "CLS"}
    references = dict.fromkeys(words.get(one["reference"], "the mean patch") for _, one, _ in results)
    bar.set_label(f"cosine with {' or '.join(references)}")
    figure.legend(handles=_handles(results), loc="outside lower center", ncols=3)
    return figure


def score_limits(models: Sequence[Mapping[str, np.ndarray]]) -> tuple[float, float]:
    """Return the ends of the colour scale: quantiles of the scores of all patches that are no outliers."""
    scores = [one["example_scores"][~one["example_outliers"]] for one in models]
    every = np.concatenate(scores) if any(map(len, scores)) else np.zeros(1)
    low, high = np.quantile(every, (CLIPPED, 1 - CLIPPED))
    return float(low), float(max(high, low + 1e-6))


def _same_pictures(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    pictures = [arrays["example_images"].astype(float) for arrays in (one, other)]
    return pictures[0].shape == pictures[1].shape and np.abs(pictures[0] - pictures[1]).mean() < ALIKE


def _handles(results: Shown) -> list[Line2D | Patch]:
    top = {"marker": "o", "color": style.OUTLIERS, "markeredgecolor": "white", "markersize": 5.5, "linestyle": ""}
    handles = [
        Line2D([], [], label="patch of highest score", **top),
        Patch(facecolor="none", edgecolor="black", linestyle="--", linewidth=1.0, label="true boxes (white)"),
    ]
    if any(arrays["example_outliers"].any() for _, _, arrays in results):
        handles.append(Patch(facecolor="none", edgecolor="black", linewidth=1.0, label="outliers (white)"))
    return handles
