"""What a variant is on held-out images: the norms of ``vitprobe norms``, k-NN accuracy, the objective's measures."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from vitprobe.backbones.conv_net import ConvNet
from vitprobe.errors import InputError
from vitprobe.probes.knn import gather_features, knn_accuracy
from vitprobe.probes.norm_stats import KINDS, NormStats
from vitprobe.probes.norms import NormAccumulator, measure_norms
from vitprobe.probes.outliers import OutlierRule
from vitprobe.probes.shards import Shards, merge_norms
from vitprobe.training.engine import Engine
from vitprobe.training.held_out import HeldOut, Reader
from vitprobe.training.objectives.base import Objective

RULE = OutlierRule.parse("auto")
NOT_JUDGED = "not a transformer"
"""The verdict on a convolutional network: what outliers are is known of the tokens of transformers alone."""


@dataclass(frozen=True)
class Evaluation:
    """Hold what one look at a variant gave."""

    summary: dict[str, Any]
    """What goes into ``metrics.jsonl``."""
    norms: NormStats | None
    """Of a transformer; None of a convolutional network, whose map's norms are in `summary` alone."""


@torch.no_grad()
def evaluate(
    objective: Objective,
    held: HeldOut,
    engine: Engine,
    shards: Shards,
    *,
    blocks: Iterable[int] | None = None,
) -> Evaluation:
    """Measure a variant on held-out images; all processes take part, and all get the answer.

    The norms are those of `measure_norms` with the rule ``auto``, summarised at the last block. ``blocks``: where
    evidence is gathered, by default there alone. Of a convolutional network they are of the vectors of its last map,
    with no verdict. Raises `InputError` where no image could be read.
    """
    backbone = objective.variant()
    training = objective.training
    objective.eval()
    compiled = uncompile(backbone.module)
    try:
        norms, summary = None, {}
        if isinstance(backbone, ConvNet):
            summary = _map_summary(backbone, held, engine, shards)
        else:
            points = tuple(blocks) if blocks is not None else (backbone.num_blocks - 1,)
            norms = merge_norms(shards, _measured(objective, held, engine, points)).result(RULE, point=points[-1])
            summary = _summary(norms)
        with engine.precise():
            sums = objective.held_out(held, engine.device)
        knn = _knn(objective, held, engine, shards)
    finally:
        for block, call in compiled:
            block._compiled_call_impl = call
        objective.train(training)
    measures = {name: total / max(number, 1) for name, (total, number) in _added(sums, shards).items()}
    return Evaluation(summary | knn | measures, norms)


def _measured(objective: Objective, held: HeldOut, engine: Engine, points: tuple[int, ...]) -> NormAccumulator | None:
    """Measure this process's share; None where it has none, or none of it could be read."""
    seed = objective.config.seed
    try:
        return measure_norms(objective.variant(), held.reader, blocks=points, autocast=engine.autocast, seed=seed)
    except InputError:
        return None


def _summary(norms: NormStats) -> dict[str, Any]:
    found = norms.summary
    medians = norms.quantiles[:, KINDS.index("registers"), list(norms.levels).index(0.5)]
    return {
        "verdict": found["verdict"],
        "outlier_fraction": found["outlier_fraction"],
        "outlier_fractions": [float(value) for value in norms.outlier_fractions],
        "norm": dict(found["norm"]),
        "register_norms": [float(value) for value in medians if np.isfinite(value)],
    }


def _map_summary(conv: ConvNet, held: HeldOut, engine: Engine, shards: Shards) -> dict[str, Any]:
    """Summarise the L2 norms, in float32, of the vectors of the last map of all held-out images."""
    found = [np.zeros(0, np.float32)]
    for batch in held.reader:
        with engine.precise():
            maps = conv.feature_map(batch.images.to(engine.device))  # (B, D, rows, cols)
        found.append(maps.float().norm(dim=1).flatten().cpu().numpy())
    norms = np.concatenate([part for parts in shards.gather_all(found) for part in parts])
    if not len(norms):
        raise InputError("no image could be read; nothing can be said of the norms")
    quantiles = {"median": np.median(norms), "p99": np.quantile(norms, 0.99), "max": norms.max()}
    norm = {name: float(value) for name, value in quantiles.items()}
    return {
        "verdict": NOT_JUDGED,
        "outlier_fraction": None,
        "outlier_fractions": [],
        "norm": norm,
        "register_norms": [],
    }


def _knn(objective: Objective, held: HeldOut, engine: Engine, shards: Shards) -> dict[str, float]:
    """Compute k-NN accuracy by the features of training images; nothing where labels are missing, of one class, or
    of other classes than those held out."""
    asked, known = held.labels, held.bank.images.labels
    if asked is None or known is None or len(np.unique(known)) < 2 or not np.isin(asked, known).any():
        return {}
    bank, bank_labels = _features(objective, held.bank, engine, shards)
    queries, labels = _features(objective, held.reader, engine, shards)
    return {"knn": knn_accuracy(bank, bank_labels, queries, labels).accuracy}


def _features(objective: Objective, reader: Reader, engine: Engine, shards: Shards) -> tuple[np.ndarray, np.ndarray]:
    """Gather features of a whole set and its labels, in the order of the set."""
    backbone = objective.variant()
    found, indices = gather_features(backbone.features, reader, engine.device, autocast=engine.autocast)
    parts = [part for part in shards.gather_all((found, indices)) if len(part[1])]  # some may have had no share
    if not parts:
        raise InputError("no image could be read; nothing can be said of the features")
    features, order = (np.concatenate([part[i] for part in parts]) for i in range(2))
    placed = np.argsort(order, kind="stable")
    return features[placed], reader.images.labels[order[placed]]


def _added(sums: dict[str, tuple[float, float]], shards: Shards) -> dict[str, tuple[float, float]]:
    parts = shards.gather_all(sums)
    return {name: (sum(p[name][0] for p in parts), sum(p[name][1] for p in parts)) for name in parts[0]}


def uncompile(module: nn.Module) -> list[tuple[nn.Module, Any]]:
    """Take compiled calls off while the recorder looks inside; returns what to put back."""
    found = [(part, part._compiled_call_impl) for part in module.modules() if part._compiled_call_impl is not None]
    for part, _ in found:
        part._compiled_call_impl = None
    return found
