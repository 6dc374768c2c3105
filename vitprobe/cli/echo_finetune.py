"""What a person sees of ``vitprobe finetune``: the table, how it came about, and the plan of a dry run."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape
from rich.table import Table

from vitprobe.cli.echo import stdout, written
from vitprobe.cli.finetune_table import EITHER, INTERVALS, notes, table, vtab_lines
from vitprobe.cli.train_progress import plans
from vitprobe.results import to_json

NARROW, SHORT = 100, 10
"""Columns of a terminal under which variants take several lines, and characters that a cell may have and never wrap."""


def finetuned(summary: Mapping[str, Any], out: Path, *, as_json: bool) -> None:
    """Say what fine-tuning gave: ``summary`` is what was stored, of one set or of several."""
    if as_json:
        typer.echo(to_json(summary))
        return
    summaries = summary.get("sets", [summary])
    console = stdout()
    head, cells = table(summaries)
    title = f"fine-tuning of {summaries[0]['model']}" + f" to {summaries[0]['set']}" * (len(summaries) == 1)
    first, watched = len(head) - len(EITHER), max(one["num_watched"] for one in summaries)
    last = f"frozen features, and norms of {watched:,} held-out images" + " at most" * (len(summaries) > 1)
    is_narrow = console.width < NARROW
    console.print(_part(title, head, cells, range(1, first), is_narrow=is_narrow))
    console.print(_part(last, head, cells, (1, *range(first, len(head))), is_narrow=is_narrow))
    lines = [line for one in summaries for line in notes(one)] + vtab_lines(summary.get("vtab")) + [INTERVALS]
    for line in lines:
        console.print(escape(line), highlight=False, soft_wrap=True)
    written(console, out)


def _part(
    title: str, head: Sequence[str], cells: Sequence[Sequence[str]], columns: Sequence[int], *, is_narrow: bool
) -> Table:
    """Return a table of some columns, the first the variant, without rows and columns that have nothing.

    Of several sets each has a row with its name above its variants. No word is broken, so that 80 columns are enough.
    """
    shown = Table(title=escape(title), title_justify="left", title_style="")
    kept = [row for row in cells if row[0] or any(row[at] != "-" for at in columns[1:])]
    columns = [at for at in columns if any(row[at] != "-" for row in kept)]
    has_many = sum(bool(row[0]) for row in cells) > 1
    for at in columns:
        words = head[at] in ("variant", "verdict")
        longest = max(len(row[at]) for row in kept)
        is_short = words or longest <= SHORT
        width = longest if is_short and not words else SHORT
        text = _lines(head[at], width) if is_short else head[at]
        shown.add_column(text, justify="left" if words else "right", overflow="fold", no_wrap=is_short)
    for row in kept:
        if row[0] and has_many:
            shown.add_section()
            name = _lines(row[0].replace("_", "_ "), SHORT).replace("_ ", "_")
            shown.add_row(f"[bold]{escape(name)}[/bold]")
        if any(row[at] != "-" for at in columns[1:]):
            variant = _lines(row[1], SHORT) if is_narrow else row[1]
            shown.add_row(escape(variant), *(escape(row[at]) for at in columns[1:]))
    return shown


def _lines(text: str, width: int) -> str:
    return textwrap.fill(text, width, break_long_words=False)


def planned(jobs: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], *, as_json: bool) -> None:
    """Say what a run would take: ``jobs`` hold a set each, with the plan of each variant."""
    if as_json:
        typer.echo(to_json({"sets": list(jobs), "settings": settings}))
        return
    for one in jobs:
        plans(one["plan"], {key: value for key, value in one.items() if key != "plan"}, as_json=False)
