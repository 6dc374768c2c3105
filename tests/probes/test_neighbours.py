"""Whether outliers resemble their neighbours: on planted cosines, on organisms, against slow loops."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vitprobe import backbones
from vitprobe.backbones.organism import planted_truth
from vitprobe.errors import ArgumentError, InputError
from vitprobe.inputs.loading import ImageLoader
from vitprobe.inputs.scenes import MIXED, scene_items
from vitprobe.probes.by_image import NO_OUTLIERS
from vitprobe.probes.neighbours import EDGES, NUM_BINS, NeighbourAccumulator, NeighbourReader, smooth
from vitprobe.probes.norms import measure_norms
from vitprobe.probes.outliers import OutlierRule
from vitprobe.probes.passes import run_pass

IMAGES, PATCHES = 20, 60


def made(*, shift=0.0, share=0.1, images=IMAGES, seed=0):
    """Cosines (B, P) whose level differs from image to image, and outliers at random, raised by ``shift``."""
    rng = np.random.default_rng(seed)
    outliers = rng.random((images, PATCHES)) < share
    levels = rng.uniform(-0.2, 0.6, (images, 1))
    cosine = levels + 0.15 * rng.normal(size=outliers.shape) + shift * outliers
    return cosine.clip(-1, 1).astype(np.float32), outliers


def gathered(cosine, outliers, *, seed=0):
    accumulator = NeighbourAccumulator(seed=seed)
    for start in range(0, len(cosine), 7):
        part = slice(start, start + 7)
        accumulator.update(range(len(cosine))[part], cosine[part], outliers[part])
    return accumulator


def test_planted_outliers_are_found_to_resemble_their_neighbours():
    summary = gathered(*made(shift=0.3)).result().summary
    assert summary["answer"] == "yes" and summary["difference"]["value"] == pytest.approx(0.3, abs=0.05)
    assert summary["over_high"]["value"] > 0.5
    assert gathered(*made(shift=-0.3)).result().summary["answer"] == "no"


def test_random_outliers_are_not():
    answers, shares = [], []
    for seed in range(20):
        summary = gathered(*made(seed=seed), seed=seed).result().summary
        answers.append(summary["answer"])
        shares.append(summary["over_high"]["value"])
    assert answers.count("not clear") >= 17
    assert np.mean(shares) == pytest.approx(0.1, abs=0.03)


def test_few_images_decide_nothing():
    assert gathered(*made(shift=0.5, images=5)).result().summary["answer"] == "not clear"


def test_numbers_are_those_of_a_slow_loop():
    cosine, outliers = made(shift=0.1)
    outliers[3] = False
    found = gathered(cosine, outliers).result()
    counts, over, number = np.zeros((2, NUM_BINS), int), 0, 0
    for image, mask in zip(cosine, outliers, strict=True):
        rest = np.quantile([c for c, o in zip(image, mask, strict=True) if not o], 0.9)
        for c, o in zip(image, mask, strict=True):
            counts[0 if o else 1, min(int((float(c) + 1) * 1000), NUM_BINS - 1)] += 1
            over += o and c > rest + 1e-4
            number += o
    np.testing.assert_array_equal(found.counts, counts)
    assert found.summary["over_high"]["value"] == pytest.approx(over / number)
    assert found.summary["others"]["value"] == pytest.approx(cosine[~outliers].mean(), abs=1e-6)
    assert found.summary["difference"]["num_images"] == IMAGES - 1
    assert found.summary["num_outliers"] == outliers.sum() and found.summary["num_images"] == IMAGES


def test_merged_parts_are_the_whole():
    cosine, outliers = made(shift=0.1)
    whole, parts = gathered(cosine, outliers), NeighbourAccumulator()
    for chosen in (np.arange(12, 20), np.arange(12)):
        part = NeighbourAccumulator()
        part.update(chosen.tolist(), cosine[chosen], outliers[chosen])
        parts.merge(part)
    one, other = whole.result(), parts.result()
    np.testing.assert_array_equal(one.counts, other.counts)
    assert one.summary["difference"]["interval"] == pytest.approx(other.summary["difference"]["interval"])


def test_a_plain_sky_is_no_resemblance():
    """Cosines that differ by rounding alone are ties."""
    cosine = np.ones((10, PATCHES), np.float32)
    cosine[:, 5] += 1e-6
    outliers = np.zeros_like(cosine, bool)
    outliers[:, 5] = True
    assert gathered(cosine, outliers).result().summary["over_high"]["value"] == 0


def test_densities_are_those_of_kernels_laid_by_hand():
    values = np.array([-0.3, 0.2, 0.2, 0.95, 0.999])
    counts, _ = np.histogram(values, EDGES)
    density = smooth(counts, 0.05)
    x = (EDGES[:-1] + EDGES[1:]) / 2
    mirrored = np.concatenate([values, 2 - values, -2 - values])
    kernels = np.exp(-0.5 * ((x[:, None] - mirrored) / 0.05) ** 2) / (0.05 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(density, kernels.sum(axis=1) / len(values), atol=0.1)
    assert density.sum() * 2 / NUM_BINS == pytest.approx(1)
    assert np.isnan(smooth(np.zeros(NUM_BINS, int), 0.05)).all()
    for wrong in (1e-4, 0.6, float("nan")):
        with pytest.raises(ArgumentError, match="bandwidth"):
            smooth(counts, wrong)


@pytest.fixture(scope="module")
def scenes():
    return scene_items(10, config=replace(MIXED, size=(224, 224)), seed=0)


@pytest.mark.parametrize(
    ("name", "answer"), [("organism", "yes"), ("organism-content", "no"), ("organism-clean", NO_OUTLIERS)]
)
def test_organisms(scenes, name, answer):
    backbone = backbones.load(name)
    batches = list(ImageLoader(scenes, backbone.transform, workers=0))
    cutoff = measure_norms(backbone, batches).result(OutlierRule.parse("auto"), point=7).summary["cutoff"]
    reader = NeighbourReader(backbone, block=7, cutoff=cutoff)
    run_pass(backbone, batches, [reader])
    summary = reader.result().summary
    assert summary["answer"] == answer
    images = torch.cat([batch.images for batch in batches])
    mask = planted_truth(backbone, images).patches.numpy().astype(bool) & (cutoff is not None)
    with torch.no_grad():
        x = torch.nn.functional.normalize(backbone.module.patch_embed(images).double(), dim=-1).reshape(10, 14, 14, -1)
    cosine = np.zeros((10, 14, 14))
    for b, r, c in np.ndindex(10, 14, 14):
        near = [(r + i, c + j) for i, j in ((0, 1), (1, 0), (0, -1), (-1, 0)) if 0 <= r + i < 14 and 0 <= c + j < 14]
        cosine[b, r, c] = np.mean([float(x[b, r, c] @ x[b, i, j]) for i, j in near])
    cosine = cosine.reshape(10, -1)
    assert summary["num_outliers"] == mask.sum()
    assert summary["others"]["value"] == pytest.approx(cosine[~mask].mean(), abs=1e-5)
    if mask.any():
        assert summary["outliers"]["value"] == pytest.approx(cosine[mask].mean(), abs=1e-5)
    else:
        assert summary["difference"]["value"] is None and np.isnan(reader.result().density[0]).all()


def test_what_cannot_be_read_is_refused(make_tiny):
    with pytest.raises(ArgumentError, match="one patch"):
        NeighbourReader(make_tiny("timm-cls", size=(8, 8)), block=0, cutoff=None)
    with pytest.raises(ArgumentError, match="block 9"):
        NeighbourReader(make_tiny(), block=9, cutoff=None)
    with pytest.raises(ArgumentError, match="bandwidth"):
        NeighbourReader(make_tiny(), block=0, cutoff=None, bandwidth=0)
    with pytest.raises(InputError, match="no image"):
        NeighbourReader(make_tiny(), block=0, cutoff=None).result()
