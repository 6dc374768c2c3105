"""The body of ``vitprobe norms``: load, measure, save, draw, echo."""

from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from vitprobe import backbones, results
from vitprobe.backbones.base import Backbone
from vitprobe.cli import echo, parse
from vitprobe.errors import ArgumentError, ExitCode, InputError
from vitprobe.inputs.loading import ImageLoader
from vitprobe.inputs.sources import Source, open_inputs
from vitprobe.probes.norm_stats import NormStats
from vitprobe.probes.norms import NUM_QUERIES, measure_norms
from vitprobe.probes.outliers import OutlierRule
from vitprobe.probes.token_table import TokenTable

SCHEMA = "vitprobe.norms/1"


@dataclass(frozen=True)
class NormsRequest:
    """Hold the options of one call, as they were given."""

    inputs: tuple[str, ...]
    models: tuple[str, ...]
    weights: tuple[str, ...]
    image_size: str | None
    rule: str
    all_rules: bool
    block: str
    after_final_norm: bool
    limit: int | None
    seed: int
    batch_size: int
    workers: int | None
    device: str
    dtype: str
    out: Path | None
    tokens: bool
    formats: tuple[str, ...]
    json: bool


@dataclass(frozen=True)
class Measured:
    """Hold what one model gave."""

    title: str
    stats: NormStats
    stored: results.StoredResult


def run(request: NormsRequest) -> ExitCode:
    """Run ``norms``; returns the exit code. Raises a `VitprobeError` where nothing could be done."""
    rule = OutlierRule.parse(request.rule)
    if request.after_final_norm and request.block != "last":
        raise ArgumentError(f"got --after-final-norm with --block {request.block}; it goes with the last block only")
    device, autocast = parse.device(request.device), parse.autocast(request.dtype)
    formats = parse.formats(request.formats)
    size = parse.image_size(request.image_size)
    out = request.out or Path("runs/norms") / f"{'+'.join(map(_slug, request.models))}-{datetime.now():%Y%m%d-%H%M%S}"
    results.check_free(out)
    source = open_inputs(
        request.inputs or ("samples", "scenes"),
        limit=request.limit,
        seed=request.seed,
        extra=parse.generated(request.limit, request.seed, few=not request.inputs),
    )
    weights = parse.one_each(request.weights, request.models)
    models = [
        backbones.load(name, weights=given, image_size=size, seed=request.seed)
        for name, given in zip(request.models, weights, strict=True)
    ]
    blocks = [parse.blocks(request.block, model.num_blocks) for model in models]
    with results.result_directory(out) as folder:
        measured = []
        for model, chosen in zip(models, blocks, strict=True):
            inner = folder / _slug(model.spec.name) if len(models) > 1 else folder
            inner.mkdir(exist_ok=True)
            measured.append(_measure(request, model, source, rule, chosen, inner, device=device, autocast=autocast))
            model.module.to("cpu")
        _draw(measured, folder, formats)
        for one in measured if len(models) > 1 else ():
            results.save(folder / _slug(one.stored.summary["model"]), one.stored)
        results.save(folder, _together(measured))
    summaries = [one.stored.summary for one in measured]
    echo.norms(summaries, [one.title for one in measured], out, request)
    return ExitCode.PARTIAL if any(summary["skipped"] for summary in summaries) else ExitCode.DONE


def _measure(
    request: NormsRequest,
    model: Backbone,
    source: Source,
    rule: OutlierRule,
    blocks: tuple[int, ...],
    folder: Path,
    *,
    device: str,
    autocast: torch.dtype | None,
) -> Measured:
    loader = ImageLoader(source.items, model.transform, batch_size=request.batch_size, workers=request.workers)
    model.module.to(device)
    table = None
    if request.tokens:
        table = TokenTable(folder / "tokens.parquet", model.layout(), num_blocks=model.num_blocks)
    with echo.progress(model.spec.title, len(source.items)) as advance:

        def on_batch(batch: Any, norms: Any) -> None:
            advance(len(batch.names))
            if table is not None:
                table.add(batch.names, norms)

        try:
            accumulator = measure_norms(
                model,
                loader,
                blocks=blocks,
                after_final_norm=request.after_final_norm,
                autocast=autocast,
                seed=request.seed,
                on_batch=on_batch,
            )
        except InputError as error:
            raise InputError(f"{error}{_first(loader.skipped)}") from error
    point = model.num_blocks if request.after_final_norm else blocks[-1]
    stats = accumulator.result(rule, point=point, all_rules=request.all_rules)
    if table is not None:
        table.finish(list(stats.cutoffs))
    skipped = [{"name": name, "reason": reason} for name, reason in (*source.skipped, *loader.skipped)]
    summary = {"model": model.spec.name, **stats.summary, "skipped": skipped}
    stats = replace(stats, summary=summary)
    provenance = results.Provenance(
        model=asdict(model.spec),
        inputs={
            "name": source.name,
            "num_images": loader.num_read,
            "digest": loader.digest(),
            "notes": dict(loader.notes),
        },
        seed=request.seed,
        device=device,
        dtype=request.dtype,
    )
    stored = results.StoredResult(
        SCHEMA, results.provenance_dict(provenance), _settings(request, rule), summary, stats.arrays()
    )
    return Measured(model.spec.title, stats, stored)


def _first(skipped: list[tuple[str, str]]) -> str:
    """Name the first of what was skipped."""
    return "".join(f"; {name}: {reason}" for name, reason in skipped[:3])


def _settings(request: NormsRequest, rule: OutlierRule) -> dict[str, Any]:
    options = {name: getattr(request, name) for name in ("inputs", "block", "after_final_norm", "limit", "batch_size")}
    return {"rule": str(rule), **options, "attention_queries": NUM_QUERIES, "bootstrap": "Poisson over images"}


def _draw(measured: list[Measured], folder: Path, formats: tuple[str, ...]) -> None:
    if not formats:
        return
    from vitprobe.plots import write
    from vitprobe.plots.norms import FIGURES

    drawn = [(one.title, one.stats) for one in measured]
    for name, draw in FIGURES.items():
        write(draw(drawn), folder / name, formats)


def _together(measured: list[Measured]) -> results.StoredResult:
    """Return the result of the whole call: the model's own, or the comparison of several."""
    if len(measured) == 1:
        return measured[0].stored
    first = measured[0].stored
    models = {one.stored.summary["model"]: one.stored.provenance["model"] for one in measured}
    inputs = {one.stored.summary["model"]: one.stored.provenance["inputs"] for one in measured}
    provenance = {**first.provenance, "model": models, "inputs": inputs}
    summary = [one.stored.summary for one in measured]
    return results.StoredResult(SCHEMA, provenance, first.settings, summary, {})


def _slug(name: str) -> str:
    """Return a model's name as a folder can be called."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.") or "model"


def redraw(directory: Path, formats: tuple[str, ...]) -> list[Path]:
    """Draw a stored result again, in place, from its numbers alone; returns the figures written."""
    if not formats:
        raise ArgumentError("got --format none; allowed are png, svg and pdf")
    from vitprobe.plots import write
    from vitprobe.plots.norms import FIGURES

    stored = results.load(directory)
    if stored.schema != SCHEMA:
        raise ArgumentError(f"{directory} holds {stored.schema}; {SCHEMA} can be drawn again")
    several = isinstance(stored.summary, list)
    parts = [results.load(directory / _slug(one["model"])) for one in stored.summary] if several else [stored]
    drawn = [(_title(part), NormStats(summary=dict(part.summary), **part.arrays)) for part in parts]
    return [path for name, draw in FIGURES.items() for path in write(draw(drawn), directory / name, formats)]


def _title(stored: results.StoredResult) -> str:
    from vitprobe.backbones.base import ModelSpec

    spec = dict(stored.provenance["model"])
    return ModelSpec(**spec | {"image_size": tuple(spec["image_size"])}).title
