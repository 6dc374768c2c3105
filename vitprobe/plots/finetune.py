"""Draw what fine-tuning gave: accuracies of variants beside those of frozen features, before and after, and chance."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from vitprobe.plots.frozen import Score, ScorePanel, draw_scores

NEAREST, LINEAR, TUNED, REAL = "k-NN, frozen", "linear, frozen", "fine-tuned", "fine-tuned, ReaL labels"
CHANCE = "most frequent class, always"
NOTE = "bars: Wilson's 95 %, for held-out images drawn at random; one training of each says nothing of the spread"


def draw_accuracy(summaries: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw a panel for each set: the model before, then its variants, each with its accuracies on held-out images.

    ``summaries`` are those of ``finetune``, a set each.
    """
    return draw_scores([panel(one) for one in summaries], note=NOTE)


def panel(summary: Mapping[str, Any]) -> ScorePanel:
    """Return the panel of one set."""
    rows = [("before fine-tuning", _frozen(summary["before"]["frozen"]))] if summary["before"]["frozen"] else []
    for one in summary["variants"]:
        scores = [Score(TUNED, one["accuracy"], tuple(one["accuracy_interval"]))]
        if one["real"]:
            scores.append(Score(REAL, one["real"]["accuracy"], tuple(one["real"]["interval"])))
        rows.append((one["title"], [*scores, *_frozen(one["frozen"])]))
    chance = Score(CHANCE, summary["chance"], is_control=True)
    images = f"{summary['variants'][0]['num_images']:,} held-out images, {summary['num_classes']:,} classes"
    return ScorePanel(summary["set"], "accuracy", [(name, [*own, chance]) for name, own in rows], second=images)


def _frozen(found: Mapping[str, Any] | None) -> list[Score]:
    pairs = ((NEAREST, "knn"), (LINEAR, "linear")) if found else ()
    return [Score(label, found[key]["accuracy"], tuple(found[key]["interval"])) for label, key in pairs]
