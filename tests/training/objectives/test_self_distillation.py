"""Self-distillation: every loss against its formula, the teacher against an average taken by hand, masks that mask."""

import math
import random
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from vitprobe.training.build import Built
from vitprobe.training.objectives.self_distillation import SelfDistillation
from vitprobe.training.step import Stepper
from vitprobe.training.variants import Variant

GLOBAL, LOCAL = (32, 32), (12, 12)


@pytest.fixture
def make(make_config: Callable, make_built: Callable) -> Callable[..., Built]:
    """The function ``make(num_registers, **options of the objective)``; heads are drawn wide so that answers differ."""

    def built(number: int = 2, *, config: dict | None = None, **extra: object) -> Built:
        given = {"num_prototypes": 32, "num_local": 2, "freeze_last_layer": 0} | extra
        found = make_built(make_config(objective="self-distillation", extra=given, **(config or {})), Variant(number))
        made = found.objective
        for student, teacher in ((made.cls_head, made.teacher_cls_head), (made.patch_head, made.teacher_patch_head)):
            student.last_layer.weight_g.data.fill_(3)
            teacher.last_layer.weight_g.data.fill_(3)
        return found

    return built


def softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def cls_by_hand(taught: list[np.ndarray], said: list[np.ndarray], centre: np.ndarray, temperature: float) -> float:
    """DINO: cross-entropy of each crop with each whole view of the teacher but itself (arXiv 2104.14294, eq. 3)."""
    terms = []
    for i, teacher in enumerate(taught):
        target = softmax((teacher - centre) / temperature)
        for j, student in enumerate(said):
            if i != j:
                terms.append(-(target * np.log(softmax(student / 0.1))).sum(-1).mean())
    return float(np.mean(terms))


def patch_by_hand(
    taught: np.ndarray, said: np.ndarray, masks: np.ndarray, centre: np.ndarray, temperature: float
) -> float:
    """iBOT: the mean over the masked patches of each image, then over images, those without a mask being 0."""
    total, at = 0.0, 0
    for mask in masks:
        number = int(mask.sum())
        if number:
            target = softmax((taught[at : at + number] - centre) / temperature)
            total += -(target * np.log(softmax(said[at : at + number] / 0.1))).sum(-1).mean()
        at += number
    assert at == len(taught)
    return total / len(masks)


def koleo_by_hand(x: np.ndarray) -> float:
    """Sablayrolles et al. (arXiv 1806.03198): -mean log distance to the nearest neighbour on the sphere."""
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    apart = np.linalg.norm(x[:, None] - x[None], axis=-1) + 9 * np.eye(len(x))
    return float(-np.log(apart.min(1)).mean())


def array(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


@torch.no_grad()
def pieces(made: SelfDistillation, views: list[Tensor], masks: Tensor) -> dict[str, np.ndarray]:
    """What teacher and student say, computed image by image and crop by crop."""
    whole, masked = torch.cat(views[:2]), masks.flatten(1)
    layout, student = made.backbone.layout(GLOBAL), made.backbone
    teacher_tokens = torch.cat([made.variant().tokens(one[None]) for one in whole])
    own = torch.cat([student.tokens(whole, masked=masked, mask_token=made.mask_token)])
    crops = [student.tokens(view) for view in views[2:]]
    cls = own[:, layout.cls].squeeze(1)
    small = student.layout(LOCAL)
    return {
        "taught": array(made.teacher_cls_head(teacher_tokens[:, layout.cls].squeeze(1))),
        "said": array(torch.cat([made.cls_head(x) for x in (cls, *(c[:, small.cls].squeeze(1) for c in crops))])),
        "taught_patches": array(made.teacher_patch_head(teacher_tokens[:, layout.patches][masked])),
        "said_patches": array(made.patch_head(own[:, layout.patches][masked])),
        "cls": array(cls),
    }


@pytest.mark.parametrize("number", [0, 3])
def test_losses_with_centres(number: int, make: Callable, make_batch: Callable, stir: Callable) -> None:
    made = make(number).objective
    stir(made.teacher, seed=5)
    centres = [np.zeros(32), np.zeros(32)]
    for turn, temperature in enumerate((0.04, 0.055, 0.07)):  # each call moves the centres of the next
        batch = make_batch(*[(4, 3, *GLOBAL)] * 2, *[(4, 3, *LOCAL)] * 2, seed=10 * turn)
        made.teacher_temperature = temperature
        random.seed(turn)
        masks = made._masks(8, (8, 8))
        found = pieces(made, list(batch.views), masks)
        random.seed(turn)
        terms = {name: term.item() for name, term in made(batch).items()}
        taught, said = np.split(found["taught"], 2), np.split(found["said"], 4)
        assert terms["cls"] == pytest.approx(cls_by_hand(taught, said, centres[0], temperature), rel=1e-4)
        patches = found["taught_patches"], found["said_patches"]
        assert terms["patch"] == pytest.approx(
            patch_by_hand(*patches, masks.numpy(), centres[1], temperature), rel=1e-4
        )
        koleo = sum(koleo_by_hand(half) for half in np.split(found["cls"], 2))
        assert terms["koleo"] == pytest.approx(koleo, rel=1e-3)
        assert terms["loss"] == pytest.approx(terms["cls"] + terms["patch"] + 0.1 * terms["koleo"], rel=1e-5)
        means = found["taught"].mean(0), found["taught_patches"].mean(0)
        centres = [0.9 * centre + 0.1 * mean for centre, mean in zip(centres, means, strict=True)]
        assert np.allclose(array(made.cls_loss.center).ravel(), centres[0], atol=1e-5)
        assert np.allclose(array(made.patch_loss.center.value).ravel(), centres[1], atol=1e-5)


def test_losses_are_taken_in_float32_under_autocast(make: Callable, make_batch: Callable) -> None:
    """Their products over thousands of prototypes would lose what distinguishes them in 8 bits."""
    made = make().objective
    batch = make_batch(*[(4, 3, *GLOBAL)] * 2, *[(4, 3, *LOCAL)] * 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = made(batch)
    assert {term.dtype for term in terms.values()} == {torch.float32}
    assert any(terms[name].item() != terms[name].bfloat16().item() for name in ("cls", "patch"))


def test_the_teacher_is_an_average_of_students(make: Callable, make_config: Callable, open_engine: Callable) -> None:
    """theta_t <- m theta_t + (1 - m) theta_s, m rising from 0.9 to 1 along a cosine, over tower and heads alike."""
    built = make(2, teacher_momentum=(0.9, 1.0), config={"lr": 3e-3, "steps": 4, "drop_path": 0.2, "dropout": 0.2})
    made, config = built.objective, built.objective.config
    pairs = {"teacher": "tower", "teacher_cls_head": "cls_head", "teacher_patch_head": "patch_head"}
    average = {n: p.detach().double().clone() for n, p in made.named_parameters() if n.startswith("teacher")}
    begun = {n: value.clone() for n, value in average.items()}
    stepper = Stepper.make(config, built, open_engine(config))
    for done, _ in stepper.steps(built.stream.batches(0, 4), 0):
        momentum = 1.0 - 0.1 * (1 + math.cos(math.pi * done / 4)) / 2
        student = {n: p.detach().double() for n, p in made.named_parameters()}
        for n in average:
            first, _, rest = n.partition(".")
            average[n] = momentum * average[n] + (1 - momentum) * student[f"{pairs[first]}.{rest}"]
    for n, p in made.named_parameters():
        if n in average:
            assert torch.allclose(p.double(), average[n], atol=1e-6), n
            assert not p.requires_grad
    assert sum(not torch.equal(begun[n], average[n]) for n in begun) > 20


def test_the_teacher_sees_whole_images_in_evaluation_mode(make: Callable) -> None:
    made = make(2, config={"drop_path": 0.5, "dropout": 0.5}).objective
    assert made.tower.training and not made.teacher.training
    made.eval()
    made.train()
    assert made.tower.training and not made.teacher.blocks[1].training


def test_registers_stand_in_student_and_teacher(make: Callable) -> None:
    made = make(3).objective
    for backbone in (made.backbone, made.variant()):
        assert backbone.module.reg_token.shape == (1, 3, 32)
        assert backbone.layout().num_registers == backbone.spec.num_registers == 3
    assert made.tower.reg_token is not made.teacher.reg_token
    assert torch.equal(made.tower.reg_token, made.teacher.reg_token)


@pytest.mark.parametrize(("low", "high", "share"), [(0.1, 0.5, 0.5), (0.3, 0.3, 1.0), (0.0, 0.2, 0.25)])
def test_masks_cover_the_shares_that_are_asked_for(low: float, high: float, share: float, make: Callable) -> None:
    made = make(mask_ratio=(low, high), masked_share=share).objective
    random.seed(0)
    masks = torch.stack([made._masks(16, (8, 8)) for _ in range(50)])  # (50, 16, 8, 8)
    covered = masks.flatten(2).float().mean(2)  # (50, 16)
    assert torch.equal((covered > 0).float().mean(1), torch.full((50,), share))
    some = covered[covered > 0]
    assert some.max() <= high + 1 / 64 and some.min() >= 1 / 64
    assert some.mean() == pytest.approx((max(low, 1.5 / 64) + high) / 2, abs=0.04)
    places = masks.float().mean((0, 1))
    assert places.min() > 0 and places.max() < 2.5 * places.mean()  # blocks cover the middle more often


def test_nothing_masked_leaves_a_loss_that_is_finite(make: Callable, make_batch: Callable) -> None:
    made = make(masked_share=0.0).objective
    for seed in range(2):
        terms = made(make_batch(*[(4, 3, *GLOBAL)] * 2, *[(4, 3, *LOCAL)] * 2, seed=seed))
        assert all(bool(term.isfinite()) for term in terms.values())
        assert terms["patch"].item() == 0
    assert bool(made.patch_loss.center.value.isfinite().all())
    terms["loss"].backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in made.parameters())


def test_masked_patches_are_replaced(make: Callable, make_batch: Callable) -> None:
    """Pixels under a mask do not reach the student, those beside it do; the mask token learns."""
    made = make(num_local=0, koleo=0.0).objective
    batch = make_batch(*[(4, 3, *GLOBAL)] * 2)
    views = [view.requires_grad_() for view in batch.views]
    random.seed(1)
    masks = made._masks(8, (8, 8))
    random.seed(1)
    made(batch)["loss"].backward()
    gradient = torch.cat([view.grad for view in views]).abs().sum(1)  # (8, 32, 32)
    by_patch = gradient.unflatten(1, (8, 4)).unflatten(3, (8, 4)).sum((2, 4))  # (8, 8, 8)
    assert bool((by_patch[masks] == 0).all())
    assert bool((by_patch[~masks] > 0).all())
    assert made.mask_token.grad.abs().max() > 0


@pytest.mark.parametrize(("local_size", "size"), [(None, (12, 12)), (16, (16, 16)), ((8, 20), (8, 20))])
def test_local_crops_of_other_sizes(local_size: object, size: tuple[int, int], make: Callable) -> None:
    built = make(local_size=local_size, num_local=3)
    batch = next(built.stream.batches(0, 1))
    assert [tuple(view.shape) for view in batch.views] == [(8, 3, *GLOBAL)] * 2 + [(8, 3, *size)] * 3
    assert bool(built.objective(batch)["loss"].isfinite())


def test_last_layers_wait_for_as_many_steps_as_asked(make: Callable, open_engine: Callable) -> None:
    built = make(freeze_last_layer=2, config={"lr": 1e-2, "steps": 4, "warmup": 0, "weight_decay": 0.1})
    made = built.objective
    stepper = Stepper.make(made.config, built, open_engine(made.config))
    weights = [made.cls_head.last_layer.weight_v.detach().clone()]
    for _ in stepper.steps(built.stream.batches(0, 4), 0):
        weights.append(made.cls_head.last_layer.weight_v.detach().clone())
    assert [torch.equal(a, b) for a, b in pairwise(weights)] == [True, True, False, False]


def test_the_temperature_rises_and_stays(make: Callable) -> None:
    made = make(config={"steps": 100}).objective
    seen = []
    for step in (0, 15, 30, 99):
        made.before_step(step)
        seen.append(made.teacher_temperature)
    assert seen == pytest.approx([0.04, 0.055, 0.07, 0.07])
