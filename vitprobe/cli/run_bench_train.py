"""The body of ``vitprobe bench --train``."""

from dataclasses import asdict
from typing import Any

import typer
from rich.table import Table

from vitprobe import backbones
from vitprobe.backbones.base import Backbone
from vitprobe.backbones.create import SMALL, create
from vitprobe.cli import echo, parse
from vitprobe.cli.run_bench import BenchOptions, beside, setting
from vitprobe.errors import ArgumentError, ExitCode
from vitprobe.inputs.augment import supervised_transform
from vitprobe.inputs.labels import open_labelled
from vitprobe.inputs.stream import ItemStream
from vitprobe.results import to_json
from vitprobe.training.bench import CLASSES, bench_training
from vitprobe.training.recipes import resolve


def run(asked: BenchOptions, num_registers: int) -> ExitCode:
    """Run ``bench --train``. Raises a `VitprobeError` where nothing could be done."""
    if num_registers < 1:
        raise ArgumentError(f"got --num-reg {num_registers}; give 1 or more, which is set against none")
    given = parse.one_each(asked.weights, asked.models)
    tables = [_table(asked, name, weights, num_registers) for name, weights in zip(asked.models, given, strict=True)]
    if asked.json:
        typer.echo(to_json(tables[0] if len(tables) == 1 else tables))
        return ExitCode.DONE
    for table in tables:
        echo.stdout().print(_drawn(table))
    return ExitCode.DONE


def _table(asked: BenchOptions, name: str, weights: str, num_registers: int) -> dict[str, Any]:
    device = parse.device(asked.device)
    config = resolve(
        {
            "batch_size": asked.batch_size,
            "steps": 10**6,
            "schedule": "constant",
            "warmup": 0,
            "lr": 1e-4,
            "precision": asked.dtype,
            "device": "cpu" if device == "cpu" else "auto",
            "compile": asked.compile,
            "seed": asked.seed,
        }
    )
    size = parse.image_size(asked.image_size)

    def make() -> Backbone:
        if name in SMALL:
            return create(name, image_size=size, seed=asked.seed)
        return backbones.load(name, weights=weights, image_size=size, seed=asked.seed)

    model = make()
    stream = None
    if asked.data is not None:
        transform = supervised_transform("crop", model.spec.image_size, model.transform.mean, model.transform.std)
        found = open_labelled([asked.data], need="nothing", limit=asked.limit, seed=asked.seed)
        stream = _Labelled(found, transform, batch_size=asked.batch_size, seed=asked.seed, workers=asked.workers)
    with echo.progress(model.spec.title, asked.rounds) as advance:
        rows = bench_training(
            make,
            config,
            num_registers=num_registers,
            rounds=asked.rounds,
            stream=stream,
            against=asked.against and (asked.against, lambda: beside(asked, model.spec.image_size, "cpu")),
            on_round=lambda: advance(1),
        )
    return setting(asked, model, device) | {"rows": [asdict(row) for row in rows]}


class _Labelled(ItemStream):
    """Give images without labels some, since only the time counts."""

    def batches(self, start: int, stop: int) -> Any:
        for batch in super().batches(start, stop):
            yield type(batch)(batch.views, batch.indices, batch.indices % CLASSES, None, {})


def _drawn(one: dict[str, Any]) -> Table:
    compiled = ", compiled" if one["compile"] else ""
    setting = f"{one['model']}, {one['device']}, {one['dtype']}{compiled}, batch {one['batch']}, {one['tokens']} tokens"
    title = f"training steps: {setting}, {one['rounds']} rounds"
    table = Table(title=title, title_justify="left", title_style="")
    table.add_column("way")
    for name in ("ratio", "quartiles", "images/s", "GFLOPs an image", "of matrix peak", "peak MB"):
        table.add_column(name, justify="right")
    for row in one["rows"]:
        low, high = row["quartiles"]
        memory = "-" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}"
        shown = (f"{row['ratio']:.3f}", f"{low:.3f} to {high:.3f}", f"{row['images_per_s']:.2f}")
        table.add_row(row["way"], *shown, f"{row['gflops']:.2f}", f"{row['of_peak']:.0%}", memory)
    return table
