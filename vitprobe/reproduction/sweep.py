"""Figure 8 of Darcet et al. (arXiv 2309.16588): 0 to 16 registers, attention maps and scores, of a trained sweep."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from vitprobe import results
from vitprobe.errors import InputError
from vitprobe.plots.attention import draw_maps
from vitprobe.plots.sweep import draw_sweep
from vitprobe.probes.comparison import from_arrays
from vitprobe.reproduction.base import Drawn, Found, Item, Measurement, Row, Setting

FEWEST = 2


def variants_of(run: Path) -> list[str]:
    """Name the folders of the variants of a finished sweep, by number of registers.

    Raises `InputError` for a folder that holds no result of ``train-registers``, or of fewer than two variants.
    """
    variants = _variants(run, results.load(run))
    return [str(run / name) for name, _ in sorted(variants.items(), key=lambda pair: pair[1]["num_registers"])]


@dataclass(frozen=True)
class Variant(Measurement):
    """Read what a finished ``train-registers`` has found of one variant; nothing is measured again."""

    folder: Path

    def found(self) -> Found:
        """Return outliers, norms, attention on registers and the scores of the variant."""
        stored = results.load(self.folder.parent)
        one = _variants(self.folder.parent, stored)[self.folder.name]
        number, (low, high) = one["num_images"], one["outlier_fraction_ci"]
        rows = [
            Row("outlier patches", one["outlier_fraction"], "share", number, None if low is None else (low, high)),
            Row("99th percentile of norms", one["p99_over_median"], "medians", number),
            Row("attention on registers", one["attention"]["registers"], "share", number),
            *(Row(key.replace("_", " "), value, "share", number) for key, value in one["measures"].items()),
        ]
        said = {key: stored.summary[key] for key in ("objective", "steps", "images_seen") if key in stored.summary}
        said |= {"variant": one, "seed": stored.provenance["seed"]}
        notes = [f"one seed: differences within about {_slack(number):.0%} of a score are chance", one["conclusion"]]
        arrays = {key: value for key, value in stored.arrays.items() if key.startswith(f"{one['name']}/")}
        return Found(tuple(rows), {**said, "notes": notes}, arrays)


def _variants(run: Path, stored: results.StoredResult) -> dict[str, Mapping[str, Any]]:
    found = stored.summary.get("variants") if isinstance(stored.summary, Mapping) else None
    if not found or len(found) < FEWEST:
        raise InputError(f"{run} holds no sweep; train with --num-reg 1 --num-reg 4, or more of them")
    return {one["name"]: one for one in found}


def _slack(number: int) -> float:
    """Return two standard errors of the difference of two shares near a half, of so many images each."""
    return 2 * (2 * 0.25 / number) ** 0.5


def draw(drawn: Drawn) -> dict[str, Figure]:
    """Draw scores and norms over R, and the maps of each R on one scale."""
    variants = [one for _, found in drawn for one in from_arrays([found.summary["variant"]], found.arrays)]
    return {"sweep": draw_sweep(variants), "maps": draw_maps([(one.title, one.maps) for one in variants])}


def measure(setting: Setting, options: None) -> Variant:
    """Prepare to read one variant: the setting's model is its folder."""
    return Variant(Path(setting.model))


ITEMS = {"fig8": Item(measure, draw)}
