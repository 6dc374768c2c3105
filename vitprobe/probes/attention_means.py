"""Means over images of what rows of attention say, with intervals: what `attention_distance` gathers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vitprobe.errors import ArgumentError, InputError
from vitprobe.probes.attention_geometry import MEASURES, SHARES, RowSums
from vitprobe.probes.by_image import image_weights


@dataclass(frozen=True)
class Reading:
    """Hold what one batch has left."""

    indices: tuple[int, ...]
    sums: RowSums
    """With an axis of blocks: (B, L, H, ...)."""
    asked: np.ndarray
    """(B, M) asking patches that count."""
    uniform: np.ndarray
    """(B, M, 2, 2) what `Keys.uniform` says."""
    outliers: np.ndarray
    """(B,) how many outliers."""

    def values(self) -> dict[str, np.ndarray]:
        """Return each image's means, 0 where it has none, and as ``.weight`` 1 where it has, else 0.

        Raises `ArgumentError` for attention that is not finite.
        """
        sums = (x.movedim((1, 2), (-2, -1)).cpu().numpy() for x in vars(self.sums).values())
        measured, permuted, rows, shares = sums  # (B, M, ..., L, H) each
        if not (np.isfinite(measured).all() and np.isfinite(shares).all()):
            raise ArgumentError("some attention is not finite; try float32, or check the weights")
        shares = shares / np.maximum(self.asked, 1)[:, :, None, None, None]  # (B, M, 4, L, H)
        has = (self.asked > 0).astype(float)
        of_each = shares[:, :, [SHARES.index("outliers")]] / np.maximum(self.outliers, 1)[:, None, None, None, None]
        has_each = has * (self.outliers > 0)[:, None]
        return {
            "measured": measured / np.maximum(rows, 1)[:, :, :, None],  # (B, M, 2, 2, L, H)
            "permuted": permuted / np.maximum(rows, 1)[:, :, :, None, None],  # (B, M, 2, 2, K, L, H)
            "measured.weight": (rows > 0)[:, :, :, None].astype(float),  # (B, M, 2, 1, L, H)
            "shares": np.concatenate([shares, of_each], axis=2),  # (B, M, 5, L, H)
            "shares.weight": np.stack([*[has] * len(SHARES), has_each], axis=2)[..., None, None],
            "uniform": np.nan_to_num(self.uniform),
            "uniform.weight": np.isfinite(self.uniform).astype(float),
        }


@dataclass
class DistanceAccumulator:
    """Gather means over images with bootstrap replicates; mergeable, of constant memory."""

    settings: dict[str, Any]
    """What was measured, and how; two can be merged where it is the same."""
    num_images: int = 0
    num_outliers: int = 0
    num_with_outliers: int = 0
    sums: dict[str, np.ndarray] = field(default_factory=dict)
    """Sums of `Reading.values` over images."""
    replicates: dict[str, np.ndarray] = field(default_factory=dict)
    """(R, ...) the same with images weighted as `image_weights` says, float32: they serve intervals alone."""

    def update(self, reading: Reading) -> None:
        """Take in one batch."""
        draws = image_weights(reading.indices, seed=self.settings["seed"]).T  # (R, B)
        for name, value in reading.values().items():
            self.sums[name] = self.sums.get(name, 0) + value.sum(axis=0)
            if name == "permuted":
                continue  # the range of permutations is its interval
            again = (draws @ value.reshape(len(value), -1)).astype(np.float32).reshape(-1, *value.shape[1:])
            self.replicates[name] = self.replicates.get(name, 0) + again
        self.num_images += len(reading.indices)
        self.num_outliers += int(reading.outliers.sum())
        self.num_with_outliers += int((reading.outliers > 0).sum())

    def merge(self, other: "DistanceAccumulator") -> None:
        """Add what another has gathered from other images. Raises `ArgumentError` where the two do not match."""
        if self.settings != other.settings:
            raise ArgumentError("attention distances of different models, sizes, blocks or settings cannot be merged")
        for own, more in ((self.sums, other.sums), (self.replicates, other.replicates)):
            for name, value in more.items():
                own[name] = own.get(name, 0) + value
        self.num_images += other.num_images
        self.num_outliers += other.num_outliers
        self.num_with_outliers += other.num_with_outliers

    def means(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Return the means by name, and their replicates, (R, ...). Raises `InputError` without images.

        `MEASURES` and ``locality``: (M, 2, L, H); ``shares``: (M, 5, L, H); ``uniform``: (M, 2, 2).
        """
        if not self.num_images:
            raise InputError("no image could be read; nothing was measured")
        return _divide(self.sums), _divide(self.replicates)

    def permuted(self) -> dict[str, np.ndarray]:
        """Return the least and the greatest of the permutations, (2, M, 2, L, H), of `MEASURES` and ``locality``."""
        with np.errstate(invalid="ignore", divide="ignore"):
            means = self.sums["permuted"] / self.sums["measured.weight"][:, :, :, None]  # (M, 2, 2, K, L, H)
            uniform = self.sums["uniform"] / self.sums["uniform.weight"]  # (M, 2, 2)
            found = dict(zip(MEASURES, np.moveaxis(means, 2, 0), strict=True))  # (M, 2, K, L, H) each
            found["locality"] = 1 - found["distance"] / uniform[..., 0][..., None, None, None]
        return {name: np.stack([x.min(axis=2), x.max(axis=2)]) for name, x in found.items()}


def _divide(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Divide sums by their weights, with an axis of replicates first or without."""
    with np.errstate(invalid="ignore", divide="ignore"):
        measured, shares, uniform = (sums[name] / sums[f"{name}.weight"] for name in ("measured", "shares", "uniform"))
        found = {name: measured[..., i, :, :] for i, name in enumerate(MEASURES)}
        locality = 1 - found["distance"] / uniform[..., 0][..., None, None]
    return found | {"locality": locality, "shares": shares, "uniform": uniform}


def interval_over(replicates: np.ndarray, num_images: int) -> np.ndarray:
    """Return the central 95 % of the finite replicates, (R, ...) -> (2, ...); nan without any, or of one image."""
    flat = replicates.reshape(len(replicates), -1)
    ends = np.full((2, flat.shape[1]), np.nan)
    finite = np.isfinite(flat)
    for some, quantile in (
        (finite.all(axis=0), np.quantile),
        (finite.any(axis=0) & ~finite.all(axis=0), np.nanquantile),
    ):
        if num_images > 1 and some.any():
            ends[:, some] = quantile(flat[:, some], (0.025, 0.975), axis=0)
    return ends.reshape(2, *replicates.shape[1:])
