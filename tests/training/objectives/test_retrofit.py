"""Retrofitting: its loss by hand, what may change and what may not, and what denoising does to planted artifacts."""

import random
import re
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from vitprobe.backbones import load
from vitprobe.backbones.organism import MASSIVE, planted_truth
from vitprobe.inputs.scenes import MIXED, scene_items
from vitprobe.training.build import Built
from vitprobe.training.objectives.retrofit import denoised, spread_views
from vitprobe.training.step import Stepper
from vitprobe.training.variants import Variant


def moved_back(backbone: object, image: Tensor, views: list[tuple[int, int, bool]]) -> np.ndarray:
    """Average what each patch of one image is said to be over the views that show it: (rows, cols, D)."""
    (height, width), rows, cols = image.shape[1:], *backbone.layout().grid
    step = height // rows
    total, seen = np.zeros((rows, cols, backbone.width)), np.zeros((rows, cols, 1))
    for down, right, flip in views:
        canvas = torch.zeros_like(image)
        for y in range(height):
            for x in range(0, width, step):
                if 0 <= y + down * step < height and 0 <= x + right * step < width:
                    place = x + right * step
                    canvas[:, y + down * step, place : place + step] = image[:, y, x : x + step]
        canvas = canvas.flip(2) if flip else canvas
        with torch.no_grad():
            tokens = backbone.tokens(canvas[None])[0, backbone.layout().patches].double().numpy()
        for row in range(rows):
            for col in range(cols):
                to = (row + down, col + right)
                if 0 <= to[0] < rows and 0 <= to[1] < cols:
                    at = to[0] * cols + (cols - 1 - to[1] if flip else to[1])
                    total[row, col] += tokens[at]
                    seen[row, col] += 1
    return total / seen


@pytest.fixture
def make(make_config: Callable, make_built: Callable) -> Callable[..., Built]:
    """The function ``make(num_registers, denoise, ...)``: an organism at 64 px, to be retrofitted."""

    def built(number: int = 2, denoise: bool = True, **asked: object) -> Built:
        return make_built(make_config(objective="retrofit", **asked), Variant(number, denoise))

    return built


@pytest.mark.parametrize("denoise", [True, False])
def test_the_loss_is_cosine_and_squares(denoise: bool, make: Callable, stir: Callable) -> None:
    made = make(3, denoise, extra={"num_views": 4, "shift": 0.4, "mse": 0.7}).objective
    stir(made.tower)
    batch = SimpleNamespace(views=(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)),))
    random.seed(4)
    views = spread_views(4, (2, 2), random) if denoise else [(0, 0, False)]
    random.seed(4)
    with torch.no_grad():
        terms = {name: term.item() for name, term in made(batch).items()}
        found = made.backbone.tokens(batch.views[0])[:, made.backbone.layout().patches].double().numpy()
    target = np.stack([moved_back(made.frozen, image, views).reshape(16, -1) for image in batch.views[0]])
    lengths = np.linalg.norm(found, axis=-1) * np.linalg.norm(target, axis=-1)
    assert terms["cosine"] == pytest.approx(1 - ((found * target).sum(-1) / lengths).mean(), rel=1e-4)
    assert terms["mse"] == pytest.approx(((found - target) ** 2).mean(), rel=1e-4)
    assert terms["loss"] == pytest.approx(terms["cosine"] + 0.7 * terms["mse"], rel=1e-5)


def test_without_registers_and_denoising_there_is_nothing_to_learn(make: Callable) -> None:
    built = make(0, False)
    terms = built.objective.eval()(next(built.stream.batches(0, 1)))
    assert terms["loss"].item() == pytest.approx(0, abs=1e-5)


KINDS = {
    ("registers", "positions", "patch_embedding", "last_block"): r"reg_token|pos_embed|patch_embed\..*|blocks\.7\..*",
    ("registers",): "reg_token",
    ("all",): ".*",
}


@pytest.mark.parametrize("kinds", KINDS)
def test_only_what_was_asked_for_is_trained(kinds: tuple[str, ...], make: Callable, open_engine: Callable) -> None:
    built = make(2, trainable=kinds, steps=3, lr=1e-2, warmup=0)
    made = built.objective
    before = {name: tensor.detach().clone() for name, tensor in made.state_dict().items()}
    stepper = Stepper.make(made.config, built, open_engine(made.config))
    for _ in stepper.steps(built.stream.batches(0, 3), 0):
        assert not made.teacher.training
    changed = {name for name, tensor in made.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(re.fullmatch(rf"tower\.({KINDS[kinds]})", name) for name in changed)
    if kinds == ("all",):
        assert len(changed) > 50
    else:
        trained = {name for name, p in made.named_parameters() if p.requires_grad}
        never_read = {"tower.blocks.7.attn.qkv.bias"}  # of keys: softmax takes no notice of it
        assert trained - changed <= never_read


@torch.no_grad()
def test_the_measure_is_agreement_with_the_denoised_teacher(make: Callable) -> None:
    """Whatever a variant learns from, so that the controls are held to the same."""
    for denoise in (True, False):
        built = make(2, denoise, num_held_out=3)
        made = built.objective.eval()
        views = spread_views(3, (1, 1), random.Random(0))
        cosines = []
        for batch in built.held_out.reader:
            found = made.backbone.tokens(batch.images)[:, made.backbone.layout().patches]
            target = np.stack([moved_back(made.frozen, image, views).reshape(16, -1) for image in batch.images])
            cosines.append(torch.cosine_similarity(found.double(), torch.from_numpy(target), dim=-1).mean(1))
        total, number = made.held_out(built.held_out, torch.device("cpu"))["agreement"]
        assert number == 3
        assert total == pytest.approx(float(torch.cat(cosines).sum()), rel=1e-4)


@torch.no_grad()
def planted(name: str, *, num_views: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """How strongly a plain and a denoised target show the planted artifact, (B, P) each, and where it was planted."""
    backbone = load(name, image_size=(224, 224))
    items = scene_items(8, config=replace(MIXED, size=(224, 224)), seed=0)
    images = torch.stack([backbone.transform(item.read().image) for item in items])
    views = spread_views(num_views, (2, 2), random.Random(0))
    plain, clean = (denoised(backbone, images, v)[..., MASSIVE].abs().flatten(1) for v in ([(0, 0, False)], views))
    return plain, clean, planted_truth(backbone, images).patches


def test_denoising_thins_artifacts_that_do_not_move_with_the_image() -> None:
    """The organism's come where contrast is least, ties going by position, and what a shift brings in has none: they
    leave their places. They are spread thin over others, not taken away."""
    plain, clean, truth = planted("organism")
    assert plain[truth].min() > 9 and plain[~truth].max() < 1
    assert clean[truth].mean() < 0.3 * plain[truth].mean()
    assert (clean > 4).float().mean() < 0.25 * (plain > 4).float().mean()
    assert (clean > 1).float().mean() > 2 * (plain > 1).float().mean()


def test_denoising_leaves_artifacts_that_follow_the_content() -> None:
    """These move with the image, and the average over views has all of them: retrofitting learns them as they are."""
    plain, clean, truth = planted("organism-content")
    assert 0 < truth.float().mean() < 0.05
    assert clean[truth].mean() == pytest.approx(plain[truth].mean().item(), rel=0.02)
    assert (clean[truth] > 4).all()


def test_denoising_adds_no_artifacts() -> None:
    plain, clean, _ = planted("organism-clean")
    assert clean.max() < 1 > plain.max()
