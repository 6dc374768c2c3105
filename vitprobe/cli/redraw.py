"""``vitprobe redraw``: draw a stored result again, from its numbers alone."""

from pathlib import Path
from typing import Annotated

import typer

from vitprobe.cli.norms import Format


def redraw(
    directory: Annotated[Path, typer.Argument(help="Folder of a result.")],
    format: Format = ["png"],  # noqa: B006
) -> None:
    """Draw the figures of a stored result again; needs no weights, images or GPU."""
    from vitprobe.cli import parse
    from vitprobe.cli.run_norms import redraw as draw

    for path in draw(directory, parse.formats(format)):
        typer.echo(str(path))
