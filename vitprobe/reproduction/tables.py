"""Lay out what an item found of several models as one table, with published numbers in the last column."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vitprobe.published import beside
from vitprobe.reproduction.base import Found
from vitprobe.reproduction.table import Entry


def table(entry: Entry, parts: Sequence[tuple[str, str, Found]]) -> dict[str, Any]:
    """Return an item's table as JSON can hold it; ``parts`` are (title, model, what was found) of its columns.

    ``rows`` has a row for each thing measured, in the order of the first model that has it, with a cell for each model
    (None where it was not measured) and what was ``published``: of the models shown where there is such, else of all.
    """
    order: dict[tuple[str, str, str], None] = {}
    cells: list[dict[tuple[str, str, str], dict[str, Any]]] = []
    for _, _, found in parts:
        own = {(row.what, row.unit, row.key): asdict(row) for row in found.rows}
        cells.append(own)
        order |= dict.fromkeys(own)
    rows = []
    for what, unit, key in order:
        stated = [one for _, model, _ in parts for one in beside(entry.name, key, model)]
        kept = ("value", "interval", "spread", "number")
        row_cells = [own.get((what, unit, key)) for own in cells]
        rows.append(
            {
                "what": what,
                "unit": unit,
                "cells": [None if cell is None else {name: cell[name] for name in kept} for cell in row_cells],
                "published": [asdict(one) for one in dict.fromkeys(stated)],
            }
        )
    return {
        "paper": entry.paper,
        "title": entry.title,
        "columns": [title for title, _, _ in parts],
        "models": [model for _, model, _ in parts],
        "rows": rows,
        "notes": list(dict.fromkeys(note for title, _, found in parts for note in _notes(title, found))),
    }


def _notes(title: str, found: Found) -> list[str]:
    """Return what an item says beside its rows: the claims that it tested, with the answer for a model, and notes."""
    said = found.summary
    claims, answers = (said.get(name, {}) for name in ("claims", "answers"))
    if "claim" in said:
        claims, answers = {"": said["claim"]}, {"": said["answer"]}
    tested = [f"{title}: {claims[name]}: {answer}" for name, answer in answers.items() if name in claims]
    return [*tested, *([said["note"]] if "note" in said else []), *said.get("notes", ())]
