"""What single tokens know of their own patch: where it is (position probe) and what it looks like (pixel probe)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vitprobe.backbones.base import Backbone
from vitprobe.errors import ArgumentError, InputError
from vitprobe.probes.batch import Batch
from vitprobe.probes.by_image import Estimate
from vitprobe.probes.linear import ALPHA_GRID, LogisticResult, RidgeResult, logistic_probes, ridge_probes
from vitprobe.probes.token_features import UNITS, patchify
from vitprobe.probes.token_means import Values, paired_difference, token_mean, token_share
from vitprobe.probes.token_sets import PATCH_KINDS, TokenSet


@dataclass(frozen=True)
class PositionResult:
    """Hold how well a linear classifier tells, from one token, where on the grid its patch is."""

    trained_on: str
    """Kind of the training tokens."""
    tested_on: str
    block: int
    point: str
    accuracy: float
    """Share of test tokens whose row and column are both right."""
    interval: tuple[float, float]
    """Wilson's 95 % interval of the accuracy, for test tokens drawn independently: one an image."""
    chance: float
    """Share of test tokens at the training set's most frequent position (the mean over those that tie)."""
    distance: float
    """Mean Euclidean distance between predicted and true position, in patches."""
    chance_distance: float
    """The same of a guess drawn from the positions of the training tokens, whatever the features."""
    num_unseen: int
    """Test tokens at positions that no training token has; the probe cannot name those."""
    fit: LogisticResult
    hits: np.ndarray = field(repr=False, compare=False)
    """(M,) bool: row and column are both right."""
    distances: np.ndarray = field(repr=False, compare=False)
    """(M,) distance of each prediction, in patches."""
    images: np.ndarray = field(repr=False, compare=False)
    """(M,) position of each test token's image in its source."""


@dataclass(frozen=True)
class PixelResult:
    """Hold how well a linear map reads, from one token, the pixels of its patch."""

    trained_on: str
    tested_on: str
    block: int
    point: str
    error: float
    """Mean over test tokens of the L2 norm of the error over all pixels and channels of the patch."""
    constant_error: float
    """The same of the mean patch of the training tokens."""
    fit: RidgeResult

    @property
    def errors(self) -> np.ndarray:
        """(M,) L2 norm of each test token's error."""
        return self.fit.errors


Both = tuple[PositionResult, PixelResult]
QUANTITIES = ("position", "distance", "pixels")
"""What one token tells of its patch: whether its place is right, how far off it is, the error of its pixels."""


def position_probe(train: TokenSet, test: TokenSet, **options: Any) -> PositionResult:
    """Train a linear classifier over the positions of the grid on single tokens, and test it on those of other images.

    This is the position probe of Darcet et al. (arXiv 2309.16588, figure 5b): top-1 accuracy, and the mean distance of
    the prediction in patches, which is taken to be Euclidean. The paper does not say whether normal and outlier tokens
    share a probe; the result names the kinds. Tokens of one image stay together where C is chosen. Options are those
    of `logistic_probe`. Raises `ArgumentError` for tokens without a position, sets of different blocks, points or
    grids, and what `logistic_probe` refuses.
    """
    return position_probes(train, [test], **options)[0]


def position_probes(train: TokenSet, tests: Sequence[TokenSet], **options: Any) -> list[PositionResult]:
    """Train as `position_probe` does, and test on several sets."""
    for test in tests:
        _same(train, test)
    rows, cols = train.grid
    of_train, *places = [one.positions[:, 0] * cols + one.positions[:, 1] for one in (train, *tests)]
    pairs = [(test.features, place) for test, place in zip(tests, places, strict=True)]
    fits = logistic_probes(train.features, of_train, pairs, groups=train.images, **options)
    where = np.stack(np.divmod(np.arange(rows * cols), cols), 1)  # (P, 2)
    between = np.linalg.norm(where[:, None] - where[None], axis=-1)  # (P, P)
    shares = [np.bincount(place, minlength=rows * cols) / len(place) for place in (of_train, *places)]  # (P,) each
    found = []
    for test, place, share, fit in zip(tests, places, shares[1:], fits, strict=True):
        distances = between[fit.predicted, place]
        result = PositionResult(
            trained_on=train.kind,
            tested_on=test.kind,
            block=train.block,
            point=train.point,
            accuracy=fit.accuracy,
            interval=fit.interval,
            chance=fit.chance,
            distance=float(distances.mean()),
            chance_distance=float(shares[0] @ between @ share),
            num_unseen=int((~np.isin(place, of_train)).sum()),
            fit=fit,
            hits=fit.predicted == place,
            distances=distances,
            images=test.images,
        )
        found.append(result)
    return found


def pixel_probe(
    train: TokenSet, train_pixels: np.ndarray, test: TokenSet, test_pixels: np.ndarray, **options: Any
) -> PixelResult:
    """Fit a linear regression from single tokens to the pixels of their patches, and test it on those of other images.

    This is the pixel probe of Darcet et al. (arXiv 2309.16588, figure 5b), with an L2 term. Pixels, (N, 3 * h * w), are
    those that `TokenReader` wrote, or of `token_pixels`, and the error is in their unit: the paper does not state its
    own. Options are those of `ridge_probe`. Raises `ArgumentError` for tokens without a patch, sets of different
    blocks, points or grids, and what `ridge_probe` refuses.
    """
    return pixel_probes(replace(train, pixels=train_pixels), [replace(test, pixels=test_pixels)], **options)[0]


def pixel_probes(train: TokenSet, tests: Sequence[TokenSet], **options: Any) -> list[PixelResult]:
    """Fit as `pixel_probe` does, and test on several sets; pixels are those of the sets.

    Raises `ArgumentError` where a set has none.
    """
    for test in tests:
        _same(train, test)
    if any(one.pixels is None for one in (train, *tests)):
        raise ArgumentError("got tokens without pixels; draw them with pixels")
    pairs = [(test.features, test.pixels) for test in tests]
    fits = ridge_probes(train.features, train.pixels, pairs, groups=train.images, **options)
    return [
        PixelResult(train.kind, test.kind, train.block, train.point, fit.l2, fit.constant_l2, fit)
        for test, fit in zip(tests, fits, strict=True)
    ]


def probe_pairs(
    sets: Mapping[str, tuple[TokenSet, TokenSet]],
    pairs: Sequence[tuple[str, str]],
    *,
    alpha_grid: Sequence[float] = ALPHA_GRID,
    **options: Any,
) -> dict[tuple[str, str], Both]:
    """Train both probes on one kind and test them on another, for each pair of kinds; a kind is trained on once.

    ``sets`` has tokens to train and to test on by kind, with pixels. ``options`` are those of `logistic_probe`, and the
    seed of both. Raises what the probes do.
    """
    found: dict[tuple[str, str], Both] = {}
    for trained in dict.fromkeys(trained for trained, _ in pairs):
        train, tested = sets[trained][0], [kind for one, kind in pairs if one == trained]
        tests = [sets[kind][1] for kind in tested]
        places = position_probes(train, tests, **options)
        looks = pixel_probes(train, tests, grid=alpha_grid, seed=options.get("seed", 0))
        found |= {(trained, kind): both for kind, both in zip(tested, zip(places, looks, strict=True), strict=True)}
    return {pair: found[pair] for pair in pairs}


def values_of(name: str, both: Both) -> Values:
    """Return one of `QUANTITIES` of each test token, with the tokens' images."""
    position, pixels = both
    return position.images, {"position": position.hits, "distance": position.distances, "pixels": pixels.errors}[name]


def scored(both: Both, *, seed: int) -> dict[str, Estimate]:
    """Return the mean of each quantity, with an interval over images."""
    shares = {"position": token_share}
    return {name: shares.get(name, token_mean)(values_of(name, both), seed=seed) for name in QUANTITIES}


def chance_of(both: Both) -> dict[str, float]:
    """Return what is reached without the features, from the training tokens' places and pixels alone."""
    position, pixels = both
    return {"position": position.chance, "distance": position.chance_distance, "pixels": pixels.constant_error}


def difference(name: str, one: Both, other: Both, *, seed: int) -> Estimate:
    """Return one quantity of one kind less that of another, within images."""
    return paired_difference(values_of(name, one), values_of(name, other), seed=seed)


def token_pixels(
    backbone: Backbone, batches: Iterable[Batch], sets: Sequence[TokenSet], *, unit: str = "model"
) -> list[np.ndarray]:
    """Read the pixels of the patches of drawn tokens, (N, 3 * h * w) float32 for each set, in one pass over the images.

    ``unit``: ``model`` leaves pixels as the model reads them, normalised; ``unit`` takes them back to [0, 1]. The model
    is not run. All answers are held in memory. Raises `ArgumentError` for tokens that are no patches, or images of
    another size; `InputError` where the batches lack an image of a set.
    """
    if unit not in UNITS:
        raise ArgumentError(f"got unit {unit!r}; allowed are {' and '.join(UNITS)}")
    for one in sets:
        _located(one)
    height, width = backbone.patch_size
    found = [np.zeros((len(one.images), 3 * height * width), np.float32) for one in sets]
    missing = [np.ones(len(one.images), bool) for one in sets]
    for batch in batches:
        pixels = batch.images if unit == "model" else backbone.transform.pixels(batch.images)
        patches = patchify(pixels, backbone.patch_size).numpy()  # (B, P, 3 * h * w)
        grid = (pixels.shape[2] // height, pixels.shape[3] // width)
        number = {index: i for i, index in enumerate(batch.indices)}
        for one, target, lacks in zip(sets, found, missing, strict=True):
            if grid != one.grid:
                raise ArgumentError(f"got images of {grid} patches; the tokens were drawn from images of {one.grid}")
            rows = np.flatnonzero(np.isin(one.images, batch.indices))
            images = [number[index] for index in one.images[rows].tolist()]
            target[rows] = patches[images, one.positions[rows] @ (grid[1], 1)]
            lacks[rows] = False
    if any(lacks.any() for lacks in missing):
        gone = len(set().union(*(one.images[lacks].tolist() for one, lacks in zip(sets, missing, strict=True))))
        raise InputError(f"{gone} images of the drawn tokens are not among the batches; give the images they came from")
    return found


def _same(train: TokenSet, test: TokenSet) -> None:
    """Raise `ArgumentError` where a probe trained on one set says nothing about the other, or has no patches."""
    for one in (train, test):
        _located(one)
    described = [(one.point, one.block, one.grid) for one in (train, test)]
    if described[0] != described[1]:
        got = " and ".join(f"{point} of block {block} on {grid}" for point, block, grid in described)
        raise ArgumentError(f"got tokens of {got}; train and test at one point, block and grid")


def _located(tokens: TokenSet) -> None:
    if tokens.kind not in PATCH_KINDS:
        raise ArgumentError(f"got {tokens.kind} tokens, which have no patch; give normal or outlier ones")
