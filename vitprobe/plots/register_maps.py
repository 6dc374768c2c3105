"""Draw what CLS and each register attend to: in images, on average over images, and how far their maps overlap."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from vitprobe.plots import style
from vitprobe.plots.attention import ALIKE, CLIPPED, MAPS
from vitprobe.plots.norm_maps import bare, outline
from vitprobe.probes.register_maps import KINDS, RegisterMaps

Results = Sequence[tuple[str, RegisterMaps]]
"""(title, result) of each model."""
SHOWN = (0, 6, 8, 12)
"""Of many registers, those that Darcet et al. show (arXiv 2309.16588, figure 9)."""
FEW = 4
"""So many registers are all shown."""
WRITTEN = 9
"""Matrices of at most so many queries have their numbers written in them."""
TALLEST = 2.8
"""Inches of a colour bar."""
PANELS = ("same image", "positions shuffled", "different images")
"""What is drawn of `KINDS`."""


def chosen(found: RegisterMaps, registers: Sequence[int] = ()) -> list[int]:
    """Return which queries are shown: CLS, and of the registers those asked for, or all of few, `SHOWN` of many."""
    number = found.summary["num_registers"]
    wanted = registers or (range(number) if number <= FEW else SHOWN)
    first = len(found.queries) - number
    return [*range(first), *(first + k for k in wanted if k < number)]


def limit_of(maps: Sequence[np.ndarray]) -> float:
    """Return the end of a colour scale that many maps share, in multiples of the uniform share."""
    return max(1.0, max(float(np.quantile(one, CLIPPED)) for one in maps))


@dataclass(frozen=True)
class Line:
    """Name one row of maps."""

    title: str
    """Above the row; empty for none."""
    found: RegisterMaps
    query: int | None
    """Position among the queries; None for the pictures."""


class QueryMapDisplay:
    """Draw one query's map of one image, or its mean over images, in multiples of the uniform share."""

    def __init__(self, found: RegisterMaps, query: int, image: int | None) -> None:
        self.found, self.image = found, image
        own = found.mean_maps[query] if image is None else found.maps[image, query]
        self.map = own * found.num_tokens
        """(rows, cols)"""

    def plot(self, ax: Axes | None = None, *, limit: float | None = None) -> "QueryMapDisplay":
        """Draw into ``ax``, or into a figure of its own; ``limit``: end of the colour scale."""
        self.ax_ = ax if ax is not None else style.new_figure(3, width=3).add_subplot()
        self.figure_ = self.ax_.figure
        height, width = self.found.images.shape[1:3]
        scale = Normalize(0, limit if limit is not None else float(self.map.max()))
        look = {"cmap": MAPS, "norm": scale, "interpolation": "nearest", "extent": (0, width, height, 0)}
        self.image_ = self.ax_.imshow(self.map, **look)
        self.outlines_ = None
        if self.image is not None:
            self.outlines_ = outline(self.ax_, self.found.outliers[self.image], (height, width))
        bare(self.ax_)
        return self


@style.paper()
def draw_queries(results: Results, registers: Sequence[int] = ()) -> Figure:
    """Draw the first images, and under them each model's maps, a row a query; all on one colour scale."""
    lines = _lines(results, registers)
    num = min(len(line.found.images) for line in lines)
    column = min(5.3 / num, 1.3)
    tall = [column * line.found.images.shape[1] / line.found.images.shape[2] for line in lines]
    figure = style.new_figure(sum(tall) + 0.05 * len(lines) + 0.25 * len(results) + 0.75, width=column * num + 1.7)
    figure.set_layout_engine("compressed")  # of panels of fixed sides
    grid = figure.add_gridspec(len(lines), num, height_ratios=tall)
    maps = [line.found.maps[:num, line.query] * line.found.num_tokens for line in lines if line.query is not None]
    limit, image, every = limit_of(maps), None, []
    for r, line in enumerate(lines):
        axes = [figure.add_subplot(grid[r, c]) for c in range(num)]
        every += axes
        for i, ax in enumerate(axes):
            if line.query is None:
                _picture(ax, line.found, i)
            else:
                image = QueryMapDisplay(line.found, line.query, i).plot(ax, limit=limit).image_
        if line.query is not None:
            share = style.percent(float(line.found.prefix[line.query].sum()))
            _label(axes[0], f"{line.found.queries[line.query]}\nprefix {share}")
        if line.title:
            axes[0].set_title(" ", fontsize=style.NORMAL, pad=3)  # keeps the room
            style.note_above(axes[0], line.title)
    _bar(figure, image, every, sum(tall)).set_label("attention, × uniform share")
    note = "prefix: attention on CLS and registers, mean over all images, which a map does not show\n"
    note += "white outlines: outlier patches; " if any(found.outliers.any() for _, found in results) else ""
    note += f"one scale for all; colours end at the {CLIPPED:.1%} quantile of the maps"
    figure.supxlabel(note, fontsize=style.SMALL, color=style.FAINT)
    return figure


def _bar(figure: Figure, image: AxesImage, axes: Sequence[Axes], height: float) -> Colorbar:
    """Add the colour bar of panels that are so many inches high together; of tall figures it is shorter than they."""
    length = min(height, TALLEST)
    return figure.colorbar(image, ax=axes, extend="max", shrink=length / height, aspect=10 * length, pad=0.02)


def _lines(results: Results, registers: Sequence[int]) -> list[Line]:
    """List rows: pictures wherever they change, then a model's queries, its title above the first."""
    lines: list[Line] = []
    for i, (title, found) in enumerate(results):
        if i == 0 or not _same_pictures(results[i - 1][1], found):
            lines.append(Line("", found, None))
        above = f"{title} (block {found.summary['block']}, heads averaged)"
        lines += [Line(above if k == 0 else "", found, q) for k, q in enumerate(chosen(found, registers))]
    return lines


def _same_pictures(one: RegisterMaps, other: RegisterMaps) -> bool:
    if one.images.shape != other.images.shape:
        return False
    return np.abs(one.images.astype(float) - other.images).mean() < ALIKE


def _picture(ax: Axes, found: RegisterMaps, image: int) -> None:
    ax.imshow(found.images[image])
    bare(ax)
    name = str(found.names[image]).replace("\\", "/").rsplit("/", 1)[-1]
    ax.set_title(" ", fontsize=style.SMALL, pad=2)  # keeps the room
    style.note_above(ax, style.shorten(name, style.num_chars(ax, style.SMALL - 1)), fontsize=style.SMALL - 1)


def _label(ax: Axes, text: str) -> None:
    look = {"rotation": 0, "ha": "right", "va": "center", "fontsize": style.SMALL, "labelpad": 4}
    ax.set_ylabel(text, **look)


@style.paper()
def draw_means(results: Results, registers: Sequence[int] = ()) -> Figure:
    """Draw each query's map averaged over all images (as Darcet et al., figure 16), all on one colour scale."""
    shown = [chosen(found, registers) for _, found in results]
    num = max(len(queries) for queries in shown)
    column = min(6.0 / num, 1.3)
    tall = [column * found.images.shape[1] / found.images.shape[2] for _, found in results]
    width = max(column * num + 0.9, 3.4)
    figure = style.new_figure(sum(tall) + 0.36 * len(results) + 0.3, width=width)
    figure.set_layout_engine("compressed")
    grid = figure.add_gridspec(len(results), num, height_ratios=tall)
    limit = limit_of([found.mean_maps[q] * found.num_tokens for _, found in results for q in range(len(found.queries))])
    image, every = None, []
    for r, ((title, found), queries) in enumerate(zip(results, shown, strict=True)):
        for c, query in enumerate(queries):
            ax = figure.add_subplot(grid[r, c])
            every.append(ax)
            image = QueryMapDisplay(found, query, None).plot(ax, limit=limit).image_
            ax.set_xlabel(found.queries[query], fontsize=style.SMALL, labelpad=2)
            if c == 0:
                ax.set_title(" ", fontsize=style.NORMAL, pad=3)  # keeps the room
                style.note_above(ax, f"{title} (block {found.summary['block']})")
    _bar(figure, image, every, sum(tall)).set_label("attention, × uniform share")
    numbers = sorted({found.summary["num_images"] for _, found in results})
    note = f"mean over {' and '.join(map(str, numbers))} images, heads averaged; one scale for all"
    figure.supxlabel(note, fontsize=style.SMALL, color=style.FAINT)
    return figure


class OverlapDisplay:
    """Draw the overlaps of every two queries, of one kind: a matrix."""

    def __init__(self, found: RegisterMaps, kind: str) -> None:
        self.found, self.kind = found, kind
        self.matrix = found.cosine[KINDS.index(kind)]
        """(Q, Q)"""

    @style.paper()
    def plot(self, ax: Axes | None = None) -> "OverlapDisplay":
        """Draw into ``ax``, or into a figure of its own; colours go from 0 to 1."""
        self.ax_ = ax if ax is not None else style.new_figure(2.6, width=3).add_subplot()
        self.figure_, size = self.ax_.figure, len(self.matrix)
        names = [name.replace("register ", "") for name in self.found.queries]
        self.image_ = self.ax_.imshow(self.matrix, cmap=style.SEQUENTIAL, vmin=0, vmax=1, interpolation="nearest")
        self.texts_ = []
        if size <= WRITTEN:
            for (row, col), value in np.ndenumerate(self.matrix):
                colour = "white" if value > 0.55 else "black"
                text = f"{value:.2f}" if np.isfinite(value) else "-"
                look = {"ha": "center", "va": "center", "fontsize": style.SMALL - (size > 6), "color": colour}
                self.texts_.append(self.ax_.text(col, row, text, **look))
        step = 1 if size <= WRITTEN else 4
        ticks = [q for q in range(size) if not names[q].isdecimal() or int(names[q]) % step == 0]
        ticks = ticks if step == 1 else [q for q in ticks if names[q] != "0"]  # it would touch CLS
        for axis in (self.ax_.xaxis, self.ax_.yaxis):
            axis.set_ticks(ticks, [names[q] for q in ticks])
        self.ax_.spines[:].set_visible(False)
        self.ax_.tick_params(length=0)
        return self


@style.paper()
def draw_overlaps(results: Results) -> Figure:
    """Draw overlaps in the same image beside both controls: positions shuffled, and different images.

    Models with one query have nothing to compare, and are named below.
    """
    rows = [(title, found) for title, found in results if len(found.queries) > 1]
    figure = style.new_figure(2.35 * len(rows) + 0.6)
    grid = figure.add_gridspec(len(rows), len(KINDS))
    image, every = None, []
    for r, (title, found) in enumerate(rows):
        for c, (kind, panel) in enumerate(zip(KINDS, PANELS, strict=True)):
            ax = figure.add_subplot(grid[r, c])
            every.append(ax)
            image = OverlapDisplay(found, kind).plot(ax).image_
            ax.set_xlabel("register" if found.summary["num_registers"] else "")
            second = f"{panel} ({found.summary['num_compared']})" if kind == "between" else panel
            style.note_above(ax, second, fontsize=style.NORMAL, color=style.FAINT)
            ax.set_title(" ", fontsize=style.LARGE, pad=8 + style.NORMAL)  # keeps the room
            if c == 0:
                place = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom"}
                text = style.printable(title)
                look = {"fontsize": style.LARGE, "parse_math": False}
                ax.annotate(text, (0, 1), (0, 6 + style.NORMAL), **place, **look).set_in_layout(False)
    shrink = 0.9 if len(rows) < 2 else 1.8 / len(rows)
    figure.colorbar(image, ax=every, shrink=shrink, aspect=18).set_label("cosine of two maps over patches")
    alone = [title for title, found in results if len(found.queries) < 2]
    note = "mean over images, heads averaged"
    note += "".join(f"\n{style.printable(title)}: no registers, nothing to compare" for title in alone)
    figure.supxlabel(note, fontsize=style.SMALL, color=style.FAINT)
    return figure
