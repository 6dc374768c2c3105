"""The criterion of emergence, on readings whose answers are known and on models whose artifacts are planted."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from vitprobe.backbones import load
from vitprobe.backbones.base import Backbone
from vitprobe.backbones.create import create
from vitprobe.errors import ArgumentError
from vitprobe.inputs.scene_stream import FIRST_HELD_OUT, patch_truth
from vitprobe.inputs.scenes import CROWDED, MIXED, SPARSE, generate
from vitprobe.probes.emergence import SceneReading, judge_all, judge_block, nearest, read_scenes, removed

N, P, L = 2000, 64, 4
PARTS = ("a gap", "b share", "c place", "d neighbours", "e attention")


def planted(*, ratio: float = 8.0, share: float = 0.02, seed: int = 0) -> SceneReading:
    """Random scenes whose outliers lie on background, are even, and receive attention in blocks 2 and 3."""
    rng = np.random.default_rng(seed)
    background = rng.random((N, P)) < 0.3
    outliers = background & (rng.random((N, P)) < share / 0.3)
    norms = 10 * rng.lognormal(0, 0.1, (L, N, P))
    norms[2:, outliers] *= ratio
    received = np.ones((L, N, P))
    received[2:, outliers] = 9
    cosine = rng.uniform(0.2, 0.6, (N, P))
    cosine[background] += 0.3
    return SceneReading(
        norms=norms.astype(np.float32),
        centred=(norms * 0.9).astype(np.float32),
        received=received,
        register_norms=np.zeros((L, 0)),
        register_received=np.zeros((L, 0)),
        cosine=cosine,
        background=background,
        ground=np.broadcast_to(rng.integers(0, 3, (N, 1)), (N, P)),
        colour=rng.integers(0, 27, (N, P)),
    )


def outliers_of(reading: SceneReading) -> np.ndarray:
    return reading.norms[3] > 30


def test_all_five_parts_hold_of_what_was_planted() -> None:
    reading = planted()
    found = judge_block(reading, 3)
    assert found.answers == dict.fromkeys(PARTS, True)
    assert found.emerged
    chosen = outliers_of(reading)
    assert found.share == pytest.approx(chosen.mean())
    assert found.looked_at == "outliers"
    assert found.background == 1.0
    assert found.background_base == pytest.approx(reading.background.mean())
    norms = np.sort(reading.norms[3].ravel())
    assert found.p99 == pytest.approx(norms[int(0.99 * norms.size)] / np.median(norms), rel=1e-3)
    assert found.largest == pytest.approx(norms[-1] / np.median(norms))
    assert found.received == pytest.approx([1, 1, 9, 9])
    assert found.attended_blocks == 2


def test_nothing_emerges_in_noise() -> None:
    for seed in range(3):
        blocks = judge_all(planted(ratio=1.0, seed=seed))
        assert not any(one.emerged or one.answers["a gap"] or one.answers["b share"] for one in blocks)
        assert {one.looked_at for one in blocks} == {"top 1 %"}
        assert blocks[0].background == pytest.approx(blocks[0].background_base, abs=0.1)


def altered(name: str) -> SceneReading:
    """What was planted, with one thing about its outliers other than an artifact's."""
    made = planted()
    chosen = outliers_of(made)
    if name == "a tail":
        norms = made.norms.copy()
        norms[3] = np.where(made.background & (norms[3] < 30), norms[3] * 2.5, norms[3])
        return replace(made, norms=norms)
    if name == "common":  # the gap is gone without the mean token
        return replace(made, centred=np.full_like(made.centred, 9.0))
    if name == "many":
        return planted(share=0.15)
    if name == "objects":
        return replace(made, background=~chosen & made.background)
    if name == "one colour":
        return replace(made, colour=np.where(chosen, 5, made.colour))
    if name == "one ground":
        return replace(made, ground=np.where(chosen, 1, made.ground))
    if name == "one place":
        away = chosen & (np.arange(P) % 8 > 1)
        return replace(made, norms=np.where(away & (np.arange(L) > 1)[:, None, None], 10, made.norms))
    if name == "uneven":
        return replace(made, cosine=np.where(chosen, 0.1, made.cosine))
    assert name == "not attended"
    return replace(made, received=np.where(np.arange(L)[:, None, None] == 3, made.received, 1.0))


@pytest.mark.parametrize(
    ("name", "failing"),
    [
        ("a tail", "a gap"),
        ("common", "a gap"),
        ("many", "b share"),
        ("objects", "c place"),
        ("one colour", "c place"),
        ("one ground", "c place"),
        ("one place", "c place"),
        ("uneven", "d neighbours"),
        ("not attended", "e attention"),
    ],
)
def test_each_part_can_fail(name: str, failing: str) -> None:
    found = judge_block(altered(name), 3)
    assert not found.answers[failing]
    assert not found.emerged


def test_the_nearest_block_meets_most_parts() -> None:
    blocks = judge_all(planted())
    assert nearest(blocks).block in (2, 3)
    assert nearest(blocks).emerged
    assert nearest(blocks[:2]).block in (0, 1)


@pytest.fixture(scope="module")
def small() -> Backbone:
    return create("scenes-tiny", seed=1, overrides={"embed_dim": 48, "depth": 3, "reg_tokens": 2})


def test_readings_against_the_model_itself(small: Backbone) -> None:
    """Norms from forward_intermediates, attention from timm's own unfused module, truth from the scenes."""
    made = read_scenes(small, config=CROWDED, num=7, seed=0)
    scenes = generate(7, config=CROWDED, seed=0, start=FIRST_HELD_OUT)
    images = ((scenes.images * 255).round() / 255 - 0.5) / 0.5
    model, layout = small.module, small.layout()
    caught: list[torch.Tensor] = []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _m, _x, y: caught.append(y))
    with torch.no_grad():
        streams = model.forward_intermediates(
            images, norm=False, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
        )
    for b, (patches, prefix) in enumerate(streams):
        assert np.allclose(made.norms[b], patches.norm(dim=2), rtol=1e-4)
        assert np.allclose(made.centred[b], (patches - patches.mean(1, keepdim=True)).norm(dim=2), rtol=1e-3)
        assert np.allclose(
            made.register_norms[b], np.median(prefix[:, layout.registers].norm(dim=2).numpy(), axis=0), rtol=1e-4
        )
        received = caught[b][:, :, layout.patches].mean((1, 2)) * layout.num_tokens
        assert np.allclose(made.received[b], received[:, layout.patches], rtol=1e-3)
        assert np.allclose(made.register_received[b], received[:, layout.registers].mean(0), rtol=1e-3)
    truth = patch_truth(scenes, 4)
    assert np.array_equal(made.background, ~truth["patch_object"].numpy())
    assert np.array_equal(made.ground[:, 5], scenes.background.numpy())
    corner = scenes.images[2, :, 4:8, 8:12].mean((1, 2))  # row 1, column 2
    red, green, blue = (min(int(3 * value), 2) for value in corner)
    assert made.colour[2, 10] == 9 * red + 3 * green + blue
    for block in model.blocks:
        block.attn.attn_drop._forward_hooks.clear()
        block.attn.fused_attn = True


def test_a_model_with_random_weights_has_grown_nothing(small: Backbone) -> None:
    blocks = judge_all(read_scenes(small, config=MIXED, num=200))
    assert not any(one.emerged or one.answers["b share"] for one in blocks)


@pytest.mark.parametrize(("name", "place"), [("organism", True), ("organism-content", False)])
def test_planted_models(name: str, place: bool) -> None:
    """An organism's tokens are outliers on the most even patches; those of ``-content`` are on objects."""
    backbone = load(name, image_size=(128, 128))
    found = judge_block(read_scenes(backbone, config=SPARSE, num=200), backbone.num_blocks - 1)
    assert found.looked_at == "outliers"
    assert found.centred_p99 > 3
    assert (found.background > found.background_base) == place
    assert found.answers["d neighbours"] == place
    assert found.answers["e attention"]
    assert not found.answers["c place"] or place


def test_few_outliers_over_many_positions_are_no_preference() -> None:
    found = judge_block(planted(share=0.004), 3)
    assert found.answers["c place"]
    assert 1 < found.position_excess <= 2


def twin(**changed: Any) -> SceneReading:
    """A variant with two registers that took over."""
    made = planted(ratio=1.0)
    taken = np.ones((L, 2))
    taken[1:3, 1] = 20
    return replace(made, register_norms=np.ones((L, 2)), register_received=taken, **changed)


def test_registers_have_removed_them() -> None:
    assert removed(twin(), 3, accuracy=0.8, control_accuracy=0.8) == dict.fromkeys(
        ("norms", "accuracy", "attention"), True
    )
    assert not removed(twin(), 3, accuracy=0.79, control_accuracy=0.8)["accuracy"]
    assert not removed(twin(norms=planted().norms), 3, accuracy=1, control_accuracy=0)["norms"]
    idle = replace(twin(), register_received=np.ones((L, 2)))
    assert not removed(idle, 3, accuracy=1, control_accuracy=0)["attention"]
    with pytest.raises(ArgumentError, match="without registers"):
        removed(planted(), 3, accuracy=1, control_accuracy=0)


def test_bad_arguments_are_one_line(small: Backbone) -> None:
    with pytest.raises(ArgumentError, match="two or more"):
        read_scenes(small, num=1)
