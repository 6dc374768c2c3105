"""What a fine-tuning is asked to do: its options, and the trainings that they come to."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from vitprobe import backbones
from vitprobe.errors import ArgumentError
from vitprobe.inputs.labels import Labelled
from vitprobe.probes.knn import wilson_interval
from vitprobe.training.build import make_backbone
from vitprobe.training.config import TrainConfig
from vitprobe.training.data import HELD_OUT_SEED, Data
from vitprobe.training.downstream import Amounts, Downstream, open_downstream
from vitprobe.training.finetune_recipes import RECIPES, SIZE, SetPlan, plan_set
from vitprobe.training.variants import Variant, variants

MODEL, DATA = "scenes-content", "scenes"
"""What is fine-tuned, and to what, where nothing is named."""


@dataclass(frozen=True)
class FinetuneConfig:
    """Hold every option of ``finetune``; stored beside the checkpoints, and all that a resumed run needs."""

    base: TrainConfig
    """What all trainings share; data, steps, rate, smoothing and registers of each are filled in."""
    recipe: str = "small"
    """The row of `finetune_recipes.RECIPES` that the options not given came from."""
    data: tuple[str, ...] = (DATA,)
    """Sets, each fine-tuned to by itself."""
    held_out: tuple[str, ...] = ()
    lr: tuple[float, ...] = ()
    """Rates that are tried on a part held out of the training images; () for the recipe's."""
    smoothing: tuple[float, ...] = (0.0,)
    steps: int | None = None
    augment_given: bool = False
    development: float | None = None
    """Share of the training images that is held out to choose the rate."""
    num_held_out: int | None = None
    """Held-out images; None for all."""
    num_watched: int = 512
    """Of these, how many are looked at during training and have their norms measured."""
    frozen: bool = True
    """Measure k-NN and a linear probe on frozen features, before and after."""
    num_frozen: int | None = None
    """Training images whose features these read; None for all."""
    real: str | None = None
    """File of ImageNet's ReaL labels, or ``timm`` for the copy that timm has."""

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise ArgumentError(f"got --recipe {self.recipe!r}; allowed are {', '.join(RECIPES)}")
        if self.development is not None and not 0 < self.development < 1:
            raise ArgumentError(f"got --development {self.development:g}; give a share between 0 and 1, such as 0.02")
        for name, least in {"num_held_out": 2, "num_watched": 2, "num_frozen": 2, "steps": 1}.items():
            if (got := getattr(self, name)) is not None and got < least:
                raise ArgumentError(f"got --{name.replace('_', '-')} {got}; give {least} or more")
        for name in ("lr", "smoothing", "data"):
            if len(set(own := getattr(self, name))) < len(own):
                raise ArgumentError(f"got --{name} {', '.join(map(str, own))}; give each once")
        if len(self.data) > 1 and (self.held_out or self.real):
            option = "--held-out" if self.held_out else "--real"
            raise ArgumentError(f"got {option} with {len(self.data)} sets; it is for one: give one --data")
        for rate in self.lr or (0.1,):  # refused before anything is written
            for share in self.smoothing:
                replace(self.base, lr=rate, smoothing=share)

    def as_dict(self) -> dict[str, Any]:
        """Return the options as JSON can hold them."""
        return {one.name: getattr(self, one.name) for one in fields(self)} | {"base": self.base.as_dict()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "FinetuneConfig":
        """Read back what `as_dict` gave, after JSON. Raises `ArgumentError` for options that do not exist."""
        names = {one.name for one in fields(cls)}
        if unknown := sorted(set(stored) - names):
            raise ArgumentError(f"the stored options hold {unknown[0]!r}, which this version does not know")
        plain = {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}
        return cls(**plain | {"base": TrainConfig.from_dict(stored["base"])})

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The variants of each set: the product of smoothings and numbers of registers, the control R = 0 first."""
        return tuple(replace(one, smoothing=share) for share in self.smoothing for one in variants(self.base))


OWN = tuple(one.name for one in fields(FinetuneConfig) if one.name != "base")


def resolve_finetune(given: Mapping[str, Any]) -> FinetuneConfig:
    """Fill in what was not asked for, from the recipe. ``given``: options by the names of the two configs.

    Raises `ArgumentError` for what is refused.
    """
    recipe = given.get("recipe", "small")
    if recipe not in RECIPES:
        raise ArgumentError(f"got --recipe {recipe!r}; allowed are {', '.join(RECIPES)}")
    own = {name: value for name, value in given.items() if name in OWN}
    shared = {name: value for name, value in given.items() if name not in OWN}
    base = {"model": MODEL, "num_registers": (0,), "control": True} | RECIPES[recipe] | shared
    return FinetuneConfig(base=TrainConfig(recipe=recipe, **base), augment_given="augment" in shared, **own)


@dataclass(frozen=True)
class Sizes:
    """Say at which size a model reads images, in pixels (height, width), and how many tokens that makes."""

    own: tuple[int, int]
    """What its weights were made for."""
    chosen: tuple[int, int]
    own_tokens: int
    """All tokens, CLS included, registers to be added not."""
    chosen_tokens: int
    patch: tuple[int, int]
    resized: bool
    """Whether it has learned positions, which were interpolated in 2-D."""

    def as_dict(self) -> dict[str, Any]:
        """Return the sizes as JSON can hold them."""
        how = "learned positions interpolated in 2-D" if self.resized else "positions as they are"
        return {
            "from": self.own,
            "to": self.chosen,
            "tokens_from": self.own_tokens,
            "tokens_to": self.chosen_tokens,
            "patch": self.patch,
            "positions": how,
        }


def with_size(config: FinetuneConfig) -> tuple[FinetuneConfig, Sizes]:
    """Look at the model and choose the size that images are read at: what was asked for, the recipe's, else its own.

    The recipe ``vit`` reads images of 384 px where the model's patch divides that. Raises a `VitprobeError` for a model
    or a size that cannot be had.
    """
    base = config.base
    plain = backbones.load(base.model, weights=base.weights, seed=base.seed, device="cpu")
    own, patch = tuple(plain.spec.image_size), tuple(plain.patch_size)
    if base.image_size is None:
        fits = config.recipe == "vit" and not any(side % part for side, part in zip(SIZE, patch, strict=True))
        base = replace(base, image_size=SIZE if fits else own)
    sized = make_backbone(base)
    sizes = Sizes(
        own=own,
        chosen=tuple(sized.spec.image_size),
        own_tokens=plain.layout().num_tokens,
        chosen_tokens=sized.layout().num_tokens,
        patch=patch,
        resized=own != tuple(sized.spec.image_size) and bool(sized.parameter_names("positions")),
    )
    return replace(config, base=base), sizes


@dataclass(frozen=True)
class Job:
    """Hold one set and how it is fine-tuned to."""

    data: Downstream
    plan: SetPlan
    config: FinetuneConfig

    def training(self, variant: Variant, rate: float) -> TrainConfig:
        """Return the options of one training."""
        return replace(
            self.config.base,
            data=(self.data.text,),
            held_out=self.config.held_out,
            steps=self.plan.steps,
            lr=rate,
            smoothing=variant.smoothing or 0.0,
            num_registers=(variant.num_registers,),
            control=False,
            augment=self.plan.augment,
            num_held_out=max(2, min(self.config.num_watched, len(self.data.test))),
        )

    def watched(self) -> Data:
        """Return what the variants are trained on, and the held-out images that are looked at on the way."""
        test, number = self.data.test, self.config.num_watched
        held = test if number >= len(test) else test.sample(number, seed=HELD_OUT_SEED)
        return Data(held, _no_bank(held), self.data.train)

    def development(self) -> Data:
        """Return the training images in two parts: to train on, and to choose the rate by; the same for all rates."""
        number = max(1, round(self.plan.development * len(self.data.train)))
        rest, held = self.data.train.split(number, seed=HELD_OUT_SEED)
        return Data(held, _no_bank(held), rest)


def _no_bank(images: Labelled) -> Labelled:
    """Return images whose features do not vote: k-NN is measured by itself, with all training images."""
    return replace(images.take([0]), labels=None)


def open_job(config: FinetuneConfig, text: str, size: tuple[int, int]) -> Job:
    """Open one set and plan its trainings. Raises a `VitprobeError` for what cannot be read or done."""
    base = config.base
    amounts = Amounts(base.limit, config.num_held_out, base.label, base.seed)
    data = open_downstream(text, config.held_out, amounts, size)
    if config.num_held_out is not None and config.num_held_out > len(data.test):
        raise ArgumentError(
            f"got --num-held-out {config.num_held_out:,}; {data.name} has {len(data.test):,} images to hold out"
        )
    plan = plan_set(
        config.recipe,
        base,
        data,
        size,
        steps=config.steps,
        rates=config.lr,
        development=config.development,
        smoothing=config.smoothing,
        augment_given=config.augment_given,
    )
    if base.warmup >= plan.steps:
        raise ArgumentError(f"got --warmup {base.warmup} for {plan.steps} steps; give fewer than those")
    job = Job(data, plan, config)
    if len(plan.rates) > 1:
        job.development()  # refuses a share that leaves too few
    return job


def chance(data: Downstream) -> tuple[float, tuple[float, float]]:
    """Return how often the training images' most frequent class is right on held-out images, with Wilson's interval."""
    often = max(range(len(data.classes)), key=lambda at: int((data.train.labels == at).sum()))
    right = int((data.test.labels == often).sum())
    return right / len(data.test), wilson_interval(right, len(data.test))
