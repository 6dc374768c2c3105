"""What one token tells of its image's class, by kind of token: the logistic regression of tables 1, 4 and 6."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
import torch

from vitprobe.probes.knn import wilson_interval
from vitprobe.probes.linear import C_GRID, LogisticResult, logistic_probe
from vitprobe.probes.token_means import Values, joined
from vitprobe.probes.token_sets import TokenSet


@dataclass(frozen=True)
class KindAccuracy:
    """Hold how well the class of an image is read from one token of a kind."""

    kind: str
    """``normal``, ``outlier``, ``cls`` or ``register:K``."""
    accuracy: float
    """Mean over draws of the share of test images whose class is right."""
    interval: tuple[float, float]
    """Wilson's 95 % interval of that mean, for so many test images drawn at random."""
    spread: float | None
    """Standard deviation over draws (n - 1); None of one draw."""
    chance: float
    """Share of test images of the training set's most frequent class."""
    num_train: int
    """Images."""
    num_test: int
    draws: tuple[LogisticResult, ...]
    """One a draw."""
    hits: Values
    """Test images, and whether the class was right, once a draw."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the solver has warned of, and a C at the end of its grid, each once."""
        return tuple(dict.fromkeys(note for one in self.draws for note in one.notes))


def classify_tokens(
    train: TokenSet,
    test: TokenSet,
    train_labels: np.ndarray,
    test_labels: np.ndarray,
    *,
    grid: Sequence[float] = C_GRID,
    seed: int = 0,
    solver: str = "sklearn",
    device: torch.device | str = "cpu",
) -> KindAccuracy:
    """Train a logistic regression on one token an image, test it on those of other images, and repeat for each draw.

    This is the protocol of table 1 of Darcet et al. (arXiv 2309.16588, section 2.1): of each image a token of the kind
    is drawn at random; their spread is over draws. ``train_labels`` and ``test_labels`` are those of the whole
    sources, by the position of an image, -1 where it has none: such an image is left out. C is chosen anew for every
    draw, on a fifth of the training images. Raises what `logistic_probe` does.
    """
    found, hits = [], []
    for draw in range(train.num_draws):
        pair = [_labelled(one.of_draw(draw), labels) for one, labels in ((train, train_labels), (test, test_labels))]
        (x, y), (test_x, wanted) = ((one.features, labels) for one, labels in pair)
        found.append(logistic_probe(x, y, test_x, wanted, grid=grid, seed=seed, solver=solver, device=device))
        hits.append((pair[1][0].images, found[-1].predicted == wanted))
    accuracies = [one.accuracy for one in found]
    number = found[0].num_test
    return KindAccuracy(
        kind=train.kind,
        accuracy=fmean(accuracies),
        interval=wilson_interval(round(fmean(accuracies) * number), number),
        spread=stdev(accuracies) if len(found) > 1 else None,
        chance=found[0].chance,
        num_train=found[0].num_train,
        num_test=number,
        draws=tuple(found),
        hits=joined(hits),
    )


def _labelled(tokens: TokenSet, labels: np.ndarray) -> tuple[TokenSet, np.ndarray]:
    """Return the tokens whose image has a class, on disk where all have, and the classes."""
    own = np.asarray(labels)[tokens.images]  # (N,)
    return (tokens, own) if (own >= 0).all() else (tokens.rows(np.flatnonzero(own >= 0)), own[own >= 0])
