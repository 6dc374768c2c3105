"""Draw the tail of norms and the share of outliers over the size of the model."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vitprobe.plots import style
from vitprobe.probes.norm_stats import PATCHES, NormStats

LOOKS = (("o", "-"), ("s", (0, (4, 1.5))), ("^", ":"), ("D", "-."), ("v", (0, (1, 1))), ("P", (0, (6, 1, 1, 1))))
COLOURS = (style.INK, style.OUTLIERS, "#2b8a7e", "#7a5195", "#8a6d00", style.FAINT)


@dataclass(frozen=True)
class Sized:
    """Hold what is drawn of one model."""

    title: str
    family: str
    """Models of one family are joined by a line."""
    params: float
    """Parameters in millions."""
    stats: NormStats


class SizesDisplay:
    """Draw one number of each model over its parameters."""

    def __init__(self, models: Sequence[Sized], what: str) -> None:
        self.models, self.what = sorted(models, key=lambda one: one.params), what

    def values(self, one: Sized) -> tuple[float, float | None, float | None]:
        """Return the number of a model, with the ends of its interval where it has one."""
        if self.what == "outliers":
            return (one.stats.summary["outlier_fraction"], *one.stats.summary["outlier_fraction_ci"])
        at = one.stats.quantiles[one.stats.point, PATCHES]
        levels = list(one.stats.levels)
        return at[levels.index(0.99)] / at[levels.index(0.5)], None, None

    @style.paper()
    def plot(self, ax: Axes | None = None) -> "SizesDisplay":
        """Draw into ``ax``, or into a figure of its own."""
        ax = ax if ax is not None else style.new_figure(2.6, width=style.WIDTH / 2).add_subplot()
        self.ax_, self.figure_, self.lines_ = ax, ax.figure, []
        for i, family in enumerate(dict.fromkeys(one.family for one in self.models)):
            own = [one for one in self.models if one.family == family]
            (marker, line), colour = LOOKS[i % len(LOOKS)], COLOURS[i % len(COLOURS)]
            numbers = [self.values(one) for one in own]
            params = [one.params for one in own]
            look = {"marker": marker, "linestyle": line, "color": colour, "label": family}
            self.lines_ += ax.plot(params, [value for value, *_ in numbers], **look)
            for x, (_, low, high) in zip(params, numbers, strict=True):
                if low is not None:
                    ax.vlines(x, low, high, color=colour, linewidth=0.9)
        least, most = (f([one.params for one in self.models]) for f in (min, max))
        style.log_scale(ax.xaxis, least / 1.6, most * 1.6, most=6)
        ax.set_xlabel("parameters, millions")
        return self


@style.paper()
def draw_sizes(models: Sequence[Sized]) -> Figure:
    """Draw outliers and tails of all models over their size (as Darcet et al., arXiv 2309.16588, figure 4 c)."""
    figure, axes = style.panels(2, height=2.5)
    shares = SizesDisplay(models, "outliers").plot(axes[0])
    top = max(0.01, *(value or 0.0 for one in models for value in shares.values(one)))
    axes[0].set_ylim(-0.05 * top, 1.1 * top)
    style.percent_ticks(axes[0].yaxis)
    style.set_title(axes[0], "outlier patches", "bars: 95 % interval over images", panels=2)
    tails = SizesDisplay(models, "tail").plot(axes[1])
    top = max(tails.values(one)[0] for one in models)
    if top > 10:
        style.log_scale(axes[1].yaxis, 0.9, 1.3 * top)
    else:
        axes[1].set_ylim(0.8, 1.1 * top)
    style.set_title(axes[1], "tail of patch norms", "99th percentile, in medians", panels=2)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4))
    return figure
