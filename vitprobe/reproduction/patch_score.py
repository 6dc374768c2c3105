"""Patch Score and Point-in-Box of LaSt-ViT (arXiv 2602.22394): whether the patch most like CLS lies on an object."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from vitprobe.errors import ArgumentError
from vitprobe.inputs.geometry import read_geometry
from vitprobe.plots.patch_score import draw_maps, draw_point_in_box
from vitprobe.probes.by_image import METHOD, Estimate
from vitprobe.probes.feature_file import POINTS
from vitprobe.probes.passes import Reader
from vitprobe.probes.patch_score import REFERENCES, PatchScoreReader, PatchScores
from vitprobe.reproduction.base import Drawn, Found, Item, Measurement, Row, Setting

WORDS = {"cls": "CLS", "mean": "the mean of the patches"}
INTERVAL = f"Point-in-Box: Wilson's 95 %, over images; what is compared with a random patch: {METHOD}"
CLAIM = "the patch of highest score lies on an object more often than a random patch"


@dataclass(frozen=True)
class PatchScoreOptions:
    """Hold what is left open of the score."""

    point: str = "auto"
    """Where features are taken: ``final_norm``, ``resid_post``, or ``auto``, after the final norm where the model has
    one and the block is its last."""
    reference: str = "auto"
    """What patches are compared with: ``cls``, ``mean`` (of the patches), or ``auto``, CLS where there is one."""
    examples: int = 6
    """Images that are shown."""

    def __post_init__(self) -> None:
        for name, allowed in (("point", POINTS), ("reference", REFERENCES)):
            if getattr(self, name) not in allowed:
                raise ArgumentError(f"got {name} {getattr(self, name)!r}; allowed are {', '.join(allowed)}")
        if type(self.examples) is not int or self.examples < 0:
            raise ArgumentError(f"got {self.examples!r} examples; give a whole number from 0 on")


class PointInBox(Measurement):
    """Score the patches of the test images."""

    def __init__(self, setting: Setting, options: PatchScoreOptions) -> None:
        """Prepare to read. Raises what `PatchScoreReader` and `read_geometry` do."""
        self.setting = setting
        geometry = read_geometry(setting.backbone.transform.apply)
        self.reader = PatchScoreReader(
            setting.backbone,
            lambda index: setting.test.boxes(index, geometry),
            block=setting.block,
            cutoff=setting.cutoff,
            point=options.point,
            reference=options.reference,
            num_examples=options.examples,
            seed=setting.seed,
        )

    def test_readers(self) -> Sequence[Reader]:
        """Return what scores patches."""
        return (self.reader,)

    def found(self) -> Found:
        """Return Point-in-Box, the same without outliers, and controls."""
        setting, result = self.setting, self.reader.result()
        has_outliers = setting.cutoff is not None
        over = result.over_random()
        shares = {
            "top": result.share("in_box"),
            "top of others": result.share("others_in_box") if has_outliers else None,
            "random patch": result.mean("random"),
            "centre": result.share("centre"),
        }
        rows = [
            _row("top patch in a box", shares["top"]),
            _row("top patch in a box, outliers left out", shares["top of others"]),
            _row("top patch is an outlier", result.share("is_outlier") if has_outliers else None),
            _row("control: random patch in a box", shares["random patch"]),
            _row("control: patch in the middle in a box", shares["centre"]),
            _row("top patch less a random patch", over),
            _row("score in boxes less outside, within images", result.mean("difference"), unit="cosine"),
        ]
        none = [] if has_outliers else [f"{setting.model}: rule {setting.rule} finds no outliers to leave out"]
        lost = [f"{result.num_without_truth} images without a box inside the model's crop are left out"] * bool(
            result.num_without_truth
        )
        where = f"{setting.model}: cosine with {WORDS[result.reference]} at {result.point} of block {setting.block}"
        summary = {
            "block": setting.block,
            "point": result.point,
            "reference": result.reference,
            "rule": str(setting.rule),
            "cutoff": setting.cutoff,
            "interval": INTERVAL,
            "num_images": len(result.indices),
            "num_without_truth": result.num_without_truth,
            "claim": CLAIM,
            "answer": over.exceeds(0),
            "shares": {name: None if one is None else one.as_dict() for name, one in shares.items()},
            "data": setting.test.name,
            "notes": [where, *none, *lost],
        }
        return Found(tuple(rows), summary, self._examples(result))

    def _examples(self, result: PatchScores) -> dict[str, np.ndarray]:
        shown = self.reader.examples
        if not shown:
            return {}
        truth = np.full((len(shown), max(len(one.boxes) for one in shown.values()), 4), np.nan)
        for e, one in enumerate(shown.values()):
            truth[e, : len(one.boxes)] = one.boxes
        order = {index: i for i, index in enumerate(result.indices.tolist())}
        rows = [order[index] for index in shown]
        return {
            "example_images": np.stack([one.picture for one in shown.values()]),
            "example_scores": np.stack([one.scores for one in shown.values()]),
            "example_outliers": np.stack([one.outliers for one in shown.values()]),
            "example_truth": truth,
            "example_top": result.top[rows],
            "example_in_box": result.in_box[rows],
        }


def _row(what: str, one: Estimate | None, *, key: str = "", unit: str = "share") -> Row:
    if one is None:
        return Row(what, None, unit, 0, key=key)
    return Row(what, one.value, unit, one.num_images, one.interval, key=key)


def draw(drawn: Drawn) -> dict[str, Figure]:
    """Draw Point-in-Box of all models beside controls, and the scores of the first images."""
    found = {"point_in_box": draw_point_in_box([(title, one.summary) for title, one in drawn])}
    shown = [(title, one.summary, one.arrays) for title, one in drawn if "example_images" in one.arrays]
    return found | ({"patch_score": draw_maps(shown)} if shown else {})


ITEMS = {"patch-score": Item(PointInBox, draw, PatchScoreOptions)}
