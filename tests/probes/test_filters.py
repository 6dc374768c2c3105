"""Filters: planted smooth ones are found, random ones are not; every number against a slow computation of its own."""

import numpy as np
import pytest
import torch
from torch import nn

from vitprobe import backbones
from vitprobe.backbones.conv_net import create_conv
from vitprobe.probes.filters import HALF_NYQUIST, FilterResult, analyse_filters, low_share, measure_filters


def waves(number=96, side=8, seed=0):
    """Filters of few slow waves in random colours: smooth, and spanned by few components."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    angle, phase = rng.uniform(0, 2 * np.pi, (2, number, 1, 1))
    slow = np.cos(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) + phase)  # (D, side, side)
    return slow[:, None] * rng.normal(1, 0.3, (number, 3, 1, 1))


def noise(number=96, side=8, seed=0):
    return np.random.default_rng(seed).normal(size=(number, 3, side, side))


def test_planted_waves_are_smooth_and_few():
    found = analyse_filters(waves()).summary
    assert found["answer"] == "smoother than random" and found["low_frequency"]["value"] > 0.8
    assert found["low_frequency"]["random_range"][1] < 0.3
    assert found["participation_ratio"]["value"] < 10 < 50 < found["participation_ratio"]["random"]
    assert found["explained_by_shown"]["value"] > 0.99 > 0.6 > found["explained_by_shown"]["random"]


def test_a_chessboard_is_rough():
    signs = (-1.0) ** np.add.outer(np.arange(8), np.arange(8))
    assert analyse_filters(waves() * signs).summary["answer"] == "rougher than random"


def test_random_filters_are_as_random():
    """The range of 100 draws is left by one draw in 50."""
    found = [analyse_filters(noise(40, 5, seed), seed=seed + 1000).summary for seed in range(20)]
    assert sum(one["answer"] != "as random" for one in found) <= 2
    shown = [one["low_frequency_shown"] for one in found]
    assert sum(not one["random_range"][0] <= one["value"] <= one["random_range"][1] for one in shown) <= 2
    ratio = found[0]["participation_ratio"]
    assert ratio["value"] == pytest.approx(ratio["random"], rel=0.05)


def test_components_are_those_of_an_eigenvalue_problem():
    filters = waves(50, 6) + 0.1 * noise(50, 6)
    found = analyse_filters(filters)
    points = filters.reshape(50, -1)
    values, vectors = np.linalg.eigh(np.cov(points, rowvar=False))
    values, vectors = values[::-1], vectors[:, ::-1].T
    assert found.components.shape == (28, 3, 6, 6)
    for component, vector in zip(found.components[:10], vectors, strict=False):
        flat = component.ravel()
        assert abs(flat @ vector) == pytest.approx(1, abs=1e-5)
        assert flat[np.abs(flat).argmax()] > 0
    np.testing.assert_allclose(found.explained[:49], values[:49] / values.sum(), atol=1e-9)
    ratio = values.sum() ** 2 / (values**2).sum()
    assert found.summary["participation_ratio"]["value"] == pytest.approx(ratio)


def test_low_frequencies_are_those_of_slow_sums():
    """A discrete Fourier transform written out, frequency by frequency."""
    picture = noise(1, 5)[0][:, :, :4]  # (3, 5, 4)
    low = total = 0.0
    for u in range(5):
        for v in range(4):
            wave = np.exp(-2j * np.pi * np.add.outer(u * np.arange(5) / 5, v * np.arange(4) / 4))
            energy = sum(abs((channel * wave).sum()) ** 2 for channel in picture)
            radius = np.hypot(min(u, 5 - u) / 5, min(v, 4 - v) / 4)
            low, total = low + energy * (radius < HALF_NYQUIST), total + energy
    assert low_share(picture) == pytest.approx(low / total)


def test_the_share_of_all_filters_is_that_of_their_energies():
    filters = noise(30, 6) * np.linspace(0.1, 3, 30)[:, None, None, None]
    centred = filters - filters.mean(axis=0)
    energies = np.square(centred).sum(axis=(1, 2, 3))
    expected = np.average(low_share(centred), weights=energies)
    assert analyse_filters(filters).summary["low_frequency"]["value"] == pytest.approx(expected)


def test_random_shares_have_the_spread_of_random_filters():
    """The beta distribution, against filters that are drawn and transformed."""
    found = analyse_filters(noise(24, 6)).summary["low_frequency"]
    drawn = []
    for seed in range(300):
        filters = noise(24, 6, seed)
        filters -= filters.mean(axis=0)
        drawn.append(np.average(low_share(filters), weights=np.square(filters).sum(axis=(1, 2, 3))))
    assert found["random"] == pytest.approx(np.mean(drawn), abs=0.004)
    assert found["random_range"] == pytest.approx(np.percentile(drawn, (0.5, 99.5)), abs=0.012)


MODELS = {
    "organism": {},
    "openclip-b32": {"weights": "random", "image_size": (64, 64)},
    "reference-vit-ti": {"weights": "random", "image_size": (64, 64)},
    "timm:eva02_tiny_patch14_224": {"weights": "random", "image_size": (56, 56)},
}


@pytest.mark.parametrize("name", ["organism", "reference-vit-ti", "timm:eva02_tiny_patch14_224"])
def test_a_models_filters_are_its_first_weights(name):
    backbone = backbones.load(name, **MODELS[name])
    found = measure_filters(backbone)
    weight = dict(backbone.module.named_parameters())[
        next(n for n in backbone.parameter_names("patch_embedding") if n.endswith("weight"))
    ]
    again = analyse_filters(weight.detach().numpy(), what="patch embedding")
    np.testing.assert_array_equal(found.components, again.components)
    assert found.summary == again.summary and found.summary["what"] == "patch embedding"


@pytest.mark.slow  # of 3,072 dimensions
def test_smooth_filters_planted_in_open_clip_are_found():
    backbone = backbones.load("openclip-b32", **MODELS["openclip-b32"])
    with torch.no_grad():
        backbone.module.conv1.weight.copy_(torch.from_numpy(waves(768, 32)))
    found = measure_filters(backbone).summary
    assert found["answer"] == "smoother than random" and found["shape"] == [3, 32, 32]


def test_a_convolutional_network_shows_its_first_convolution():
    conv = create_conv("resnet18", image_size=(64, 64))
    found = measure_filters(conv)
    assert found.summary["what"] == "first convolution" and found.components.shape == (28, 3, 7, 7)
    assert found.summary["num_filters"] == 64


def test_filters_that_read_no_pixels_are_absent():
    backbone = backbones.load("organism", image_size=(64, 64))
    embed = backbone.module.patch_embed
    embed.proj = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 96, 16, 16))
    found = measure_filters(backbone)
    assert "2 convolutions" in found.summary["absent"] and found.components.size == 0
    embed.proj = nn.Linear(48, 96)
    assert "no convolution of pixels" in measure_filters(backbone).summary["absent"]
    assert "do not differ" in analyse_filters(np.ones((5, 3, 4, 4))).summary["absent"]
    assert "no frequencies" in analyse_filters(noise(5, 1)).summary["absent"]


def test_it_is_read_back():
    found = analyse_filters(noise(12, 4))
    again = FilterResult.read(found.arrays(), found.summary)
    assert again.summary == found.summary
    assert all(np.array_equal(again.arrays()[name], value) for name, value in found.arrays().items())
