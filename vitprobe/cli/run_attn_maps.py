"""The body of ``vitprobe attn-maps``: measure, save, draw, echo."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitprobe import results
from vitprobe.backbones.base import Backbone
from vitprobe.cli import echo, parse
from vitprobe.cli.session import Options, Part, Session, exit_code, first_skipped, slug, unique
from vitprobe.errors import ArgumentError, ExitCode, InputError
from vitprobe.probes.attention import AttentionMaps, Query, check_head, measure_attention
from vitprobe.probes.outliers import OutlierRule

SCHEMA = "vitprobe.attn-maps/1"
UPSAMPLING = ("nearest", "bilinear")


@dataclass(frozen=True)
class AttentionOptions:
    """Hold what only ``attn-maps`` is asked."""

    query: str | None
    block: str
    head: str
    rollout: bool
    rule: str
    upsample: str
    overlay: bool


def run(options: Options, asked: AttentionOptions) -> ExitCode:
    """Run ``attn-maps``; returns the exit code. Raises a `VitprobeError` where nothing could be done."""
    rule, head = OutlierRule.parse(asked.rule), parse.head(asked.head)
    if asked.upsample not in UPSAMPLING:
        raise ArgumentError(f"got --upsample {asked.upsample!r}; allowed are {' and '.join(UPSAMPLING)}")
    session = Session.open("attn-maps", options, default=("samples",))
    for model in session.models:  # refused before anything is measured
        parse.blocks(asked.block, model.num_blocks)
        Query.parse(asked.query, model.layout())
        check_head(model, head)
    with results.result_directory(session.out) as whole:
        parts = []
        for model, name in zip(session.models, session.slugs, strict=True):
            session.folder(whole, name)
            parts.append(_measure(session, asked, model, name, rule, head))
        draw([(part.title, part.result) for part in parts], whole, session.formats, upsample=asked.upsample)
        if asked.overlay:
            for part in parts:
                _overlay(part.result, session.folder(whole, part.slug), session.formats, asked.upsample)
        session.save(whole, parts)
    echo.attn_maps(parts, session.out, as_json=options.json)
    return exit_code(parts)


def _measure(
    session: Session, asked: AttentionOptions, model: Backbone, name: str, rule: OutlierRule, head: int | str
) -> Part:
    loader = session.loader(model)
    model.module.to(session.device)
    with echo.progress(model.spec.title, len(session.source.items)) as advance:
        try:
            found = measure_attention(
                model,
                loader,
                query=asked.query,
                blocks=parse.blocks(asked.block, model.num_blocks),
                head=head,
                rule=rule,
                rollout=asked.rollout,
                autocast=session.autocast,
                on_batch=lambda batch: advance(len(batch.names)),
            )
        except InputError as error:
            raise InputError(f"{error}{first_skipped(loader)}") from error
    model.module.to("cpu")
    settings = {name: getattr(asked, name) for name in ("query", "block", "head", "rollout", "rule", "upsample")}
    stored = session.stored(model, loader, settings=settings, summary=found.summary, arrays=found.arrays())
    return Part(name, model.spec.title, replace(found, summary=stored.summary), stored)


def draw(
    drawn: Sequence[tuple[str, AttentionMaps]], folder: Path, formats: tuple[str, ...], *, upsample: str = "nearest"
) -> list[Path]:
    """Draw every figure of ``attn-maps`` into a folder; returns their paths."""
    if not formats:
        return []
    from vitprobe.plots import write
    from vitprobe.plots.attention import draw_maps, draw_share

    paths = write(draw_maps(drawn, upsample=upsample), folder / "maps", formats)
    return paths + write(draw_share(drawn), folder / "share", formats)


def _overlay(found: AttentionMaps, folder: Path, formats: tuple[str, ...], upsample: str) -> None:
    from vitprobe.plots import write
    from vitprobe.plots.attention import OVERLAY_DPI, draw_overlay

    (folder / "overlay").mkdir()
    stems = unique([slug(Path(str(name)).stem) for name in found.names])
    for i, stem in enumerate(stems):
        figure = draw_overlay(found, i, upsample=upsample)
        write(figure, folder / "overlay" / stem, formats or ("png",), dpi=OVERLAY_DPI)


def drawing(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a stored result that its figures depend on."""
    return {"upsample": settings.get("upsample", "nearest")}


def read_back(stored: results.StoredResult) -> AttentionMaps:
    """Return the probe's result from what is stored of it."""
    return AttentionMaps(summary=dict(stored.summary), **stored.arrays)
