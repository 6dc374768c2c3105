"""Write a variant so that timm and open_clip open it without vitprobe, with a card that says how it was made."""

from pathlib import Path

from vitprobe import __version__
from vitprobe.backbones.conv_net import ConvNet
from vitprobe.backbones.export import export
from vitprobe.training.build import Built
from vitprobe.training.objectives.base import Objective


def save_variant(built: Built, objective: Objective, folder: Path, step: int) -> None:
    """Write the measured backbone of an objective with whole parameters into a folder."""
    beside = objective.export_beside(folder)
    export(objective.variant(), folder, classes=objective.classes(), card=card(built, step, beside))


SAVED = {"self-distillation": "Saved is the teacher, the average of the student's weights."}
"""What is saved where it is not the network that was trained."""


def card(built: Built, step: int, beside: tuple[str, ...]) -> str:
    """Say what a checkpoint is: model, registers, objective, steps, seed."""
    config, spec = built.objective.config, built.backbone.spec
    start = f"from the weights {spec.weights} of {spec.name}" if config.model else f"from scratch ({spec.name})"
    is_conv = isinstance(built.backbone, ConvNet)
    what = spec.architecture + ("" if is_conv else f" with {built.variant.num_registers} register tokens")
    what += ", taught without denoising" if built.variant.denoise is False else ""
    lines = [
        f"# {what}",
        "",
        f"Trained {start} by `vitprobe {config.command}` {__version__}: objective {config.objective}, {step} of "
        f"{config.steps} steps of {config.batch_size} images, data {', '.join(config.data)}, seed {config.seed}.",
        "",
        "Open it with `timm.create_model('local-dir:FOLDER', pretrained=True)`"
        + ("." if is_conv else " or `vitprobe norms --model FOLDER`."),
        SAVED.get(config.objective, "") or ("Saved is the average of the weights." if config.ema else ""),
        *beside,
        "",
        "All options are in the run's `run.json`; `metrics.jsonl` beside this folder says what happened.",
    ]
    return "\n".join(line for i, line in enumerate(lines) if line or lines[i - 1]) + "\n"
