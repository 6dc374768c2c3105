"""Table 3 of Darcet et al. (arXiv 2309.16588): object discovery by LOST, scored by CorLoc, with every setting told."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vitprobe.backbones.zoo import ALIASES
from vitprobe.errors import ArgumentError
from vitprobe.inputs.geometry import read_geometry
from vitprobe.plots.discovery import draw_examples, draw_sweep
from vitprobe.probes.boxes import CENTRINGS, FEATURES
from vitprobe.probes.corloc import PLACEMENTS, DiscoveryResult, chosen_on_halves, random_corloc
from vitprobe.probes.discovery import BIASES, PUBLISHED_FEATURES, DiscoveryReader, sweep
from vitprobe.probes.knn import wilson_interval
from vitprobe.probes.passes import Reader
from vitprobe.reproduction.base import Drawn, Found, Item, Measurement, Row, Setting
from vitprobe.reproduction.token_draws import numbers

KEYS = {"voc2007": "voc2007, trainval", "voc2012": "voc2012, trainval", "coco20k": "coco20k"}
"""Names of the sets that the published numbers are of, by key; other splits have none beside them."""
OTHERWISE = ("keys", "values")
"""Features of a model of a family that the table has not."""
INTERVAL = "Wilson's 95 %, over images"
CHOSEN = (
    "the best setting is chosen on the images that score it, which flatters it; where it is chosen on one half of the "
    "images and scored on the other, each in turn, it is not"
)


@dataclass(frozen=True)
class DiscoveryOptions:
    """Hold what table 3 leaves open, and is swept."""

    features: tuple[str, ...] = ()
    """``queries``, ``keys``, ``values``, ``resid_post``; where none is named, those that the table reads of the family
    (values of DeiT-III and OpenCLIP, keys of DINOv2), and keys and values of any other."""
    last: int = 1
    """How many blocks, from the last one back."""
    biases: tuple[float, ...] = BIASES
    """Added to the products of normalised features."""
    centrings: tuple[str, ...] = CENTRINGS
    """``none``, ``image mean``."""
    examples: int = 6
    """Images that are shown."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "biases", numbers(self.biases, "biases"))
        for name, allowed in (("features", FEATURES), ("centrings", CENTRINGS)):
            given = getattr(self, name)
            given = (given,) if isinstance(given, str) else tuple(given)
            if wrong := [one for one in given if one not in allowed]:
                raise ArgumentError(f"got {name} {wrong[0]!r}; allowed are {', '.join(allowed)}")
            object.__setattr__(self, name, given)
        if not self.centrings:
            raise ArgumentError(f"got no centrings; give one or more of {', '.join(CENTRINGS)}")
        for name, least in (("last", 1), ("examples", 0)):
            if type(getattr(self, name)) is not int or getattr(self, name) < least:
                raise ArgumentError(f"got {name} {getattr(self, name)!r}; give a whole number from {least} on")


class ObjectDiscovery(Measurement):
    """Run LOST at every setting on the test images."""

    def __init__(self, setting: Setting, options: DiscoveryOptions) -> None:
        """Prepare to read. Raises what `DiscoveryReader`, `sweep` and `read_geometry` do."""
        self.setting, backbone = setting, setting.backbone
        entry = ALIASES.get(setting.model)
        family = "" if entry is None else entry.family
        is_listed = family in PUBLISHED_FEATURES and not options.features
        self.kinds = (PUBLISHED_FEATURES[family],) if is_listed else options.features or OTHERWISE
        settings = sweep(
            family,
            backbone.num_blocks,
            last=options.last,
            biases=options.biases,
            centrings=options.centrings,
            features=self.kinds,
        )
        geometry = read_geometry(backbone.transform.apply)
        self.reader = DiscoveryReader(
            backbone, lambda index: setting.test.boxes(index, geometry), settings, num_examples=options.examples
        )

    def test_readers(self) -> Sequence[Reader]:
        """Return what runs LOST."""
        return (self.reader,)

    def found(self) -> Found:
        """Return LOST as published, the best of its settings, and controls; the summary has all settings."""
        setting, result = self.setting, self.reader.accumulator.result()
        best = int(result.corloc.argmax())
        last = setting.backbone.num_blocks - 1
        plain = [s for s, one in enumerate(result.settings) if not one.normalise and one.block == last]
        biased = [
            s for s, one in enumerate(result.settings) if one.normalise and one.centring == "none" and one.block == last
        ]
        told = {"LOST as published": _best(result, plain), "best bias, not centred, last block": _best(result, biased)}
        key = next((key for key, name in KEYS.items() if setting.test.name == name), "")
        told = {name: s for name, s in told.items() if s is not None} | {"best of all settings": best}
        rows = [_row(name, result, s, key if "bias" in name else "") for name, s in told.items()]
        number = result.summary["num_without_truth"]
        other = chosen_on_halves(result, seed=setting.seed)
        rows += [_share("best of all settings, chosen on the other half", other, len(result.indices))]
        rows += self._controls(result, best, told.get("LOST as published"))
        summary = {
            **{name: value for name, value in result.summary.items() if name != "rows"},
            "cells": result.summary["rows"],
            "features": list(self.kinds),
            "interval": INTERVAL,
            "chosen": {name: result.settings[s].label for name, s in told.items()},
            "best": best,
            "placements": PLACEMENTS,
            "grid": list(setting.backbone.layout().grid),
            "image_size": list(result.image_size),
            "data": setting.test.name,
            "notes": [
                *(f"{setting.model}, {name}: {result.settings[s].label}" for name, s in told.items()),
                f"{len(result.settings)} settings; {CHOSEN}",
                *[f"{number} images without a box inside the model's crop are left out"] * bool(number),
                "LOST's own protocol runs each image whole, at its native size; here it is the model's size and crop",
            ],
        }
        return Found(tuple(rows), summary, self._examples(result, best))

    def _controls(self, result: DiscoveryResult, best: int, plain: int | None) -> list[Row]:
        """Return how often LOST's box says nothing, and what boxes reach that do not look."""
        number = len(result.indices)
        rows = [Row("seed in the background: no box, best of all", result.without_box[:, best].mean(), "share", number)]
        if plain is not None:
            equal = float(result.arbitrary[:, plain].mean())
            rows.append(Row("all degrees equal: seed arbitrary, LOST as published", equal, "share", number))
        whole = result.summary["whole_image_corloc"]
        rows.append(_share("control: the whole image as box", whole, number))
        placed = random_corloc(result, best, seed=self.setting.seed)
        rows.append(Row("control: boxes of the best, at random places", placed, "share", number))
        return [Row(**{**vars(row), "value": float(row.value)}) for row in rows]

    def _examples(self, result: DiscoveryResult, best: int) -> dict[str, np.ndarray]:
        """Return pictures with what the best setting has found, in shares of width and height."""
        shown, order = self.reader.examples, {index: i for i, index in enumerate(result.indices.tolist())}
        if not shown:
            return {}
        rows, (height, width) = [order[index] for index in shown], result.image_size
        scale = np.array([width, height, width, height], float)
        truth = np.full((len(rows), max(len(result.truth[i]) for i in rows), 4), np.nan)
        for e, i in enumerate(rows):
            truth[e, : len(result.truth[i])] = result.truth[i] / scale
        return {
            "example_images": np.stack([picture for picture, _ in shown.values()]),
            "example_seeds": np.stack([seeds[best] for _, seeds in shown.values()]),
            "example_found": result.boxes[rows, best] / scale,
            "example_truth": truth,
            "example_iou": result.iou[rows, best],
        }


def _best(result: DiscoveryResult, among: Sequence[int]) -> int | None:
    return max(among, key=lambda s: result.corloc[s], default=None)


def _row(name: str, result: DiscoveryResult, s: int, key: str = "") -> Row:
    found: dict[str, Any] = result.summary["rows"][s]
    return Row(f"CorLoc, {name}", found["corloc"], "share", len(result.indices), tuple(found["corloc_ci"]), key=key)


def _share(name: str, value: float, number: int) -> Row:
    return Row(f"CorLoc, {name}", value, "share", number, wilson_interval(round(value * number), number))


def draw(drawn: Drawn) -> dict[str, Figure]:
    """Draw CorLoc over all settings, on one scale for all models, and boxes found in the first images."""
    found = {"corloc": draw_sweep([(title, one.summary) for title, one in drawn])}
    shown = [(title, one.summary, one.arrays) for title, one in drawn if "example_images" in one.arrays]
    return found | ({"examples": draw_examples(shown)} if shown else {})


ITEMS = {"table3": Item(ObjectDiscovery, draw, DiscoveryOptions)}
