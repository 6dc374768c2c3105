"""The body of ``vitprobe calibrate``."""

from dataclasses import asdict, replace
from typing import Any

from vitprobe import backbones, results
from vitprobe.backbones.base import Backbone
from vitprobe.backbones.organism import planted_truth
from vitprobe.cli import echo, parse
from vitprobe.cli.session import Options, Session, first_skipped
from vitprobe.errors import ExitCode, InputError
from vitprobe.probes.calibration import (
    EXPECTED,
    Calibration,
    calibrate_bimodality,
    calibrate_model,
    calibrate_noise,
    calibrate_organism,
)

SCHEMA = "vitprobe.calibrate/1"
NUM_IMAGES = 24
"""Images measured where no limit is given: each gives a plant."""
FEWEST = 14
"""Fewer plants than this are not found, by design (`vitprobe.probes.outliers.find_two_modes`)."""


def run(options: Options) -> ExitCode:
    """Run ``calibrate``; 1 if a check failed. Raises a `VitprobeError` where nothing could be done."""
    if options.limit is not None:
        parse.at_least("limit", options.limit, FEWEST)
    named = replace(options, inputs=options.inputs or ("samples", "scenes"), limit=options.limit or NUM_IMAGES)
    session = Session.open("calibrate", named, default=())
    found = calibrate_bimodality(seed=options.seed)
    skipped: list[tuple[str, str]] = []
    subjects = len(EXPECTED) + len(session.models)
    with results.result_directory(session.out) as folder:
        with echo.progress("calibrate", subjects) as advance:
            for name in EXPECTED:
                organism = backbones.load(name, seed=options.seed)
                images = _images(session, organism, skipped)
                found += calibrate_organism(organism, images, planted_truth)
                if name != "organism-content":  # which fires on contrast, and so on noise
                    found += calibrate_noise(organism, seed=options.seed)
                advance(1)
            for model in session.models:
                model.module.to(session.device)
                found += calibrate_model(model, _images(session, model, skipped), seed=options.seed)
                model.module.to("cpu")
                advance(1)
        stored = _stored(session, found, skipped)
        results.save(folder, stored)
    echo.not_read(stored.summary["skipped"])
    echo.calibrate(stored.summary, session.out, as_json=options.json)
    return ExitCode.DONE if found.passed and not stored.summary["skipped"] else ExitCode.PARTIAL


def _images(session: Session, model: Backbone, skipped: list[tuple[str, str]]) -> list[Any]:
    loader = session.loader(model)
    batches = list(loader)
    if 0 < sum(len(batch.names) for batch in batches) < FEWEST:
        raise InputError(f"{loader.num_read} images could be read; calibrate needs {FEWEST}{first_skipped(loader)}")
    skipped += [one for one in loader.skipped if one not in skipped]
    if not batches:
        raise InputError("no image could be read; nothing was measured")
    return batches


def _stored(session: Session, found: Calibration, skipped: list[tuple[str, str]]) -> results.StoredResult:
    models = [asdict(model.spec) for model in session.models]
    provenance = results.Provenance(
        model={"organisms": list(EXPECTED), "models": models},
        inputs={"name": session.source.name, "num_images": len(session.source.items)},
        seed=session.options.seed,
        device=session.device,
        dtype="float32",
    )
    missing = [{"name": name, "reason": reason} for name, reason in (*session.source.skipped, *skipped)]
    return results.StoredResult(
        SCHEMA,
        results.provenance_dict(provenance),
        {"inputs": session.options.inputs, "limit": session.options.limit},
        {**found.summary, "skipped": missing},
        {},
    )
