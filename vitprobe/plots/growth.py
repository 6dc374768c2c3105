"""Draw how patch norms spread over a training: quantiles at kept checkpoints, the tail at every look."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vitprobe.plots import style
from vitprobe.probes.norm_stats import PATCHES, NormStats


@dataclass(frozen=True)
class Kept:
    """Hold what is drawn of one kept checkpoint."""

    variant: str
    step: int
    stats: NormStats


class StepsDisplay:
    """Draw the quantiles of patch norms of one variant over its steps, with the outliers' cutoffs."""

    def __init__(self, kept: Sequence[Kept]) -> None:
        self.kept = sorted(kept, key=lambda one: one.step)

    @style.paper()
    def plot(self, ax: Axes | None = None, *, limits: tuple[float, float] | None = None) -> "StepsDisplay":
        """Draw into ``ax``, or into a figure of its own; ``limits`` of the norms are those of all variants."""
        ax = ax if ax is not None else style.new_figure(2.6, width=style.WIDTH / 2).add_subplot()
        self.ax_, self.figure_ = ax, ax.figure
        steps = np.array([one.step for one in self.kept], float)
        every = [one.stats for one in self.kept]
        levels = enumerate(every[0].levels)
        at = {level: np.array([s.quantiles[s.point, PATCHES, i] for s in every]) for i, level in levels}
        for low, high, colour in style.BANDS:
            ax.fill_between(steps, at[low], at[high], color=colour, linewidth=0)
        (self.medians_,) = ax.plot(steps, at[0.5], color=style.INK, marker="o", markersize=2.5)
        maxima = [s.maxima[s.point, PATCHES] for s in every]
        (self.maxima_,) = ax.plot(steps, maxima, color=style.INK, linestyle=":", marker="o", markersize=2.5)
        cutoffs = np.array([np.nan if s.summary["cutoff"] is None else s.summary["cutoff"] for s in every])
        (self.cutoffs_,) = ax.plot(steps, cutoffs, "_", color=style.OUTLIERS, markersize=7, markeredgewidth=1.5)
        style.log_scale(ax.yaxis, *(limits or norm_span(every)))
        ax.set_xlabel("training step")
        ax.set_ylabel("patch norm (L2)")
        ax.ticklabel_format(axis="x", useOffset=False)
        found = max(s.summary["outlier_fraction"] for s in every)
        second = f"at most {style.percent(found)} outliers" if found else "no outliers at any step"
        style.set_title(ax, f"{self.kept[0].variant}, block {every[0].summary['block']}", second)
        return self


def norm_span(every: Sequence[NormStats]) -> tuple[float, float]:
    """Return the ends of an axis that holds the patch norms of all at their summaries' points."""
    low = min(stats.quantiles[stats.point, PATCHES].min() for stats in every)
    return 0.85 * low, 1.18 * max(stats.maxima[stats.point, PATCHES] for stats in every)


@style.paper()
def draw_growth(kept: Sequence[Kept]) -> Figure:
    """Draw norms by training step, a panel a variant (as Darcet et al., arXiv 2309.16588, figure 4 b)."""
    names = list(dict.fromkeys(one.variant for one in kept))
    figure, axes = style.panels(len(names), height=2.4)
    limits = norm_span([one.stats for one in kept])
    for ax, name in zip(axes, names, strict=True):
        StepsDisplay([one for one in kept if one.variant == name]).plot(ax, limits=limits)
    handles = style.band_handles()
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure
