"""What a person sees of ``train-registers`` while it runs, and of its plan."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vitprobe.cli.echo import stdout
from vitprobe.results import to_json


@contextmanager
def training(title: str, steps: int, *, shown: bool) -> Iterator[Callable[[Any], None]]:
    """Show a bar with loss, outlier fraction and time left on stderr, or nothing where it is no terminal."""
    console = Console(stderr=True)
    text = TextColumn("loss {task.fields[loss]}  outliers {task.fields[outliers]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), text, TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task(title, total=steps, loss="-", outliers="-")

        def show(done: Any) -> None:
            loss = "-" if math.isnan(done.loss) else f"{done.loss:.3f}"
            share = "-" if math.isnan(done.outlier_fraction) else f"{done.outlier_fraction:.2%}"
            bar.update(task, completed=done.step, loss=loss, outliers=share)

        yield show


def plans(found: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], *, as_json: bool) -> None:
    """Say what a training would take, on stdout."""
    if as_json:
        typer.echo(to_json({"plan": list(found), "settings": settings}))
        return
    console = stdout()
    table = Table(title="the plan: nothing was trained", title_justify="left", title_style="")
    table.add_column("variant")
    for name in ("parameters", "trained", "GFLOPs an image", "to train", "memory", "of it activations"):
        table.add_column(name, justify="right")
    for one in found:
        flops = [f"{one[key] / 1e9:.3g}" for key in ("forward_flops", "training_flops")]
        memory = [_bytes(one[key]) for key in ("total_bytes", "activation_bytes")]
        table.add_row(one["title"], f"{one['parameters']:,}", f"{one['trainable_parameters']:,}", *flops, *memory)
    console.print(table)
    total = sum(one["training_flops"] for one in found) * settings["steps"] * settings["batch_size"]
    console.print(
        f"{settings['steps']:,} steps of {settings['batch_size']:,} images each: {total:.3g} FLOPs in all; "
        "memory is an estimate, of one process",
        highlight=False,
    )
    for name, value in settings.items():
        value = ", ".join(map(str, value)) if isinstance(value, tuple | list) else value
        console.print(f"  {name}: {value}", highlight=False, markup=False)


def _bytes(number: float) -> str:
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"
