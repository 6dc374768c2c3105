"""Zero-shot classification: which class's description is nearest to an image, by cosine (Table 2 b).

As CLIP does (Radford et al., arXiv 2103.00020, section 3.1): the description of a class is the mean of the normalised
embeddings of its prompts, normalised.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vitprobe.backbones.open_clip_text import TextTower
from vitprobe.errors import ArgumentError, InputError
from vitprobe.probes.batch import Batch
from vitprobe.probes.knn import wilson_interval
from vitprobe.recorder import Site

FEW_TEXTS = 64
"""Texts that are embedded at a time."""


@torch.inference_mode()
def describe(
    text: TextTower, prompts: Sequence[Sequence[str]], on_texts: Callable[[int], None] = lambda number: None
) -> Tensor:
    """Embed the prompts of C classes: (C, E) of length 1, on the device of the text tower.

    ``on_texts`` is told how many more have been embedded.
    """
    device = next(text.module.parameters()).device
    flat = [one for own in prompts for one in own]
    if not flat or not all(prompts):
        raise ArgumentError(f"got {len(flat)} prompts for {len(prompts)} classes; give each class one or more")
    parts = [tuple(flat[i : i + FEW_TEXTS]) for i in range(0, len(flat), FEW_TEXTS)]
    embedded = []
    for part in parts:
        embedded.append(text.module(text.tokenize(part).to(device)).float())  # (n, E)
        on_texts(len(part))
    found = torch.cat(embedded)
    means = [own.mean(0) for own in F.normalize(found, dim=-1).split([len(own) for own in prompts])]
    return F.normalize(torch.stack(means), dim=-1)


@dataclass(frozen=True)
class ZeroShotResult:
    """Hold how many of N images of known class were nearest to their own class's description."""

    accuracy: float
    interval: tuple[float, float]
    """Wilson's 95 %."""
    guess: float
    """1 / C: of a class drawn at random."""
    most_frequent: float
    """Share of the most frequent class of these images."""
    shares: np.ndarray
    """(C,) share of images that are told to be of each class."""
    num_images: int


class ZeroShotReader:
    """Find the nearest description of each image, for every task."""

    sites: Sequence[Site] = ()

    def __init__(self, descriptions: Mapping[str, Tensor]) -> None:
        """``descriptions``: (C, E) of length 1, by task."""
        self.descriptions = descriptions
        self.predicted: dict[str, list[int]] = {task: [] for task in descriptions}
        self.images: list[int] = []

    def update(self, batch: Batch, taken: Mapping[Site, Any], output: Tensor) -> None:
        """Take in what the tower gives for a batch, its embeddings. Raises `ArgumentError` for another width."""
        for task, described in self.descriptions.items():
            if output.ndim != 2 or output.shape[1] != described.shape[1]:
                raise ArgumentError(
                    f"the image tower gives {tuple(output.shape[1:])}, the text tower {described.shape[1]} numbers; "
                    "give a model whose towers were trained together"
                )
            embedded = F.normalize(output.float(), dim=-1)  # (B, E)
            self.predicted[task] += (embedded @ described.to(output.device).T).argmax(1).tolist()
        self.images += batch.indices

    def result(self, task: str, labels: np.ndarray) -> ZeroShotResult:
        """Compare with the classes of the whole source, (N,), -1 where an image has none; those are left out."""
        truth = np.asarray(labels)[self.images]
        predicted, number = np.array(self.predicted[task])[truth >= 0], len(self.descriptions[task])
        truth = truth[truth >= 0]
        if not len(truth):
            raise InputError(f"no image has a class of the task {task}; nothing was classified")
        right = int((predicted == truth).sum())
        return ZeroShotResult(
            accuracy=right / len(truth),
            interval=wilson_interval(right, len(truth)),
            guess=1 / number,
            most_frequent=float(np.bincount(truth).max() / len(truth)),
            shares=np.bincount(predicted, minlength=number) / len(truth),
            num_images=len(truth),
        )
