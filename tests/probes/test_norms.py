"""The probe behind ``norms``, against organisms whose truth is known and against independent computations."""

import numpy as np
import pytest
import torch

from vitprobe import backbones
from vitprobe.backbones.organism import MASSIVE, PLANTED_BLOCK, PLANTS, planted_truth
from vitprobe.errors import ArgumentError, InputError
from vitprobe.inputs.loading import ImageBatch, ImageLoader
from vitprobe.inputs.samples import sample_items
from vitprobe.inputs.scenes import MIXED, scene_items
from vitprobe.probes.norms import measure_norms, spread_queries
from vitprobe.probes.outliers import DEFAULT_RULES, OutlierRule
from vitprobe.tokens import TokenLayout

AUTO = OutlierRule.parse("auto")


def batch_of(images, start=0):
    names = tuple(f"image{start + i}" for i in range(len(images)))
    return ImageBatch(names, images, ("",) * len(images), tuple(range(start, start + len(images))))


@pytest.fixture(scope="module")
def pictures():
    from dataclasses import replace

    return [*sample_items(), *scene_items(22, config=replace(MIXED, size=(224, 224)), seed=3)]


@pytest.fixture(scope="module")
def organisms(pictures):
    """Each organism with its images, its accumulator over all blocks and its planted truth."""
    found = {}
    for name in PLANTS:
        backbone = backbones.load(name)
        batches = list(ImageLoader(pictures, backbone.transform, workers=0))
        accumulator = measure_norms(backbone, batches, blocks=range(backbone.num_blocks))
        images = torch.cat([b.images for b in batches])
        found[name] = backbone, images, accumulator, planted_truth(backbone, images)
    return found


@pytest.mark.parametrize(("name", "verdict"), [("organism", "artifacts"), ("organism-content", "content outliers")])
def test_planted_tokens_are_found_without_a_miss_or_a_false_alarm(organisms, name, verdict):
    backbone, images, accumulator, truth = organisms[name]
    stats = accumulator.result(AUTO, point=backbone.num_blocks - 1)
    assert stats.summary["verdict"] == verdict
    assert stats.summary["onset_block"] == PLANTED_BLOCK == truth.block
    with torch.no_grad():
        features = backbone.module.forward_intermediates(images, norm=False, intermediates_only=True)[
            -1
        ]  # (B, D, r, c)
    found = features.norm(dim=1).flatten(1) >= stats.summary["cutoff"]
    assert truth.patches.sum() >= len(images)
    assert torch.equal(found, truth.patches)  # precision and recall 1.0
    assert stats.summary["evidence"]["num_outliers"] == int(truth.patches.sum())
    assert stats.outlier_frequency.ravel() == pytest.approx(truth.patches.float().mean(dim=0).numpy())
    expected = np.bincount(truth.patches.sum(dim=1).numpy())
    assert stats.outliers_per_image.tolist() == expected.tolist()
    assert stats.summary["evidence"]["massive_dims"][0] == (MASSIVE, 1.0)
    assert stats.summary["evidence"]["attended_blocks"] >= 2


@pytest.mark.parametrize("name", ["organism-reg4", "organism-clean"])
def test_nothing_is_found_where_nothing_is_planted_in_patches(organisms, name):
    backbone, _, accumulator, truth = organisms[name]
    for point in range(backbone.num_blocks):
        summary = accumulator.result(AUTO, point=point).summary
        assert (summary["verdict"], summary["outlier_fraction"], summary["cutoff"]) == ("none", 0.0, None)
    assert truth.registers.all() if name == "organism-reg4" else truth.registers.numel() == 0


def test_one_image_with_few_outliers_is_unclear_not_none(organisms):
    backbone, images, _, truth = organisms["organism"]
    few = int(truth.patches.sum(dim=1).argmin())
    assert 1 <= truth.patches[few].sum() < 10
    summary = measure_norms(backbone, [batch_of(images[few : few + 1])]).result(AUTO, point=7).summary
    assert (summary["verdict"], summary["bimodal"], summary["outlier_fraction"]) == ("unclear", False, 0.0)


def test_registers_carry_the_load(organisms):
    backbone, _, accumulator, truth = organisms["organism-reg4"]
    norm = accumulator.result(AUTO, point=backbone.num_blocks - 1).summary["norm_by_kind"]
    assert norm["registers"]["median"] > 3 * norm["patches"]["max"]
    assert not truth.patches.any()


def test_outliers_lie_where_pixels_say_so(organisms):
    """The plant itself, against pixels: the organism's outliers are its images' flattest patches, content's are not."""
    for name, low in (("organism", True), ("organism-content", False)):
        backbone, images, _, truth = organisms[name]
        pixels = backbone.transform.pixels(images).mean(dim=1)
        spread = pixels.unfold(1, 16, 16).unfold(2, 16, 16).flatten(3).std(dim=-1).flatten(1)
        below = (spread[:, :, None] > spread[:, None, :]).float().mean(dim=2)  # share of patches that are flatter
        assert (below[truth.patches].mean() < 0.3) == low


def test_noise_gives_nothing():
    """Negative control: pure noise, through an organism that looks for flat patches and a model of random weights."""
    images = torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    for backbone in (backbones.load("organism"), backbones.load("timm:vit_tiny_patch16_224", weights="random")):
        accumulator = measure_norms(backbone, [batch_of(images)], blocks=range(backbone.num_blocks))
        for point in range(backbone.num_blocks):
            assert accumulator.result(AUTO, point=point).summary["verdict"] == "none"


@pytest.fixture(scope="module")
def tiny():
    return backbones.load("timm:vit_tiny_patch16_224", weights="random", image_size=(64, 96))


@pytest.fixture(scope="module")
def images():
    return torch.randn(9, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def test_norms_agree_with_timm(tiny, images):
    stats = measure_norms(tiny, [batch_of(images)]).result(OutlierRule.parse("p98"), point=11)
    with torch.no_grad():
        streams = tiny.module.forward_intermediates(images, norm=False, intermediates_only=True)
    for block, stream in enumerate(streams):
        norms = stream.double().norm(dim=1).numpy()
        assert stats.maxima[block, 2] == pytest.approx(norms.max(), rel=1e-6)
        assert stats.quantiles[block, 2, 3] == pytest.approx(np.median(norms), rel=1e-3)
    assert stats.example_norms == pytest.approx(streams[-1][:6].norm(dim=1).numpy(), rel=1e-5)
    assert stats.summary["outlier_fraction"] == pytest.approx(0.02, abs=0.01)
    assert stats.summary["onset_block"] is None


def test_the_answer_does_not_depend_on_how_images_were_split(tiny, images):
    """Equal counts need equal norms to the last bit, so each image is measured alone and only the split differs."""
    parts = [batch_of(images[i : i + 1], start=i) for i in range(len(images))]
    whole = measure_norms(tiny, parts)
    right, left = measure_norms(tiny, parts[4:]), measure_norms(tiny, parts[:4])
    right.merge(left)
    a, b = (x.result(OutlierRule.parse("median*1.02"), point=11) for x in (whole, right))
    assert a.summary["evidence"]["num_outliers"] > 0
    for name, value in a.arrays().items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(value, b.arrays()[name], rtol=1e-12, err_msg=name)
        else:
            np.testing.assert_array_equal(value, b.arrays()[name], err_msg=name)
    assert a.summary["outlier_fraction_ci"] == pytest.approx(b.summary["outlier_fraction_ci"])


def test_memory_does_not_grow_with_images(tiny, images):
    from pickle import dumps

    few = measure_norms(tiny, [batch_of(images)])
    many = measure_norms(tiny, [batch_of(images, start=9 * i) for i in range(12)])
    assert many.num_images == 12 * few.num_images
    assert len(dumps(many)) <= 1.05 * len(dumps(few))


def test_evidence_agrees_with_brute_force(tiny, images):
    rule = OutlierRule.parse("median*1.02")
    accumulator = measure_norms(tiny, [batch_of(images)])
    stats = accumulator.result(rule, point=11)
    with torch.no_grad():
        stream = tiny.module.forward_intermediates(images, norm=False, intermediates_only=True)[-1].flatten(
            2
        )  # (B, D, P)
        embedding = tiny.module.patch_embed(images).double().unflatten(1, (4, 6))
    over = (stream.norm(dim=1) >= stats.summary["cutoff"]).numpy()
    centred = (stream - stream.mean(dim=2, keepdim=True)).norm(dim=1).log().numpy()
    ratio = np.exp(centred[over].mean() - centred[~over].mean())
    unit = embedding / embedding.norm(dim=-1, keepdim=True)
    near = torch.stack([torch.roll(unit, s, d) for s, d in ((1, 1), (-1, 1), (1, 2), (-1, 2))])
    cosine = (near * unit).sum(-1).mean(0)[:, 1:3, 1:5].numpy()  # inner patches have all four neighbours
    found = stats.summary["evidence"]
    assert found["centred_ratio"] == pytest.approx(ratio, rel=1e-4)
    assert found["num_outliers"] == over.sum()
    inner = over.reshape(9, 4, 6)[:, 1:3, 1:5]
    assert inner.any()
    readings = accumulator.evidence[11]
    assert readings.num_images == 9
    total = found["neighbour_cosine"]["outliers"] * over.sum()
    assert abs(total - cosine[inner].sum()) <= (over.sum() - inner.sum()) + 1e-4


def test_the_bootstrap_interval_covers_and_depends_on_the_images_only(organisms):
    _, _, accumulator, truth = organisms["organism"]
    low, high = accumulator.result(AUTO, point=7).summary["outlier_fraction_ci"]
    shares = truth.patches.float().mean(dim=1).numpy()
    rng = np.random.default_rng(0)
    means = [rng.choice(shares, len(shares)).mean() for _ in range(4000)]
    assert low < shares.mean() < high
    assert (low, high) == pytest.approx(np.quantile(means, (0.025, 0.975)), rel=0.25)


def test_one_image_has_no_interval(tiny, images):
    summary = measure_norms(tiny, [batch_of(images[:1])]).result(AUTO, point=11).summary
    assert summary["outlier_fraction_ci"] == [None, None]


def test_after_the_final_norm_artifacts_are_hidden(organisms):
    backbone, images, before, _ = organisms["organism"]
    after = measure_norms(backbone, [batch_of(images)], after_final_norm=True).result(AUTO, point=backbone.num_blocks)
    assert (after.summary["norm_point"], after.summary["verdict"]) == ("final_norm", "none")
    assert after.summary["norm"]["max"] < 10
    assert before.result(AUTO, point=7).summary["norm_point"] == "resid_post"


@pytest.mark.parametrize("grid", [(14, 14), (16, 16), (24, 24), (32, 32), (37, 37), (7, 10), (64, 64)])
def test_attention_is_sampled_all_over_the_grid(grid):
    layout = TokenLayout.prefix_first(has_cls=True, num_registers=2, grid=grid)
    rows, cols = zip(*(divmod(p - layout.patches.start, grid[1]) for p in spread_queries(layout)), strict=True)
    assert len(rows) == 16 and len(set(rows)) == len(set(cols)) == 4
    assert all(max(x) - min(x) >= size / 2 for x, size in ((rows, grid[0]), (cols, grid[1])))


def test_all_rules_stand_side_by_side(organisms):
    lines = organisms["organism"][2].result(AUTO, point=7, all_rules=True).summary["all_rules"]
    assert [line["rule"] for line in lines] == [str(rule) for rule in DEFAULT_RULES]
    assert {line["rule"]: line["outlier_fraction"] for line in lines}["150"] == lines[0]["outlier_fraction"]


def test_norms_stay_float32_under_autocast(tiny, images):
    """A sum of squares in bfloat16 would be off by up to 4e-3 in every norm; only the stream itself may be."""
    half = measure_norms(tiny, [batch_of(images)], autocast=torch.bfloat16)
    plain = measure_norms(tiny, [batch_of(images)])
    assert half.maxima[11, 2] == pytest.approx(plain.maxima[11, 2], rel=2e-3)
    norms = half.examples.kept[0][2]
    assert norms.dtype == np.float32
    assert not torch.equal(torch.from_numpy(norms), torch.from_numpy(norms).bfloat16().float())


def test_what_cannot_be_measured_is_refused(tiny, images):
    with pytest.raises(InputError, match="no image"):
        measure_norms(tiny, [])
    with pytest.raises(ArgumentError, match="blocks 0 to 11"):
        measure_norms(tiny, [batch_of(images)], blocks=[12])
    with pytest.raises(ArgumentError, match="not finite"):
        measure_norms(tiny, [batch_of(images * torch.inf)])
    with pytest.raises(ArgumentError, match="was loaded for 64 x 96"):
        measure_norms(tiny, [batch_of(images[:, :, :, :64])])
    other = measure_norms(tiny, [batch_of(images)], seed=1)
    with pytest.raises(ArgumentError, match="cannot be merged"):
        measure_norms(tiny, [batch_of(images)]).merge(other)
