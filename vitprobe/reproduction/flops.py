"""Figure 12 of Darcet et al. (arXiv 2309.16588): FLOPs and parameters by number of registers, without any weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vitprobe.errors import ArgumentError
from vitprobe.plots.flops import draw_costs
from vitprobe.probes.flops import NUMBERS, SIDE, RegisterCosts, default_sizes, measure_costs
from vitprobe.reproduction.base import Drawn, Found, Item, Measurement, Row, Setting

COUNTED = "matrix products and convolutions, those of attention and of the model's own head included; 1 multiply-add = "
COUNTED += "2 FLOPs; norms, softmax, activations and sums are not counted"
PLACE = "registers have no position"
FOLDED = "; where positions covered CLS, that one is folded into it, which saves as much as the first register adds"


@dataclass(frozen=True)
class FlopsOptions:
    """Hold what figure 12 leaves open."""

    numbers: tuple[int, ...] = NUMBERS
    """Registers to count with; none at all is always counted, as what the rest is set against."""
    sizes: tuple[int, ...] = ()
    """Sides of the images in pixels; none for 224, where the model's own size is larger, and the model's own.

    The paper does not say its size. Its bounds go with the 256 patches of 224 px: at 518 px, 16 registers add 1.4 %.
    """


@dataclass(frozen=True)
class Costs(Measurement):
    """Count one architecture; looks at no image."""

    setting: Setting
    options: FlopsOptions

    def found(self) -> Found:
        """Return what each number of registers costs at each size. Raises `ArgumentError` for what is no plain ViT."""
        model, sizes = self.setting.model, _several(self.options.sizes, "sizes")
        chosen = tuple((side, side) for side in sizes) or default_sizes(model)
        numbers = _several(self.options.numbers, "numbers")
        return pack([measure_costs(model, numbers=numbers, image_size=size) for size in dict.fromkeys(chosen)])


def pack(costs: Sequence[RegisterCosts]) -> Found:
    """Put the costs of one model at several sizes into rows and arrays."""
    rows = [row for one in costs for row in _flops_rows(one)] + _parameter_rows(costs[-1])
    is_folded = bool((costs[0].parameters == costs[0].parameters[0])[costs[0].numbers == 1].any())
    summary = {
        "name": costs[0].name,
        "image_sizes": [list(one.image_size) for one in costs],
        "numbers": costs[0].numbers.tolist(),
        "counted": COUNTED,
        "parameters": f"of the vision tower with its own head, for images of {size_of(costs[-1])}",
        "registers": PLACE + FOLDED * is_folded,
    }
    arrays = {
        "numbers": costs[0].numbers,
        "flops": np.stack([one.flops for one in costs]),  # (S, n)
        "parameters": np.stack([one.parameters for one in costs]),  # (S, n)
    }
    return Found(tuple(rows), summary, arrays)


def unpack(found: Found) -> list[RegisterCosts]:
    """Undo `pack`."""
    each = zip(found.summary["image_sizes"], found.arrays["flops"], found.arrays["parameters"], strict=True)
    name, numbers = found.summary["name"], found.arrays["numbers"]
    return [RegisterCosts(name, tuple(size), numbers, flops, parameters) for size, flops, parameters in each]


def _flops_rows(costs: RegisterCosts) -> list[Row]:
    """List FLOPs, and what they grow by; the paper's bounds stand beside images of `SIDE`."""
    where, is_papers = size_of(costs), costs.image_size == (SIDE, SIDE)
    rows = []
    for number, flops, more in zip(costs.numbers, costs.flops, costs.flops_increase, strict=True):
        what = f"{where}, {named(int(number))}"
        rows.append(Row(what, flops / 1e9, "GFLOPs", 1))
        if number:
            rows.append(Row(f"{what}: more FLOPs", float(more), "share", 1, key=f"flops.{number}" * is_papers))
    return rows


def _parameter_rows(costs: RegisterCosts) -> list[Row]:
    """List parameters, of the last size, by default the model's own: a table of positions depends on it."""
    rows = [Row("parameters, no register", float(costs.parameters[0]) / 1e6, "millions", 1)]
    each = list(zip(costs.numbers, costs.parameters, strict=True))
    more = [(int(number), float(parameters - costs.parameters[0])) for number, parameters in each if number]
    return rows + [Row(f"more parameters, {named(number)}", added, "parameters", 1) for number, added in more]


def named(number: int) -> str:
    """Write a number of registers: ``no register``, ``1 register``, ``4 registers``."""
    return f"{number or 'no'} register" + "s" * (number > 1)


def size_of(costs: RegisterCosts) -> str:
    """Write the size of the images: ``224 px``, or ``224 x 256 px``."""
    height, width = costs.image_size
    return f"{height} px" if height == width else f"{height} x {width} px"


def _several(given: Any, name: str) -> tuple[int, ...]:
    """Return one whole number, or several, as several. Raises `ArgumentError` for anything else."""
    several = tuple(given) if isinstance(given, tuple | list) else (given,)
    if any(type(one) is not int for one in several):
        raise ArgumentError(f"got {name} {given!r}; give whole numbers, with commas")
    return several


def draw(drawn: Drawn) -> dict[str, Figure]:
    """Draw how FLOPs and parameters grow, a line a model and size."""
    lines = []
    for title, found in drawn:
        costs = unpack(found)
        lines += [(f"{title}, {size_of(one)}", one) for one in costs]
    return {"flops": draw_costs(lines)}


ITEMS = {"fig12": Item(lambda setting, options: Costs(setting, options), draw, FlopsOptions)}
