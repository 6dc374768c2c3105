"""Point-in-Box end to end: rows against scores by hand, controls, and a model without CLS."""

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
from vitprobe.probes.knn import wilson_interval
from vitprobe.reproduction.patch_score import ITEMS, PatchScoreOptions

sys.path.append(str(Path(__file__).parent))  # tests are no package
from made_settings import figures, loader, run_items


@pytest.fixture(scope="module")
def test():
    return open_truths("scenes", split="test", limit=16)


@pytest.fixture(scope="module")
def found(test, tmp_path_factory):
    folder = tmp_path_factory.mktemp("patch-score")
    models = ("organism", "organism-clean", "scenes-content")
    return {m: run_items(["patch-score"], ITEMS, folder / m, model=m, test=test)["patch-score"] for m in models}


def rows(found):
    return {row.what: row for row in found.rows}


def test_rows_are_scores_by_hand(found, test):
    backbone = backbones.load("organism")
    geometry, hits, shares, middle = read_geometry(backbone.transform.apply), [], [], []
    for batch in loader(backbone, test):
        with torch.no_grad():
            patches, prefix = backbone.module.forward_intermediates(
                batch.images, indices=[7], norm=True, return_prefix_tokens=True, intermediates_only=True
            )[0]
        patches = torch.nn.functional.normalize(patches.flatten(2).transpose(1, 2), dim=-1)
        scores = patches @ torch.nn.functional.normalize(prefix[:, :1], dim=-1).transpose(1, 2)
        for own, index in zip(scores[..., 0], batch.indices, strict=True):
            boxes = test.boxes(index, geometry)
            inside = [
                any(x0 <= 16 * (p % 14) + 8 < x1 and y0 <= 16 * (p // 14) + 8 < y1 for x0, y0, x1, y1 in boxes)
                for p in range(196)
            ]
            hits.append(inside[int(own.argmax())])
            shares.append(np.mean(inside))
            middle.append(inside[7 * 14 + 7])
    own = rows(found["organism"])
    assert own["top patch in a box"].value == np.mean(hits)
    assert own["top patch in a box"].interval == wilson_interval(sum(hits), 16)
    assert own["control: random patch in a box"].value == pytest.approx(np.mean(shares))
    assert own["control: patch in the middle in a box"].value == np.mean(middle)
    assert own["top patch less a random patch"].value == pytest.approx(np.mean(hits) - np.mean(shares))
    assert own["top patch in a box"].key == ""


def test_outliers_are_left_out_where_there_are_any(found):
    own = rows(found["organism"])
    assert own["top patch is an outlier"].number == 16 == own["top patch in a box, outliers left out"].number
    clean = rows(found["organism-clean"])
    assert clean["top patch in a box, outliers left out"].value is None is clean["top patch is an outlier"].value
    assert "organism-clean: rule auto finds no outliers to leave out" in found["organism-clean"].summary["notes"]
    assert found["organism-clean"].summary["answer"] in ("yes", "no", "not clear")


def test_a_model_without_cls_is_compared_with_the_mean_of_its_patches(found):
    one = found["scenes-content"]
    assert backbones.load("scenes-content").layout().cls is None and one.summary["reference"] == "mean"
    assert any("cosine with the mean of the patches at " in note for note in one.summary["notes"])


def test_images_without_a_box_are_left_out(test, tmp_path):
    bare = replace(test, raw_boxes=lambda i: (test.raw_boxes(i)[0], test.raw_boxes(i)[1][: i % 2 * 9]))
    one = run_items(["patch-score"], ITEMS, tmp_path, test=bare, point="resid_post", examples=0)["patch-score"]
    assert one.summary["num_without_truth"] == 8 and one.summary["point"] == "resid_post" and not one.arrays
    assert "8 images without a box inside the model's crop are left out" in one.summary["notes"]
    assert set(ITEMS["patch-score"].draw([("a", one)])) == {"point_in_box"}


def test_what_is_refused(test, tmp_path):
    for asked, said in (({"point": "x"}, "allowed are auto"), ({"reference": "x"}, "cls, mean"),
                        ({"examples": -1}, "from 0 on")):  # fmt: skip
        with pytest.raises(ArgumentError, match=said):
            PatchScoreOptions(**asked)
    asked = {"model": "scenes-content", "test": test, "reference": "cls"}
    assert "has no CLS" in run_items(["patch-score"], ITEMS, tmp_path, **asked)["patch-score"]


def test_figures_show_shares_and_scores(found):
    drawn = figures(ITEMS["patch-score"], *found.values())
    (ax,) = drawn["point_in_box"].axes
    marks = sorted(float(line.get_xdata()[0]) for line in ax.lines if line.get_linestyle() == "None")
    shares = [s["value"] for one in found.values() for s in one.summary["shares"].values() if s is not None]
    assert marks == pytest.approx(sorted(shares))
    maps = [ax for ax in drawn["patch_score"].axes if ax.images and ax.get_xlabel()]
    assert len(maps) == 18 and len({ax.images[0].norm.vmax for ax in maps}) == 1
    arrays = found["organism"].arrays
    np.testing.assert_array_equal(maps[0].images[0].get_array(), arrays["example_scores"][0])
    tops = [line for line in maps[0].lines if line.get_marker() == "o"]
    row, col = arrays["example_top"][0]
    assert [float(tops[0].get_xdata()[0]), float(tops[0].get_ydata()[0])] == [16 * col + 8, 16 * row + 8]
    assert arrays["example_scores"][0].argmax() == row * 14 + col
