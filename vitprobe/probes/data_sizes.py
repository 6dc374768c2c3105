"""What networks reach by the number of training images, at equal compute (Dosovitskiy et al., section 4.3 and 4.4)."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from vitprobe.errors import ArgumentError, InputError
from vitprobe.probes.knn import wilson_interval

MEASURES = ("right", "train_accuracy", "knn", "median", "p99", "maximum", "outlier_share")


@dataclass(frozen=True)
class DataSizes:
    """Hold the trainings of M networks on S nested sets of images, N seeds each; nan where one has not been done.

    The question is that of figures 3 to 5 of "An Image is Worth 16x16 Words" (arXiv 2010.11929): who gains how much
    from more images, where all may spend the same number of operations.
    """

    summary: dict[str, Any]
    """``data``, ``models`` (a row each: name, parameters, training_flops an image, steps, images_seen, lr ...), ..."""
    sizes: np.ndarray
    """(S,) int64 training images."""
    right: np.ndarray
    """(M, S, N) held-out images that were classified right, of ``num_held_out``."""
    train_accuracy: np.ndarray
    """(M, S, N) share of the training images, or of some of them, that are classified right, without augmentation."""
    knn: np.ndarray
    """(M, S, N) accuracy of k-NN on frozen features, of a part of the held-out images."""
    median: np.ndarray
    """(M, S, N) norm of patch tokens after the last block, or of the vectors of a convolutional network's last map."""
    p99: np.ndarray
    """(M, S, N) 99th percentile of these norms."""
    maximum: np.ndarray
    """(M, S, N) largest of these norms."""
    outlier_share: np.ndarray
    """(M, S, N) share of patch tokens that the rule ``auto`` calls outliers; nan of a convolutional network."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the networks, in order."""
        return tuple(row["name"] for row in self.summary["models"])

    @property
    def accuracy(self) -> np.ndarray:
        """(M, S) held-out accuracy, the mean over seeds."""
        return self.right.mean(axis=2) / self.summary["num_held_out"]

    def interval(self, model: int, size: int) -> tuple[float, float]:
        """Return Wilson's 95 % interval of the mean accuracy over held-out images; nan where it was not trained.

        It is of the images alone: what another seed would give is in the spread of `right`.
        """
        right = self.right[model, size].mean()
        if not np.isfinite(right):
            return float("nan"), float("nan")
        return wilson_interval(float(right), self.summary["num_held_out"])

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all fields but the summary, by name."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "summary"}

    @classmethod
    def read(cls, arrays: Mapping[str, np.ndarray], summary: Mapping[str, Any]) -> "DataSizes":
        """Put together what `arrays` and the summary were. Raises `InputError` where something is missing."""
        names = [one.name for one in fields(cls) if one.name != "summary"]
        if missing := [name for name in names if name not in arrays]:
            raise InputError(f"the result of data sizes is not whole: {missing[0]} is missing; train again")
        return cls(summary=dict(summary), **{name: arrays[name] for name in names})


def empty(summary: dict[str, Any], sizes: tuple[int, ...], num_seeds: int) -> DataSizes:
    """Make a result in which nothing has been trained yet. Raises `ArgumentError` for sizes that do not grow."""
    if list(sizes) != sorted(set(sizes)) or not sizes or sizes[0] < 1:
        raise ArgumentError(f"got {list(sizes)} training images; give growing whole numbers")
    shape = (len(summary["models"]), len(sizes), num_seeds)
    return DataSizes(summary, np.array(sizes, np.int64), *(np.full(shape, np.nan) for _ in MEASURES))


def table(results: Mapping[str, DataSizes]) -> str:
    """Write the numbers as Markdown, a row for each data set, network and number of images."""
    head = "data | network | training images | seen, epochs | held-out accuracy | training accuracy | k-NN | "
    head += "norms: 99th percentile / median | largest / median | outlier patches"
    lines = [f"| {head} |", "|" + " --- |" * len(head.split("|"))]
    for data, one in results.items():
        for m, row in enumerate(one.summary["models"]):
            for s, size in enumerate(one.sizes):
                lines.append(_line(data, one, row, m, s, int(size)))
    return "\n".join(lines) + "\n"


def _line(data: str, one: DataSizes, row: Mapping[str, Any], m: int, s: int, size: int) -> str:
    low, high = one.interval(m, s)
    means = {name: float(getattr(one, name)[m, s].mean()) for name in MEASURES}
    if not np.isfinite(means["right"]):
        return f"| {data} | {row['name']} | {size:,} | not trained |" + " |" * 6
    outliers = f"{100 * means['outlier_share']:.2g} %" if np.isfinite(means["outlier_share"]) else "not a transformer"
    cells = [
        data,
        row["name"],
        f"{size:,}",
        f"{row['images_seen'] / size:.3g}",
        f"{100 * one.accuracy[m, s]:.1f} % ({100 * low:.1f} to {100 * high:.1f})",
        f"{100 * means['train_accuracy']:.1f} %",
        f"{100 * means['knn']:.1f} %",
        f"{means['p99'] / means['median']:.2f}",
        f"{means['maximum'] / means['median']:.2f}",
        outliers,
    ]
    return f"| {' | '.join(cells)} |"
