"""Put registers that are to be trained into any backbone."""

import math
from dataclasses import replace

import torch

from vitprobe.backbones.base import Backbone, digest_module
from vitprobe.backbones.trunk import Trunk
from vitprobe.errors import ArgumentError


def insert(backbone: Trunk, num_registers: int, *, seed: int = 0, std: float = 0.02) -> Trunk:
    """Put registers into a backbone's module, in place, and return a new adapter for it.

    Registers are learned tokens without a position (Darcet et al., arXiv 2309.16588, section 2.2), drawn from a normal
    distribution of spread ``std`` (DINOv3's 0.02; DINOv2 has 1e-6) by a generator of their own. They are the only new
    parameter: positions that covered CLS are folded into it, so that CLS and patches enter block 0 as they did, to the
    bit. With 0 registers nothing changes. The adapter that was given is of no more use.
    Raises `ArgumentError` for a number that is none, a spread below 0, a model that has registers already or that has
    no place for them, as a convolutional network has not.
    """
    if type(num_registers) is not int or num_registers < 0:
        raise ArgumentError(f"got {num_registers!r} registers; give a whole number, 0 for none")
    if not (math.isfinite(std) and std >= 0):
        raise ArgumentError(f"got registers of spread {std}; give 0 or more, e.g. 0.02")
    if num_registers and not isinstance(backbone, Backbone):
        raise ArgumentError(
            f"{backbone.spec.name} is a convolutional network, which has no tokens to put registers beside; give 0"
        )
    held = backbone.spec.num_registers
    if held and num_registers:
        raise ArgumentError(
            f"{backbone.spec.name} already has {held} registers; give 0, or a model without (dinov2-s14, deit3-s16)"
        )
    module = backbone.module
    if num_registers:
        draw = torch.randn(num_registers, backbone.width, generator=torch.Generator().manual_seed(seed))
        backbone.add_registers(std * draw)  # (R, D)
    spec = replace(backbone.spec, num_registers=held + num_registers, digest=digest_module(module))
    is_training = module.training
    try:
        return backbone.rewrap(module.eval(), spec)  # which checks its attention, so without dropout
    finally:
        module.train(is_training)
