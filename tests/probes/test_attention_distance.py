"""Attention distance against a slow loop of its definition, planted artifacts, shards, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from vitprobe.backbones import load
from vitprobe.backbones.base import Backbone
from vitprobe.backbones.create import create
from vitprobe.backbones.timm_vit import TimmViT
from vitprobe.errors import ArgumentError, InputError
from vitprobe.probes import attention_distance
from vitprobe.probes.attention_distance import (
    KINDS,
    PARTS,
    AttentionDistanceResult,
    DistanceReader,
    measure_attention_distance,
    summarise,
)
from vitprobe.probes.by_image import image_weights
from vitprobe.recorder import Recorder, Site, token_norms


@dataclass(frozen=True)
class Images:
    names: tuple[str, ...]
    indices: tuple[int, ...]
    images: torch.Tensor


def batches(images: torch.Tensor, size: int = 3) -> list[Images]:
    numbers = [tuple(range(i, min(i + size, len(images)))) for i in range(0, len(images), size)]
    return [Images(tuple(map(str, own)), own, images[list(own)]) for own in numbers]


def noise(number: int, size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.randn(number, 3, *size, generator=torch.Generator().manual_seed(seed))


def patterns_and_norms(backbone: Backbone, images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Whole patterns (B, L, H, T, T) and norms (B, T), in one go."""
    sites = Site("pattern").at(range(backbone.num_blocks))
    last = Site("resid_post", backbone.num_blocks - 1, reduce=token_norms)
    with torch.inference_mode(), Recorder(backbone, [*sites, last]) as recorder:
        backbone(images)
        taken = recorder.take()
    return torch.stack([taken[site] for site in sites], dim=1).double().numpy(), taken[last].numpy()


def by_loop(
    pattern: np.ndarray, outliers: np.ndarray, backbone: Backbone, *, without: bool, own: bool
) -> tuple[float, float, np.ndarray]:
    """Of one image and head, (T, T): mean distance, share nearby, other shares; as they are defined."""
    layout, (height, width) = backbone.layout(), backbone.patch_size
    cols, first = layout.grid[1], layout.patches.start
    counted = [p for p in range(layout.num_patches) if not (without and outliers[p])]
    far, near, shares = [], [], []
    for i in counted:
        total = distance = nearby = 0.0
        for j in counted:
            if j == i and not own:
                continue
            down, across = i // cols - j // cols, i % cols - j % cols
            weight = pattern[first + i, first + j]
            total += weight
            distance += weight * ((down * height) ** 2 + (across * width) ** 2) ** 0.5
            nearby += weight * (abs(down) <= 1 and abs(across) <= 1)
        far.append(distance / total)
        near.append(nearby / total)
        row = pattern[first + i]
        on_outliers = sum(row[first + j] for j in range(layout.num_patches) if outliers[j])
        groups = [row[list(layout.positions(kind))].sum() for kind in ("cls", "registers")]
        shares.append([row[first + i], *groups, on_outliers])
    return np.mean(far), np.mean(near), np.mean(shares, axis=0)


def check_against_the_loop(backbone: Backbone, images: torch.Tensor) -> AttentionDistanceResult:
    patterns, norms = patterns_and_norms(backbone, images)
    layout = backbone.layout()
    norms = norms[:, layout.patches]
    cutoff = float(np.quantile(norms[0], 0.8)) + 1e-6
    outliers = norms >= cutoff
    found = measure_attention_distance(backbone, batches(images, 2), cutoff=cutoff)
    assert found.distance.shape == (2, 2, backbone.num_blocks, backbone.num_heads)
    draws = image_weights(range(len(images)), seed=0)
    for k in range(2):
        for o in range(2):
            for block in range(backbone.num_blocks):
                for head in (0, backbone.num_heads - 1):
                    every = [
                        by_loop(patterns[b, block, head], outliers[b], backbone, without=k == 1, own=o == 0)
                        for b in range(len(images))
                    ]
                    at = (k, o, block, head)
                    far, near, shares = (np.array([one[i] for one in every]) for i in range(3))
                    assert found.distance[at] == pytest.approx(far.mean(), rel=1e-5)
                    assert found.near[at] == pytest.approx(near.mean(), rel=1e-5)
                    assert found.shares[k, :4, block, head] == pytest.approx(shares.mean(0), rel=1e-5, abs=1e-9)
                    drawn = draws.sum(0) > 0
                    again = (far @ draws)[drawn] / draws.sum(0)[drawn]
                    ends = np.quantile(again, (0.025, 0.975))
                    assert found.distance_ci[(slice(None), *at)] == pytest.approx(ends, rel=1e-5)
            even = [
                by_loop(np.ones((layout.num_tokens,) * 2), one, backbone, without=k == 1, own=o == 0)[:2]
                for one in outliers
            ]
            assert found.uniform[:, k, o] == pytest.approx(np.mean(even, axis=0), rel=1e-6)
            local = 1 - found.distance[k, o] / found.uniform[0, k, o]
            assert found.locality[k, o] == pytest.approx(local, abs=1e-6)
    number = outliers.sum(1)
    assert found.summary["outliers"]["images with"] == (number > 0).sum()
    return found


@pytest.mark.parametrize("name", ["timm-reg4", "timm-eva", "clip", "reference-no-cls"])
def test_numbers_are_those_of_a_slow_loop(make_tiny: Callable[..., Backbone], name: str) -> None:
    backbone = make_tiny(name, size=(24, 40))
    found = check_against_the_loop(backbone, noise(3, (24, 40)))
    assert json.loads(json.dumps(found.summary, allow_nan=False)) == found.summary
    prefix = found.shares[0, [PARTS.index("CLS"), PARTS.index("registers")]]
    assert (prefix[1].max() > 0) == (backbone.layout().num_registers > 0)
    assert (prefix[0].max() > 0) == (backbone.layout().cls is not None)


def test_pixels_a_token_of_a_hybrid() -> None:
    backbone = create("vit_tiny_r_s16_p8_224", image_size=(64, 96), overrides={"depth": 2})
    assert backbone.patch_size == (32, 32)
    found = check_against_the_loop(backbone, noise(3, (64, 96)))
    assert found.uniform[0, 0, 0] == pytest.approx(np.mean([np.hypot(32 * r, 32 * c) for r, c in STEPS_2_BY_3]))


STEPS_2_BY_3 = [(a - c, b - d) for a in range(2) for b in range(3) for c in range(2) for d in range(3)]


def organism_images() -> torch.Tensor:
    images = noise(8, (96, 128)).clamp(-1, 1)
    images[:, :, 32:80, 16:64] = 0  # the planted artifacts sit on plain ground
    return images


def test_artifacts_that_draw_attention_change_the_distance() -> None:
    images = organism_images()
    found = measure_attention_distance(load("organism", image_size=(96, 128)), batches(images), cutoff=60.0)
    assert found.distance.shape[0] == 2
    shares = found.shares[:, :, 6, 0]  # the head that attends to them
    assert shares[0, PARTS.index("outliers")] > 0.9
    given, left = found.distance[:, 0, 6, 0]
    assert abs(given - left) > 0.1 * left
    assert left == pytest.approx(found.uniform[0, 1, 0], rel=0.01)  # it asks for nothing else
    each = shares[0, PARTS.index("each outlier")]
    assert 0 < each < shares[0, PARTS.index("outliers")]
    assert "absent" not in found.summary["outliers"]


@pytest.mark.parametrize(("name", "cutoff", "why"), [("organism-clean", 60.0, "no patch"), ("organism", None, "rule")])
def test_without_outliers_there_is_one_kind(name: str, cutoff: float | None, why: str) -> None:
    backbone = load(name, image_size=(96, 128))
    found = measure_attention_distance(backbone, batches(organism_images()), cutoff=cutoff)
    assert found.distance.shape[0] == found.uniform.shape[1] == found.shares.shape[0] == 1
    assert list(found.summary["averages"]) == [KINDS[0]]
    assert why in found.summary["outliers"]["absent"]
    assert "\n" not in found.summary["outliers"]["absent"]
    assert not found.shares[0, PARTS.index("outliers")].any()


def test_shards_merge_to_the_whole(timm_tiny: TimmViT) -> None:
    images = noise(7, timm_tiny.spec.image_size)
    norms = patterns_and_norms(timm_tiny, images)[1]
    settings = {"cutoff": float(np.quantile(norms, 0.9)), "blocks": [1], "max_queries": 20, "seed": 3}
    whole = measure_attention_distance(timm_tiny, batches(images, 7), **settings)
    readers = [DistanceReader(timm_tiny, **settings) for _ in range(2)]
    for i, batch in enumerate(batches(images, 2)):
        readers[i % 2].take(batch)
    readers[1].accumulator.merge(readers[0].accumulator)
    merged = summarise(readers[1].accumulator)
    for name, value in whole.arrays().items():
        assert np.allclose(merged.arrays()[name], value, rtol=1e-5, atol=1e-7, equal_nan=True), name
    assert merged.summary["num_images"] == 7
    assert merged.summary["outliers"] == whole.summary["outliers"]
    assert whole.summary["queries"] == {"asking patches": 18, "lattice": [3, 6], "of": 48}
    with pytest.raises(ArgumentError, match="cannot be merged"):
        readers[0].accumulator.merge(DistanceReader(timm_tiny, cutoff=None).accumulator)


def test_chunks_change_nothing(timm_tiny: TimmViT, monkeypatch: pytest.MonkeyPatch) -> None:
    images = batches(noise(3, timm_tiny.spec.image_size))
    whole = measure_attention_distance(timm_tiny, images, cutoff=None)
    monkeypatch.setattr(attention_distance, "CHUNK_NUMBERS", 3 * 40 * timm_tiny.layout().num_tokens * 7)  # 7 at a time
    parts = measure_attention_distance(timm_tiny, images, cutoff=None)
    for name, value in whole.arrays().items():
        assert np.allclose(parts.arrays()[name], value, rtol=1e-5, atol=1e-8, equal_nan=True), name


def test_a_result_is_read_back(timm_tiny: TimmViT) -> None:
    seen = []
    found = measure_attention_distance(
        timm_tiny, batches(noise(3, timm_tiny.spec.image_size), 2), cutoff=None, on_batch=lambda b: seen.append(b.names)
    )
    assert seen == [("0", "1"), ("2",)]
    again = AttentionDistanceResult.read(found.arrays(), json.loads(json.dumps(found.summary)))
    assert again.summary == found.summary
    assert set(again.arrays()) == set(found.arrays())


def test_one_image_has_no_interval_and_half_precision_is_near(timm_tiny: TimmViT) -> None:
    image = batches(noise(1, timm_tiny.spec.image_size))
    exact = measure_attention_distance(timm_tiny, image, cutoff=None)
    assert np.isnan(exact.distance_ci).all() and np.isfinite(exact.distance).all()
    rough = measure_attention_distance(timm_tiny, image, cutoff=None, autocast=torch.bfloat16)
    assert rough.distance == pytest.approx(exact.distance, rel=0.05)


def test_one_patch_has_no_distance(make_tiny: Callable[..., Backbone]) -> None:
    found = measure_attention_distance(make_tiny(size=(8, 8)), batches(noise(2, (8, 8))), cutoff=None)
    assert found.summary["absent"] == "a grid of one patch has no distances"
    assert np.isnan(found.distance[0, 1]).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blocks": [2]}, "blocks 0 to 1"),
        ({"blocks": []}, "no block"),
        ({"cutoff": float("nan")}, "finite"),
        ({"max_queries": 0}, "from 1 on"),
    ],
)
def test_bad_arguments_are_one_line(timm_tiny: TimmViT, settings: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as raised:
        measure_attention_distance(timm_tiny, [], **({"cutoff": None} | settings))
    assert "\n" not in str(raised.value)


def test_nothing_to_measure_is_said(timm_tiny: TimmViT) -> None:
    with pytest.raises(InputError, match="no image"):
        measure_attention_distance(timm_tiny, [], cutoff=None)
    one = batches(noise(2, timm_tiny.spec.image_size))[0]
    broken = replace(one, images=torch.full_like(one.images, float("nan")))
    for cutoff in (None, 3.0):
        with pytest.raises(ArgumentError, match="not finite"):
            measure_attention_distance(timm_tiny, [broken], cutoff=cutoff)
    with pytest.raises(ArgumentError, match="loaded for"):
        measure_attention_distance(timm_tiny, [replace(one, images=one.images[..., :32])], cutoff=None)
