"""What ``vitprobe finetune`` found as a table: the same cells for a terminal and for ``table.md``."""

from collections.abc import Mapping, Sequence
from typing import Any

TUNED = ("lr", "accuracy", "against the first, points", "ECE", "if calibrated, up to", "NLL")
EITHER = ("k-NN, frozen", "linear, frozen", "outlier patches", "verdict")
"""Columns of what is fine-tuned alone, and of what the model before has too."""
REAL = "ReaL"
INTERVALS = "intervals are of 95 %, over held-out images; one training of each says nothing of the spread"


def table(summaries: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return head and cells: for each set the model before, then its variants. Intervals are of 95 %."""
    has_real = any(one["real"] for summary in summaries for one in summary["variants"])
    head = ["set", "variant", *TUNED[:2], *([REAL] if has_real else []), *TUNED[2:], *EITHER]
    cells = []
    for summary in summaries:
        before = ["before fine-tuning", "-", "-", *(["-"] * has_real), "-", "-", "-", "-", *_after(summary["before"])]
        cells.append([summary["set"], *before])
        for one in summary["variants"]:
            ece = one["reliability"]["ece"]
            real = [_share(one["real"]["accuracy"], one["real"]["interval"]) if one["real"] else "-"] * has_real
            difference = one["difference"]
            row = [
                one["title"],
                f"{one['lr']:g}",
                _share(one["accuracy"], one["accuracy_interval"]),
                *real,
                "-" if difference is None else _points(difference),
                _error(ece, one["reliability"]),
                f"{100 * ece['calibrated_most']:.1f} %",
                f"{one['reliability']['nll']:.3f}",
                *_after(one),
            ]
            cells.append(["", *row])
    return head, cells


def _after(one: Mapping[str, Any]) -> list[str]:
    """Return the cells that the model before has too: frozen features, norms."""
    frozen, norms = one["frozen"] or {}, one["norms"]
    found = [_share(frozen[key]["accuracy"], frozen[key]["interval"]) if frozen else "-" for key in ("knn", "linear")]
    return [*found, f"{100 * norms['outlier_fraction']:.2f} %", norms["verdict"]]


def notes(summary: Mapping[str, Any]) -> list[str]:
    """Say how one set was fine-tuned to, and what is not as published, a line each."""
    sizes = summary["sizes"]
    old, new = (" x ".join(map(str, sizes[key])) for key in ("from", "to"))
    change = f"from {old} px, {sizes['tokens_from']:,} tokens, to {new} px, {sizes['tokens_to']:,} tokens"
    rates = ", ".join(f"{rate:g}" for rate in summary["rates"])
    chosen = f"of {rates}, by {summary['development']:.3g} of the training images" if summary["development"] else rates
    lines = [
        f"{summary['set']}: {summary['num_train']:,} images to train on, {summary['num_held_out']:,} held out "
        f"({summary['held_out']}), {summary['num_classes']:,} classes; always the most frequent class: "
        f"{_share(summary['chance'], summary['chance_interval'])}",
        f"images {change} ({sizes['positions']}, patches of {sizes['patch'][0]} px)"
        if sizes["from"] != sizes["to"]
        else f"images as the model had them: {new} px, {sizes['tokens_to']:,} tokens",
        f"{summary['steps']:,} steps of {summary['batch_size']} images, augmentation {summary['augment']}, "
        f"rate {chosen}",
        f"recipe {summary['recipe']}: {'; '.join(summary['departures']) or 'as published'}",
    ]
    for one in summary["variants"]:
        if one["tried"]:
            tried = ", ".join(f"{each['lr']:g}: {_tried(each)}" for each in one["tried"])
            rates = [each["lr"] for each in one["tried"]]
            at_end = "; the best is the end of those tried" if one["lr"] in (min(rates), max(rates)) else ""
            lines.append(f"{one['title']}, rates tried: {tried}{at_end}")
    return lines


def _tried(one: Mapping[str, Any]) -> str:
    return "not finite" if one["accuracy"] is None else _share(one["accuracy"], one["interval"])


def vtab_lines(vtab: Mapping[str, Any] | None) -> list[str]:
    """Say VTAB's means, a line for each variant."""
    lines = []
    for title, found in (vtab or {}).items():
        groups = ", ".join(
            f"{name} {_plain(group['mean'])} ({group['num_tasks']} of {group['of']} tasks)"
            for name, group in found["groups"].items()
        )
        total = _plain(found["vtab"]) if found["vtab"] is not None else f"none: {found['absent']}"
        lines.append(f"{title}: {groups}; VTAB-1k: {total}")
    return lines


def markdown(summaries: Sequence[Mapping[str, Any]], vtab: Mapping[str, Any] | None) -> str:
    """Write the table as Markdown, with its notes."""
    head, cells = table(summaries)
    lines = [f"**fine-tuning of {summaries[0]['model']}**", "", f"| {' | '.join(map(_escaped, head))} |"]
    lines += ["|" + " --- |" * 2 + " ---: |" * (len(head) - 3) + " --- |"]
    lines += [f"| {' | '.join(map(_escaped, row))} |" for row in cells]
    said = [note for one in summaries for note in notes(one)] + vtab_lines(vtab) + [INTERVALS]
    lines += ["", *(f"- {one}" for one in said)]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _plain(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _share(value: float, interval: Sequence[float]) -> str:
    return f"{100 * value:.1f} % ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def _error(ece: Mapping[str, Any], reliability: Mapping[str, Any]) -> str:
    if reliability.get("too_few"):
        return f"{100 * ece['value']:.1f} %"
    return _share(ece["value"], ece["interval"])


def _points(difference: Mapping[str, Any]) -> str:
    value, interval, number = (difference[key] for key in ("value", "interval", "num_differ"))
    if not number:
        return "right on the same images"
    if interval is None:
        return f"{100 * value:+.1f} ({number} images differ)"
    return f"{100 * value:+.1f} ({100 * interval[0]:+.1f} to {100 * interval[1]:+.1f})"
