"""``vitprobe inspect``: what a network knows of 2-D structure, on one page of figures."""

from typing import Annotated

import typer

from vitprobe.cli import options as opt


def inspect(
    inputs: opt.Inputs = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="Backbone, as norms takes it. Repeat to compare.",
            show_default="organism, where no --conv is named",
        ),
    ] = None,
    conv: Annotated[
        list[str] | None,
        typer.Option(
            help="A convolutional network of timm beside (resnet18, resnetv2_50x1_bit ...), for filters and "
            "translation; its --weights come after the models'. Repeat.",
        ),
    ] = None,
    weights: opt.Weights = ["hub"],  # noqa: B006
    image_size: opt.ImageSize = None,
    pos_embed: opt.PosEmbed = "timm",
    part: Annotated[
        list[str] | None,
        typer.Option(
            help="filters, positions, attention or translation. Repeat.",
            show_default="all",
            rich_help_panel=opt.MEASURE,
        ),
    ] = None,
    rule: Annotated[
        str, typer.Option(help="Which patches are outliers, by their norms; see norms.", rich_help_panel=opt.MEASURE)
    ] = "auto",
    outliers: Annotated[
        str,
        typer.Option(
            metavar="both|with|without",
            help="What is drawn where a model has outliers; both are always printed.",
            rich_help_panel=opt.MEASURE,
        ),
    ] = "both",
    block: Annotated[
        str,
        typer.Option(
            metavar="N|last", help="Block whose features are followed when images shift.", rich_help_panel=opt.MEASURE
        ),
    ] = "last",
    blocks: Annotated[
        str,
        typer.Option(
            metavar="N,N|last|all", help="Blocks whose attention is measured, from 0.", rich_help_panel=opt.MEASURE
        ),
    ] = "all",
    limit: opt.Limit = None,
    seed: opt.Seed = 0,
    batch_size: opt.BatchSize = 8,
    workers: opt.Workers = None,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "float32",
    out: opt.Out = None,
    format: opt.Format = ["png"],  # noqa: B006
    json: opt.Json = False,
) -> None:
    """Show what a ViT knows of [bold]2-D structure[/bold]: filters, positions, attention distance, shifted images.

    One page a model, each number beside that of a random control, with outliers and without.

    Examples: [bold]vitprobe inspect[/bold] (a planted model on sample images); [bold]vitprobe inspect photos/ -m
    dinov2-s14 -m dinov2-reg-s14[/bold]; [bold]vitprobe inspect photos/ -m deit3-s16 --conv resnet50 --part filters
    --part translation[/bold].
    """
    from vitprobe.cli.run_inspect import InspectOptions, run
    from vitprobe.cli.session import Options

    shared = Options(
        inputs=tuple(inputs or ()),
        models=tuple(model or (() if conv else ("organism",))),
        weights=tuple(weights),
        image_size=image_size,
        pos_embed=pos_embed,
        limit=limit,
        seed=seed,
        batch_size=batch_size,
        workers=workers,
        device=device,
        dtype=dtype,
        out=out,
        formats=tuple(format),
        json=json,
    )
    asked = InspectOptions(tuple(conv or ()), tuple(part or ()), rule, outliers, block, blocks)
    raise typer.Exit(run(shared, asked))
