"""Put what ``inspect`` found of a model on one page, and several models on shared scales."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
from matplotlib.figure import Figure, SubFigure

from vitprobe.plots import attention_distance, filters, position_similarity, style, translation
from vitprobe.probes.absent import Absent
from vitprobe.probes.attention_distance import KINDS, AttentionDistanceResult
from vitprobe.probes.translation import TranslationResult

DRAWN: dict[str, ModuleType] = {
    "filters": filters,
    "positions": position_similarity,
    "attention": attention_distance,
    "translation": translation,
}
"""What draws each part, in the order of the page."""
TITLES = {
    "filters": "first filters",
    "positions": "similarity of position embeddings",
    "attention": "mean attention distance",
    "translation": "translation of the image",
}
BESIDE = ("filters", "positions")
"""Parts that share a row."""
HEAD, CHARS = 0.3, 120
"""Inches of a page's title, and letters in a line of the note under it."""
ALONE_HEIGHT, ABSENT_HEIGHT = 2.5, 0.8
"""Inches of a part that shares its row with none, of its pictures and curves side by side; of a part that is absent."""


Parts = Mapping[str, Any]
"""A model's results by the names of `DRAWN`."""


def chosen(parts: Parts, outliers: str) -> Parts:
    """Return the parts as they are drawn: ``both`` as they are, else ``with`` outliers alone, or ``without`` them."""
    there = {name: parts[name] for name in ("attention", "translation") if _is_there(parts.get(name))}
    if outliers == "both" or not there:
        return parts
    kind, found = int(outliers == "without"), dict(parts)
    if "attention" in there and len(there["attention"].distance) > 1:
        found["attention"] = _attention_of(there["attention"], kind)
    if "translation" in there and there["translation"].summary["num_outliers"]:
        found["translation"] = _translation_of(there["translation"], kind)
    return found


def _attention_of(result: AttentionDistanceResult, kind: int) -> AttentionDistanceResult:
    """Keep one of the kinds of patches, on the first axis, or on the second where ends or measures stand first."""
    arrays = result.arrays()
    own = slice(kind, kind + 1)
    first = ("distance", "locality", "near", "shares")
    kept = {name: value[own] if name in first else value[:, own] for name, value in arrays.items()}
    averages = {KINDS[kind]: result.summary["averages"][KINDS[kind]]}
    return replace(result, summary={**result.summary, "averages": averages}, **kept)


def _translation_of(result: TranslationResult, kind: int) -> TranslationResult:
    """Leave out the errors without outliers, or put them in the place of the others and the outliers aside."""
    if kind:
        errors, intervals = result.errors[[1, 1]], result.error_intervals[[1, 1]]
        return replace(result, summary={**result.summary, "num_outliers": 0}, errors=errors, error_intervals=intervals)
    hidden = np.stack([result.errors[0], np.full_like(result.errors[0], np.nan)])
    return replace(result, errors=hidden)


def scales(models: Sequence[Parts]) -> dict[str, Any]:
    """Return the scale of each part that all models share."""
    found = {name: [one[name] for one in models if _is_there(one.get(name))] for name in DRAWN}
    return {name: DRAWN[name].shared_scale(there) for name, there in found.items() if there}


def _is_there(result: Any) -> bool:
    return result is not None and not isinstance(result, Absent)


@style.paper()
def draw_page(title: str, note: str, parts: Parts, *, scale: Mapping[str, Any]) -> Figure:
    """Draw all parts of one model; ``note`` stands under the title, ``scale`` is what `scales` gave."""
    shown = [name for name in DRAWN if name in parts]
    rows = [[name for name in shown if name in BESIDE]] + [[name] for name in shown if name not in BESIDE]
    rows = [row for row in rows if row]
    heights = [max(_height(name, parts[name], row) for name in row) for row in rows]
    lines = style.wrap(note, CHARS).splitlines()
    head = HEAD + 0.13 * len(lines)
    figure = style.new_figure(sum(heights) + head)
    top, *bodies = figure.subfigures(len(rows) + 1, 1, height_ratios=(head, *heights), squeeze=False)[:, 0]
    style_of = {"x": 0.01, "ha": "left", "parse_math": False}
    top.text(y=1 - 0.07 / head, s=style.shorten(title, 90), va="top", fontsize=style.LARGE + 2, **style_of)
    small = {"va": "top", "fontsize": style.SMALL, "color": style.FAINT, **style_of}
    top.text(y=1 - 0.28 / head, s="\n".join(lines), **small)
    for body, row in zip(bodies, rows, strict=True):
        cells = body.subfigures(1, len(row), squeeze=False)[0]
        for cell, name in zip(cells, row, strict=True):
            _draw_part(cell, name, parts[name], scale.get(name))
    return figure


def _height(name: str, result: Any, row: Sequence[str]) -> float:
    if not _is_there(result):
        return ABSENT_HEIGHT
    return ALONE_HEIGHT if name in BESIDE and len(row) == 1 else DRAWN[name].PART_HEIGHT


def _draw_part(cell: SubFigure, name: str, result: Any, scale: Any) -> None:
    if _is_there(result):
        DRAWN[name].page_part(cell, result, scale=scale)
        return
    ax = cell.subplots()
    ax.set_axis_off()
    style.set_title(ax, TITLES[name])
    why = style.wrap(result.summary["absent"], 100)
    ax.text(0, 0.9, why, va="top", color=style.FAINT, parse_math=False, transform=ax.transAxes)


def comparisons(models: Mapping[str, Parts]) -> dict[str, Figure]:
    """Draw several models on shared scales: a figure by the name of each part that two or more models have."""
    found = {}
    for name, module in DRAWN.items():
        there = {title: one[name] for title, one in models.items() if _is_there(one.get(name))}
        figure = module.compare(there) if len(there) > 1 else None
        if figure is not None:
            found[name] = figure
    return found
