"""Published settings by name, and how the options of a training are filled in from them."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vitprobe.errors import ArgumentError
from vitprobe.training.config import OBJECTIVES, SCENES, TrainConfig

RECIPES: dict[str, dict[str, Any]] = {
    "small": {},
    "deit3": {
        "layer_scale": 1e-4,
        "optimizer": "lamb",
        "lr": 3e-3,
        "batch_size": 2048,
        "weight_decay": 0.02,
        "augment": "three-augment",
        "loss": "bce",
        "mixup": 0.8,
        "cutmix": 1.0,
        "epochs": 400.0,
        "warmup": 3125,
        "arch": "deit3_small_patch16_224",
    },
    "vit": {
        "optimizer": "adamw",
        "lr": 8e-4,
        "batch_size": 4096,
        "weight_decay": 0.1,
        "schedule": "linear",
        "clip": 1.0,
        "warmup": 10_000,
        "dropout": 0.1,
        "augment": "crop",
        "epochs": 300.0,
        "arch": "vit_base_patch16_224",
    },
    "clip": {
        "optimizer": "adamw",
        "lr": 5e-4,
        "betas": (0.9, 0.98),
        "eps": 1e-6,
        "batch_size": 32_768,
        "weight_decay": 0.2,
        "warmup": 2000,
        "clip": 0.0,
        "epochs": 32.0,
        "arch": "vit_base_patch16_clip_224",
        "extra": {"text_width": 512, "text_layers": 12, "text_heads": 8, "embed_dim": 512},
    },
    "dinov2": {
        "layer_scale": 1e-5,
        "drop_path": 0.3,
        "clip": 3.0,
        "optimizer": "adamw",
        "lr": 4e-3,
        "batch_size": 1024,
        "weight_decay": 0.04,
        "weight_decay_end": 0.4,
        "layer_decay": 0.9,
        "warmup": 12_500,
        "steps": 125_000,
        "arch": "vit_small_patch14_dinov2",
        "image_size": (224, 224),
        "extra": {"num_prototypes": 65_536, "num_local": 8, "local_size": 98, "freeze_last_layer": 1250},
    },
    "ph-reg": {
        "optimizer": "adamw",
        "lr": 1e-4,
        "min_lr": 5e-6,
        "batch_size": 8,
        "weight_decay": 0.01,
        "warmup": 0,
        "epochs": 100.0,
        "num_registers": (16,),
        "trainable": ("registers", "positions", "patch_embedding", "last_block"),
    },
}
"""Published settings, as far as they go; what is not set here is the default of `TrainConfig`.

``deit3``: DeiT-III-S on ImageNet-1k (arXiv 2204.07118, table 1), its 5 epochs of warm-up in steps, LayerScale of 1e-4
and no stochastic depth as in its code; without repeated augmentation. ``vit``: Dosovitskiy et al. (arXiv 2010.11929,
section 4.1: Adam, batch, decay, warm-up; rate and schedule of B/16 on JFT and the dropout of the ImageNet runs from
table 3, which has no such row), decay decoupled. ``clip``: ViT-B/16 of Radford et al. (arXiv 2103.00020, tables 18 to
20). ``dinov2``: the short training configuration in DINOv2's code, but with a head for each loss, stochastic depth
that rises over the blocks, and one rate for the patch embedding too. ``ph-reg``: the defaults of PH-Reg's code, but
registers of spread 0.02 after CLS, grey where a shift leaves nothing, and a cosine in place of its decay by epoch.
"""
BY_OBJECTIVE: dict[str, dict[str, Any]] = {
    "supervised": {},
    "text": {"clip": 1.0, "weight_decay": 0.1},
    "self-distillation": {
        "lr": 1e-3,
        "weight_decay": 0.04,
        "clip": 3.0,
        "extra": {"num_prototypes": 1024, "head_width": 512, "num_local": 2, "teacher_momentum": (0.98, 1.0)},
    },
    "retrofit": {
        "lr": 1e-4,
        "weight_decay": 0.01,
        "batch_size": 8,
        "warmup": 20,
        "trainable": ("registers", "positions", "patch_embedding", "last_block"),
    },
}
"""What an objective changes in the recipe ``small``."""

SQUARE_ROOT = ("dinov2",)
"""Recipes whose rate follows the square root of the batch size, as their source does; others' is taken as it is."""

READ_BY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("augment", "loss", "smoothing", "mixup", "cutmix", "ema"), ("supervised",)),
    **dict.fromkeys(("tasks", "dense_on_objects"), ("supervised",)),
    "caption": ("text",),
    "drop_path": ("supervised", "text", "self-distillation"),
}
"""Options that only some objectives read; given to another they are refused rather than ignored."""
NOT_OF_SCENES = ("augment", "loss", "smoothing", "mixup", "cutmix", "label", "caption", "limit", "held_out")
ONLY_OF_SCENES = ("tasks", "dense_on_objects")


def resolve(asked: Mapping[str, Any]) -> TrainConfig:
    """Fill in what was not asked for, from the recipe and the objective. Raises `ArgumentError` for what is refused.

    ``asked`` holds the options that were given, by the names of `TrainConfig`.
    """
    given = {name: value for name, value in asked.items() if value is not None}
    recipe, objective = given.get("recipe", "small"), given.get("objective", "supervised")
    if recipe not in RECIPES:
        raise ArgumentError(f"got --recipe {recipe!r}; allowed are {', '.join(RECIPES)}")
    preset = RECIPES[recipe] or BY_OBJECTIVE.get(objective, {})
    if given.get("model") is not None:
        preset = {name: value for name, value in preset.items() if name not in ("arch", "layer_scale", "image_size")}
    extra = {**preset.get("extra", {}), **given.get("extra", {})}
    config = TrainConfig(**{**preset, **given, "extra": extra})
    if recipe in SQUARE_ROOT and "lr" not in given:
        config = replace(config, lr=preset["lr"] * (config.batch_size / preset["batch_size"]) ** 0.5)
    if "steps" in given and "epochs" not in given:
        config = replace(config, epochs=None)
    return config


def with_steps(config: TrainConfig, num_images: int | None, *, warmup_given: bool) -> TrainConfig:
    """Turn epochs into steps, and cap a warm-up that was not asked for at a tenth of them.

    ``num_images``: training images, None for scenes. Raises `ArgumentError` for epochs of scenes, or a warm-up that was
    asked for and never ends.
    """
    if config.epochs is not None:
        if num_images is None:
            raise ArgumentError(f"got {config.epochs:g} epochs with scenes, of which there is no end; give --steps")
        config = replace(config, steps=max(1, math.ceil(config.epochs * num_images / config.batch_size)))
    if not warmup_given:
        return replace(config, warmup=min(config.warmup, config.steps // 10))
    if config.warmup >= config.steps:
        raise ArgumentError(f"got --warmup {config.warmup} for {config.steps} steps; give fewer than those")
    return config


def refuse_unread(given: Mapping[str, Any], config: TrainConfig) -> None:
    """Raise `ArgumentError` for an option that was given and that the objective, or its data, does not read."""
    from_scenes = config.data[0].partition(":")[0] == SCENES
    for name in given:
        option = "--" + {"tasks": "task"}.get(name, name).replace("_", "-")
        if config.objective not in READ_BY.get(name, OBJECTIVES):
            raise ArgumentError(f"got {option}, which {config.objective} does not read; leave it out")
        if name in (NOT_OF_SCENES if from_scenes else ONLY_OF_SCENES):
            which = "is not for scenes" if from_scenes else "is for scenes alone"
            raise ArgumentError(f"got {option}, which {which}; leave it out")
