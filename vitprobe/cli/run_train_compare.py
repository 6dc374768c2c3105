"""The end of ``vitprobe train-registers``: what the variants are, side by side, on the same held-out images."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from vitprobe import results
from vitprobe.backbones.base import Backbone, ModelSpec, digest_module
from vitprobe.cli import echo_train
from vitprobe.cli.train_result import write_comparison
from vitprobe.probes.attention import AttentionMaps, measure_attention
from vitprobe.probes.comparison import VariantResult
from vitprobe.probes.curves import Curve
from vitprobe.probes.norm_stats import NormStats
from vitprobe.probes.norms import NUM_QUERIES
from vitprobe.probes.outliers import OutlierRule
from vitprobe.training.build import Built
from vitprobe.training.config import TrainConfig
from vitprobe.training.data import Data
from vitprobe.training.evaluation import RULE, Evaluation, uncompile
from vitprobe.training.held_out import Reader
from vitprobe.training.metrics import read

NUM_MAPS = 6
"""Held-out images whose attention maps are kept and drawn, spread over the set: it may be sorted by class."""


def look(built: Built, evaluation: Evaluation, folder: Path, autocast: torch.dtype | None) -> VariantResult:
    """Put together what is compared of a trained variant: norms, attention maps of a few held-out images, its curve.

    Outliers in the maps are those over the cutoff that the norms of all held-out images gave, or none.
    """
    backbone = (built.spare or built.objective).variant()
    backbone.module.eval()
    uncompile(backbone.module)
    maps = maps_of(backbone, built.held_out.reader, evaluation.norms, autocast)
    measure = (built.spare or built.objective).measure
    measures = {name: value for name, value in evaluation.summary.items() if isinstance(value, float)}
    measures.pop("outlier_fraction")
    variant = built.variant
    return VariantResult(
        name=variant.name,
        title=variant.title,
        num_registers=variant.num_registers,
        norms=evaluation.norms,
        maps=maps,
        curve=Curve.of(read(folder), measure),
        measures=measures,
    )


def maps_of(backbone: Backbone, shown: Reader, norms: NormStats, autocast: torch.dtype | None) -> AttentionMaps:
    """Measure the attention maps of a few held-out images. ``norms``: of all of them, by the rule's cutoff."""
    number = len(shown.images)
    spread = sorted({(2 * i + 1) * number // (2 * NUM_MAPS) for i in range(NUM_MAPS)})
    few = Reader(shown.images, shown.transform, NUM_MAPS, 0, spread)
    found = norms.summary
    cutoff = found["cutoff"] if found["cutoff"] is not None else 2 * found["norm"]["max"]
    query = None if backbone.layout().cls is not None else "mean"  # else variants would be asked different questions
    return measure_attention(backbone, few, query=query, rule=OutlierRule("absolute", cutoff), autocast=autocast)


def trained_spec(built: Built) -> ModelSpec:
    """Return what the measured model is now: its weights are not those that it began with."""
    backbone, config = (built.spare or built.objective).variant(), built.objective.config
    trained = f"trained {config.steps} steps ({config.objective}) from {backbone.spec.weights}"
    return replace(backbone.spec, weights=trained, digest=digest_module(backbone.module))


def finish(
    config: TrainConfig,
    data: Data,
    found: Sequence[VariantResult],
    specs: Mapping[str, Any],
    digests: Sequence[str],
    directory: Path,
    *,
    device: str,
    dtype: str,
    skipped: Sequence[Mapping[str, str]],
    formats: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write the comparison into the run's folder and say what it says. ``specs``: the variants' by name."""
    digest = hashlib.sha256("".join(digests).encode()).hexdigest()
    provenance = results.Provenance(
        model={name: asdict(spec) for name, spec in specs.items()},
        inputs={"name": data.name, "num_images": len(digests), "digest": digest, "notes": {"part": "held out"}},
        seed=config.seed,
        device=device,
        dtype=dtype,
    )
    summary = {
        "objective": config.objective,
        "steps": config.steps,
        "images_seen": config.steps * config.batch_size,
        "skipped": list(skipped),
    }
    settings = config.as_dict() | {"rule": str(RULE), "attention_queries": NUM_QUERIES}
    stored = write_comparison(directory, found, results.provenance_dict(provenance), settings, summary, formats)
    echo_train.train(stored, directory, as_json=as_json)
