"""Attention distance of attention that is planted by hand, and of attention to which places mean nothing."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from vitprobe.backbones.base import ModelSpec, Transform
from vitprobe.backbones.create import create
from vitprobe.backbones.timm_vit import TimmViT
from vitprobe.probes.attention_distance import KINDS, OWN, PARTS, measure_attention_distance


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


GRID, PATCH = (3, 4), (8, 4)


def planted_backbone(targets: list[list[list[int]]], *, certainty: float = 4.0) -> TimmViT:
    """A ViT of one block, positions one-hot, whose head h looks from patch i evenly at ``targets[h][i]``, or anywhere.

    Patches are 8 x 4 px on a grid of 3 x 4; CLS has a position of its own, which no head looks for.
    """
    places, heads = GRID[0] * GRID[1] + 1, len(targets)
    size = (GRID[0] * PATCH[0], GRID[1] * PATCH[1])
    with torch.random.fork_rng(devices=[]):
        width = heads * (places + 1)
        module = VisionTransformer(
            size, PATCH, embed_dim=width, depth=1, num_heads=heads, num_classes=0, no_embed_class=False
        )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.blocks[0].norm1.weight.fill_(1)
        module.pos_embed[0, :, :places] = torch.eye(places)  # CLS first
        weight, dim = module.blocks[0].attn.qkv.weight, places + 1
        for head, of_head in enumerate(targets):
            for place, wanted in enumerate(of_head, start=1):
                for target in wanted:
                    weight[head * dim + target + 1, place] += certainty
                    weight[head * dim + target + 1, places] -= certainty  # what any other place has there
            weight[width + head * dim : width + head * dim + places, :places] = torch.eye(places)
    spec = ModelSpec("planted", "timm", "planted", "random (seed 0)", "", size, 0)
    return TimmViT(module.eval(), spec, Transform(lambda image: image, (0.5,) * 3, (0.5,) * 3))


def planted_targets() -> list[list[list[int]]]:
    rows, cols = GRID
    at = [(r, c) for r in range(rows) for c in range(cols)]
    two_right = [[r * cols + (c + 2) % cols] for r, c in at]
    around = [[i for i, (y, x) in enumerate(at) if max(abs(y - r), abs(x - c)) <= 1] for r, c in at]
    return [two_right, around, [[i] for i in range(len(at))], [[] for _ in at]]


def test_planted_attention_is_recovered() -> None:
    """An offset, a neighbourhood, the own patch, and nothing in particular."""
    backbone = planted_backbone(planted_targets())
    found = measure_attention_distance(backbone, batches(noise(4, backbone.spec.image_size), 4), cutoff=None)
    with_own, without = found.distance[0, :, 0]
    assert with_own[0] == pytest.approx(2 * 4)  # two patches of 4 px across
    steps = [[(8 * (i // 4 - j // 4), 4 * (i % 4 - j % 4)) for j in own] for i, own in enumerate(planted_targets()[1])]
    around = [np.mean([np.hypot(*step) for step in own]) for own in steps]
    assert with_own[1] == pytest.approx(np.mean(around))
    assert with_own[2] == pytest.approx(0, abs=1e-6)
    assert np.isnan(without[2])  # nothing is left without the own patch
    assert with_own[3] == pytest.approx(found.uniform[0, 0, 0], rel=1e-6)
    assert without[3] == pytest.approx(found.uniform[0, 0, 1], rel=1e-6)
    assert found.locality[0, 0, 0, 2] == pytest.approx(1)
    assert found.locality[0, :, 0, 3] == pytest.approx([0, 0], abs=1e-6)
    assert found.near[0, 0, 0] == pytest.approx([0, 1, 1, found.uniform[1, 0, 0]], abs=1e-6)
    low, high = found.locality_permuted[:, 0, 0, 0]
    assert (found.locality[0, 0, 0, 1:3] > high[1:3]).all()
    assert low[3] == pytest.approx(0, abs=1e-6) == high[3]
    assert found.shares[0, PARTS.index("CLS"), 0] == pytest.approx([0, 0, 0, 1 / 13], abs=1e-6)
    counts = found.summary["averages"][KINDS[0]]
    assert counts[OWN[0]]["heads more local than chance"] == [2]
    assert counts[OWN[0]]["heads less local than chance"] == [0]
    assert counts[OWN[1]]["heads measured"] == [3]


def test_the_range_is_that_of_permutations_done_by_hand() -> None:
    """Of the offset: patch t(i) at the place p[t(i)]."""
    targets = planted_targets()
    backbone = planted_backbone(targets)
    found = measure_attention_distance(backbone, batches(noise(2, backbone.spec.image_size)), cutoff=None, seed=5)
    draw = np.random.default_rng(5)
    far = []
    for _ in range(39):
        places = draw.permutation(12)
        steps = [(i // 4 - places[t] // 4, i % 4 - places[t] % 4) for i, (t,) in enumerate(targets[0])]
        far.append(np.mean([np.hypot(8 * down, 4 * across) for down, across in steps]))
    assert found.distance_permuted[:, 0, 0, 0, 0] == pytest.approx([min(far), max(far)])


def test_without_places_the_permutations_cover_it(stir: Callable[..., None]) -> None:
    """Random weights, and images without any structure: about 95 % of heads lie within the range of permutations."""
    inside, mean = [], []
    for seed in range(2):
        backbone = create("vit_tiny_patch16_224", image_size=(96, 96), seed=seed, overrides={"depth": 8})
        stir(backbone.module, seed)
        found = measure_attention_distance(backbone, batches(noise(24, (96, 96), seed), 8), cutoff=None, seed=seed)
        low, high = found.locality_permuted[:, 0, 1]
        inside.append((low <= found.locality[0, 1]) & (found.locality[0, 1] <= high))
        mean.append(found.locality[0, 1].mean())
    assert np.mean(inside) > 0.85
    assert abs(np.mean(mean)) < 0.01
