"""How a model is fine-tuned: published settings by set of images, a small recipe, and what departs from the former."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vitprobe.errors import ArgumentError
from vitprobe.training.config import TrainConfig
from vitprobe.training.downstream import Downstream

SHARED: dict[str, Any] = {
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 0.0,
    "clip": 1.0,
    "schedule": "cosine",
    "min_lr": 0.0,
    "warmup": 0,
    "zero_head": True,
}
"""Of both recipes: SGD with momentum, a cosine to zero, gradients of norm 1 at most, a head that begins at zero."""
RECIPES: dict[str, dict[str, Any]] = {
    "small": SHARED | {"batch_size": 64, "augment": "light"},
    "vit": SHARED | {"batch_size": 512, "augment": "crop"},
}
"""``vit``: Dosovitskiy et al. (arXiv 2010.11929, section 4.1, appendix B.1.1 and table 4). ``small``: for machines
without a GPU, of no paper. Steps, rates and the part held out to choose among them are `SMALL`, or `PUBLISHED`."""
SIZE = (384, 384)
"""Image size of ``vit`` where the set is not said to have another."""
RATES = (0.001, 0.003, 0.01, 0.03)


@dataclass(frozen=True)
class Published:
    """Hold what differs from set to set."""

    steps: int
    rates: tuple[float, ...]
    """Learning rates that are tried."""
    development: float
    """Share of the training images that is held out to choose among them."""


SMALL = Published(500, (0.03,), 0.1)
PUBLISHED = {
    "imagenet": Published(20_000, (0.003, 0.01, 0.03, 0.06), 0.01),
    "cifar10": Published(10_000, RATES, 0.02),
    "cifar100": Published(10_000, RATES, 0.02),
    "pets": Published(500, RATES, 0.1),
    "flowers": Published(500, RATES, 0.1),
    "vtab": Published(2500, (0.01,), 0.2),
}
"""Table 4, and appendix B.1.1 for the shares. VTAB's rate is the same for all tasks, so nothing is held out; 0.2
is as many as its own 200 of 1,000 images, for where several rates are asked for: others, by chance."""
WARMED = ("imagenet", "cifar10", "cifar100")
"""Sets that the authors' code has settings for: vision_transformer, vit_jax/configs/common.py. They have a warm-up of
500 steps; the paper names none."""


@dataclass(frozen=True)
class SetPlan:
    """Hold how a model is fine-tuned to one set."""

    steps: int
    rates: tuple[float, ...]
    development: float
    augment: str
    departures: tuple[str, ...]
    """What is not as published, in words."""


def plan_set(
    recipe: str,
    base: TrainConfig,
    data: Downstream,
    size: tuple[int, int],
    *,
    steps: int | None,
    rates: tuple[float, ...],
    development: float | None,
    smoothing: Sequence[float],
    augment_given: bool,
) -> SetPlan:
    """Fill in what was not asked for, by recipe and set. ``size``: (height, width) that images are read at.

    Images of VTAB's tasks are neither cropped nor flipped unless that is asked for: of some, a crop or a flip changes
    the class. Raises `ArgumentError` where ``vit`` has no number of steps for the set, and none was given.
    """
    published = PUBLISHED.get(data.published or "") if recipe == "vit" else SMALL
    if published is None and steps is None:
        raise ArgumentError(
            f"got --recipe vit with {data.name}, for which the paper has no number of steps; give --steps "
            f"(the paper: {', '.join(f'{name} {one.steps:,}' for name, one in PUBLISHED.items())})"
        )
    found = published or Published(steps or 0, RATES, 0.1)
    share = found.development if development is None else development
    augment = "none" if data.task and not augment_given else base.augment
    chosen = steps or found.steps, rates or found.rates
    if recipe != "vit":
        return SetPlan(*chosen, share, augment, ("of no paper",))
    told = [] if published else [f"the paper has no settings for {data.name}"]
    told += _of_numbers(base, found, chosen, share, smoothing, size) + _of_images(data, augment)
    if data.task and len(chosen[1]) > 1:
        told.append("the rate is chosen by training images drawn by chance, not by VTAB's val200")
    if data.published in WARMED and not base.warmup:
        told.append("no warm-up, of which the paper says nothing; the authors' code has one of 500")
    return SetPlan(*chosen, share, augment, tuple(told))


def _of_numbers(
    base: TrainConfig,
    published: Published,
    chosen: tuple[int, tuple[float, ...]],
    share: float,
    smoothing: Sequence[float],
    size: tuple[int, int],
) -> list[str]:
    """Say which numbers are not those of the paper."""
    steps, rates = chosen
    told = [f"{steps:,} steps, not {published.steps:,}"] if steps != published.steps else []
    if set(rates) != set(published.rates):
        told.append(f"rates {_list(rates)}, not {_list(published.rates)}")
    if len(rates) > 1 and share != published.development:
        told.append(f"{share:.3g} of the training images held out to choose the rate, not {published.development:.3g}")
    words = {"batch_size": "images a step", "momentum": "momentum", "weight_decay": "weight decay", "warmup": "steps"}
    words |= {"clip": "as the largest norm of the gradient", "min_lr": "rate at the end", "schedule": "schedule"}
    for name, word in words.items():
        own, theirs = getattr(base, name), RECIPES["vit"][name]
        if own != theirs:
            told.append(f"{own} {word}{' of warm-up' if name == 'warmup' else ''}, not {theirs}")
    if tuple(size) != SIZE:
        told.append(f"images of {size[0]} x {size[1]} px, not {SIZE[0]} x {SIZE[1]}")
    if any(smoothing):
        told.append("label smoothing, which the paper does not use here")
    if any(base.num_registers):
        told.append("register tokens, which the paper does not have")
    if base.trainable != ("all",):
        told.append(f"trained are {', '.join(base.trainable)}, not all parameters")
    return told


def _of_images(data: Downstream, augment: str) -> list[str]:
    """Say what is not the paper's about the images."""
    told = [] if data.is_whole else ["not all of the set's own training and test images"]
    if data.task:
        told.append(
            "images are neither cropped nor flipped; the paper does as BiT does (arXiv 1912.11370)"
            if augment == "none"
            else f"images are changed by {augment}; the paper does as BiT does (arXiv 1912.11370)"
        )
    elif augment == "crop":
        told.append("crops of 8 to 100 % of the area, bicubic; the authors' code: 5 to 100 %, bilinear")
    else:
        told.append(f"images are changed by {augment}, not by a random resized crop and a flip")
    told.append("held-out images as the model's own transform reads them; the authors' code squeezes them to the size")
    if data.published == "imagenet":
        told.append("no average of the weights; the paper's ImageNet numbers have one (factor 0.9999)")
    return told


def _list(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in sorted(numbers))
