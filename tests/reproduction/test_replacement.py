"""Registers replaced as the command measures it, on organisms and generated scenes."""

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from vitprobe import backbones
from vitprobe.errors import ArgumentError
from vitprobe.inputs.loading import ImageLoader
from vitprobe.inputs.scenes import SceneConfig, generate, scene_items
from vitprobe.inputs.truths import TruthSource
from vitprobe.probes.outliers import OutlierRule
from vitprobe.probes.passes import run_pass
from vitprobe.probes.replacement import WAYS
from vitprobe.recorder import Recorder, Site
from vitprobe.reproduction.base import Found, Setting, fill
from vitprobe.reproduction.replacement import ITEMS, choose_task

ITEM = ITEMS["replace"]
RULE = OutlierRule.parse("auto")


def scenes(number, seed):
    config = SceneConfig(size=(64, 64))
    truth = generate(number, config=config, seed=seed)
    labels = {name: getattr(truth, name).long().numpy() for name in ("count", "majority", "same")}
    return TruthSource("scenes", scene_items(number, config=config, seed=seed), labels)


def make_setting(name, folder, *, train=90, test=40, **options):
    backbone = backbones.load(name, **options)
    sources = (scenes(train, 0), scenes(test, 1))
    return Setting(name, backbone, *sources, RULE, backbone.num_blocks - 1, None, 0, None, folder)


def load(backbone, source):
    return ImageLoader(source.items, backbone.transform, batch_size=16, workers=0)


def found(setting, **asked):
    measured = ITEM.measure(setting, fill(ITEM.options, asked))
    for source, readers in ((setting.train, measured.train_readers), (setting.test, measured.test_readers)):
        if own := list(readers()):
            run_pass(setting.backbone, load(setting.backbone, source), own)
    return measured.found()


@pytest.fixture(scope="module")
def organism(tmp_path_factory):
    """The organism with registers, and what was found of it."""
    setting = make_setting("organism-reg4", tmp_path_factory.mktemp("features"), image_size=(112, 112))
    return setting, found(setting)


def test_every_way_is_set_beside_registers_as_they_are(organism):
    _, got = organism
    by_name = {row.what: row for row in got.rows}
    assert len(by_name) == len(got.rows) == 1 + 4 + 4 + 3 * 4 + 1 + 4 + 1
    for way in WAYS:
        change = by_name[f"accuracy less as is, {way}"]
        own = by_name[f"accuracy, {way}"].value - by_name["accuracy, registers as is"].value
        assert change.value == pytest.approx(own) and change.key == f"difference.{way}" and change.number == 40
        assert by_name[f"accuracy, {way}"].interval[0] < by_name[f"accuracy, {way}"].value
    assert by_name["largest change, own registers put back"].value == 0
    largest = {way: by_name[f"largest patch norm, {way}"].value for way in ("registers as is", *WAYS)}
    assert largest["zero"] > 2 > 1.5 > max(value for way, value in largest.items() if way != "zero")
    assert got.summary["blocks"] == list(range(1, 8)) and got.summary["task"] == "majority"
    assert (got.summary["num_train"], got.summary["num_test"], got.summary["pool"]) == (90, 40, 64)


def test_accuracies_are_those_of_a_probe_by_hand(organism):
    """CLS and mean patch after the final norm, standardised, read by scikit-learn at the C that was chosen."""
    setting, got = organism
    features, labels = {}, {}
    for split, source in (("train", setting.train), ("test", setting.test)):
        rows = []
        for batch in load(setting.backbone, source):
            with torch.inference_mode(), Recorder(setting.backbone, [site := Site("final_norm")]) as recorder:
                setting.backbone(batch.images)
                tokens = recorder.take()[site]
            layout = setting.backbone.layout()
            rows.append(torch.cat([tokens[:, layout.patches].mean(1), tokens[:, layout.cls].flatten(1)], 1))
        features[split], labels[split] = torch.cat(rows).numpy(), source.labels["majority"]
    scale = StandardScaler().fit(features["train"])
    model = LogisticRegression(C=got.summary["c"], max_iter=5000).fit(
        scale.transform(features["train"]), labels["train"]
    )
    own = model.score(scale.transform(features["test"]), labels["test"])
    assert got.rows[0].value == pytest.approx(own, abs=1.5 / 40)  # one image may lie on the border
    values, sizes = np.unique(labels["train"], return_counts=True)
    assert got.summary["chance"] == pytest.approx(
        np.mean([(labels["test"] == v).mean() for v in values[sizes == sizes.max()]])
    )


def test_what_was_found_is_found_again_after_json_and_drawn(organism):
    _, got = organism
    again = Found.read_back(json.loads(json.dumps(got.as_summary())), got.arrays)
    assert again.rows == got.rows
    nothing = Found((), {"note": "no registers to replace"})
    (figure,) = ITEM.draw([("organism", nothing), ("organism-reg4", again)]).values()
    points = figure.axes[0].get_lines()[0]
    np.testing.assert_allclose(points.get_ydata(), [row.value for row in got.rows[:5]])


def test_without_registers_there_is_nothing_to_replace(tmp_path):
    setting = make_setting("organism", tmp_path, train=4, test=4)
    measured = ITEM.measure(setting, ITEM.options())
    assert measured.train_readers() == measured.test_readers() == ()
    got = measured.found()
    assert got.rows == () and got.summary == {"note": "no registers to replace"}
    assert ITEM.draw([("organism", got)]) == {}


def test_blocks_ways_and_task_may_be_chosen_and_unlabelled_images_are_left_out(tmp_path):
    setting = make_setting("scenes-content-reg4", tmp_path, train=40, test=20)
    setting.test.labels["same"][[2, 5]] = -1
    setting.train.labels["same"][0] = -1
    got = found(setting, blocks="last", ways="mean", task="same", num_pool=8)
    assert got.summary["blocks"] == [7] and list(got.summary["ways"]) == ["mean"]
    assert (got.summary["num_train"], got.summary["num_test"], got.summary["pool"]) == (39, 18, 8)
    by_name = {row.what: row for row in got.rows}
    assert by_name["accuracy, mean"].number == 18 and by_name["1 - cosine of patches, mean"].number == 20
    assert "1 - cosine of CLS, mean" not in by_name  # the model has none
    assert got.summary["features"] == "cls+mean, resid_post of block 7"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"blocks": (1, 9)}, "from 0 to 7"),
        ({"task": "colour"}, "the set has count, majority, same"),
        ({"num_pool": 1}, "2 or more"),
        ({"ways": ("zero", "one")}, "allowed are zero"),
        ({"mode": "zero"}, "got option mode"),
    ],
)
def test_what_is_refused(organism, asked, said):
    with pytest.raises(ArgumentError, match=said):
        ITEM.measure(organism[0], fill(ITEM.options, asked))


def test_the_task_is_the_majority_colour_or_the_first():
    assert choose_task(("count", "majority"), "") == "majority"
    assert choose_task(("class",), "") == "class" and choose_task(("count", "majority"), "count") == "count"
