"""The body of ``vitprobe reproduce``: resolve what is asked, measure, save, draw, echo."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vitprobe import results
from vitprobe.cli import echo_reproduce, parse
from vitprobe.cli.reproduce_result import load_item, save_item, save_whole
from vitprobe.cli.reproduce_work import Options, Work
from vitprobe.cli.session import alone, slug
from vitprobe.errors import ArgumentError, ExitCode, InputError, Stopped
from vitprobe.inputs.truths import layout_help
from vitprobe.probes.outliers import OutlierRule
from vitprobe.reproduction.base import fill
from vitprobe.reproduction.run import Task
from vitprobe.reproduction.table import TABLE, Entry, find

SMALL = {"steps": 90, "eval_every": 30, "keep": 6, "num_held_out": 128, "num_bank": 256}
"""What is trained where fig4b or fig8 is asked for without --run."""
SMALL_SWEEP = {"fig8": [1, 2, 4, 8, 16], "fig4b": [4]}


def run(options: Options) -> int:
    """Run ``reproduce``; returns the exit code. Raises a `VitprobeError` where nothing could be done."""
    if not options.items:
        echo_reproduce.listed(layout_help(), as_json=options.json)
        return ExitCode.DONE
    alone("reproduce", options.device)
    entries = named(options.items)
    tasks = with_options(entries, options.choices)
    if options.block == "all":
        raise ArgumentError("got --block all; an item looks at one block: give its number, or last")
    if options.run is not None and not any("run" in entry.needs for entry in entries):
        raise ArgumentError(f"got --run {options.run}, which no item asked for reads; leave it out, or ask for fig8")
    formats, out = parse.formats(options.formats), _out(options)
    OutlierRule.parse(options.rule), parse.device(options.device), parse.autocast(options.dtype)
    results.check_free(out)
    with results.result_directory(out) as whole, _features(whole, keep=options.features) as folder:
        work = Work(options, tasks, folder)
        work.run = _trained(options, [task.entry.name for task in tasks], whole)
        for data in options.data:
            work.measure(data)
        if not work.parts:
            raise InputError("; ".join(f"{item}: {why}" for item, each in work.left_out.items() for why in each))
        for task in tasks:
            if task.entry.name in work.parts:
                save_item(task, work.parts[task.entry.name], whole / task.entry.name, formats)
        shared = {key: getattr(options, key) for key in ("models", "data", "limit", "rule", "block", "choices")}
        summary = save_whole(work.parts, work.left_out, work.skipped, shared, whole)
    echo_reproduce.found(summary, out, as_json=options.json)
    return ExitCode.PARTIAL if summary["skipped"] else ExitCode.DONE


def named(items: Sequence[str]) -> tuple[Entry, ...]:
    """Return the items that were asked for, in the order of the table. Raises `ArgumentError` for another name."""
    chosen = set()
    for text in items:
        entries = find(text)
        if not entries:
            raise ArgumentError(f"got item {text!r}; allowed are {', '.join(TABLE)}, fig4, table2 and all")
        chosen |= {entry.name for entry in entries}
    return tuple(entry for name, entry in TABLE.items() if name in chosen)


def with_options(entries: Sequence[Entry], choices: Sequence[str]) -> list[Task]:
    """Give each item its options: ``ITEM.KEY=VALUE``, or ``KEY=VALUE`` for all items that have it.

    Raises `ArgumentError` for a choice that no item asked for has.
    """
    items = {entry.name: load_item(entry) for entry in entries}
    has = {name: () if i.options is None else tuple(f.name for f in fields(i.options)) for name, i in items.items()}
    asked: dict[str, dict[str, Any]] = {name: {} for name in items}
    for choice in choices:
        left, equals, value = choice.partition("=")
        item, dot, key = left.strip().rpartition(".")
        targets = [name for name in items if (not dot or name == item) and key in has[name]]
        if not equals or not targets:
            known = "; ".join(f"{name}: {', '.join(keys)}" for name, keys in has.items() if keys)
            raise ArgumentError(f"got --set {choice!r}; allowed is [ITEM.]KEY=VALUE of {known or 'items with options'}")
        for name in targets:
            asked[name] |= parse.pairs([f"{key}={value}"])
    return [Task(entry, items[entry.name], fill(items[entry.name].options, asked[entry.name])) for entry in entries]


def _out(options: Options) -> Path:
    plain = "+".join(slug(name) for name in options.items)[:60]
    return options.out or Path("runs") / "reproduce" / f"{plain}-{datetime.now():%Y%m%d-%H%M%S-%f}"


@contextmanager
def _features(whole: Path, *, keep: bool) -> Iterator[Path]:
    """Give a folder for features: beside the results, or one that goes when they are done."""
    if keep:
        (whole / "features").mkdir()
        yield whole / "features"
        return
    with TemporaryDirectory(prefix=f"{whole.name}.features.", dir=whole.parent) as folder:
        yield Path(folder)


def _trained(options: Options, items: Sequence[str], whole: Path) -> Path | None:
    """Return the run that fig4b and fig8 read; trains a small one where they are asked for without it."""
    wanted = [name for name in SMALL_SWEEP if name in items]
    if options.run is not None or not wanted:
        return options.run
    from vitprobe.cli.run_train import run as train

    numbers = sorted({number for name in wanted for number in SMALL_SWEEP[name]})
    asked = SMALL | {"num_reg": numbers, "control": True, "data": ["scenes"], "seed": options.seed}
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        try:
            train(asked, out=whole / "run", resume=None, dry_run=False, formats=(), as_json=True)
        except Stopped as stopped:  # its checkpoint goes with the unfinished result
            raise Stopped("interrupted; nothing was written", stopped.number) from None
    return whole / "run"
