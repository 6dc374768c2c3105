"""Figures 9 and 16 of Darcet et al. (arXiv 2309.16588): what CLS and each register attend to, and how they overlap."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from vitprobe.errors import ArgumentError
from vitprobe.plots.register_maps import draw_means, draw_overlaps, draw_queries
from vitprobe.probes.passes import Reader
from vitprobe.probes.register_maps import KINDS, MEASURES, NUM_POOL, RegisterMapReader, RegisterMaps
from vitprobe.reproduction.base import Drawn, Found, Item, Measurement, Row, Setting

PAIRS = {
    "registers": "two registers",
    "cls_register": "CLS and a register",
    "register": "a register and itself",
    "cls": "CLS and itself",
}
SAID = {"image": "same image", "shuffled": "positions shuffled", "between": "different images"}
NOTES = {
    "shuffled": "expected, over all orders of one map's patches",
    "between": "of random images, each with every other: what overlaps there is driven by position",
}


@dataclass(frozen=True)
class RegisterMapsOptions:
    """Hold what figures 9 and 16 leave open."""

    num_shown: int = 6
    """Images, the first of the set."""
    registers: tuple[int, ...] = ()
    """Registers that are drawn, from 0; none for all of up to 4, and 0, 6, 8 and 12 of more. All are in the matrix."""
    block: int | None = None
    """Whose attention; none for the block that the command looks at."""
    num_compared: int = NUM_POOL
    """Images whose maps are set against each other's."""


@dataclass(frozen=True)
class QueryMaps(Measurement):
    """Read the maps of one model."""

    setting: Setting
    options: RegisterMapsOptions
    reader: RegisterMapReader

    def test_readers(self) -> Sequence[Reader]:
        """Return the reader of the maps."""
        return (self.reader,)

    def found(self) -> Found:
        """Return maps and overlaps; without CLS and registers, that there are none."""
        if not self.reader.queries:
            return Found((), {"note": "neither CLS nor registers: there is no map to show"})
        maps = self.reader.result()
        summary = {"maps": maps.summary, "registers": list(_several(self.options.registers)), "controls": NOTES}
        if not maps.summary["num_registers"]:
            summary["note"] = "no registers: CLS alone"
        return Found(tuple(rows_of(maps)), summary, maps.arrays())


def measure(setting: Setting, options: RegisterMapsOptions) -> QueryMaps:
    """Prepare to read. Raises `ArgumentError` for a register or a block that the model does not have."""
    block = setting.block if options.block is None else setting.backbone.check_block(options.block)
    held, asked = setting.backbone.layout().num_registers, _several(options.registers)
    if held and (missing := [k for k in asked if type(k) is not int or not 0 <= k < held]):
        raise ArgumentError(f"got register {missing[0]}; {setting.backbone.spec.name} has {held}, from 0")
    reader = RegisterMapReader(
        setting.backbone,
        block=block,
        cutoff=setting.cutoffs[block],
        num_shown=options.num_shown,
        num_pool=options.num_compared,
        seed=setting.seed,
    )
    return QueryMaps(setting, options, reader)


def rows_of(maps: RegisterMaps) -> list[Row]:
    """List where attention stays, then overlaps with their controls; a query with itself only where that says much."""
    number, shares = maps.summary["num_images"], maps.prefix.sum(-1)  # (Q,)
    first = len(maps.queries) - maps.summary["num_registers"]
    kinds = {"CLS": shares[:first], "the registers": shares[first:]}
    rows = [
        Row(f"attention of {kind} on CLS and registers", float(own.mean()), "share", number)
        for kind, own in kinds.items()
        if len(own)
    ]
    overlaps: Mapping[str, Mapping[str, Any]] = maps.summary["overlaps"]
    for measure_name in MEASURES:
        for group in (group for group in PAIRS if group in overlaps):
            for kind in KINDS[1:] if group in ("register", "cls") else KINDS:
                found = overlaps[group][f"{measure_name}.{kind}"]
                interval = found["interval"] and tuple(found["interval"])
                what = f"{PAIRS[group]}, {SAID[kind]}"
                rows.append(Row(what, found["value"], measure_name, found["num_images"], interval))
    return rows


def _several(given: Any) -> tuple[int, ...]:
    return tuple(given) if isinstance(given, tuple | list) else (given,)


def draw(drawn: Drawn) -> dict[str, Figure]:
    """Draw maps, mean maps and overlaps of all models that have CLS or registers."""
    known = [(title, found) for title, found in drawn if found.arrays]
    results = [(title, RegisterMaps(summary=dict(found.summary["maps"]), **found.arrays)) for title, found in known]
    if not results:
        return {}
    registers = known[0][1].summary["registers"]
    figures = {"maps": draw_queries(results, registers), "means": draw_means(results, registers)}
    if any(len(maps.queries) > 1 for _, maps in results):
        figures["overlaps"] = draw_overlaps(results)
    return figures


ITEMS = {"fig9": Item(measure, draw, RegisterMapsOptions)}
