"""``vitprobe train-registers``: train or fine-tune variants with registers, and compare them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vitprobe.cli import options as opt

WHAT, LEARN, RATE, WATCH = "What is trained", "From what", "How fast", "What is watched and kept"


def _option(panel: str, text: str, *names: str, **kwargs: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, show_default=False, **kwargs)


def train_registers(
    num_reg: Annotated[list[int] | None, _option(WHAT, "Registers R; repeat for a sweep. Default 4.")] = None,
    control: Annotated[
        bool, typer.Option("--control/--no-control", help="Train R = 0 beside them.", rich_help_panel=WHAT)
    ] = True,
    objective: Annotated[
        str | None, _option(WHAT, "supervised (default), text, self-distillation or retrofit.")
    ] = None,
    recipe: Annotated[
        str | None, _option(WHAT, "Published settings: deit3, vit, clip, dinov2 or ph-reg; default: small.")
    ] = None,
    model: Annotated[str | None, _option(WHAT, "Start from this model's weights: see norms.", "--model", "-m")] = None,
    weights: Annotated[str | None, _option(WHAT, "hub (default), a file or random, for --model.")] = None,
    arch: Annotated[
        str | None,
        _option(
            WHAT, "Train from scratch: scenes-tiny (default), scenes-small, reference-vit-ti, -s, -b or a name of timm."
        ),
    ] = None,
    arch_arg: Annotated[
        list[str] | None, _option(WHAT, "KEY=VALUE for --arch, as timm (or the reference) takes it: depth=12. Repeat.")
    ] = None,
    image_size: opt.ImageSize = None,
    register_std: Annotated[float | None, _option(WHAT, "Spread of new registers. Default 0.02.")] = None,
    layer_scale: Annotated[float | None, _option(WHAT, "Where LayerScale begins, for --arch.")] = None,
    trainable: Annotated[
        list[str] | None,
        _option(WHAT, "all, registers, positions, patch_embedding, last_block, final_norm, head, cls. Repeat."),
    ] = None,
    data: Annotated[
        list[str] | None,
        _option(
            LEARN,
            "scenes (default), scenes:single, scenes:sparse, scenes:crowded, every input of norms, or a data set: "
            "timm:NAME:ROOT, torchvision:NAME:ROOT. Repeat.",
        ),
    ] = None,
    held_out: Annotated[list[str] | None, _option(LEARN, "Held-out images; default: split off --data.")] = None,
    num_held_out: Annotated[int | None, _option(LEARN, "How many of them. Default 512.")] = None,
    num_bank: Annotated[int | None, _option(LEARN, "Training images that vote in k-NN. Default 2000.")] = None,
    label: Annotated[str | None, _option(LEARN, "Parquet column or WebDataset key of the labels.")] = None,
    caption: Annotated[
        str | None, _option(LEARN, "Column or key of the captions; 'class' makes them from class names.")
    ] = None,
    limit: Annotated[int | None, _option(LEARN, "A random subset of this many images.")] = None,
    task: Annotated[
        list[str] | None,
        _option(
            LEARN,
            "What supervised learns of scenes: count, majority, same, patch_class, patch_mates ... Repeat.",
        ),
    ] = None,
    dense_on_objects: Annotated[
        bool | None, _option(LEARN, "Take dense losses on patches that hold an object only.", "--dense-on-objects")
    ] = None,
    augment: Annotated[str | None, _option(LEARN, "three-augment, rand-augment, crop, light or none.")] = None,
    loss: Annotated[str | None, _option(LEARN, "cross-entropy or bce.")] = None,
    smoothing: Annotated[float | None, _option(LEARN, "Label smoothing.")] = None,
    mixup: Annotated[float | None, _option(LEARN, "Alpha of mixup.")] = None,
    cutmix: Annotated[float | None, _option(LEARN, "Alpha of CutMix.")] = None,
    objective_arg: Annotated[
        list[str] | None, _option(LEARN, "KEY=VALUE for the objective: koleo=0.1, num_views=10. Repeat.")
    ] = None,
    steps: Annotated[int | None, _option(RATE, "Optimiser steps. Default 1000.")] = None,
    epochs: Annotated[float | None, _option(RATE, "Passes over the images, in place of --steps.")] = None,
    batch_size: Annotated[int | None, _option(RATE, "Images a step, over all processes. Default 64.")] = None,
    accumulation: Annotated[int | None, _option(RATE, "Micro-batches that a step is made of.")] = None,
    optimizer: Annotated[str | None, _option(RATE, "adamw, lamb or sgd.")] = None,
    lr: Annotated[float | None, _option(RATE, "Learning rate; a recipe's follows the batch size.")] = None,
    min_lr: Annotated[float | None, _option(RATE, "Rate at the end of the schedule. Default 1e-6.")] = None,
    layer_decay: Annotated[float | None, _option(RATE, "Factor of the rate from block to block, downwards.")] = None,
    weight_decay: Annotated[float | None, _option(RATE, "Weight decay.")] = None,
    warmup: Annotated[int | None, _option(RATE, "Steps of linear warm-up.")] = None,
    schedule: Annotated[str | None, _option(RATE, "cosine, linear or constant.")] = None,
    clip: Annotated[float | None, _option(RATE, "Largest norm of the gradient; 0 for none.")] = None,
    drop_path: Annotated[float | None, _option(RATE, "Stochastic depth of the last block.")] = None,
    dropout: Annotated[float | None, _option(RATE, "Dropout after dense layers and positions.")] = None,
    ema: Annotated[float | None, _option(RATE, "Decay of an average of the weights; it is what is measured.")] = None,
    precision: Annotated[str | None, _option(opt.RUN, "auto (bfloat16 on a GPU), float32 or bfloat16.")] = None,
    compile: Annotated[bool | None, _option(opt.RUN, "Compile the blocks.", "--compile")] = None,
    shard: Annotated[bool | None, _option(opt.RUN, "Shard parameters over processes: FSDP2.", "--shard")] = None,
    device: Annotated[str | None, _option(opt.RUN, "auto or cpu.")] = None,
    workers: opt.Workers = None,
    seed: Annotated[int | None, _option(opt.RUN, "Seed of weights, data and every draw.", min=0)] = None,
    eval_every: Annotated[int | None, _option(WATCH, "Steps between looks at held-out images.")] = None,
    keep: Annotated[int | None, _option(WATCH, "Checkpoints kept beside the last, spread over the training.")] = None,
    tensorboard: Annotated[bool | None, _option(WATCH, "Write TensorBoard's files too.", "--tensorboard")] = None,
    out: opt.Out = None,
    resume: Annotated[Path | None, _option(WATCH, "Go on with the run in this folder, with its own options.")] = None,
    dry_run: Annotated[bool, _option(WATCH, "Print parameters, FLOPs, memory and the plan.", "--dry-run")] = False,
    format: opt.Format = ["png"],  # noqa: B006
    json: opt.Json = False,
) -> None:
    """Train variants with [bold]register tokens[/bold] and a control without, and see artifacts come and go.

    Alone it trains a small model on generated scenes and compares R = 0 with R = 4. Stopped in any way, a run goes on
    with [bold]--resume DIR[/bold] to the same weights. Several GPUs: start it under torchrun or accelerate launch.

    Examples: [bold]vitprobe train-registers --num-reg 4[/bold]; [bold]vitprobe train-registers --data photos/ --model
    dinov2-s14 --objective retrofit[/bold]; [bold]vitprobe train-registers --recipe deit3 --data
    imagenet/train --held-out imagenet/val --num-reg 1 --num-reg 4[/bold].
    """
    from vitprobe.cli.run_train import run

    asked = {name: value for name, value in locals().items() if name not in ("run", *_OWN)}
    raise typer.Exit(run(asked, out=out, resume=resume, dry_run=dry_run, formats=tuple(format), as_json=json))


_OWN = ("out", "resume", "dry_run", "format", "json")
"""Options that say nothing of the training itself."""
