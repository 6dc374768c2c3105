"""The claims at a percentile, end to end: what was planted is found, and the cut is the model's own."""

import sys
from pathlib import Path

import numpy as np
import pytest

from vitprobe import backbones
from vitprobe.errors import ArgumentError
from vitprobe.inputs.truths import open_truths
from vitprobe.probes.claims import CLAIMS, cutoff_at
from vitprobe.probes.local_probes import pixel_probe
from vitprobe.probes.norms import measure_norms
from vitprobe.probes.outliers import OutlierRule
from vitprobe.probes.token_sets import open_tokens
from vitprobe.reproduction.claims import ITEMS, ClaimOptions

sys.path.append(str(Path(__file__).parent))  # tests are no package
from made_settings import figures, loader, read_again, run_items

SMALL = {"num_draws": 2, "c_grid": (0.01, 1.0), "alpha_grid": (1.0, 100.0), "tasks": ("background", "majority")}


@pytest.fixture(scope="module")
def sources():
    return open_truths("scenes", split="train", limit=50), open_truths("scenes", split="test", limit=24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("claims")


@pytest.fixture(scope="module")
def found(sources, folder):
    train, test = sources
    return {
        model: run_items(["claims98"], ITEMS, folder / model, model=model, train=train, test=test, **SMALL)["claims98"]
        for model in ("organism", "organism-clean")
    }


def of_claim(found, name, part=""):
    return next(one for one in found.summary["tested"] if (one["name"], one["part"]) == (name, part))


def test_planted_outliers_resemble_their_neighbours_and_those_of_a_clean_model_do_not(found):
    """They are planted where contrast is least; and the model leaves their pixels to be read, which is told too."""
    own = found["organism"]
    assert own.summary["answers"]["neighbours"] == "holds" and own.summary["answers"]["pixels"] == "does not hold"
    assert found["organism-clean"].summary["answers"]["neighbours"] != "holds"
    assert set(own.summary["answers"]) == set(CLAIMS) == set(own.summary["claims"])


def test_the_cut_is_the_percentile_of_the_models_norms_whatever_the_rule_finds(found, sources):
    for model, one in found.items():
        backbone = backbones.load(model)
        stats = measure_norms(backbone, loader(backbone, sources[1])).result(OutlierRule.parse("auto"), point=7)
        assert one.summary["cutoff"] == cutoff_at(stats, 7, OutlierRule.parse("p98"))
        assert (
            stats.counts[7, 2][stats.edges[:-1] >= one.summary["cutoff"]].sum() / (24 * 196) < 0.03
        )  # bins are 0.1 % wide
        share = one.summary["share_by_rule"]
        assert share == stats.outlier_fractions[7] and (share > 0) == (model == "organism")
        assert "told by the p98 cutoff of the test images' norms" in one.summary["notes"][1]
    assert "rule auto: none" in found["organism-clean"].summary["notes"][0]


def test_a_difference_is_that_of_probes_by_hand(found, folder):
    train, test = (open_tokens(folder / "organism" / "claims98" / f"tokens-{split}") for split in ("train", "test"))
    errors = []
    for kind in ("outlier", "normal"):
        sets = [t[kind, 7] for t in (train, test)]
        made = pixel_probe(sets[0], sets[0].pixels, sets[1], sets[1].pixels, grid=(1.0, 100.0))
        errors.append(np.array([made.errors[sets[1].images == i].mean() for i in np.unique(sets[1].images)]))
    one = of_claim(found["organism"], "pixels")
    assert one["value"] == pytest.approx((errors[0] - errors[1]).mean()) and one["num_images"] == len(errors[0])
    row = next(row for row in found["organism"].rows if row.what.startswith("pixels"))
    assert row.value == one["value"] and row.interval == tuple(one["interval"])


def test_every_task_is_tested_and_too_few_images_are_told(found):
    own = found["organism"]
    parts = [of_claim(own, "classes", task)["answer"] for task in SMALL["tasks"]]
    whole = own.summary["answers"]["classes"]
    assert whole == parts[0] if len(set(parts)) == 1 else whole.endswith("of 2 tasks")
    clean = found["organism-clean"].summary  # two per cent of its patches lie in a few images
    assert clean["images"]["outlier"]["train_images"] < 30
    assert clean["answers"]["position"].startswith("not tested: ") and "30 are needed" in clean["answers"]["position"]
    assert of_claim(found["organism-clean"], "classes", "background")["value"] is None


def test_what_is_refused(sources, tmp_path):
    for asked, said in (({"cut": "p200"}, "at most 100"), ({"paired": False}, "and true"), ({"unit": "x"}, "model")):
        with pytest.raises(ArgumentError, match=said):
            ClaimOptions(**asked)
    train, test = sources
    one = run_items(["claims98"], ITEMS, tmp_path, model="organism-clean", train=train, test=test, cut="auto")
    assert one["claims98"] == "rule auto finds no outliers; give a percentile, such as cut=p98"


def test_the_figure_has_a_panel_for_every_claim_with_the_side_on_which_it_holds(found):
    figure = figures(ITEMS["claims98"], *found.values())["claims"]
    assert len(figure.axes) == 4 + 2
    for ax, one in zip(figure.axes, found["organism"].summary["tested"], strict=True):
        low, high = ax.get_xlim()
        assert low == -high and low < one["value"] < high
        side = ax.patches[0].get_extents().transformed(ax.transData.inverted())
        assert [side.x0, side.x1] == pytest.approx([0, high] if one["sign"] > 0 else [low, 0], abs=1e-9)
        marks = [line for line in ax.lines if line.get_linestyle() == "None"]
        assert float(marks[0].get_xdata()[0]) == pytest.approx(one["value"])
        is_tested = of_claim(found["organism-clean"], one["name"], one["part"])["value"] is not None
        assert ("not tested" in [text.get_text() for text in ax.texts]) == (not is_tested)
    assert read_again(found["organism"]).summary["tested"] == [
        {**one, "interval": one["interval"] and list(one["interval"])} for one in found["organism"].summary["tested"]
    ]
