"""The body of ``vitprobe norms``: measure, save, draw, echo."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitprobe import results
from vitprobe.backbones.base import Backbone
from vitprobe.cli import echo, parse
from vitprobe.cli.session import Options, Part, Session, exit_code, first_skipped
from vitprobe.errors import ArgumentError, ExitCode, InputError, OutputError
from vitprobe.inputs.loading import ImageLoader
from vitprobe.probes.norm_stats import NormStats
from vitprobe.probes.norms import NUM_QUERIES, NormAccumulator, measure_norms
from vitprobe.probes.outliers import OutlierRule
from vitprobe.probes.shards import Shards, merge_norms
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
    """Run ``norms``, in one process or several; returns the exit code.

    Raises a `VitprobeError` where nothing could be done.
    """
    with Shards.open(options.device) as shards:
        rule = OutlierRule.parse(asked.rule)
        if asked.after_final_norm and asked.block != "last":
            raise ArgumentError(f"got --after-final-norm with --block {asked.block}; it goes with the last block only")
        session = Session.open("norms", options, default=("samples", "scenes"), shards=shards)
        blocks = [parse.blocks(asked.block, model.num_blocks) for model in session.models]
        with session.directory() as whole:
            parts = []
            for model, name, chosen in zip(session.models, session.slugs, blocks, strict=True):
                parts.append(_measure(session, asked, model, name, rule, chosen, whole))
            if shards.is_main:
                draw([(part.title, part.result) for part in parts], whole, session.formats)
                session.save(whole, parts)
        return shards.on_main(lambda: _say(session, asked, parts))


def _say(session: Session, asked: NormsOptions, parts: Sequence[Part]) -> ExitCode:
    as_json, all_blocks = session.options.json, asked.block == "all"
    echo.norms(parts, session.out, as_json=as_json, all_rules=asked.all_rules, all_blocks=all_blocks)
    return exit_code(parts)


def _measure(
    session: Session,
    asked: NormsOptions,
    model: Backbone,
    name: str,
    rule: OutlierRule,
    blocks: tuple[int, ...],
    whole: Path,
) -> Part | None:
    """Measure one model; all processes take part, and the main one gets the answer."""
    shards, loader = session.shards, session.loader(model)
    folder = shards.on_main(lambda: session.folder(whole, name))
    table = _table(folder, model, shards) if asked.tokens else None
    own = _measure_share(session, asked, model, loader, blocks, table)
    accounts = shards.gather((loader.account, table.close() if table is not None else None))
    for later, _ in (accounts or [])[1:]:
        loader.account.extend(later)
    try:
        accumulator = merge_norms(shards, own, to_all=False)
    except InputError as error:
        raise InputError(f"{error}{first_skipped(loader)}") from error
    if not shards.is_main:
        return None
    point = model.num_blocks if asked.after_final_norm else blocks[-1]
    stats = accumulator.result(rule, point=point, all_rules=asked.all_rules)
    if table is not None:
        table.finish(list(stats.cutoffs), [part for _, part in accounts])
    settings = {"rule": str(rule), "block": asked.block, "after_final_norm": asked.after_final_norm}
    settings |= {"attention_queries": NUM_QUERIES, "bootstrap": "Poisson over images"}
    stored = session.stored(model, loader, settings=settings, summary=stats.summary, arrays=stats.arrays())
    return Part(name, model.spec.title, replace(stats, summary=stored.summary), stored)


def _measure_share(
    session: Session,
    asked: NormsOptions,
    model: Backbone,
    loader: ImageLoader,
    blocks: tuple[int, ...],
    table: TokenTable | None,
) -> NormAccumulator | None:
    """Measure this process's share of the images; None where it holds none that can be read."""
    model.module.to(session.device)
    with echo.progress(model.spec.title, len(loader)) as advance:

        def on_batch(batch: Any, norms: Any) -> None:
            advance(len(batch.names))
            if table is not None:
                table.add(batch.names, norms)
            session.shards.heed()

        try:
            return measure_norms(
                model,
                loader,
                blocks=blocks,
                after_final_norm=asked.after_final_norm,
                autocast=session.autocast,
                seed=session.options.seed,
                on_batch=on_batch,
            )
        except InputError:
            if loader.num_read:
                raise
            return None
        finally:
            model.module.to("cpu")


def _table(folder: Path, model: Backbone, shards: Shards) -> TokenTable:
    if not folder.is_dir():
        raise OutputError(f"process {shards.rank} does not see {folder}; give --out a folder that all machines share")
    return TokenTable(folder / "tokens.parquet", model.layout(), num_blocks=model.num_blocks, rank=shards.rank)


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
