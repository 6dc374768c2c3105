"""The rate at a step, against the formula, and that it depends on the step alone."""

import math

import pytest
import torch
from torch import nn

from vitprobe.training.recipes import resolve
from vitprobe.training.schedule import make_optimizer, make_scheduler, set_decay


def groups() -> list[dict]:
    layer = nn.Linear(3, 3)
    return [
        {"params": [layer.weight], "weight_decay": 0.1, "lr_scale": 0.5},
        {"params": [layer.bias], "weight_decay": 0.0, "lr_scale": 1.0},
    ]


def expected(schedule: str, step: int) -> float:
    lr, low, warmup, steps = 1e-2, 1e-4, 10, 110
    if step < warmup:
        return lr * step / warmup
    share = (step - warmup) / (steps - warmup)
    if schedule == "constant":
        return lr
    return low + (lr - low) * ((1 + math.cos(math.pi * share)) / 2 if schedule == "cosine" else 1 - share)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_rates_follow_the_formula(schedule: str) -> None:
    config = resolve({"schedule": schedule, "lr": 1e-2, "min_lr": 1e-4, "warmup": 10, "steps": 110})
    optimizer = make_optimizer(groups(), config)
    scheduler = make_scheduler(optimizer, config)
    for step in (57, 0, 3, 10, 11, 109):  # in no order: nothing is remembered
        scheduler.step_update(step)
        assert optimizer.param_groups[1]["lr"] == pytest.approx(expected(schedule, step), rel=1e-6, abs=1e-9)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * expected(schedule, step), rel=1e-6, abs=1e-9)


def test_weight_decay_rises_to_its_end_where_there_is_any() -> None:
    config = resolve({"weight_decay": 0.04, "weight_decay_end": 0.4, "steps": 100})
    optimizer = make_optimizer(groups(), config)
    set_decay(optimizer, config, 0)
    assert optimizer.param_groups[0]["weight_decay"] == pytest.approx(0.04)
    set_decay(optimizer, config, 50)
    assert optimizer.param_groups[0]["weight_decay"] == pytest.approx(0.22)
    assert optimizer.param_groups[1]["weight_decay"] == 0.0


@pytest.mark.parametrize("name", ["adamw", "lamb", "sgd"])
def test_optimisers_lower_a_loss(name: str) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 1), torch.randn(32, 4)
    config = resolve({"optimizer": name, "lr": 0.05})
    made = [{"params": [layer.weight], "weight_decay": 0.0}, {"params": [layer.bias], "weight_decay": 0.0}]
    optimizer = make_optimizer(made, config)
    losses = []
    for _ in range(40):
        loss = (layer(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
