"""First principal components: against scikit-learn on all features at once, on planted tokens and on organisms."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from vitprobe import backbones
from vitprobe.errors import ArgumentError, InputError
from vitprobe.inputs.loading import ImageLoader
from vitprobe.inputs.scenes import MIXED, scene_items
from vitprobe.probes.by_image import NO_OUTLIERS, image_weights
from vitprobe.probes.components import ComponentReader, Moments, auroc, image_component, oriented, separation
from vitprobe.probes.norms import measure_norms
from vitprobe.probes.outliers import OutlierRule
from vitprobe.probes.passes import run_pass
from vitprobe.recorder import Recorder, Site, token_norms

CUTOFF = 100.0


def feed(reader, backbone, features, outliers, order=None):
    """Give a reader patch features (N, P, D) as if the model had made them; outliers have a norm over the cutoff."""
    layout = backbone.layout()
    order = np.arange(len(features)) if order is None else order
    for start in range(0, len(order), 3):
        chosen = order[start : start + 3]
        tokens = torch.zeros(len(chosen), layout.num_tokens, backbone.width)
        tokens[:, layout.patches] = torch.from_numpy(features[chosen])
        norms = torch.zeros(tokens.shape[:2])
        norms[:, layout.patches] = torch.from_numpy(np.where(outliers[chosen], CUTOFF, 1.0)).float()
        images = torch.full((len(chosen), 3, *backbone.spec.image_size), 0.1) * torch.tensor(chosen).view(-1, 1, 1, 1)
        names = tuple(f"image{i}" for i in chosen)
        batch = SimpleNamespace(names=names, indices=tuple(chosen.tolist()), images=images)
        reader.update(batch, dict(zip(reader.sites, (tokens, norms), strict=True)), torch.zeros(0))


def made(backbone, *, shift=0.0, share=0.05, images=10, seed=0):
    """Gaussian features (N, P, D) about one mean, and outliers at random, moved along one direction."""
    rng = np.random.default_rng(seed)
    shape = (images, backbone.layout().num_patches, backbone.width)
    outliers = rng.random(shape[:2]) < share
    direction = rng.normal(size=backbone.width)
    features = 3 + rng.normal(size=shape) + shift * outliers[..., None] * direction / np.linalg.norm(direction)
    return features.astype(np.float32), outliers


def reader_of(backbone, **options):
    return ComponentReader(backbone, block=1, cutoff=CUTOFF, point="resid_post", **options)


def test_moments_give_the_component_of_all_patches_at_once():
    x = np.random.default_rng(0).normal(size=(300, 20)) * np.linspace(3, 1, 20) + 50
    whole = PCA(10).fit(x)
    one, other = Moments(20), Moments(20)
    for moments, part in ((one, x[200:]), (other, x[:90]), (other, x[90:200])):
        moments.add(torch.from_numpy(part))
    one.merge(other)
    found = one.component()
    np.testing.assert_allclose(found.mean, whole.mean_)
    np.testing.assert_allclose(found.shares, whole.explained_variance_ratio_)
    assert found.variance == pytest.approx(whole.explained_variance_[0])
    assert abs(found.direction @ whole.components_[0]) == pytest.approx(1)
    scores = found.scores(x)
    assert scores.std(ddof=1) == pytest.approx(1) and scores.mean() == pytest.approx(0, abs=1e-9)


def test_patches_that_do_not_differ_have_none():
    moments = Moments(4)
    with pytest.raises(InputError, match="2 or more"):
        moments.component()
    moments.add(torch.zeros(9, 4))
    with pytest.raises(InputError, match="do not differ"):
        moments.component()
    assert not image_component(np.ones((9, 4))).scores(np.ones((9, 4))).any()


def test_the_component_of_an_image_is_that_of_its_singular_vectors():
    x = np.random.default_rng(1).normal(size=(50, 12))
    _, singular, right = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    found = image_component(x)
    assert abs(found.direction @ right[0]) == pytest.approx(1)
    assert found.variance == pytest.approx(singular[0] ** 2 / 49)
    assert found.shares[0] == pytest.approx(singular[0] ** 2 / np.square(singular).sum())


def test_auroc_is_scikit_learns_with_weights_and_ties():
    rng = np.random.default_rng(2)
    ranks, positive, weights = rng.integers(0, 12, 200), rng.random(200) < 0.3, rng.poisson(1.0, 200)
    assert auroc(ranks, positive, weights) == pytest.approx(roc_auc_score(positive, ranks, sample_weight=weights))
    assert np.isnan(auroc(ranks, np.zeros(200, bool), weights))


def test_the_interval_is_that_of_images_drawn_again():
    rng = np.random.default_rng(3)
    scores, outliers = rng.normal(size=(7, 15)), rng.random((7, 15)) < 0.3
    found = separation(scores, outliers, range(4, 11), seed=5)
    size = np.abs(scores)
    assert found.value == pytest.approx(roc_auc_score(outliers.ravel(), size.ravel()))
    weights = image_weights(range(4, 11), seed=5)
    repeated = [
        roc_auc_score(outliers.ravel(), size.ravel(), sample_weight=weights[:, r].repeat(15))
        for r in range(weights.shape[1])
        if (weights[:, r] @ outliers.sum(axis=1)) and (weights[:, r] @ (~outliers).sum(axis=1))
    ]
    assert found.interval == pytest.approx(tuple(np.quantile(repeated, (0.025, 0.975))))
    assert separation(scores, np.zeros_like(outliers), range(7), seed=0).value is None


def test_the_longer_tail_is_positive():
    scores = np.array([-0.2, 0.1, -0.1, 0.0, -5.0])
    np.testing.assert_array_equal(oriented(scores), -scores)
    np.testing.assert_array_equal(oriented(-scores), -scores)


@pytest.mark.parametrize("over", ["images", "each"])
def test_planted_outliers_stand_out_and_random_ones_do_not(over, make_tiny):
    backbone = make_tiny("timm-reg4")
    reader = reader_of(backbone, over=over)
    feed(reader, backbone, *made(backbone, shift=30.0, share=0.03))
    found = reader.result().summary
    assert found["answer"] == "yes" and found["auroc"]["all"]["value"] > 0.999
    assert found["variance"]["all"]["value"] > 3 * found["variance"]["without_outliers"]["value"]
    assert found["beyond"]["all"]["value"] > 0.9 and found["num_outliers"] > 10
    answers, areas = [], []
    for seed in range(20):
        reader = reader_of(backbone, over=over, seed=seed)
        feed(reader, backbone, *made(backbone, seed=seed))
        found = reader.result().summary
        answers.append(found["answer"])
        areas.append(found["auroc"]["all"]["value"])
    assert answers.count("not clear") >= 16
    assert np.mean(areas) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("over", ["images", "each"])
def test_maps_are_scikit_learns(over, make_tiny):
    backbone = make_tiny("timm-reg4")
    features, outliers = made(backbone, shift=6.0, images=7)
    reader = reader_of(backbone, over=over, num_shown=2, num_scored=5)
    feed(reader, backbone, features, outliers, order=np.array([6, 3, 0, 5, 1, 2, 4]))
    found = reader.result()
    assert list(found.example_names) == ["image0", "image1"] and found.summary["num_scored"] == 5
    np.testing.assert_array_equal(found.example_outliers.reshape(2, -1), outliers[:2])
    shares = np.zeros(2)
    for fit, chosen in enumerate((np.ones_like(outliers), ~outliers)):
        groups = [list(range(7))] if over == "images" else [[0], [1]]
        for images in groups:
            pca = PCA(1, whiten=True, svd_solver="full").fit(features[images][chosen[images]])
            shares[fit] += pca.explained_variance_ratio_[0] / len(groups)
            for i in {0, 1} & set(images):
                own = pca.transform(features[i])[:, 0].reshape(backbone.layout().grid)
                seen = found.example_maps[fit, i]
                np.testing.assert_allclose(seen * np.sign((seen * own).sum()), own, atol=1e-3)
    if over == "images":
        np.testing.assert_allclose(found.shares[:, 0], shares, atol=1e-5)


@pytest.fixture(scope="module")
def scenes():
    return scene_items(8, config=replace(MIXED, size=(224, 224)), seed=0)


@pytest.mark.parametrize("name", ["organism", "organism-clean"])
def test_organisms(scenes, name):
    backbone = backbones.load(name)
    batches = list(ImageLoader(scenes, backbone.transform, batch_size=3, workers=0))
    cutoff = measure_norms(backbone, batches).result(OutlierRule.parse("auto"), point=7).summary["cutoff"]
    readers = [ComponentReader(backbone, block=7, cutoff=cutoff, point=p) for p in ("output", "resid_post")]
    run_pass(backbone, batches, readers)
    after, before = (reader.result() for reader in readers)
    assert (after.summary["point"], before.summary["point"]) == ("final_norm", "resid_post")
    sites = [Site("final_norm"), Site("resid_post", 7)]
    with torch.no_grad(), Recorder(backbone, sites) as recorder:
        backbone(torch.cat([batch.images for batch in batches]))
        taken = recorder.take()
    for found, site in ((after, sites[0]), (before, sites[1])):
        x = taken[site][:, backbone.layout().patches].double().flatten(0, 1).numpy()
        share = PCA(1, svd_solver="full").fit(x).explained_variance_ratio_[0]
        assert found.summary["variance"]["all"]["value"] == pytest.approx(share, rel=1e-4)
        if name == "organism":
            assert found.summary["answer"] == "yes" and found.summary["auroc"]["all"]["value"] == 1
            scores, mask = found.example_maps[0], found.example_outliers
            assert scores[mask].min() > max(2.5, np.abs(scores[~mask]).max())
        else:
            assert found.summary["answer"] == NO_OUTLIERS and found.summary["auroc"]["all"]["value"] is None
            np.testing.assert_array_equal(*found.example_maps)
    norms = token_norms(taken[sites[1]])[:, backbone.layout().patches]
    assert before.summary["num_outliers"] == int((norms >= (torch.inf if cutoff is None else cutoff)).sum())


def test_points_are_those_that_the_model_has(make_tiny):
    backbone, pooled = make_tiny(), make_tiny("clip-average")
    kinds = [ComponentReader(b, block=k, cutoff=None).sites[0] for b, k in ((backbone, 1), (backbone, 0), (pooled, 1))]
    assert kinds == [Site("final_norm"), Site("resid_post", 0), Site("resid_post", 1)]
    for one, block in ((backbone, 0), (pooled, 1)):
        with pytest.raises(ArgumentError, match="right after block"):
            ComponentReader(one, block=block, cutoff=None, point="final_norm")
    wrong = ({"over": "all"}, {"point": "keys"}, {"num_shown": 9, "num_scored": 8}, {"num_shown": 0})
    for options in wrong:
        with pytest.raises(ArgumentError, match="got "):
            ComponentReader(backbone, block=1, cutoff=None, **options)
    with pytest.raises(InputError, match="no image"):
        ComponentReader(backbone, block=1, cutoff=None).result()
