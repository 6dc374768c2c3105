"""``vitprobe calibrate``: is the instrument right?"""

from typing import Annotated

import typer

from vitprobe.cli import options as opt


def calibrate(
    inputs: opt.Inputs = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="Also plant a token in this backbone; see norms. May be repeated."),
    ] = None,
    weights: opt.Weights = ["hub"],  # noqa: B006
    image_size: opt.ImageSize = None,
    pos_embed: opt.PosEmbed = "timm",
    limit: opt.Limit = None,
    seed: opt.Seed = 0,
    batch_size: opt.BatchSize = 8,
    workers: opt.Workers = None,
    device: opt.Device = "auto",
    out: opt.Out = None,
    json: opt.Json = False,
) -> None:
    """Try the detectors on [bold]planted truth[/bold] and on noise: precision, recall, false alarms of every rule.

    Four organisms with known outliers, noise, and with --model one token of each image scaled up in a middle block of
    your own model. Exit code 1 if the instrument is off.
    """
    from vitprobe.cli.run_calibrate import run
    from vitprobe.cli.session import Options

    shared = Options(
        inputs=tuple(inputs or ()),
        models=tuple(model or ()),
        weights=tuple(weights),
        image_size=image_size,
        pos_embed=pos_embed,
        limit=limit,
        seed=seed,
        batch_size=batch_size,
        workers=workers,
        device=device,
        dtype="float32",
        out=out,
        formats=("none",),
        json=json,
    )
    raise typer.Exit(run(shared))
