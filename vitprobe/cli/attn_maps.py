"""``vitprobe attn-maps``: what the CLS token, registers or any patch attend to."""

from typing import Annotated

import typer

from vitprobe.cli import options as opt

Measured = opt.MEASURE


def attn_maps(
    inputs: opt.Inputs = None,
    model: opt.Model = ["organism"],  # noqa: B006
    weights: opt.Weights = ["hub"],  # noqa: B006
    image_size: opt.ImageSize = None,
    pos_embed: opt.PosEmbed = "timm",
    query: Annotated[
        str | None,
        typer.Option(
            metavar="cls|registers|register:K|R,C|mean",
            help="Whose attention; default: cls, in a model without it registers, else the mean of all patches.",
            rich_help_panel=Measured,
        ),
    ] = None,
    block: Annotated[str, typer.Option(metavar="N|last|all", help="Block, from 0.", rich_help_panel=Measured)] = "last",
    head: Annotated[
        str, typer.Option(metavar="mean|N|all", help="Heads averaged, one, or each.", rich_help_panel=Measured)
    ] = "mean",
    rollout: Annotated[
        bool, typer.Option("--rollout", help="Attention rollout over all blocks too.", rich_help_panel=Measured)
    ] = False,
    rule: Annotated[
        str,
        typer.Option(
            help="Which patches are outlined as outliers; see norms. A few images are too few for auto.",
            rich_help_panel=Measured,
        ),
    ] = "mad:10",
    upsample: Annotated[
        str, typer.Option(metavar="nearest|bilinear", help="How patches are enlarged.", rich_help_panel=opt.OUTPUT)
    ] = "nearest",
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Write each map over its image too.", rich_help_panel=opt.OUTPUT)
    ] = False,
    limit: opt.Limit = None,
    seed: opt.Seed = 0,
    batch_size: opt.BatchSize = 4,
    workers: opt.Workers = None,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "float32",
    out: opt.Out = None,
    format: opt.Format = ["png"],  # noqa: B006
    json: opt.Json = False,
) -> None:
    """Draw [bold]attention maps[/bold]: attention after softmax from a query to each patch, right for every backbone.

    Not renormalised: what goes to CLS and registers is reported beside the map. Fused attention stays on.

    Examples: [bold]vitprobe attn-maps photo.jpg --model dinov2-s14[/bold]; [bold]vitprobe attn-maps photo.jpg -m dinov2
    -m dinov2-reg --overlay[/bold]; [bold]vitprobe attn-maps photo.jpg -m dinov2-reg --query register:2[/bold].
    """
    from vitprobe.cli.run_attn_maps import AttentionOptions, run
    from vitprobe.cli.session import Options

    shared = Options(
        inputs=tuple(inputs or ()),
        models=tuple(model),
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
    raise typer.Exit(run(shared, AttentionOptions(query, block, head, rollout, rule, upsample, overlay)))
