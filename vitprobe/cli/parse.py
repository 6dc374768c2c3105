"""Read the values of options: one line where a value is not allowed."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from vitprobe.backbones.zoo import EMBEDDED
from vitprobe.errors import ArgumentError
from vitprobe.inputs.samples import sample_items
from vitprobe.inputs.scenes import NAMED, SceneConfig, scene_items

DTYPES = {"float32": None, "bfloat16": torch.bfloat16}
FORMATS = ("png", "svg", "pdf")
SCENES, FEW_SCENES, SCENE_SIZE = 64, 6, (224, 224)
"""Scenes where no limit is given, scenes of the default run, and their size in pixels."""


def image_size(text: str | None) -> tuple[int, int] | None:
    """Read ``N`` or ``HxW`` as (height, width)."""
    if text is None:
        return None
    if not (found := re.fullmatch(r"(\d+)(?:[xX](\d+))?", text.strip())):
        raise ArgumentError(f"got image size {text!r}; allowed are N or HxW in pixels, e.g. 224 or 224x336")
    return int(found[1]), int(found[2] or found[1])


def device(name: str) -> str:
    """Choose a device; ``auto`` is the GPU where there is one."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError:
        raise ArgumentError(f"got device {name!r}; allowed are auto, cpu, cuda, cuda:N and mps") from None
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(kind, False):
        raise ArgumentError(f"got device {name!r}, which this machine does not have; try --device cpu")
    return name


def autocast(dtype: str) -> torch.dtype | None:
    """Read the precision; None is plain float32."""
    if dtype not in DTYPES:
        raise ArgumentError(f"got dtype {dtype!r}; allowed are {' and '.join(DTYPES)}")
    return DTYPES[dtype]


def formats(names: Sequence[str]) -> tuple[str, ...]:
    """Read the figures' formats; ``none`` draws nothing."""
    for name in names:
        if name not in (*FORMATS, "none"):
            raise ArgumentError(f"got format {name!r}; allowed are {', '.join(FORMATS)} and none")
    return tuple(name for name in dict.fromkeys(names) if name != "none")


def blocks(text: str, num_blocks: int, *, several: bool = True) -> tuple[int, ...]:
    """Read ``--block``: the blocks at which evidence is gathered, the summary's last; one alone without ``several``."""
    if text == "all" and several:
        return tuple(range(num_blocks))
    if text == "last":
        return (num_blocks - 1,)
    if not text.isdecimal() or int(text) >= num_blocks:
        words = "last and all" if several else "and last"
        raise ArgumentError(f"got block {text!r}; allowed are 0 to {num_blocks - 1}, {words}")
    return (int(text),)


def at_least(name: str, value: int, least: int) -> int:
    """Return a number that must not be smaller."""
    if value < least:
        raise ArgumentError(f"got a {name} of {value}; give {least} or more")
    return value


def pairs(texts: Sequence[str]) -> dict[str, object]:
    """Read ``KEY=VALUE``: numbers, true, false, none, several with commas; anything else is text."""
    found: dict[str, object] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip().isidentifier():
            raise ArgumentError(f"got {text!r}; allowed is KEY=VALUE, e.g. depth=12")
        several = "," in value
        parts = [_value(part.strip()) for part in value.split(",") if part.strip()]
        found[key.strip()] = tuple(parts) if several else _value(value.strip())
    return found


def _value(text: str) -> object:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def head(text: str) -> int | str:
    """Read ``--head``: ``mean``, ``all``, or a number."""
    if text in ("mean", "all"):
        return text
    if not text.isdecimal():
        raise ArgumentError(f"got head {text!r}; allowed are mean, all, or a number from 0")
    return int(text)


def one_each(weights: Sequence[str], models: Sequence[str]) -> list[str]:
    """Give every model its weights: one value stands for all but what is embedded, else there is one for each."""
    if len(weights) == 1:
        is_mixed = any(name not in EMBEDDED for name in models)  # of embedded models alone, random is refused
        return ["hub" if is_mixed and weights[0] == "random" and name in EMBEDDED else weights[0] for name in models]
    if len(weights) != len(models):
        raise ArgumentError(
            f"got {len(weights)} --weights for {len(models)} models; give one, or one for each in order"
        )
    return list(weights)


def generated(limit: int | None, seed: int, *, few: bool) -> Mapping[str, Callable[[], Sequence]]:
    """Return the inputs that need no file: sample photographs and scenes."""
    number = FEW_SCENES if few else limit or SCENES

    def scenes(config: SceneConfig) -> Sequence:
        return scene_items(number, config=replace(config, size=SCENE_SIZE), seed=seed)

    return {"samples": sample_items, **{name: partial(scenes, config) for name, config in NAMED.items()}}
