"""Published settings by name, and how the options of a training are filled in from them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vitprobe.errors import ArgumentError
from vitprobe.training.config import TrainConfig

_FROM_SCRATCH = {"drop_path": 0.1, "layer_scale": 1e-4, "clip": 1.0}
RECIPES: dict[str, dict[str, Any]] = {
    "small": {},
    "deit3": {
        **_FROM_SCRATCH,
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
        "batch_size": 32_768,
        "weight_decay": 0.2,
        "warmup": 2000,
        "clip": 0.0,
        "epochs": 32.0,
        "arch": "vit_base_patch16_clip_224",
        "extra": {"text_width": 512, "text_layers": 12, "text_heads": 8, "embed_dim": 512},
    },
    "dinov2": {
        **_FROM_SCRATCH,
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
"""Published settings; what is not set here is the default of `TrainConfig`.

``deit3``: DeiT-III on ImageNet-1k (arXiv 2204.07118, table 1; its 5 epochs of warm-up in steps), LayerScale of 1e-4
as in its code. ``vit``: Dosovitskiy et al. (arXiv 2010.11929, section 4.1; rate and decay of B/16 in table 3, dropout
of its ImageNet runs), its Adam with decoupled decay. ``clip``: Radford et al. (arXiv 2103.00020, tables 18 to 20,
ViT-B/16). ``dinov2``: the short training configuration in DINOv2's code. ``ph-reg``: the defaults of PH-Reg's code,
with a cosine in place of its decay by epoch.
"""
BY_OBJECTIVE: dict[str, dict[str, Any]] = {
    "supervised": {},
    "text": {"clip": 1.0, "weight_decay": 0.1},
    "self-distillation": {"lr": 5e-4, "weight_decay": 0.04, "clip": 3.0, "num_held_out": 512},
    "retrofit": {
        "lr": 1e-4,
        "weight_decay": 0.01,
        "batch_size": 8,
        "warmup": 20,
        "trainable": ("registers", "positions", "patch_embedding", "last_block"),
    },
}
"""What an objective changes in the recipe ``small``."""

SCALES_WITH_BATCH = {"deit3": "linear", "vit": "linear", "clip": "linear", "dinov2": "sqrt"}
"""How a recipe's learning rate follows a batch size that is not its own."""


def resolve(asked: Mapping[str, Any]) -> TrainConfig:
    """Fill in what was not asked for, from the recipe and the objective. Raises `ArgumentError` for what is refused.

    ``asked`` holds the options that were given, by the names of `TrainConfig`. A recipe's learning rate follows the
    batch size where its source says how.
    """
    given = {name: value for name, value in asked.items() if value is not None}
    recipe, objective = given.get("recipe", "small"), given.get("objective", "supervised")
    if recipe not in RECIPES:
        raise ArgumentError(f"got --recipe {recipe!r}; allowed are {', '.join(RECIPES)}")
    preset = RECIPES[recipe] or BY_OBJECTIVE.get(objective, {})
    extra = {**preset.get("extra", {}), **given.get("extra", {})}
    config = TrainConfig(**{**preset, **given, "extra": extra})
    rule, own = SCALES_WITH_BATCH.get(recipe), preset.get("batch_size")
    if rule and own and "lr" not in given and config.batch_size != own:
        share = config.batch_size / own
        config = replace(config, lr=preset["lr"] * (share if rule == "linear" else share**0.5))
    if "steps" in given and "epochs" not in given:
        config = replace(config, epochs=None)
    return config
