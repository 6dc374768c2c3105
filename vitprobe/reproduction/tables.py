"""Lay out what an item found of several models as one table, with published numbers in the last column."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from vitprobe.backbones.zoo import ALIASES
from vitprobe.published import beside
from vitprobe.reproduction.base import Found
from vitprobe.reproduction.table import Entry

MOST_PUBLISHED = 4
"""Published numbers shown beside a row; the result has all of them."""


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
        stated = [one for _, model, _ in parts for one in beside(entry.name, key, _whole_name(model))]
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
        "notes": _all_notes(parts),
    }


def _whole_name(model: str) -> str:
    """Return a model's name with its size: ``dinov2-l14`` of ``dinov2``."""
    return ALIASES[model].alias if model in ALIASES else model


def _all_notes(parts: Sequence[tuple[str, str, Found]]) -> list[str]:
    """Return the notes of all models, each once; a note of some of them alone says of which."""
    of: dict[str, list[tuple[str, str]]] = {}
    for title, model, found in parts:
        for note in dict.fromkeys(_notes(title, found)):
            of.setdefault(note, []).append((title, model))
    return [
        note
        if len(own) == len(parts) or any(name in note for one in own for name in one)
        else f"{' and '.join(title for title, _ in own)}: {note}"
        for note, own in of.items()
    ]


def _notes(title: str, found: Found) -> list[str]:
    """Return what an item says beside its rows: the claims that it tested, with the answer for a model, and notes."""
    said = found.summary
    claims, answers = (said.get(name, {}) for name in ("claims", "answers"))
    if "claim" in said:
        claims, answers = {"": said["claim"]}, {"": said["answer"]}
    tested = [f"{title}: {claims[name]}: {answer}" for name, answer in answers.items() if name in claims]
    return [*tested, *([said["note"]] if "note" in said else []), *said.get("notes", ())]


def label(row: Mapping[str, Any]) -> str:
    """Return what a row is of, with its unit where the words do not name it."""
    is_said = row["unit"] == "share" or row["unit"] in row["what"]
    return row["what"] if is_said else f"{row['what']}, {row['unit']}"


def cell(found: Mapping[str, Any] | None, unit: str) -> str:
    """Write a number with its interval or its spread; a dash where nothing was measured."""
    if found is None or found["value"] is None:
        return "-"
    text, spread = _number(found["value"], unit), found["spread"]
    if spread is not None and spread == spread:
        text += f" ±{_number(spread, unit)}"
    if found["interval"] is not None and None not in found["interval"]:
        text += f" ({' to '.join(_number(end, unit) for end in found['interval'])})"
    return text


def stated(every: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write published numbers, a line each, with their model and how far to trust them."""
    lines = [
        f"{one['bound']}{' ' * bool(one['bound'])}{_number(one['value'], one['unit'])} {one['model']} [{one['trust']}]"
        for one in every[:MOST_PUBLISHED]
    ]
    return lines + ([f"and {len(every) - MOST_PUBLISHED} more"] if len(every) > MOST_PUBLISHED else [])


def markdown(name: str, item: Mapping[str, Any]) -> str:
    """Write an item's table as Markdown, with its notes and the sources of what was published."""
    head = ["", *item["columns"], "published"]
    lines = [f"**{name}** ({item['paper']}): {item['title']}", ""]
    lines += [f"| {' | '.join(map(_escaped, head))} |", f"| --- |{' ---: |' * len(item['columns'])} --- |"]
    for row in item["rows"]:
        cells = [cell(one, row["unit"]) for one in row["cells"]]
        parts = [label(row), *cells, "<br>".join(stated(row["published"]))]
        lines.append(f"| {' | '.join(map(_escaped, parts))} |")
    sources = dict.fromkeys(f"{one['model']}: {one['source']}" for row in item["rows"] for one in row["published"])
    lines += [""] * bool(item["notes"]) + [f"- {note}" for note in item["notes"]]
    lines += ["", "Published: " + "; ".join(sources) + "."] if sources else []
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _number(value: float, unit: str) -> str:
    if unit == "share":
        return f"{value:.1%}" if value == 0 or abs(value) >= 0.001 else f"{value:.2%}"
    is_count = float(value).is_integer() and 1e4 <= abs(value) < 1e9
    return str(round(value)) if is_count else f"{value:.4g}"
