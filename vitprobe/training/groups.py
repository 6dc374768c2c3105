"""Which parameters are trained, and with which decay and rate each."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from vitprobe.backbones.trunk import Trunk
from vitprobe.errors import ArgumentError
from vitprobe.training.config import TrainConfig

UNDECAYED = ("registers", "cls", "positions", "layer_scale")
"""Kinds of parameters that take no weight decay, beside biases and gains of norms."""
LAST = ("final_norm", "head")
"""What stands above the last block, for layer decay."""


def freeze_all_but(backbone: Trunk, kinds: Iterable[str], *, drawn: Iterable[nn.Parameter] = ()) -> None:
    """Let only the named kinds of a backbone's parameters be trained; ``all`` is every one.

    ``drawn``: parameters that an objective has just put into the tower, a head of its own; they are trained in any
    case. Without registers, ``registers`` alone leaves the whole tower as it is: a control. Raises `ArgumentError`
    where the model has none of anything else that was asked for.
    """
    kinds, new = tuple(kinds), {id(parameter) for parameter in drawn}
    if "all" in kinds:
        return
    names = {name for kind in kinds for name in backbone.parameter_names(kind)}
    if not names and set(kinds) != {"registers"}:
        raise ArgumentError(f"{backbone.spec.name} has no {' or '.join(kinds)} to train; allowed is --trainable all")
    for name, parameter in backbone.module.named_parameters():
        parameter.requires_grad_(name in names or id(parameter) in new)


def parameter_groups(backbone: Trunk, heads: Iterable[nn.Module], config: TrainConfig) -> list[dict[str, Any]]:
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
        scale = config.layer_decay ** (top - depths.get(name, 0))
        if name in undecayed["layer_scale"]:
            kind = "layer_scale"
        elif parameter.ndim <= 1 or any(name in names for names in undecayed.values()):
            kind = "no_decay"
        else:
            kind = "decay"
        groups.setdefault((kind, scale), []).append(parameter)
    for head in heads:
        for name, parameter in head.named_parameters():
            if parameter.requires_grad:
                bare = parameter.ndim <= 1 or name.endswith("positional_embedding")  # the text tower's
                groups.setdefault(("no_decay" if bare else "decay", 1.0), []).append(parameter)
    if not groups:
        number = backbone.spec.num_registers
        raise ArgumentError(
            f"nothing is left to train of {backbone.spec.name} with {number} registers; give more kinds to --trainable"
            + ("" if number else ", or leave it out with --no-control")
        )
    return [
        {"params": found, "weight_decay": config.weight_decay if kind == "decay" else 0.0, "lr_scale": scale}
        for (kind, scale), found in groups.items()
    ]


def _depths(backbone: Trunk) -> dict[str, int]:
    """Say how deep each parameter stands: i + 1 in block i, on top the final norm and the head, 0 what is left."""
    top = backbone.num_blocks + 1
    found = {name: top for kind in LAST for name in backbone.parameter_names(kind)}
    for index in range(backbone.num_blocks):
        found |= dict.fromkeys(backbone.parameter_names(f"block:{index}"), index + 1)
    return found
