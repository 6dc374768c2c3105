"""Table 2 a of Darcet et al. (arXiv 2309.16588), classes of images by a linear map of frozen features; and k-NN."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vitprobe.errors import ArgumentError
from vitprobe.plots.frozen import Score, ScorePanel, draw_scores
from vitprobe.probes.feature_file import POINTS
from vitprobe.probes.frozen import FEATURES, ImageFeatureReader, ImageFeatures, classify, known, nearest
from vitprobe.probes.knn import TEMPERATURE, K, wilson_interval
from vitprobe.probes.linear import C_GRID, LogisticResult
from vitprobe.probes.passes import Reader
from vitprobe.reproduction.base import Drawn, Found, Item, Measurement, Row, Setting
from vitprobe.reproduction.token_draws import gathered

WORDS = {"cls": "CLS", "cls+mean": "CLS and mean of patches", "mean": "mean of patches"}
WITHOUT = "without outlier patches in the mean"
CHANCE = "most frequent class, always"
INTERVAL = "Wilson's 95 %, for test images drawn at random"
PROTOCOL = (
    "not the published protocol: DINOv2's linear evaluation takes the best of 13 learning rates, of CLS of the last or "
    "of the last 4 blocks, with or without the mean of patches, by SGD on augmented images; here logistic regression, "
    "C chosen on a fifth of the training images, at one block, on the evaluation transform"
)


@dataclass(frozen=True)
class FeatureOptions:
    """Say which vector stands for an image."""

    features: str = "cls"
    """``cls``, ``mean`` (of the patches), or ``cls+mean``, side by side; a model without CLS gives the mean."""
    point: str = "auto"
    """``final_norm``, ``resid_post``, or ``auto``: after the final norm where the model has one and the block is its
    last."""

    def __post_init__(self) -> None:
        for name, allowed in (("features", FEATURES), ("point", POINTS)):
            if getattr(self, name) not in allowed:
                raise ArgumentError(f"got {name} {getattr(self, name)!r}; allowed are {', '.join(allowed)}")


@dataclass(frozen=True)
class ClassOptions(FeatureOptions):
    """Hold what the paper leaves open of linear classification."""

    features: str = "cls+mean"
    seeds: int = 3
    """How often the images on which C is chosen are drawn; the spread is over these."""
    c: tuple[float, ...] = C_GRID
    """Inverse strengths of the L2 term that are tried, in scikit-learn's sense."""
    solver: str = "torch"
    """``torch`` reads features in parts, ``sklearn`` holds all in memory; the objective is the same."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.seeds) is not int or self.seeds < 1:
            raise ArgumentError(f"got {self.seeds!r} seeds; give a whole number from 1 on")
        if not all(isinstance(one, int | float) and one > 0 for one in self.grid):
            raise ArgumentError(f"got c {self.c!r}; give a number over 0, or several with commas")
        if self.solver not in ("torch", "sklearn"):
            raise ArgumentError(f"got solver {self.solver!r}; allowed are torch and sklearn")

    @property
    def grid(self) -> tuple[float, ...]:
        """Every C, also where one alone was given."""
        return self.c if isinstance(self.c, tuple) else (self.c,)


@dataclass(frozen=True)
class NearestOptions(FeatureOptions):
    """Hold DINO's settings of k nearest neighbours."""

    k: int = K
    temperature: float = TEMPERATURE

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.k) is not int or not isinstance(self.temperature, int | float):
            raise ArgumentError(f"got k {self.k!r}, temperature {self.temperature!r}; give a whole number and a number")


class FrozenMeasurement(Measurement):
    """Gather one vector an image of both splits, and read classes from it; both items share the readers."""

    def __init__(self, setting: Setting, options: Any) -> None:
        self.setting, self.options = setting, options

    def train_readers(self) -> Sequence[Reader]:
        """Return the reader of the training images' vectors."""
        return (self._reader("train"),)

    def test_readers(self) -> Sequence[Reader]:
        """Return the reader of the test images' vectors."""
        return (self._reader("test"),)

    def _reader(self, split: str) -> ImageFeatureReader:
        setting, point = self.setting, self.options.point
        path = setting.folder / f"{split}.{point}.npy"
        made = {"block": setting.block, "point": point, "cutoff": setting.cutoff}
        return setting.reader(
            ("image features", split, point), lambda: ImageFeatureReader(setting.backbone, path, **made)
        )

    def found(self) -> Found:
        """Return a row for each task, and for each kind of mean."""
        train, test = (self._reader(split).finish() for split in ("train", "test"))
        rows, scores, notes, reasons = [], [], [*self._notes(train)], []
        for task in tasks(self.setting):
            pair = [self._known(split, task, one) for split, one in (("train", train), ("test", test))]
            if reason := _lacks(*pair):
                reasons.append((task, reason))
                notes.append(f"{task}: {reason}")
                continue
            kinds = [False, True] if self._has_second(train) else [False]
            for without in kinds:
                if without:
                    pair = [self._known(s, task, one, without=True) for s, one in (("train", train), ("test", test))]
                score = {"task": task, "without_outliers": without, **self._measure(*pair)}
                scores.append(score)
                notes += [f"{task}: {note}" for note in score["notes"]]
                rows.append(self._row(score))
            rows.append(Row(f"{task}: {CHANCE}", score["chance"], "share", score["num_test"]))
        if not scores:
            raise ArgumentError(f"nothing can be classified: {'; '.join(gathered(reasons))}")
        return Found(tuple(rows), self._summary(train, test) | {"scores": scores, "notes": list(dict.fromkeys(notes))})

    def _known(self, split: str, task: str, features: ImageFeatures, *, without: bool = False) -> Any:
        labels = getattr(self.setting, split).labels[task]
        return known(features, labels, self.options.features, without_outliers=without)

    def _has_second(self, train: ImageFeatures) -> bool:
        return train.has_cutoff and ("mean" in self.options.features or not train.has_cls)

    def _row(self, score: dict[str, Any]) -> Row:
        what = f"{score['task']}, {WITHOUT}" if score["without_outliers"] else score["task"]
        key = "in1k" if is_imagenet(self.setting) and not score["without_outliers"] else ""
        interval, spread = tuple(score["interval"]), score.get("spread")
        return Row(what, score["accuracy"], "share", score["num_test"], interval, spread, key)

    def _features(self, features: ImageFeatures) -> str:
        return self.options.features if features.has_cls else "mean"

    def _summary(self, train: ImageFeatures, test: ImageFeatures) -> dict[str, Any]:
        setting, site = self.setting, self._reader("train").site
        return {
            "features": self._features(train),
            "point": site.kind,
            "block": setting.block,
            "interval": INTERVAL,
            "cutoff": setting.cutoff,
            "outlier_patches": {"train": _outliers(train), "test": _outliers(test)},
            "num_images": {"train": len(train.images), "test": len(test.images)},
            "data": setting.test.name,
        }

    def _notes(self, train: ImageFeatures) -> list[str]:
        name, site = self.setting.backbone.spec.name, self._reader("train").site
        where = (
            "after the final norm" if site.kind == "final_norm" else f"of the residual stream after block {site.block}"
        )
        if not train.has_cls and self.options.features != "mean":
            return [f"{name} has no CLS: its features are the mean of patches {where}"]
        return [f"features of {name}: {WORDS[self.options.features]} {where}"]

    def _measure(self, train: Any, test: Any) -> dict[str, Any]:
        raise NotImplementedError


class Classes(FrozenMeasurement):
    """Fit a logistic regression to the vectors of each task."""

    def _notes(self, train: ImageFeatures) -> list[str]:
        return [PROTOCOL, *super()._notes(train)]

    def _measure(self, train: Any, test: Any) -> dict[str, Any]:
        options, device = self.options, next(self.setting.backbone.module.parameters()).device
        seeds = range(self.setting.seed, self.setting.seed + options.seeds)
        results = classify(train, test, seeds=seeds, grid=options.grid, solver=options.solver, device=device)
        return of_seeds(results) | {"grid": list(options.grid)}


class Nearest(FrozenMeasurement):
    """Let the nearest training images vote, as DINO does."""

    def _summary(self, train: ImageFeatures, test: ImageFeatures) -> dict[str, Any]:
        chosen = {"k": self.options.k, "temperature": self.options.temperature, "distance": "cosine"}
        return super()._summary(train, test) | chosen

    def _measure(self, train: Any, test: Any) -> dict[str, Any]:
        found = nearest(train, test, k=self.options.k, temperature=self.options.temperature)
        less = f"only {found.k} images vote, not {self.options.k}: the bank has no more"
        return {
            "accuracy": found.accuracy,
            "interval": found.interval,
            "chance": found.chance,
            "num_train": found.num_bank,
            "num_test": found.num_queries,
            "notes": [less] if found.k < self.options.k else [],
        }


def of_seeds(results: Sequence[LogisticResult]) -> dict[str, Any]:
    """Put fits that differ in the images on which C was chosen into one score; its interval is that of the mean."""
    first, accuracies = results[0], [one.accuracy for one in results]
    mean = fmean(accuracies)
    return {
        "accuracy": mean,
        "interval": wilson_interval(round(mean * first.num_test), first.num_test),
        "spread": stdev(accuracies) if len(results) > 1 else None,
        "chance": first.chance,
        "num_train": first.num_train,
        "num_test": first.num_test,
        "num_classes": first.num_classes,
        "c": [one.c for one in results],
        "held_out": [list(one.held_out) for one in results],
        "notes": list(dict.fromkeys(note for one in results for note in one.notes)),
    }


def tasks(setting: Setting) -> list[str]:
    """Return the tasks whose labels both splits have. Raises `ArgumentError` for none."""
    found = [task for task in setting.test.labels if task in setting.train.labels]
    if not found:
        raise ArgumentError(f"{setting.train.name} and {setting.test.name} share no labels; give parts of one set")
    return found


def is_imagenet(setting: Setting) -> bool:
    """Tell whether the images are those of ImageNet-1k, on which numbers were published."""
    classes = setting.test.classes.get("class", ())
    return setting.test.name.partition(",")[0] == "imagenet" and len(classes) == 1000


def _lacks(train: Any, test: Any) -> str:
    if len(np.unique(train.labels)) < 2:
        return f"all {len(train.labels)} training images are of one class, or none is labelled"
    return "" if np.isin(test.labels, train.labels).any() else "no class of the test images is among the training ones"


def _outliers(features: ImageFeatures) -> dict[str, int]:
    return {
        "patches": features.num_patches,
        "outliers": features.num_outliers,
        "images_of_outliers_alone": features.num_all_outliers,
    }


def draw(drawn: Drawn) -> dict[str, Figure]:
    """Draw a panel for each task: every model's accuracy beside what always naming the most frequent class gives."""
    panels: dict[tuple[str, str], list[tuple[str, list[Score]]]] = {}
    for title, found in drawn:
        for task in dict.fromkeys(score["task"] for score in found.summary["scores"]):
            own = [score for score in found.summary["scores"] if score["task"] == task]
            shown = [
                Score(_label(found, one), one["accuracy"], tuple(one["interval"])) for one in own
            ]  # the second is without outliers
            shown.append(Score(CHANCE, own[0]["chance"], is_control=True))
            panels.setdefault((found.summary["data"], task), []).append((title, shown))
    made = [ScorePanel(task, "test accuracy", rows, second=data) for (data, task), rows in panels.items()]
    return {"scores": draw_scores(made, note=f"bars: {INTERVAL}")}


def _label(found: Found, score: dict[str, Any]) -> str:
    return WITHOUT if score["without_outliers"] else WORDS[found.summary["features"]]


ITEMS = {
    "table2-classes": Item(Classes, draw, ClassOptions),
    "knn": Item(Nearest, draw, NearestOptions),
}
