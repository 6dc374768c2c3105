"""Which norms are outliers: one rule object, and a test of bimodality that is allowed to say that there are none."""

import re
from dataclasses import dataclass

import numpy as np

from vitprobe.errors import ArgumentError
from vitprobe.probes.histogram import CENTRES, HIGHEST, LOWEST, NormHistogram, snap
from vitprobe.probes.mixture import fit_two

ALLOWED = "auto, a number (150), mean+3sd, median*4, mad:6, p98 or gmm"
MAX_SHARE = 0.2
"""The upper mode must be a minority: published shares are 0.3 to 5 %."""
MIN_RATIO = 2.0
"""Median norm over the cutoff must be this many times the median under it."""
MAX_DEPTH = 0.5
"""Tokens in the valley's window, as a share of those in the upper peak's."""
MAX_P = 1e-4
"""Chance of the valley under a density without one, for one pair of windows; some hundred pairs are looked at."""
WIDTHS = (0.25, 0.5, 1.0)
"""Widths of the windows in octaves (19 %, 41 %, a factor of 2)."""


@dataclass(frozen=True)
class Bimodality:
    """Hold the decision whether the norms of one block have two modes, and the numbers it rests on."""

    bimodal: bool
    cutoff: float | None
    """The valley, in units of norm; None where unimodal."""
    share: float | None = None
    """Share of tokens above the deepest valley found to the right of the median, if there is one."""
    ratio: float | None = None
    """Median norm above that valley over the median below it."""
    depth: float | None = None
    """Tokens in the valley over tokens in the upper peak, windows of one width: 0 a clean gap, 1 no valley."""
    p_value: float | None = None
    """One-sided binomial probability of so few tokens in the valley if the density did not rise again."""
    beyond_gap: int = 0
    """Tokens beyond an empty stretch of at least a factor of 2 above the median, be they too few for a mode."""


@dataclass(frozen=True)
class OutlierRule:
    """Decide from which norm on a patch token is an outlier; a value, stored with what it produced.

    ============  =========================================================================================
    ``auto``      the valley between two modes, if `find_two_modes` finds two; otherwise none
    ``150``       that norm (150: Darcet et al. for DINOv2-g; it fits no other family)
    ``mean+3sd``  mean + 3 standard deviations (Jiang et al., arXiv 2506.08010, use it to pick a threshold)
    ``median*4``  4 times the median
    ``mad:6``     median + 6 x 1.4826 x median distance from the median
    ``p98``       the 98th percentile (arXiv 2603.25803): always calls 2 % of the tokens outliers
    ``gmm``       the valley of a mixture of two Gaussians in log norm, whatever its depth; none where it has none
    ============  =========================================================================================

    Cutoffs lie on the edges of `NormHistogram`'s bins (rounded by at most 0.05 %), so that counts are exact.
    """

    kind: str
    value: float | None = None

    @classmethod
    def parse(cls, text: str) -> "OutlierRule":
        """Read a rule as the command line writes it. Raises `ArgumentError` for anything else."""
        text = text.strip().lower()
        number = r"(\d+(?:\.\d+)?)"
        forms = {
            "absolute": number,
            "mean+sd": rf"mean\+{number}sd",
            "median*": rf"median\*{number}",
            "mad": rf"mad:{number}",
            "percentile": rf"p{number}",
        }
        if text in ("auto", "gmm"):
            return cls(text)
        for kind, form in forms.items():
            if found := re.fullmatch(form, text):
                value = float(found[1])
                if kind == "percentile" and value > 100:
                    raise ArgumentError(f"got rule {text!r}; a percentile is at most 100")
                if kind in ("absolute", "median*") and value == 0:
                    raise ArgumentError(f"got rule {text!r}; its number must be over 0")
                return cls(kind, value)
        raise ArgumentError(f"got rule {text!r}; allowed are {ALLOWED}")

    def __str__(self) -> str:
        number = "" if self.value is None else f"{self.value:g}"
        return {
            "absolute": number,
            "mean+sd": f"mean+{number}sd",
            "median*": f"median*{number}",
            "mad": f"mad:{number}",
            "percentile": f"p{number}",
        }.get(self.kind, self.kind)

    def cutoff(self, norms: NormHistogram) -> float | None:
        """Return the norm from which on tokens are outliers, or None where the rule finds no cutoff."""
        if not norms.total:
            return None
        if self.kind == "auto":
            return find_two_modes(norms).cutoff
        if self.kind == "gmm":
            return _valley_of_two(norms)
        found = {
            "absolute": lambda: self.value,
            "mean+sd": lambda: norms.mean + self.value * norms.std,
            "median*": lambda: self.value * norms.median,
            "mad": lambda: norms.median + self.value * 1.4826 * norms.mad,
            "percentile": lambda: norms.quantile(self.value / 100),
        }[self.kind]()
        return snap(found)


DEFAULT_RULES = tuple(OutlierRule.parse(t) for t in ("auto", "150", "mean+3sd", "median*4", "mad:6", "p98", "gmm"))
"""What ``--all-rules`` sets side by side."""


def find_two_modes(norms: NormHistogram) -> Bimodality:
    """Decide whether a few tokens form a mode of their own above the rest.

    A density with one mode never rises again to the right of it. So two windows of equal width (in log norm) are
    compared, one above the other, everywhere above the median: where the upper one holds more tokens than the lower
    one, by a one-sided binomial test (p < `MAX_P`) and by a factor of two (`MAX_DEPTH`), there is a valley.
    The upper mode counts as outliers only if it is a minority (`MAX_SHARE`) whose median norm is at least twice that of
    the rest (`MIN_RATIO`). The cutoff is the middle of the emptiest stretch between bulk and upper peak.

    Why not a mixture of two Gaussians against one, by BIC: real bulks are skewed and lumpy in log norm (sky, texture,
    borders), so BIC prefers two components for almost any bulk of many tokens, and spends the second one on the bulk's
    own shape; a mode of 1 % is then missed, and a skewed tail called a mode. The windows assume no shape; a heavy tail,
    however heavy, falls, and passes. Tokens of one image are not independent, so p is a screen and not a confidence:
    about 14 tokens with nothing between them and the bulk are the fewest that are found.
    """
    fine, start = _fine_counts(norms)
    best: tuple[float, ...] | None = None
    for width in WIDTHS:
        best = min(filter(None, (best, _best_valley(fine, start, width, norms))), default=None)
    beyond = _beyond_gap(fine, start, norms)
    if best is None:
        return Bimodality(False, None, beyond_gap=beyond)
    _, p, depth, share, ratio, cutoff = best
    found = p < MAX_P and depth <= MAX_DEPTH and share <= MAX_SHARE and ratio >= MIN_RATIO
    return Bimodality(found, cutoff if found else None, share, ratio, depth, p, beyond)


_PER_OCTAVE = 64


def _fine_counts(norms: NormHistogram) -> tuple[np.ndarray, int]:
    """Return counts in steps of 1/64 octave, (n,), and the step in which the median lies.

    The outermost bin also holds every norm beyond it, which would look like a peak: it is left out.
    """
    step = np.floor(np.log2(CENTRES) * _PER_OCTAVE + 1e-9).astype(int) - LOWEST * _PER_OCTAVE
    fine = np.bincount(step[:-1], weights=norms.counts[:-1], minlength=(HIGHEST - LOWEST) * _PER_OCTAVE)
    return fine, int(np.searchsorted(np.cumsum(fine), norms.total / 2))


def _beyond_gap(fine: np.ndarray, start: int, norms: NormHistogram) -> int:
    """Count the tokens beyond the first empty octave above the median, where they are a minority."""
    used = start + np.flatnonzero(fine[start:])
    for wide in np.flatnonzero(np.diff(used) > _PER_OCTAVE):
        number = int(fine[used[wide + 1] :].sum())
        if number <= MAX_SHARE * norms.total:
            return number
    return 0


def _best_valley(fine: np.ndarray, start: int, width: float, norms: NormHistogram) -> tuple[float, ...] | None:
    """Find the pair of windows that speaks most for a valley: (rank, p, depth, share, ratio, cutoff), or None."""
    from scipy.stats import binom

    size = round(width * _PER_OCTAVE)
    window = np.convolve(fine, np.ones(size))[size - 1 :]  # (n,) tokens in [i, i + size)
    # For each lower window, the fullest window that begins at or after its end.
    fullest = np.maximum.accumulate(window[::-1])[::-1]
    lower = np.arange(start, len(window) - size)
    low, high = window[lower], fullest[lower + size]
    rising = high > low
    if not rising.any():
        return None
    lower, low, high = lower[rising], low[rising], high[rising]
    p = binom.sf(high - 1, low + high, 0.5)
    above = np.cumsum(fine[::-1])[::-1][lower]  # a valley with more than a minority above it is no candidate
    few = above <= MAX_SHARE * norms.total + low
    if few.any():
        lower, low, high, p = lower[few], low[few], high[few], p[few]
    candidates = []
    for i in np.argsort(p + low / high, kind="stable")[:16]:
        peak = lower[i] + size + int(np.argmax(window[lower[i] + size :] == high[i]))
        cutoff = _emptiest(fine, lower[i], peak)
        share = norms.fraction_above(cutoff)
        if not 0 < share < 1:
            continue
        ratio = _median_between(norms, cutoff, above=True) / _median_between(norms, cutoff, above=False)
        passes = p[i] < MAX_P and low[i] / high[i] <= MAX_DEPTH and share <= MAX_SHARE and ratio >= MIN_RATIO
        candidates.append((float(p[i]) - passes, float(p[i]), float(low[i] / high[i]), share, ratio, cutoff))
    return min(candidates, default=None)


def _emptiest(fine: np.ndarray, low: int, peak: int) -> float:
    """Return the norm in the middle of the longest emptiest stretch between two steps, snapped to an edge."""
    smooth = np.convolve(fine, np.ones(5), mode="same")[low : peak + 1]
    empty = np.flatnonzero(smooth == smooth.min())
    runs = np.split(empty, np.flatnonzero(np.diff(empty) > 1) + 1)
    longest = max(runs, key=len)
    middle = low + (longest[0] + longest[-1] + 1) / 2
    return snap(2.0 ** (middle / _PER_OCTAVE + LOWEST))


def _median_between(norms: NormHistogram, cutoff: float, *, above: bool) -> float:
    over = cutoff < CENTRES
    return NormHistogram(np.where(over == above, norms.counts, 0)).median


def _valley_of_two(norms: NormHistogram) -> float | None:
    """Return the lowest point between the means of two Gaussians fitted to log2 norms; None where there is no dip."""
    used = norms.counts > 0
    if used.sum() < 2:
        return None
    mixture = fit_two(np.log2(CENTRES[used]), norms.counts[used].astype(float))
    grid = np.linspace(*sorted(mixture.means), 512)
    density = mixture.density(grid)
    lowest = int(np.argmin(density))
    return snap(2.0 ** grid[lowest]) if 0 < lowest < len(grid) - 1 else None
