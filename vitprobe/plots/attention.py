"""Attention maps beside the images they belong to, and over them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from vitprobe.plots import style
from vitprobe.plots.norm_maps import bare, outline
from vitprobe.probes.attention import AttentionMaps

Results = Sequence[tuple[str, AttentionMaps]]
"""(title, result) of each model."""
MAPS = "inferno"
"""For attention: black where nothing is attended to, lightness rises evenly, so it reads in grey."""
MOST_IMAGES = 6
NARROWEST = 5.2
"""Inches that titles and notes need, however few images there are."""
ALIKE = 8.0
"""Images whose pixels differ by less than this many of 255 grey levels, on average, show the same crop."""
OVERLAY_DPI = 100
"""Overlays are saved with this, so that a pixel of the image is a pixel of the file."""
CLIPPED = 0.995
"""The colour scale ends at this quantile of all maps: a single sink token would leave the rest black."""


def multiples(found: AttentionMaps) -> np.ndarray:
    """Return the maps in multiples of the uniform share 1 / T, so that models can be compared: (N, L, H, r, c)."""
    return found.maps * found.num_tokens


def color_limit(models: Sequence[AttentionMaps]) -> float:
    """Return the end of the colour scale that all models share, in multiples of the uniform share."""
    return max(1.0, max(float(np.quantile(multiples(found), CLIPPED)) for found in models))


class AttentionMapDisplay:
    """Draw one attention map, in multiples of the uniform share, with outlier patches outlined."""

    def __init__(
        self, found: AttentionMaps, image: int, *, block: int = 0, head: int = 0, rollout: bool = False
    ) -> None:
        self.found, self.image = found, image
        own = found.rollout[image] if rollout else found.maps[image, block, head]
        self.map = own * found.num_tokens
        """(rows, cols)"""
        self.prefix = float(found.prefix_mass[image, block, head].sum())
        self.is_rollout = rollout

    def plot(
        self, ax: Axes | None = None, *, limit: float | None = None, upsample: str = "nearest"
    ) -> "AttentionMapDisplay":
        """Draw the map. ``limit``: end of the colour scale; ``upsample``: ``nearest`` or ``bilinear``."""
        self.ax_ = ax if ax is not None else style.new_figure(3, width=3).add_subplot()
        self.figure_ = self.ax_.figure
        height, width = self.found.images.shape[1:3]
        scale = Normalize(0, limit if limit is not None else float(self.map.max()))
        extent = (0, width, height, 0)
        self.image_ = self.ax_.imshow(self.map, cmap=MAPS, norm=scale, interpolation=upsample, extent=extent)
        self.outlines_ = outline(self.ax_, self.found.outliers[self.image], (height, width))
        bare(self.ax_)
        return self


@style.paper()
def draw_maps(results: Results, *, upsample: str = "nearest") -> Figure:
    """Draw the first images in a row and under them each model's maps, on one colour scale.

    Models give a row each; where several blocks or heads were asked for, a row for each head of the last block, or for
    each block. The weight on prefix tokens, which a map does not show, stands under it.
    """
    rows = []
    for title, found in results:
        rows += [Row(title, found, block, head, False) for block, head in _rows(found)]
        rows += [Row(f"{title}: rollout", found, 0, 0, True)] if len(found.rollout) else []
    shown: list[Row | AttentionMaps] = []  # pictures stand wherever they change
    for i, row in enumerate(rows):
        if i == 0 or not _same_pictures(rows[i - 1].found, row.found):
            shown.append(row.found)
        shown.append(row)
    num = min(MOST_IMAGES, len(results[0][1].images))
    column = min(6.1 / num, 2.4)
    sizes = [(row if isinstance(row, AttentionMaps) else row.found).images.shape[1:3] for row in shown]
    heights = [column * h / w for h, w in sizes]
    figure = style.new_figure(sum(heights) + 0.36 * len(heights) + 0.6, width=max(column * num + 0.9, NARROWEST))
    grid = figure.add_gridspec(len(heights), num + 1, height_ratios=heights, width_ratios=[1] * num + [0.05])
    limit = color_limit([row.found for row in rows if not row.is_rollout])
    for r, row in enumerate(shown):
        axes = [figure.add_subplot(grid[r, c]) for c in range(num)]
        if isinstance(row, AttentionMaps):
            _pictures(axes, row)
        else:
            _row(axes, figure.add_subplot(grid[r, num]), row, limit=limit, upsample=upsample)
    note = "white outlines: outlier patches; prefix: attention on CLS and\nregisters, which a map does not show"
    figure.supxlabel(f"{note}; {_scale_note(results)}", fontsize=style.SMALL, color=style.FAINT)
    return figure


@dataclass(frozen=True)
class Row:
    """Name one row of maps."""

    title: str
    found: AttentionMaps
    block: int
    """Position in the arrays."""
    head: int
    is_rollout: bool


def _same_pictures(one: AttentionMaps, other: AttentionMaps) -> bool:
    if one.images.shape != other.images.shape:
        return False
    return np.abs(one.images.astype(float) - other.images).mean() < ALIKE


def _rows(found: AttentionMaps) -> list[tuple[int, int]]:
    """Return which (block, head) of the arrays get a row: every head of the last block, or every block."""
    blocks, heads = found.maps.shape[1:3]
    return [(blocks - 1, h) for h in range(heads)] if heads > 1 else [(b, 0) for b in range(blocks)]


def _row(line: Sequence[Axes], bar_ax: Axes, row: Row, *, limit: float, upsample: str) -> None:
    found = row.found
    limit = _rollout_limit(found) if row.is_rollout else limit
    shown = []
    for i, ax in enumerate(line):
        display = AttentionMapDisplay(found, i, block=row.block, head=row.head, rollout=row.is_rollout)
        shown.append(display.plot(ax, limit=limit, upsample=upsample))
        if not row.is_rollout and found.prefix_mass.shape[-1]:
            ax.set_xlabel(f"prefix {style.percent(display.prefix)}", fontsize=style.SMALL - 1, labelpad=2)
    where = "" if row.is_rollout else f", block {found.summary['blocks'][row.block]}{_head(found, row.head)}"
    line[0].set_title(" ", fontsize=style.NORMAL, pad=3)  # keeps the room
    style.note_above(line[0], f"{row.title} ({found.summary['query']}{where})")
    figure = line[0].figure
    bar = figure.colorbar(shown[0].image_, cax=bar_ax, extend="neither" if row.is_rollout else "max")
    bar.set_label("x uniform share")


def _head(found: AttentionMaps, head: int) -> str:
    asked = found.summary["head"]
    return ", heads averaged" if asked == "mean" else f", head {head if asked == 'all' else asked}"


def _rollout_limit(found: AttentionMaps) -> float:
    return float(found.rollout.max() * found.num_tokens)


def _scale_note(results: Results) -> str:
    note = f"colours end at the\n{CLIPPED:.1%} quantile of all maps" + (
        ", one scale for all" if len(results) > 1 else ""
    )
    rolled = any(len(found.rollout) for _, found in results)
    return note + ("; of a rollout at its own maximum" if rolled else "")


def _pictures(axes: Sequence[Axes], found: AttentionMaps) -> None:
    chars = style.num_chars(axes[0], style.SMALL - 1) - 3
    for ax, image, name in zip(axes, found.images, found.names, strict=False):
        ax.imshow(image)
        bare(ax)
        short = style.shorten(str(name).replace("\\", "/").rsplit("/", 1)[-1], chars)
        ax.set_xlabel(short, fontsize=style.SMALL - 1, labelpad=2, parse_math=False)


@style.paper()
def draw_share(results: Results) -> Figure:
    """Draw where the query's attention goes, by block: to prefix tokens, to outliers, to the other patches."""
    columns = style.num_columns(len(results))
    figure, axes = style.panels(len(results), height=2.1, columns=columns)
    for ax, (title, found) in zip(axes, results, strict=True):
        prefix = np.array(found.summary["prefix_share"]).mean(axis=-1)  # (L,) heads averaged
        outlier = np.array(found.summary["outlier_share"]).mean(axis=-1)
        parts = [("CLS and registers", prefix, style.INK), ("outlier patches", outlier, style.OUTLIERS)]
        parts.append(("other patches", 1 - prefix - outlier, style.BULK))
        base = np.zeros_like(prefix)
        x = np.arange(len(prefix))
        for (label, share, color), hatch in zip(parts, ("", "///", ""), strict=True):
            ax.bar(x, share, bottom=base, color=color, hatch=hatch, edgecolor="white", linewidth=0.4, label=label)
            base = base + share
        ax.set(ylim=(0, 1), ylabel="share of attention", xlabel="block", xticks=x)
        ax.set_xticks(x[:: max(1, len(x) // 12)], [found.summary["blocks"][i] for i in x[:: max(1, len(x) // 12)]])
        style.percent_ticks(ax.yaxis)
        style.set_title(ax, title, f"from {found.summary['query']}", panels=columns)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


@style.paper()
def draw_overlay(found: AttentionMaps, image: int, *, upsample: str = "nearest", alpha: float = 0.6) -> Figure:
    """Lay one map over its image at the image's own size, without any frame: the last block's first head kept."""
    height, width = found.images.shape[1:3]
    figure = Figure(figsize=(width / OVERLAY_DPI, height / OVERLAY_DPI), dpi=OVERLAY_DPI)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.imshow(found.images[image])
    own = found.maps[image, -1, 0]
    limit = float(np.quantile(own, CLIPPED)) or 1.0
    scale, extent = Normalize(0, limit), (-0.5, width - 0.5, height - 0.5, -0.5)
    ax.imshow(own, cmap=MAPS, norm=scale, alpha=alpha, interpolation=upsample, extent=extent)
    ax.set_axis_off()
    return figure


FIGURES = {"maps": draw_maps, "share": draw_share}
