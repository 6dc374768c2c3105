"""What a person sees of ``inspect``: a column a model, each number with its control beside it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from vitprobe.cli import echo

Row = tuple[str, Callable[[Mapping[str, Any]], str]]
"""What a row says on its left, and its cell of the summary of a part."""
NONE = "-"
LIKENESS = "attention: more local than permuted is no proof of positions; near patches of an image are alike"


SEEN, FEW = ("attention", "translation"), 6
"""What is measured on images; with fewer images than that, bootstrap intervals hold the truth far too rarely."""


def inspect(parts: Sequence[Any], out: Path, *, as_json: bool) -> None:
    """Say what ``inspect`` found."""
    echo.skipped(parts)
    if as_json:
        echo.summaries(parts)
        return
    console = echo.stdout()
    summaries = [part.stored.summary for part in parts]
    table = Table(
        title="what is known of 2-D structure (in brackets: the control)", title_justify="left", title_style=""
    )
    table.add_column("")
    for part in parts:
        table.add_column(escape(part.title), overflow="fold")
    for name, (title, rows) in TABLES.items():
        found = [summary.get(name) for summary in summaries]
        if not any(found):
            continue
        table.add_row(f"[bold]{title}[/bold]", *(escape(_head(one)) for one in found))
        for label, cell in rows:
            cells = [NONE if one is None or _is_absent(one) else cell(one) for one in found]
            if set(cells) != {NONE}:
                inset = 2 + len(label) - len(label.lstrip())
                table.add_row(Padding(label.strip(), (0, 0, 0, inset)), *(escape(text) for text in cells))
        table.add_section()
    console.print(table)
    if any(summary.get("attention") for summary in summaries):
        console.print(LIKENESS, style="dim", highlight=False)
    seen = [found for summary in summaries for name in SEEN if (found := summary.get(name))]
    fewest = min((found["num_images"] for found in seen if "num_images" in found), default=FEW)
    if fewest < FEW:
        console.print(
            f"intervals over {fewest} images are too narrow; give {FEW} or more", style="dim", highlight=False
        )
    for part in parts:
        for name in TABLES:
            found = part.stored.summary.get(name) or {}
            if said := found.get("absent") or found.get("note"):
                console.print(f"[bold]{escape(part.title)}[/bold], {name}: {escape(said)}", highlight=False)
    echo.written(console, out)


def _is_absent(found: Mapping[str, Any]) -> bool:
    return "absent" in found and "averages" not in found and "whole" not in found


def _head(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return NONE
    return "absent" if "absent" in found else str(found.get("answer", found.get("measure", "")))


def _share(key: str) -> Callable[[Mapping[str, Any]], str]:
    def cell(found: Mapping[str, Any]) -> str:
        one = found[key]
        low, high = (f"{100 * end:.0f}" for end in one["random_range"])
        return f"{100 * one['value']:.0f} % ({low if low == high else f'{low} to {high}'})"

    return cell


def _participation(found: Mapping[str, Any]) -> str:
    one = found["participation_ratio"]
    return f"{one['value']:.3g} ({one['random']:.3g})"


def _shuffled(key: str, digits: int) -> Callable[[Mapping[str, Any]], str]:
    def cell(found: Mapping[str, Any]) -> str:
        one = found.get(key, {})
        if "value" not in one:
            return NONE
        beside = max(map(abs, one["shuffled_interval"]))
        return f"{one['value']:+.{digits}f} (±{beside:.{digits}f})"

    return cell


def _distance(kind: str, at: int) -> Callable[[Mapping[str, Any]], str]:
    """Say the mean over heads of a block's distance, and that of uniform attention."""

    def cell(found: Mapping[str, Any]) -> str:
        one = found["averages"].get(kind, {}).get(OWN)
        if one is None or one["distance"][at] is None or one["uniform distance"] is None:
            return NONE
        return f"{one['distance'][at]:.0f} ({one['uniform distance']:.0f})"

    return cell


def _heads(kind: str) -> Callable[[Mapping[str, Any]], str]:
    """Say the least and the greatest distance of any head of any block."""

    def cell(found: Mapping[str, Any]) -> str:
        one = found["averages"].get(kind, {}).get(OWN, {})
        low, high = ([x for x in one.get(f"{which} head", []) if x is not None] for which in ("lowest", "highest"))
        return f"{min(low):.0f} to {max(high):.0f}" if low and high else NONE

    return cell


def _locality(kind: str) -> Callable[[Mapping[str, Any]], str]:
    """Say the mean over blocks of the locality index."""

    def cell(found: Mapping[str, Any]) -> str:
        one = found["averages"].get(kind, {}).get(OWN)
        values = [] if one is None else [value for value in one["locality"] if value is not None]
        return f"{sum(values) / len(values):+.2f} (0)" if values else NONE

    return cell


def _beyond(kind: str) -> Callable[[Mapping[str, Any]], str]:
    """Say how many heads of how many are more local, and less local, than with places permuted."""

    def cell(found: Mapping[str, Any]) -> str:
        one = found["averages"].get(kind, {}).get(OWN)
        number = 0 if one is None else sum(one["heads measured"])
        if not number:
            return NONE
        more, less = (sum(one[f"heads {which} local than chance"]) for which in ("more", "less"))
        return f"{more:.0f} and {less:.0f} of {number:.0f}"

    return cell


def _outliers(found: Mapping[str, Any]) -> str:
    return f"{100 * found['outliers']['share of patches']:.2g} %"


def _moved(group: str, kind: str) -> Callable[[Mapping[str, Any]], str]:
    def cell(found: Mapping[str, Any]) -> str:
        one = found[group].get(kind, {})
        if kind == "without_outliers" and not found["num_outliers"]:
            return NONE
        if one.get("moved", {}).get("value") is None:
            return NONE
        still = one["unmoved"]["value"]
        return f"{one['moved']['value']:.2f} ({NONE if still is None else f'{still:.2f}'})"

    return cell


def _pooled(found: Mapping[str, Any]) -> str:
    one = found["whole"]["pooled"]["error"]
    return NONE if one["value"] is None else f"{one['value']:.2f} (1)"


def _go(found: Mapping[str, Any]) -> str:
    return found["outliers_go"] if found["num_outliers"] else NONE


WITH, WITHOUT, OWN = "all patches", "without outliers", "with the own patch"
TABLES: dict[str, tuple[str, tuple[Row, ...]]] = {
    "filters": (
        "filters (random ones)",
        (
            ("energy below half Nyquist", _share("low_frequency")),
            ("  of the first 28 components", _share("low_frequency_shown")),
            ("participation ratio", _participation),
            ("variance of the first 28", _share("explained_by_shown")),
        ),
    ),
    "positions": (
        "position embeddings (shuffled)",
        (
            ("rank corr. with nearness", _shuffled("distance", 2)),
            ("more alike in one row", _shuffled("row", 3)),
            ("more alike in one column", _shuffled("column", 3)),
        ),
    ),
    "attention": (
        "attention distance, px (uniform)",
        (
            ("first block measured", _distance(WITH, 0)),
            ("  without outliers", _distance(WITHOUT, 0)),
            ("last block measured", _distance(WITH, -1)),
            ("  without outliers", _distance(WITHOUT, -1)),
            ("all heads", _heads(WITH)),
            ("  without outliers", _heads(WITHOUT)),
            ("locality index", _locality(WITH)),
            ("  without outliers", _locality(WITHOUT)),
            ("heads more, less local than permuted", _beyond(WITH)),
            ("  without outliers", _beyond(WITHOUT)),
            ("outliers, of patches", _outliers),
        ),
    ),
    "translation": (
        "images shifted (unmoved place)",
        (
            ("error, whole steps", _moved("whole", "all")),
            ("  without outliers", _moved("whole", "without_outliers")),
            ("error, fractions", _moved("fractional", "all")),
            ("  without outliers", _moved("fractional", "without_outliers")),
            ("pooled, whole steps (another image)", _pooled),
            ("outliers go", _go),
        ),
    ),
}
"""The rows of the table, by part; a heading names the control that stands in brackets."""
