"""Replace registers inside a model, in several ways, and see what becomes of its other tokens.

Zeroed registers are nothing that the model has ever seen, so that what breaks need not be what they carried; means,
noise and the registers of other images are beside it as controls (arXiv 2604.14433; means also Sun et al.,
arXiv 2402.17762, section 5).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vitprobe.backbones.base import Backbone
from vitprobe.errors import ArgumentError, InputError
from vitprobe.probes.batch import Batch
from vitprobe.probes.by_image import Estimate, ImageMeans
from vitprobe.probes.feature_file import feature_site
from vitprobe.probes.knn import wilson_interval
from vitprobe.probes.linear import C_GRID, fit_logistic
from vitprobe.probes.linear_fit import Fitted
from vitprobe.probes.passes import Reader
from vitprobe.recorder import Recorder, Site, token_norms

WAYS = ("zero", "mean", "noise", "shuffle")
"""Zeros; the mean over training images; Gaussian noise of their mean and standard deviation, dimension by dimension;
the registers of another, a training image. Each by register and block."""
OWN, CLEAN = "own", "clean"
CHANGES = ("cls", "mean", "patches")
"""What is set beside the same of the untouched model: CLS, the mean of the patches, each patch (mean over an image)."""
NUM_POOL = 64
"""Training images whose registers are kept to be put into other images; chosen at random, whatever their order."""
_POOL, _NOISE, _DONOR = 1, 2, 3  # one stream of random numbers an image for each


@dataclass(frozen=True)
class RegisterStats:
    """Hold what R registers are like before L blocks, over training images."""

    blocks: tuple[int, ...]
    mean: np.ndarray
    """(L, R, D) float32"""
    std: np.ndarray
    """(L, R, D) float32 standard deviation over images."""
    donors: np.ndarray
    """(K, L, R, D) float32 registers of single images."""
    donor_names: tuple[str, ...]
    num_images: int


class RegisterStatsReader:
    """Gather the registers' means, deviations and some of them whole; memory does not grow with the images."""

    def __init__(self, backbone: Backbone, *, blocks: Sequence[int], num_pool: int = NUM_POOL, seed: int = 0) -> None:
        """Prepare to read what enters ``blocks``. Raises `ArgumentError` without registers, or for another's block."""
        if not backbone.layout().num_registers:
            raise ArgumentError(f"{backbone.spec.name} has no registers to replace")
        if type(num_pool) is not int or num_pool < 2:
            raise ArgumentError(f"got a pool of {num_pool!r} images; give 2 or more, so that none is given its own")
        self.blocks = tuple(backbone.check_block(block) for block in blocks)
        where = backbone.layout().registers
        self.sites: Sequence[Site] = Site("resid_pre", reduce=lambda x: x[:, where]).at(self.blocks)
        self._num_pool, self._seed, self._number = num_pool, seed, 0
        self._first: Tensor | None = None
        self._sums: list[Tensor] = []
        self._pool: dict[int, tuple[float, str, np.ndarray]] = {}

    def update(self, batch: Batch, taken: Mapping[Site, Any], output: Tensor) -> None:
        """Take in one batch."""
        own = torch.stack([taken[site] for site in self.sites], dim=1).float().cpu()  # (B, L, R, D)
        if self._first is None:  # taken off, so that sums of squares keep their digits
            self._first = own[0].double()
            self._sums = [torch.zeros_like(self._first), torch.zeros_like(self._first)]
        beyond = own.double() - self._first
        for total, value in zip(self._sums, (beyond, beyond**2), strict=True):
            total += value.sum(0)
        self._number += len(own)
        for index, name, one in zip(batch.indices, batch.names, own.numpy(), strict=True):
            lot = float(np.random.default_rng((self._seed, index, _POOL)).random())
            self._pool[index] = (lot, name, one)
        for index in sorted(self._pool, key=lambda i: self._pool[i][0])[self._num_pool :]:
            del self._pool[index]

    def result(self) -> RegisterStats:
        """Return what was gathered. Raises `InputError` without any image."""
        if self._first is None:
            raise InputError("no training image could be read; nothing is known of the registers")
        mean, square = (total / self._number for total in self._sums)
        kept = [self._pool[index] for index in sorted(self._pool)]
        return RegisterStats(
            self.blocks,
            (self._first + mean).float().numpy(),
            (square - mean**2).clamp_min(0).sqrt().float().numpy(),
            np.stack([own for _, _, own in kept]),
            tuple(name for _, name, _ in kept),
            self._number,
        )


def blocks_of(asked: str | int | Sequence[int], block: int, name: str) -> tuple[int, ...]:
    """Return before which blocks registers are replaced, for features after ``block``.

    ``all``: every one from block 1 on (what enters block 0 is the same for all images); ``last``: that block alone; or
    their numbers. Raises `ArgumentError` for a block beyond, and where there is none.
    """
    if asked == "all":
        found: tuple[Any, ...] = tuple(range(1, block + 1))
    elif asked == "last":
        found = (block,) * (block > 0)
    else:
        found = tuple(asked) if isinstance(asked, tuple | list) else (asked,)
    if not found:
        raise ArgumentError(f"registers enter block 0 of {name} as they were learned; look at a later block")
    if any(type(one) is not int or not 0 <= one <= block for one in found) or len({*found}) < len(found):
        raise ArgumentError(f"got blocks {asked!r}; allowed are all, last, or numbers from 0 to {block}, each once")
    return tuple(sorted(found))


def ways_of(asked: str | Sequence[str]) -> tuple[str, ...]:
    """Return one way, or several, as several. Raises `ArgumentError` for what is none of `WAYS`, or twice there."""
    ways = (asked,) if isinstance(asked, str) else tuple(asked)
    if not ways or any(way not in WAYS for way in ways) or len({*ways}) < len(ways):
        raise ArgumentError(f"got ways {ways}; allowed are {', '.join(WAYS)}, each once")
    return ways


class ReplacementReader:
    """Run each batch again with registers replaced, and set what comes out beside the untouched model's."""

    def __init__(
        self,
        backbone: Backbone,
        stats: RegisterStats,
        *,
        block: int,
        ways: Sequence[str] = WAYS,
        followers: Mapping[str, Reader] | None = None,
        autocast: torch.dtype | None = None,
        seed: int = 0,
    ) -> None:
        """Prepare to replace registers before the blocks of ``stats``; features are those of `feature_site`.

        ``followers``: a reader for each way that sees the model so changed, as if it were read by itself. Noise, and
        whose registers an image is given, depend on the seed and the image's position in its source alone. Raises
        `ArgumentError` for ways that are none.
        """
        self._backbone, self._stats, self.ways = backbone, stats, ways_of(ways)
        self._layout, self._autocast, self._seed = backbone.layout(), autocast, seed
        self._site, self._norms = feature_site(backbone, block), Site("resid_post", block, reduce=token_norms)
        where = self._layout.registers
        self._registers = Site("resid_pre", reduce=lambda x: x[:, where]).at(stats.blocks)
        self.sites: Sequence[Site] = (self._site, self._norms, *self._registers)
        self._followers = dict(followers or {})
        self.changes = CHANGES if self._layout.cls is not None else CHANGES[1:]
        names = [f"{way}.{what}" for way in self.ways for what in (*self.changes, "largest")]
        self.means = ImageMeans([f"{CLEAN}.largest", *names], seed=seed)
        self.own_difference: float | None = None
        """Largest difference of any feature or output where registers are replaced by themselves: 0, or it is wrong."""
        self.num_own = 0
        """Images of which that was seen: those of the first batch."""

    def update(self, batch: Batch, taken: Mapping[Site, Any], output: Tensor) -> None:
        """Take in one batch, running the model again for every way."""
        clean, norms = taken[self._site].float(), taken[self._norms][:, self._layout.patches]  # (B, T, D), (B, P)
        if self.own_difference is None:
            own = torch.stack([taken[site] for site in self._registers], dim=1)  # (B, L, R, D)
            kept, again = self._run(batch, own, [self._site])
            pairs = ((kept[self._site].float(), clean), (again.float(), output.float()))
            self.own_difference = max(float((a - b).abs().max()) for a, b in pairs)
            self.num_own = len(clean)
        median, ones = norms.double().median(dim=1).values, np.ones(len(clean))
        sums = {f"{CLEAN}.largest": (_numbers(norms.amax(1) / median), ones)}
        for way in self.ways:
            follower = self._followers.get(way)
            sites = [self._site, self._norms, *(follower.sites if follower else ())]
            kept, again = self._run(batch, self.values(way, batch), sites)
            edited = kept[self._site].float()
            for what, change in self._changes(clean, edited).items():
                sums[f"{way}.{what}"] = (_numbers(change), ones)
            largest = kept[self._norms][:, self._layout.patches].amax(1) / median
            sums[f"{way}.largest"] = (_numbers(largest), ones)
            if follower:
                follower.update(batch, {site: kept[site] for site in follower.sites}, again)
        self.means.add(batch.indices, sums)

    def values(self, way: str, batch: Batch) -> Tensor:
        """Return what registers are replaced by: (B, L, R, D) float32."""
        stats = self._stats
        mean = torch.from_numpy(stats.mean)
        if way == "zero":
            return torch.zeros(len(batch.indices), *mean.shape)
        if way == "mean":
            return mean.expand(len(batch.indices), *mean.shape)
        if way == "shuffle":
            each = zip(batch.indices, batch.names, strict=True)
            return torch.from_numpy(stats.donors[[self.donor(index, name) for index, name in each]])
        draws = [np.random.default_rng((self._seed, i, _NOISE)).standard_normal(mean.shape) for i in batch.indices]
        return mean + torch.from_numpy(stats.std) * torch.from_numpy(np.stack(draws)).float()

    def donor(self, index: int, name: str) -> int:
        """Return whose registers an image is given, a position in the pool: never those of an image of its name."""
        number = len(self._stats.donor_names)
        first = int(np.random.default_rng((self._seed, index, _DONOR)).integers(number))
        return (first + 1) % number if self._stats.donor_names[first] == name else first

    def _run(self, batch: Batch, values: Tensor, sites: Sequence[Site]) -> tuple[dict[Site, Any], Tensor]:
        """Run the model on a batch with registers replaced by ``values`` (B, L, R, D) before the blocks."""
        device = next(self._backbone.module.parameters()).device
        values, where = values.to(device), self._layout.registers
        edits = [
            Site("resid_pre", block, edit=partial(put, where=where, values=values[:, at]), keep=False)
            for at, block in enumerate(self._stats.blocks)
        ]
        with (
            torch.inference_mode(),
            torch.autocast(device.type, dtype=self._autocast, enabled=self._autocast is not None),
            Recorder(self._backbone, [*edits, *sites]) as recorder,
        ):
            output = self._backbone(batch.images.to(device))
            return recorder.take(), output

    def _changes(self, clean: Tensor, edited: Tensor) -> dict[str, Tensor]:
        """Compute 1 - cosine of all tokens (B, T, D) with the untouched ones, (B,) by `CHANGES`."""
        found = {}
        if self._layout.cls is not None:
            found["cls"] = _apart(clean[:, self._layout.cls], edited[:, self._layout.cls])[:, 0]
        one, other = clean[:, self._layout.patches], edited[:, self._layout.patches]  # (B, P, D)
        return found | {"mean": _apart(one.mean(1), other.mean(1)), "patches": _apart(one, other).mean(1)}


def put(x: Tensor, *, where: slice, values: Tensor) -> Tensor:
    """Put values (B, R, D) in place of some tokens of (B, T, D)."""
    replaced = x.clone()
    replaced[:, where] = values.to(x.dtype)
    return replaced


def read_classes(
    train: np.ndarray,
    labels: np.ndarray,
    tests: Mapping[str, np.ndarray],
    *,
    grid: Sequence[float] = C_GRID,
    solver: str = "sklearn",
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> tuple[Fitted, dict[str, np.ndarray]]:
    """Train one logistic regression on (N, D), labels (N,), and let it read the class of several (M, D): (M,) each.

    See `logistic_probe` for the fit, and for what is refused.
    """
    fit = fit_logistic(train, labels, grid=grid, seed=seed, solver=solver, device=device)
    read = {}
    for way, features in tests.items():
        logits = [found.argmax(1) for _, found in fit.map(features, np.arange(len(features)))]
        read[way] = fit.classes[np.concatenate(logits)]
    return fit, read


def differences(
    read: Mapping[str, np.ndarray], labels: np.ndarray, indices: Sequence[int], *, seed: int = 0
) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    """Set accuracies of all ways beside that of `CLEAN`, image by image: accuracies, and differences to clean.

    Intervals of accuracies are Wilson's; those of differences resample images, whose clean and changed reading stay
    together.
    """
    right = {way: (found == labels).astype(float) for way, found in read.items()}
    number, ways = len(labels), [way for way in read if way != CLEAN]
    accuracies = {w: Estimate(float(r.mean()), wilson_interval(int(r.sum()), number), number) for w, r in right.items()}
    means = ImageMeans(ways, seed=seed)
    means.add(indices, {way: (right[way] - right[CLEAN], np.ones(number)) for way in ways})
    return accuracies, {way: means.estimate(way) for way in ways}


def _apart(one: Tensor, other: Tensor) -> Tensor:
    return 1 - cosine_similarity(one.double(), other.double(), dim=-1)


def _numbers(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()
