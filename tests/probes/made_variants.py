"""Results of trained variants, made of drawn numbers: with artifacts, with outliers on content, without either."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from vitprobe.probes.attention import AttentionMaps
from vitprobe.probes.comparison import VariantResult
from vitprobe.probes.curves import Curve
from vitprobe.probes.evidence import PatchReadings
from vitprobe.probes.norm_stats import NormStats
from vitprobe.probes.norms import NormAccumulator
from vitprobe.probes.outliers import OutlierRule
from vitprobe.tokens import TokenLayout

IMAGES, PATCH, ONSET, SHARE, RATIO = 24, 8, 2, 0.04, 8.0
AUTO = OutlierRule.parse("auto")


def make_norms(
    num_registers: int = 0,
    *,
    outliers: str = "",
    share: float = SHARE,
    judged: bool = True,
    num_blocks: int = 4,
    grid: tuple[int, int] = (6, 8),
    images: int = IMAGES,
    seed: int = 0,
) -> NormStats:
    """Draw norms around 40: with ``outliers`` a share of patches is `RATIO` times that from block `ONSET` on.

    They lie on ``artifacts``: the patches of lowest contrast, ``content``: those of highest, ``scattered``: anywhere.
    Evidence is gathered at all blocks, or at the last alone.
    """
    rng = np.random.default_rng(seed)
    layout = TokenLayout.prefix_first(has_cls=True, num_registers=num_registers, grid=grid)
    patches = layout.num_patches
    points = tuple(range(num_blocks)) if judged else (num_blocks - 1,)
    accumulator = NormAccumulator(layout, num_blocks, 16, points)
    order = rng.random((images, patches)).argsort(1).argsort(1) / (patches - 1)  # (B, P) ranks of contrast, 0 to 1
    mask = {
        "": np.zeros((images, patches), bool),
        "artifacts": rng.random((images, patches)) < 2 * share * (order < 0.5),
        "content": rng.random((images, patches)) < 2 * share * (order > 0.5),
        "scattered": rng.random((images, patches)) < share,
    }[outliers]
    growth = np.linspace(1, 2, num_blocks)[:, None, None]
    drawn = 40 * growth * np.exp(rng.normal(0, 0.12, (num_blocks, images, layout.num_tokens)))
    drawn[ONSET:, :, layout.patches] *= np.where(mask, RATIO, 1)
    drawn[ONSET:, :, layout.registers] *= 5
    drawn = drawn.astype(np.float32)
    names = tuple(f"held-out/scene_{i:03d}.png" for i in range(images))
    even = np.ones((images, patches))
    received = np.where(mask, 12.0, 0.9) * np.ones((num_blocks, 1, 1))
    readings = {}
    for point in points:
        shown = drawn[point][:, layout.patches]
        readings[point] = PatchReadings(
            names, shown, shown, even.astype(int), even, 1 - order, order, 1 - order, order, received
        )
    accumulator.update(drawn, readings)
    pixels = torch.from_numpy(np.moveaxis(pictures(images, grid), -1, 1).astype(np.float32) / 255)
    accumulator.examples.add(names, tuple(range(images)), pixels, drawn[-1][:, layout.patches].reshape(-1, *grid))
    return accumulator.result(AUTO, point=num_blocks - 1)


def pictures(number: int, grid: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Draw discs on plain ground: (number, H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    height, width = grid[0] * PATCH, grid[1] * PATCH
    y, x = np.mgrid[:height, :width]
    found = np.full((number, height, width, 3), 200, np.uint8)
    for image in found:
        for _ in range(3):
            cy, cx, r = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(0.1, 0.25) * height
            image[(y - cy) ** 2 + (x - cx) ** 2 < r**2] = rng.integers(0, 160, 3)
    return found


def make_maps(stats: NormStats, num_registers: int = 0, *, images: int = 4) -> AttentionMaps:
    """Draw maps in which outliers take 10 times the share of other patches, each register 5 times."""
    rng = np.random.default_rng(num_registers)
    rows, cols = stats.example_norms.shape[1:]
    outliers = stats.example_outliers[:images]
    weights = rng.gamma(2.0, 1.0, (len(outliers), rows, cols)) * np.where(outliers, 10, 1)
    prefix = np.array([2.0] + [5.0] * num_registers) * np.ones((len(outliers), 1))
    total = weights.sum((1, 2)) + prefix.sum(1)
    maps = (weights / total[:, None, None]).astype(np.float32)
    mass = (prefix / total[:, None]).astype(np.float32)
    block = stats.summary["block"]
    summary = {
        "num_images": len(maps),
        "query": "CLS",
        "blocks": [block],
        "head": "mean",
        "prefix_share": [[float(mass.sum(1).mean())]],
        "outlier_share": [[float((maps * outliers).sum((1, 2)).mean())]],
        "outlier_block": block,
    }
    return AttentionMaps(
        summary=summary,
        maps=maps[:, None, None],
        prefix_mass=mass[:, None, None],
        outliers=outliers,
        norms=stats.example_norms[:images],
        rollout=np.zeros((0, rows, cols), np.float32),
        images=pictures(images, (rows, cols))[: len(maps)],
        names=stats.example_names[:images],
    )


def records(
    stats: NormStats,
    *,
    steps: int = 400,
    log_every: int = 20,
    eval_every: int = 100,
    knn: bool = True,
    measure: str = "accuracy",
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Make the records of a training that ends with ``stats``: outliers and tail grow in its second half."""
    rng = np.random.default_rng(seed)
    final = stats.outlier_fractions
    medians = stats.quantiles[:, 1, list(stats.levels).index(0.5)]
    norm = stats.summary["norm"]
    for step in sorted({0, *range(log_every, steps, log_every), *range(eval_every, steps, eval_every), steps}):
        share = step / steps
        if step and (step % log_every == 0 or step == steps):
            loss = 0.4 + 2.4 * np.exp(-6 * share) + 0.12 * rng.normal() * (0.3 + np.exp(-3 * share))
            yield {"step": step, "loss": loss, "cls": loss, "gradient_norm": 1.0, "lr": 1e-3, "images_per_s": 900.0}
        if step % eval_every == 0 or step == steps:
            grown = 1 / (1 + np.exp(-14 * (share - 0.6))) if step < steps else 1.0
            look: dict[str, Any] = {
                "verdict": stats.summary["verdict"],
                "outlier_fraction": float(final[-1] * grown),
                "outlier_fractions": [float(value * grown) for value in final],
                "norm": {"median": norm["median"], "p99": norm["median"] + grown * (norm["p99"] - norm["median"])},
                "register_norms": [float(value) for value in medians if np.isfinite(value)],
                measure: 0.9 - 0.7 * np.exp(-5 * share) + 0.01 * rng.normal(),
            }
            yield {"step": step, "held_out": look | ({"knn": 0.6 - 0.4 * np.exp(-4 * share)} if knn else {})}


def make_variant(
    num_registers: int,
    *,
    outliers: str = "",
    family: str = "",
    curve: Mapping[str, Any] | None = None,
    measure: str = "accuracy",
    seed: int = 0,
    **kwargs: Any,
) -> VariantResult:
    """Make all that is compared of one variant."""
    stats = make_norms(num_registers, outliers=outliers, seed=seed + num_registers, **kwargs)
    number = {0: "no registers", 1: "1 register"}.get(num_registers, f"{num_registers} registers")
    drawn = Curve.of(records(stats, measure=measure, seed=seed + num_registers, **(curve or {})), measure)
    last = {measure: float(drawn.measure[-1]), "knn": float(drawn.knn[-1])}
    return VariantResult(
        name=f"reg{num_registers}{family}",
        title=number + (", no denoising" if family else ""),
        num_registers=num_registers,
        norms=stats,
        maps=make_maps(stats, num_registers),
        curve=drawn,
        measures={name: value for name, value in last.items() if np.isfinite(value)},
    )
