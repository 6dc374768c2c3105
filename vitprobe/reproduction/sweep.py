"""Figure 8 of Darcet et al. (arXiv 2309.16588): 0 to 16 registers, attention maps and scores, of a trained sweep."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from vitprobe import results
from vitprobe.errors import InputError
from vitprobe.plots.attention import draw_maps
from vitprobe.plots.sweep import draw_sweep
from vitprobe.probes.comparison import VariantResult, from_arrays
from vitprobe.probes.passes import Reader
from vitprobe.reproduction.base import Drawn, Found, Item, Row, Setting

FEWEST = 2


@dataclass(frozen=True)
class Sweep:
    """Read what a finished ``train-registers`` has found of its variants; nothing is measured again."""

    run: Path

    def train_readers(self) -> Sequence[Reader]:
        """Return nothing."""
        return ()

    def test_readers(self) -> Sequence[Reader]:
        """Return nothing."""
        return ()

    def found(self) -> Found:
        """Return rows for each number of registers. Raises `InputError` for a run that is no sweep, or not finished."""
        stored = results.load(self.run)
        variants = stored.summary.get("variants") if isinstance(stored.summary, dict) else None
        if not variants or len({one["num_registers"] for one in variants}) < FEWEST:
            raise InputError(f"{self.run} holds no sweep; train with --num-reg 1 --num-reg 4, or more of them")
        rows = [row for one in variants for row in _rows(one, variants[0]["norms"]["num_images"])]
        said = {key: stored.summary[key] for key in ("objective", "steps", "images_seen") if key in stored.summary}
        seed = stored.provenance["seed"]
        said |= {"variants": variants, "seed": seed, "note": "one seed: differences of a point or two say little"}
        return Found(tuple(rows), said, stored.arrays)


def _rows(one: dict[str, Any], number: int) -> list[Row]:
    """Return the numbers of one variant."""
    name = f"R = {one['num_registers']}"
    low, high = one["outlier_fraction_ci"]
    found = [
        Row(f"{name}: outlier patches", one["outlier_fraction"], "share", number, None if low is None else (low, high)),
        Row(f"{name}: 99th percentile of norms", one["p99_over_median"], "medians", number),
        Row(f"{name}: attention on registers", one["attention"]["registers"], "share", number),
    ]
    return found + [Row(f"{name}: {key}", value, "share", number) for key, value in one["measures"].items()]


def draw(drawn: Drawn) -> dict[str, Figure]:
    """Draw scores and norms over R, and the maps of each R on one scale."""
    variants = [one for _, found in drawn for one in _variants(found)]
    return {"sweep": draw_sweep(variants), "maps": draw_maps([(one.title, one.maps) for one in variants])}


def _variants(found: Found) -> list[VariantResult]:
    return from_arrays(found.summary["variants"], found.arrays)


def measure(setting: Setting, options: None) -> Sweep:
    """Prepare to read the run of the setting."""
    return Sweep(setting.run)


ITEMS = {"fig8": Item(measure, draw)}
