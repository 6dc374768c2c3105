"""The result of ``vitprobe reproduce`` on disk: a folder an item, in it one a model; written, drawn again."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitprobe import results
from vitprobe.cli.session import unique
from vitprobe.reproduction.base import Drawn, Found, Item
from vitprobe.reproduction.run import Task
from vitprobe.reproduction.table import TABLE, Entry
from vitprobe.reproduction.tables import markdown, table

SCHEMA = "vitprobe.reproduce/1"
TEXT = "table.md"


@dataclass(frozen=True)
class Part:
    """Hold what one item found of one model on one set of images."""

    title: str
    slug: str
    found: Found
    stored: results.StoredResult


def load_item(entry: Entry) -> Item:
    """Import an item's module and return it."""
    return importlib.import_module(f"vitprobe.reproduction.{entry.module}").ITEMS[entry.name]


def save_item(task: Task, parts: Sequence[Part], folder: Path, formats: tuple[str, ...]) -> None:
    """Write one item: a result for each model, the comparison above them, and the figures of all."""
    folder.mkdir()
    slugs = unique([part.slug for part in parts])
    for part, name in zip(parts, slugs, strict=True):
        inner = folder / name if len(parts) > 1 else folder
        inner.mkdir(exist_ok=True)
        if len(parts) > 1:
            results.save(inner, part.stored)
    draw([(part.title, part.found) for part in parts], folder, formats, task.item)
    (folder / TEXT).write_text(markdown(task.entry.name, _table(task.entry.name, parts)), encoding="utf-8")
    if len(parts) == 1:
        results.save(folder, parts[0].stored)
        return
    first = parts[0].stored
    provenance = {**first.provenance}
    for key in ("model", "inputs"):
        provenance[key] = [part.stored.provenance[key] for part in parts]
    summaries = [{**part.stored.summary, "folder": name} for part, name in zip(parts, slugs, strict=True)]
    results.save(folder, results.StoredResult(SCHEMA, provenance, first.settings, summaries, {}))


def draw(drawn: Drawn, folder: Path, formats: tuple[str, ...], item: Item) -> list[Path]:
    """Draw every figure of an item into a folder; returns their paths."""
    if not formats:
        return []
    from vitprobe.plots import write

    return [path for stem, figure in item.draw(drawn).items() for path in write(figure, folder / stem, formats)]


def redraw(folder: Path, stored: results.StoredResult, formats: tuple[str, ...]) -> list[Path]:
    """Draw a stored item, or all items of a stored reproduction, again; returns the paths."""
    if "items" in stored.settings:
        folders = [folder / name for name in stored.settings["items"]]
        return [path for one in folders for path in redraw(one, results.load(one), formats)]
    item = load_item(TABLE[stored.settings["item"]])
    several = isinstance(stored.summary, list)
    parts = [results.load(folder / one["folder"]) for one in stored.summary] if several else [stored]
    drawn = [(part.summary["title"], Found.read_back(part.summary, part.arrays)) for part in parts]
    return draw(drawn, folder, formats, item)


def _table(name: str, parts: Sequence[Part]) -> dict[str, Any]:
    return table(TABLE[name], [(part.title, part.stored.summary["model"], part.found) for part in parts])


def save_whole(
    parts: Mapping[str, Sequence[Part]],
    left_out: Mapping[str, Sequence[str]],
    skipped: Sequence[Any],
    settings: Mapping[str, Any],
    whole: Path,
) -> dict[str, Any]:
    """Write the result above all items, and return its summary: a table an item, published numbers beside."""
    tables = {name: _table(name, own) for name, own in parts.items()}
    summary = {"items": tables, "left_out": dict(left_out), "skipped": list(skipped)}
    every = [part.stored for own in parts.values() for part in own]
    models = {stored.summary["model"]: stored.provenance["model"] for stored in every}
    inputs = {"name": sorted({stored.provenance["inputs"]["name"] for stored in every})}
    provenance = {**every[0].provenance, "model": list(models.values()), "inputs": inputs}
    results.save(whole, results.StoredResult(SCHEMA, provenance, {**settings, "items": list(tables)}, summary, {}))
    return summary
