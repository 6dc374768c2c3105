"""Figure 5 a: what its table says is what the probe finds, and what is drawn survives the disk."""

import sys
from pathlib import Path

import numpy as np
import pytest

from vitprobe import backbones
from vitprobe.probes.by_image import NO_OUTLIERS
from vitprobe.probes.neighbours import NeighbourReader
from vitprobe.probes.norms import measure_norms
from vitprobe.probes.outliers import OutlierRule
from vitprobe.probes.passes import run_pass
from vitprobe.reproduction import neighbours

sys.path.append(str(Path(__file__).parent))  # tests are no package
from made_settings import figures, loader, read_again, run_items, scenes


def run(folder, **asked):
    return run_items(["fig5a"], neighbours.ITEMS, folder, **asked)["fig5a"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("neighbours")
    return {name: run(folder / name, model=name) for name in ("organism", "organism-clean")}


def test_outliers_of_the_organism_resemble_their_neighbours(found):
    backbone = backbones.load("organism")
    cutoff = measure_norms(backbone, loader(backbone, scenes(8))).result(OutlierRule.parse("auto"), point=7).cutoffs[7]
    reader = NeighbourReader(backbone, block=7, cutoff=float(cutoff))
    run_pass(backbone, loader(backbone, scenes(8)), [reader])
    own, one = reader.result(), found["organism"]
    assert one.summary["answer"] == "yes" and one.summary["cutoff"] == cutoff
    for row, name in zip(one.rows, ("outliers", "others", "difference", "over_high"), strict=True):
        assert row.value == own.summary[name]["value"] and row.interval == own.summary[name]["interval"]
        assert row.number == 8 and not row.key
    np.testing.assert_array_equal(one.arrays["counts"], own.counts)
    assert one.rows[2].interval[0] > 0 and one.rows[3].unit == "share"


def test_a_clean_model_has_nothing_to_compare(found):
    clean = found["organism-clean"]
    assert clean.summary["answer"] == NO_OUTLIERS and clean.summary["cutoff"] is None
    assert [row.value is None for row in clean.rows] == [True, False, True, True]
    assert [row.number for row in clean.rows] == [0, 8, 0, 0]


def test_content_outliers_do_not(tmp_path):
    assert run(tmp_path, model="organism-content").summary["answer"] == "no"


def test_options_are_taken_and_checked(tmp_path, found):
    wide = run(tmp_path, bandwidth=0.2)
    assert wide.summary["bandwidth"] == 0.2 and wide.arrays["density"].max() < found["organism"].arrays["density"].max()
    assert "bandwidth" in run(tmp_path, bandwidth=3.0)


def test_it_is_drawn_from_what_was_kept(found):
    again = read_again(found["organism"])
    assert again.rows == found["organism"].rows
    drawn = figures(neighbours.ITEMS["fig5a"], found["organism"], found["organism-clean"])
    assert list(drawn) == ["neighbours"] and len(drawn["neighbours"].axes) == 2
