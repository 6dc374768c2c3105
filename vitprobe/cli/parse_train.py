"""Read the options of ``train-registers``: names, types and ranges, one line where a value is not allowed."""

import math
import os
from collections.abc import Mapping
from typing import Any

from vitprobe.backbones.zoo import ALIASES, EMBEDDED, REFERENCES
from vitprobe.cli import parse
from vitprobe.errors import ArgumentError
from vitprobe.inputs.scenes import NAMED
from vitprobe.training.config import EXTRA

NAMES = {"num_reg": "num_registers", "arch_arg": "arch_args", "objective_arg": "extra", "task": "tasks"}
"""Options of the command that `TrainConfig` calls otherwise."""
RECIPE_FOR = {"clip": "text", "dinov2": "self-distillation", "ph-reg": "retrofit"}
"""Recipes of one objective alone."""
LEAST = {"num_prototypes": 2, "head_width": 1, "context_length": 3, "num_views": 1, "local_size": 1}
LEAST |= dict.fromkeys(("text_width", "text_layers", "text_heads", "embed_dim"), 1)
LEAST |= dict.fromkeys(("teacher_temperature", "student_temperature"), 1e-3)
MOST = dict.fromkeys(("mask_ratio", "masked_share", "teacher_momentum", "shift", "global_scale", "local_scale"), 1)
"""Bounds of the options of one objective; where there is none, from 0 on."""


def options(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Bring the options of the command to the names and types of `TrainConfig`.

    Raises `ArgumentError` for options that exclude each other, and for values of another type or out of range.
    """
    given = {NAMES.get(name, name): value for name, value in asked.items() if value is not None and value != []}
    for name, option in (("arch_args", "--arch-arg"), ("extra", "--objective-arg")):
        if name in given:
            given[name] = parse.pairs(given[name])
            _refuse_infinite({f"{option} {key}": value for key, value in given[name].items()})
    if "image_size" in given:
        given["image_size"] = parse.image_size(given["image_size"])
    if given.get("model") and given.get("arch"):
        raise ArgumentError(f"got --model {given['model']} and --arch {given['arch']}; give one of them")
    if given.get("steps") and given.get("epochs"):
        raise ArgumentError("got --steps and --epochs; give one of them")
    wanted = RECIPE_FOR.get(given.get("recipe", ""))
    if wanted and given.setdefault("objective", wanted) != wanted:
        raise ArgumentError(
            f"got --objective {given['objective']}; the recipe {given['recipe']} is for --objective {wanted}"
        )
    if given.get("device") not in (None, "auto", "cpu"):
        raise ArgumentError(f"got device {given['device']!r}; allowed are auto and cpu, and a launcher's for several")
    _refuse_infinite({f"--{name.replace('_', '-')}": value for name, value in given.items()})
    _check_extra(EXTRA.get(given.get("objective", "supervised"), {}), given.get("extra", {}))
    for name in ("data", "held_out"):
        if name in given:
            given[name] = [_lasting(text) for text in given[name]]
    if given.get("weights"):
        given["weights"] = _lasting(given["weights"])
    if given.get("model") and given["model"] not in (*ALIASES, *EMBEDDED, *REFERENCES):
        given["model"] = _lasting(given["model"])
    lists = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    return given | lists


def _lasting(text: str) -> str:
    """Return a path, or a pattern of paths, so that a run resumed from another folder finds the same; else the text."""
    is_path = text not in NAMED and ("*" in text or "{" in text or os.path.exists(text))
    return os.path.abspath(text) if is_path else text


def _refuse_infinite(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        numbers = value if isinstance(value, tuple | list) else (value,)
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise ArgumentError(f"got {name} {value}; give a finite number")


def _check_extra(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Hold the options of one objective against the types of their defaults; unknown names are refused elsewhere."""
    for name, value in given.items():
        if name not in defaults:
            continue
        default = defaults[name]
        wanted = _wanted(name, default)
        numbers = value if isinstance(value, tuple) else (value,)
        whole = isinstance(default, int) or name == "local_size"
        if isinstance(default, bool):
            good = isinstance(value, bool)
        elif value is None:
            good = default is None
        else:
            pair = isinstance(value, tuple) and len(value) == 2
            shaped = pair if isinstance(default, tuple) else (pair and default is None) or not isinstance(value, tuple)
            good = shaped and all(_fits(name, number, whole=whole) for number in numbers)
        if not good:
            raise ArgumentError(f"got --objective-arg {name}={_said(value)}; give {wanted}")


def _fits(name: str, number: Any, *, whole: bool) -> bool:
    right = isinstance(number, int if whole else (int, float)) and not isinstance(number, bool)
    return right and LEAST.get(name, 0) <= number <= MOST.get(name, math.inf)


def _wanted(name: str, default: Any) -> str:
    if isinstance(default, bool):
        return "true or false"
    low, high = LEAST.get(name, 0), MOST.get(name)
    within = f"from {low} to {high}" if high is not None else f"from {low} on"
    if isinstance(default, tuple):
        return f"two numbers {within}, e.g. {name}={_said(default)}"
    if default is None:
        return f"none, a side in pixels, or height,width, {within}"
    return f"a {'whole ' if isinstance(default, int) else ''}number {within}"


def _said(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
