"""The value projection and its null space: on planted projections, on organisms, against the models' own weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vitprobe import backbones
from vitprobe.errors import ArgumentError, InputError
from vitprobe.inputs.loading import ImageLoader
from vitprobe.inputs.scenes import MIXED, scene_items
from vitprobe.probes.by_image import NO_OUTLIERS
from vitprobe.probes.norms import measure_norms
from vitprobe.probes.null_space import (
    NullSpaceAccumulator,
    NullSpaceReader,
    ValueBasis,
    ValueProjection,
    spectrum,
    value_projection,
)
from vitprobe.probes.outliers import OutlierRule
from vitprobe.probes.passes import run_pass
from vitprobe.recorder import Recorder, Site

WIDTH, IMAGES, PATCHES = 24, 16, 30


def planted(*, rank=16, seed=0):
    """A projection with a null space of ``WIDTH - rank`` directions, and a basis: read ones, then null ones."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))
    weight = rng.normal(size=(WIDTH, rank)) @ basis[:, :rank].T
    return ValueProjection(weight.reshape(3, 8, WIDTH), rng.normal(size=(3, 8))), basis


def tokens(*, seed=0, share=0.2):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(IMAGES, PATCHES, WIDTH)).astype(np.float32)
    return x, rng.random((IMAGES, PATCHES)) < share


def gathered(projection, x, outliers, *, eps=1e-2, seed=0):
    accumulator = NullSpaceAccumulator(ValueBasis.of(projection), eps=eps, seed=seed)
    for start in range(0, IMAGES, 5):
        part = slice(start, start + 5)
        accumulator.update(range(IMAGES)[part], torch.from_numpy(x[part]), outliers[part])
    return accumulator


FAMILIES = ["timm-reg4", "timm-qk-norm", "timm-gated", "timm-eva", "timm-eva-split", "timm-eva-groups", "clip"]


def own_weights(backbone, index):
    """The rows of the value projection as each library stores them: weight (D, D), bias (D,)."""
    attn, width = backbone.attention(index), backbone.width
    if hasattr(attn, "in_proj_weight"):
        return attn.in_proj_weight[2 * width :], attn.in_proj_bias[2 * width :]
    if getattr(attn, "qkv", None) is not None:
        bias = attn.v_bias if getattr(attn, "v_bias", None) is not None else attn.qkv.bias[2 * width :]
        return attn.qkv.weight[2 * width :], bias
    groups = width // attn.v_proj.weight.shape[0]
    parts = attn.v_proj.weight, attn.v_proj.bias
    return tuple(p.unflatten(0, (4 // groups, -1)).repeat_interleave(groups, dim=0).flatten(0, 1) for p in parts)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_projection_is_that_of_the_weights(name, make_tiny):
    backbone = make_tiny(name)
    found = value_projection(backbone, 1)
    weight, bias = own_weights(backbone, 1)
    np.testing.assert_allclose(found.weight.reshape(weight.shape), weight.detach().numpy(), atol=2e-6)
    np.testing.assert_allclose(found.bias.ravel(), bias.detach().numpy(), atol=2e-6)


def test_what_is_no_plain_projection_is_refused(make_tiny, monkeypatch):
    backbone = make_tiny()
    own = backbone.query_key_value
    monkeypatch.setattr(backbone, "query_key_value", lambda i, x: (x, x, own(i, x)[2].tanh()))
    with pytest.raises(ArgumentError, match="not affine"):
        value_projection(backbone, 0)
    monkeypatch.setattr(backbone, "query_key_value", lambda i, x: (x, x, torch.zeros_like(own(i, x)[2])))
    with pytest.raises(ArgumentError, match="is 0"):
        value_projection(backbone, 0)


def test_spectra_are_those_of_planted_singular_values():
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0] for _ in range(2))
    singular = np.r_[np.geomspace(5, 0.04, WIDTH - 1), 0.0]
    projection = ValueProjection((left * singular @ right).reshape(3, 8, WIDTH), np.zeros((3, 8)))
    np.testing.assert_allclose(spectrum(projection), singular / 5, atol=1e-12)
    basis = ValueBasis.of(projection)
    assert [basis.num_null(eps) for eps in (1e-3, 1e-2, 0.5)] == [1, 3, int((singular < 2.5).sum())]  # 0.04 and 0.0498
    low = ValueProjection(projection.weight[:1], np.zeros((1, 8)))  # 8 of 24 rows: 16 directions are beyond its rank
    assert (spectrum(low)[8:] == 0).all() and ValueBasis.of(low).num_null(1e-6) == 16


def test_readings_are_those_of_the_matrix():
    projection, _ = planted(rank=WIDTH)
    x, _ = tokens()
    shares, gain, values = (part.numpy() for part in ValueBasis.of(projection).read(torch.from_numpy(x)))
    weight, bias = projection.weight.reshape(-1, WIDTH), projection.bias.ravel()
    largest = np.linalg.norm(weight, 2)
    for b, p in [(0, 0), (3, 7), (15, 29)]:
        made = weight @ x[b, p]
        assert gain[b, p] == pytest.approx(np.linalg.norm(made) / np.linalg.norm(x[b, p]) / largest, rel=1e-4)
        assert values[b, p] == pytest.approx(np.linalg.norm(made + bias), rel=1e-4)
    assert shares.sum(axis=-1) == pytest.approx(np.ones((IMAGES, PATCHES)), abs=1e-5)


def test_outliers_planted_in_the_null_space_are_found_there():
    projection, basis = planted()
    x, outliers = tokens()
    x[outliers] = (0.05 * x[outliers] + 8 * basis[:, 20]).astype(np.float32)
    found = gathered(projection, x, outliers).summary()
    assert found["answers"] == {"in_null_space": "yes", "weaker": "yes"} and found["num_null"] == 8
    assert found["null_share"]["outliers"]["value"] > 0.99 and found["gain"]["outliers"]["value"] < 0.02
    assert found["null_share"]["others"]["value"] == pytest.approx(8 / WIDTH, abs=0.02)
    x[outliers] = 0
    assert gathered(projection, x, outliers).summary()["gain"]["outliers"]["value"] == 0


def test_outliers_along_the_strongest_direction_are_not():
    projection, _ = planted()
    x, outliers = tokens()
    x[outliers] = ValueBasis.of(projection).directions[0].astype(np.float32)
    found = gathered(projection, x, outliers).summary()
    assert found["answers"] == {"in_null_space": "no", "weaker": "no"}
    assert found["gain"]["outliers"]["value"] == pytest.approx(1, abs=1e-5)


def test_random_tokens_are_like_random_directions():
    projection, _ = planted()
    answers = []
    for seed in range(10):
        found = gathered(projection, *tokens(seed=seed), seed=seed).summary()
        answers.append(found["answers"]["weaker"])
        for name in ("null_share", "gain"):
            assert found[name]["others"]["value"] == pytest.approx(found["random"][name], abs=0.03)
    assert answers.count("not clear") >= 8
    assert gathered(projection, *tokens(share=0)).summary()["answers"]["weaker"] == NO_OUTLIERS


def test_sums_are_those_of_a_loop_and_merge():
    projection, _ = planted()
    x, outliers = tokens()
    whole = gathered(projection, x, outliers)
    _, _, directions = np.linalg.svd(projection.weight.reshape(-1, WIDTH))
    null = [np.square(directions[16:] @ t).sum() / np.square(t).sum() for t in x[outliers].astype(float)]
    assert whole.summary()["null_share"]["outliers"]["value"] == pytest.approx(np.mean(null), abs=1e-5)
    energy = np.mean([np.square(directions @ t) / np.square(t).sum() for t in x[~outliers].astype(float)], axis=0)
    np.testing.assert_allclose(whole.energy[1] / whole.counts[1], energy, atol=1e-5)
    parts = NullSpaceAccumulator(whole.basis)
    for chosen in ([9, 15, 3], [i for i in range(IMAGES) if i not in (9, 15, 3)]):
        part = NullSpaceAccumulator(whole.basis)
        part.update(chosen, torch.from_numpy(x[chosen]), outliers[chosen])
        parts.merge(part)
    one, other = whole.summary()["gain"]["difference"], parts.summary()["gain"]["difference"]
    assert one["value"] == pytest.approx(other["value"]) and one["interval"] == pytest.approx(other["interval"])
    with pytest.raises(ArgumentError, match="different projections"):
        whole.merge(NullSpaceAccumulator(ValueBasis.of(planted(seed=1)[0])))


@pytest.fixture(scope="module")
def scenes():
    return scene_items(8, config=replace(MIXED, size=(224, 224)), seed=0)


@pytest.mark.parametrize("name", ["organism", "organism-clean"])
def test_organisms(scenes, name):
    """The organism's values do not read the dimension that its outliers are massive in."""
    backbone = backbones.load(name)
    batches = list(ImageLoader(scenes, backbone.transform, workers=0))
    cutoff = measure_norms(backbone, batches).result(OutlierRule.parse("auto"), point=7).summary["cutoff"]
    reader = NullSpaceReader(backbone, block=7, cutoff=cutoff)
    run_pass(backbone, batches, [reader])
    found = reader.result()
    assert found.spectrum.shape == (8, 96) and found.heads.shape == (4, 24)
    assert found.heads.max() <= 1 == found.spectrum[:, 0].min() and not found.heads[0].any()  # head 0 has no values
    site, norms = Site("attention_input", 7), Site("resid_post", 7)
    with torch.no_grad(), Recorder(backbone, [site, norms]) as recorder:
        backbone(torch.cat([batch.images for batch in batches]))
        taken = recorder.take()
    read, stream = (taken[s][:, backbone.layout().patches].double().flatten(0, 1) for s in (site, norms))  # (n, D)
    weight = backbone.module.blocks[7].attn.qkv.weight.detach().double()[192:]
    made = (read @ weight.T).norm(dim=1) / read.norm(dim=1) / torch.linalg.matrix_norm(weight, 2)
    over = stream.norm(dim=1) >= (torch.inf if cutoff is None else cutoff)
    assert found.summary["gain"]["others"]["value"] == pytest.approx(made[~over].mean().item(), rel=1e-3)
    assert found.summary["num_outliers"] == int(over.sum())
    if name == "organism":
        assert found.summary["answers"] == {"in_null_space": "yes", "weaker": "yes"}
        assert found.summary["gain"]["outliers"]["value"] == pytest.approx(made[over].mean().item(), rel=1e-3)
        assert found.energy.sum(axis=1) == pytest.approx([1, 1], abs=1e-4)
    else:
        assert set(found.summary["answers"].values()) == {NO_OUTLIERS} and np.isnan(found.energy[0]).all()


def test_what_is_not_there_is_refused(make_tiny):
    backbone = make_tiny()
    with pytest.raises(ArgumentError, match="block 5"):
        NullSpaceReader(backbone, block=5, cutoff=None)
    for eps in (0, 1, float("nan")):
        with pytest.raises(ArgumentError, match="eps"):
            NullSpaceReader(backbone, block=0, cutoff=None, eps=eps)
    with pytest.raises(InputError, match="no image"):
        NullSpaceReader(backbone, block=0, cutoff=None).result()
