"""The options that several commands share, with their help."""

from pathlib import Path
from typing import Annotated

import typer

from vitprobe.backbones.zoo import NAMES_HELP

MEASURE, INPUT, RUN, OUTPUT = "What is measured", "Which images", "How it runs", "What is written"

Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        help="Images: files, folders, globs, Parquet, WebDataset tar shards, - (a list on stdin), samples, scenes, "
        "scenes:single, scenes:sparse, scenes:crowded.",
        show_default="sample images that are always at hand",
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
PosEmbed = Annotated[
    str,
    typer.Option(
        metavar="timm|official",
        help="How positions come to another size; official: as the public DINOv2 without registers does it.",
    ),
]
Limit = Annotated[int | None, typer.Option(help="A random subset of this many images.", rich_help_panel=INPUT)]
Seed = Annotated[
    int,
    typer.Option(
        min=0, help="Seed of the subset, scenes, random weights, organisms, bootstrap.", rich_help_panel=INPUT
    ),
]
BatchSize = Annotated[int, typer.Option(help="Images at a time.", rich_help_panel=RUN)]
Workers = Annotated[
    int | None, typer.Option(help="Processes that decode images; default: chosen.", rich_help_panel=RUN)
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=RUN)]
Dtype = Annotated[
    str, typer.Option(help="float32, or bfloat16 (autocast; what is recorded stays float32).", rich_help_panel=RUN)
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the result; default: runs/COMMAND/NAME-TIME.", rich_help_panel=OUTPUT, show_default=False
    ),
]
Format = Annotated[
    list[str], typer.Option("--format", help="Format of the figures: png, svg, pdf or none.", rich_help_panel=OUTPUT)
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the summary as JSON and nothing else.", rich_help_panel=OUTPUT)
]
