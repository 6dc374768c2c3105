"""What an item of the reproduction is: what it reads of one model on one set of images, what it found, how it is drawn.

An item is asked for its readers, so that all items of a run share the forward passes: one over the training images,
then one over the test images. `run` does that for one model.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from vitprobe.backbones.base import Backbone
from vitprobe.errors import ArgumentError
from vitprobe.inputs.truths import TruthSource
from vitprobe.probes.norm_stats import NormStats
from vitprobe.probes.outliers import OutlierRule
from vitprobe.probes.passes import Reader

if TYPE_CHECKING:
    from matplotlib.figure import Figure

R = TypeVar("R")


@dataclass(frozen=True)
class Row:
    """Hold one number of a table, with what it rests on."""

    what: str
    """``outlier tokens, majority colour``."""
    value: float | None
    unit: str
    """``share`` (shown in %), or what the number is in: ``patches``, ``RMSE, m``, ``GFLOPs``; empty for none."""
    number: int
    """Images, or tokens of as many images, that it was measured on."""
    interval: tuple[float, float] | None = None
    """95 % interval, by the method that the item's summary names."""
    spread: float | None = None
    """Standard deviation over token draws, or seeds."""
    key: str = ""
    """Which published number stands beside it (`vitprobe.published`); empty for none."""


@dataclass(frozen=True)
class Found:
    """Hold what an item found of one model: all that its figures are drawn from."""

    rows: tuple[Row, ...]
    summary: Mapping[str, Any]
    """What is said beside the rows, as JSON can hold it: the choices that were made, counts, warnings."""
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    def as_summary(self) -> dict[str, Any]:
        """Return rows and summary as JSON can hold them."""
        return {**self.summary, "rows": [asdict(row) for row in self.rows]}

    @classmethod
    def read_back(cls, summary: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> "Found":
        """Undo `as_summary`, after JSON."""
        rows = tuple(Row(**{**r, "interval": r["interval"] and tuple(r["interval"])}) for r in summary["rows"])
        return cls(rows, {key: value for key, value in summary.items() if key != "rows"}, arrays)


Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Shows how far a thing is: from its title and the number of its parts, a function that advances it."""


def in_silence(title: str, number: int) -> AbstractContextManager[Callable[[int], None]]:
    """Show nothing."""
    return nullcontext(lambda done: None)


@dataclass(frozen=True)
class Setting:
    """Hold what an item may ask of one model on one set of images."""

    model: str
    """The name that was asked for."""
    backbone: Backbone | None
    """None for items that need none."""
    train: TruthSource | None
    """Images that probes are trained on; None where the item needs none."""
    test: TruthSource | None
    rule: OutlierRule
    block: int
    """The block that is looked at: norms, outliers and features after it; the last unless another was asked for."""
    norms: NormStats | None
    """Of the test images, by the rule."""
    seed: int
    autocast: torch.dtype | None
    folder: Path
    """A folder of the item's own for features on disk; it is kept where ``--features`` asks for it."""
    run: Path | None = None
    """A folder of ``train-registers``, for items that read one."""
    shared: dict[Hashable, Reader] = field(default_factory=dict)
    progress: Progress = in_silence
    """For what an item does before its images pass, and that takes minutes."""

    @property
    def cutoffs(self) -> tuple[float | None, ...]:
        """Norm from which on a patch is an outlier, by block; None where the rule found none."""
        return tuple(None if np.isnan(cutoff) else float(cutoff) for cutoff in self.norms.cutoffs)

    @property
    def cutoff(self) -> float | None:
        """The cutoff at `block`."""
        return self.cutoffs[self.block]

    def reader(self, key: Hashable, make: Callable[[], R]) -> R:
        """Return the reader of this key; the first item that asks for it has it made, others share it."""
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]


class Measurement(ABC):
    """Say what one item reads of one model, and what came of it. Asked in this order."""

    def train_readers(self) -> Sequence[Reader]:
        """Return what reads the training images; by default nothing."""
        return ()

    def test_readers(self) -> Sequence[Reader]:
        """Return what reads the test images, when the training images have been read; by default nothing."""
        return ()

    @abstractmethod
    def found(self) -> Found:
        """Return the numbers; all images have been read."""


Drawn = Sequence[tuple[str, Found]]
"""(title, what was found) of each model."""


@dataclass(frozen=True)
class Item:
    """Say how an item is measured and drawn; `table` says what it is and needs."""

    measure: Callable[[Setting, Any], Measurement]
    """From the setting and the item's options."""
    draw: Callable[[Drawn], Mapping[str, "Figure"]]
    """Figures by the stem of their file, from nothing but what was found."""
    options: type = None
    """A frozen dataclass: the choices that the paper leaves open, with their defaults; None for none."""
    variants: Callable[[str], Sequence[Mapping[str, Any]]] = lambda model: ({},)
    """Keywords of `vitprobe.backbones.load` with which a model is measured: several where one model is looked at in
    several ways."""


def fill(kind: type | None, asked: Mapping[str, Any]) -> Any:
    """Make an item's options of what was asked. Raises `ArgumentError` for an option that it has not."""
    known = {} if kind is None else {one.name: one for one in fields(kind)}
    if unknown := [name for name in asked if name not in known]:
        raise ArgumentError(f"got option {unknown[0]}; allowed are {', '.join(known) or 'none'}")
    return None if kind is None else replace(kind(), **asked)
