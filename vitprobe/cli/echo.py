"""What a person sees: tables on stdout, progress and warnings on stderr."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vitprobe.results import to_json

PIPE_WIDTH = 140


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on stderr, or nothing where it is no terminal; gives a function that advances it."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda number: bar.advance(task, number)


def skipped(parts: Sequence[Any]) -> None:
    """Name on stderr what could not be read by any of several models, once."""
    every = [one for part in parts for one in part.stored.summary["skipped"]]
    not_read([one for i, one in enumerate(every) if one not in every[:i]])


def not_read(missing: Sequence[dict[str, str]]) -> None:
    """Name on stderr what could not be read."""
    for one in missing:
        typer.echo(f"skipped {one['name']}: {one['reason']}", err=True)
    if missing:
        inputs = f"{len(missing)} input{'s' * (len(missing) > 1)}"
        typer.echo(f"{inputs} could not be read, the rest was measured", err=True)


def summaries(parts: Sequence[Any]) -> None:
    """Print the summary, or the list of several, as JSON and nothing else."""
    found = [part.stored.summary for part in parts]
    typer.echo(to_json(found[0] if len(found) == 1 else found))


def stdout() -> Console:
    """Return a console for answers; as wide as its terminal, or wide enough for a table in a pipe."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)


def norms(parts: Sequence[Any], out: Path, *, as_json: bool, all_rules: bool, all_blocks: bool) -> None:
    """Say what ``norms`` found."""
    skipped(parts)
    if as_json:
        summaries(parts)
        return
    console = stdout()
    console.print(_verdicts([part.stored.summary for part in parts], [part.title for part in parts]))
    for part in parts:
        summary = part.stored.summary
        console.print(
            f"[bold]{escape(part.title)}[/bold]: {'; '.join(summary['evidence']['reasons'])}", highlight=False
        )
        _hint(console, summary)
        if all_rules:
            console.print(_rules(summary))
        if all_blocks:
            console.print(_blocks(summary))
    written(console, out)


def attn_maps(parts: Sequence[Any], out: Path, *, as_json: bool) -> None:
    """Say what ``attn-maps`` found."""
    skipped(parts)
    if as_json:
        summaries(parts)
        return
    console = stdout()
    table = Table(title="attention after softmax, over all images", title_justify="left", title_style="")
    for name in ("model", "query", "block", "entropy", "of at most", "on CLS and registers", "on outliers", "outliers"):
        table.add_column(name, justify="left" if name in ("model", "query") else "right", overflow="fold")
    for part in parts:
        summary = part.stored.summary
        for i, block in enumerate(summary["blocks"]):
            shares = [_mean(summary[key][i]) for key in ("prefix_share", "outlier_share")]
            table.add_row(
                escape(part.title) if i == 0 else "",
                summary["query"] if i == 0 else "",
                str(block),
                f"{_mean(summary['entropy_bits'][i]):.2f} bit",
                f"{summary['entropy_bits_uniform']:.2f}",
                *(f"{share:.1%}" for share in shares),
                f"{summary['outlier_fraction']:.2%}" if i == len(summary["blocks"]) - 1 else "",
            )
    console.print(table)
    written(console, out)


def calibrate(summary: dict[str, Any], out: Path, *, as_json: bool) -> None:
    """Say whether the instrument is right."""
    if as_json:
        typer.echo(to_json(summary))
        return
    console = stdout()
    table = Table(title="what each rule found of planted tokens", title_justify="left", title_style="")
    for name in ("subject", "rule", "cutoff", "planted", "found", "precision", "recall", "false alarms"):
        table.add_column(name, justify="left" if name in ("subject", "rule") else "right", overflow="fold")
    last = ""
    for line in summary["detections"]:
        if line["subject"] != last and last:
            table.add_section()
        shares = ["-" if line[key] is None else f"{line[key]:.3f}" for key in ("precision", "recall")]
        subject = "" if line["subject"] == last else escape(line["subject"])
        counts = (_number(line["cutoff"]), str(line["planted"]), str(line["found"]))
        table.add_row(subject, line["rule"], *counts, *shares, f"{line['false_alarms']:.2%}")
        last = line["subject"]
    console.print(table)
    for check in summary["checks"]:
        mark = "ok  " if check["passed"] else "[bold]OFF[/bold] "
        said = f"{escape(check['subject'])}: {check['what']} ({escape(check['detail'])})"
        console.print(f"{mark} {said}", highlight=False)
    good = summary["num_checks"] - len(summary["failed"])
    verdict = "the instrument is right" if summary["passed"] else "[bold]the instrument is off[/bold]"
    console.print(f"{verdict}: {good} of {summary['num_checks']} checks passed", highlight=False)
    written(console, out)


def bench(tables: list[dict[str, Any]], *, as_json: bool) -> None:
    """Say what recording costs."""
    if as_json:
        typer.echo(to_json(tables[0] if len(tables) == 1 else tables))
        return
    console = stdout()
    for one in tables:
        compiled = ", compiled" if one["compile"] else ""
        setting = (
            f"{one['model']}, {one['device']}, {one['dtype']}{compiled}, batch {one['batch']}, {one['tokens']} tokens"
        )
        table = Table(title=f"{setting}, {one['rounds']} rounds", title_justify="left", title_style="")
        table.add_column("way")
        for name in ("ratio", "quartiles", "peak MB", "equal bits", "images/s"):
            table.add_column(name, justify="right")
        for row in one["rows"]:
            low, high = row["quartiles"]
            bits = {True: "yes", False: "no", None: "-"}[row["equal_bits"]]
            peak = "-" if row["peak_mb"] is None else f"{row['peak_mb']:.1f}"
            shown = (f"{row['ratio']:.3f}", f"{low:.3f} to {high:.3f}", peak, bits, f"{row['images_per_s']:.2f}")
            table.add_row(row["way"], *shown)
        console.print(table)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def written(console: Console, out: Path) -> None:
    """Say where the result is."""
    console.print(f"written to {escape(str(out))}/", highlight=False, soft_wrap=True)


def _verdicts(summaries: list[dict[str, Any]], titles: list[str]) -> Table:
    first = summaries[0]
    where = "after the final norm" if first["norm_point"] == "final_norm" else "before the final norm"
    table = Table(title=f"token norms of patches, {where}", title_justify="left", title_style="")
    for name in (
        "model",
        "images",
        "block",
        "median",
        "p99",
        "max",
        "cutoff",
        "outliers",
        "95 % interval",
        "from block",
    ):
        table.add_column(name, justify="left" if name == "model" else "right", overflow="fold")
    table.add_column("verdict", style="bold")
    for summary, title in zip(summaries, titles, strict=True):
        norm = [f"{summary['norm'][key]:.4g}" for key in ("median", "p99", "max")]
        low, high = summary["outlier_fraction_ci"]
        table.add_row(
            escape(title),
            str(summary["num_images"]),
            str(summary["block"]),
            *norm,
            f"{_number(summary['cutoff'])} ({summary['rule']})",
            f"{summary['outlier_fraction']:.2%}",
            "-" if low is None else f"{low:.2%} to {high:.2%}",
            _number(summary["onset_block"]),
            summary["verdict"],
        )
    return table


def _hint(console: Console, summary: dict[str, Any]) -> None:
    """Say where to look when the answer lies elsewhere."""
    others = [line["block"] for line in summary["blocks"] if line["bimodal"] and line["block"] != summary["block"]]
    if summary["norm_point"] == "final_norm":
        console.print("  the final norm hides artifacts: leave --after-final-norm out to find them", highlight=False)
    elif not summary["bimodal"] and others:
        console.print(f"  but norms have two modes at block {_list(others)}: see --block all", highlight=False)
    if summary["evidence"]["centred_bimodal"] and not summary["bimodal"]:
        console.print("  but without the mean token they have two modes: a common vector hides them", highlight=False)


def _rules(summary: dict[str, Any]) -> Table:
    table = Table(title="all rules", title_justify="left", title_style="")
    table.add_column("rule")
    table.add_column("cutoff", justify="right")
    table.add_column("outliers", justify="right")
    for line in summary["all_rules"]:
        table.add_row(line["rule"], _number(line["cutoff"]), f"{line['outlier_fraction']:.2%}")
    return table


def _blocks(summary: dict[str, Any]) -> Table:
    table = Table(title="all blocks", title_justify="left", title_style="")
    for name in ("block", "median", "p99", "max", "cutoff", "outliers", "modes"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for line in summary["blocks"]:
        norm = [f"{line['norm'][key]:.4g}" for key in ("median", "p99", "max")]
        share = f"{line['outlier_fraction']:.2%}"
        modes = "two" if line["bimodal"] else "one"
        table.add_row(str(line["block"]), *norm, _number(line["cutoff"]), share, modes, line.get("verdict", ""))
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
