"""What a variant was like while it was trained, as the records of its training tell it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

LONG = 100
"""A loss logged more often than this is smoothed for its figure."""
WINDOWS, WIDEST = 50, 1001
"""It is averaged over a ``WINDOWS``-th of the run, and over at most ``WIDEST`` logged steps."""


@dataclass(frozen=True)
class Curve:
    """Hold what a variant was like while it was trained: n logged steps, E looks at held-out images, L blocks."""

    measure_name: str
    """What the objective calls its held-out measure: ``accuracy``, ``knn``, ``agreement``."""
    steps: np.ndarray
    """(n,) int64 steps at which the loss was logged."""
    loss: np.ndarray
    """(n,) training loss of that step's batch."""
    eval_steps: np.ndarray
    """(E,) int64 steps after which held-out images were measured."""
    outlier_fraction: np.ndarray
    """(E,) share of patch tokens over the rule's cutoff at the last block."""
    outlier_fractions: np.ndarray
    """(E, L) the same at each block."""
    measure: np.ndarray
    """(E,) the held-out measure."""
    knn: np.ndarray
    """(E,) k-NN accuracy; nan where there are no classes."""
    register_norm: np.ndarray
    """(E,) median norm of registers at the last block; nan without registers."""
    tail: np.ndarray
    """(E,) 99th percentile over median of patch norms at the last block."""

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]], measure: str) -> "Curve":
        """Gather the records of a training, as ``metrics.jsonl`` holds them, in any order.

        A record with ``loss`` is a logged step, one with ``held_out`` a look at held-out images; of several of one step
        the last counts. ``measure`` names the objective's held-out measure. What was not finite (null) is nan.
        """
        losses: dict[int, Any] = {}
        looks: dict[int, Mapping[str, Any]] = {}
        for record in records:
            if "held_out" in record:
                looks[record["step"]] = record["held_out"]
            elif "loss" in record:
                losses[record["step"]] = record["loss"]
        seen = [looks[step] for step in sorted(looks)]
        blocks = max((len(look["outlier_fractions"]) for look in seen), default=0)
        return cls(
            measure_name=measure,
            steps=np.array(sorted(losses), np.int64),
            loss=_floats(losses[step] for step in sorted(losses)),
            eval_steps=np.array(sorted(looks), np.int64),
            outlier_fraction=_floats(look["outlier_fraction"] for look in seen),
            outlier_fractions=_floats(v for look in seen for v in look["outlier_fractions"]).reshape(len(seen), blocks),
            measure=_floats(look.get(measure) for look in seen),
            knn=_floats(look.get("knn") for look in seen),
            register_norm=_floats((look["register_norms"] or [None])[-1] for look in seen),
            tail=_floats(look["norm"]["p99"] for look in seen) / _floats(look["norm"]["median"] for look in seen),
        )

    @property
    def highest(self) -> np.ndarray:
        """The outlier fraction of the block that has the highest, at each look: (E,)."""
        return self.outlier_fractions.max(axis=1, initial=0.0)

    @property
    def has_knn(self) -> bool:
        """Whether k-NN accuracy is there beside the objective's own measure."""
        return self.measure_name != "knn" and bool(np.isfinite(self.knn).any())

    @property
    def window(self) -> int:
        """Over how many logged steps the loss is averaged for its figure: an odd number; 1 for a short run."""
        return 1 if len(self.steps) <= LONG else min(len(self.steps) // WINDOWS | 1, WIDEST)

    def smoothed(self) -> np.ndarray:
        """Return the running mean of the loss, (n,), over `window` logged steps about each, fewer at the ends."""
        known = np.isfinite(self.loss)
        if self.window == 1:
            return self.loss
        # Summed window by window: a running total would carry a loss that once exploded into all that follows.
        sums, numbers = (np.convolve(v, np.ones(self.window), "same") for v in (np.where(known, self.loss, 0.0), known))
        return np.divide(sums, numbers, out=np.full(len(sums), np.nan), where=numbers > 0.5)


def _floats(values: Iterable[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], np.float64)
