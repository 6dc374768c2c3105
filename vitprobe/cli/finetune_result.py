"""The result of ``vitprobe finetune`` on disk: beside the checkpoints of a set, and above several sets; drawn again."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vitprobe import results
from vitprobe.cli.finetune_table import markdown
from vitprobe.cli.run_finetune_set import SetFound, arrays_of, rows
from vitprobe.cli.train_result import write_beside
from vitprobe.errors import InputError
from vitprobe.inputs.vtab import scores
from vitprobe.probes.comparison import from_arrays, to_arrays, to_rows
from vitprobe.probes.reliability import Reliability
from vitprobe.training.finetune import Sizes, chance
from vitprobe.training.finetuned import FEATURES, NEAREST

SCHEMA = "vitprobe.finetune/1"
TEXT = "table.md"


def write_set(
    directory: Path, found: SetFound, sizes: Sizes, formats: tuple[str, ...], device: str, dtype: str
) -> dict[str, Any]:
    """Write what was found on one set into its folder, and return the summary as it was stored."""
    summary = summarise(found, sizes)
    compared = [found.before, *(one.result for one in found.tuned)]
    arrays = arrays_of(found) | to_arrays(compared)
    digest = hashlib.sha256("".join(found.digests).encode()).hexdigest()
    data, config = found.job.data, found.job.config
    specs = {found.before.name: found.before_spec} | {one.result.name: one.spec for one in found.tuned}
    provenance = results.Provenance(
        model={name: asdict(spec) for name, spec in specs.items()},
        inputs={
            "name": data.text,
            "num_images": len(found.digests),
            "digest": digest,
            "notes": {"part": f"held out: {data.held_out}"},
        },
        seed=config.base.seed,
        device=device,
        dtype=dtype,
    )
    settings = config.as_dict() | {"features": {"k-NN": NEAREST, "linear": FEATURES}}
    stored = results.StoredResult(SCHEMA, results.provenance_dict(provenance), settings, summary, arrays)
    write_beside(directory, stored, lambda aside: _write(aside, [summary], _figures(stored), formats))
    return summary


def summarise(found: SetFound, sizes: Sizes) -> dict[str, Any]:
    """Return all that is no array, as JSON can hold it."""
    data, plan, config = found.job.data, found.job.plan, found.job.config
    share, interval = chance(data)
    compared = [found.before, *(one.result for one in found.tuned)]
    return {
        "model": found.before_spec.name,
        "set": data.name,
        "data": data.text,
        "task": data.task,
        "group": data.group,
        "num_classes": len(data.classes),
        "num_train": len(data.train),
        "num_held_out": len(data.test),
        "num_watched": found.before.norms.summary["num_images"],
        "held_out": data.held_out,
        "chance": share,
        "chance_interval": interval,
        "recipe": config.recipe,
        "departures": list(plan.departures),
        "steps": plan.steps,
        "batch_size": config.base.batch_size,
        "rates": list(plan.rates),
        "development": plan.development if len(plan.rates) > 1 else None,
        "augment": plan.augment,
        "sizes": sizes.as_dict(),
        "before": {"frozen": found.before_frozen, "norms": _norms(found)},
        "variants": rows(found),
        "compared": to_rows(compared),
        "skipped": [{"name": name, "reason": why} for name, why in found.skipped],
    }


def _norms(found: SetFound) -> dict[str, Any]:
    summary = found.before.norms.summary
    return {key: summary[key] for key in ("verdict", "outlier_fraction", "outlier_fraction_ci", "num_images")}


def write_sets(directory: Path, summaries: Sequence[Mapping[str, Any]], formats: tuple[str, ...]) -> dict[str, Any]:
    """Write the result above several sets, each of which has its own in its folder, and return its summary.

    Where all are tasks of VTAB-1k, ``vtab`` has for each variant the means over tasks; else it is None.
    """
    first = results.load(directory / summaries[0]["folder"])
    brief = [{key: value for key, value in one.items() if key != "compared"} for one in summaries]
    summary = {"sets": brief, "vtab": _vtab(summaries), "skipped": [bad for one in summaries for bad in one["skipped"]]}
    provenance = {**first.provenance, "inputs": [one["data"] for one in summaries]}
    stored = results.StoredResult(SCHEMA, provenance, first.settings, summary, {})
    write_beside(directory, stored, lambda aside: _write(aside, brief, _accuracy(brief), formats, vtab=summary["vtab"]))
    return summary


def _vtab(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if not all(one["task"] for one in summaries):
        return None
    titles = [one["title"] for one in summaries[0]["variants"]]
    return {
        title: scores({one["task"]: one["variants"][at]["accuracy"] for one in summaries})
        for at, title in enumerate(titles)
    }


def read_set(directory: Path) -> dict[str, Any] | None:
    """Return the stored summary of one set; None where there is none yet, or it is not whole."""
    try:
        stored = results.load(directory)
    except InputError:
        return None
    return dict(stored.summary) if stored.schema == SCHEMA and "variants" in stored.summary else None


def redraw(directory: Path, stored: results.StoredResult, formats: tuple[str, ...]) -> list[Path]:
    """Draw the figures of one set, or of several and of all above them, again; returns their paths."""
    if "sets" not in stored.summary:
        return draw(directory, _figures(stored), formats)
    inner = [directory / one["folder"] for one in stored.summary["sets"]]
    paths = draw(directory, _accuracy(stored.summary["sets"]), formats)
    return paths + [path for one in inner for path in redraw(one, results.load(one), formats)]


def draw(folder: Path, figures: Mapping[str, Callable[[], Any]], formats: tuple[str, ...]) -> list[Path]:
    """Draw figures into a folder; returns their paths."""
    if not formats:
        return []
    from vitprobe.plots import write

    return [path for name, figure in figures.items() for path in write(figure(), folder / name, formats)]


def _write(
    aside: Path,
    summaries: Sequence[Mapping[str, Any]],
    figures: Mapping[str, Callable[[], Any]],
    formats: tuple[str, ...],
    *,
    vtab: Mapping[str, Any] | None = None,
) -> None:
    (aside / TEXT).write_text(markdown(summaries, vtab), encoding="utf-8")
    draw(aside, figures, formats)


def _figures(stored: results.StoredResult) -> dict[str, Callable[[], Any]]:
    """Return what draws the figures of one set, from its stored numbers alone. Raises `InputError` for missing ones."""
    from vitprobe.plots import reliability, training
    from vitprobe.plots.curves import draw_curves

    compared = from_arrays(stored.summary["compared"], stored.arrays)
    shown = {one["title"]: _reliability(one, stored) for one in stored.summary["variants"]}
    return _accuracy([stored.summary]) | {
        "reliability": lambda: reliability.figure(shown),
        "curves": lambda: draw_curves(compared[1:]),  # the model before was not trained
        "norms": lambda: training.draw_norms(compared),
        "histogram": lambda: training.draw_histogram(compared),
        "attention": lambda: training.draw_attention(compared),
    }


def _accuracy(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Callable[[], Any]]:
    from vitprobe.plots.finetune import draw_accuracy

    return {"accuracy": lambda: draw_accuracy(summaries)}


def _reliability(one: Mapping[str, Any], stored: results.StoredResult) -> Reliability:
    start = f"{one['name']}/reliability/"
    own = {name.removeprefix(start): value for name, value in stored.arrays.items() if name.startswith(start)}
    try:
        return Reliability.read(own, one["reliability"])
    except KeyError as error:
        raise InputError(f"the stored result is not whole ({error} of {one['name']} is missing); resume it") from error
