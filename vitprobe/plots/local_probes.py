"""Draw what single tokens tell of their own patch: its place and its pixels, by kind of token."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure

from vitprobe.plots.kinds import KindPanel, Mark, draw_kinds

PANELS = {
    "position": ("where the patch is", "right row and column"),
    "distance": ("how far off the guess is", "distance in patches"),
    "pixels": ("the patch's pixels", "L2 of the error, {} units"),
}
"""Title and axis of each panel."""
KINDS = {("normal", "normal"): "normal", ("outlier", "outlier"): "outlier", ("normal", "outlier"): "outlier by normal",
         ("random", "random"): "random"}  # fmt: skip
"""What is drawn for a probe trained on one kind and tested on another."""
Results = Sequence[tuple[str, Mapping[str, Any]]]
"""(title, summary) of each model."""


def panels(results: Results) -> list[KindPanel]:
    """Lay out a panel for each quantity: a line for each model."""
    units = " and ".join(dict.fromkeys(summary["unit"] for _, summary in results))
    found = []
    for name, (title, axis) in PANELS.items():
        rows = [(model, _marks(name, summary["scores"])) for model, summary in results]
        better = "higher is better" if name == "position" else "lower is better"
        panel = KindPanel(title, axis.format(units), rows, is_share=name == "position", second=better)
        found.append(replace(panel, limit=None if panel.is_share else _limit(rows)))
    return found


def _limit(rows: Sequence[tuple[str, Sequence[Mark]]]) -> float | None:
    """End an axis where one probe, on tokens unlike those that it was trained on, would squeeze all others."""
    values = [mark.value for _, marks in rows for mark in marks]
    others = [mark.value for _, marks in rows for mark in marks if mark.kind != "outlier by normal"]
    end = 1.5 * max(others)
    return end if max(values) > end else None


def _marks(name: str, scores: Sequence[Mapping[str, Any]]) -> list[Mark]:
    by_kind = {KINDS[one["trained_on"], one["tested_on"]]: one for one in scores}
    marks = []
    for kind in KINDS.values():
        if kind in by_kind:
            one = by_kind[kind][name]
            marks.append(Mark(kind, one["value"], one["interval"] and tuple(one["interval"])))
    marks.append(Mark("chance", by_kind["normal"]["chance"][name]))
    outliers = next((one for one in scores if one["tested_on"] == "outlier"), None)
    return [*marks, *([Mark("outlier chance", outliers["chance"][name])] if outliers else [])]


def draw_local(results: Results) -> Figure:
    """Draw all quantities of all models (as Darcet et al., arXiv 2309.16588, figure 5b and table 5)."""
    return draw_kinds(panels(results), note="bars: 95 % interval, bootstrap over test images")
