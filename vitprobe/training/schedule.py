"""The optimiser and how its rate and decay change over the steps; timm's parts."""

import math
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler, PolyLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler

from vitprobe.training.config import TrainConfig


def make_optimizer(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    """Build the optimiser for parameter groups. Clipping is the loop's own: LAMB's is turned off."""
    given: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        return create_optimizer_v2(groups, opt="momentum", momentum=config.momentum, **given)
    given["betas"] = config.betas
    if config.eps is not None:
        given["eps"] = config.eps
    if config.optimizer == "lamb":
        return create_optimizer_v2(groups, opt="lamb", max_grad_norm=None, **given)
    return create_optimizer_v2(groups, opt="adamw", fused=True, **given)


def make_scheduler(optimizer: torch.optim.Optimizer, config: TrainConfig) -> Scheduler:
    """Build timm's scheduler, counted in steps: linear warm-up, then cosine, linear or constant.

    The rate at step n depends on n alone, so nothing of it needs to be stored.
    """
    warmup = min(config.warmup, config.steps - 1)  # `resolve_steps` has capped a recipe's
    shared = {"warmup_t": warmup, "warmup_lr_init": 0.0, "t_in_epochs": False}
    if config.schedule == "constant":
        return StepLRScheduler(optimizer, decay_t=config.steps + 1, decay_rate=1.0, **shared)
    shared |= {
        "t_initial": max(2, config.steps - warmup),
        "lr_min": min(config.min_lr, config.lr),
        "warmup_prefix": True,
    }
    if config.schedule == "linear":
        return PolyLRScheduler(optimizer, power=1.0, **shared)
    return CosineLRScheduler(optimizer, **shared)


def set_decay(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int) -> None:
    """Set the weight decay of a step, along a cosine where it has an end of its own (DINOv2's configuration)."""
    if config.weight_decay_end is None:
        return
    low, high = config.weight_decay, config.weight_decay_end
    decay = high - (high - low) * (1 + math.cos(math.pi * step / config.steps)) / 2
    for group in optimizer.param_groups:
        if group["weight_decay"] > 0:
            group["weight_decay"] = decay
