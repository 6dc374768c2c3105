"""Tasks of scenes: each term against a loss written by hand, and blank patches that are free where that is asked."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from vitprobe.errors import ArgumentError
from vitprobe.inputs.scene_stream import TASKS, scene_truth
from vitprobe.inputs.stream import TrainBatch
from vitprobe.probes.shards import Shards
from vitprobe.training.build import Built
from vitprobe.training.engine import Engine
from vitprobe.training.evaluation import evaluate
from vitprobe.training.variants import Variant

IMAGE = ("count", "majority", "same", "background", "presence")
DENSE = ("patch_class", "patch_mates", "patch_depth")


@pytest.fixture(scope="module")
def built(make_config: Callable, make_built: Callable) -> Built:
    """All tasks at once, with answers that differ."""
    made = make_built(make_config(tasks=(*IMAGE, *DENSE)), Variant(2))
    stir(made)
    return made


def stir(built: Built) -> None:
    for head in built.objective.tasks.modules():
        if isinstance(head, torch.nn.Linear):
            head.weight.data.mul_(40)


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def each(name: str, answer: Tensor, truth: Tensor) -> np.ndarray:
    """The loss of every image (B,) or patch (B, P)."""
    x, y = answer.detach().double().numpy(), truth.numpy()
    if name == "presence":
        p = 1 / (1 + np.exp(-x))
        return -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(-1)
    if name == "patch_depth":
        off = np.abs(x[..., 0] - y)
        return np.where(off < 1, 0.5 * off**2, off - 0.5)
    return -np.take_along_axis(log_softmax(x), y[..., None], -1)[..., 0]


def test_terms_are_what_their_formulas_say(built: Built) -> None:
    made, batch = built.objective, next(built.stream.batches(0, 1))
    with torch.no_grad():
        answers, terms = made.answers(batch.views[0]), made(batch)
    layout = made.backbone.layout()
    assert set(terms) == {"loss", *IMAGE, *DENSE}
    for name, answer in answers.items():
        lead = (8, layout.num_patches) if name in DENSE else (8,)
        assert answer.shape[:-1] == lead
        assert terms[name].item() == pytest.approx(each(name, answer, batch.truth[name]).mean(), rel=1e-4), name
    total = sum(terms[name].item() for name in IMAGE) + 2 * sum(terms[name].item() for name in DENSE)
    assert terms["loss"].item() == pytest.approx(total, rel=1e-5)


def test_dense_answers_come_from_patches_and_the_others_from_the_pooled_vector(built: Built) -> None:
    made, batch = built.objective, next(built.stream.batches(0, 1))
    layout = made.backbone.layout()
    with torch.no_grad():
        tokens = made.backbone.tokens(batch.views[0])
        answers = made.answers(batch.views[0])
        dense = made.tasks["patch_class"](tokens[:, layout.patches])
        pooled = made.tasks["count"](tokens[:, layout.cls].squeeze(1))
    assert torch.allclose(answers["patch_class"], dense, atol=1e-5)
    assert torch.allclose(answers["count"], pooled, atol=1e-5)


def last_gradient(built: Built, batch: TrainBatch) -> Tensor:
    """How much the loss asks each token after the final norm to change: (B, T)."""
    kept: list[Tensor] = []
    own = built.objective.backbone.tokens

    def tokens(images: Tensor) -> Tensor:
        found = own(images)
        found.retain_grad()
        kept.append(found)
        return found

    built.objective.backbone.tokens = tokens
    try:
        built.objective(batch)["loss"].backward()
    finally:
        del built.objective.backbone.tokens
    return kept[0].grad.abs().sum(-1)


@pytest.mark.parametrize("on_objects", [True, False])
def test_blank_patches_are_free_where_that_is_asked(
    on_objects: bool, make_config: Callable, make_built: Callable
) -> None:
    """With losses on objects alone nothing is asked of a blank patch; the control asks it of every patch."""
    built = make_built(make_config(tasks=("patch_class",), dense_on_objects=on_objects, data=("scenes:sparse",)))
    stir(built)
    batch = next(built.stream.batches(0, 1))
    on = batch.truth["patch_object"]
    asked = last_gradient(built, batch)[:, built.backbone.layout().patches]
    assert 0.02 < on.float().mean() < 0.6
    assert bool((asked[on] > 0).all())
    assert bool((asked[~on] > 0).all()) == (not on_objects)
    assert bool((asked[~on] == 0).all()) == on_objects
    answers = built.objective.answers(batch.views[0])
    terms = built.objective(batch)
    losses = each("patch_class", answers["patch_class"], batch.truth["patch_class"])
    weights = on.numpy() if on_objects else np.ones_like(losses)
    by_image = (losses * weights).sum(1) / np.maximum(weights.sum(1), 1)
    assert terms["patch_class"].item() == pytest.approx(by_image.mean(), rel=1e-4)


@pytest.mark.parametrize("on_objects", [True, False])
def test_micro_batches_add_up(on_objects: bool, make_config: Callable, make_built: Callable) -> None:
    built = make_built(make_config(dense_on_objects=on_objects, data=("scenes:sparse",)))
    whole = next(built.stream.batches(0, 1))
    losses = []
    for half in (slice(0, 4), slice(4, 8)):
        truth = {name: value[half] for name, value in whole.truth.items()}
        part = TrainBatch((whole.views[0][half],), whole.indices[half], whole.labels[half], None, truth)
        losses.append(built.objective(part)["loss"].item())
    assert built.objective(whole)["loss"].item() == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_held_out_measures_are_shares_of_right_answers(built: Built) -> None:
    config = built.objective.config
    found = evaluate(built.objective, built.held_out, Engine.open(config), Shards.alone("cpu")).summary
    made = built.objective.eval()
    items = built.held_out.reader.images.items
    images = torch.stack([made.backbone.transform(item.read().image) for item in items])
    with torch.no_grad():
        answers = {name: answer.numpy() for name, answer in made.answers(images).items()}
    truth = {name: value.numpy() for name, value in scene_truth(items, patch=4).items()}
    right = {}
    for name in (*IMAGE, "patch_class", "patch_mates"):
        if name == "presence":
            right[name] = ((answers[name] > 0) == (truth[name] == 1)).mean()
        else:
            right[name] = (answers[name].argmax(-1) == truth[name]).mean()
        assert found[f"{name}_accuracy"] == pytest.approx(right[name], abs=1e-6)
    error = np.abs(answers["patch_depth"][..., 0] - truth["patch_depth"]).mean()
    assert found["patch_depth_error"] == pytest.approx(error, rel=1e-4)
    assert found["accuracy"] == pytest.approx(np.mean(list(right.values())), abs=1e-6)
    assert made.measure == "accuracy"


def test_the_average_of_the_heads_is_measured_with_that_of_the_tower(
    make_config: Callable, make_built: Callable
) -> None:
    built = make_built(make_config(ema=0.9, tasks=("count",)))
    made, images = built.objective, next(built.stream.batches(0, 1)).views[0]
    tower, heads = made.variant(), made.average_tasks
    with torch.no_grad():
        for module in (made.tower, made.tasks):  # what is trained moves on
            for parameter in module.parameters():
                parameter.add_(0.1)
        pooled = tower.pool(tower.tokens(images), tower.layout())
        found = made.eval().answers(images, averaged=True)["count"]
    assert torch.allclose(found, heads["count"](pooled), atol=1e-5)
    assert not torch.allclose(found, made.answers(images)["count"], atol=0.1)
    assert not any(p.requires_grad for p in heads.parameters())
    before = heads["count"].weight.clone()
    made.after_step(1)
    keep = min(0.9, 2 / 11)
    assert torch.allclose(heads["count"].weight, keep * before + (1 - keep) * made.tasks["count"].weight, atol=1e-6)


def test_an_error_is_not_what_should_rise(make_config: Callable, make_built: Callable) -> None:
    assert make_built(make_config(tasks=("patch_depth",))).objective.measure == "knn"


@pytest.mark.parametrize("tasks", [("counting",), ("count", "counting"), ()])
def test_unknown_tasks_are_refused(tasks: tuple[str, ...], make_config: Callable, make_built: Callable) -> None:
    with pytest.raises(ArgumentError, match=f"scenes have {', '.join(TASKS)}"):
        make_built(make_config(tasks=tasks))
