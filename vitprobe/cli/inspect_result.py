"""A result of ``inspect``: how its parts lie in one folder, and how they are drawn, also without any weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitprobe import results
from vitprobe.cli.session import slug, unique
from vitprobe.probes.absent import Absent
from vitprobe.probes.attention_distance import AttentionDistanceResult
from vitprobe.probes.filters import FilterResult
from vitprobe.probes.position_similarity import PositionResult
from vitprobe.probes.translation import TranslationResult

SCHEMA = "vitprobe.inspect/1"
PARTS: dict[str, Any] = {
    "filters": FilterResult,
    "positions": PositionResult,
    "attention": AttentionDistanceResult,
    "translation": TranslationResult,
}
"""The parts of a page, and what holds each."""


@dataclass(frozen=True)
class Inspected:
    """Hold what was found of one model."""

    summary: dict[str, Any]
    """``norms`` (or None where no image was needed), and the summary of each part by its name."""
    parts: Mapping[str, Any]
    """Results by the names of `PARTS`; `Absent` where one could not be measured."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays of all parts, as ``part.field``."""
        found = {part: result.arrays() for part, result in self.parts.items()}
        return {f"{part}.{name}": value for part, arrays in found.items() for name, value in arrays.items()}


def read_back(stored: results.StoredResult) -> Inspected:
    """Return the parts from what is stored of them."""
    parts: dict[str, Any] = {}
    for name, kind in PARTS.items():
        summary, begin = stored.summary.get(name), f"{name}."
        arrays = {key.removeprefix(begin): value for key, value in stored.arrays.items() if key.startswith(begin)}
        if summary is not None:
            parts[name] = kind.read(arrays, summary) if arrays else Absent(summary)
    return Inspected(dict(stored.summary), parts)


def drawing(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a stored result that its figures depend on."""
    return {"outliers": settings.get("outliers", "both")}


def draw(
    drawn: Sequence[tuple[str, Inspected]], folder: Path, formats: tuple[str, ...], *, outliers: str = "both"
) -> list[Path]:
    """Draw a page for each model, and for several the comparisons above them; returns the paths."""
    if not formats:
        return []
    from vitprobe.plots import write
    from vitprobe.plots.inspect import chosen, comparisons, draw_page, scales

    shown = [chosen(one.parts, outliers) for _, one in drawn]
    scale, paths = scales(shown), []
    folders = unique([slug(one.summary["model"]) for _, one in drawn])
    for (title, one), parts, inner in zip(drawn, shown, folders, strict=True):
        stem = (folder / inner if len(drawn) > 1 else folder) / "page"
        paths += write(draw_page(title, note(one.summary, outliers), parts, scale=scale), stem, formats)
    if len(drawn) > 1:
        titles = unique([title for title, _ in drawn])
        figures = comparisons(dict(zip(titles, shown, strict=True)))
        for name, figure in figures.items():
            paths += write(figure, folder / f"compare-{name}", formats)
    return paths


def note(summary: Mapping[str, Any], outliers: str = "both") -> str:
    """Say under a page's title what the model is, what its outliers are, and which of both was drawn."""
    size = "{} x {} px".format(*summary["image_size"])
    if summary["kind"] == "convolutional":
        return f"convolutional network, {size}, stride {summary['step'][0]} px; no tokens, no outliers"
    registers = summary["num_registers"]
    said = f"{size}, patch {summary['step'][0]} px, {summary['num_blocks']} blocks, {summary['num_heads']} heads, "
    said += f"{registers} registers" if registers else "no registers"
    norms = summary["norms"]
    if norms is None:
        return said
    said += f"; {norms['num_images']} images; "
    if norms["cutoff"] is None:
        return said + f"no outliers by the rule {norms['rule']}"
    share = f"{100 * norms['outlier_fraction']:.2g} % of patches"
    said += f"outliers: norm {norms['cutoff']:.4g} and over after the last block ({norms['rule']}), {share}"
    return said if outliers == "both" else f"{said}; drawn {outliers} outliers"
