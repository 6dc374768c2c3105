"""Table 2 a of Darcet et al. (arXiv 2309.16588): class and depth of every pixel, by a linear map of frozen features."""

from collections.abc import Sequence
from dataclasses import asdict
from math import sqrt
from typing import Any

import numpy as np

from vitprobe.errors import ArgumentError
from vitprobe.inputs.geometry import Geometry, read_geometry
from vitprobe.inputs.truths import TruthSource
from vitprobe.probes.by_image import METHOD, interval_of
from vitprobe.probes.dense import (
    CONSTANT,
    FEATURES,
    NOISE,
    POSITION,
    DenseFit,
    DenseReader,
    depth_reader,
    fit_depth,
    fit_masks,
    mask_reader,
)
from vitprobe.probes.dense_sample import PixelSample, PixelSampler
from vitprobe.probes.dense_scores import DEPTH_SCORES, MaskScore
from vitprobe.probes.passes import Reader
from vitprobe.reproduction.base import Found, Item, Measurement, Row, Setting
from vitprobe.reproduction.dense_figures import draw_depth_item, draw_mask_item
from vitprobe.reproduction.dense_options import (
    DEPTH,
    DRAWN,
    EIGEN_NOTES,
    MASKS,
    MEAN_IOU,
    DepthOptions,
    MaskOptions,
    eigen_crop,
)

WORDS = {FEATURES: "patch features", POSITION: "position alone", NOISE: "random features"}


class DenseMeasurement(Measurement):
    """Draw pixels of the training images, fit, and read every pixel of the test images."""

    note: str
    """How far it is from the published protocol."""

    def __init__(self, setting: Setting, options: Any) -> None:
        self.setting, self.options = setting, options
        self.geometry = read_geometry(setting.backbone.transform.apply)
        self.where = {"block": setting.block, "point": options.point}
        self.sampler = PixelSampler(
            setting.backbone,
            lambda index: self.truth(setting.train, index, self.geometry),
            setting.folder,
            number=options.tokens_per_image,
            seed=setting.seed,
            **self.where,
        )
        self.sample: PixelSample | None = None
        self.fit: DenseFit | None = None
        self.reader: DenseReader | None = None

    def train_readers(self) -> Sequence[Reader]:
        """Return what draws pixels."""
        return (self.sampler,)

    def test_readers(self) -> Sequence[Reader]:
        """Fit to what was drawn, and return what reads every pixel."""
        self.sample = self.sampler.finish()
        self.fit = self.fitted(self.sample)
        self.reader = self.made(self.fit)
        return (self.reader,)

    def truth(self, source: TruthSource, index: int, geometry: Geometry) -> np.ndarray:
        """Return what is true of an image's pixels, (H, W), as the model sees it."""
        raise NotImplementedError

    def fitted(self, sample: PixelSample) -> DenseFit:
        """Fit to the drawn pixels."""
        raise NotImplementedError

    def made(self, fit: DenseFit) -> DenseReader:
        """Make the reader of the test images."""
        raise NotImplementedError

    def summary(self) -> dict[str, Any]:
        """Say every choice, as JSON can hold it."""
        setting, sample, fit = self.setting, self.sample, self.fit
        return {
            "data": setting.test.name,
            "point": self.reader.site.kind,
            "block": setting.block,
            "image_size": list(setting.backbone.spec.image_size),
            "grid": list(sample.grid),
            "tokens_per_image": self.options.tokens_per_image,
            "num_drawn": len(sample.targets),
            "num_train": len(np.unique(sample.images)),
            "num_train_without_truth": sample.num_without,
            "strengths": dict(fit.strengths),
            "constant": fit.constant,
            "interval": METHOD,
            "notes": [self.note, DRAWN, *fit.notes],
        }

    def shown(self) -> list[int]:
        """Return the positions of the test images that figures show, spread evenly."""
        number = len(self.setting.test)
        return np.unique(np.linspace(0, number - 1, min(self.options.examples, number)).astype(int)).tolist()

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the examples."""
        return asdict(self.reader.examples())


class Masks(DenseMeasurement):
    """Tell the class of every pixel."""

    note = MASKS

    def truth(self, source: TruthSource, index: int, geometry: Geometry) -> np.ndarray:
        """Return the classes of an image's pixels as the model sees it."""
        return source.mask(index, geometry)

    def fitted(self, sample: PixelSample) -> DenseFit:
        """Fit to the classes of the drawn pixels."""
        device = next(self.setting.backbone.module.parameters()).device
        return fit_masks(
            sample, grid=self.options.grid, seed=self.setting.seed, solver=self.options.solver, device=device
        )

    def made(self, fit: DenseFit) -> DenseReader:
        """Make the reader of the test images."""
        setting = self.setting
        return mask_reader(
            setting.backbone,
            lambda index: self.truth(setting.test, index, self.geometry),
            fit,
            num_classes=len(setting.test.mask_classes),
            seed=setting.seed,
            shown=self.shown(),
            **self.where,
        )

    def found(self) -> Found:
        """Return mean IoU and pixel accuracy, and what position, random features and a constant reach."""
        scores = {name: counts.score() for name, counts in self.reader.gathered.items()}
        constant = int(self.fit.constant)
        scores[CONSTANT] = self.reader.gathered[FEATURES].constant(constant).score()
        names = self.setting.test.mask_classes
        words = WORDS | {CONSTANT: f"{names[constant]}, always"}
        key = "ade20k" if self.setting.test.name.partition(",")[0] == "ade20k" else ""
        rows = [self._row("mean IoU", words[name], score, key * (name == FEATURES)) for name, score in scores.items()]
        rows.append(_beyond(scores[FEATURES], scores[POSITION]))
        rows += [self._row("pixel accuracy", words[name], scores[name], "") for name in (FEATURES, CONSTANT)]
        first = scores[FEATURES]
        summary = self.summary() | {
            "num_test": first.num_images,
            "classes": list(names),
            "words": words,
            "scores": {name: _as_dict(score) for name, score in scores.items()},
        }
        summary["notes"] = [*summary["notes"], MEAN_IOU]
        arrays = {"iou": first.iou, "intervals": first.iou_intervals, "shares": first.shares}
        arrays |= {"position": scores[POSITION].iou, "replicates": first.replicates}
        return Found(tuple(rows), summary, arrays | self.arrays())

    @staticmethod
    def _row(what: str, of: str, score: MaskScore, key: str) -> Row:
        is_iou = what == "mean IoU"
        value, interval = (
            (score.mean_iou, score.mean_iou_interval) if is_iou else (score.accuracy, score.accuracy_interval)
        )
        return Row(f"{what}, {of}", value, "share", score.num_images, interval, key=key)


def _beyond(features: MaskScore, position: MaskScore) -> Row:
    """Say how much more features tell than the position, on the same images: replicates are of the same weights."""
    interval = interval_of(features.replicates - position.replicates) if features.num_images > 1 else None
    less = features.mean_iou - position.mean_iou
    return Row("mean IoU, patch features less position alone", less, "share", features.num_images, interval)


def _as_dict(score: MaskScore) -> dict[str, Any]:
    names = ("mean_iou", "mean_iou_interval", "accuracy", "accuracy_interval")
    return {name: getattr(score, name) for name in names}


class Depth(DenseMeasurement):
    """Tell the depth of every pixel."""

    note = DEPTH

    def truth(self, source: TruthSource, index: int, geometry: Geometry) -> np.ndarray:
        """Return the depths of an image's pixels as the model sees it; nan where they are not measured."""
        depths = source.raw_depth(index)
        if self.options.eigen_crop and source is self.setting.test:
            depths = eigen_crop(depths)
        low, high = self.options.limits
        found = geometry.nearest(depths)
        return np.where((found >= low) & (found <= high), found, np.float32(np.nan))

    def fitted(self, sample: PixelSample) -> DenseFit:
        """Fit to the depths of the drawn patches."""
        return fit_depth(sample, seed=self.setting.seed)

    def made(self, fit: DenseFit) -> DenseReader:
        """Make the reader of the test images."""
        setting = self.setting
        return depth_reader(
            setting.backbone,
            lambda index: self.truth(setting.test, index, self.geometry),
            fit,
            limits=self.options.limits,
            seed=setting.seed,
            shown=self.shown(),
            **self.where,
        )

    def found(self) -> Found:
        """Return errors, and those of position, random features and a constant."""
        unit = self.setting.test.depth_unit
        words = WORDS | {CONSTANT: "mean depth, always"}
        scores = {
            name: {score: _estimate(errors, score) for score in DEPTH_SCORES}
            for name, errors in self.reader.gathered.items()
        }
        key = "nyud" if self.setting.test.name.partition(",")[0] == "nyud" else ""
        lines = {
            "rmse": ("mean over images", f"RMSE, {unit}"),
            "pooled_mse": ("all pixels together", f"RMSE, {unit}"),
            "abs_rel": ("absolute error over the true depth", "ratio"),
            "delta1": ("pixels within a ratio of 1.25", "share"),
        }
        rows = []
        for score, (what, kind) in lines.items():
            for name in scores if score == "rmse" else (FEATURES,):
                one, own_key = scores[name][score], key * (name == FEATURES and score == "rmse")
                said = f"{words[name]}, {what}"
                rows.append(Row(said, one["value"], kind, one["number"], one["interval"], key=own_key))
        limits = [self.options.min_depth, self.options.max_depth]
        more = {"limits": limits, "eigen_crop": self.options.eigen_crop, "unit": unit, "words": words, "scores": scores}
        summary = self.summary() | more
        summary["notes"] = [*summary["notes"], EIGEN_NOTES[self.options.eigen_crop]] if key else summary["notes"]
        return Found(tuple(rows), summary, self.arrays())


def _estimate(errors: Any, score: str) -> dict[str, Any]:
    """Return a score with its interval; of the mean squared error of all pixels its root."""
    found = errors.means.estimate(score)
    if found.value is None:
        raise ArgumentError("no pixel of the test images has a depth; give depths that were measured")
    root = sqrt if score == "pooled_mse" else float
    interval = None if found.interval is None else tuple(root(end) for end in found.interval)
    return {"value": root(found.value), "interval": interval, "number": found.num_images}


ITEMS = {
    "table2-masks": Item(Masks, draw_mask_item, MaskOptions),
    "table2-depth": Item(Depth, draw_depth_item, DepthOptions),
}
