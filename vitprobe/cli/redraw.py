"""``vitprobe redraw``: draw a stored result again, from its numbers alone."""

from pathlib import Path
from typing import Annotated

import typer

from vitprobe.cli.options import Format


def redraw(
    directory: Annotated[Path, typer.Argument(help="Folder of a result.")],
    format: Format = ["png"],  # noqa: B006
) -> None:
    """Draw the figures of a stored result again; needs no weights, images or GPU."""
    from vitprobe import results
    from vitprobe.cli import finetune_result, inspect_result, parse, reproduce_result, train_result
    from vitprobe.cli import run_attn_maps as attn_maps
    from vitprobe.cli import run_norms as norms
    from vitprobe.cli.session import known_schema, load_parts
    from vitprobe.errors import ArgumentError, OutputError

    formats = parse.formats(format)
    if not formats:
        raise ArgumentError("got --format none; allowed are png, svg and pdf")
    bodies = {body.SCHEMA: body for body in (norms, attn_maps, inspect_result)}
    stored = results.load(directory)
    others = (train_result.SCHEMA, finetune_result.SCHEMA, reproduce_result.SCHEMA)
    schema = known_schema(stored, [*bodies, *others], directory)
    try:
        if schema == reproduce_result.SCHEMA:
            paths = reproduce_result.redraw(directory, stored, formats)
        elif schema == finetune_result.SCHEMA:
            paths = finetune_result.redraw(directory, stored, formats)
        elif schema == train_result.SCHEMA:
            paths = train_result.draw(train_result.read_back(stored), directory, formats)
        else:
            body, parts = bodies[schema], load_parts(directory)
            drawn = [(title, body.read_back(part)) for title, part in parts]
            paths = body.draw(drawn, directory, formats, **body.drawing(parts[0][1].settings))
    except OSError as error:
        raise OutputError(
            f"cannot write figures into {directory} ({error.strerror}); copy the result elsewhere"
        ) from error
    for path in paths:
        typer.echo(str(path))
