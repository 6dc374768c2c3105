"""Which parameters are trained, and with which decay and rate each."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from vitprobe.backbones.base import Backbone
from vitprobe.errors import ArgumentError
from vitprobe.training.config import TrainConfig

UNDECAYED = ("registers", "cls", "positions", "layer_scale")
"""Kinds of parameters that take no weight decay, beside biases and gains of norms."""
FIRST = ("registers", "cls", "positions", "patch_embedding")
"""What stands before block 0, for layer decay."""


def freeze_all_but(backbone: Backbone, kinds: Iterable[str]) -> None:
    """Let only the named kinds of a backbone's parameters be trained; ``all`` is every one.

    Raises `ArgumentError` where the model has none of what was asked for.
    """
    kinds = tuple(kinds)
    if "all" in kinds:
        return
    names = {name for kind in kinds for name in backbone.parameter_names(kind)}
    if not names:
        raise ArgumentError(f"{backbone.spec.name} has no {' or '.join(kinds)} to train; allowed is --trainable all")
    for name, parameter in backbone.module.named_parameters():
        parameter.requires_grad_(name in names)


def parameter_groups(backbone: Backbone, heads: Iterable[nn.Module], config: TrainConfig) -> list[dict[str, Any]]:
    """Sort what is trained into groups for an optimiser, in a fixed order.

    Registers, CLS, positions, LayerScale, biases and gains of norms take no weight decay. With layer decay the rate of
    block i falls by a factor for each block above it (BEiT, arXiv 2106.08254, appendix); ``lr_scale`` says by how much.
    LayerScale has a group of its own, to which LAMB applies no trust ratio: it would starve it.
    """
    depths = _depths(backbone)
    undecayed = {kind: set(backbone.parameter_names(kind)) for kind in UNDECAYED}
    groups: dict[tuple[str, float], list[nn.Parameter]] = {}
    top = backbone.num_blocks + 1
    for name, parameter in backbone.module.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = config.layer_decay ** (top - depths.get(name, top))
        if name in undecayed["layer_scale"]:
            kind = "layer_scale"
        elif parameter.ndim <= 1 or any(name in names for names in undecayed.values()):
            kind = "no_decay"
        else:
            kind = "decay"
        groups.setdefault((kind, scale), []).append(parameter)
    for head in heads:
        for parameter in head.parameters():
            if parameter.requires_grad:
                groups.setdefault(("no_decay" if parameter.ndim <= 1 else "decay", 1.0), []).append(parameter)
    if not groups:
        raise ArgumentError("nothing is left to train; allowed is --trainable all, or a kind that the model has")
    return [
        {"params": found, "weight_decay": config.weight_decay if kind == "decay" else 0.0, "lr_scale": scale}
        for (kind, scale), found in groups.items()
    ]


def _depths(backbone: Backbone) -> dict[str, int]:
    """Say how deep each parameter stands: 0 before block 0, i + 1 in block i; what is not named stands on top."""
    found = {name: 0 for kind in FIRST for name in backbone.parameter_names(kind)}
    for index in range(backbone.num_blocks):
        found |= dict.fromkeys(backbone.parameter_names(f"block:{index}"), index + 1)
    return found
