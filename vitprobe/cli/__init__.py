"""The command line: parse, call, echo. Command bodies import what they need; this package imports nothing heavy."""

import sys

import typer

from vitprobe import __version__
from vitprobe.cli.attn_maps import attn_maps
from vitprobe.cli.bench import bench
from vitprobe.cli.calibrate import calibrate
from vitprobe.cli.fetch import fetch
from vitprobe.cli.finetune import finetune
from vitprobe.cli.inspect import inspect
from vitprobe.cli.launch import one_voice
from vitprobe.cli.models import models
from vitprobe.cli.norms import norms
from vitprobe.cli.redraw import redraw
from vitprobe.cli.reproduce import reproduce
from vitprobe.cli.train_registers import train_registers
from vitprobe.errors import ExitCode, VitprobeError

INTERRUPTED = (130, 143)
"""What a shell expects of a program that was stopped by Ctrl-C, or ended by SIGTERM."""

app = typer.Typer(
    name="vitprobe",
    help="Find artifact tokens (high-norm outlier patch tokens) in vision transformers, and show where they come from.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"vitprobe {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    """Hold the options of the program itself."""


app.command(rich_help_panel="Measure")(norms)
app.command("attn-maps", rich_help_panel="Measure")(attn_maps)
app.command(rich_help_panel="Measure")(inspect)
app.command(rich_help_panel="Measure")(reproduce)
app.command("train-registers", rich_help_panel="Train")(train_registers)
app.command(rich_help_panel="Train")(finetune)
app.command(rich_help_panel="Trust")(calibrate)
app.command(rich_help_panel="Trust")(bench)
app.command(rich_help_panel="Show")(redraw)
app.command(rich_help_panel="Weights")(models)
app.command(rich_help_panel="Weights")(fetch)


def _advice(error: Exception) -> str:
    """Say what to do about a failure of the machine; empty for what is a bug."""
    text = str(error)
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return "out of memory; try a smaller --batch-size or --image-size, or --dtype bfloat16; nothing was written"
    if "DataLoader worker (pid" in text:
        return "a process that decodes images was killed; try --workers 0, or fewer; nothing was written"
    return ""


def main() -> None:
    """Run the command line; a user's error is one message on stderr and exit code 2."""
    with one_voice():
        _main()


def _main() -> None:
    try:
        app()
    except VitprobeError as error:
        typer.echo(f"vitprobe: {error}", err=True)
        sys.exit(int(error.exit_code))
    except (RuntimeError, MemoryError) as error:
        if not (advice := _advice(error)):
            raise
        typer.echo(f"vitprobe: {advice}", err=True)
        sys.exit(ExitCode.NOTHING)
    except SystemExit as ended:
        if ended.code in INTERRUPTED:  # Typer has caught the interrupt, and says nothing
            typer.echo("vitprobe: interrupted; nothing was written", err=True)
        raise
