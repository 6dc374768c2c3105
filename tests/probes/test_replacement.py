"""Registers replaced: against the model's own parts run by hand, by themselves, and where they are planted."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vitprobe import backbones
from vitprobe.errors import ArgumentError, InputError
from vitprobe.inputs.loading import ImageLoader
from vitprobe.inputs.scenes import SceneConfig, scene_items
from vitprobe.probes.feature_file import feature_site
from vitprobe.probes.passes import run_pass
from vitprobe.probes.replacement import (
    CLEAN,
    WAYS,
    RegisterStatsReader,
    ReplacementReader,
    blocks_of,
    differences,
    read_classes,
)


def batches(backbone, number, *, size=3, seed=0, order=None):
    images = torch.randn(number, 3, *backbone.spec.image_size, generator=torch.Generator().manual_seed(seed))
    order = list(range(number)) if order is None else order
    for start in range(0, number, size):
        part = order[start : start + size]
        yield SimpleNamespace(names=tuple(f"{seed}/{i}" for i in part), indices=tuple(part), images=images[part])


def streams(backbone, images):
    """What enters every block of a timm ViT, and the tokens after the last, block by block: list of (B, T, D)."""
    module = backbone.module
    with torch.inference_mode():
        x = module.norm_pre(module.patch_drop(module._pos_embed(module.patch_embed(images))))
        found = [x]
        for block in module.blocks:
            found.append(block(found[-1]))
    return found


def by_hand(backbone, images, blocks, values):
    """All tokens after the final norm, with registers replaced by ``values`` (B, L, R, D) before the blocks."""
    module, where = backbone.module, backbone.layout().registers
    with torch.inference_mode():
        x = module.norm_pre(module.patch_drop(module._pos_embed(module.patch_embed(images))))
        for index, block in enumerate(module.blocks):
            if index in blocks:
                x = torch.cat([x[:, : where.start], values[:, blocks.index(index)], x[:, where.stop :]], dim=1)
            x = block(x)
        return module.norm(x)


def stats_of(backbone, number=9, *, blocks=(1,), **options):
    reader = RegisterStatsReader(backbone, blocks=blocks, **{"num_pool": 4, **options})
    run_pass(backbone, batches(backbone, number, seed=1), [reader])
    return reader.result()


def test_statistics_are_those_of_the_registers(make_tiny):
    backbone = make_tiny("timm-layer-scale", size=(48, 48))
    backbone.add_registers(torch.randn(3, 48))
    backbone = backbone.rewrap(backbone.module, backbone.spec)
    found = stats_of(backbone, blocks=(1, 2), num_pool=20)
    every = [streams(backbone, batch.images) for batch in batches(backbone, 9, seed=1)]
    where = backbone.layout().registers
    own = torch.cat([torch.stack([s[1], s[2]], 1)[:, :, where] for s in every]).double().numpy()  # (N, L, R, D)
    np.testing.assert_allclose(found.mean, own.mean(0), atol=1e-5)
    np.testing.assert_allclose(found.std, own.std(0), atol=1e-5)
    np.testing.assert_allclose(found.donors, own, atol=1e-5)
    assert found.donor_names == tuple(f"1/{i}" for i in range(9)) and found.num_images == 9


def test_the_pool_is_drawn_by_chance_whatever_the_order(make_tiny):
    backbone = make_tiny("timm-reg4")
    reader = RegisterStatsReader(backbone, blocks=(1,), num_pool=5, seed=3)
    run_pass(backbone, batches(backbone, 30, seed=1, size=7), [reader])
    other = RegisterStatsReader(backbone, blocks=(1,), num_pool=5, seed=3)
    run_pass(backbone, batches(backbone, 30, seed=1, size=1, order=list(range(30))[::-1]), [other])
    one, two = reader.result(), other.result()
    assert one.donor_names == two.donor_names and len(one.donor_names) == 5
    assert set(one.donor_names) != {f"1/{i}" for i in range(5)}
    np.testing.assert_allclose(one.mean, two.mean, atol=1e-5)


@pytest.mark.parametrize("blocks", [(1,), (0, 1)])
@pytest.mark.parametrize("name", ["timm-reg4", "timm-reg4-no-cls"])
def test_changes_are_those_of_the_models_parts_run_by_hand(name, blocks, make_tiny):
    backbone = make_tiny(name)
    layout, stats = backbone.layout(), stats_of(backbone, blocks=blocks)
    reader = ReplacementReader(backbone, stats, block=1)
    seen = {way: Kept(feature_site(backbone, 1)) for way in WAYS}
    reader._followers.update(seen)
    run_pass(backbone, batches(backbone, 5, size=2), [reader])
    each = list(batches(backbone, 5, size=2))
    with torch.inference_mode():
        clean = torch.cat([backbone.module.norm(streams(backbone, b.images)[-1]) for b in each]).double()
    for way in WAYS:
        edited = torch.cat([by_hand(backbone, b.images, list(blocks), reader.values(way, b)) for b in each]).double()
        np.testing.assert_allclose(np.concatenate(seen[way].found), edited.numpy(), atol=1e-5)
        for what in reader.changes:
            one, other = (x[:, layout.cls if what == "cls" else layout.patches] for x in (clean, edited))
            one, other = (x.mean(1, keepdim=True) if what == "mean" else x for x in (one, other))
            cosine = (one * other).sum(-1) / one.norm(dim=-1) / other.norm(dim=-1)
            wanted = float((1 - cosine).mean(1).mean())
            assert reader.means.estimate(f"{way}.{what}").value == pytest.approx(wanted, abs=1e-6)
            assert wanted > 1e-4
    assert reader.own_difference == 0.0 and reader.num_own == 2
    assert reader.changes == (("cls", "mean", "patches") if layout.cls else ("mean", "patches"))


class Kept:
    """Keep what one site left."""

    def __init__(self, site):
        self.sites, self.found = (site,), []

    def update(self, batch, taken, output):
        assert len(output) == len(batch.indices)
        self.found.append(taken[self.sites[0]].numpy())


def test_registers_that_never_vary_are_their_own_mean_noise_and_others(make_tiny):
    """Negative control: of one picture again and again, all but zeros put back what was there."""
    backbone = make_tiny("timm-reg4")
    image = torch.randn(1, 3, 48, 64, generator=torch.Generator().manual_seed(7))
    same = [SimpleNamespace(names=("x", "y"), indices=(0, 1), images=image.expand(2, -1, -1, -1))]
    stats = RegisterStatsReader(backbone, blocks=(1,))
    run_pass(backbone, same, [stats])
    reader = ReplacementReader(backbone, stats.result(), block=1)
    run_pass(backbone, same, [reader])
    for what in reader.changes:
        found = {way: reader.means.estimate(f"{way}.{what}").value for way in WAYS}
        assert max(found["mean"], found["noise"], found["shuffle"]) < 1e-9 < 1e-4 < found["zero"]


def test_the_organisms_patches_take_the_load_of_zeroed_registers_alone():
    """Positive control: its registers win what patches would; zeroed they do not, and patches grow massive norms."""
    backbone = backbones.load("organism-reg4")
    config = SceneConfig(size=(224, 224))
    stats = RegisterStatsReader(backbone, blocks=blocks_of("all", 7, "organism-reg4"))
    train, test = (scene_items(8, config=config, seed=seed) for seed in (0, 1))
    run_pass(backbone, ImageLoader(train, backbone.transform, batch_size=8, workers=0), [stats])
    reader = ReplacementReader(backbone, stats.result(), block=7)
    run_pass(backbone, ImageLoader(test, backbone.transform, batch_size=8, workers=0), [reader])
    largest = {way: reader.means.estimate(f"{way}.largest").value for way in (CLEAN, *WAYS)}
    assert largest["zero"] > 3 > 1.5 > max(largest[way] for way in (CLEAN, "mean", "noise", "shuffle"))
    patches = {way: reader.means.estimate(f"{way}.patches") for way in WAYS}
    assert patches["zero"].interval[0] > 10 * max(patches[way].interval[1] for way in ("mean", "noise", "shuffle"))
    assert reader.own_difference == 0.0


def test_what_an_image_is_given_does_not_depend_on_its_batch(make_tiny):
    backbone = make_tiny("timm-reg4")
    reader = ReplacementReader(backbone, stats_of(backbone), block=1, seed=2)
    (whole,) = batches(backbone, 6, size=6)
    (turned,) = batches(backbone, 6, size=6, order=[5, 4, 3, 2, 1, 0])
    for way in WAYS:
        one, other = reader.values(way, whole), reader.values(way, turned)
        assert one.shape == (6, 1, 4, 48) and torch.equal(one, other.flip(0))
        apart = (one[:, None] - one).abs().amax((2, 3, 4)) > 0
        assert bool(apart.any()) == (way in ("noise", "shuffle"))
    noise = [reader.values("noise", SimpleNamespace(names=("",), indices=(i,), images=None))[0, 0] for i in range(2000)]
    np.testing.assert_allclose(torch.stack(noise).mean(0), reader._stats.mean[0], atol=0.2)
    np.testing.assert_allclose(torch.stack(noise).std(0), reader._stats.std[0], rtol=0.1)


def test_no_image_is_given_its_own_registers(make_tiny):
    backbone = make_tiny("timm-reg4")
    stats = stats_of(backbone, 6, num_pool=3)
    reader = ReplacementReader(backbone, stats, block=1)
    chosen = [reader.donor(index, name) for index in range(50) for name in stats.donor_names]
    assert all(stats.donor_names[own] != name for own, name in zip(chosen, stats.donor_names * 50, strict=True))
    assert set(chosen) == {0, 1, 2}


def test_blocks_are_named_for_the_features_that_they_can_change():
    assert blocks_of("all", 3, "x") == (1, 2, 3) and blocks_of("last", 3, "x") == (3,)
    assert blocks_of((2, 0), 3, "x") == (0, 2) and blocks_of(2, 3, "x") == (2,)
    for asked, block, said in (
        ((1, 4), 3, "from 0 to 3"),
        ((1, 1), 3, "each once"),
        ("first", 3, "got blocks 'first'"),
        (True, 3, "got blocks True"),
        ("all", 0, "as they were learned"),
        ("last", 0, "as they were learned"),
    ):
        with pytest.raises(ArgumentError, match=said):
            blocks_of(asked, block, "x")


def test_one_reading_serves_all_ways_and_differences_are_paired():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 120)
    centres = 3 * rng.normal(size=(3, 8))
    train = centres[labels] + rng.normal(size=(120, 8))
    wanted = rng.integers(0, 3, 90)
    clean = centres[wanted] + rng.normal(size=(90, 8))
    tests = {CLEAN: clean, "same": clean.copy(), "noise": rng.normal(size=(90, 8)), "turned": -clean}
    fit, read = read_classes(train, labels, tests, grid=(0.1, 1.0))
    assert fit.strength in (0.1, 1.0) and set(fit.classes) == {0, 1, 2}
    accuracies, apart = differences(read, wanted, range(90))
    for way, found in read.items():
        assert accuracies[way].value == pytest.approx((found == wanted).mean()) and accuracies[way].num_images == 90
    assert accuracies[CLEAN].value > 0.95 and accuracies["noise"].interval[0] < 0.45
    assert apart["same"].value == 0 and apart["same"].interval == (0, 0) and CLEAN not in apart
    drop = (read["noise"] == wanted).mean() - (read[CLEAN] == wanted).mean()
    assert apart["noise"].value == pytest.approx(drop)
    assert apart["noise"].interval[0] < drop < apart["noise"].interval[1] < -0.4


def test_what_is_refused(make_tiny):
    with pytest.raises(ArgumentError, match="no registers to replace"):
        RegisterStatsReader(make_tiny("timm-cls"), blocks=(1,))
    backbone = make_tiny("timm-reg4")
    for options, said in (({"num_pool": 1}, "2 or more"), ({"blocks": (2,)}, "blocks 0 to 1")):
        with pytest.raises(ArgumentError, match=said):
            RegisterStatsReader(backbone, **{"blocks": (1,), **options})
    with pytest.raises(InputError, match="no training image"):
        RegisterStatsReader(backbone, blocks=(1,)).result()
    stats = stats_of(backbone)
    for ways in ((), ("one",), ("zero", "zero"), "own"):
        with pytest.raises(ArgumentError, match="allowed are zero, mean"):
            ReplacementReader(backbone, stats, block=1, ways=ways)
