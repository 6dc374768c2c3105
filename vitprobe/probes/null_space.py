"""Whether outliers lie in the null space of the value projection, so that attention cannot pass them on.

Darcet et al. (arXiv 2309.16588, appendix, figure 14) say so of OpenCLIP, and explain by it why registers do not help
LOST there, which reads values. The projection is had from a backbone's own arithmetic, whatever its library: it is
affine in what attention reads, so basis vectors show its matrix.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitprobe.backbones.base import Backbone
from vitprobe.errors import ArgumentError, InputError
from vitprobe.probes.batch import Batch
from vitprobe.probes.by_image import METHOD, NO_OUTLIERS, ImageMeans, outlier_mask, split_sums
from vitprobe.recorder import Site, token_norms

EPS = 1e-2
"""A direction counts as null whose singular value is under this share of the largest: the projection passes less than
1e-4 of the squared norm that it would pass along the strongest one."""
MOST = 0.5
"""Outliers lie in the null space where more than this share of their squared norm does."""
NUM_RANDOM = 4096
"""Random directions of the control."""
AFFINE = 1e-3
"""Largest relative error of the matrix on random inputs: float32 leaves about 1e-6."""
CLAIMS = {
    "in_null_space": "more than half of an outlier's squared norm lies in the null space of the value projection, and "
    "more than of the other patches of its image",
    "weaker": "the value projection passes outliers on more weakly than the other patches of their image",
}
MEASURED = ("null_share", "gain", "value_norm")


@dataclass(frozen=True)
class ValueProjection:
    """Hold the affine map from what attention of a block reads to the values of its H heads."""

    weight: np.ndarray
    """(H, d, D) float64."""
    bias: np.ndarray
    """(H, d) float64."""


@torch.no_grad()
def value_projection(backbone: Backbone, index: int) -> ValueProjection:
    """Return the value projection of a block, from `Backbone.query_key_value` of 0 and of all basis vectors.

    Norms of queries and keys and rotary positions do not touch values. Raises `ArgumentError` where values are not
    affine in what attention reads, as random inputs show, or where they are all 0.
    """
    index, like = backbone.check_block(index), next(backbone.module.parameters())
    context = dict.fromkeys(backbone.attention_context)
    basis = torch.eye(backbone.width, dtype=like.dtype, device=like.device)  # (D, D)
    tokens = torch.cat([torch.zeros_like(basis[:1]), basis, backbone.random_tokens(4)[0].to(like)])  # (1 + D + 4, D)
    values = backbone.query_key_value(index, tokens.unsqueeze(0), **context)[2][0].cpu().double()  # (H, T, d)
    bias, images, seen = values[:, :1], values[:, 1:-4], values[:, -4:]
    weight = images - bias  # (H, D, d)
    expected = tokens[-4:].cpu().double() @ weight + bias  # (H, 4, d)
    error = ((seen - expected).abs().max() / seen.abs().max().clamp_min(1e-12)).item()
    if not error < AFFINE:
        raise ArgumentError(
            f"values of block {index} of {backbone.spec.name} are not affine in what attention reads (relative error "
            f"{error:.1g}); a null space is that of a plain linear projection"
        )
    if not weight.any():
        raise ArgumentError(f"the value projection of block {index} of {backbone.spec.name} is 0; give another block")
    return ValueProjection(weight.transpose(1, 2).contiguous().numpy(), bias[:, 0].numpy())


@dataclass(frozen=True)
class ValueBasis:
    """Hold the singular directions of a block's value projection, strongest first."""

    singular: np.ndarray
    """(D,) singular values; 0 for directions beyond the projection's rank."""
    directions: np.ndarray
    """(D, D) right singular vectors, one a row."""
    offset: np.ndarray
    """(D,) the transposed projection of the bias, in these directions."""
    bias_norm: float

    @classmethod
    def of(cls, projection: ValueProjection) -> "ValueBasis":
        """Decompose all heads' values, one under the other."""
        weight, bias = projection.weight.reshape(-1, projection.weight.shape[-1]), projection.bias.ravel()
        _, singular, directions = np.linalg.svd(weight)
        padded = np.zeros(weight.shape[1])
        padded[: len(singular)] = singular
        return cls(padded, directions, directions @ (weight.T @ bias), float(np.linalg.norm(bias)))

    def num_null(self, eps: float) -> int:
        """Count directions whose singular value is under ``eps`` times the largest."""
        return int((self.singular < eps * self.singular[0]).sum())

    def read(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Decompose tokens (..., D): shares of their squared norm (..., D), gain (...), norm of their values (...).

        Gain is the norm of what the projection makes of a token, without the bias, over the most that it could make of
        one of that norm: 0 in the null space, 1 along the strongest direction.
        """
        singular, directions, offset = (
            torch.as_tensor(part, dtype=torch.float32, device=tokens.device)
            for part in (self.singular, self.directions, self.offset)
        )
        parts = tokens.float() @ directions.T  # (..., D)
        squares = parts.square()
        total = squares.sum(dim=-1, keepdim=True).clamp_min(1e-30)
        passed = squares @ singular.square()  # (...)
        values = (passed + 2 * parts @ offset + self.bias_norm**2).clamp_min(0).sqrt()
        return squares / total, (passed / total[..., 0]).sqrt() / float(self.singular[0]), values


@dataclass(frozen=True)
class NullSpace:
    """Hold the spectrum of the value projection, and where in it outliers and other patches lie."""

    summary: dict[str, Any]
    """Claims and answers; ``null_share``, ``gain`` and ``value_norm``, each with `Estimate`s of ``outliers``,
    ``others`` and, over images that have both, their ``difference``; the control; counts, choices."""
    spectrum: np.ndarray
    """(L, D) singular values of each block's value projection over its largest; 0 beyond its rank."""
    heads: np.ndarray
    """(H, d) singular values of each head's part at the measured block, over the largest of the whole."""
    energy: np.ndarray
    """(2, D) mean share of the squared norm of outliers and of other patches along each direction of the measured
    block, strongest first; nan where there is no such patch."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by the names of their fields."""
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}


class NullSpaceAccumulator:
    """Gather where patches lie in the spectrum of one value projection; merges, and its memory is constant."""

    def __init__(self, basis: ValueBasis, *, eps: float = EPS, seed: int = 0) -> None:
        """Prepare to gather. Raises `ArgumentError` for an ``eps`` that is not between 0 and 1."""
        if not 0 < eps < 1:
            raise ArgumentError(f"got eps {eps:g}; give a share of the largest singular value, over 0 and under 1")
        self.basis, self.eps, self.seed = basis, eps, seed
        names = [f"{what}.{which}" for what in MEASURED for which in ("outliers", "others", "difference")]
        self.means = ImageMeans(names, seed=seed)
        self.energy = np.zeros((2, len(basis.singular)))
        self.counts = np.zeros(2, np.int64)
        self.num_images = 0

    def update(self, indices: Sequence[int], tokens: Tensor, outliers: np.ndarray) -> None:
        """Take in images: what attention reads of their patches (B, P, D), and which of them are outliers (B, P)."""
        shares, gain, values = self.basis.read(tokens)
        null = shares[..., len(self.basis.singular) - self.basis.num_null(self.eps) :].sum(dim=-1)  # (B, P)
        sums = {}
        for what, measured in zip(MEASURED, (null, gain, values), strict=True):
            split = split_sums(measured.cpu().numpy(), outliers)
            sums |= {f"{what}.{which}": one for which, one in split.items()}
        self.means.add(indices, sums)
        for kind, mask in enumerate((outliers, ~outliers)):
            chosen = torch.from_numpy(mask).to(shares.device)
            self.energy[kind] += shares[chosen].sum(dim=0).cpu().double().numpy()
            self.counts[kind] += mask.sum()
        self.num_images += len(outliers)

    def merge(self, other: "NullSpaceAccumulator") -> None:
        """Add what another has gathered from other images. Raises `ArgumentError` where the two do not match."""
        if self.eps != other.eps or not np.array_equal(self.basis.directions, other.basis.directions):
            raise ArgumentError("null spaces of different projections or eps cannot be merged")
        self.means.merge(other.means)
        self.energy += other.energy
        self.counts += other.counts
        self.num_images += other.num_images

    def summary(self) -> dict[str, Any]:
        """Return claims and numbers. Raises `InputError` without any image."""
        if not self.num_images:
            raise InputError("no image was measured; nothing can be said of its patches")
        found = {name: self.means.estimate(name) for name in self.means.names}
        answers = {
            "in_null_space": _both(
                found["null_share.outliers"].exceeds(MOST), found["null_share.difference"].exceeds(0)
            ),
            "weaker": _opposite(found["gain.difference"].exceeds(0)),
        }
        if not self.counts[0]:
            answers = dict.fromkeys(CLAIMS, NO_OUTLIERS)
        width, null = len(self.basis.singular), self.basis.num_null(self.eps)
        draws = torch.randn(NUM_RANDOM, width, generator=torch.Generator().manual_seed(self.seed))
        gains = self.basis.read(draws)[1]
        control = {"null_share": null / width, "gain": float(gains.mean()), "num_directions": NUM_RANDOM}
        measured = {
            what: {which: found[f"{what}.{which}"].as_dict() for which in ("outliers", "others", "difference")}
            for what in MEASURED
        }
        counts = dict(zip(("num_outliers", "num_others"), self.counts.tolist(), strict=True))
        said = {"claims": CLAIMS, "answers": answers, **measured, "random": control, "eps": self.eps}
        return {**said, "num_null": null, "width": width, "num_images": self.num_images, **counts, "interval": METHOD}


def _both(one: str, other: str) -> str:
    """Answer whether two things hold: no where either does not, yes where both do."""
    return "no" if "no" in (one, other) else one if one == other else "not clear"


def _opposite(answer: str) -> str:
    return {"yes": "no", "no": "yes"}.get(answer, answer)


class NullSpaceReader:
    """Read what the value projection makes of patches as batches pass."""

    def __init__(
        self, backbone: Backbone, *, block: int, cutoff: float | None, eps: float = EPS, seed: int = 0
    ) -> None:
        """Prepare to read attention of ``block``, and decompose the value projections of all blocks.

        Outliers have a norm at or over ``cutoff`` after the block; there are none without one. Raises `ArgumentError`
        for a block that the model does not have, a projection that is not affine, or ``eps`` out of bounds.
        """
        self._layout, self._cutoff, self._block = backbone.layout(), cutoff, backbone.check_block(block)
        self._inputs = Site("attention_input", block)
        self._norms = Site("resid_post", block, reduce=token_norms)
        self.sites = (self._inputs, self._norms)
        projection = value_projection(backbone, block)
        self.accumulator = NullSpaceAccumulator(ValueBasis.of(projection), eps=eps, seed=seed)
        largest = self.accumulator.basis.singular[0]
        self._heads = np.linalg.svd(projection.weight, compute_uv=False) / largest  # (H, d)
        self._spectrum = np.stack([spectrum(value_projection(backbone, i)) for i in range(backbone.num_blocks)])

    def update(self, batch: Batch, taken: Mapping[Site, Any], output: Tensor) -> None:
        """Take in one batch. Raises `ArgumentError` for norms that are not finite."""
        outliers = outlier_mask(taken[self._norms], self._layout, self._cutoff)
        self.accumulator.update(batch.indices, taken[self._inputs][:, self._layout.patches], outliers)

    def result(self) -> NullSpace:
        """Summarise. Raises `InputError` without any image."""
        gathered = self.accumulator
        with np.errstate(invalid="ignore"):
            energy = gathered.energy / gathered.counts[:, None]
        return NullSpace({"block": self._block, **gathered.summary()}, self._spectrum, self._heads, energy)


def spectrum(projection: ValueProjection) -> np.ndarray:
    """Return the singular values of all heads' values together over the largest: (D,), 0 beyond the rank."""
    weight = projection.weight.reshape(-1, projection.weight.shape[-1])  # (H * d, D)
    singular = np.linalg.svd(weight, compute_uv=False)
    found = np.zeros(weight.shape[1])
    found[: len(singular)] = singular / singular[0]
    return found
