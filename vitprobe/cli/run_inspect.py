"""The body of ``vitprobe inspect``: measure, save, draw, echo."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from vitprobe.backbones.base import Backbone
from vitprobe.backbones.canvas import canvas_transform
from vitprobe.backbones.conv_net import ConvNet, is_conv, load_conv
from vitprobe.cli import echo, echo_inspect, parse
from vitprobe.cli.inspect_result import PARTS, Inspected, draw
from vitprobe.cli.session import Options, Part, Session, exit_code, first_skipped, slug, unique
from vitprobe.errors import ArgumentError, ExitCode, InputError
from vitprobe.inputs.loading import ImageLoader
from vitprobe.probes.absent import Absent
from vitprobe.probes.attention_distance import measure_attention_distance
from vitprobe.probes.feature_maps import FeatureMaps, of_backbone, of_conv
from vitprobe.probes.filters import measure_filters
from vitprobe.probes.norms import measure_norms
from vitprobe.probes.outliers import OutlierRule
from vitprobe.probes.position_similarity import measure_position_similarity
from vitprobe.probes.shifts import Shift, default_shifts, needed_margin
from vitprobe.probes.translation import measure_translation

CONV_PARTS = ("filters", "translation")
"""What there is of a convolutional network."""
NEEDS_IMAGES = ("attention", "translation")
OUTLIERS = ("both", "with", "without")
NORM_KEYS = ("num_images", "block", "rule", "cutoff", "outlier_fraction", "outlier_fraction_ci", "verdict")
"""What is kept of the norms."""


@dataclass(frozen=True)
class InspectOptions:
    """Hold what only ``inspect`` is asked."""

    convs: tuple[str, ...]
    parts: tuple[str, ...]
    """Empty for all."""
    rule: str
    outliers: str
    block: str
    blocks: str


@dataclass(frozen=True)
class Plan:
    """Hold the options as they are used."""

    rule: OutlierRule
    parts: tuple[str, ...]
    shifts: tuple[Shift, ...]
    """Of all models: each is shifted by all of them that its image has room for."""


def run(options: Options, asked: InspectOptions) -> ExitCode:
    """Run ``inspect``; returns the exit code. Raises a `VitprobeError` where nothing could be done."""
    rule = OutlierRule.parse(asked.rule)
    named = [("--outliers", asked.outliers, OUTLIERS), *(("--part", part, tuple(PARTS)) for part in asked.parts)]
    for option, text, allowed in named:
        if text not in allowed:
            raise ArgumentError(f"got {option} {text!r}; allowed are {', '.join(allowed)}")
    session = _open(options, asked)
    for model in session.models:  # refused before anything is measured
        if isinstance(model, Backbone):
            _block(asked.block, model)
            _blocks(asked.blocks, model)
    parts = tuple(name for name in PARTS if not asked.parts or name in asked.parts)
    plan = Plan(rule, parts, default_shifts(*dict.fromkeys(_step(model) for model in session.models)))
    with session.directory() as whole:
        found = []
        for model, name in zip(session.models, session.slugs, strict=True):
            session.folder(whole, name)
            found.append(_measure(session, asked, plan, model, name))
        draw([(one.title, one.result) for one in found], whole, session.formats, outliers=asked.outliers)
        session.save(whole, found)
    echo_inspect.inspect(found, session.out, as_json=options.json)
    return exit_code(found)


def _open(options: Options, asked: InspectOptions) -> Session:
    """Open images, backbones and convolutional networks; weights are given in this order."""
    names = (*options.models, *asked.convs)
    weights = parse.one_each(options.weights, names)
    number = len(options.models)
    for name in options.models:
        if not name.startswith(("hf-hub:", "open_clip:")) and is_conv(name):
            raise ArgumentError(f"got --model {name}, a convolutional network; give --conv {name}")
    out = options.out
    if out is None:
        plain = "+".join(slug(name) for name in names)[:100]
        out = Path("runs") / "inspect" / f"{plain}-{datetime.now():%Y%m%d-%H%M%S-%f}"
    vits = replace(options, weights=tuple(weights[:number]) or ("hub",), out=out)
    session = Session.open("inspect", vits, default=("samples", "scenes"))
    size = parse.image_size(options.image_size)
    convs = tuple(
        load_conv(name, weights=given, image_size=size, seed=options.seed)
        for name, given in zip(asked.convs, weights[number:], strict=True)
    )
    models = (*session.models, *convs)
    return replace(session, options=options, models=models, slugs=unique([slug(name) for name in names]))


def _step(model: Backbone | ConvNet) -> tuple[int, int]:
    return model.patch_size if isinstance(model, Backbone) else model.stride


def _block(text: str, model: Backbone) -> int:
    if text != "last" and not (text.isdecimal() and int(text) < model.num_blocks):
        raise ArgumentError(
            f"got --block {text!r}; allowed for {model.spec.title} are 0 to {model.num_blocks - 1} and last"
        )
    return parse.blocks(text, model.num_blocks)[0]


def _blocks(text: str, model: Backbone) -> tuple[int, ...]:
    found = [block for one in text.split(",") for block in parse.blocks(one.strip(), model.num_blocks)]
    return tuple(sorted(set(found)))


def _measure(session: Session, asked: InspectOptions, plan: Plan, model: Backbone | ConvNet, name: str) -> Part:
    """Measure all parts of one model: first its norms, so that outliers can be left out."""
    is_vit, seed = isinstance(model, Backbone), session.options.seed
    parts = [part for part in plan.parts if is_vit or part in CONV_PARTS]
    loader, found, norms, cutoffs = session.loader(model), {}, None, None
    model.module.to(session.device)
    if "filters" in parts:
        found["filters"] = measure_filters(model, seed=seed)
    if "positions" in parts:
        found["positions"] = measure_position_similarity(model, seed=seed)
    if is_vit and set(parts) & set(NEEDS_IMAGES):
        norms, cutoffs = _norms(session, plan.rule, model, loader)
    if "attention" in parts:
        found["attention"] = _pass(
            f"{model.spec.title}: attention",
            loader,
            lambda advance: measure_attention_distance(
                model,
                loader,
                cutoff=norms["cutoff"],
                blocks=_blocks(asked.blocks, model),
                seed=seed,
                autocast=session.autocast,
                on_batch=advance,
            ),
        )
    if "translation" in parts:
        found["translation"], canvases = _translation(session, asked, plan, model, cutoffs)
        loader = loader if is_vit else canvases
    model.module.to("cpu")
    summary = _facts(model) | {"norms": norms} | {part: result.summary for part, result in found.items()}
    settings = {"rule": str(plan.rule), "parts": list(plan.parts), "convs": list(asked.convs)}
    settings |= {key: getattr(asked, key) for key in ("outliers", "block", "blocks")}
    inspected = Inspected(summary, found)
    stored = session.stored(model, loader, settings=settings, summary=summary, arrays=inspected.arrays())
    return Part(name, model.spec.title, replace(inspected, summary=stored.summary), stored)


def _facts(model: Backbone | ConvNet) -> dict[str, Any]:
    facts = {"kind": "convolutional", "image_size": list(model.spec.image_size), "step": list(_step(model))}
    if isinstance(model, Backbone):
        facts |= {"kind": "transformer", "num_registers": model.spec.num_registers, "num_blocks": model.num_blocks}
        facts |= {"num_heads": model.num_heads}
    return facts


def _norms(
    session: Session, rule: OutlierRule, model: Backbone, loader: ImageLoader
) -> tuple[dict[str, Any], np.ndarray]:
    """Measure norms: what is said of the last block, and the rule's cutoff at every block, nan for none."""
    accumulator = _pass(
        f"{model.spec.title}: norms",
        loader,
        lambda advance: measure_norms(
            model,
            loader,
            autocast=session.autocast,
            seed=session.options.seed,
            on_batch=lambda batch, _: advance(batch),
        ),
    )
    stats = accumulator.result(rule, point=model.num_blocks - 1)
    return {key: stats.summary[key] for key in NORM_KEYS}, stats.cutoffs


def _translation(
    session: Session, asked: InspectOptions, plan: Plan, model: Backbone | ConvNet, cutoffs: np.ndarray | None
) -> tuple[Any, ImageLoader]:
    """Shift images under a model by as much as its image has room for; returns the loader too, for its account."""
    mapped, cutoff, options = _maps(session, asked, model), None, session.options
    if cutoffs is not None and np.isfinite(cutoffs[_block(asked.block, model)]):
        cutoff = float(cutoffs[_block(asked.block, model)])
    size = model.spec.image_size
    shifts = tuple(shift for shift in plan.shifts if max(shift) <= min(size) // 2)
    canvas = canvas_transform(model.transform, size, needed_margin(shifts))
    loader = ImageLoader(session.source.items, canvas, batch_size=options.batch_size, workers=options.workers)
    if not shifts:
        return Absent({"absent": "its image has no room to be shifted by a quarter of a step or more"}), loader
    try:
        found = _pass(
            f"{model.spec.title}: shifts",
            loader,
            lambda advance: measure_translation(
                mapped,
                loader,
                shifts=shifts,
                grouped=default_shifts(_step(model)),
                cutoff=cutoff,
                seed=options.seed,
                on_batch=advance,
            ),
        )
    except InputError:
        if loader.num_read != 1:
            raise
        return Absent({"absent": "one image could be read; chance is that of others, so it takes two or more"}), loader
    return found, loader


def _maps(session: Session, asked: InspectOptions, model: Backbone | ConvNet) -> FeatureMaps:
    if isinstance(model, ConvNet):
        return of_conv(model, autocast=session.autocast)
    block = None if asked.block == "last" else _block(asked.block, model)
    return of_backbone(model, block, autocast=session.autocast)


def _pass(title: str, loader: ImageLoader, measure: Callable[[Callable[[Any], None]], Any]) -> Any:
    """Run one measurement over the images under a progress bar; an error names what could not be read."""
    with echo.progress(title, len(loader)) as advance:
        try:
            return measure(lambda batch: advance(len(batch.names)))
        except InputError as error:
            raise InputError(f"{error}{first_skipped(loader)}") from error
