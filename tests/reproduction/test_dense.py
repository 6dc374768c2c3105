"""Class and depth of every pixel, end to end: scores against pixels counted by hand, controls, options, figures."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vitprobe import backbones
from vitprobe.errors import ArgumentError
from vitprobe.inputs.geometry import read_geometry
from vitprobe.inputs.scenes import SceneConfig, generate, scene_items
from vitprobe.inputs.truths import TruthSource
from vitprobe.reproduction.dense import ITEMS
from vitprobe.reproduction.dense_options import DepthOptions, MaskOptions, eigen_crop

sys.path.append(str(Path(__file__).parent))  # tests are no package
from made_settings import figures, read_again, run_items

CLASSES = ("background", "object", "none of these")


def pixel_scenes(number, *, seed, size=(224, 224), name="scenes"):
    """Scenes with the depth of every pixel, and whether it is an object's; in the first rows that is not known."""
    config = SceneConfig(size=size)
    made = generate(number, config=config, seed=seed)
    masks = made.masks.any(1).long().numpy()  # (N, H, W)
    masks[:, :20] = -1
    return TruthSource(
        name,
        scene_items(number, config=config, seed=seed),
        mask_classes=CLASSES,
        depth_unit="of the farthest",
        raw_mask=masks.__getitem__,
        raw_depth=made.depth.numpy().__getitem__,
    )


TRAIN, TEST = pixel_scenes(48, seed=6), pixel_scenes(16, seed=7)
ASKED = {"train": TRAIN, "test": TEST, "tokens_per_image": 48, "examples": 3}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    return {
        model: run_items(list(ITEMS), ITEMS, folder / model, model=model, **ASKED)
        for model in ("organism", "scenes-content")
    }


def values(one):
    return {row.what: row.value for row in one.rows}


def test_the_constant_and_the_examples_are_those_of_the_pixels(found):
    """Counted in the files themselves: the organism resizes and crops nothing."""
    one = found["organism"]["table2-masks"]
    truth = np.stack([TEST.raw_mask(i) for i in range(16)])
    counts = np.bincount(truth[truth >= 0], minlength=len(CLASSES))
    assert counts.argmax() == 0 and one.arrays["shares"] == pytest.approx(counts / counts.sum())
    assert values(one)["pixel accuracy, background, always"] == pytest.approx(counts[0] / counts.sum())
    assert values(one)["mean IoU, background, always"] == pytest.approx(counts[0] / counts.sum() / 2)
    assert np.isnan(one.arrays["iou"][2]) and one.summary["num_test"] == 16
    assert np.array_equal(one.arrays["truth"], truth[[0, 7, 15]])
    right = (one.arrays["predicted"] == one.arrays["truth"])[one.arrays["truth"] >= 0].mean()
    assert 0.4 < right < 0.95 and set(np.unique(one.arrays["predicted"])) <= {0, 1}
    assert one.summary["num_drawn"] == 48 * 48 and one.summary["num_train"] == 48


def test_features_tell_more_than_controls(found):
    for model in found:
        scores = values(found[model]["table2-masks"])
        controls = [scores[f"mean IoU, {name}"] for name in ("position alone", "random features", "background, always")]
        assert scores["mean IoU, patch features"] > max(controls) + 0.01, model
        less = next(row for row in found[model]["table2-masks"].rows if row.what.endswith("less position alone"))
        assert less.value == pytest.approx(scores["mean IoU, patch features"] - controls[0])
        assert 0 < less.interval[0] < less.value < less.interval[1]
        errors = values(found[model]["table2-depth"])
        of, constant = "mean over images", errors["mean depth, always, mean over images"]
        assert errors[f"patch features, {of}"] < 0.95 * constant, model
        assert errors[f"random features, {of}"] == pytest.approx(constant, rel=0.03)
    assert any("not the published protocol" in note for note in found["organism"]["table2-masks"].summary["notes"])


def test_depth_errors_of_a_constant_are_those_of_the_pixels(found):
    truth = np.stack([TEST.raw_depth(i) for i in range(16)]).astype(float)
    one = found["organism"]["table2-depth"]
    each = np.sqrt(((truth - one.summary["constant"]) ** 2).mean((1, 2)))
    value = values(one)["mean depth, always, mean over images"]
    assert value == pytest.approx(each.mean(), rel=1e-4)
    trained = np.mean([TRAIN.raw_depth(i).mean(dtype=float) for i in range(48)])
    assert one.summary["constant"] == pytest.approx(trained, rel=0.02)  # of drawn pixels
    assert one.rows[0].unit == "RMSE, of the farthest" and one.rows[0].interval[0] < one.rows[0].value


def test_masks_are_read_through_the_models_own_crop(found):
    one = found["scenes-content"]["table2-masks"]
    geometry = read_geometry(backbones.load("scenes-content").transform.apply)
    wanted = np.stack([geometry.nearest(TEST.raw_mask(i)) for i in (0, 7, 15)])
    assert np.array_equal(one.arrays["truth"], wanted)


def test_one_class_is_refused_and_the_other_item_goes_on(tmp_path):
    alone = replace(TRAIN, raw_mask=lambda index: np.ones((224, 224), np.int64), items=TRAIN.items[:6])
    got = run_items(list(ITEMS), ITEMS, tmp_path, train=alone, test=replace(TEST, items=TEST.items[:3]))
    assert got["table2-masks"].startswith("all 384 training tokens are of one class, 1")
    assert got["table2-depth"].rows


def test_published_numbers_stand_beside_their_own_set_and_eigens_crop_is_read(tmp_path):
    size = (480, 640)
    train, test = (pixel_scenes(n, seed=s, size=size, name="nyud, test") for n, s in ((8, 1), (3, 2)))
    runs = {
        crop: run_items(
            ["table2-depth"], ITEMS, tmp_path / str(crop), train=train, test=test, eigen_crop=crop, max_depth=0.95
        )["table2-depth"]
        for crop in (False, True)
    }
    assert runs[True].rows[0].key == "nyud" and not any(row.key for row in runs[True].rows[1:])
    assert "BTS" in runs[True].summary["notes"][-1] and "eigen_crop=true" in runs[False].summary["notes"][-1]
    unknown = {crop: np.isnan(one.arrays["truth"]) for crop, one in runs.items()}
    assert unknown[True][:, :20].all() and not unknown[False][:, :20].all()
    assert np.nanmax(runs[True].arrays["truth"]) <= 0.95 and runs[True].arrays["predicted"].max() <= np.float32(0.95)


def test_the_crop_is_that_of_bts():
    kept = np.isfinite(eigen_crop(np.ones((480, 640), np.float32)))
    assert kept[45:471, 41:601].all() and kept.sum() == 426 * 560
    with pytest.raises(ArgumentError, match="got depths of 224 x 224 px"):
        eigen_crop(np.ones((224, 224), np.float32))


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (MaskOptions, {"tokens_per_image": 0}),
        (MaskOptions, {"examples": 1.5}),
        (MaskOptions, {"point": "middle"}),
        (MaskOptions, {"c": ("a",)}),
        (MaskOptions, {"solver": "x"}),
        (DepthOptions, {"min_depth": 0}),
        (DepthOptions, {"max_depth": "far"}),
        (DepthOptions, {"min_depth": 3, "max_depth": 2}),
        (DepthOptions, {"eigen_crop": 1}),
    ],
)
def test_wrong_options_are_refused_in_one_line(kind, wrong):
    with pytest.raises(ArgumentError, match="got ") as caught:
        kind(**wrong)
    assert "\n" not in str(caught.value)


def test_figures_are_drawn_of_what_is_stored(found):
    masks = figures(ITEMS["table2-masks"], *(one["table2-masks"] for one in found.values()))
    depth = figures(ITEMS["table2-depth"], *(one["table2-depth"] for one in found.values()))
    assert set(masks) == {"scores", "examples", "classes"} and set(depth) == {"scores", "examples"}
    again = read_again(found["organism"]["table2-masks"])
    other = replace(again, summary={**again.summary, "data": "another set"})
    drawn = ITEMS["table2-masks"].draw([("one", again), ("two", other)])
    assert len(drawn) == 5 and len(drawn["scores"].axes) == 4


def test_pictures_that_must_not_be_passed_on_are_neither_kept_nor_drawn(tmp_path, found):
    asked = {**ASKED, "examples": 0}
    bare = run_items(list(ITEMS), ITEMS, tmp_path, model="scenes-content", **asked)
    for name in ITEMS:
        assert values(bare[name]) == values(found["scenes-content"][name])
        assert len(bare[name].arrays["images"]) == 0 and "examples" not in figures(ITEMS[name], bare[name])
