"""``vitprobe reproduce``: the figures and tables of "Vision Transformers Need Registers", item by item."""

from pathlib import Path
from typing import Annotated

import typer

from vitprobe.cli import options as opt


def reproduce(
    items: Annotated[
        list[str] | None,
        typer.Argument(help="Items: fig3, table1 ...; fig4 for all its parts; all.", show_default="a list of them"),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", help="Backbone, as for norms. Repeat to compare.", show_default="embedded models"
        ),
    ] = None,
    weights: opt.Weights = ["hub"],  # noqa: B006
    image_size: opt.ImageSize = None,
    pos_embed: opt.PosEmbed = "timm",
    data: Annotated[
        list[str],
        typer.Option(
            help="Images with what is known of them: scenes, camvid:ROOT, voc2007:ROOT:trainval, a folder of class "
            "folders ...; reproduce without items lists them. Repeat for several sets.",
            rich_help_panel=opt.INPUT,
        ),
    ] = ["scenes"],  # noqa: B006
    limit: Annotated[
        int | None,
        typer.Option(help="A random subset of this many images of each part of a set.", rich_help_panel=opt.INPUT),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            help="Folder of train-registers that fig4b and fig8 read; without one a small one is trained.",
            rich_help_panel=opt.INPUT,
        ),
    ] = None,
    seed: opt.Seed = 0,
    rule: Annotated[
        str, typer.Option(help="Which patch tokens are outliers, as for norms.", rich_help_panel=opt.MEASURE)
    ] = "auto",
    block: Annotated[
        str, typer.Option(metavar="N|last", help="Block that is looked at, from 0.", rich_help_panel=opt.MEASURE)
    ] = "last",
    set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[ITEM.]KEY=VALUE",
            help="A choice that the paper leaves open: table3.last=4. Repeat. --set ? lists them.",
            rich_help_panel=opt.MEASURE,
        ),
    ] = None,
    features: Annotated[
        bool,
        typer.Option("--features", help="Keep the features that probes were trained on.", rich_help_panel=opt.OUTPUT),
    ] = False,
    batch_size: opt.BatchSize = 8,
    workers: opt.Workers = None,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "float32",
    out: opt.Out = None,
    format: opt.Format = ["png"],  # noqa: B006
    json: opt.Json = False,
) -> None:
    """Reproduce figures and tables of [bold]Vision Transformers Need Registers[/bold], published numbers beside.

    Without items it lists them with what each needs. Alone an item runs on embedded models and generated scenes, in
    minutes on a CPU. Items of one call share their passes over the images.

    Examples: [bold]vitprobe reproduce[/bold]; [bold]vitprobe reproduce fig3 fig4[/bold]; [bold]vitprobe reproduce
    table3 -m dinov2 -m dinov2-reg --data voc2007:VOCdevkit:trainval[/bold]; [bold]vitprobe reproduce all[/bold].
    """
    from vitprobe.cli.run_reproduce import Options
    from vitprobe.cli.run_reproduce import run as body

    asked = Options(
        items=tuple(items or ()),
        models=tuple(model or ()),
        weights=tuple(weights),
        image_size=image_size,
        pos_embed=pos_embed,
        data=tuple(data),
        limit=limit,
        run=run,
        seed=seed,
        rule=rule,
        block=block,
        choices=tuple(set or ()),
        features=features,
        batch_size=batch_size,
        workers=workers,
        device=device,
        dtype=dtype,
        out=out,
        formats=tuple(format),
        json=json,
    )
    raise typer.Exit(body(asked))
