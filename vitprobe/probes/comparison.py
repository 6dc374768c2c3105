"""Variants of one model set side by side: their curves over training, the last look at each, what registers changed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from vitprobe.errors import ArgumentError, InputError
from vitprobe.probes.attention import AttentionMaps
from vitprobe.probes.curves import Curve
from vitprobe.probes.norm_stats import KINDS, NormStats

ARTIFACTS, NONE, CONTENT, UNCLEAR = "artifacts", "none", "content outliers", "unclear"


@dataclass(frozen=True)
class VariantResult:
    """Hold all that is compared of one variant, measured on the held-out images that all variants share."""

    name: str
    """``reg4``, or ``reg4-plain`` in a second family that has a control of its own."""
    title: str
    num_registers: int
    norms: NormStats
    maps: AttentionMaps
    curve: Curve
    measures: Mapping[str, float]
    """Held-out measures of the finished variant."""

    @property
    def family(self) -> str:
        """What stands after the number of registers in the name: variants of one family differ by that number only."""
        return self.name.removeprefix(f"reg{self.num_registers}")


def control_of(one: VariantResult, results: Iterable[VariantResult]) -> VariantResult | None:
    """Return the variant without registers of the same family; None where none was trained."""
    return next((other for other in results if other.num_registers == 0 and other.family == one.family), None)


def compare(results: Sequence[VariantResult]) -> list[dict[str, Any]]:
    """Set variants side by side: a row each, as JSON can hold it, in their order.

    Norms, verdict and ``outlier_fraction`` are of the last block; ``highest`` is of the block with the highest outlier
    fraction, ``artifact_blocks`` lists where the verdict is artifacts. ``attention`` is the mean over images and heads
    of what the query gives to registers, to all prefix tokens and to outlier patches. ``difference`` is variant minus
    control. ``conclusion`` says what was found, of all blocks, and no more: see `conclude`.
    """
    return [_row(one, control_of(one, results)) for one in results]


def conclude(one: VariantResult, control: VariantResult | None) -> str:
    """Say what registers changed, from the verdicts of both at all blocks.

    Nothing was removed where the control has no artifacts, and outliers on content are no artifacts. Where the control
    is unclear, or the variant is at the blocks where the control has artifacts, nothing is concluded. Of artifacts in
    both, the number is called different only where the 95 % intervals over images, at the block where each has
    most artifacts, do not overlap.
    """
    number = f"with {one.num_registers} register" + "s" * (one.num_registers != 1)
    own, where = finding(one.norms)
    if one.num_registers == 0:
        return _clause(own, where, "without registers")
    if control is None:
        return f"{_clause(own, where, number)}; without a control, what registers changed is not known"
    found, there = finding(control.norms)
    said = _clause(found, there, "in the control")
    if found == ARTIFACTS and own == UNCLEAR and (at := finding(one.norms, there)[0]) != UNCLEAR:
        among = {NONE: "none there", CONTENT: "outliers on content there"}[at]
        return f"{said}, {among} {number}; elsewhere {_clause(own, where, number)}"
    own_clause = f"none {number}" if own == NONE and found in (ARTIFACTS, NONE) else _clause(own, where, number)
    return f"{said}, {own_clause}{_consequence(one, control, own, found)}"


def _consequence(one: VariantResult, control: VariantResult, own: str, found: str) -> str:
    if UNCLEAR in (own, found):
        return ": nothing can be concluded"
    if (found, own) == (NONE, NONE):
        return ": there was nothing to remove"
    if found == CONTENT and own != ARTIFACTS:
        return ": there were no artifacts to remove"
    return f": {_fewer(one.norms, control.norms)}" if (found, own) == (ARTIFACTS, ARTIFACTS) else ""


def finding(stats: NormStats, blocks: Sequence[int] | None = None) -> tuple[str, tuple[int, ...]]:
    """Return the verdict over all blocks, or over those given, and the blocks whose verdict it is.

    ``artifacts`` where any block has them; else ``unclear`` where any is, or has two modes and was not judged; else
    ``content outliers`` where any has them; else ``none``.
    """
    lines = [line for line in stats.summary["blocks"] if blocks is None or line["block"] in blocks]
    verdicts = {line["block"]: line.get("verdict", UNCLEAR if line["bimodal"] else NONE) for line in lines}
    found = next((v for v in (ARTIFACTS, UNCLEAR, CONTENT) if v in verdicts.values()), NONE)
    return found, tuple(block for block, verdict in verdicts.items() if verdict == found)


def to_arrays(results: Sequence[VariantResult]) -> dict[str, np.ndarray]:
    """Return the arrays of all variants, named ``reg4/norms/counts``. Raises `ArgumentError` for a name given twice."""
    names = [one.name for one in results]
    if len(set(names)) < len(names):
        raise ArgumentError(f"got variants {', '.join(names)}; give each a name of its own")
    found = {}
    for one in results:
        curve = {name: value for name, value in vars(one.curve).items() if isinstance(value, np.ndarray)}
        for part, arrays in (("norms", one.norms.arrays()), ("maps", one.maps.arrays()), ("curve", curve)):
            found |= {f"{one.name}/{part}/{name}": value for name, value in arrays.items()}
    return found


def to_rows(results: Sequence[VariantResult]) -> list[dict[str, Any]]:
    """Return the rows of `compare` with the summaries of norms and attention maps in them: all that is no array."""
    rows = zip(compare(results), results, strict=True)
    return [row | {"norms": one.norms.summary, "maps": one.maps.summary} for row, one in rows]


def from_arrays(rows: Sequence[Mapping[str, Any]], arrays: Mapping[str, np.ndarray]) -> list[VariantResult]:
    """Put together what `to_rows` and `to_arrays` gave, after JSON. Raises `InputError` where something is missing."""
    try:
        return [_read(row, arrays) for row in rows]
    except (KeyError, TypeError) as error:
        raise InputError(f"the comparison is not whole ({error}); measure again") from error


def _read(row: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> VariantResult:
    def part(kind: type, name: str) -> dict[str, np.ndarray]:
        wanted = [one.name for one in fields(kind) if one.name not in ("summary", "measure_name")]
        return {one: arrays[f"{row['name']}/{name}/{one}"] for one in wanted}

    return VariantResult(
        name=row["name"],
        title=row["title"],
        num_registers=row["num_registers"],
        norms=NormStats(summary=dict(row["norms"]), **part(NormStats, "norms")),
        maps=AttentionMaps(summary=dict(row["maps"]), **part(AttentionMaps, "maps")),
        curve=Curve(measure_name=row["measure"], **part(Curve, "curve")),
        measures={name: np.nan if value is None else value for name, value in row["measures"].items()},
    )


def _row(one: VariantResult, control: VariantResult | None) -> dict[str, Any]:
    summary = one.norms.summary
    norm = summary["norm"]
    highest = max(summary["blocks"], key=lambda line: line["outlier_fraction"])
    registers = one.norms.quantiles[one.norms.point, KINDS.index("registers"), list(one.norms.levels).index(0.5)]
    row = {
        "name": one.name,
        "title": one.title,
        "num_registers": one.num_registers,
        "control": None if control is None or one.num_registers == 0 else control.name,
        "num_images": summary["num_images"],
        "block": summary["block"],
        "verdict": summary["verdict"],
        "artifact_blocks": [line["block"] for line in summary["blocks"] if line.get("verdict") == ARTIFACTS],
        "outlier_fraction": summary["outlier_fraction"],
        "outlier_fraction_ci": list(summary["outlier_fraction_ci"]),
        "highest": {
            "block": highest["block"] if highest["outlier_fraction"] else None,
            "outlier_fraction": highest["outlier_fraction"],
            "outlier_fraction_ci": list(highest.get("outlier_fraction_ci", (None, None))),
        },
        "norm": dict(norm),
        "p99_over_median": norm["p99"] / norm["median"],
        "max_over_median": norm["max"] / norm["median"],
        "register_norm": _known(registers),
        "attention": _attention(one),
        "measure": one.curve.measure_name,
        "measures": {name: _known(value) for name, value in one.measures.items()},
    }
    row["difference"] = None if row["control"] is None else _difference(row, _row(control, control))
    return row | {"conclusion": conclude(one, control)}


def _attention(one: VariantResult) -> dict[str, Any]:
    summary = one.maps.summary
    mass = one.maps.prefix_mass[:, -1].mean(axis=(0, 1), dtype=float)  # (number of prefix tokens,) CLS, then registers
    return {
        "query": summary["query"],
        "block": summary["blocks"][-1],
        "registers": float(mass[len(mass) - one.num_registers :].sum()),
        "prefix": float(mass.sum()),
        "outliers": float(np.mean(summary["outlier_share"][-1])),
    }


def _difference(row: Mapping[str, Any], control: Mapping[str, Any]) -> dict[str, Any]:
    plain = ("outlier_fraction", "p99_over_median", "max_over_median")
    both = [name for name, value in row["measures"].items() if None not in (value, control["measures"].get(name))]
    found = {name: row[name] - control[name] for name in plain}
    found["highest_outlier_fraction"] = row["highest"]["outlier_fraction"] - control["highest"]["outlier_fraction"]
    return found | {"measures": {name: row["measures"][name] - control["measures"][name] for name in both}}


def _clause(found: str, where: Sequence[int], who: str) -> str:
    said = {
        ARTIFACTS: f"artifacts {who} ({_blocks(where)})",
        NONE: f"no outliers {who}",
        CONTENT: f"outliers on content {who} ({_blocks(where)})",
        UNCLEAR: f"not clear what the outliers are {who} ({_blocks(where)})",
    }
    return said[found]


def _blocks(blocks: Sequence[int]) -> str:
    """Write block numbers: ``block 3``, ``blocks 1, 3 to 5``."""
    runs: list[list[int]] = []
    for block in blocks:
        if runs and runs[-1][-1] == block - 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    said = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
    return f"block{'s' * (len(blocks) > 1)} {said}"


def _fewer(one: NormStats, control: NormStats) -> str:
    (low, high), (least, most) = _interval(one), _interval(control)
    if None in (low, high, least, most) or not (high < least or low > most):
        return "in no clearly different number"
    return "fewer with registers" if high < least else "more with registers"


def _interval(stats: NormStats) -> tuple[float | None, float | None]:
    lines = [line for line in stats.summary["blocks"] if line.get("verdict") == ARTIFACTS]
    return tuple(max(lines, key=lambda line: line["outlier_fraction"])["outlier_fraction_ci"])


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
