"""Figure 12 as the command measures it: rows beside the paper's bounds, found again after JSON, and drawn."""

import json
from pathlib import Path

import numpy as np
import pytest

from vitprobe.errors import ArgumentError
from vitprobe.probes.outliers import OutlierRule
from vitprobe.reproduction.base import Found, Setting, fill
from vitprobe.reproduction.flops import ITEMS, FlopsOptions, unpack

ITEM = ITEMS["fig12"]


def setting(model):
    return Setting(model, None, None, None, OutlierRule.parse("auto"), 0, None, 0, None, Path())


def found(model, **asked):
    measured = ITEM.measure(setting(model), fill(ITEM.options, asked))
    assert measured.train_readers() == measured.test_readers() == ()
    return measured.found()


def test_rows_at_224_px_have_the_papers_bounds_beside_them():
    assert FlopsOptions().numbers == (0, 1, 2, 4, 8, 16)  # the paper's
    got = found("dinov2-s14", numbers=(4, 1))
    assert got.summary["image_sizes"] == [[224, 224], [518, 518]] and got.summary["numbers"] == [0, 1, 4]
    keyed = {row.key: row for row in got.rows if row.key}
    assert set(keyed) == {"flops.1", "flops.4"}
    assert keyed["flops.4"].unit == "share" and 0.01 < keyed["flops.4"].value < 0.02
    by_name = {row.what: row for row in got.rows}
    assert len(by_name) == len(got.rows) == 2 * (3 + 2) + 3
    assert by_name["518 px, 4 registers: more FLOPs"].value < keyed["flops.4"].value
    assert by_name["224 px, no register"].unit == "GFLOPs"
    assert (
        by_name["more parameters, 1 register"].value == 0 and by_name["more parameters, 4 registers"].value == 3 * 384
    )
    assert by_name["parameters, no register"].value == pytest.approx(22.06, abs=0.01)
    assert "folded" in got.summary["registers"] and "2 FLOPs" in got.summary["counted"]


def test_a_model_without_positions_of_cls_grows_with_the_first_register():
    got = found("deit3-s16", numbers=(1,), sizes=224)
    assert "folded" not in got.summary["registers"]
    assert [row.value for row in got.rows if row.unit == "parameters"] == [384]


def test_what_was_found_is_found_again_after_json_and_drawn():
    got = found("organism-reg4", numbers=8)
    again = Found.read_back(json.loads(json.dumps(got.as_summary())), got.arrays)
    assert again.rows == got.rows
    (costs,) = unpack(again)
    assert costs.numbers.tolist() == [0, 8] and costs.image_size == (224, 224)
    figures = ITEM.draw([("organism", again), ("scenes", found("scenes-content"))])
    lines = figures["flops"].axes[0].get_lines()
    np.testing.assert_allclose(lines[0].get_ydata(), costs.flops_increase)
    assert [text.get_text() for text in figures["flops"].legends[0].get_texts()] == [
        "organism, 224 px",
        "scenes, 32 px",
    ]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"sizes": (225,)}, "multiple of the patch"),
        ({"sizes": "native"}, "got sizes 'native'"),
        ({"numbers": (0, 2.5)}, "got numbers"),
        ({"numbers": -4}, "whole numbers"),
        ({"registers": 4}, "got option registers"),
    ],
)
def test_what_is_refused(asked, said):
    with pytest.raises(ArgumentError, match=said):
        found("deit3-s16", **asked)
    with pytest.raises(ArgumentError, match="got model"):
        ITEM.measure(setting("nobody"), FlopsOptions()).found()
