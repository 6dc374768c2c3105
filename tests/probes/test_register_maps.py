"""Maps of CLS and registers: against whole patterns, overlaps against loops, and what must and must not be found."""

from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vitprobe import backbones
from vitprobe.errors import ArgumentError, InputError
from vitprobe.inputs.loading import ImageLoader
from vitprobe.inputs.scenes import SceneConfig, scene_items
from vitprobe.probes.passes import run_pass
from vitprobe.probes.register_maps import (
    KINDS,
    RegisterMapReader,
    compare_images,
    groups_of,
    overlap,
    overlap_if_shuffled,
)
from vitprobe.recorder import Recorder, Site

IMAGE, SHUFFLED, BETWEEN = range(3)


def some_maps(*shape, seed=0):
    """Peaked maps that leave some attention to prefix tokens."""
    rng = np.random.default_rng(seed)
    maps = rng.lognormal(0, 1.5, shape)
    return (maps / maps.sum(-1, keepdims=True) * rng.uniform(0.3, 0.9, (*shape[:-1], 1))).astype(np.float32)


def by_hand(p, q):
    """Cosine and intersection of two maps."""
    p, q = p / p.sum(), q / q.sum()
    return float(p @ q / np.sqrt((p @ p) * (q @ q))), float(np.minimum(p, q).sum())


def test_overlaps_are_those_of_every_pair():
    maps = some_maps(2, 3, 7).astype(np.float64)
    found = overlap(torch.from_numpy(maps), torch.from_numpy(maps))
    for b, i, j in np.ndindex(2, 3, 3):
        cosine, intersection = by_hand(maps[b, i], maps[b, j])
        assert found["cosine"][b, i, j] == pytest.approx(cosine, abs=1e-6)
        assert found["intersection"][b, i, j] == pytest.approx(intersection, abs=1e-6)


def test_the_shuffled_expectation_is_the_mean_over_all_orders():
    maps = some_maps(1, 3, 5, seed=1).astype(np.float64)
    maps[0, 2, 1:4] = maps[0, 2, 1]  # ties
    found = overlap_if_shuffled(torch.from_numpy(maps))
    for i, j in np.ndindex(3, 3):
        every = [by_hand(maps[0, i], maps[0, j][list(order)]) for order in permutations(range(5))]
        wanted = np.mean(every, axis=0)
        assert [found[m][0, i, j] for m in found] == pytest.approx(wanted.tolist(), abs=1e-6)


def test_different_images_are_compared_each_with_every_other():
    maps = some_maps(4, 2, 6, seed=2)
    pool = {index: (0.0, one) for index, one in zip((7, 3, 9, 1), maps, strict=True)}
    matrices, estimates = compare_images(pool, groups_of(True, 1), seed=0)
    for a, b in np.ndindex(2, 2):
        every = [by_hand(maps[i, a], maps[j, b]) for i, j in permutations(range(4), 2)]
        cosine, intersection = np.mean(every, axis=0)
        assert matrices["cosine"][a, b] == pytest.approx(cosine, abs=1e-6)
        assert matrices["intersection"][a, b] == pytest.approx(intersection, abs=1e-6)
    assert estimates["cls"]["cosine.between"]["value"] == pytest.approx(matrices["cosine"][0, 0])
    low, high = estimates["register"]["cosine.between"]["interval"]
    assert low < matrices["cosine"][1, 1] < high


def test_groups_are_those_that_a_model_has():
    assert set(groups_of(True, 0)) == {"cls"} and set(groups_of(False, 1)) == {"register"}
    masks = groups_of(True, 2)
    assert np.argwhere(masks["registers"]).tolist() == [[1, 2], [2, 1]]
    assert masks["cls_register"].sum() == 4 and masks["cls"][0, 0] and masks["register"].sum() == 2


def feed(backbone, rows, *, size=5, order=None, **options):
    """Give a reader rows (N, Q, T) as a pass would, so many at a time."""
    reader = RegisterMapReader(backbone, block=1, **options)
    pixels = torch.zeros(1, 3, *backbone.spec.image_size)
    norms = torch.ones(1, backbone.layout().num_tokens)
    order = list(range(len(rows))) if order is None else order
    for start in range(0, len(rows), size):
        part = order[start : start + size]
        batch = SimpleNamespace(
            names=tuple(f"{i}.png" for i in part), indices=tuple(part), images=pixels.expand(len(part), -1, -1, -1)
        )
        taken = dict(zip(reader.sites, (torch.from_numpy(rows[part]), norms.expand(len(part), -1)), strict=True))
        reader.update(batch, taken, torch.zeros(len(part)))
    return reader


def planted(backbone, number=300):
    """CLS looks at the same places in all images, registers 0 and 1 at one place, 2 and 3 where they will."""
    layout, rng = backbone.layout(), np.random.default_rng(5)
    maps = some_maps(number, 5, layout.num_patches, seed=6)
    maps[:, 2] = maps[:, 1]
    maps[:, 0] = maps[0, 0] * rng.uniform(0.9, 1.1, maps[:, 0].shape)
    rows = np.zeros((number, 5, layout.num_tokens), np.float32)
    rows[:, :, layout.patches] = maps
    rows[:, :, layout.registers.start] = 1 - maps.sum(-1)
    return rows


def test_what_is_planted_is_found_and_chance_is_not(make_tiny):
    backbone = make_tiny("timm-reg4")
    maps = feed(backbone, planted(backbone), size=50).result()
    cosine = maps.cosine
    assert cosine[IMAGE, 1, 2] == pytest.approx(1) and cosine[SHUFFLED, 1, 2] < 0.5  # two registers on one thing
    assert cosine[BETWEEN, 0, 0] > 0.98 > 2 * cosine[SHUFFLED, 0, 0]  # CLS driven by position
    for a, b in ((3, 4), (1, 3), (0, 4)):  # each where it will
        assert cosine[IMAGE, a, b] == pytest.approx(cosine[SHUFFLED, a, b], abs=0.025)
    assert cosine[BETWEEN, 3, 3] == pytest.approx(cosine[SHUFFLED, 3, 3], abs=0.03)
    found = maps.summary["overlaps"]
    pair = found["registers"]
    wanted = np.mean([cosine[IMAGE, a, b] for a in range(1, 5) for b in range(1, 5) if a != b])
    assert pair["cosine.image"]["value"] == pytest.approx(wanted)
    assert pair["cosine.image"]["interval"][0] > pair["cosine.shuffled"]["interval"][1]
    assert found["cls"]["cosine.between"]["interval"][0] > found["cls"]["cosine.shuffled"]["interval"][1]
    low, high = found["register"]["cosine.between"]["interval"]
    assert low < found["register"]["cosine.shuffled"]["value"] < high
    np.testing.assert_allclose(maps.prefix[:, 1], planted(backbone)[:, :, 1].mean(0), rtol=1e-5)


def test_neither_batches_nor_order_change_what_is_found_of_all_images(make_tiny):
    backbone = make_tiny("timm-reg4")
    rows = planted(backbone, 12)
    one = feed(backbone, rows, size=12, num_pool=6).result()
    for size, order in ((1, None), (5, list(range(12))[::-1])):
        other = feed(backbone, rows, size=size, order=order, num_pool=6).result()
        for name in ("mean_maps", "prefix", "cosine", "intersection"):
            np.testing.assert_allclose(getattr(other, name), getattr(one, name), atol=1e-6, err_msg=name)
        for name, estimate in one.summary["overlaps"]["registers"].items():
            again = other.summary["overlaps"]["registers"][name]
            assert again["interval"] == pytest.approx(estimate["interval"], abs=1e-6), name
    assert one.summary["num_compared"] == 6 and one.names.tolist() == [f"{i}.png" for i in range(6)]


@pytest.mark.parametrize("name", ["timm-reg4", "timm-cls", "clip", "timm-reg4-no-cls"])
def test_maps_are_rows_of_the_models_own_pattern(name, make_tiny):
    backbone = make_tiny(name)
    layout, images = backbone.layout(), torch.randn(5, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    batches = [
        SimpleNamespace(names=tuple("abcde"[i : i + 2]), indices=tuple(range(5))[i : i + 2], images=images[i : i + 2])
        for i in range(0, 5, 2)
    ]
    reader = RegisterMapReader(backbone, block=0, num_shown=3, cutoff=1e-6)
    run_pass(backbone, batches, [reader])
    with torch.inference_mode(), Recorder(backbone, [site := Site("pattern", 0)]) as recorder:
        backbone(images)
        pattern = recorder.take()[site].mean(1)  # (B, T, T)
    rows = pattern[:, list(layout.prefix)]
    maps = reader.result()
    np.testing.assert_allclose(maps.maps, layout.to_grid(rows[:3], dim=2).numpy(), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(maps.mean_maps, layout.to_grid(rows.mean(0), dim=1).numpy(), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(maps.prefix, rows[:, :, list(layout.prefix)].mean(0).numpy(), rtol=1e-4, atol=1e-7)
    assert maps.outliers.all() and maps.outliers.shape == (3, *layout.grid) and maps.names.tolist() == ["a", "b", "c"]
    assert maps.queries == ["CLS"] * (layout.cls is not None) + [f"register {k}" for k in range(layout.num_registers)]
    assert maps.cosine.shape == (len(KINDS), len(rows[0]), len(rows[0])) and maps.num_tokens == layout.num_tokens


def organism_maps(name, cutoff):
    backbone = backbones.load(name)
    items = scene_items(4, config=SceneConfig(size=(224, 224)), seed=3)
    reader = RegisterMapReader(backbone, block=7, cutoff=cutoff)
    run_pass(backbone, ImageLoader(items, backbone.transform, batch_size=4, workers=0), [reader])
    return reader.result()


def test_the_organisms_cls_follows_its_outliers():
    """Positive control: heads of the last block attend to planted patches. Negative: the clean twin's do not."""
    planted_ones, clean = organism_maps("organism", 60.0), organism_maps("organism-clean", None)
    where = planted_ones.outliers
    assert 0 < where.mean() < 0.2 and not clean.outliers.any()
    one, other = (maps.maps[:, 0][where].mean() / maps.maps[:, 0].mean() for maps in (planted_ones, clean))
    assert one > 5 > 2 > other


def test_one_image_and_none(make_tiny):
    backbone = make_tiny("timm-reg4")
    maps = feed(backbone, planted(backbone, 1)).result()
    assert np.isnan(maps.cosine[BETWEEN]).all() and np.isfinite(maps.cosine[:BETWEEN]).all()
    assert maps.summary["overlaps"]["cls"]["cosine.between"] == {"value": None, "interval": None, "num_images": 1}
    with pytest.raises(InputError, match="nothing was measured"):
        RegisterMapReader(backbone, block=1).result()


def test_what_is_refused(make_tiny):
    backbone = make_tiny("timm-map-pool")
    reader = RegisterMapReader(backbone, block=1)
    assert reader.sites == () and reader.queries == []
    reader.update(SimpleNamespace(names=("a",), indices=(0,), images=torch.zeros(1, 3, 48, 64)), {}, torch.zeros(1))
    with pytest.raises(ArgumentError, match="neither CLS nor registers"):
        reader.result()
    for options, said in (
        ({"block": 2}, "blocks 0 to 1"),
        ({"num_shown": 0}, "at least 1"),
        ({"num_pool": 1}, "and 2"),
    ):
        with pytest.raises(ArgumentError, match=said):
            RegisterMapReader(make_tiny("timm-reg4"), **{"block": 1, **options})
    rows = planted(make_tiny("timm-reg4"), 2)
    reader = RegisterMapReader(make_tiny("timm-reg4"), block=1)
    broken = torch.full((2, 53), float("nan"))
    batch = SimpleNamespace(names=("a", "b"), indices=(0, 1), images=torch.zeros(2, 3, 48, 64))
    with pytest.raises(ArgumentError, match="not finite"):
        reader.update(batch, dict(zip(reader.sites, (torch.from_numpy(rows), broken), strict=True)), torch.zeros(2))
