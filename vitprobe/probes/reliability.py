"""Whether a classifier's confidence is its accuracy: calibration errors, proper scores, and what chance alone gives.

The confidence of an image is its largest probability; the class that has it (the lowest of several) is the prediction.
Images are put in bins by confidence, and the expected calibration error is the mean over images of how far their bin's
accuracy is from its confidence (Guo et al., arXiv 1706.04599, section 2, equations 2 to 5).

Binned errors are too large by construction: noise in a bin's accuracy counts as error, whichever way it goes (Roelofs
et al., arXiv 2012.08668). So beside each stands the same error of labels redrawn from the model's own probabilities:
what a model that is calibrated exactly, with these confidences and as many images, shows (the consistency resampling of
Broecker and Smith, Weather and Forecasting 22, 2007).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitprobe.errors import ArgumentError
from vitprobe.probes.confidence_bins import Bins, equal_mass, equal_width, redraw
from vitprobe.probes.knn import wilson_interval

FEWEST_WRONG = 6
"""With fewer wrong images, or fewer right ones, no interval of ECE is told: see `Reliability.ece_ci`."""
BINS = 15
"""Guo et al., section 5."""
NUM_DRAWS = 1000
SUM_TOLERANCE = 1e-4
"""By how much the probabilities of an image may miss 1: softmax in float32 misses it by some 1e-6."""
LOWEST = float(np.finfo(np.float32).tiny)
"""Probabilities under it count as this much in the NLL: one that has vanished in float32 would make it infinite."""
TEMPERATURES = (0.01, 100.0)
"""Between these a temperature is looked for."""
INTERVAL = (
    "95 %: Wilson's of accuracy; of ECE percentiles of bootstrap replicates over images, less by how much their mean "
    "is over the value; percentile_interval is without that, and carries the upward bias of a binned error twice; "
    "too_few: fewer than 6 images are wrong, or "
    "right: then intervals of ECE are too narrow to quote"
)
CONTROL = (
    "calibrated_mean and calibrated_most (95 % quantile): ECE of labels drawn from the model's own probabilities, as "
    "a perfectly calibrated model of these confidences shows it; exceeds_calibrated: whether the ECE is over the latter"
)


@dataclass(frozen=True)
class Reliability:
    """Hold how well the confidence of a classifier agrees with its accuracy. Empty bins hold nan."""

    summary: dict[str, Any]
    """Numbers, choices and counts. ``ece``, ``ece_mass``: ``value``, ``interval``, ``percentile_interval``,
    ``calibrated_mean``, ``calibrated_most``, ``exceeds_calibrated``."""
    edges: np.ndarray
    """(bins + 1,) edges of confidence of bins of equal width; a bin holds its upper edge, not its lower one."""
    counts: np.ndarray
    """(bins,) images."""
    confidence: np.ndarray
    """(bins,) mean confidence."""
    bin_accuracy: np.ndarray
    """(bins,)"""
    band: np.ndarray
    """(bins, 2) central 95 % of the accuracy of labels redrawn from the model's own probabilities."""
    mass_edges: np.ndarray
    """(M + 1,) the same of bins of as many images each; M may be less than was asked for where confidences tie."""
    mass_counts: np.ndarray
    """(M,)"""
    mass_confidence: np.ndarray
    """(M,)"""
    mass_accuracy: np.ndarray
    """(M,)"""

    @property
    def accuracy(self) -> float:
        """Share of images whose prediction is their label."""
        return self.summary["accuracy"]

    @property
    def accuracy_ci(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy."""
        return tuple(self.summary["accuracy_interval"])

    @property
    def ece(self) -> float:
        """Expected calibration error by bins of equal width."""
        return self.summary["ece"]["value"]

    @property
    def ece_ci(self) -> tuple[float, float]:
        """95 % interval of `ece` by a bootstrap over images; it has the upward bias of `ece` itself, and no more.

        A bootstrap knows no images but these: where all are right it holds next to nothing but the spread of the
        confidences, and it is far too narrow. So ``too_few`` in ``summary`` tells whether fewer than `FEWEST_WRONG`
        images are wrong, or right; then do not quote it. (In 150 simulated sets of 100 images with a mean confidence of
        0.99, it held the mean ECE of such sets in 37 % of those where all were right.)

        See `confidence_bins.Draws.about`, also for the plain percentile interval in ``summary``.
        """
        return tuple(self.summary["ece"]["interval"])

    @property
    def ece_mass(self) -> float:
        """Expected calibration error by bins of as many images each."""
        return self.summary["ece_mass"]["value"]

    @property
    def ece_mass_ci(self) -> tuple[float, float]:
        """The interval of `ece_mass`, as `ece_ci`."""
        return tuple(self.summary["ece_mass"]["interval"])

    @property
    def mce(self) -> float:
        """Largest gap between accuracy and confidence of a bin of equal width; it may be that of very few images."""
        return self.summary["mce"]

    @property
    def nll(self) -> float:
        """Mean negative logarithm (nats) of the probability of the label."""
        return self.summary["nll"]

    @property
    def brier(self) -> float:
        """Mean over images of the squared error summed over classes, 0 to 2."""
        return self.summary["brier"]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by the names of their fields."""
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}

    @classmethod
    def read(cls, arrays: Mapping[str, np.ndarray], summary: Mapping[str, Any]) -> "Reliability":
        """Build a result from `arrays` and `summary` of another, also where JSON has made lists of tuples."""
        names = [name for name in cls.__dataclass_fields__ if name != "summary"]
        return cls(dict(summary), **{name: np.asarray(arrays[name]) for name in names})


def measure_reliability(
    probabilities: np.ndarray,
    labels: np.ndarray,
    *,
    bins: int = BINS,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> Reliability:
    """Compare confidences with accuracies: probabilities (N, K) of K classes, labels (N,) from 0 to K - 1.

    Rows sum to 1 within `SUM_TOLERANCE`, and are divided by their sum in float64. The NLL and the Brier score (Brier,
    Monthly Weather Review 78, 1950) are proper scores of all probabilities; calibration errors look at the largest
    alone. Bins of equal width are Guo et al.'s, those of as many images each are for the many confidences near 1 (see
    `confidence_bins`). Intervals and the calibrated control take bins as given, and `num_draws` draws by `seed`. Raises
    `ArgumentError` for shapes that do not match, probabilities that are none, labels that are no classes, fewer than 1
    bin, or fewer than 100 draws.
    """
    probabilities, labels = _checked(probabilities, labels, bins, num_draws)
    rows = np.arange(len(labels))
    predicted, of_label = probabilities.argmax(axis=1), probabilities[rows, labels]  # (N,) each
    confidence, right = probabilities[rows, predicted], (predicted == labels).astype(float)
    width = Bins.of(equal_width(bins), confidence, right)
    mass = Bins.of(equal_mass(confidence, bins), confidence, right)
    by_width, by_mass = redraw((width, mass), confidence, right, num_draws=num_draws, seed=seed)
    squares = np.einsum("nk,nk->n", probabilities, probabilities)
    num_right = int(right.sum())
    summary = {
        "num_images": len(labels),
        "num_classes": probabilities.shape[1],
        "accuracy": num_right / len(labels),
        "accuracy_interval": wilson_interval(num_right, len(labels)),
        "confidence": float(confidence.mean()),
        "too_few": min(num_right, len(labels) - num_right) < FEWEST_WRONG,
        "overconfidence": float(confidence.mean() - right.mean()),
        "ece": by_width.about(width),
        "ece_mass": by_mass.about(mass),
        "mce": float(width.gaps.max()),
        "mce_num_images": int(width.counts[width.gaps.argmax()]),
        "nll": float(-np.log(np.maximum(of_label, LOWEST)).mean()),
        "num_vanished": int((of_label < LOWEST).sum()),
        "brier": float((squares - 2 * of_label + 1).mean()),
        "bins": bins,
        "num_draws": num_draws,
        "seed": seed,
        "notes": {"interval": INTERVAL, "control": CONTROL},
    }
    arrays = (width.edges, width.counts, width.confidence, width.accuracy, by_width.band(width))
    return Reliability(summary, *arrays, mass.edges, mass.counts, mass.confidence, mass.accuracy)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the temperature that, dividing logits (N, K), makes the NLL of held-out labels (N,) least.

    It is Guo et al.'s temperature scaling (arXiv 1706.04599, section 4.2): predictions stay as they are. Fit it on
    images that the errors are not measured on. The NLL is convex in 1 / temperature, so a search by golden section and
    parabolas in its logarithm finds the only minimum. None where it lies at an end of `TEMPERATURES`: all held-out
    images may be right, so that the lowest temperature is best, or logits may say nothing of the labels. Raises
    `ArgumentError` for shapes that do not match, logits that are not finite, or labels that are no classes.
    """
    from scipy.optimize import minimize_scalar

    logits, labels = _checked_logits(logits), np.asarray(labels)
    _check_labels(labels, logits.shape)
    centred = logits - logits.max(axis=1, keepdims=True)  # (N, K), 0 at most
    of_label = centred[np.arange(len(labels)), labels]

    def nll(log_inverse: float) -> float:
        scaled = np.exp(log_inverse) * centred
        return float((np.log(np.exp(scaled).sum(axis=1)) - np.exp(log_inverse) * of_label).mean())

    ends = -np.log(TEMPERATURES[1]), -np.log(TEMPERATURES[0])
    found = minimize_scalar(nll, bounds=ends, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(-found.x)) if found.fun < min(map(nll, ends)) - 1e-12 else None


def softmax(logits: np.ndarray, *, temperature: float = 1.0) -> np.ndarray:
    """Return probabilities (N, K) float64 of logits (N, K) divided by a temperature.

    Raises `ArgumentError` for logits that are not finite, or a temperature that is not over 0.
    """
    if not temperature > 0:
        raise ArgumentError(f"got temperature {temperature:g}; give one over 0")
    logits = _checked_logits(logits) / temperature
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def real_accuracy(
    predicted: np.ndarray, real: Sequence[frozenset[int] | None]
) -> tuple[float, tuple[float, float], int]:
    """Return the ReaL accuracy of predictions (N,), its Wilson 95 % interval, and over how many images it is.

    A prediction is right if it is in the image's set; images with an empty set, or None, are left out (Beyer et al.,
    arXiv 2006.07159). Raises `ArgumentError` where there are not as many sets as predictions, or none that
    holds a class.
    """
    predicted = np.asarray(predicted)
    if predicted.ndim != 1 or len(predicted) != len(real) or not np.issubdtype(predicted.dtype, np.integer):
        raise ArgumentError(
            f"got predictions {predicted.shape} of {predicted.dtype}, {len(real):,} sets; give a class (N,) for each"
        )
    right = [int(one) in classes for one, classes in zip(predicted, real, strict=True) if classes]
    if not right:
        raise ArgumentError(f"none of {len(real):,} images has a ReaL label; give images of ImageNet's validation part")
    return sum(right) / len(right), wilson_interval(sum(right), len(right)), len(right)


def _checked(probabilities: np.ndarray, labels: np.ndarray, bins: int, num_draws: int) -> tuple[np.ndarray, np.ndarray]:
    if bins < 1 or num_draws < 100:
        raise ArgumentError(f"got {bins} bins, {num_draws} draws; give 1 bin or more, and 100 draws or more")
    probabilities, labels = np.array(probabilities, np.float64), np.asarray(labels)
    _check_labels(labels, probabilities.shape)
    if bad := int((~(np.isfinite(probabilities) & (probabilities >= 0)).all(axis=1)).sum()):
        raise ArgumentError(
            f"probabilities of {bad} of {len(labels)} images are not finite, or under 0; give a softmax, not logits"
        )
    sums = probabilities.sum(axis=1)
    if bad := int((np.abs(sums - 1) > SUM_TOLERANCE).sum()):
        worst = sums[np.abs(sums - 1).argmax()]
        raise ArgumentError(
            f"probabilities of {bad} of {len(labels)} images do not sum to 1 (one to {worst:.4g}); take the softmax in "
            "float32"
        )
    probabilities /= sums[:, None]
    return probabilities, labels


def _check_labels(labels: np.ndarray, shape: tuple[int, ...]) -> None:
    if len(shape) != 2 or shape[1] < 2 or labels.shape != shape[:1] or not len(labels):
        raise ArgumentError(
            f"got {shape} numbers with labels {labels.shape}; (N, K) and (N,) are needed, N at least 1, K at least 2"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= shape[1]:
        raise ArgumentError(
            f"got labels of {labels.dtype}, {labels.min()} to {labels.max()}; give whole numbers from 0 to "
            f"{shape[1] - 1}"
        )


def _checked_logits(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or not logits.size or not np.isfinite(logits).all():
        raise ArgumentError(f"got logits {logits.shape}; finite numbers (N, K) are needed, N at least 1")
    return logits
