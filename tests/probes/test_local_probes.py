"""Position and pixel probes on tokens that know, on noise, and on a model's own patch embedding."""

from dataclasses import replace
from itertools import product
from math import dist

import numpy as np
import pytest
import torch
from torch import nn

from vitprobe import backbones
from vitprobe.errors import ArgumentError, InputError
from vitprobe.inputs.loading import ImageBatch
from vitprobe.inputs.scenes import MIXED, generate
from vitprobe.probes.local_probes import (
    chance_of,
    difference,
    patchify,
    pixel_probe,
    pixel_probes,
    position_probe,
    position_probes,
    probe_pairs,
    scored,
    token_pixels,
)
from vitprobe.probes.token_features import draw_tokens
from vitprobe.probes.token_sets import TokenSet, random_like

GRID = (3, 4)


def token_set(features, positions, *, images=None, grid=GRID, **fields):
    number = len(features)
    images = np.arange(number) if images is None else images
    made = TokenSet(
        "normal", 7, "resid_post", 50.0, grid, 1, features.astype(np.float32), images, positions,
        np.zeros(number, int), number, 0,
    )  # fmt: skip
    return replace(made, **fields)


def everywhere(times, *, seed=0):
    """Each position of the grid equally often, shuffled: (N, 2)."""
    places = np.array(list(product(range(GRID[0]), range(GRID[1]))) * times)
    return np.random.default_rng(seed).permutation(places)


def noise(times, seed):
    rng = np.random.default_rng(seed)
    return token_set(rng.normal(size=(12 * times, 16)), everywhere(times, seed=seed))


def batches(images, size=5):
    for i in range(0, len(images), size):
        part = images[i : i + size]
        where = tuple(range(i, i + len(part)))
        yield ImageBatch(tuple(map(str, where)), part, ("",) * len(part), where)


def test_positions_in_the_features_are_read():
    places = everywhere(8), everywhere(5, seed=1)
    train, test = (token_set(np.eye(12)[p @ (4, 1)], p) for p in places)
    found = position_probe(train, test)
    assert found.accuracy == 1.0 and found.distance == 0.0 and found.num_unseen == 0
    assert (found.trained_on, found.tested_on, found.block, found.point) == ("normal", "normal", 7, "resid_post")


def test_noise_knows_no_position_and_chance_is_enumerated():
    found = position_probe(noise(25, 0), replace(noise(100, 1), kind="outlier"))
    cells = list(product(range(3), range(4)))
    expected = np.mean([dist(one, other) for one in cells for other in cells])
    assert found.chance == pytest.approx(1 / 12) and found.interval[0] < 1 / 12 < found.interval[1]
    assert found.chance_distance == pytest.approx(expected)
    assert found.distance == pytest.approx(expected, abs=0.1) and found.tested_on == "outlier"


def test_chance_knows_that_positions_are_not_even():
    """Three quarters of the training tokens in a corner, the test tokens at the other end of its row or in it."""
    train_at = np.array([[0, 0]] * 30 + [[2, 3]] * 10)
    test_at = np.array([[0, 0], [0, 0], [0, 3], [2, 3]])
    rng = np.random.default_rng(0)
    found = position_probe(token_set(rng.normal(size=(40, 3)), train_at), token_set(rng.normal(size=(4, 3)), test_at))
    guesses = [dist(a, b) for a in train_at for b in test_at]
    assert found.chance_distance == pytest.approx(np.mean(guesses))
    assert found.chance == 0.5 and found.num_unseen == 1


def test_the_distance_is_of_the_prediction():
    """Features that name the neighbour to the right: no position is right, each is one patch off."""
    places = everywhere(8)
    shifted = np.c_[places[:, 0], places[:, 1] ^ 1]  # 0 <-> 1, 2 <-> 3
    train, test = token_set(np.eye(12)[places @ (4, 1)], places), token_set(np.eye(12)[shifted @ (4, 1)], places)
    found = position_probe(train, test, solver="torch")
    assert found.accuracy == 0.0 and found.distance == pytest.approx(1.0)


@pytest.mark.parametrize("patch", [(4, 4), (2, 8), (8, 3)])
def test_patchify_is_unfold(patch):
    pixels = torch.rand(2, 3, 8, 24, generator=torch.Generator().manual_seed(0))
    expected = nn.Unfold(patch, stride=patch)(pixels).transpose(1, 2)
    assert torch.equal(patchify(pixels, patch), expected)
    scrambled = pixels.reshape(expected.shape)  # what a public probe takes for patches
    assert not torch.allclose(scrambled, expected)


@pytest.mark.parametrize("name", ["timm-reg4", "clip"])
def test_patchify_times_the_kernel_is_the_patch_embedding(make_tiny, name):
    backbone = make_tiny(name)
    images = torch.randn(2, 3, *backbone.spec.image_size, generator=torch.Generator().manual_seed(0))
    module = backbone.patch_embedding
    conv = module if isinstance(module, nn.Conv2d) else module.proj
    with torch.no_grad():
        expected = backbone.patch_tokens(module(images))  # (B, P, D)
        got = patchify(images, backbone.patch_size) @ conv.weight.flatten(1).T
        got = got if conv.bias is None else got + conv.bias
    assert torch.allclose(got, expected, atol=1e-5) and expected.std() > 0.1


def test_pixels_are_read_through_any_invertible_map_and_not_from_noise():
    rng = np.random.default_rng(0)
    pixels = [rng.uniform(size=(number, 24)).astype(np.float32) for number in (400, 200)]
    mixing = rng.normal(size=(24, 24))
    places = [np.zeros((len(one), 2), int) for one in pixels]
    train, test = (token_set(one @ mixing + 4, at) for one, at in zip(pixels, places, strict=True))
    found = pixel_probe(train, pixels[0], test, pixels[1])
    constant = np.linalg.norm(pixels[1] - pixels[0].mean(0), axis=1).mean()
    assert found.constant_error == pytest.approx(constant) and found.error < 1e-4 * constant
    blind = [token_set(rng.normal(size=(len(one), 24)), at) for one, at in zip(pixels, places, strict=True)]
    lost = pixel_probe(blind[0], pixels[0], blind[1], pixels[1])
    assert lost.error == pytest.approx(constant, rel=0.02) and lost.constant_error == pytest.approx(constant)


def test_tokens_of_one_image_stay_together_where_the_strength_is_chosen():
    """Ten tokens an image that name the image and nothing else: its other tokens must not vouch for it."""
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(36), 10)
    places, looks = everywhere(3)[image], rng.normal(size=(36, 5))[image]
    tokens = token_set(np.eye(36)[image] + 0.01 * rng.normal(size=(360, 36)), places, images=image)
    alone = replace(tokens, images=np.arange(360))
    for train, alike in ((tokens, False), (alone, True)):
        assert (max(position_probe(train, tokens).fit.held_out) > 0.9) == alike
        assert (min(pixel_probe(train, looks, tokens, looks).fit.held_out) < 0.1) == alike


@pytest.fixture(scope="module")
def organism():
    return backbones.load("organism", image_size=(128, 128))


@pytest.fixture(scope="module")
def images():
    return generate(24, config=replace(MIXED, size=(128, 128)), seed=7).images * 2 - 1


def test_the_pixels_of_drawn_tokens_are_those_of_their_patches(organism, images, tmp_path):
    found = draw_tokens(organism, batches(images), rule_cutoff=50.0, num_draws=2, folder=tmp_path)
    sets = [found["normal", 7], found["outlier", 7]]
    assert all(len(one.images) > 10 for one in sets)
    for unit, shown in (("model", images), ("unit", (images + 1) / 2)):
        for one, pixels in zip(sets, token_pixels(organism, batches(images, 7), sets, unit=unit), strict=True):
            for i, (image, (row, col)) in enumerate(zip(one.images, one.positions, strict=True)):
                patch = shown[image, :, 16 * row : 16 * row + 16, 16 * col : 16 * col + 16]
                assert pixels[i] == pytest.approx(patch.numpy().ravel(), abs=1e-6)
    with pytest.raises(InputError, match="4 images of the drawn tokens"):
        token_pixels(organism, batches(images[:20]), sets)
    for wrong, says in (
        ({"sets": [found["cls", 7]]}, "cls tokens, which have no patch"),
        ({"unit": "bytes"}, "model and unit"),
        ({"batches": batches(images[:, :, :64])}, "drawn from images of"),
    ):
        with pytest.raises(ArgumentError, match=says) as caught:
            token_pixels(organism, **({"batches": batches(images), "sets": sets} | wrong))
        assert "\n" not in str(caught.value)


def test_what_cannot_be_compared_is_refused():
    train, test = noise(2, 0), noise(2, 1)
    pixels = np.zeros((24, 3), np.float32)
    for wrong, says in (
        ({"kind": "cls"}, "no patch"),
        ({"point": "final_norm"}, "final_norm of block 7"),
        ({"block": 3}, "of block 3"),
        ({"grid": (4, 3)}, "at one point, block and grid"),
    ):
        for probe in (lambda a, b: position_probe(a, b), lambda a, b: pixel_probe(a, pixels, b, pixels)):
            with pytest.raises(ArgumentError, match=says):
                probe(train, replace(test, **wrong))
    for size in ((5, 4), (0, 4)):
        with pytest.raises(ArgumentError, match="whole"):
            patchify(torch.zeros(1, 3, 8, 8), size)


def knowing(times, *, seed, kind="normal", noise=0.0):
    """Tokens that name their place, but for noise, and whose pixels are a map of them; three an image."""
    rng = np.random.default_rng(seed)
    places = everywhere(times, seed=seed)
    features = np.eye(12)[places @ (4, 1)] + noise * rng.normal(size=(12 * times, 12))
    pixels = (features @ np.random.default_rng(9).normal(size=(12, 24))).astype(np.float32)
    images = np.repeat(np.arange(4 * times), 3)
    return token_set(features, places, images=images, kind=kind, pixels=pixels)


def test_one_probe_is_tested_on_several_sets():
    train, tests = knowing(8, seed=0), [knowing(4, seed=1), knowing(4, seed=2, kind="outlier", noise=0.7)]
    places, looks = position_probes(train, tests, grid=(1.0,)), pixel_probes(train, tests, grid=(1.0,))
    for test, place, look in zip(tests, places, looks, strict=True):
        assert place == position_probe(train, test, grid=(1.0,)) and place.tested_on == test.kind
        assert look == pixel_probe(train, train.pixels, test, test.pixels, grid=(1.0,))
        assert place.hits.mean() == pytest.approx(place.accuracy) and place.images is test.images
        assert place.distances.mean() == pytest.approx(place.distance)
        assert (place.distances == 0).tolist() == place.hits.tolist()
        assert look.errors.mean() == pytest.approx(look.error)
    assert places[0].accuracy == 1.0 and 0.2 < places[1].accuracy < 0.9
    with pytest.raises(ArgumentError, match="tokens without pixels"):
        pixel_probes(train, [replace(tests[0], pixels=None)])


def test_pairs_of_kinds_share_the_probe_that_they_were_trained_by():
    """Outliers whose features name the place by another code: their own probe reads it, that of the others does not."""
    sets = {"normal": (knowing(8, seed=0), knowing(4, seed=1)), "outlier": (knowing(8, seed=2), knowing(4, seed=3))}
    turned = [replace(one, kind="outlier", features=np.roll(one.features, 5, axis=1)) for one in sets["outlier"]]
    sets["outlier"] = tuple(turned)
    sets["random"] = tuple(random_like(one, seed=i) for i, one in enumerate(sets["normal"]))
    pairs = [("normal", "normal"), ("random", "random"), ("outlier", "outlier"), ("normal", "outlier")]
    found = probe_pairs(sets, pairs, alpha_grid=(1.0,), grid=(1.0,), seed=3)
    assert list(found) == pairs
    assert [(both[0].trained_on, both[0].tested_on) for both in found.values()][2:] == [
        ("outlier", "outlier"), ("normal", "outlier")]  # fmt: skip
    scores = {pair: scored(both, seed=0) for pair, both in found.items()}
    assert [scores[pair]["position"].value for pair in pairs[::2]] == [1.0, 1.0]
    assert scores["normal", "outlier"]["position"].value == 0.0
    blind = scores["random", "random"]
    assert blind["position"].value < 0.4 and blind["distance"].value > 1.0
    for pair, both in found.items():
        chance = chance_of(both)
        assert chance["position"] == pytest.approx(1 / 12) and chance["pixels"] == both[1].constant_error, pair
        assert scores[pair]["distance"].value == pytest.approx(both[0].distance)
        assert scores[pair]["pixels"].value == pytest.approx(both[1].error)
        assert scores[pair]["pixels"].num_images == 16


def test_a_difference_of_kinds_is_that_within_images():
    train, near = knowing(8, seed=0), knowing(8, seed=1)
    far = knowing(8, seed=2, kind="outlier", noise=1.5)
    sets = {"normal": (train, near), "outlier": (train, far)}
    found = probe_pairs(sets, [("normal", "normal"), ("normal", "outlier")], alpha_grid=(1.0,), grid=(1.0,))
    normal, outlier = found.values()
    by_hand = [outlier[0].hits[far.images == i].mean() - normal[0].hits[near.images == i].mean() for i in range(32)]
    apart = difference("position", outlier, normal, seed=0)
    assert apart.value == pytest.approx(np.mean(by_hand)) and apart.interval[1] < 0 and apart.num_images == 32
    assert difference("distance", outlier, normal, seed=0).interval[0] > 0
    assert difference("pixels", outlier, normal, seed=0).interval[0] > 0
    same = difference("pixels", normal, normal, seed=0)
    assert same.value == 0 and same.exceeds(0) == "not clear"
