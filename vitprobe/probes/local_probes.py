"""What single tokens know of their own patch: where it is (position probe) and what it looks like (pixel probe)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vitprobe.backbones.base import Backbone
from vitprobe.errors import ArgumentError, InputError
from vitprobe.probes.batch import Batch
from vitprobe.probes.linear import ALPHA_GRID, C_GRID, LogisticResult, RidgeResult, logistic_probe, ridge_probe
from vitprobe.probes.token_features import PATCH_KINDS, TokenSet

UNITS = ("model", "unit")


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


def position_probe(
    train: TokenSet,
    test: TokenSet,
    *,
    grid: Sequence[float] = C_GRID,
    seed: int = 0,
    solver: str = "sklearn",
    device: torch.device | str = "cpu",
) -> PositionResult:
    """Train a linear classifier over the positions of the grid on single tokens, and test it on those of other images.

    This is the position probe of Darcet et al. (arXiv 2309.16588, figure 5b): top-1 accuracy, and the mean distance of
    the prediction in patches, which is taken to be Euclidean. The paper does not say whether normal and outlier tokens
    share a probe; the result names the kinds. Tokens of one image stay together where C is chosen. Raises
    `ArgumentError` for tokens without a position, sets of different blocks, points or grids, and what `logistic_probe`
    refuses.
    """
    _same(train, test)
    rows, cols = train.grid
    places = [one.positions[:, 0] * cols + one.positions[:, 1] for one in (train, test)]
    fit = logistic_probe(
        train.features,
        places[0],
        test.features,
        places[1],
        grid=grid,
        seed=seed,
        groups=train.images,
        solver=solver,
        device=device,
    )
    where = np.stack(np.divmod(np.arange(rows * cols), cols), 1)  # (P, 2)
    between = np.linalg.norm(where[:, None] - where[None], axis=-1)  # (P, P)
    shares = [np.bincount(place, minlength=rows * cols) / len(place) for place in places]  # (P,) twice
    return PositionResult(
        trained_on=train.kind,
        tested_on=test.kind,
        block=train.block,
        point=train.point,
        accuracy=fit.accuracy,
        interval=fit.interval,
        chance=fit.chance,
        distance=float(between[fit.predicted, places[1]].mean()),
        chance_distance=float(shares[0] @ between @ shares[1]),
        num_unseen=int((~np.isin(places[1], places[0])).sum()),
        fit=fit,
    )


def pixel_probe(
    train: TokenSet,
    train_pixels: np.ndarray,
    test: TokenSet,
    test_pixels: np.ndarray,
    *,
    grid: Sequence[float] = ALPHA_GRID,
    seed: int = 0,
) -> PixelResult:
    """Fit a linear regression from single tokens to the pixels of their patches, and test it on those of other images.

    This is the pixel probe of Darcet et al. (arXiv 2309.16588, figure 5b), with an L2 term. Pixels, (N, 3 * h * w), are
    those of `token_pixels`, and the error is in their unit: the paper does not state its own. Raises `ArgumentError`
    for tokens without a patch, sets of different blocks, points or grids, and what `ridge_probe` refuses.
    """
    _same(train, test)
    fit = ridge_probe(
        train.features, train_pixels, test.features, test_pixels, grid=grid, seed=seed, groups=train.images
    )
    return PixelResult(train.kind, test.kind, train.block, train.point, fit.l2, fit.constant_l2, fit)


def patchify(pixels: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Cut images into patches, row by row: (B, C, H, W) -> (B, P, C * h * w).

    The numbers of a patch are in the order of a convolution's kernel (channel, row, column), so that a patch embedding
    is a product with its flattened kernel. Raises `ArgumentError` where patches do not tile the image.
    """
    height, width = patch_size
    if pixels.ndim != 4 or min(patch_size) < 1 or pixels.shape[2] % height or pixels.shape[3] % width:
        raise ArgumentError(
            f"got images {tuple(pixels.shape)}; (B, C, H, W) of whole {height} x {width} patches is needed"
        )
    cells = pixels.unflatten(3, (-1, width)).unflatten(2, (-1, height))  # (B, C, rows, h, cols, w)
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, P, C * h * w)


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
