"""``vitprobe finetune``: fine-tune a pretrained backbone to downstream sets, and measure what came of it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vitprobe.cli import options as opt

WHAT, LEARN, RATE, WATCH = "What is fine-tuned", "To what", "How", "What is measured and kept"


def _option(panel: str, text: str, *names: str, **kwargs: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, show_default=False, **kwargs)


def _switch(text: str, names: str) -> Any:
    return typer.Option(names, help=text, rich_help_panel=WHAT if "control" in names else WATCH)


def finetune(
    model: Annotated[
        str | None, _option(WHAT, "Backbone: see norms. Default: scenes-content, an embedded one.", "--model", "-m")
    ] = None,
    weights: Annotated[str | None, _option(WHAT, "hub (default), a file or random.")] = None,
    image_size: opt.ImageSize = None,
    num_reg: Annotated[list[int] | None, _option(WHAT, "Registers to add; repeat to compare. Default 0.")] = None,
    control: Annotated[bool, _switch("Fine-tune R = 0 beside R > 0.", "--control/--no-control")] = True,
    register_std: Annotated[float | None, _option(WHAT, "Spread of new registers. Default 0.02.")] = None,
    trainable: Annotated[
        list[str] | None,
        _option(WHAT, "all (default), head, registers, positions, patch_embedding, last_block ... Repeat."),
    ] = None,
    data: Annotated[
        list[str] | None,
        _option(
            LEARN,
            "A set with classes: torchvision:NAME:ROOT, timm:NAME:ROOT, vtab:ROOT/TASK (vtab:ROOT: all its tasks), "
            "a folder (with train/ and test/ or val/, or of classes), Parquet, WebDataset, scenes (default). "
            "Repeat for several sets, each by itself.",
        ),
    ] = None,
    held_out: Annotated[
        list[str] | None, _option(LEARN, "Held-out images; default: the set's own test images, else a fifth.")
    ] = None,
    num_held_out: Annotated[int | None, _option(LEARN, "Fewer of them. Default: all.")] = None,
    label: Annotated[str | None, _option(LEARN, "Parquet column or WebDataset key of the labels.")] = None,
    limit: Annotated[int | None, _option(LEARN, "Fewer training images, a share of each class.")] = None,
    real: Annotated[
        str | None,
        _option(LEARN, "real.json of ImageNet's ReaL labels (timm: the copy that timm has): accuracy by these too."),
    ] = None,
    recipe: Annotated[
        str | None, _option(RATE, "vit: published settings (arXiv 2010.11929, table 4); default: small.")
    ] = None,
    lr: Annotated[
        list[float] | None,
        _option(RATE, "Learning rate; several are tried on a part held out of the training images. Repeat."),
    ] = None,
    development: Annotated[float | None, _option(RATE, "Share of the training images in that part.")] = None,
    smoothing: Annotated[list[float] | None, _option(RATE, "Label smoothing; repeat to compare. Default 0.")] = None,
    steps: Annotated[int | None, _option(RATE, "Optimiser steps of each training. Default: the recipe's.")] = None,
    batch_size: Annotated[int | None, _option(RATE, "Images a step. Default 64; vit: 512.")] = None,
    accumulation: Annotated[int | None, _option(RATE, "Micro-batches that a step is made of.")] = None,
    augment: Annotated[str | None, _option(RATE, "three-augment, rand-augment, crop, light or none.")] = None,
    momentum: Annotated[float | None, _option(RATE, "Of SGD. Default 0.9.")] = None,
    weight_decay: Annotated[float | None, _option(RATE, "Weight decay. Default 0.")] = None,
    warmup: Annotated[int | None, _option(RATE, "Steps of linear warm-up. Default 0.")] = None,
    clip: Annotated[float | None, _option(RATE, "Largest norm of the gradient. Default 1; 0 for none.")] = None,
    precision: Annotated[str | None, _option(opt.RUN, "auto (bfloat16 on a GPU), float32 or bfloat16.")] = None,
    compile: Annotated[bool | None, _option(opt.RUN, "Compile the blocks.", "--compile")] = None,
    device: Annotated[str | None, _option(opt.RUN, "auto or cpu.")] = None,
    workers: opt.Workers = None,
    seed: Annotated[int | None, _option(opt.RUN, "Seed of registers, data and every draw.", min=0)] = None,
    frozen: Annotated[
        bool, _switch("k-NN and a linear probe on frozen features, before and after.", "--frozen/--no-frozen")
    ] = True,
    num_frozen: Annotated[int | None, _option(WATCH, "Training images that these read. Default: all.")] = None,
    num_watched: Annotated[
        int | None, _option(WATCH, "Held-out images looked at on the way, and for norms. Default 512.")
    ] = None,
    eval_every: Annotated[int | None, _option(WATCH, "Steps between looks at them, and checkpoints.")] = None,
    keep: Annotated[int | None, _option(WATCH, "Checkpoints kept beside the last, spread over the training.")] = None,
    out: opt.Out = None,
    resume: Annotated[Path | None, _option(WATCH, "Go on with the run in this folder, with its own options.")] = None,
    dry_run: Annotated[bool, _option(WATCH, "Print parameters, FLOPs, memory and the plan.", "--dry-run")] = False,
    format: opt.Format = ["png"],  # noqa: B006
    json: opt.Json = False,
) -> None:
    """Fine-tune a pretrained backbone to [bold]downstream sets[/bold]: a new head of zeros, SGD, a cosine.

    Said are accuracy on held-out images with its interval, calibration, what frozen features gave before and give
    after, and the norms of patch tokens before and after. A larger [bold]--image-size[/bold] keeps the patch: more
    tokens, positions interpolated in 2-D. Every combination of [bold]--num-reg[/bold] and [bold]--smoothing[/bold] is a
    variant. Stopped in any way, a run goes on with [bold]--resume DIR[/bold] to the same weights.

    Examples: [bold]vitprobe finetune --model dinov2-b14 --data torchvision:CIFAR10:data --image-size 392[/bold];
    [bold]vitprobe finetune --model deit3-b16 --recipe vit --data torchvision:OxfordIIITPet:data[/bold];
    [bold]vitprobe finetune --num-reg 4 --smoothing 0 --smoothing 0.1 --lr 0.01 --lr 0.03[/bold].
    """
    from vitprobe.cli.run_finetune import run

    asked = {name: value for name, value in locals().items() if name not in ("run", *_OWN)}
    raise typer.Exit(run(asked, out=out, resume=resume, dry_run=dry_run, formats=tuple(format), as_json=json))


_OWN = ("out", "resume", "dry_run", "format", "json")
"""Options that say nothing of the fine-tuning itself."""
