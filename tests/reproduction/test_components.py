"""Figure 20: what its table says is what the probe finds, and what is drawn survives the disk."""

import sys
from pathlib import Path

import numpy as np
import pytest

from vitprobe.probes.by_image import NO_OUTLIERS
from vitprobe.reproduction import components

sys.path.append(str(Path(__file__).parent))  # tests are no package
from made_settings import figures, read_again, run_items


def run(folder, **asked):
    return run_items(["fig20"], components.ITEMS, folder, **asked)["fig20"]


def values(found):
    return {row.what: row.value for row in found.rows}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("components")
    return {name: run(folder / name, model=name, point="resid_post") for name in ("organism", "organism-clean")}


def test_outliers_are_the_first_component_of_the_organism(found):
    one, table = found["organism"], values(found["organism"])
    assert one.summary["answer"] == "yes" and one.summary["point"] == "resid_post"
    assert table["outliers by its size, all patches"] == 1 > table["outliers by its size, without outliers"]
    shares = one.arrays["shares"][:, 0]
    assert [table[f"variance in the component, {w}"] for w in ("all patches", "without outliers")] == shares.tolist()
    maps, outliers = one.arrays["example_maps"][0], one.arrays["example_outliers"]
    assert maps.shape == outliers.shape == (8, 14, 14) and maps[outliers].min() > np.abs(maps[~outliers]).max()
    assert not any(row.key for row in one.rows)


def test_a_clean_model_has_no_outliers_to_tell(found):
    clean, table = found["organism-clean"], values(found["organism-clean"])
    assert clean.summary["answer"] == NO_OUTLIERS
    with_, without = (table[f"variance in the component, {w}"] for w in ("all patches", "without outliers"))
    assert with_ == without and sum(value is None for value in table.values()) == 4


def test_options_are_taken_and_checked(tmp_path):
    each = run(tmp_path, over="each", num_shown=2, num_scored=6)
    assert (each.summary["over"], each.summary["point"], each.summary["num_scored"]) == ("each", "final_norm", 6)
    assert each.arrays["example_maps"].shape == (2, 2, 14, 14) and each.rows[0].interval is not None
    assert each.rows[0].number == 6 and values(each)["outliers by its size, all patches"] == 1
    assert "allowed are images, each" in run(tmp_path, over="all")
    assert "resid_post" in run(tmp_path, point="final_norm", block=3)


def test_it_is_drawn_from_what_was_kept(found):
    assert read_again(found["organism"]).rows == found["organism"].rows
    item = components.ITEMS["fig20"]
    assert list(figures(item, *found.values())) == ["components", "components-without-outliers"]
    assert list(figures(item, found["organism-clean"])) == ["components"]
