"""What a person sees of a comparison of trained variants."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape
from rich.table import Table

from vitprobe.cli.echo import stdout, written
from vitprobe.results import to_json

COLUMNS = ("outliers", "95 % interval", "most in a block", "median", "max", "p99/median", "max/median")
SHARES = ("accuracy", "knn", "retrieval")
"""Held-out measures that are written in percent: these, and names that end so."""


def train(summary: Mapping[str, Any], out: Path, *, as_json: bool) -> None:
    """Say what registers changed: ``summary`` is what `write_comparison` returned."""
    if as_json:
        typer.echo(to_json(summary))
        return
    console, rows = stdout(), summary["variants"]
    console.print(_table(rows))
    measures = _measures(rows)
    if measures.row_count:
        console.print(measures)
    for row in rows:
        title = f"[bold]{escape(row['title'])}[/bold]"
        console.print(f"{title}: {escape(row['conclusion'])}", highlight=False, soft_wrap=True)
    console.print(
        "intervals are over held-out images; one training of each variant says nothing of the spread between trainings",
        highlight=False,
        soft_wrap=True,
    )
    written(console, out)


def _table(rows: list[Mapping[str, Any]]) -> Table:
    first = rows[0]
    title = f"patch norms of {first['num_images']} held-out images after block {first['block']}, before the final norm"
    table = Table(title=title, title_justify="left", title_style="")
    table.add_column("variant", overflow="fold")
    for name in (*COLUMNS, "attention on registers"):
        table.add_column(name, justify="right")
    table.add_column("verdict", style="bold")
    for row in rows:
        low, high = row["outlier_fraction_ci"]
        highest = row["highest"]
        most = "-" if highest["block"] is None else f"{highest['outlier_fraction']:.2%} ({highest['block']})"
        table.add_row(
            escape(row["title"]),
            f"{row['outlier_fraction']:.2%}",
            "-" if low is None else f"{low:.2%} to {high:.2%}",
            most,
            *(f"{row['norm'][key]:.4g}" for key in ("median", "max")),
            *(f"{row[key]:.3g}" for key in ("p99_over_median", "max_over_median")),
            f"{row['attention']['registers']:.1%}" if row["num_registers"] else "-",
            row["verdict"],
        )
    return table


def _measures(rows: list[Mapping[str, Any]]) -> Table:
    """Set the held-out measures side by side, and beside each the difference to the control."""
    table = Table()
    table.add_column("held-out measure (change from control)")
    for row in rows:
        table.add_column(escape(row["title"]), justify="right")
    names = list(dict.fromkeys([rows[0]["measure"], *(name for row in rows for name in row["measures"])]))
    for name in names:
        if any(row["measures"].get(name) is not None for row in rows):
            table.add_row(escape(name.replace("_", " ")), *(_measure(row, name) for row in rows))
    return table


def _measure(row: Mapping[str, Any], name: str) -> str:
    value = row["measures"].get(name)
    if value is None:
        return "-"
    is_share = name.endswith(SHARES)
    said = f"{value:.2%}" if is_share else f"{value:.4f}"
    other = (row["difference"] or {"measures": {}})["measures"].get(name)
    if other is None:
        return said
    return f"{said} ({100 * other:+.2f} points)" if is_share else f"{said} ({other:+.4f})"
