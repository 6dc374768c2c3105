"""The body of ``vitprobe norms``: measure, save, draw, echo."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitprobe import results
from vitprobe.backbones.base import Backbone
from vitprobe.cli import echo, parse
from vitprobe.cli.session import Options, Part, Session, exit_code, first_skipped
from vitprobe.errors import ArgumentError, ExitCode, InputError
from vitprobe.probes.norm_stats import NormStats
from vitprobe.probes.norms import NUM_QUERIES, measure_norms
from vitprobe.probes.outliers import OutlierRule
from vitprobe.probes.token_table import TokenTable

SCHEMA = "vitprobe.norms/1"


@dataclass(frozen=True)
class NormsOptions:
    """Hold what only ``norms`` is asked."""

    rule: str
    all_rules: bool
    block: str
    after_final_norm: bool
    tokens: bool


def run(options: Options, asked: NormsOptions) -> ExitCode:
    """Run ``norms``; returns the exit code. Raises a `VitprobeError` where nothing could be done."""
    rule = OutlierRule.parse(asked.rule)
    if asked.after_final_norm and asked.block != "last":
        raise ArgumentError(f"got --after-final-norm with --block {asked.block}; it goes with the last block only")
    session = Session.open("norms", options, default=("samples", "scenes"))
    blocks = [parse.blocks(asked.block, model.num_blocks) for model in session.models]
    with results.result_directory(session.out) as whole:
        parts = []
        for model, name, chosen in zip(session.models, session.slugs, blocks, strict=True):
            parts.append(_measure(session, asked, model, name, rule, chosen, session.folder(whole, name)))
        draw([(part.title, part.result) for part in parts], whole, session.formats)
        session.save(whole, parts)
    echo.norms(parts, session.out, as_json=options.json, all_rules=asked.all_rules, all_blocks=asked.block == "all")
    return exit_code(parts)


def _measure(
    session: Session,
    asked: NormsOptions,
    model: Backbone,
    name: str,
    rule: OutlierRule,
    blocks: tuple[int, ...],
    folder: Path,
) -> Part:
    loader = session.loader(model)
    model.module.to(session.device)
    path = folder / "tokens.parquet"
    table = TokenTable(path, model.layout(), num_blocks=model.num_blocks) if asked.tokens else None
    with echo.progress(model.spec.title, len(session.source.items)) as advance:

        def on_batch(batch: Any, norms: Any) -> None:
            advance(len(batch.names))
            if table is not None:
                table.add(batch.names, norms)

        try:
            accumulator = measure_norms(
                model,
                loader,
                blocks=blocks,
                after_final_norm=asked.after_final_norm,
                autocast=session.autocast,
                seed=session.options.seed,
                on_batch=on_batch,
            )
        except InputError as error:
            raise InputError(f"{error}{first_skipped(loader)}") from error
    model.module.to("cpu")
    point = model.num_blocks if asked.after_final_norm else blocks[-1]
    stats = accumulator.result(rule, point=point, all_rules=asked.all_rules)
    if table is not None:
        table.finish(list(stats.cutoffs))
    settings = {"rule": str(rule), "block": asked.block, "after_final_norm": asked.after_final_norm}
    settings |= {"attention_queries": NUM_QUERIES, "bootstrap": "Poisson over images"}
    stored = session.stored(model, loader, settings=settings, summary=stats.summary, arrays=stats.arrays())
    return Part(name, model.spec.title, replace(stats, summary=stored.summary), stored)


def draw(drawn: Sequence[tuple[str, NormStats]], folder: Path, formats: tuple[str, ...]) -> list[Path]:
    """Draw every figure of ``norms`` into a folder; returns their paths."""
    if not formats:
        return []
    from vitprobe.plots import write
    from vitprobe.plots.norms import FIGURES

    return [path for name, figure in FIGURES.items() for path in write(figure(drawn), folder / name, formats)]


def drawing(_settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a stored result that its figures depend on: none."""
    return {}


def read_back(stored: results.StoredResult) -> NormStats:
    """Return the probe's result from what is stored of it."""
    return NormStats(summary=dict(stored.summary), **stored.arrays)
