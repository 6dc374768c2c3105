"""Figures of dense linear probes, from nothing but what was found."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from vitprobe.plots.dense import Read, draw_classes, draw_depths, draw_masks
from vitprobe.plots.frozen import Score, ScorePanel, draw_scores
from vitprobe.probes.by_image import METHOD
from vitprobe.probes.dense import CONSTANT, FEATURES, Examples
from vitprobe.reproduction.base import Drawn, Found


def draw_mask_item(drawn: Drawn) -> dict[str, Figure]:
    """Draw scores beside controls; and, of each set of images, examples and the score of each class."""
    figures = {"scores": draw_scores(_mask_panels(drawn), note=f"bars: {METHOD}")}
    for number, own in enumerate(_by_data(drawn).values()):
        reads, after = [_read(title, found) for title, found in own], f"-{number}" if number else ""
        figures |= {f"classes{after}": draw_classes(reads)}
        figures |= {f"examples{after}": draw_masks(reads)} if _has_examples(reads) else {}
    return figures


def _has_examples(reads: Sequence[Read]) -> bool:
    return any(len(read.examples.names) for read in reads)


def _by_data(drawn: Drawn) -> dict[str, list[tuple[str, Found]]]:
    found: dict[str, list[tuple[str, Found]]] = {}
    for title, one in drawn:
        found.setdefault(one.summary["data"], []).append((title, one))
    return found


def _mask_panels(drawn: Drawn) -> list[ScorePanel]:
    panels = []
    for data, own in _by_data(drawn).items():
        for what, name in (("mean IoU", "mean_iou"), ("pixel accuracy", "accuracy")):
            rows = []
            for title, found in own:
                scores, words = found.summary["scores"], found.summary["words"] | {CONSTANT: "one class, always"}
                rows.append(
                    (title, [_score(words[k], one[name], one[f"{name}_interval"], k) for k, one in scores.items()])
                )
            panels.append(ScorePanel(what, f"test {what}", rows, second=data))
    return panels


def _score(label: str, value: float, interval: Sequence[float] | None, name: str) -> Score:
    is_control = name != FEATURES
    return Score(label, value, None if is_control or interval is None else tuple(interval), is_control)


def _read(title: str, found: Found) -> Read:
    arrays, summary = found.arrays, found.summary
    examples = Examples(**{name: arrays[name] for name in Examples.__dataclass_fields__})
    if "classes" not in summary:
        return Read(title, examples, unit=summary["unit"])
    own = {name: arrays[name] for name in ("iou", "intervals", "position", "shares")}
    return Read(title, examples, tuple(summary["classes"]), **own)


def draw_depth_item(drawn: Drawn) -> dict[str, Figure]:
    """Draw errors beside controls; and examples of each set of images."""
    panels = []
    for data, own in _by_data(drawn).items():
        unit = own[0][1].summary["unit"]
        for what, name, axis in (("RMSE", "rmse", f"RMSE, {unit}"), ("within a ratio of 1.25", "delta1", "pixels")):
            rows = []
            for title, found in own:
                words = found.summary["words"]
                scores = {kind: one[name] for kind, one in found.summary["scores"].items()}
                rows.append((title, [_score(words[k], one["value"], one["interval"], k) for k, one in scores.items()]))
            panels.append(ScorePanel(what, f"{axis}, mean over images", rows, name == "delta1", data))
    figures = {"scores": draw_scores(panels, note=f"bars: {METHOD}")}
    for number, own in enumerate(_by_data(drawn).values()):
        reads, after = [_read(title, found) for title, found in own], f"-{number}" if number else ""
        figures |= {f"examples{after}": draw_depths(reads)} if _has_examples(reads) else {}
    return figures
