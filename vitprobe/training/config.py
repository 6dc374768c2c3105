"""What a training is asked to do: one frozen record, and the checks that need no data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
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
MOST_RATE = 3e38
"""A larger rate is no number of float32."""


@dataclass(frozen=True)
class TrainConfig:
    """Hold every option of ``train-registers``, or of one training of ``finetune``.

    They are stored beside the checkpoints, and are all that a resumed run needs.
    """

    objective: str = "supervised"
    recipe: str = "small"
    """The row of `vitprobe.training.recipes.RECIPES` that the options not given came from."""
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
    steps: int = 1000
    epochs: float | None = None
    batch_size: int = 64
    """Images of one optimiser step, over all processes and micro-batches."""
    accumulation: int = 1
    optimizer: str = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float | None = None
    """Of Adam's denominator; None leaves the optimiser's own."""
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
    zero_head: bool = False
    """Begin with a head of zeros, as `finetune` does (Dosovitskiy et al., arXiv 2010.11929, appendix B.1.1)."""
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
        if not 0 < self.lr <= MOST_RATE:
            raise ArgumentError(f"got --lr {self.lr}; give a positive number, {MOST_RATE:g} at most")
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

    @property
    def command(self) -> str:
        """The command that trains so."""
        return "finetune" if self.zero_head else "train-registers"

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
        "head_width": 2048,
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


def _tuples(value: Any) -> Any:
    """Undo what JSON does to tuples, also inside the options of an objective."""
    if isinstance(value, Mapping):
        return {name: _tuples(item) for name, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
