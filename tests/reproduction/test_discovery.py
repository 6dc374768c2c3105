"""Table 3 end to end: rows against LOST by hand, controls, and figures drawn from what is stored."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vitprobe import backbones
from vitprobe.errors import ArgumentError
from vitprobe.inputs.geometry import read_geometry
from vitprobe.inputs.truths import open_truths
from vitprobe.probes.boxes import DiscoverySettings, best_iou, discover, to_pixels
from vitprobe.probes.discovery import read_features
from vitprobe.probes.knn import wilson_interval
from vitprobe.reproduction.discovery import ITEMS, DiscoveryOptions

sys.path.append(str(Path(__file__).parent))  # tests are no package
from made_settings import figures, loader, read_again, run_items

SMALL = {"biases": (0.0, -0.1, -0.7), "features": ("keys", "values")}


@pytest.fixture(scope="module")
def test():
    return open_truths("scenes", split="test", limit=24)


@pytest.fixture(scope="module")
def few():
    return open_truths("scenes", split="test", limit=12)


@pytest.fixture(scope="module")
def found(test, tmp_path_factory):
    folder = tmp_path_factory.mktemp("table3")
    models = ("organism", "organism-reg4")
    return {m: run_items(["table3"], ITEMS, folder / m, model=m, test=test, **SMALL)["table3"] for m in models}


def rows(found):
    return {row.what: row for row in found.rows}


def corloc_by_hand(test, settings):
    """CorLoc, one image at a time."""
    backbone = backbones.load("organism-reg4")
    geometry, hits = read_geometry(backbone.transform.apply), []
    for batch in loader(backbone, test):
        for i, index in enumerate(batch.indices):
            place = (settings.features, settings.block)
            features = read_features(backbone, batch.images[i : i + 1], [place])[place][0]
            box = discover(features, (14, 14), settings).box
            truth = test.boxes(index, geometry)
            hits.append(box is not None and best_iou(to_pixels(box, (16, 16), (224, 224)), truth) >= 0.5)
    return float(np.mean(hits))


def test_scores_are_those_of_lost_by_hand(found, test):
    one = found["organism-reg4"]
    assert len(one.summary["cells"]) == 2 * (1 + 2 * 3)
    for cell in (one.summary["cells"][one.summary["best"]], one.summary["cells"][0]):
        settings = DiscoverySettings(**{f: cell[f] for f in DiscoverySettings.__dataclass_fields__})
        assert cell["corloc"] == corloc_by_hand(test, settings)
    row = rows(one)["CorLoc, best of all settings"]
    cells = [cell["corloc"] for cell in one.summary["cells"]]
    assert row.value == max(cells) and row.interval == wilson_interval(round(24 * max(cells)), 24)
    assert one.summary["chosen"]["best of all settings"] == one.summary["cells"][one.summary["best"]]["label"]


def test_registers_bring_objects_back_and_nothing_is_found_without_looking(found):
    """The planted outliers spoil the degrees; with registers in their place the shapes are found."""
    best = {model: rows(one)["CorLoc, best of all settings"] for model, one in found.items()}
    assert best["organism-reg4"].interval[0] > best["organism"].value + 0.1
    for one in found.values():
        own = rows(one)
        assert own["CorLoc, control: the whole image as box"].value == 0
        assert own["CorLoc, LOST as published"].value < 0.05
        assert own["all degrees equal: seed arbitrary, LOST as published"].value > 0.4
        other = own["CorLoc, best of all settings, chosen on the other half"].value
        assert other <= own["CorLoc, best of all settings"].value
    own = rows(found["organism-reg4"])
    placed = own["control: boxes of the best, at random places"].value
    assert 0 < placed < own["CorLoc, best of all settings"].interval[0]


def test_the_published_number_stands_beside_the_best_bias(few, tmp_path):
    named = replace(few, name="voc2007, trainval")
    one = run_items(["table3"], ITEMS, tmp_path, test=named, **SMALL, examples=0)["table3"]
    assert [(row.what, row.key) for row in one.rows if row.key] == [
        ("CorLoc, best bias, not centred, last block", "voc2007")
    ]
    biased = [c["corloc"] for c in one.summary["cells"] if c["normalise"] and c["centring"] == "none"]
    assert rows(one)["CorLoc, best bias, not centred, last block"].value == max(biased)
    assert not one.arrays and set(ITEMS["table3"].draw([("a", one)])) == {"corloc"}


def test_images_without_a_box_are_left_out_and_one_centring_may_be_asked_for(few, tmp_path):
    bare = replace(few, raw_boxes=lambda i: (few.raw_boxes(i)[0], few.raw_boxes(i)[1][: i % 2 * 9]))
    asked = {"biases": 0.0, "centrings": "image mean", "features": "resid_post", "last": 2}
    one = run_items(["table3"], ITEMS, tmp_path, test=bare, **asked)["table3"]
    assert one.summary["num_without_truth"] == 6 and rows(one)["CorLoc, best of all settings"].number == 6
    assert {cell["block"] for cell in one.summary["cells"]} == {7, 6} and len(one.summary["cells"]) == 4
    assert "CorLoc, best bias, not centred, last block" not in rows(one)
    assert "6 images without a box inside the model's crop are left out" in one.summary["notes"]


def test_what_is_refused(few, tmp_path):
    for asked, said in (({"features": "pixels"}, "allowed are queries"), ({"centrings": ()}, "no centrings"),
                        ({"last": 0}, "from 1 on"), ({"biases": "low"}, "several with commas")):  # fmt: skip
        with pytest.raises(ArgumentError, match=said):
            DiscoveryOptions(**asked)
    assert "got the last 9 of 8 blocks" in run_items(["table3"], ITEMS, tmp_path, test=few, last=9)["table3"]


def test_figures_show_every_setting_and_what_was_found(found):
    drawn = figures(ITEMS["table3"], *found.values())
    maps = [ax for ax in drawn["corloc"].axes if ax.images]
    assert len(maps) == 4 and len({ax.images[0].norm.vmax for ax in maps}) == 1  # one scale for all
    cells = found["organism"].summary["cells"]
    own = [c for c in cells if c["features"] == "keys" and c["normalise"]]
    shown = maps[0].images[0].get_array()
    assert shown.shape == (2, 3)
    for cell in own:
        row, col = ("none", "image mean").index(cell["centring"]), SMALL["biases"].index(cell["bias"])
        assert shown[row, col] == cell["corloc"]
    examples, arrays = drawn["examples"], read_again(found["organism-reg4"]).arrays
    assert len(examples.axes) == 12
    ax = examples.axes[6]
    boxes = [patch.get_bbox().extents for patch in ax.patches]
    x0, y0, x1, y1 = arrays["example_found"][0] * 224
    assert any(np.allclose(box, (x0, y0, x1, y1)) for box in boxes) == (x1 > x0)
    (seed,) = ax.lines
    row, col = arrays["example_seeds"][0]
    assert [float(seed.get_xdata()[0]), float(seed.get_ydata()[0])] == [16 * col + 8, 16 * row + 8]
    assert ax.get_xlabel() == f"IoU {arrays['example_iou'][0]:.2f}"


def test_pictures_are_those_that_the_model_saw(found, test):
    backbone = backbones.load("organism")
    batch = next(iter(loader(backbone, test)))
    expected = (backbone.transform.pixels(batch.images) * 255).round().to(torch.uint8).numpy()
    arrays = found["organism"].arrays
    assert arrays["example_images"].shape == (6, 224, 224, 3)
    np.testing.assert_array_equal(arrays["example_images"][0], expected[0].transpose(1, 2, 0))
    geometry = read_geometry(backbone.transform.apply)
    truth = arrays["example_truth"][0]
    np.testing.assert_allclose(truth[np.isfinite(truth).all(1)] * 224, test.boxes(0, geometry))
