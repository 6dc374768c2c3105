"""``vitprobe fetch``: weights into the hub's cache, or into a folder that moves to a machine without network."""

from pathlib import Path
from typing import Annotated

import typer


def fetch(
    aliases: Annotated[list[str], typer.Argument(metavar="ALIAS...", help="Aliases; see vitprobe models.")],
    to: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Fetch into DIR/ALIAS/ instead of the cache, beside a source.json."),
    ] = None,
) -> None:
    """Fetch weights, go on where a fetch was interrupted, and check what came: size, SHA-256, header.

    For a machine without network: [bold]vitprobe fetch dinov2-s14 --to weights[/bold], bring the folder there, and
    [bold]vitprobe norms --model dinov2-s14 --weights weights/dinov2-s14/model.safetensors[/bold].
    """
    from vitprobe.cli.run_fetch import run

    raise typer.Exit(run(aliases, to))
