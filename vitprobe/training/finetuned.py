"""What a model is on all held-out images: its classes and how sure it is of them, and what frozen features tell."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitprobe.backbones.base import Backbone
from vitprobe.errors import InputError
from vitprobe.inputs.labels import Labelled
from vitprobe.inputs.loading import ImageBatch
from vitprobe.inputs.real_labels import read_real
from vitprobe.probes.by_image import FEWEST, METHOD
from vitprobe.probes.frozen import ImageFeatureReader, classify, known, nearest
from vitprobe.probes.knn import gather_features
from vitprobe.probes.norm_stats import NormStats
from vitprobe.probes.norms import measure_norms
from vitprobe.probes.passes import run_pass
from vitprobe.probes.reliability import real_accuracy, softmax
from vitprobe.probes.token_means import paired_difference
from vitprobe.training.evaluation import RULE
from vitprobe.training.held_out import Reader

FEATURES = "cls+mean"
"""What the linear probe reads: CLS and the mean of the patches, as table 2 a of arXiv 2309.16588 does."""
NEAREST = "cls"
"""What k-NN compares, as DINO does; a model without CLS gives the mean of the patches for both."""
MOST_NUMBERS = 10**7, 10**8
"""Logits of so many numbers are kept in float32, and in float16; of more, predictions alone are."""
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Predictions:
    """Hold what a classifier says of M held-out images that could be read, in the order of their source."""

    indices: np.ndarray
    """(M,) position of each in its source."""
    labels: np.ndarray
    """(M,)"""
    logits: np.ndarray
    """(M, K) float32"""

    @property
    def predicted(self) -> np.ndarray:
        """The class of each image, (M,): the lowest of equals."""
        return self.logits.argmax(axis=1)

    @property
    def right(self) -> np.ndarray:
        """Whether it is the label, (M,) bool."""
        return self.predicted == self.labels

    def probabilities(self) -> np.ndarray:
        """Return the probabilities of the classes, (M, K) float64."""
        return softmax(self.logits)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what is kept: positions, labels, predictions, and logits as far as they are not too many."""
        found = {"indices": self.indices, "labels": self.labels, "predicted": self.predicted}
        if self.logits.size <= MOST_NUMBERS[0]:
            return found | {"logits": self.logits}
        return found | ({"logits": self.logits.astype(np.float16)} if self.logits.size <= MOST_NUMBERS[1] else {})


def predict(
    backbone: Backbone, reader: Reader, device: torch.device, autocast: torch.dtype | None, on_images: Advance
) -> Predictions:
    """Run a backbone with its head, in evaluation mode, over held-out images. Raises `InputError` without any."""
    backbone.module.eval()
    logits, indices = gather_features(backbone, _told(reader, on_images), device, autocast)
    if not len(indices):
        raise InputError("no held-out image could be read; nothing was measured")
    return Predictions(indices, reader.images.labels[indices], logits)


def differ(one: Predictions, other: Predictions, *, seed: int) -> dict[str, Any]:
    """Return by how much one's accuracy exceeds the other's on the same images, with the interval of the difference.

    ``num_differ``: images that one of them alone has right; of fewer than `FEWEST` the bootstrap says too little (even
    all on one side are chance in more than 5 % of cases), and there is no interval. ``p_value``: of the sign test over
    them, exact and two-sided (McNemar, Psychometrika 12, 1947). ``clear``: whether it is 5 % at most, and the interval
    leaves 0.
    """
    from scipy.stats import binomtest

    _, *at = np.intersect1d(one.indices, other.indices, assume_unique=True, return_indices=True)
    right = one.right[at[0]], other.right[at[1]]
    unlike, better = int((right[0] != right[1]).sum()), int((right[0] & ~right[1]).sum())
    p_value = float(binomtest(better, unlike).pvalue) if unlike else 1.0
    pair = [(part.indices, part.right.astype(float)) for part in (one, other)]
    found = paired_difference(*pair, seed=seed)
    is_clear = unlike >= FEWEST and p_value <= 0.05 and found.exceeds(0.0) != "not clear"
    told = {"num_differ": unlike, "p_value": p_value, "method": METHOD, "clear": is_clear}
    return found.as_dict() | told | ({} if unlike >= FEWEST else {"interval": None})


def real_of(found: Predictions, images: Labelled, path: str) -> dict[str, Any]:
    """Return the accuracy by ImageNet's ReaL labels; ``path`` is their file, or ``timm`` for timm's copy."""
    names = [images.items[at].name for at in found.indices]
    sets = read_real(None if path == "timm" else path, names, classes=images.classes)
    accuracy, interval, number = real_accuracy(found.predicted, sets)
    return {"accuracy": accuracy, "interval": interval, "num_images": number}


def norms_of(backbone: Backbone, reader: Reader, autocast: torch.dtype | None, *, seed: int) -> NormStats:
    """Measure token norms of every block as `vitprobe norms` does, with the rule that training is watched by."""
    last = backbone.num_blocks - 1
    return measure_norms(
        backbone, reader, blocks=range(backbone.num_blocks), autocast=autocast, seed=seed
    ).result(RULE, point=last)  # fmt: skip


def frozen_scores(
    backbone: Backbone,
    train: Reader,
    test: Reader,
    folder: Path,
    autocast: torch.dtype | None,
    on_images: Advance,
    *,
    seed: int,
) -> dict[str, Any]:
    """Classify held-out images from frozen features: k nearest neighbours, and a linear probe with its C chosen.

    Features are gathered on disk under ``folder``, and removed. Raises a `VitprobeError` where they cannot be.
    """
    backbone.module.eval()
    device, parts = next(backbone.module.parameters()).device, {}
    try:
        for name, reader in (("train", train), ("test", test)):
            gathered = ImageFeatureReader(backbone, folder / f"{name}.npy", block=backbone.num_blocks - 1)
            run_pass(backbone, _told(reader, on_images), [gathered], autocast=autocast)
            parts[name] = gathered.finish(), reader.images.labels
        pairs = {one: [known(*parts[part], one) for part in ("train", "test")] for one in (NEAREST, FEATURES)}
        voted = nearest(*pairs[NEAREST])
        (fitted,) = classify(*pairs[FEATURES], seeds=(seed,), solver="torch", device=device)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    has_cls = parts["train"][0].has_cls
    return {
        "knn": asdict(voted) | {"features": NEAREST if has_cls else "mean"},
        "linear": {
            "accuracy": fitted.accuracy,
            "interval": fitted.interval,
            "features": FEATURES if has_cls else "mean",
            "c": fitted.c,
            "c_chosen_by": list(fitted.held_out),
            "num_train": fitted.num_train,
            "num_test": fitted.num_test,
            "converged": fitted.converged,
            "notes": list(fitted.notes),
        },
    }


def _told(reader: Reader, on_images: Advance) -> Iterator[ImageBatch]:
    for batch in reader:
        yield batch
        on_images(len(batch.images))
