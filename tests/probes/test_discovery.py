"""CorLoc of many settings: on generated scenes with true boxes, on noise, over shards, and through a tiny backbone."""

import numpy as np
import pytest
import torch

from vitprobe.errors import ArgumentError, InputError
from vitprobe.inputs.loading import ImageBatch
from vitprobe.inputs.scenes import SceneConfig, generate
from vitprobe.probes.boxes import Discovery, DiscoverySettings, box_iou, discover, discover_many
from vitprobe.probes.discovery import (
    BIASES,
    DiscoveryAccumulator,
    measure_discovery,
    read_features,
    sweep,
)
from vitprobe.probes.knn import wilson_interval

PLAIN = DiscoverySettings("keys", 0)
CENTRED = DiscoverySettings("keys", 0, centring="image mean")
BIASED = DiscoverySettings("values", 1, bias=-0.3, centring="image mean", normalise=True, weights="binary")
SIDE, PATCH, NUM = 96, 4, 60
GRID = (SIDE // PATCH, SIDE // PATCH)


def batch_of(images, start=0):
    names = tuple(f"image{start + i}" for i in range(len(images)))
    return ImageBatch(names, images, ("",) * len(images), tuple(range(start, start + len(images))))


def scored(features, boxes, settings, *, start=0, accumulator=None):
    """Discover in features (B, P, D) of a grid of `GRID` and score; images start at a position of the source."""
    accumulator = accumulator or DiscoveryAccumulator(tuple(settings), (PATCH, PATCH), (SIDE, SIDE))
    accumulator.update(batch_of(features, start), discover_many(features, GRID, settings), boxes)
    return accumulator


@pytest.fixture(scope="module")
def scenes():
    """The mean colours of the patches of scenes with one shape, (B, P, 3), and the shapes' boxes."""
    config = SceneConfig(size=(SIDE, SIDE), max_shapes=1, radius=(0.11, 0.2), backgrounds=("plain",))
    made = generate(NUM, config=config, seed=3)
    cells = made.images.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))  # (B, 3, rows, p, cols, p)
    colours = cells.mean(dim=(3, 5)).flatten(2).transpose(1, 2)  # (B, P, 3)
    return colours, [made.boxes[b][made.present[b]].tolist() for b in range(NUM)]


def test_shapes_are_found_by_their_colour_and_not_when_the_patches_are_shuffled(scenes):
    colours, boxes = scenes
    result = scored(colours, boxes, [PLAIN, CENTRED]).result()
    plain, centred = result.corloc
    assert centred > 0.9 and result.iou[:, 1].mean() > 0.75
    assert plain < 0.1  # colours are all positive: no seed without centring
    assert result.arbitrary[:, 0].mean() > 0.9 and not result.arbitrary[:, 1].any()
    order = torch.randperm(colours.shape[1], generator=torch.Generator().manual_seed(0))
    shuffled = scored(colours[:, order], boxes, [CENTRED]).result()
    assert shuffled.corloc[0] < 0.1


def test_noise_finds_no_more_than_boxes_of_other_images(scenes):
    _, boxes = scenes
    noise = torch.randn(NUM, GRID[0] * GRID[1], 16, generator=torch.Generator().manual_seed(1))
    settings = [CENTRED, BIASED]
    found = discover_many(noise, GRID, settings)
    result = scored(noise, boxes, settings).result()
    for s, each in enumerate(settings):
        elsewhere = []
        for shift in range(1, NUM):  # the same boxes, scored by the truth of all other images
            pairs = [(found[each][i].box, boxes[(i + shift) % NUM]) for i in range(NUM)]
            elsewhere += [0.0 if b is None else box_iou(np.array(b) * PATCH, t).max() for b, t in pairs]
        chance = np.mean(np.array(elsewhere) >= 0.5)
        low, high = result.summary["rows"][s]["corloc_ci"]
        assert low <= chance <= high and result.corloc[s] < 0.1
        assert result.iou[:, s].mean() == pytest.approx(np.mean(elsewhere), abs=0.05) and result.iou[:, s].mean() < 0.3


def lone(box):
    """A discovery of one box, on a grid of 4 x 4."""
    degrees = np.zeros((4, 4), int) if box is None else np.arange(16).reshape(4, 4)
    return Discovery(box, (0, 0), degrees, np.zeros((4, 4), bool), 1)


def test_scores_are_counted_by_hand():
    accumulator = DiscoveryAccumulator((PLAIN, CENTRED), (8, 8), (32, 32))
    found = {
        PLAIN: [lone((0, 0, 2, 2)), lone((0, 0, 2, 2)), lone(None), lone((0, 0, 4, 4))],
        CENTRED: [lone((0, 0, 1, 2)), lone(None), lone(None), lone((1, 1, 2, 2))],
    }
    truths = [[(20, 20, 30, 30), (0, 0, 16, 16)], [(0, 0, 16, 15.9)], [(0, 0, 8, 8)], []]
    accumulator.update(batch_of(torch.zeros(4, 3, 1, 1)), found, truths)
    result = accumulator.result()
    assert result.iou.tolist() == [[1, 0.5], [pytest.approx(15.9 / 16), 0], [0, 0]]
    assert result.hits.tolist() == [[True, True], [True, False], [False, False]]  # exactly half agrees
    assert result.without_box.tolist() == [[False, False], [False, True], [True, True]]
    assert result.corloc.tolist() == [2 / 3, 1 / 3]
    assert (result.summary["num_images"], result.summary["num_without_truth"]) == (3, 1)
    assert result.summary["whole_image_corloc"] == 0
    first, second = result.summary["rows"]
    assert first["corloc_ci"] == list(wilson_interval(2, 3)) and first["num_without_box"] == 1
    assert first["num_arbitrary"] == 1 and second["mean_iou"] == pytest.approx(0.5 / 3)
    assert second["centring"] == "image mean" and (second["k"], second["weights"]) == (100, "real")
    assert second["label"] == CENTRED.label and set(result.arrays()) >= {"iou", "without_box", "indices", "names"}


def test_shards_merge_to_the_whole_in_the_order_of_the_source(scenes):
    colours, boxes = scenes
    boxes = [[] if i % 7 == 0 else box for i, box in enumerate(boxes)]
    settings = [PLAIN, CENTRED, BIASED]
    whole = scored(colours, boxes, settings).result()
    late = scored(colours[40:], boxes[40:], settings, start=40)
    early = scored(colours[20:40], boxes[20:40], settings, start=20)
    scored(colours[:20], boxes[:20], settings, accumulator=early)
    late.merge(DiscoveryAccumulator(tuple(settings), (PATCH, PATCH), (SIDE, SIDE)))  # a process without an image
    late.merge(early)
    merged = late.result()
    assert merged.summary == whole.summary and merged.summary["num_without_truth"] == 9
    assert merged.indices.tolist() == [i for i in range(NUM) if i % 7]
    for name, value in whole.arrays().items():
        assert np.array_equal(merged.arrays()[name], value), name
    with pytest.raises(ArgumentError, match="image 20 was measured twice"):
        late.merge(early)
    with pytest.raises(ArgumentError, match="different settings"):
        late.merge(DiscoveryAccumulator((PLAIN,), (PATCH, PATCH), (SIDE, SIDE)))


def qkv_by_hand(module, images, block):
    """Queries, keys and values of all tokens, (B, T, D) each: a slice of what the block's own qkv layer gave."""
    seen = []
    handle = module.blocks[block].attn.qkv.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        module(images)
    handle.remove()
    return seen[0].chunk(3, dim=-1)  # q, k, v, heads side by side


def test_features_are_those_of_the_modules_own_layer(make_tiny):
    backbone = make_tiny("timm-reg4")
    images = torch.randn(3, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    places = [(kind, block) for block in (0, 1) for kind in ("queries", "keys", "values", "resid_post")]
    found = read_features(backbone, images, places)
    streams = backbone.module.forward_intermediates(images, norm=False, intermediates_only=True)
    for block in (0, 1):
        for kind, expected in zip(places, qkv_by_hand(backbone.module, images, block), strict=False):
            patches = expected[:, -48:]  # CLS and 4 registers stand before them
            assert torch.equal(found[kind[0], block], patches) and patches.shape == (3, 48, 48)
        stream = streams[block].detach().flatten(2).transpose(1, 2)
        assert torch.equal(found["resid_post", block], stream)


def test_a_backbone_with_registers_from_end_to_end(make_tiny):
    backbone = make_tiny("timm-reg4")
    images = torch.randn(9, 3, 48, 64, generator=torch.Generator().manual_seed(4))
    boxes = {i: [(8 * (i % 3), 0, 48, 40)] for i in range(9) if i != 4}
    settings = [PLAIN, CENTRED, BIASED, DiscoverySettings("keys", 1, k=10)]
    calls = []
    handle = backbone.module.register_forward_hook(lambda *_: calls.append(1))
    batches = [batch_of(images[:5]), batch_of(images[5:], 5)]
    result = measure_discovery(backbone, batches, boxes, settings, on_batch=calls.append).result()
    handle.remove()
    assert len(calls) == 4  # one pass a batch for all settings, and each batch shown once
    assert result.indices.tolist() == [0, 1, 2, 3, 5, 6, 7, 8] and result.summary["num_without_truth"] == 1
    expected = np.zeros((8, len(settings)))
    for s, each in enumerate(settings):
        part = ("queries", "keys", "values").index(each.features)
        for row, i in enumerate(result.indices.tolist()):
            features = qkv_by_hand(backbone.module, images[i : i + 1], each.block)[part][0, -48:]
            x0, y0, x1, y1 = discover(features, (6, 8), each).box
            expected[row, s] = box_iou((8 * x0, 8 * y0, 8 * x1, 8 * y1), boxes[i][0])
    assert result.iou == pytest.approx(expected)
    assert len(np.unique(expected.round(6))) > 4


def test_what_does_not_fit_is_refused_in_one_line(make_tiny):
    backbone = make_tiny("timm-reg4")
    images = torch.zeros(1, 3, 48, 64)

    def refused(match, batches, boxes, settings):
        with pytest.raises(ArgumentError, match=match) as error:
            measure_discovery(backbone, batches, boxes, settings)
        assert "\n" not in str(error.value)

    refused("got block 7", [], {}, [DiscoverySettings("keys", 7)])
    refused("got 0 settings", [], {}, [])
    refused("got 2 settings", [], {}, [PLAIN, PLAIN])
    refused("got images of 48 x 48", [batch_of(images[..., :48])], {}, [PLAIN])
    refused("image0: got box", [batch_of(images)], {0: [(0, 0, 64, 480)]}, [PLAIN])
    refused("image 0 was measured twice", [batch_of(images), batch_of(images)], {}, [PLAIN])
    for batches, number in (([], 0), ([batch_of(images)], 1)):
        with pytest.raises(InputError, match=f"none of {number} images has a true box"):
            measure_discovery(backbone, batches, {}, [PLAIN]).result()


def test_the_sweep_holds_the_tables_features():
    for family, kind in [("deit3", "values"), ("openclip", "values"), ("dinov2", "keys"), ("dinov2-reg", "keys")]:
        found = sweep(family, 12)
        assert {(s.features, s.block) for s in found} == {(kind, 11)}
        assert found[0] == DiscoverySettings(kind, 11) and len(found) == 1 + 2 * len(BIASES) == len(set(found))
    wide = sweep("dinov2", 24, last=4, biases=(0.0, -0.2), centrings=("none",))
    assert [s.block for s in wide[::3]] == [23, 22, 21, 20] and {s.bias for s in wide} == {0.0, -0.2}
    both = sweep("organism", 4, features=("queries", "resid_post"), biases=(0.0,))
    assert {s.features for s in both} == {"queries", "resid_post"}
    for family, last in [("vit", 1), ("deit3", 0), ("deit3", 13)]:
        with pytest.raises(ArgumentError, match="got"):
            sweep(family, 12, last=last)
