"""Figures 9 and 16 as the command measures them, on organisms and generated scenes."""

import json
from pathlib import Path

import numpy as np
import pytest

from vitprobe import backbones
from vitprobe.errors import ArgumentError
from vitprobe.inputs.loading import ImageLoader
from vitprobe.inputs.scenes import SceneConfig, scene_items
from vitprobe.inputs.truths import TruthSource
from vitprobe.probes.norms import measure_norms
from vitprobe.probes.outliers import OutlierRule
from vitprobe.probes.passes import run_pass
from vitprobe.reproduction.base import Found, Setting, fill
from vitprobe.reproduction.register_maps import ITEMS

ITEM = ITEMS["fig9"]
RULE = OutlierRule.parse("auto")
SIZE = (112, 112)


def scenes(number, seed):
    return TruthSource("scenes", scene_items(number, config=SceneConfig(size=(64, 64)), seed=seed))


def make_setting(backbone, number=8):
    test, last = scenes(number, 4), backbone.num_blocks - 1
    norms = measure_norms(backbone, load(backbone, test), blocks=[last]).result(RULE, point=last)
    return Setting(backbone.spec.name, backbone, None, test, RULE, last, norms, 0, None, Path())


def load(backbone, source):
    return ImageLoader(source.items, backbone.transform, batch_size=4, workers=0)


def found(setting, **asked):
    measured = ITEM.measure(setting, fill(ITEM.options, asked))
    assert measured.train_readers() == ()
    run_pass(setting.backbone, load(setting.backbone, setting.test), list(measured.test_readers()))
    return measured.found()


@pytest.fixture(scope="module")
def pair():
    """Settings of the organism without and with registers."""
    return [make_setting(backbones.load(name, image_size=SIZE)) for name in ("organism", "organism-reg4")]


def test_a_model_with_registers_has_all_pairs_and_controls(pair):
    got = found(pair[1])
    by_name = {(row.what, row.unit): row for row in got.rows}
    for measure in ("cosine", "intersection"):
        image, shuffled, between = (
            by_name[f"two registers, {kind}", measure]
            for kind in ("same image", "positions shuffled", "different images")
        )
        assert image.interval[0] <= image.value <= image.interval[1] and image.number == 8
        assert image.value > 0.99 > shuffled.value and between.value < image.value
        assert ("CLS and a register, same image", measure) in by_name
        assert ("a register and itself, same image", measure) not in by_name
    assert by_name["attention of CLS on CLS and registers", "share"].value > 0.2  # they carry the planted activation
    assert got.summary["maps"]["num_registers"] == 4 and "note" not in got.summary


def test_a_model_without_registers_has_cls_alone(pair):
    got = found(pair[0])
    assert got.summary["note"] == "no registers: CLS alone"
    assert {row.what for row in got.rows} == {
        "attention of CLS on CLS and registers",
        "CLS and itself, positions shuffled",
        "CLS and itself, different images",
    }
    assert got.arrays["outliers"].any()  # by the setting's cutoff
    assert set(ITEM.draw([("organism", got)])) == {"maps", "means"}


def test_what_was_found_is_found_again_after_json_and_drawn(pair):
    each = [found(setting, num_shown=3, registers=2) for setting in pair]
    again = [Found.read_back(json.loads(json.dumps(one.as_summary())), one.arrays) for one in each]
    assert [one.rows for one in again] == [one.rows for one in each]
    figures = ITEM.draw([("organism", again[0]), ("organism-reg4", again[1])])
    assert set(figures) == {"maps", "means", "overlaps"}
    maps = [image for ax in figures["maps"].axes for image in ax.images if image.get_array().shape == (7, 7)]
    assert len(maps) == 3 * (1 + 2)
    np.testing.assert_allclose(maps[-1].get_array(), each[1].arrays["maps"][2, 3] * (49 + 5), rtol=1e-6)


def test_another_block_may_be_asked_for(pair):
    got = found(pair[1], block=5, num_compared=3)
    assert got.summary["maps"]["block"] == 5 and got.summary["maps"]["num_compared"] == 3


def test_a_model_without_cls_and_registers_has_no_map(make_tiny):
    backbone = make_tiny("timm-map-pool", size=(64, 64))
    measured = ITEM.measure(make_setting(backbone, 2), ITEM.options())
    assert [reader.sites for reader in measured.test_readers()] == [()]
    got = measured.found()
    assert got.rows == () and "neither CLS nor registers" in got.summary["note"] and ITEM.draw([("a", got)]) == {}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"registers": (0, 4)}, "got register 4; organism-reg4 has 4"),
        ({"registers": "all"}, "got register all"),
        ({"block": 8}, "blocks 0 to 7"),
        ({"num_shown": 0}, "at least 1"),
        ({"head": 1}, "got option head"),
    ],
)
def test_what_is_refused(pair, asked, said):
    with pytest.raises(ArgumentError, match=said):
        ITEM.measure(pair[1], fill(ITEM.options, asked))
