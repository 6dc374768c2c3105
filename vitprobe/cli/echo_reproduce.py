"""What a person sees of ``vitprobe reproduce``: the list of items, and tables with published numbers beside."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape
from rich.table import Table

from vitprobe.cli import echo
from vitprobe.reproduction.table import NEEDS, TABLE
from vitprobe.results import to_json

MOST_PUBLISHED = 4
"""Published numbers shown beside a row; the result has all of them."""


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
    for name, reason in summary["left_out"].items():
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
        cells = [_cell(cell, row["unit"]) for cell in row["cells"]]
        published = [_published(row["published"])] if has_published else []
        unit = "" if row["unit"] == "share" or row["unit"] in row["what"] else f", {row['unit']}"
        table.add_row(escape(f"{row['what']}{unit}"), *cells, *published)
    return table


def _cell(cell: Mapping[str, Any] | None, unit: str) -> str:
    """Write a number with its interval or its spread."""
    if cell is None or cell["value"] is None:
        return "-"
    text = _number(cell["value"], unit)
    if cell["interval"] is not None and None not in cell["interval"]:
        low, high = (_number(end, unit) for end in cell["interval"])
        text += f" ({low} to {high})"
    elif cell["spread"] is not None and cell["spread"] == cell["spread"]:
        text += f" ±{_number(cell['spread'], unit)}"
    return text


def _published(every: Sequence[Mapping[str, Any]]) -> str:
    shown = [
        f"{one['bound']}{' ' * bool(one['bound'])}{_number(one['value'], one['unit'])} {one['model']} [{one['trust']}]"
        for one in every[:MOST_PUBLISHED]
    ]
    more = [f"and {len(every) - MOST_PUBLISHED} more"] if len(every) > MOST_PUBLISHED else []
    return escape("\n".join(shown + more))


def _number(value: float, unit: str) -> str:
    if unit == "share":
        return f"{value:.1%}" if value == 0 or abs(value) >= 0.001 else f"{value:.2%}"
    return f"{value:.4g}"
