"""The plan of a step against sums done by hand."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from vitprobe.errors import ArgumentError
from vitprobe.training.plan import plan_step

BATCH = 4


def mlp(activation):
    return nn.Sequential(nn.Linear(10, 20), activation, nn.Linear(20, 5))


def plan_of(module, step, **asked):
    usual = {"batch_size": BATCH, "optimizer_slots": 2, "precision": "float32", "ema": False, "scale_to": BATCH}
    return plan_step(step, module, **usual | asked)


def test_flops_of_an_mlp_are_counted_exactly():
    module, x = mlp(nn.GELU()), torch.randn(BATCH, 10)
    found = plan_of(module, lambda: module(x).sum())
    first, second = 2 * 10 * 20, 2 * 20 * 5
    assert found.forward_flops == first + second
    assert found.training_flops == 2 * first + 3 * second  # no gradient flows to the images
    assert (found.parameters, found.trainable_parameters) == (325, 325)
    images = x.requires_grad_()
    assert plan_of(module, lambda: module(images).sum()).training_flops == 3 * (first + second)


@pytest.mark.parametrize(("activation", "kept"), [(nn.GELU(), 10 + 20 + 20 + 5), (nn.ReLU(), 10 + 20 + 5)])
def test_activations_of_an_mlp_are_counted_once_each(activation, kept):
    """Kept: the input of each layer and of GELU (ReLU keeps its output, which the next layer keeps too), of square."""
    module, x = mlp(activation), torch.randn(BATCH, 10)
    found = plan_of(module, lambda: module(x).square().mean(), ema=True, scale_to=64)
    assert found.activation_bytes == kept * 64 * 4
    assert (found.parameter_bytes, found.gradient_bytes, found.ema_bytes) == (325 * 4,) * 3
    assert (found.optimizer_bytes, found.copy_bytes, found.batch_size) == (2 * 325 * 4, 0, 64)
    assert found.total_bytes == 5 * 325 * 4 + found.activation_bytes


def test_bfloat16_halves_activations_and_adds_copies_of_weights():
    module, x = mlp(nn.GELU()), torch.randn(BATCH, 10)
    found = plan_of(module, lambda: module(x).sum(), precision="bfloat16")
    assert found.activation_bytes == (10 + 20 + 20) * BATCH * 2
    assert found.copy_bytes == 20 * 5 * 2  # of the second layer; the first one's is not needed on the way back
    assert found.parameter_bytes == 325 * 4
    plain = plan_of(module, lambda: module(x).sum())
    assert (found.forward_flops, found.training_flops) == (plain.forward_flops, plain.training_flops)
    assert plan_of(module, lambda: module(x).sum(), precision="auto").precision in ("float32", "bfloat16")


def parts_of_vit(tokens, patches, width, pixels, blocks):
    """FLOPs of the forward pass on one image: the patch embedding, all linear layers of the blocks, attention."""
    linear = blocks * 2 * tokens * width * (3 + 1 + 4 + 4) * width
    return 2 * patches * pixels * width, linear, blocks * 2 * 2 * tokens**2 * width


@pytest.mark.parametrize(("fused", "back"), [(True, 2.5), (False, 2.0)])
def test_flops_of_a_vit_are_those_of_the_formula(make_tiny, fused, back):
    module = make_tiny("timm-cls").module.train()
    for block in module.blocks:
        block.attn.fused_attn = fused
    images = torch.randn(BATCH, 3, 48, 64)
    found = plan_of(module, lambda: module(images).sum())
    embed, linear, attention = parts_of_vit(49, 48, 48, 3 * 8 * 8, 2)
    head = 2 * 48 * 5
    assert found.forward_flops == embed + linear + attention + head
    assert found.training_flops == 2 * embed + 3 * (linear + head) + (1 + back) * attention


def test_the_attention_of_open_clip_is_counted_too(make_tiny):
    module = make_tiny("clip").module.train()
    images = torch.randn(BATCH, 3, 48, 64)
    embed, linear, attention = parts_of_vit(49, 48, 48, 3 * 8 * 8, 2)
    assert plan_of(module, lambda: module(images).sum()).forward_flops == embed + linear + attention + 2 * 48 * 16


def test_fused_attention_keeps_no_patterns(make_tiny):
    module = make_tiny("timm-cls").module.train()
    images = torch.randn(BATCH, 3, 48, 64)
    kept = {}
    for fused in (True, False):
        for block in module.blocks:
            block.attn.fused_attn = fused
        kept[fused] = plan_of(module, lambda: module(images).sum()).activation_bytes
    patterns = 2 * BATCH * 4 * 49 * 49 * 4  # of 2 blocks with 4 heads
    assert kept[False] - kept[True] > 0.9 * patterns


def test_a_teacher_costs_flops_and_parameters_but_keeps_nothing():
    student, teacher, x = nn.Linear(10, 10), nn.Linear(10, 10).requires_grad_(False), torch.randn(BATCH, 10)
    both = nn.ModuleDict({"student": student, "teacher": teacher})

    def step():
        with torch.no_grad():
            teacher(x)
        return student(x).sum()

    found = plan_of(both, step)
    assert (found.parameters, found.trainable_parameters) == (220, 110)
    assert (found.forward_flops, found.training_flops) == (2 * 200, 3 * 200)
    assert found.activation_bytes == BATCH * 10 * 4  # x alone
    assert (found.gradient_bytes, found.optimizer_bytes) == (110 * 4, 2 * 110 * 4)


def test_a_branch_that_does_not_reach_the_loss_is_not_kept():
    module, x, large = nn.Linear(10, 10), torch.randn(BATCH, 10), torch.randn(BATCH * 50, 10)

    def step():
        module(large).exp().sum()
        return module(x).sum()

    assert plan_of(module, step).activation_bytes == BATCH * 10 * 4


def test_everything_is_left_as_it_was():
    module, x = nn.Sequential(nn.Linear(10, 10), nn.BatchNorm1d(10), nn.Dropout()), torch.randn(BATCH, 10)
    module(x).sum().backward()
    module[0].bias.grad = None
    before = [(p.grad, None if p.grad is None else p.grad.clone()) for p in module.parameters()]
    buffers = {name: value.clone() for name, value in module.state_dict().items()}
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)

    def step():
        random.random(), np.random.rand()
        return module(x).sum()

    plan_of(module, step)
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected
    for parameter, (gradient, value) in zip(module.parameters(), before, strict=True):
        assert parameter.grad is gradient
        assert gradient is None or torch.equal(gradient, value)
    assert all(torch.equal(value, buffers[name]) for name, value in module.state_dict().items())

    def fails():
        step()
        raise KeyError

    with pytest.raises(KeyError):
        plan_of(module, fails)
    assert all(p.grad is gradient for p, (gradient, _) in zip(module.parameters(), before, strict=True))
    assert all(torch.equal(value, buffers[name]) for name, value in module.state_dict().items())


def test_what_cannot_be_planned_is_refused():
    module, x = mlp(nn.GELU()), torch.randn(BATCH, 10)
    for asked, says in (({"precision": "int8"}, "allowed are auto"), ({"scale_to": 0}, "1 or more")):
        with pytest.raises(ArgumentError, match=says):
            plan_of(module, lambda: module(x).sum(), **asked)
    with pytest.raises(ArgumentError, match=r"shape \(4, 5\)"):
        plan_of(module, lambda: module(x))
    with pytest.raises(ArgumentError, match="trains a parameter"):
        plan_of(module, lambda: module(x).detach().sum())
