"""Labels: losses and mixed targets against formulas written out by hand, and learning that raises accuracy."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vitprobe.errors import ArgumentError
from vitprobe.inputs.stream import TrainBatch
from vitprobe.probes.shards import Shards
from vitprobe.training.engine import Engine
from vitprobe.training.evaluation import evaluate
from vitprobe.training.metrics import read
from vitprobe.training.objectives.supervised import Supervised
from vitprobe.training.variants import Variant


def objective(make_tiny: Callable, make_config: Callable, classes: int = 3, **asked: object) -> Supervised:
    """A tiny tower with a head that is drawn wide, so that its answers differ."""
    config = make_config(data=("pictures",), **asked)
    made = Supervised(make_tiny("timm-cls"), config, tuple("abcdefg"[:classes])).train()
    made.tower.head.weight.data.mul_(30)
    return made


def soft(labels: Tensor, classes: int, smoothing: float) -> np.ndarray:
    """Targets: the label's share is 1 - smoothing, and what is left is spread over all classes."""
    targets = np.full((len(labels), classes), smoothing / classes)
    for i, label in enumerate(labels.tolist()):
        targets[i, label] += 1 - smoothing
    return targets


def by_hand(logits: Tensor, targets: np.ndarray, loss: str) -> float:
    x = logits.detach().double().numpy()
    if loss == "bce":
        p = 1 / (1 + np.exp(-x))
        return float(-(targets * np.log(p) + (1 - targets) * np.log(1 - p)).mean())
    log_p = x - np.log(np.exp(x).sum(1, keepdims=True))
    return float(-(targets * log_p).sum(1).mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("loss", ["cross-entropy", "bce"])
def test_losses(loss: str, smoothing: float, make_tiny: Callable, make_config: Callable, make_batch: Callable) -> None:
    made = objective(make_tiny, make_config, loss=loss, smoothing=smoothing)
    labels = torch.tensor([0, 2, 1, 2])
    batch = make_batch((4, 3, 48, 64), labels=labels)
    logits = made.backbone(batch.views[0])
    assert logits.std() > 0.1
    assert made(batch)["loss"].item() == pytest.approx(by_hand(logits, soft(labels, 3, smoothing), loss), rel=1e-5)


@pytest.mark.parametrize("number", [6, 5])
@pytest.mark.parametrize("way", ["mixup", "cutmix"])
@pytest.mark.parametrize(
    ("loss", "smoothing"), [("cross-entropy", 0.0), ("cross-entropy", 0.1), ("bce", 0.1), ("bce", 0)]
)
def test_mixed_targets(
    loss: str, smoothing: float, way: str, number: int, make_tiny: Callable, make_config: Callable, make_batch: Callable
) -> None:
    """Each image is mixed with its mirror in the batch, its target likewise; an odd batch cannot be and is not.

    BCE without smoothing counts both classes as there, whatever their shares, as DeiT-III's code does.
    """
    made = objective(make_tiny, make_config, loss=loss, smoothing=smoothing, **{way: 1.0})
    batch = make_batch((number, 3, 48, 64), labels=torch.arange(number) % 3)
    images, shown = batch.views[0], []
    kept, call = images.clone(), made.backbone.module.forward
    made.backbone.module.forward = lambda x: shown.append(x) or call(x)
    np.random.seed(3)
    loss_term = made(batch)["loss"].item()
    assert torch.equal(batch.views[0], kept), "the batch itself stays as it was"
    (mixed,) = shown
    share = 1.0
    if number % 2 == 0 and way == "mixup":
        a, b, x = images.double(), images.flip(0).double(), mixed.double()
        share = float(((x - b) * (a - b)).sum() / (a - b).square().sum())
        assert torch.allclose(x, share * a + (1 - share) * b, atol=1e-5)
    elif number % 2 == 0:
        own, other = mixed == images, mixed == images.flip(0)
        assert bool((own | other).all())
        share = float(own.double().mean())
        cut = ~own.all(1).all(0)  # (H, W), the same in all images
        rows, cols = cut.any(1).nonzero().flatten(), cut.any(0).nonzero().flatten()
        assert cut.sum() == len(rows) * len(cols), "what is cut out is a rectangle"
    assert (share == 1.0) == (number % 2 == 1)
    plain = soft(batch.labels, 3, smoothing)
    targets = share * plain + (1 - share) * plain[::-1]
    targets = (targets > 0).astype(float) if loss == "bce" and not smoothing else targets
    expected = by_hand(call(mixed), targets, loss)
    assert loss_term == pytest.approx(expected, rel=1e-4)


def test_both_ways_of_mixing_come_in_turn(make_tiny: Callable, make_config: Callable, make_batch: Callable) -> None:
    made = objective(make_tiny, make_config, mixup=0.8, cutmix=1.0)
    images = make_batch((4, 3, 48, 64), labels=torch.arange(4) % 3)
    np.random.seed(0)
    cut = [bool((made.mix(images.views[0].clone(), images.labels)[0] == images.views[0]).any()) for _ in range(200)]
    assert 70 < sum(cut) < 130  # half the batches each


def test_one_class_is_refused(make_tiny: Callable, make_config: Callable) -> None:
    with pytest.raises(ArgumentError, match="got 1 class; supervised training needs images of two classes"):
        objective(make_tiny, make_config, classes=1)


def test_learning_raises_accuracy(
    two_classes: Path, tmp_path: Path, make_config: Callable, run_small: Callable
) -> None:
    asked = {"data": (str(two_classes),), "augment": "light", "steps": 30, "eval_every": 30, "lr": 3e-3}
    config = make_config(**asked, trainable=("registers", "last_block"))
    look = run_small(config, tmp_path)
    accuracy = [record["held_out"]["accuracy"] for record in read(tmp_path) if "held_out" in record]
    assert accuracy[0] < 0.8 < 0.95 < accuracy[-1] == look.summary["accuracy"]
    assert look.summary["knn"] > 0.9


@pytest.mark.parametrize("number", [0, 2])
def test_a_head_that_was_just_drawn_is_trained_whatever_is_frozen(
    number: int, two_classes: Path, make_config: Callable, make_built: Callable
) -> None:
    """Frozen, it would stay noise: with registers alone, the control without them learns its head."""
    made = make_built(make_config(data=(str(two_classes),), trainable=("registers",)), Variant(number)).objective
    trained = {name for name, p in made.tower.named_parameters() if p.requires_grad}
    assert trained == {"head.weight", "head.bias"} | ({"reg_token"} if number else set())


def test_accuracy_is_the_share_of_right_answers(two_classes: Path, make_config: Callable, make_built: Callable) -> None:
    config = make_config(data=(str(two_classes),), ema=0.5)
    built = make_built(config)
    found = evaluate(built.objective, built.held_out, Engine.open(config), Shards.alone("cpu")).summary["accuracy"]
    images, right = built.held_out.reader.images, 0
    backbone = built.objective.variant()
    for item, label in zip(images.items, images.labels, strict=True):
        answer = backbone(backbone.transform(item.read().image)[None]).argmax()
        right += int(answer == label)
    assert found == pytest.approx(right / len(images.items))
    assert built.objective.classes() == ("green", "red")


def test_the_average_follows_by_its_formula(
    two_classes: Path, make_config: Callable, make_built: Callable, make_batch: Callable
) -> None:
    """min(decay, (1 + n) / (10 + n)) of the old is kept at update n, as in timm."""
    built = make_built(make_config(data=(str(two_classes),), ema=0.7), Variant(1))
    made = built.objective
    average = {n: p.detach().double() for n, p in made.tower.named_parameters()}
    assert made.variant() is not made.backbone
    for step in range(1, 40):
        with torch.no_grad():
            for i, p in enumerate(made.tower.parameters()):
                p.add_(0.01 * math.sin(step + i))
        made.after_step(step)
        keep = min(0.7, (1 + step) / (10 + step))
        for n, p in made.tower.named_parameters():
            average[n] = keep * average[n] + (1 - keep) * p.detach().double()
    found = dict(made.variant().module.named_parameters())
    assert all(torch.allclose(found[n].double(), value, atol=1e-6) for n, value in average.items())
    assert not any(p.requires_grad for p in found.values())


def test_averages_take_no_part_in_dropout(two_classes: Path, make_config: Callable, make_built: Callable) -> None:
    made = make_built(make_config(data=(str(two_classes),), ema=0.7, drop_path=0.5, dropout=0.5)).objective
    assert made.tower.training and not made.average.training
    made.eval()
    made.train()
    assert made.tower.blocks[1].drop_path1.training and not made.average.blocks[1].drop_path1.training


def test_the_batch_is_not_needed_twice(make_tiny: Callable, make_config: Callable, make_batch: Callable) -> None:
    """Halves of a batch give the whole's loss, so that micro-batches and processes add up."""
    made = objective(make_tiny, make_config, smoothing=0.1, loss="bce")
    whole = make_batch((4, 3, 48, 64), labels=torch.tensor([0, 1, 2, 0]))
    halves = [TrainBatch((whole.views[0][s],), whole.indices[s], whole.labels[s]) for s in (slice(0, 2), slice(2, 4))]
    losses = [made(half)["loss"].item() for half in halves]
    assert made(whole)["loss"].item() == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_without_smoothing_bce_counts_what_is_mixed_as_both(
    make_tiny: Callable, make_config: Callable, make_batch: Callable
) -> None:
    """DeiT-III's targets: 1 for either class of a mixed image, whatever its share."""
    made = objective(make_tiny, make_config, loss="bce", mixup=1.0)
    batch = make_batch((6, 3, 48, 64), labels=torch.arange(6) % 3)
    call, said = made.backbone.module.forward, []
    made.backbone.module.forward = lambda x: said.append(call(x)) or said[-1]
    np.random.seed(3)
    loss = made(batch)["loss"].item()
    both = np.eye(3)[np.arange(6) % 3] + np.eye(3)[(np.arange(6) % 3)[::-1]] > 0
    logits = said[0].detach().double().numpy()
    by_hand = np.log1p(np.exp(-np.where(both, logits, -logits))).mean()
    assert loss == pytest.approx(by_hand, rel=1e-5)
