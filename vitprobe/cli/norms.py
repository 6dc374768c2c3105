"""``vitprobe norms``: token norms of every block, outliers, and the verdict."""

from pathlib import Path
from typing import Annotated

import typer

from vitprobe.backbones.zoo import NAMES_HELP

Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        help="Images: files, folders, globs, Parquet, WebDataset tar shards, - (a list on stdin), samples, scenes. "
        "Default: two sample photographs and six scenes.",
        show_default=False,
    ),
]
Model = Annotated[list[str], typer.Option("--model", "-m", help=f"Backbone: {NAMES_HELP}. Repeat to compare.")]
Weights = Annotated[
    list[str], typer.Option(help="hub, a file (.safetensors, .pt, .pth, .bin) or random; one, or one for each --model.")
]
ImageSize = Annotated[
    str | None,
    typer.Option(metavar="N|HxW", help="Image size in pixels, a multiple of the patch; default: the model's."),
]
Format = Annotated[list[str], typer.Option("--format", help="Format of the figures: png, svg, pdf or none.")]
MEASURE, INPUT, RUN, OUTPUT = "What is measured", "Which images", "How it runs", "What is written"


def norms(
    inputs: Inputs = None,
    model: Model = ["organism"],  # noqa: B006
    weights: Weights = ["hub"],  # noqa: B006
    image_size: ImageSize = None,
    rule: Annotated[
        str,
        typer.Option(
            help="Which patch tokens are outliers: auto, a number, mean+3sd, median*4, mad:6, p98 or gmm.",
            rich_help_panel=MEASURE,
        ),
    ] = "auto",
    all_rules: Annotated[
        bool, typer.Option("--all-rules", help="Set all rules side by side.", rich_help_panel=MEASURE)
    ] = False,
    block: Annotated[
        str, typer.Option(metavar="N|last|all", help="Block of the summary, from 0.", rich_help_panel=MEASURE)
    ] = "last",
    after_final_norm: Annotated[
        bool,
        typer.Option(
            "--after-final-norm",
            help="Summarise tokens after the final norm instead, where artifacts hide.",
            rich_help_panel=MEASURE,
        ),
    ] = False,
    limit: Annotated[
        int | None, typer.Option(help="Measure a random subset of this many images.", rich_help_panel=INPUT)
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            help="Seed of the subset, scenes, random weights, organisms and bootstrap.", rich_help_panel=INPUT
        ),
    ] = 0,
    batch_size: Annotated[int, typer.Option(rich_help_panel=RUN)] = 8,
    workers: Annotated[
        int | None, typer.Option(help="Processes that decode images; default: chosen.", rich_help_panel=RUN)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=RUN)] = "auto",
    dtype: Annotated[
        str, typer.Option(help="float32, or bfloat16 (autocast; norms stay float32).", rich_help_panel=RUN)
    ] = "float32",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the result; default: runs/norms/MODEL-TIME.", rich_help_panel=OUTPUT, show_default=False
        ),
    ] = None,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Write tokens.parquet too: one row a token.", rich_help_panel=OUTPUT)
    ] = False,
    format: Format = ["png"],  # noqa: B006
    json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON and nothing else.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Measure token norms, and say whether the model has [bold]artifact tokens[/bold], where, and from which block on.

    Norms are L2 over the width of the residual stream after each block, in float32, before the final norm.

    Examples: [bold]vitprobe norms[/bold] (a planted model on sample images); [bold]vitprobe norms photos/ --model
    dinov2-b14[/bold]; [bold]vitprobe norms photos/ -m dinov2-l14 -m dinov2-reg-l14 --all-rules[/bold].
    """
    from vitprobe.cli.run_norms import NormsRequest, run

    request = NormsRequest(
        inputs=tuple(inputs or ()),
        models=tuple(model),
        weights=tuple(weights),
        image_size=image_size,
        rule=rule,
        all_rules=all_rules,
        block=block,
        after_final_norm=after_final_norm,
        limit=limit,
        seed=seed,
        batch_size=batch_size,
        workers=workers,
        device=device,
        dtype=dtype,
        out=out,
        tokens=tokens,
        formats=tuple(format),
        json=json,
    )
    raise typer.Exit(run(request))
