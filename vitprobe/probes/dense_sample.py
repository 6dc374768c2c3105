"""Draw labelled pixels of training images with the features of their patches: what dense probes are trained on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitprobe.backbones.base import Backbone
from vitprobe.errors import ArgumentError, InputError
from vitprobe.probes.batch import Batch
from vitprobe.probes.feature_file import FeatureFile, feature_site
from vitprobe.recorder import Site

PIXELS = 64
"""Pixels drawn of an image where nobody says how many."""
Truth = Callable[[int], np.ndarray]
"""Pixels (H, W) as the model sees an image, by its position in the source: classes, int64, -1 where void; or depths,
float32, nan where not measured."""


@dataclass(frozen=True)
class PixelSample:
    """Hold N drawn pixels; features stay on disk."""

    features: np.ndarray
    """(N, D) float32, of the patch that a pixel lies in; a memory map."""
    noise: np.ndarray
    """(N, D) float32 standard normal, a memory map: the control that knows nothing."""
    targets: np.ndarray
    """(N,) class of the pixel, or mean depth of its patch."""
    patches: np.ndarray
    """(N,) position of the patch on the grid, row by row."""
    images: np.ndarray
    """(N,) position of the image in its source."""
    grid: tuple[int, int]
    num_without: int
    """Images without a labelled pixel."""


class PixelSampler:
    """Draw up to ``number`` labelled pixels of each image, so that each is as likely, with what is read of its patch.

    The cross-entropy of a linear map on the rows is, on average over draws, that of the map on all labelled pixels of
    an image, with the map's outputs upsampled by repeating them over the patch; every image counts alike. Of depths the
    target is the mean over the measured pixels of the patch: it has the same best map as the pixels themselves.
    """

    def __init__(
        self,
        backbone: Backbone,
        truth: Truth,
        folder: Path,
        *,
        block: int,
        point: str = "auto",
        number: int = PIXELS,
        seed: int = 0,
    ) -> None:
        """Prepare to read ``backbone`` (see `feature_site`). Raises `ArgumentError` for less than a pixel."""
        if number < 1:
            raise ArgumentError(f"got {number} pixels an image; give 1 or more")
        self.site = feature_site(backbone, block, point)
        self.sites: Sequence[Site] = (self.site,)
        self._truth, self._number, self._seed = truth, number, seed
        self._layout, self._patch_size = backbone.layout(), backbone.patch_size
        self._files = {kind: FeatureFile(folder / f"{kind}.npy", backbone.width) for kind in ("features", "noise")}
        self._rows: dict[str, list[np.ndarray]] = {"targets": [], "patches": [], "images": []}
        self._without = 0

    def update(self, batch: Batch, taken: Mapping[Site, Any], output: Tensor) -> None:
        """Draw of each image of a batch, whatever its batch, by (seed, position in the source)."""
        tokens = taken[self.site][:, self._layout.patches]  # (B, P, D)
        for row, index in zip(tokens, batch.indices, strict=True):
            rng = np.random.default_rng((self._seed, index))
            cells = by_patch(self._truth(index), self._patch_size, self._layout.grid)  # (P, h * w)
            known = cells >= 0 if cells.dtype.kind == "i" else np.isfinite(cells)
            patches, pixels = draw_pixels(known, self._number, rng)  # (n,) each
            if not len(patches):
                self._without += 1
                continue
            targets = cells[patches, pixels]
            if cells.dtype.kind == "f":
                targets = np.nanmean(cells[patches], axis=1, dtype=float)
            self._files["features"].add(row[torch.from_numpy(patches).to(row.device)].float().cpu().numpy())
            self._files["noise"].add(rng.standard_normal((len(patches), row.shape[-1]), np.float32))
            drawn = (targets, patches, np.full(len(patches), index))
            for kept, one in zip(self._rows.values(), drawn, strict=True):
                kept.append(one)

    def finish(self) -> PixelSample:
        """Close the files and return what was drawn. Raises `InputError` where no pixel is labelled."""
        if not self._rows["targets"]:
            raise InputError("no training image has a labelled pixel; give masks or depths of these images")
        rows = {name: np.concatenate(parts) for name, parts in self._rows.items()}
        files = {kind: file.finish() for kind, file in self._files.items()}
        return PixelSample(**files, **rows, grid=self._layout.grid, num_without=self._without)


def by_patch(values: np.ndarray, patch_size: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """Cut pixels (H, W) into patches, row by row: (P, h * w). Raises `ArgumentError` for pixels of another size."""
    (rows, cols), (height, width) = grid, patch_size
    if values.shape != (rows * height, cols * width):
        raise ArgumentError(f"got pixels {values.shape}; {rows} x {cols} patches of {height} x {width} px are needed")
    return values.reshape(rows, height, cols, width).swapaxes(1, 2).reshape(rows * cols, height * width)


def draw_pixels(known: np.ndarray, number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw ``number`` of the known pixels, (P, n) bool, or as many as there are: (m,) patches, (m,) pixels in them.

    Each pixel is drawn as often as any other, on average. The sampling is systematic over patches in random order: a
    patch with a share s of the known pixels gives m s of the drawn, to within one, so that few are drawn twice.
    """
    counts = known.sum(axis=1)
    total = int(counts.sum())
    number = min(number, total)
    if not number:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    order = rng.permutation(len(counts))
    places = (rng.random() + np.arange(number)) * (total / number)  # (m,) in 0 to total
    chosen = np.searchsorted(np.cumsum(counts[order]), np.minimum(places.astype(np.int64), total - 1), side="right")
    patches = order[chosen]
    pixels = ((1 - rng.random((number, known.shape[1]))) * known[patches]).argmax(axis=1)
    return patches, pixels
