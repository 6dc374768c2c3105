"""``vitprobe models``: the backbones that have a short name, and which of them can be loaded without network."""

from typing import Annotated, Any

import typer

from vitprobe.backbones.zoo import EMBEDDED, ORGANISMS, REFERENCES, SHORT_NAMES, ZOO, ReferenceSize, ZooEntry

COLUMNS = {
    "alias": "left", "short name": "left", "paradigm": "left", "M params": "right", "patch": "right", "size": "right",
    "registers": "right", "licence": "left", "library": "left", "tag": "left", "cached": "left",
}  # fmt: skip
ORGANISM = {"library": "vitprobe", "paradigm": "planted", "params": 0.7, "patch": 16, "image_size": 224}
TRAINED = {"library": "vitprobe", "paradigm": "supervised", "params": 0.2, "patch": 4, "image_size": 32}
"""The same for all organisms, and for all that were trained; tests hold it to what is built."""


def models(
    json: Annotated[bool, typer.Option("--json", help="Print a list of objects and nothing else.")] = False,
) -> None:
    """List the backbones that have an alias: size, licence, the library's exact tag, and whether they are cached.

    Asks no network. What is not cached comes by [bold]vitprobe fetch ALIAS[/bold], or when it is first used.
    """
    from json import dumps

    rows = [_row(entry) for entry in ZOO] + [_embedded_row(name) for name in EMBEDDED]
    rows += [_reference_row(name, size) for name, size in REFERENCES.items()]
    if json:
        typer.echo(dumps(rows, indent=2))
        return
    _show(rows)


def _row(entry: ZooEntry) -> dict[str, Any]:
    from vitprobe.backbones.hub import cached_file, fault, hub_location

    repo, filenames = hub_location(entry)
    cached = cached_file(repo, filenames)
    return {
        "alias": entry.alias,
        "short_name": next((short for short, alias in SHORT_NAMES.items() if alias == entry.alias), None),
        "paradigm": entry.paradigm,
        "params": entry.params,
        "patch": entry.patch,
        "image_size": entry.image_size,
        "num_registers": entry.num_registers,
        "licence": entry.licence,
        "source": entry.source,
        "library": entry.library,
        "architecture": entry.architecture,
        "tag": entry.tag,
        "file": f"{repo}/{cached.name if cached else filenames[0]}",
        "cached": cached is not None and not fault(cached),
    }


def _embedded_row(name: str) -> dict[str, Any]:
    planted = name in ORGANISMS
    return {
        "alias": name,
        "short_name": None,
        **(ORGANISM if planted else TRAINED),
        "num_registers": 4 if name.endswith("-reg4") else 0,
        "licence": "Apache-2.0",
        "source": "planted by vitprobe from a seed" if planted else "trained on scenes by vitprobe; see its card",
        "architecture": name,
        "tag": None,
        "file": None,
        "cached": True,
    }


def _reference_row(name: str, size: ReferenceSize) -> dict[str, Any]:
    return {
        "alias": name,
        "short_name": None,
        "paradigm": "unknown",
        "params": size.params,
        "patch": 16,
        "image_size": 224,
        "num_registers": 0,
        "licence": "Apache-2.0",
        "source": f"the ViT written to be read, with --weights random or FILE; sizes of {size.source}",
        "library": "vitprobe",
        "architecture": name,
        "tag": None,
        "file": None,
        "cached": False,
    }


def _show(rows: list[dict[str, Any]]) -> None:
    import sys

    from rich.console import Console
    from rich.table import Table

    table = Table(title="backbones with an alias", title_justify="left", title_style="")
    for name, side in COLUMNS.items():
        table.add_column(name, justify=side, overflow="fold")
    sources: dict[str, list[str]] = {}
    for row in rows:
        tag = row["tag"] and f"{row['architecture']}{'.' if row['library'] == 'timm' else '/'}{row['tag']}"
        cached = "yes" if row["cached"] else "random" if row["alias"] in REFERENCES else "no"
        cached = "embedded" if row["alias"] in EMBEDDED else cached
        numbers = [str(row[key]) for key in ("params", "patch", "image_size", "num_registers")]
        table.add_row(
            row["alias"], row["short_name"] or "", row["paradigm"], *numbers, row["licence"], row["library"],
            tag or "none", cached,
        )  # fmt: skip
        sources.setdefault(row["source"], []).append(row["alias"])
    console = Console(width=None if sys.stdout.isatty() else 180, highlight=False)
    console.print(table)
    for source, aliases in sources.items():
        console.print(f"{aliases[0]} ... {aliases[-1]}: {source}", soft_wrap=True)
    console.print("not cached: vitprobe fetch ALIAS, or loading it, fetches it", soft_wrap=True)
