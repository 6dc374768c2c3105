"""``vitprobe bench``: what recording costs."""

import os
from typing import Annotated

import typer

from vitprobe.cli import options as opt


def bench(
    model: opt.Model = ["deit3-b16"],  # noqa: B006
    weights: opt.Weights = ["random"],  # noqa: B006
    image_size: opt.ImageSize = None,
    batch_size: opt.BatchSize = 8,
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds; every way runs once in each.", rich_help_panel=opt.RUN)
    ] = 7,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "float32",
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile every block first.", rich_help_panel=opt.RUN)
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(help="Also time norms end to end on these images: a folder or file.", rich_help_panel=opt.INPUT),
    ] = None,
    limit: opt.Limit = None,
    workers: opt.Workers = None,
    seed: opt.Seed = 0,
    train: Annotated[
        bool,
        typer.Option("--train", help="Time training steps instead, against a loop by hand.", rich_help_panel=opt.RUN),
    ] = False,
    num_reg: Annotated[int, typer.Option(help="Registers of the last row, with --train.", rich_help_panel=opt.RUN)] = 4,
    against: Annotated[
        str | None, typer.Option(help="Time this model beside each --model instead.", rich_help_panel=opt.RUN)
    ] = None,
    json: opt.Json = False,
) -> None:
    """Time recording against the [bold]bare forward[/bold], interleaved in one process: ratios, memory, equal bits.

    Nothing is written; the first row after the bare forward is the bare forward again, the noise of this machine. With
    [bold]--train[/bold], training steps are set against the shortest loop that one would write with timm. With
    [bold]--against[/bold], the bare forward, or that loop, of another model stands beside: one ratio, two models.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler, which measures memory, would write to stderr
    from vitprobe.cli.run_bench import BenchOptions, run

    asked = BenchOptions(
        models=tuple(model),
        weights=tuple(weights),
        image_size=image_size,
        batch_size=batch_size,
        rounds=rounds,
        device=device,
        dtype=dtype,
        compile=compile,
        data=data,
        limit=limit,
        workers=workers,
        seed=seed,
        json=json,
        against=against,
    )
    if train:
        from vitprobe.cli import run_bench_train

        raise typer.Exit(run_bench_train.run(asked, num_reg))
    raise typer.Exit(run(asked))
