"""Draw how alike position embeddings are: a small map for each position, and similarity by distance."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from vitprobe.plots import style
from vitprobe.plots.kinds import TEAL
from vitprobe.probes.position_similarity import LINES, PositionResult

Scale = tuple[float, float]
PART_HEIGHT = 3.7
"""Inches that a model's part of a page needs."""
MOST = 7
"""Rows, and columns, of positions that are drawn, evenly over the grid: figure 7 of the paper has 7 x 7."""
LOOKS = (
    {"color": style.INK, "linestyle": "-", "marker": "o", "markersize": 2.5},
    {"color": TEAL, "linestyle": (0, (4, 1.5)), "marker": "s", "markersize": 2.5},
    {"color": style.OUTLIERS, "linestyle": (0, (1, 1)), "marker": "^", "markersize": 2.5},
)
"""Of `LINES`."""


def shared_scale(results: Sequence[PositionResult]) -> Scale:
    """Return the ends of the colour scale: from the least similarity of all models, or 0, to 1."""
    return min([0.0, *(float(one.similarity.min()) for one in results if one.similarity.size)]), 1.0


@style.paper()
def page_part(figure: SubFigure, result: PositionResult, *, scale: Scale) -> None:
    """Draw one model's maps of similarity, and under them similarity by distance."""
    if "absent" in result.summary:
        return say_absent(figure, result.summary["absent"])
    is_wide = figure.bbox.width > 1.6 * figure.bbox.height  # alone in its row
    top, bottom = figure.subplots(1, 2) if is_wide else figure.subplots(2, 1, height_ratios=(3, 1))
    image = draw_maps(top, result, scale=scale)
    style.set_title(top, f"position similarity{', table resized' if is_resized(result) else ''}", words(result))
    figure.colorbar(image, ax=top, label="cosine", fraction=0.05, pad=0.02, shrink=0.9)
    _draw_by_distance(bottom, result, scale=scale)
    figure.legend(*bottom.get_legend_handles_labels(), loc="outside lower center", ncols=3, columnspacing=1.2)
    return None


def draw_maps(ax: Axes, result: PositionResult, *, scale: Scale) -> AxesImage:
    """Draw, for up to 7 x 7 positions, the similarity of each with all positions; ticks name the position."""
    rows, cols = result.similarity.shape[:2]
    down, across = (np.unique(np.linspace(0, side - 1, min(side, MOST)).round().astype(int)) for side in (rows, cols))
    gap = max(1, round(min(rows, cols) / 8))
    canvas = np.full((len(down) * (rows + gap) - gap, len(across) * (cols + gap) - gap), np.nan)
    for i, row in enumerate(down):
        for j, col in enumerate(across):
            part = slice(i * (rows + gap), i * (rows + gap) + rows), slice(j * (cols + gap), j * (cols + gap) + cols)
            canvas[part] = result.similarity[row, col]
    image = ax.imshow(canvas, cmap=style.NORMS, vmin=scale[0], vmax=scale[1], interpolation="nearest")
    ax.set_xticks(np.arange(len(across)) * (cols + gap) + (cols - 1) / 2, [str(col) for col in across])
    ax.set_yticks(np.arange(len(down)) * (rows + gap) + (rows - 1) / 2, [str(row) for row in down])
    ax.set_xlabel("column of the patch")
    ax.set_ylabel("row of the patch")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return image


def words(result: PositionResult) -> str:
    """Say how similarity goes with nearness (rank correlation), beside shuffled positions."""
    found = result.summary["distance"]
    if "absent" in found:
        return found["absent"]
    beside = max(map(abs, found["shuffled_interval"]))
    return f"nearness: ρ = {found['value']:.2f} (shuffled ±{beside:.2f})"


def is_resized(result: PositionResult) -> bool:
    """Tell whether the table is known to have been resized."""
    return bool(result.summary.get("resized"))


def say_absent(figure: SubFigure, why: str) -> None:
    """Say in an empty panel why there is nothing in it."""
    ax = figure.subplots()
    ax.set_axis_off()
    style.set_title(ax, "position similarity")
    ax.text(0.5, 0.5, style.wrap(why, 44), ha="center", va="center", color=style.FAINT, parse_math=False)


def _draw_by_distance(ax: Axes, result: PositionResult, *, scale: Scale) -> None:
    for name, look, values in zip(LINES, LOOKS, result.by_distance, strict=True):
        there = np.flatnonzero(np.isfinite(values))
        ax.plot(there + 1, values[there], label=name, **look)
    ax.set_ylim(scale[0] - 0.05, scale[1] + 0.05)
    ax.set_xlim(0.5, result.by_distance.shape[1] + 0.5)
    ax.set_xlabel("distance (patches)")
    ax.set_ylabel("mean cosine")
    ax.xaxis.set_major_locator(MaxNLocator(7, integer=True, min_n_ticks=1))
    ax.yaxis.set_major_locator(MaxNLocator(3))


@style.paper()
def compare(results_by_title: Mapping[str, PositionResult]) -> Figure | None:
    """Draw several models' maps and curves on one scale; None with fewer than two that have positions."""
    there = {title: one for title, one in results_by_title.items() if "absent" not in one.summary}
    if len(there) < 2:
        return None
    columns = style.num_columns(len(there))
    rows, scale = -(-len(there) // columns), shared_scale(list(there.values()))
    figure = style.new_figure(rows * (style.WIDTH / columns + 1.4) + 0.4)
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=(2.6, 1) * rows)
    upper = [figure.add_subplot(grid[2 * (i // columns), i % columns]) for i in range(len(there))]
    lower = [figure.add_subplot(grid[2 * (i // columns) + 1, i % columns]) for i in range(len(there))]
    for i, (top, bottom, (title, one)) in enumerate(zip(upper, lower, there.items(), strict=True)):
        image = draw_maps(top, one, scale=scale)
        whole = f"{title}, resized" if is_resized(one) else title
        style.set_title(
            top, style.shorten(whole, style.num_chars(top, style.LARGE)), words(one).removeprefix("nearness: ")
        )
        _draw_by_distance(bottom, one, scale=scale)
        if i % columns:
            top.set_ylabel("")
            bottom.set_ylabel("")
            bottom.tick_params(axis="y", labelleft=False)
    figure.colorbar(image, ax=upper, label="cosine similarity", fraction=0.04, pad=0.02)
    handles, labels = lower[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure
