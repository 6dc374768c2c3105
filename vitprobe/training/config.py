"""What a training is asked to do: one frozen record, its recipes, and the checks that need no data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from vitprobe.errors import ArgumentError

OBJECTIVES = ("supervised", "text", "self-distillation", "retrofit")
OPTIMIZERS = ("adamw", "lamb", "sgd")
SCHEDULES = ("cosine", "linear", "constant")
PRECISIONS = ("auto", "float32", "bfloat16")
TRAINABLE = ("all", "registers", "positions", "patch_embedding", "last_block", "final_norm", "head", "cls")
LOSSES = ("cross-entropy", "bce")
AUGMENTS = ("three-augment", "rand-augment", "crop", "light", "none")
SCENES = "scenes"


@dataclass(frozen=True)
class TrainConfig:
    """Hold every option of ``train-registers``; stored beside the checkpoints, and all that a resumed run needs."""

    objective: str = "supervised"
    recipe: str = "small"
    """The row of `RECIPES` that the options not given came from."""
    model: str | None = None
    """Start from the weights of this model, or with None from scratch."""
    weights: str = "hub"
    arch: str = "scenes-tiny"
    """Architecture that is trained from scratch where no model is given."""
    arch_args: Mapping[str, Any] = field(default_factory=dict)
    image_size: tuple[int, int] | None = None
    data: tuple[str, ...] = (SCENES,)
    held_out: tuple[str, ...] = ()
    """Where held-out images come from; with () they are split off ``data``."""
    num_held_out: int = 512
    num_bank: int = 2000
    """Training images whose features vote in the k-NN measure."""
    label: str | None = None
    caption: str | None = None
    limit: int | None = None
    num_registers: tuple[int, ...] = (4,)
    control: bool = True
    """Train R = 0 beside them, and for ``retrofit`` its controls."""
    register_std: float = 0.02
    steps: int = 1200
    epochs: float | None = None
    batch_size: int = 64
    """Images of one optimiser step, over all processes and micro-batches."""
    accumulation: int = 1
    optimizer: str = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    weight_decay: float = 0.05
    weight_decay_end: float | None = None
    """Weight decay at the last step, reached along a cosine; None keeps it."""
    layer_decay: float = 1.0
    warmup: int = 100
    """Steps of linear warm-up."""
    schedule: str = "cosine"
    min_lr: float = 1e-6
    clip: float = 1.0
    """Largest norm of the gradient; 0 leaves it alone."""
    drop_path: float = 0.0
    dropout: float = 0.0
    """After every dense layer but qkv, and after the position embedding."""
    layer_scale: float | None = None
    ema: float = 0.0
    """Decay of an average of the weights, which is what is measured and saved; 0 for none."""
    augment: str = "none"
    loss: str = "cross-entropy"
    smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    tasks: tuple[str, ...] = ("count", "majority", "same", "presence", "patch_class")
    """What is learned of scenes by ``supervised``."""
    dense_on_objects: bool = False
    """Take dense losses on patches that hold an object only, so that blank patches are free."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Options of one objective alone: see `EXTRA`."""
    trainable: tuple[str, ...] = ("all",)
    precision: str = "auto"
    compile: bool = False
    shard: bool = False
    """Shard parameters over the processes (FSDP2) rather than copy them (DDP)."""
    device: str = "auto"
    workers: int | None = None
    eval_every: int = 200
    log_every: int = 20
    keep: int = 0
    """Checkpoints kept beside the last."""
    seed: int = 0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if (got := getattr(self, name)) not in allowed:
                raise ArgumentError(f"got {_option(name)} {got!r}; allowed are {', '.join(allowed)}")
        for name, least in _LEAST.items():
            if (got := getattr(self, name)) is not None and got < least:
                raise ArgumentError(f"got {_option(name)} {got}; give {least} or more")
        for name, (low, high) in _WITHIN.items():
            if (got := getattr(self, name)) is not None and not low <= got <= high:
                raise ArgumentError(f"got {_option(name)} {got}; allowed is {low} to {high}")
        if not self.lr > 0:
            raise ArgumentError(f"got --lr {self.lr}; give a positive number")
        if not self.num_registers or min(self.num_registers) < 0:
            raise ArgumentError(f"got --num-reg {list(self.num_registers)}; give numbers of registers, 0 or more")
        if unknown := set(self.trainable) - set(TRAINABLE):
            raise ArgumentError(f"got --trainable {sorted(unknown)[0]!r}; allowed are {', '.join(TRAINABLE)}")
        if self.batch_size % self.accumulation:
            got = f"{self.batch_size} images in {self.accumulation} micro-batches"
            raise ArgumentError(f"got {got}; give a --batch-size that --accumulation divides")
        known = EXTRA[self.objective]
        if unknown := sorted(set(self.extra) - set(known)):
            raise ArgumentError(f"{self.objective} has no option {unknown[0]}; it has {', '.join(known) or 'none'}")

    def option(self, name: str) -> Any:
        """Return an option of the objective alone, as given or by default."""
        return self.extra.get(name, EXTRA[self.objective][name])

    def as_dict(self) -> dict[str, Any]:
        """Return the options as JSON can hold them, those of the objective filled in."""
        return asdict(self) | {"extra": {**EXTRA[self.objective], **self.extra}}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "TrainConfig":
        """Read back what `as_dict` gave, after JSON. Raises `ArgumentError` for options that do not exist."""
        names = {one.name for one in fields(cls)}
        if unknown := sorted(set(stored) - names):
            raise ArgumentError(f"the stored options hold {unknown[0]!r}, which this version does not know")
        return cls(**_tuples(stored))


EXTRA: dict[str, dict[str, Any]] = {
    "supervised": {},
    "text": {"text_width": 128, "text_layers": 4, "text_heads": 4, "context_length": 77, "embed_dim": 128},
    "self-distillation": {
        "num_prototypes": 4096,
        "num_local": 6,
        "local_size": None,
        "global_scale": (0.32, 1.0),
        "local_scale": (0.05, 0.32),
        "mask_ratio": (0.1, 0.5),
        "masked_share": 0.5,
        "koleo": 0.1,
        "patch_weight": 1.0,
        "teacher_momentum": (0.992, 1.0),
        "teacher_temperature": (0.04, 0.07),
        "student_temperature": 0.1,
        "freeze_last_layer": 100,
    },
    "retrofit": {"num_views": 10, "shift": 0.15, "mse": 1.0, "denoise": True},
}
"""Options that one objective alone has, with their defaults.

``self-distillation``: DINOv2 (arXiv 2304.07193, section 4, appendix B.1), with fewer prototypes and a momentum for
short runs. ``retrofit``: PH-Reg (NeurIPS 2025; its code's 10 views, shifts of 15 % and unit weight of the MSE).
"""

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

_CHOICES = {
    "objective": OBJECTIVES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "precision": PRECISIONS,
    "augment": AUGMENTS,
    "loss": LOSSES,
}
_LEAST = {"steps": 1, "batch_size": 1, "accumulation": 1, "warmup": 0, "weight_decay": 0, "clip": 0, "eval_every": 1}
_LEAST |= {"log_every": 1, "keep": 0, "seed": 0, "mixup": 0, "cutmix": 0, "num_held_out": 2, "num_bank": 2, "min_lr": 0}
_LEAST |= {"limit": 2, "workers": 0, "epochs": 1e-9, "register_std": 0}
_WITHIN = {"layer_decay": (0.1, 1), "smoothing": (0, 0.9), "ema": (0, 0.99999), "drop_path": (0, 0.9)}
_WITHIN |= {"dropout": (0, 0.9), "momentum": (0, 0.999)}


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


def _tuples(value: Any) -> Any:
    """Undo what JSON does to tuples, also inside the options of an objective."""
    if isinstance(value, Mapping):
        return {name: _tuples(item) for name, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
