"""Figures 13 and 14: what their table says is what the probe finds, and what is drawn survives the disk."""

import sys
from pathlib import Path

import numpy as np
import pytest

from vitprobe.probes.by_image import NO_OUTLIERS
from vitprobe.reproduction import null_space

sys.path.append(str(Path(__file__).parent))  # tests are no package
from made_settings import figures, read_again, run_items

NAMES = ("organism", "organism-clean", "organism-reg4")


def run(folder, **asked):
    return run_items(["fig13"], null_space.ITEMS, folder, **asked)["fig13"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("null")
    return {name: run(folder / name, model=name) for name in NAMES}


def rows(found):
    return {row.what: row for row in found.rows}


def test_the_values_of_the_organism_do_not_read_its_outliers(found):
    one, table = found["organism"], rows(found["organism"])
    assert one.summary["answers"] == {"in_null_space": "yes", "weaker": "yes"}
    share = "squared norm in the null space, "
    assert table[f"{share}outliers"].value > 0.95 > table[f"{share}other patches"].value
    assert table[f"{share}random directions"].value == one.summary["num_null"] / 96
    gains = [table[f"gain of the value projection, {kind}"].value for kind in ("outliers", "other patches")]
    low, high = table["gain, difference within an image"].interval
    assert low < gains[0] - gains[1] < high < 0 and table["norm of the values, outliers"].unit == "L2"
    assert all(row.number == 8 and not row.key for row in one.rows)


def test_models_without_outliers_say_so(found):
    for name in NAMES[1:]:
        assert set(found[name].summary["answers"].values()) == {NO_OUTLIERS}
        known = {what for what, row in rows(found[name]).items() if row.value is not None}
        assert known and not any("outliers" in what or "difference" in what for what in known)


def test_options_are_taken_and_checked(tmp_path, found):
    loose = run(tmp_path, eps=0.5)
    assert loose.summary["num_null"] > found["organism"].summary["num_null"]
    assert "eps" in run(tmp_path, eps=2.0)
    early = run(tmp_path, block=2)
    assert early.summary["block"] == 2
    np.testing.assert_array_equal(early.arrays["spectrum"], loose.arrays["spectrum"])


def test_it_is_drawn_from_what_was_kept(found):
    assert read_again(found["organism"]).rows == found["organism"].rows
    drawn = figures(null_space.ITEMS["fig13"], *found.values())
    assert list(drawn) == ["null_space"] and len(drawn["null_space"].axes) == 9
