"""Controls of CorLoc: boxes at random places, settings chosen on other images; and what a reader keeps for figures."""

import numpy as np
import pytest
import torch

from vitprobe.inputs.loading import ImageBatch
from vitprobe.probes.boxes import Discovery, DiscoverySettings, best_iou
from vitprobe.probes.corloc import DiscoveryAccumulator, chosen_on_halves, random_corloc
from vitprobe.probes.discovery import DiscoveryReader, measure_discovery
from vitprobe.probes.passes import run_pass

SIDE, PATCH = 80, 10
FIRST, SECOND = DiscoverySettings("keys", 0), DiscoverySettings("keys", 0, bias=-0.1, normalise=True)


def batch_of(number, start=0, size=(SIDE, SIDE)):
    images = torch.randn(number, 3, *size, generator=torch.Generator().manual_seed(start))
    where = tuple(range(start, start + number))
    return ImageBatch(tuple(f"image{i}" for i in where), images, ("",) * number, where)


def lone(box):
    return Discovery(box, (0, 0), np.arange(64).reshape(8, 8), np.zeros((8, 8), bool), 1)


def scored(first, second, truths):
    """Score boxes in patches, of two settings, against true boxes in pixels."""
    accumulator = DiscoveryAccumulator((FIRST, SECOND), (PATCH, PATCH), (SIDE, SIDE))
    found = {FIRST: [lone(box) for box in first], SECOND: [lone(box) for box in second]}
    accumulator.update(batch_of(len(truths)), found, truths)
    return accumulator.result()


def test_a_box_at_random_places_hits_as_often_as_all_places_do():
    """Against every place on a fine lattice: a box of 4 x 4 patches in an image of 8 x 8, then the whole image."""
    truth = [(0.0, 0.0, 40.0, 40.0), (50.0, 45.0, 78.0, 80.0)]
    result = scored([(0, 0, 4, 4)] * 40, [(0, 0, 8, 8)] * 40, [truth] * 40)
    steps = np.linspace(0, 40, 161)
    places = [(x, y, x + 40, y + 40) for x in steps for y in steps]
    expected = np.mean([best_iou(place, np.array(truth)) >= 0.5 for place in places])
    assert 0.05 < expected < 0.1
    assert random_corloc(result, 0, seed=1) == pytest.approx(expected, abs=0.012)
    assert random_corloc(result, 1) == 0 and best_iou((0, 0, 80, 80), np.array(truth)) < 0.5
    assert random_corloc(result, 0, seed=1) == random_corloc(result, 0, seed=1) != random_corloc(result, 0, seed=2)


def test_a_box_that_was_not_found_is_missed_wherever_it_stands():
    whole = [(0.0, 0.0, 80.0, 80.0)]
    result = scored([(0, 0, 8, 8), None], [None, None], [whole, whole])
    assert random_corloc(result, 0) == 0.5 and random_corloc(result, 1) == 0
    assert result.boxes[0, 0].tolist() == [0, 0, 80, 80] and not result.boxes[1].any()


def test_a_setting_chosen_on_other_images_is_not_flattered():
    """Boxes that hit by chance: the best of many settings looks better than chance, that of the other half does not."""
    rng = np.random.default_rng(0)
    settings = tuple(DiscoverySettings("keys", 0, bias=float(b)) for b in range(40))
    accumulator = DiscoveryAccumulator(settings, (PATCH, PATCH), (SIDE, SIDE))
    hits = rng.random((60, 40)) < 0.3
    found = {s: [lone((0, 0, 4, 4) if hit else (4, 4, 8, 8)) for hit in hits[:, i]] for i, s in enumerate(settings)}
    accumulator.update(batch_of(60), found, [[(0, 0, 40, 40)]] * 60)
    result = accumulator.result()
    assert result.hits.tolist() == hits.tolist() and result.corloc.max() > 0.4
    honest = [chosen_on_halves(result, seed=seed) for seed in range(30)]
    assert np.mean(honest) == pytest.approx(0.3, abs=0.05)
    order = np.random.default_rng(4).permutation(60)
    expected = 0
    for own, other in ((order[:30], order[30:]), (order[30:], order[:30])):
        expected += hits[own, hits[other].sum(0).argmax()].sum()
    assert honest[4] == expected / 60


def test_a_setting_that_is_better_everywhere_is_found_on_either_half():
    truth = [[(0, 0, 40, 40)]] * 11
    result = scored([(4, 4, 8, 8)] * 11, [(0, 0, 4, 4)] * 11, truth)
    assert chosen_on_halves(result) == 1.0
    alone = scored([(0, 0, 4, 4)], [(4, 4, 8, 8)], truth[:1])
    assert chosen_on_halves(alone) in (0.0, 1.0)  # one image has no other half


def test_a_reader_asks_for_boxes_by_position_and_keeps_the_first_pictures(make_tiny):
    backbone = make_tiny("timm-reg4")
    settings = [FIRST, DiscoverySettings("values", 1, centring="image mean")]
    boxes = {i: [(8.0 * i, 0.0, 48.0, 40.0)] for i in (1, 2, 3, 5)}
    asked = []

    def of(index):
        asked.append(index)
        return np.array(boxes.get(index, np.zeros((0, 4))))

    batches = [batch_of(4, size=(48, 64)), batch_of(2, start=4, size=(48, 64))]
    reader = DiscoveryReader(backbone, of, settings, num_examples=3)
    run_pass(backbone, batches, [reader])
    assert asked == list(range(6)) and list(reader.examples) == [1, 2, 3]
    result, own = reader.accumulator.result(), measure_discovery(backbone, batches, boxes, settings).result()
    assert result.summary == own.summary and result.indices.tolist() == [1, 2, 3, 5]
    for name, value in own.arrays().items():
        assert np.array_equal(result.arrays()[name], value), name
    for one, index in zip(result.truth, (1, 2, 3, 5), strict=True):
        np.testing.assert_array_equal(one, boxes[index])
    shown = (backbone.transform.pixels(batches[0].images) * 255).round().numpy()
    for index, (picture, seeds) in reader.examples.items():
        assert picture.shape == (48, 64, 3) and seeds.shape == (2, 2)
        np.testing.assert_array_equal(picture, shown[index].transpose(1, 2, 0))
        row = result.indices.tolist().index(index)
        for (r, c), box, is_gone in zip(seeds, result.boxes[row], result.without_box[row], strict=True):
            assert is_gone or (box[0] <= 8 * c < box[2] and box[1] <= 8 * r < box[3])  # the box is around the seed
    assert not result.without_box.all()
