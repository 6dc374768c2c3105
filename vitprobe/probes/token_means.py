"""Means of a number of drawn tokens, with intervals over their images; of two kinds, the difference within images."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vitprobe.errors import ArgumentError
from vitprobe.probes.by_image import Estimate, ImageMeans
from vitprobe.probes.knn import wilson_interval

Values = tuple[np.ndarray, np.ndarray]
"""(N,) position of each token's image in its source, and (N,) a number of each token."""
_CHUNK = 1024
"""Images whose weights are drawn at a time."""


def token_mean(values: Values, *, seed: int = 0) -> Estimate:
    """Return the mean over tokens; tokens of one image stay together in the bootstrap. None of no token."""
    images, sums, counts = _by_image(*values)
    return _gather(images, sums, counts, seed)


def paired_difference(one: Values, other: Values, *, seed: int = 0) -> Estimate:
    """Return the mean, over images that have tokens of both, of one's mean less the other's.

    What images have in common, such as a hard class, falls out of the difference, so its interval may leave 0 where
    those of the two means overlap. Numbers that are not finite raise `ArgumentError`.
    """
    parts = [_by_image(*values) for values in (one, other)]
    images, *rows = np.intersect1d(parts[0][0], parts[1][0], assume_unique=True, return_indices=True)
    means = [sums[row] / counts[row] for (_, sums, counts), row in zip(parts, rows, strict=True)]
    return _gather(images, means[0] - means[1], np.ones(len(images)), seed)


def token_share(values: Values, *, seed: int = 0) -> Estimate:
    """Return the mean over tokens of what is 0 or 1, as `token_mean` does.

    Where all are alike a bootstrap's interval has no width: then it is Wilson's, of as many images.
    """
    found = token_mean(values, seed=seed)
    if found.value not in (0.0, 1.0):
        return found
    return replace(found, interval=wilson_interval(round(found.value * found.num_images), found.num_images))


def joined(draws: Sequence[Values]) -> Values:
    """Put the tokens of several draws into one; where a kind has one token an image, its number counts once a draw."""
    return np.concatenate([images for images, _ in draws]), np.concatenate([values for _, values in draws])


def _by_image(images: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the images, (I,) sorted, and the sum and number of tokens of each."""
    values = np.asarray(values, np.float64)
    if values.shape != np.shape(images) or values.ndim != 1 or not np.isfinite(values).all():
        raise ArgumentError(f"got numbers {values.shape} of {np.shape(images)} tokens; a finite one of each is needed")
    unique, place = np.unique(images, return_inverse=True)
    return unique, np.bincount(place, values, len(unique)), np.bincount(place, minlength=len(unique)).astype(float)


def _gather(images: np.ndarray, sums: np.ndarray, counts: np.ndarray, seed: int) -> Estimate:
    means = ImageMeans(("mean",), seed=seed)
    for start in range(0, len(images), _CHUNK):
        part = slice(start, start + _CHUNK)
        means.add(images[part].tolist(), {"mean": (sums[part], counts[part])})
    return means.estimate("mean")
