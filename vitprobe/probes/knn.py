"""k nearest neighbours on frozen features: a measure of representations that needs no training."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from vitprobe.errors import ArgumentError
from vitprobe.probes.batch import Batch

K, TEMPERATURE = 20, 0.07
"""Neighbours and temperature of their votes in DINO (Caron et al., arXiv 2104.14294, section 3.2 and appendix F)."""
Z_95 = NormalDist().inv_cdf(0.975)
"""Standard normal quantile of a central 95 % interval."""


@dataclass(frozen=True)
class KnnResult:
    """Hold how many queries their neighbours in the bank have classified rightly."""

    accuracy: float
    """Share of queries, 0 to 1."""
    interval: tuple[float, float]
    """Wilson's 95 % interval of the accuracy, for queries drawn at random; the bank is taken as given."""
    num_bank: int
    num_queries: int
    chance: float
    """Share of queries of the bank's most frequent class (the mean over the classes that tie): what is reached without
    looking at the features."""
    k: int
    """Neighbours that voted: what was asked for, or all of a smaller bank."""


def knn_accuracy(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    queries: np.ndarray,
    query_labels: np.ndarray,
    *,
    k: int = K,
    temperature: float = TEMPERATURE,
) -> KnnResult:
    """Classify queries (M, D) by the ``k`` bank features (N, D) of largest cosine, and return the share that is right.

    Each neighbour votes for its class with weight exp(cosine / temperature); the class of most weight wins, the lower
    label where two tie (Caron et al., arXiv 2104.14294, appendix F; Wu et al., arXiv 1805.01978, section 3.4). Labels
    are (N,) and (M,), integers or strings. A bank of fewer than ``k`` votes as a whole; the result's ``k`` says so. A
    query of a class that the bank has not counts as wrong. Raises `ArgumentError` for shapes that do not match,
    features that are not finite, a bank of one class, or labels that bank and queries do not share.
    """
    bank, bank_labels = _checked("bank", bank, bank_labels)
    queries, query_labels = _checked("query", queries, query_labels)
    if bank.shape[1] != queries.shape[1]:
        raise ArgumentError(f"got bank features of width {bank.shape[1]}, queries of {queries.shape[1]}; give one")
    if k < 1 or temperature <= 0:
        raise ArgumentError(f"got k = {k}, temperature {temperature:g}; k is 1 or more, the temperature above 0")
    classes, sizes = np.unique(bank_labels, return_counts=True)
    if len(classes) < 2:
        raise ArgumentError(f"all {len(bank)} images of the bank are of one class, {classes[0]}; give two or more")
    if not np.isin(query_labels, classes).any():
        raise ArgumentError("no class of the queries is in the bank; give labels of one numbering for both")
    used = min(k, len(bank))

    def votes(distances: np.ndarray) -> np.ndarray:  # (m, k) of 1 - cosine; shares of the nearest's weight
        nearest = distances.min(axis=1, keepdims=True)  # taken off, so that no weight overflows and not all vanish
        return np.exp((nearest - distances).astype(np.float64) / temperature)

    from sklearn.neighbors import KNeighborsClassifier

    model = KNeighborsClassifier(used, weights=votes, algorithm="brute", metric="cosine").fit(bank, bank_labels)
    right = int((model.predict(queries) == query_labels).sum())
    return KnnResult(
        accuracy=right / len(queries),
        interval=wilson_interval(right, len(queries)),
        num_bank=len(bank),
        num_queries=len(queries),
        chance=float(np.mean([(query_labels == c).mean() for c in classes[sizes == sizes.max()]])),
        k=used,
    )


def wilson_interval(right: int, number: int) -> tuple[float, float]:
    """Compute Wilson's 95 % score interval of a share (Wilson, J. Am. Stat. Assoc. 22, 1927)."""
    share, z2 = right / number, Z_95**2
    middle = (share + z2 / (2 * number)) / (1 + z2 / number)
    half = Z_95 / (1 + z2 / number) * sqrt(share * (1 - share) / number + z2 / (4 * number**2))
    return 0.0 if right == 0 else middle - half, 1.0 if right == number else middle + half


def gather_features(
    features: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    device: torch.device | str,
    autocast: torch.dtype | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Run ``features``, from images (B, 3, H, W) to (B, D), over batches: (N, D) float32 and (N,) their indices.

    Runs without gradients, on ``device``, in the precision of ``autocast`` where one is given; modules keep the mode
    (training or evaluation) that they are in. Indices are the images' positions in their source. Without any image, as
    in a process with nothing to share, it gives (0, 0) and (0,). Raises `ArgumentError` for features not (B, D).
    """
    device, found, indices = torch.device(device), [], []
    for batch in batches:
        with torch.inference_mode(), torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            got = features(batch.images.to(device, non_blocking=True))  # (B, D)
        if got.ndim != 2 or len(got) != len(batch.images):
            raise ArgumentError(f"got features {tuple(got.shape)} of {len(batch.images)} images; (B, D) are needed")
        found.append(got.float().cpu().numpy())
        indices.extend(batch.indices)
    return np.concatenate(found) if found else np.zeros((0, 0), np.float32), np.array(indices, dtype=np.int64)


def _checked(what: str, features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    features, labels = np.asarray(features, dtype=np.float32), np.asarray(labels)
    if features.ndim != 2 or not features.size or labels.shape != features.shape[:1]:
        raise ArgumentError(
            f"got {what} features {features.shape} with labels {labels.shape}; (N, D) and (N,) are needed, N at least 1"
        )
    if not (good := np.isfinite(features).all(axis=1)).all():
        raise ArgumentError(
            f"{int((~good).sum())} of {len(features)} {what} features are not finite; try float32, or check the weights"
        )
    return features, labels
