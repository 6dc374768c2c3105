"""Write a variant so that timm and open_clip open it without vitprobe, with a card that says how it was made."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from vitprobe import __version__
from vitprobe.backbones.base import Backbone
from vitprobe.backbones.export import export
from vitprobe.training.build import Built
from vitprobe.training.objectives.base import Objective


def save_variant(built: Built, folder: Path, state: Mapping[str, Tensor], step: int) -> None:
    """Write the measured backbone of a variant into a folder; ``state`` is the objective's, gathered on the CPU."""
    objective = built.objective
    backbone = objective.variant()
    if built.spare is not None:
        prefix = _prefix(objective, backbone)
        own = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
        built.spare.module.load_state_dict(own)
        backbone = built.spare
    beside = objective.export_beside(folder)
    export(backbone, folder, classes=objective.classes(), card=card(built, step, beside))


def _prefix(objective: Objective, backbone: Backbone) -> str:
    return next(f"{name}." for name, part in objective.named_children() if part is backbone.module)


def card(built: Built, step: int, beside: tuple[str, ...]) -> str:
    """Say what a checkpoint is: model, registers, objective, steps, seed."""
    config, spec = built.objective.config, built.backbone.spec
    start = f"from the weights {spec.weights} of {spec.name}" if config.model else f"from scratch ({spec.name})"
    what = f"{spec.architecture} with {built.variant.num_registers} register tokens"
    lines = [
        f"# {what}",
        "",
        f"Trained {start} by `vitprobe train-registers` {__version__}: objective {config.objective}, {step} of "
        f"{config.steps} steps of {config.batch_size} images, data {', '.join(config.data)}, seed {config.seed}.",
        "",
        "Open it with `timm.create_model('local-dir:FOLDER', pretrained=True)` or `vitprobe norms --model FOLDER`.",
        *beside,
        "",
        "All options are in `run.json` two folders up; `metrics.jsonl` beside this folder says what happened.",
    ]
    return "\n".join(lines) + "\n"
