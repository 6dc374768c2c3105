"""``vitprobe norms``: token norms of every block, outliers, and the verdict."""

from typing import Annotated

import typer

from vitprobe.cli import options as opt


def norms(
    inputs: opt.Inputs = None,
    model: opt.Model = ["organism"],  # noqa: B006
    weights: opt.Weights = ["hub"],  # noqa: B006
    image_size: opt.ImageSize = None,
    pos_embed: opt.PosEmbed = "timm",
    rule: Annotated[
        str,
        typer.Option(
            help="Which patch tokens are outliers: auto, a number, mean+3sd, median*4, mad:6, p98 or gmm.",
            rich_help_panel=opt.MEASURE,
        ),
    ] = "auto",
    all_rules: Annotated[
        bool, typer.Option("--all-rules", help="Set all rules side by side.", rich_help_panel=opt.MEASURE)
    ] = False,
    block: Annotated[
        str, typer.Option(metavar="N|last|all", help="Block of the summary, from 0.", rich_help_panel=opt.MEASURE)
    ] = "last",
    after_final_norm: Annotated[
        bool,
        typer.Option(
            "--after-final-norm",
            help="Summarise tokens after the final norm instead, where artifacts hide.",
            rich_help_panel=opt.MEASURE,
        ),
    ] = False,
    limit: opt.Limit = None,
    seed: opt.Seed = 0,
    batch_size: opt.BatchSize = 8,
    workers: opt.Workers = None,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "float32",
    out: opt.Out = None,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Write tokens.parquet too: one row a token.", rich_help_panel=opt.OUTPUT)
    ] = False,
    format: opt.Format = ["png"],  # noqa: B006
    json: opt.Json = False,
) -> None:
    """Measure token norms, and say whether the model has [bold]artifact tokens[/bold], where, and from which block on.

    Norms are L2 over the width of the residual stream after each block, in float32, before the final norm.

    Examples: [bold]vitprobe norms[/bold] (a planted model on sample images); [bold]vitprobe norms photos/ --model
    dinov2-b14[/bold]; [bold]vitprobe norms photos/ -m dinov2-l14 -m dinov2-reg-l14 --all-rules[/bold].
    """
    from vitprobe.cli.run_norms import NormsOptions, run
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
    asked = NormsOptions(rule, all_rules, block, after_final_norm, tokens)
    raise typer.Exit(run(shared, asked))
