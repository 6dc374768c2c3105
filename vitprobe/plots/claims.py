"""Draw claims on outlier tokens: how far outliers are from the other patches, and on which side a claim holds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from vitprobe.plots import style

Results = Sequence[tuple[str, Mapping[str, Any]]]
"""(title, summary) of each model."""
TITLES = {
    "neighbours": "like their neighbours",
    "position": "less of their position",
    "distance": "position farther off",
    "pixels": "less of their pixels",
    "classes": "more of the class",
}
"""What each claim says of outliers."""
LOOKS = {
    "holds": {"marker": "o", "color": style.INK},
    "not clear": {"marker": "o", "color": style.INK, "markerfacecolor": "white"},
    "does not hold": {"marker": "X", "color": style.OUTLIERS, "markersize": 6},
}
SIDE = "#e3eef7"
"""Behind the side on which a claim holds."""


class ClaimDisplay:
    """Draw one claim: a line for each model, its difference with its interval."""

    def __init__(self, name: str, part: str, results: Results) -> None:
        self.name, self.part = name, part
        self.tested = [(title, _find(summary, name, part)) for title, summary in results]

    @style.paper()
    def plot(self, ax: Axes | None = None) -> "ClaimDisplay":
        """Draw into ``ax``, or into a figure of its own."""
        ax = ax if ax is not None else style.new_figure(1.1 + 0.3 * len(self.tested), width=3.6).add_subplot()
        self.ax_, self.figure_, self.marks_ = ax, ax.figure, []
        one = next((one for _, one in self.tested if one is not None), None)
        at = np.arange(len(self.tested))
        reach = max((abs(end) for _, own in self.tested for end in _ends(own)), default=0) * 1.1 or 1.0
        ax.set_xlim(-reach, reach)
        if one is not None:
            ax.axvspan(*((0, reach) if one["sign"] > 0 else (-reach, 0)), color=SIDE, linewidth=0, zorder=0)
        ax.axvline(0, color=style.FAINT, linewidth=0.8, zorder=1)
        for y, (_, own) in zip(at, self.tested, strict=True):
            if own is None or own["value"] is None:
                ax.text(-0.97 * reach, y, "not tested", va="center", fontsize=style.SMALL, color=style.FAINT)
                continue
            look = {"markersize": 4.8, **LOOKS[own["answer"]]}
            if own["interval"]:
                ax.hlines(y, *own["interval"], color=look["color"], linewidth=1.1, zorder=2)
            self.marks_ += ax.plot(own["value"], y, linestyle="", zorder=3, **look)
        ax.set_yticks(at, [style.wrap(title, 22) for title, _ in self.tested], parse_math=False)
        ax.set_ylim(len(at) - 0.45, -0.55)
        ax.tick_params(axis="y", length=0)
        self._label(one["unit"] if one is not None else "")
        style.set_title(ax, TITLES[self.name], self.part)
        return self

    def _label(self, unit: str) -> None:
        self.ax_.xaxis.set_major_locator(MaxNLocator(4, symmetric=True))
        if unit == "share":
            self.ax_.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.4g}".replace("-", "−")))
        self.ax_.set_xlabel("difference, " + ("percentage points" if unit == "share" else unit))


def _find(summary: Mapping[str, Any], name: str, part: str) -> Mapping[str, Any] | None:
    return next((one for one in summary["tested"] if (one["name"], one["part"]) == (name, part)), None)


def _ends(own: Mapping[str, Any] | None) -> list[float]:
    return [] if own is None or own["value"] is None else [own["value"], *(own["interval"] or ())]


@style.paper()
def draw_claims(results: Results) -> Figure:
    """Draw every claim of all models (the claims of Darcet et al., arXiv 2309.16588, at a percentile)."""
    each = dict.fromkeys((one["name"], one["part"]) for _, summary in results for one in summary["tested"])
    columns = 3 if len(each) > 4 else 2
    figure, axes = style.panels(len(each), height=0.85 + 0.3 * len(results), columns=columns)
    for i, (ax, (name, part)) in enumerate(zip(axes, each, strict=True)):
        ClaimDisplay(name, part, results).plot(ax)
        if i % columns:
            ax.tick_params(axis="y", labelleft=False)
    cuts = " or ".join(dict.fromkeys(summary["cut"] for _, summary in results))
    shown = {one["answer"] for _, summary in results for one in summary["tested"]}
    handles = [Line2D([], [], linestyle="", label=label, **look) for label, look in LOOKS.items() if label in shown]
    handles.append(Patch(color=SIDE, label="side on which the claim holds"))
    note = f"outliers (norms over {cuts}) less other patches, within images; bars: 95 % interval over images"
    figure.legend(handles=handles, title=note, title_fontsize=style.SMALL, loc="outside lower center", ncols=4)
    return figure
