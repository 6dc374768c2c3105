"""How far features move with the image when it is shifted by whole patches and by fractions of one.

A window goes over a canvas, an image with a margin of real content. Where the window has gone by k places of the map,
an equivariant map shows at place p what it showed at p + k. The error is the squared distance between the two, over all
places in common, divided by what chance gives: the mean squared distance from all such vectors of the other images. 0:
the map moves with the image; 1: the two have no more in common than any two images. Equivariance, features that move
as the image does, is Lenc and Vedaldi's (arXiv 1411.5908, section 2), here by a plain shift that is not learnt. A
network with strides has it at best for shifts by whole strides (Zhang, arXiv 1904.11486, section 3.1).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

from vitprobe.errors import ArgumentError, InputError
from vitprobe.probes.batch import Batch
from vitprobe.probes.by_image import METHOD, NO_OUTLIERS, Estimate
from vitprobe.probes.feature_maps import FeatureMaps
from vitprobe.probes.shifts import Shift
from vitprobe.probes.translation_pass import COSINES, GROUPS, KINDS, POOLED, TranslationPass
from vitprobe.probes.translation_sums import COMPARED, FOLLOWED

CANVAS = "each image, scaled to cover window and margin, cropped around the middle; nothing padded"


@dataclass(frozen=True)
class TranslationResult:
    """Hold how the features of one model follow S shifts; nan where there is nothing to compare.

    Intervals are over images, also as those that chance is drawn from: see `TranslationPass.estimate`.
    """

    summary: dict[str, Any]
    """What was compared and how; ``shifts``, a row each, and both of `GROUPS`, with `Estimate`s by name; whether
    outliers go ``with the content`` or stay ``at their place``."""
    shifts: np.ndarray
    """(S, 2) down and right, pixels"""
    errors: np.ndarray
    """(2, C, S) by `KINDS` and `COMPARED`; 0 equal, 1 as chance."""
    error_intervals: np.ndarray
    """(2, C, S, 2)"""
    cosines: np.ndarray
    """(2, 3, S) mean cosine of features, less their mean over images and places, by `KINDS` and the first `COMPARED`"""
    cosine_intervals: np.ndarray
    """(2, 3, S, 2)"""
    pooled: np.ndarray
    """(3, S) by `POOLED`."""
    pooled_intervals: np.ndarray
    """(3, S, 2)"""
    outliers: np.ndarray
    """(F, S) where the outliers of the shifted map were on the base map, by `FOLLOWED`."""
    outlier_intervals: np.ndarray
    """(F, S, 2)"""
    border: np.ndarray
    """(2, S, K) error ``moved`` by `KINDS` and by how many places lie between a place, or its origin, and the border"""

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by the names of their fields."""
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}

    @classmethod
    def read(cls, arrays: Mapping[str, np.ndarray], summary: Mapping[str, Any]) -> Self:
        """Build a result back from what was stored. Raises `InputError` where an array is missing."""
        names = [field.name for field in fields(cls) if field.name != "summary"]
        if missing := [name for name in names if name not in arrays]:
            raise InputError(f"a result of translation holds no {', '.join(missing)}; measure again")
        return cls(dict(summary), **{name: np.asarray(arrays[name]) for name in names})


def measure_translation(
    mapped: FeatureMaps,
    canvases: Iterable[Batch],
    *,
    shifts: Sequence[Shift],
    cutoff: float | None = None,
    border: int = 0,
    grouped: Sequence[Shift] | None = None,
    seed: int = 0,
    on_batch: Callable[[Batch], None] | None = None,
) -> TranslationResult:
    """Shift images under a model, and measure how far its features and its pooled vector follow.

    ``canvases``: batches made with `canvas_transform`; they are read twice, first for the unshifted windows alone, so
    that the other images are known. ``shifts``: (down, right) in pixels that the window goes, as of `default_shifts`.
    ``cutoff``: patches with norms at or over it are outliers; None: there are none. ``border``: places left out at the
    border of both maps, beside those without a counterpart. ``grouped``: the shifts that the means by `GROUPS` are
    over, all by default; of models that share their shifts each its own, or its means depend on the others.
    ``on_batch`` is called when a batch has been measured.
    Raises `ArgumentError` for batches that cannot be read twice, shifts beyond the margin, a cutoff without norms and
    features that are not finite; `InputError` for fewer than two images.
    """
    if isinstance(canvases, Iterator):
        raise ArgumentError("canvases are read twice; give a list or a loader, not an iterator")
    if border < 0:
        raise ArgumentError(f"got a border of {border} places; give 0 or more")
    work = TranslationPass(mapped, tuple(shifts), cutoff, border, seed, None if grouped is None else tuple(grouped))
    for batch in canvases:
        work.look(batch)
    if work.num_images < 2:
        raise InputError(f"got {work.num_images} images that can be read; chance is that of others: give 2 or more")
    for batch in canvases:
        work.compare(batch)
        if on_batch is not None:
            on_batch(batch)
    return _result(work)


def _result(work: TranslationPass) -> TranslationResult:
    number = len(work.shifts)
    found = {name: [work.estimate(name, at) for at in (*range(number), *GROUPS)] for name in work.names}
    rings = work.rings.numpy().copy()  # (2, S, K, 2)
    if work.cutoff is None:  # then both kinds are the same patches
        found |= {f"{KINDS[1]}.{name}": found[f"{KINDS[0]}.{name}"] for name in (*COMPARED, *COSINES)}
        rings[1] = rings[0]
    blocks = {
        "error": [[found[f"{kind}.{name}"][:number] for name in COMPARED] for kind in KINDS],
        "cosine": [[found[f"{kind}.{name}"][:number] for name in COSINES] for kind in KINDS],
        "outlier": [found[f"outliers.{name}"][:number] for name in FOLLOWED],
    }
    pooled = [found[f"pooled.{name}"][:number] for name in POOLED]
    arrays = {f"{name}s": _values(block) for name, block in blocks.items()} | {"pooled": _values(pooled)}
    arrays |= {f"{name}_intervals": _intervals(block) for name, block in {**blocks, "pooled": pooled}.items()}
    with np.errstate(invalid="ignore"):
        arrays["border"] = rings[..., 0] / rings[..., 1]
    return TranslationResult(_summary(work, found), np.array(work.shifts, np.int64), **arrays)


def _summary(work: TranslationPass, found: Mapping[str, Sequence[Estimate]]) -> dict[str, Any]:
    """Return what JSON can hold: choices, counts, and every estimate by shift and for whole and other shifts."""
    mapped, number = work.mapped, len(work.shifts)
    rows = []
    for i, (shift, overlap) in enumerate(zip(work.shifts, work.overlaps, strict=True)):
        steps = [pixels / step for pixels, step in zip(shift, mapped.step, strict=True)]
        rows.append({"shift": list(shift), "steps": steps, "num_places": overlap.number, **_nested(found, i)})
    groups = {group: _nested(found, number + i) for i, group in enumerate(GROUPS)}
    told = {
        "name": mapped.name,
        "point": mapped.point,
        "step": list(mapped.step),
        "grid": list(work.grid),
        "image_size": list(mapped.image_size),
        "margin": list(work.margin),
        "canvas": CANVAS,
        "border": work.border,
        "cutoff": work.cutoff,
        "num_images": work.num_images,
        "num_patches": work.num_patches,
        "num_outliers": work.num_outliers,
        "outliers_go": _answer(groups["whole"]["outliers"], work.num_outliers),
        "interval": f"{METHOD}; chance varies with both images of a pair",
        "grouped": {group: [list(work.shifts[i]) for i in members] for group, members in work.groups.items()},
        **groups,
        "shifts": rows,
    }
    left_out = [row["shift"] for row in rows if not row["num_places"]]
    if len(left_out) == number:
        grid = "{} x {}".format(*work.grid)
        told["absent"] = f"no shift leaves any place of the map of {grid} in common; only pooled vectors are compared"
    return told | {"left_out": left_out}


def _nested(found: Mapping[str, Sequence[Estimate]], at: int) -> dict[str, dict[str, Any]]:
    """Sort estimates ``kind.name`` of one shift, or group of them, by kind and name."""
    nested: dict[str, dict[str, Any]] = {}
    for name, estimates in found.items():
        kind, _, inner = name.partition(".")
        nested.setdefault(kind, {})[inner] = estimates[at].as_dict()
    return nested


def _answer(outliers: Mapping[str, Mapping[str, Any]], num_outliers: int) -> str:
    """Say whether outliers go with the content or stay, over all shifts by whole steps."""
    if not num_outliers:
        return NO_OUTLIERS
    over, beyond = (Estimate(**outliers[name]).exceeds(0) for name in ("content_over_place", "beyond_chance"))
    if over == "no":
        return "at their place"
    return "with the content" if (over, beyond) == ("yes", "yes") else "not clear"


def _values(block: Any) -> np.ndarray:
    """Return the values of nested lists of estimates; nan for None."""
    if isinstance(block, Estimate):
        return np.array(np.nan if block.value is None else block.value, float)
    return np.stack([_values(part) for part in block])


def _intervals(block: Any) -> np.ndarray:
    """Return the intervals of nested lists of estimates, one axis more; nan for None."""
    if isinstance(block, Estimate):
        return np.array((np.nan, np.nan) if block.interval is None else block.interval, float)
    return np.stack([_intervals(part) for part in block])
