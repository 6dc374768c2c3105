"""What the first layer of a network looks for: principal components of its filters, and how smooth they are.

Dosovitskiy et al. (arXiv 2010.11929, section 4.5 and figure 7, left) show the first 28 of ViT-L/32's patch embedding:
they look like a basis for the fine structure inside a patch. The paper gives no number; those below are set beside the
same numbers of random filters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from vitprobe.backbones.base import Backbone
from vitprobe.backbones.conv_net import ConvNet

NUM_SHOWN = 28
"""Components that figure 7 of the paper shows."""
HALF_NYQUIST = 0.25
"""Cycles per pixel: half of 0.5, the highest frequency that pixels can hold."""
NUM_SPECTRA, NUM_DRAWS = 10, 100
"""Draws of random filters for their variances, and for all else, which costs less; the range over them is reported."""


@dataclass(frozen=True)
class FilterResult:
    """Hold the principal components of D filters; all arrays are empty where ``summary`` says ``absent``."""

    summary: dict[str, Any]
    """Counts and choices; ``low_frequency`` (of all filters), ``low_frequency_shown`` (of the shown components, mean),
    ``participation_ratio`` and ``explained_by_shown``, each ``value`` and that of ``random`` filters with its
    ``random_range``; ``answer``, by the first."""
    components: np.ndarray
    """(K, 3, height, width) the first components, of norm 1; the largest of each is positive."""
    explained: np.ndarray
    """(min(D, 3 height width),) share of the variance of every component."""
    random_explained: np.ndarray
    """The same of random filters, mean over draws."""
    low_frequency: np.ndarray
    """(K,) share of each component's spectral energy below half the Nyquist frequency."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by the names of their fields."""
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}

    @classmethod
    def read(cls, arrays: Mapping[str, np.ndarray], summary: Mapping[str, Any]) -> "FilterResult":
        """Build a result back from its arrays and summary."""
        return cls(dict(summary), **arrays)


def measure_filters(model: Backbone | ConvNet, *, seed: int = 0) -> FilterResult:
    """Find the principal components of a model's first filters, (D, 3, height, width), over the D filters.

    A ViT's are those of its patch embedding where that is one convolution of pixels, a convolutional network's those of
    its first convolution. Filters are points, less their mean; they read colours as the model's transform normalises
    them. ``seed`` draws the random filters, Gaussian and of the same shape: those too are centred. The share of low
    frequencies of a component is the energy of its 2-D spectrum, colours added, at radial frequencies below half of
    Nyquist. The participation ratio, (sum of variances)^2 / sum of squares, counts how many components matter.
    """
    filters, why = _filters(model)
    what = "patch embedding" if isinstance(model, Backbone) else "first convolution"
    return absent(why) if filters is None else analyse_filters(filters, what=what, seed=seed)


def analyse_filters(filters: np.ndarray, *, what: str = "filters", seed: int = 0) -> FilterResult:
    """Do what `measure_filters` says with filters (D, 3, height, width); ``what`` says whose they are."""
    number, *shape = filters.shape
    points = filters.reshape(number, -1).astype(np.float64)
    points = points - points.mean(axis=0)
    if min(shape[1:]) < 2:
        return absent(f"filters of {shape[1]} x {shape[2]} px have no frequencies to tell apart")
    if number < 2 or not np.square(points).sum() > 1e-12 * np.square(filters.astype(np.float64)).sum():
        return absent(f"its {number} first filters do not differ; they have no components")
    _, singular, rows = np.linalg.svd(points, full_matrices=False)  # (r,) falling and (r, n), r = min(D, n)
    shown = min(NUM_SHOWN, int((singular > 1e-9 * singular[0]).sum()))
    components = rows[:shown]
    largest = np.abs(components).argmax(axis=1)
    components = components * np.sign(components[np.arange(shown), largest])[:, None]
    components = components.reshape(shown, *shape)
    variances = singular**2
    low = low_share(components)
    random = _random(points.shape, tuple(shape), shown, seed)
    weighted = low_share(points.reshape(number, *shape)) @ np.square(points).sum(axis=1) / variances.sum()
    explained = variances / variances.sum()
    measured = {
        "low_frequency": _beside(weighted, random["filters"]),
        "low_frequency_shown": _beside(low.mean(), random["shown"]),
        "participation_ratio": _beside(variances.sum() ** 2 / np.square(variances).sum(), random["participation"]),
        "explained_by_shown": _beside(explained[:shown].sum(), random["explained"][:, :shown].sum(axis=1)),
    }
    summary = {
        "what": what,
        "num_filters": number,
        "shape": list(shape),
        "num_shown": shown,
        **measured,
        "answer": _answer(measured["low_frequency"]),
        "below_cycles_per_pixel": HALF_NYQUIST,
        "centred": True,
        "random": f"Gaussian filters of the same shape, their mean and range over {NUM_DRAWS} draws "
        f"({NUM_SPECTRA} of variances; seed {seed})",
    }
    kept = components.astype(np.float32)
    return FilterResult(summary, kept, explained, random["explained"].mean(axis=0), low)


def absent(why: str) -> FilterResult:
    """Return a result that says in one line why there is none."""
    none = np.zeros(0)
    return FilterResult({"absent": why}, np.zeros((0, 3, 0, 0), np.float32), none, none, none)


def low_share(filters: np.ndarray) -> np.ndarray:
    """Return the share of spectral energy below half of Nyquist: (..., C, height, width) -> (...)."""
    energy = np.square(np.abs(np.fft.fft2(filters))).sum(axis=-3)  # (..., height, width)
    return energy[..., is_low(filters.shape)].sum(axis=-1) / energy.sum(axis=(-2, -1)).clip(min=np.finfo(float).tiny)


def is_low(shape: Sequence[int]) -> np.ndarray:
    """Tell which frequencies of filters (..., height, width) are below half of Nyquist: (height, width) bool."""
    down, across = (np.fft.fftfreq(side) for side in shape[-2:])
    return np.hypot(down[:, None], across) < HALF_NYQUIST


def _filters(model: Backbone | ConvNet) -> tuple[np.ndarray | None, str]:
    """Return the first filters, (D, 3, height, width), or None and why there are none."""
    if isinstance(model, ConvNet):
        return model.filters().detach().cpu().float().numpy(), ""
    parts = list(model.patch_embedding.modules())
    found = [part for part in parts if isinstance(part, nn.Conv2d)]
    if len(found) > 1:
        return None, f"its patch embedding stands on a network of {len(found)} convolutions: its filters read no pixels"
    if not found or found[0].in_channels != 3 or found[0].groups != 1:
        return None, f"its patches are embedded by a {type(model.patch_embedding).__name__}, no convolution of pixels"
    return found[0].weight.detach().cpu().float().numpy(), ""


def _random(points: tuple[int, int], shape: tuple[int, ...], shown: int, seed: int) -> dict[str, np.ndarray]:
    """Measure draws of random filters, (D, n) points of a shape: an array for each number, a draw a row.

    Principal directions of Gaussian filters are uniform on the sphere, so they are drawn as orthonormalised vectors; of
    all filters, the energies in two sets of frequencies are sums of squares, and their share has a beta distribution.
    """
    rng = np.random.default_rng(seed)
    number, size = points
    num_low = shape[0] * int(is_low(shape).sum())
    halves = (number - 1) * num_low / 2, (number - 1) * (size - num_low) / 2
    found: dict[str, Any] = {"filters": rng.beta(*halves, NUM_DRAWS), "shown": [], "participation": [], "explained": []}
    for _ in range(NUM_DRAWS):
        directions = np.linalg.qr(rng.standard_normal((size, shown)))[0].T  # (K, n)
        found["shown"].append(low_share(directions.reshape(shown, *shape)).mean())
    for _ in range(NUM_SPECTRA):
        drawn = rng.standard_normal(points)
        drawn -= drawn.mean(axis=0)
        gram = drawn @ drawn.T if number <= size else drawn.T @ drawn
        variances = np.linalg.eigvalsh(gram)[::-1].clip(0)  # falling
        found["participation"].append(variances.sum() ** 2 / np.square(variances).sum())
        found["explained"].append(variances / variances.sum())
    return {name: np.array(values) for name, values in found.items()}


def _beside(value: float, random: np.ndarray) -> dict[str, Any]:
    """Set a number beside those of random filters."""
    ends = [float(random.min()), float(random.max())]
    return {"value": float(value), "random": float(random.mean()), "random_range": ends}


def _answer(low: Mapping[str, Any]) -> str:
    low_end, high_end = low["random_range"]
    if low["value"] > high_end:
        return "smoother than random"
    return "rougher than random" if low["value"] < low_end else "as random"
