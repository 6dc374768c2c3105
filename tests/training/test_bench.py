"""The timed steps do the same work: by hand and ours, from the same weights to the same weights."""

from dataclasses import asdict

import pytest
import torch
from torch.nn import functional as F

from vitprobe.backbones.base import Backbone
from vitprobe.backbones.create import create
from vitprobe.training import bench
from vitprobe.training.engine import Engine
from vitprobe.training.recipes import resolve

SMALL = {"depth": 2, "embed_dim": 32, "num_heads": 2}
CONFIG = resolve({"batch_size": 4, "steps": 100, "schedule": "constant", "warmup": 0, "lr": 1e-3, "device": "cpu"})


def make() -> Backbone:
    return create("scenes-tiny", overrides=SMALL)


def test_every_way_is_timed_against_the_loop_by_hand() -> None:
    turns = []
    rows = bench.bench_training(make, CONFIG, num_registers=3, rounds=3, on_round=lambda: turns.append(1))
    ways = ["by hand", "by hand, again", "vitprobe, R = 0", "vitprobe, R = 3"]
    assert [row.way for row in rows] == ways
    assert len(turns) == 3
    assert rows[0].ratio == 1 and rows[0].quartiles == (1, 1)
    for row in rows:
        assert row.images_per_s > 0 and row.of_peak > 0 and row.peak_mb is not None and asdict(row)
    assert rows[0].gflops == rows[2].gflops
    assert 1 < rows[3].gflops / rows[2].gflops < (65 + 3) ** 2 / 65**2  # tokens: between linear and square


def test_another_model_is_timed_beside_with_operations_of_its_own() -> None:
    wide = {"depth": 2, "width": 64, "num_heads": 2, "patch_size": 4}
    against = ("wide", lambda: create("reference-vit-ti", image_size=(32, 32), overrides=wide))
    rows = bench.bench_training(make, CONFIG, num_registers=1, rounds=2, against=against)
    by_way = {row.way: row for row in rows}
    assert list(by_way) == ["by hand", "by hand, again", "vitprobe, R = 0", "vitprobe, R = 1", "by hand, wide"]
    assert 2 < by_way["by hand, wide"].gflops / by_way["by hand"].gflops < 4  # width: between linear and square


def test_a_step_by_hand_and_ours_end_at_the_same_weights() -> None:
    engine, theirs = Engine.open(CONFIG), make()
    ours = bench._own(make(), CONFIG, engine, 0)
    batch = bench._batch(ours.built.backbone, 4)
    before = {name: p.detach().clone() for name, p in ours.built.backbone.module.named_parameters()}
    by_hand, hand = bench._by_hand(theirs, batch, CONFIG, engine), theirs.module
    assert all(torch.equal(p, before[name]) for name, p in hand.named_parameters())
    expected = F.cross_entropy(hand(batch.views[0]), batch.labels).item()
    by_hand()
    terms = ours.take(iter([batch]), 0)
    assert float(terms["loss"]) == pytest.approx(expected, rel=1e-6)
    weights = dict(ours.built.backbone.module.named_parameters())
    decayed = {name for name, p in hand.named_parameters() if p.ndim > 1 and "token" not in name and "pos" not in name}
    for name, p in hand.named_parameters():  # by hand everything decays, by lr x decay; ours spares some
        atol = 1e-6 if name in decayed else 1e-3 * CONFIG.weight_decay * float(before[name].abs().max()) + 1e-6
        assert torch.allclose(p, weights[name], atol=atol), name
        assert not torch.equal(p, before[name]), name
