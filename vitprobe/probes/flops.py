"""FLOPs and parameters of an architecture by its number of registers, counted without weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitprobe.backbones.blank import blank, native_size
from vitprobe.backbones.zoo import ORGANISMS
from vitprobe.errors import ArgumentError

NUMBERS = (0, 1, 2, 4, 8, 16)
"""Registers that Darcet et al. count with (arXiv 2309.16588, figures 8 and 12)."""
SIDE = 224
"""Pixels: the size at which a patch of 14 gives the 256 patches that the bounds of figure 12 go with."""


@dataclass(frozen=True)
class RegisterCosts:
    """Hold what an architecture costs with each of n numbers of registers, the first of which is 0."""

    name: str
    image_size: tuple[int, int]
    """(height, width) in pixels."""
    numbers: np.ndarray
    """(n,) int64 numbers of registers, rising from 0."""
    flops: np.ndarray
    """(n,) int64 FLOPs of one image."""
    parameters: np.ndarray
    """(n,) int64"""

    @property
    def flops_increase(self) -> np.ndarray:
        """(n,) FLOPs over those without registers, less 1."""
        return self.flops / self.flops[0] - 1

    @property
    def parameters_increase(self) -> np.ndarray:
        """(n,) parameters over those without registers, less 1."""
        return self.parameters / self.parameters[0] - 1


def measure_costs(name: str, *, numbers: Sequence[int] = NUMBERS, image_size: tuple[int, int]) -> RegisterCosts:
    """Count FLOPs and parameters of the vision tower behind a name, built anew with each number of registers.

    ``image_size``: (height, width) in pixels. Without registers is always counted, since all else is set against it.
    No weights are needed, and none are held (see `blank`). Raises `ArgumentError` for a name, a size or a number of
    registers that does not fit.
    """
    numbers = [number for number in numbers if number != 0]
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ArgumentError(f"got numbers of registers {tuple(numbers)}; give whole numbers from 0 on")
    numbers = [0, *sorted(set(numbers))]
    towers = [tower(name, number, image_size) for number in numbers]
    return RegisterCosts(
        name,
        image_size,
        np.array(numbers, np.int64),
        np.array([count_flops(one, image_size) for one in towers], np.int64),
        np.array([count_parameters(one) for one in towers], np.int64),
    )


def tower(name: str, num_registers: int | None, image_size: tuple[int, int] | None = None) -> nn.Module:
    """Build the tower behind a name on the ``meta`` device; None takes its own registers, and its own size."""
    if name not in ORGANISMS:
        return blank(name, num_registers=num_registers, image_size=image_size)
    from vitprobe.backbones.organism import PLANTS, build

    plant = PLANTS[name]
    plant = plant if num_registers is None else replace(plant, num_registers=num_registers)
    return build(plant, image_size or (SIDE, SIDE), 0).eval().to("meta")


def default_sizes(name: str) -> tuple[tuple[int, int], ...]:
    """Return the sizes to count at: the architecture's own, and before it `SIDE`, where that is smaller and fits."""
    own = native_size(tower(name, None))
    if min(own) <= SIDE:
        return (own,)
    try:
        tower(name, None, (SIDE, SIDE))
    except ArgumentError:  # off the patch grid
        return (own,)
    return ((SIDE, SIDE), own)


def count_flops(module: nn.Module, image_size: tuple[int, int]) -> int:
    """Count the FLOPs of one image of (height, width), two to a multiply-add, by torch's ``FlopCounterMode``.

    Counted are matrix products and convolutions, those inside attention included; norms, softmax, activations and sums
    are not. On the ``meta`` device nothing is computed, and attention is two plain products: on the CPU the kernel
    behind ``nn.MultiheadAttention`` (open_clip) would not be seen by the counter, and a third of the FLOPs with it.
    Raises `ArgumentError` for a module that is elsewhere.
    """
    devices = {parameter.device.type for parameter in module.parameters()}
    if devices != {"meta"}:
        raise ArgumentError(f"got a module on {', '.join(sorted(devices))}; count on meta, where tower() builds it")
    images = torch.empty(1, 3, *image_size, device="meta")
    with FlopCounterMode(display=False) as counter:
        module(images)
    return int(counter.get_total_flops())


def count_parameters(module: nn.Module) -> int:
    """Count the numbers in a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
