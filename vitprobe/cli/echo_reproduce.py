"""What a person sees of ``vitprobe reproduce``: the list of items, and tables with published numbers beside."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape
from rich.table import Table

from vitprobe.cli import echo
from vitprobe.reproduction.table import NEEDS, TABLE
from vitprobe.reproduction.tables import cell, label, stated
from vitprobe.results import to_json


def listed(layouts: Sequence[tuple[str, str, str]], *, as_json: bool) -> None:
    """List the items with what each needs, and the sets of images with how they lie on disk."""
    if as_json:
        rows = [{"item": e.name, "paper": e.paper, "what": e.title, "needs": list(e.needs)} for e in TABLE.values()]
        sets = [dict(zip(("data", "has", "layout"), one, strict=True)) for one in layouts]
        typer.echo(to_json({"items": rows, "data": sets}))
        return
    console = echo.stdout()
    table = Table(title="vitprobe reproduce ITEM ...", title_justify="left", title_style="")
    for name in ("item", "paper", "what", "needs"):
        table.add_column(name, overflow="fold")
    for entry in TABLE.values():
        needs = "; ".join(NEEDS[need] for need in entry.needs) or "no images"
        table.add_row(entry.name, entry.paper, entry.title, needs)
    console.print(table)
    console.print("Alone, an item runs on embedded models and generated scenes.", highlight=False)
    table = Table(title="--data", title_justify="left", title_style="")
    for name in ("data", "has", "as it is distributed"):
        table.add_column(name, overflow="fold")
    for one in layouts:
        table.add_row(*map(escape, one))
    console.print(table)


def found(summary: Mapping[str, Any], out: Path, *, as_json: bool) -> None:
    """Say what every item found, and what was left out."""
    echo.not_read(summary["skipped"])
    if as_json:
        typer.echo(to_json(summary))
        return
    console = echo.stdout()
    for name, item in summary["items"].items():
        console.print(_table(name, item))
        for note in item["notes"]:
            console.print(f"  {escape(note)}", highlight=False)
    for name, reasons in summary["left_out"].items():
        for reason in reasons:
            console.print(f"left out: [bold]{name}[/bold], {escape(reason)}", highlight=False)
    echo.written(console, out)


def _table(name: str, item: Mapping[str, Any]) -> Table:
    table = Table(title=f"[bold]{name}[/bold] ({item['paper']}): {item['title']}", title_justify="left", title_style="")
    table.add_column("", overflow="fold")
    for title in item["columns"]:
        table.add_column(escape(title), justify="right", overflow="fold")
    has_published = any(row["published"] for row in item["rows"])
    if has_published:
        table.add_column("published", overflow="fold")
    for row in item["rows"]:
        published = [escape("\n".join(stated(row["published"])))] if has_published else []
        table.add_row(escape(label(row)), *(cell(one, row["unit"]) for one in row["cells"]), *published)
    return table
