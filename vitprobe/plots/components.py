"""Draw the first principal component of patch features under the images it belongs to."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke

from vitprobe.plots import style
from vitprobe.plots.norm_maps import bare, draw_pictures, outline, same_pictures
from vitprobe.probes.components import FITS, LIMIT, Components

Results = Sequence[tuple[str, Components]]
"""(title, result) of each model."""
DIVERGING = "PuOr_r"
"""From purple over white to orange: told apart by readers who see no red or green, and the middle is the lightest."""
SCALE = 0.9
"""Inches that the colour scale takes beside the maps."""
POINTS = {"resid_post": "block {block}", "final_norm": "after the final norm"}


class ComponentDisplay:
    """Draw the component's scores of the first images, outlier patches outlined; ``fit`` is one of `FITS`."""

    def __init__(self, found: Components, title: str, *, fit: str = FITS[0]) -> None:
        self.found, self.title, self.fit = found, title, fit

    @style.paper()
    def plot(self, ax: Sequence[Axes] | None = None) -> "ComponentDisplay":
        """Draw one map into each of the axes ``ax``, as many as there are images, or pictures and maps in a figure."""
        alone = ax is None
        if ax is None:
            rows = _rows([(self.title, self.found)])[1]
            draw_pictures(rows[0], self.found)
            ax = rows[1]
        self.ax_, self.figure_ = list(ax), ax[0].figure
        height, width = self.found.example_images.shape[1:3]
        look = {"cmap": DIVERGING, "vmin": -LIMIT, "vmax": LIMIT, "interpolation": "nearest"}
        maps = self.found.example_maps[FITS.index(self.fit)]
        self.images_, self.outlines_ = [], []
        for one, scores, outliers in zip(self.ax_, maps, self.found.example_outliers, strict=True):
            self.images_.append(one.imshow(scores, extent=(0, width, height, 0), **look))
            self.outlines_.append(_fine(outline(one, outliers, (height, width)), one, outliers.shape[1]))
            bare(one)
        chars = int(72 * (self.figure_.get_figwidth() - SCALE) / (0.54 * style.NORMAL))
        text = style.wrap(f"{self.title} ({self.words()})", chars)
        self.ax_[0].set_title("\n".join(" " for _ in text.splitlines()), fontsize=style.NORMAL, pad=3)  # keeps the room
        look = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom"}
        self.note_ = self.ax_[0].annotate(text, (0, 1), (0, 2), parse_math=False, **look)
        self.note_.set_in_layout(False)  # it may be longer than the first map is wide
        if alone:
            _bar(self)
        return self

    def words(self) -> str:
        """Say what the title's second part says: where, how much of the variance, how far outliers stand out."""
        summary = self.found.summary
        point = POINTS[summary["point"]].format(**summary)
        text = f"{point}, {style.percent(summary['variance'][self.fit]['value'])} of the variance"
        area = summary["auroc"][self.fit]["value"]
        return f"{text}, no outliers" if area is None else f"{text}, AUROC {area:.2f}"


def _fine(lines: LineCollection, ax: Axes, columns: int) -> LineCollection:
    """Thin the outlines of patches that are only a few points wide, so that their colours stay visible."""
    cell = 72 * ax.get_position().width * ax.figure.get_figwidth() / columns  # points
    lines.set_linewidth(min(0.7, 0.18 * cell))
    lines.set_path_effects([Stroke(linewidth=min(1.5, 0.4 * cell), foreground="black"), Normal()])
    return lines


def _rows(results: Results) -> tuple[Figure, list[list[Axes]]]:
    """Make a figure with a row of axes for pictures wherever they change, and one for each model's maps."""
    rows = []
    for i, (_, found) in enumerate(results):
        rows += [found] * (2 if i == 0 or not same_pictures(results[i - 1][1], found) else 1)
    most = max(len(found.example_images) for found in rows)
    column = min(6.1 / most, 2.2)
    heights = [min(column * found.example_images.shape[1] / found.example_images.shape[2], 2.6) for found in rows]
    figure = style.new_figure(sum(heights) + 0.25 * len(heights) + 0.3, width=column * most + SCALE)
    grid = figure.add_gridspec(len(rows), most, height_ratios=heights)
    numbers = [len(found.example_images) for found in rows]
    return figure, [[figure.add_subplot(grid[r, c]) for c in range(number)] for r, number in enumerate(numbers)]


def _bar(display: ComponentDisplay, axes: Sequence[Axes] | None = None) -> None:
    """Add the scale that all maps share."""
    shown = axes if axes is not None else display.ax_
    look = {"aspect": 7 * display.figure_.get_figheight(), "extend": "both", "shrink": 0.9}
    bar = display.figure_.colorbar(display.images_[0], ax=shown, pad=0.01, **look)
    bar.set_ticks(np.linspace(-LIMIT, LIMIT, 7))
    bar.set_label("first component (σ)")


@style.paper()
def draw_components(results: Results, *, fit: str = FITS[0]) -> Figure:
    """Draw the first images, and under them each model's maps (as Darcet et al., arXiv 2309.16588, figure 20).

    ``fit`` says on which patches the component was fitted, of `FITS`.
    """
    figure, rows = _rows(results)
    rest, shown = iter(rows), []
    for i, (title, found) in enumerate(results):
        if i == 0 or not same_pictures(results[i - 1][1], found):
            draw_pictures(next(rest), found)
        shown.append(ComponentDisplay(found, title, fit=fit).plot(next(rest)))
    _bar(shown[0], [ax for row in rows for ax in row])
    over = "all images together" if results[0][1].summary["over"] == "images" else "each image apart"
    patches = "" if fit == FITS[0] else ", outliers left out"
    note = f"fitted to the patches of {over}{patches}; the longer tail is orange"
    if any(found.example_outliers.any() for _, found in results):
        note += "; outlined: outliers"
    note = style.wrap(note, int(72 * figure.get_figwidth() / (0.54 * style.SMALL)))
    figure.supxlabel(note, fontsize=style.SMALL, color=style.FAINT)
    return figure
