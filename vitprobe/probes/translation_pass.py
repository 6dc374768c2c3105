"""Run shifted windows of canvases beside the unshifted ones, and gather what their maps and pooled vectors sum to."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from vitprobe.errors import ArgumentError
from vitprobe.probes.batch import Batch
from vitprobe.probes.by_image import Estimate, ImageMeans, interval_of
from vitprobe.probes.feature_maps import FeatureMaps, Seen
from vitprobe.probes.shifts import Overlap, Shift, check_shifts, window_at
from vitprobe.probes.translation_sums import COMPARED, FOLLOWED, TARGETS, Population, Reference, Sums, followed

KINDS = ("all", "without_outliers")
"""Over which patches: all, or those that are outliers neither on the shifted map nor on what it is set beside."""
COSINES = tuple(f"cosine_{name}" for name in TARGETS)
COUNTED = {name: f"cosine_{name}" for name in TARGETS} | {
    "place": "cosine_unmoved",
    "image": "cosine_nearest",
    "error": "cosine",
}
"""By errors, of which mean the number of places, or of pooled vectors, is theirs."""
POOLED = ("error", "cosine", "others")
"""Of the pooled vector: distance between shifted and base over that from other images' base; their cosine; the cosine
with other images'."""
GROUPS = ("whole", "fractional")
"""All shifts by whole steps together, and all others, of those that groups are made of."""


class TranslationPass:
    """Read canvases twice: `look` at all, then `compare` all."""

    def __init__(
        self,
        mapped: FeatureMaps,
        shifts: tuple[Shift, ...],
        cutoff: float | None,
        border: int,
        seed: int,
        grouped: tuple[Shift, ...] | None = None,
    ) -> None:
        self.mapped, self.shifts, self.cutoff, self.border, self.seed = mapped, shifts, cutoff, border, seed
        self.grouped = shifts if grouped is None else grouped
        self.num_images = 0
        self.overlaps: tuple[Overlap, ...] = ()
        self.references: dict[str, Reference] = {}
        """By kind; of all patches alone where there is no cutoff."""

    def _begin(self, batch: Batch, seen: Seen) -> None:
        """Prepare to sum, now that the sizes of canvas, map and vectors are known."""
        canvas, mapped = tuple(batch.images.shape[-2:]), self.mapped
        self.margin = [(whole - part) // 2 for whole, part in zip(canvas, mapped.image_size, strict=True)]
        self.grid = tuple(seen.features.shape[-2:])
        found = [Overlap.of(s, step=mapped.step, grid=self.grid, border=self.border) for s in self.shifts]
        self.overlaps = tuple(found)
        self.used = [i for i, overlap in enumerate(found) if overlap.number]
        self.groups = {
            "whole": [i for i, o in enumerate(found) if o.is_whole and o.shift in self.grouped],
            "fractional": [
                i for i, o in enumerate(found) if not o.is_whole and o.shift != (0, 0) and o.shift in self.grouped
            ],
        }
        kinds = KINDS if self.cutoff is not None else KINDS[:1]
        origin = seen.features.mean(dim=(0, 2, 3)).view(-1, 1, 1)  # (D, 1, 1)
        self.references = {kind: Reference(origin, [found[i] for i in self.used]) for kind in kinds}
        self.counts = torch.zeros(self.grid, dtype=torch.float64, device=origin.device)
        self.num_patches = self.num_outliers = 0
        names = [f"{kind}.{name}" for kind in kinds for name in (*COMPARED, *COSINES)]
        names += [f"pooled.{name}" for name in POOLED] + [f"outliers.{name}" for name in FOLLOWED]
        self.names = names
        self.means = ImageMeans([f"{n}.{at}" for n in names for at in (*range(len(found)), *GROUPS)], seed=self.seed)
        self.rings = torch.zeros(2, len(found), (min(self.grid) + 1) // 2, 2, dtype=torch.float64)
        self.pooled: list[Population] = []

    def _see(self, batch: Batch, shift: Shift) -> Seen:
        seen = self.mapped.see(window_at(batch.images, shift, self.mapped.image_size))
        if self.cutoff is not None and seen.norms is None:
            raise ArgumentError(f"{self.mapped.name} has no norms that a cutoff could tell outliers by; give none")
        for what, values in (("features", seen.features), ("norms", seen.norms), ("pooled vectors", seen.pooled)):
            if values is not None and not bool(values.isfinite().all()):
                raise ArgumentError(f"{self.mapped.name} gives {what} that are not finite; try float32, or its weights")
        return seen

    def _outliers(self, seen: Seen) -> Tensor:
        """Tell which patches are outliers: (B, rows, cols) bool."""
        if self.cutoff is None:
            return torch.zeros_like(seen.features[:, 0], dtype=torch.bool)
        return seen.norms >= self.cutoff

    def _kept(self, kind: str, outliers: Tensor) -> Tensor:
        return ~outliers if kind == "without_outliers" else torch.ones_like(outliers)

    def _vectors(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Return pooled vectors as maps of one place, from an origin amid them, and of norm 1: (B, D', 1) each."""
        return (pooled - self.pooled_origin).unsqueeze(2), normalize(pooled).unsqueeze(2)

    def look(self, batch: Batch) -> None:
        """Take in the unshifted windows of a batch."""
        self.shifts = check_shifts(self.shifts, tuple(batch.images.shape[-2:]), self.mapped.image_size)
        seen = self._see(batch, (0, 0))
        if not self.references:
            self._begin(batch, seen)
            self.pooled_origin = seen.pooled.mean(dim=0)  # (D',)
        outliers = self._outliers(seen)
        for kind, reference in self.references.items():
            reference.add(seen.features, self._kept(kind, outliers))
        self.counts += outliers.sum(dim=0)
        self.num_patches, self.num_outliers = (
            a + int(b) for a, b in ((self.num_patches, outliers.numel()), (self.num_outliers, outliers.sum()))
        )
        ones = torch.ones_like(seen.pooled[:, :1], dtype=torch.bool)  # (B, 1)
        new = [Population.of(vectors, ones).all_images() for vectors in self._vectors(seen.pooled)]
        self.pooled = [a.plus(b) for a, b in zip(self.pooled, new, strict=True)] if self.pooled else new
        self.num_images += len(batch.images)

    def compare(self, batch: Batch) -> None:
        """Set the shifted windows of a batch beside its unshifted ones."""
        base = self._see(batch, (0, 0))
        nothing = torch.zeros(len(batch.images), dtype=torch.float64, device=base.features.device)
        sums: Sums = {}
        for i, (shift, overlap) in enumerate(zip(self.shifts, self.overlaps, strict=True)):
            seen, found = self._see(batch, shift), dict.fromkeys(self.names, (nothing, nothing))
            found |= {f"pooled.{name}": value for name, value in self._compare_pooled(seen.pooled, base.pooled).items()}
            if overlap.number:
                masks = self._outliers(seen), self._outliers(base)
                for k, (kind, reference) in enumerate(self.references.items()):
                    keep = tuple(self._kept(kind, mask) for mask in masks)
                    of_kind, rings = reference.compare(self.used.index(i), seen.features, base.features, keep)
                    found |= {f"{kind}.{name}": value for name, value in of_kind.items()}
                    self.rings[k, i] += rings.cpu()
                where = followed(overlap, *masks, self.counts, self.num_images)
                found |= {f"outliers.{name}": value for name, value in where.items()}
            sums |= {f"{name}.{i}": value for name, value in found.items()}
        for group, members in self.groups.items():
            for name in self.names:
                parts = [sums[f"{name}.{i}"] for i in members]
                sums[f"{name}.{group}"] = tuple(sum((p[j] for p in parts), nothing) for j in (0, 1))
        plain = {name: tuple(value.cpu().numpy() for value in pair) for name, pair in sums.items()}
        self.means.add(batch.indices, plain)

    def estimate(self, name: str, at: int | str) -> Estimate:
        """Return a mean with its interval; ``at``: the number of a shift, or one of `GROUPS`.

        What an error is divided by is a mean over pairs of images (a U-statistic), which varies with both. Weighing the
        first of each pair alone would make an interval too narrow, so a replicate's mean chance is squared and divided
        by the mean chance: the first-order influence of the second is that of the first (Hoeffding, Annals of
        Mathematical Statistics 19, 1948). The distance from other images at the same place is such a mean too.
        """
        found, (kind, _, inner) = self.means.estimate(f"{name}.{at}"), name.partition(".")
        if kind == "outliers" or inner not in COUNTED or found.interval is None:
            return found
        error, counted = (self.means.names.index(f"{part}.{at}") for part in (name, f"{kind}.{COUNTED[inner]}"))
        (top, chance), number = self.means.replicates[error], self.means.replicates[counted, 1]  # (R,) each
        mean = self.means.sums[error, 1] / self.means.sums[counted, 1]
        with np.errstate(invalid="ignore", divide="ignore"):
            replicates = top / chance * mean / (chance / number)
            if inner == "place":
                replicates = (top / chance) ** 2 / found.value
        return replace(found, interval=interval_of(replicates))

    def _compare_pooled(self, pooled: Tensor, base: Tensor) -> Sums:
        own, same = self._vectors(pooled), self._vectors(base)
        ones = torch.ones_like(pooled[:, :1], dtype=torch.bool)  # (B, 1)
        one = ones[:, 0].double()
        others = [
            population.without(Population.of(vectors, ones))
            for population, vectors in zip(self.pooled, same, strict=True)
        ]
        cosine = (own[1] * same[1]).sum(dim=(1, 2)).double()
        mean = (others[1].total * own[1][:, :, 0]).sum(dim=1) / others[1].number  # (B,)
        distance = (own[0] - same[0]).square().sum(dim=(1, 2)).double()
        return {"error": (distance, others[0].distances(own[0])[:, 0]), "cosine": (cosine, one), "others": (mean, one)}
