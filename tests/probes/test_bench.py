"""The bench measures what it says; how fast anything is, is never asserted."""

import time

import pytest
import torch

from vitprobe import backbones
from vitprobe.inputs.loading import ImageLoader
from vitprobe.inputs.samples import sample_items
from vitprobe.probes import bench as bench_module
from vitprobe.probes.bench import attention_kept, bare, bench, end_to_end, peak_memory, ways_of


@pytest.fixture(scope="module", params=["timm:vit_tiny_patch16_224", "open_clip:ViT-B-32"])
def subject(request):
    backbone = backbones.load(request.param, weights="random", image_size=(64, 64))
    return backbone, torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_every_way_is_measured_and_recording_changes_no_bit(subject):
    backbone, images = subject
    rounds = []
    rows = bench(backbone, images, rounds=2, on_round=lambda: rounds.append(1))
    ways = [row.way for row in rows]
    assert len(rounds) == 2 and ways[:3] == ["bare forward", "bare forward again", "norms of all blocks"]
    by_way = {row.way: row for row in rows}
    assert by_way["bare forward"].ratio == 1 and by_way["bare forward"].quartiles == (1, 1)
    for way in ("norms of all blocks", "norms + CLS and register rows", "full patterns of all blocks"):
        assert by_way[way].equal_bits is True
    assert all(row.ratio > 0 and row.images_per_s > 0 and row.peak_mb > 0 for row in rows)


def test_another_model_stands_beside_and_the_reference_has_the_ways_that_it_can(subject):
    backbone, images = subject
    other = backbones.load("reference-vit-ti", weights="random", image_size=(64, 64))
    rows = bench(backbone, images, rounds=2, ways={"other": bare(other)})
    assert [(row.way, row.equal_bits) for row in rows] == [
        ("bare forward", True), ("bare forward again", True), ("other", None),
    ]  # fmt: skip
    assert set(ways_of(backbone)) - set(ways_of(other)) == {"forward_intermediates", "fused attention off, all kept"}
    assert all(row.equal_bits for row in bench(other, images, rounds=1))


def test_ratios_are_those_of_known_times(subject):
    _, images = subject
    wait = {"bare forward": 0.02, "slow": 0.06}

    def sleeping(name):
        def run(x):
            time.sleep(wait[name])
            return x

        return run

    ways = {name: sleeping(name) for name in wait}
    times = {name: [bench_module._time(run, images) for _ in range(3)] for name, run in ways.items()}
    row = bench_module._row("slow", times, True, 1.0, 2)
    assert row.ratio == pytest.approx(3, rel=0.2) and row.images_per_s == pytest.approx(2 / 0.06, rel=0.2)


def test_the_common_way_keeps_every_pattern_and_leaves_the_model_as_it_was(subject):
    backbone, images = subject
    with torch.inference_mode():
        bare = backbone(images)
        with attention_kept(backbone) as kept:
            backbone(images)
        tokens = backbone.layout().num_tokens
        assert [tuple(p.shape) for p in kept] == [(2, backbone.num_heads, tokens, tokens)] * backbone.num_blocks
        assert all(p.sum(dim=-1).allclose(torch.ones(())) for p in kept)
        assert torch.equal(backbone(images), bare)


def test_peak_memory_is_what_is_held_at_once():
    def run():
        first = torch.ones(1_000_000)  # 4 MB, freed before the next two
        del first
        return torch.ones(1_000_000) + torch.ones(2_000_000)[:1_000_000]

    assert peak_memory(run, torch.device("cpu")) == pytest.approx(16, rel=0.05)


def test_end_to_end_counts_the_images():
    backbone = backbones.load("timm:vit_tiny_patch16_224", weights="random", image_size=(64, 64))
    loader = ImageLoader(sample_items(), backbone.transform, workers=0)
    row = end_to_end(backbone, loader, torch.randn(2, 3, 64, 64), autocast=None)
    assert loader.num_read == 2 and row.ratio > 0
