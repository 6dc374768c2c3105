"""Figure 5 b and table 5 end to end: rows against probes of the same tokens, controls, and options."""

import sys
from pathlib import Path

import numpy as np
import pytest

from vitprobe.errors import ArgumentError
from vitprobe.inputs.truths import open_truths
from vitprobe.probes.local_probes import pixel_probe, position_probe
from vitprobe.probes.token_sets import open_tokens
from vitprobe.reproduction.local_probes import ITEMS, LocalOptions

sys.path.append(str(Path(__file__).parent))  # tests are no package
from made_settings import figures, run_items

SMALL = {"num_draws": 4, "c_grid": (0.01, 1.0), "alpha_grid": (1.0, 100.0)}


@pytest.fixture(scope="module")
def sources():
    return open_truths("scenes", split="train", limit=40), open_truths("scenes", split="test", limit=20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fig5b")


def measured(sources, folder, model="organism", **options):
    train, test = sources
    return run_items(["fig5b"], ITEMS, folder, model=model, train=train, test=test, **{**SMALL, **options})["fig5b"]


@pytest.fixture(scope="module")
def found(sources, folder):
    return {model: measured(sources, folder / model, model) for model in ("organism", "organism-reg4")}


def rows(found):
    return {row.what: row for row in found.rows}


def test_rows_are_probes_of_the_tokens_that_were_drawn(found, folder):
    own = rows(found["organism"])
    train, test = (open_tokens(folder / "organism" / "fig5b" / f"tokens-{split}") for split in ("train", "test"))
    for kind in ("normal", "outlier"):
        place = position_probe(train[kind, 7], test[kind, 7], grid=(0.01, 1.0))
        look = pixel_probe(*(x for t in (train, test) for x in (t[kind, 7], t[kind, 7].pixels)), grid=(1.0, 100.0))
        assert own[f"right place, {kind} patch"].value == pytest.approx(place.accuracy)
        assert own[f"distance to the place, {kind} patch"].value == pytest.approx(place.distance)
        assert own[f"error of pixels, {kind} patch"].value == pytest.approx(look.error)
        assert own[f"error of pixels, {kind} patch, mean patch"].value == pytest.approx(look.constant_error)
        assert own[f"right place, {kind} patch"].key == f"position.{kind}"
        assert own[f"distance to the place, {kind} patch"].key == f"distance.{kind}"
        assert own[f"error of pixels, {kind} patch"].unit == "L2 of a patch"
    by_hand = []  # the same images have both kinds, four tokens of each
    for kind in ("outlier", "normal"):
        hits = position_probe(train[kind, 7], test[kind, 7], grid=(0.01, 1.0)).hits
        by_hand.append(np.array([hits[test[kind, 7].images == i].mean() for i in np.unique(test[kind, 7].images)]))
    apart = own["right place, outlier less normal patch, within images"]
    assert apart.value == pytest.approx((by_hand[0] - by_hand[1]).mean()) and apart.number == len(by_hand[0])
    assert apart.interval[0] < apart.value < apart.interval[1]


def test_pixels_are_read_and_random_features_tell_nothing(found):
    for one in found.values():
        own = rows(one)
        blind, mean = (
            own["error of pixels, random features (control)"],
            own["error of pixels, normal patch, mean patch"],
        )
        assert own["error of pixels, normal patch"].interval[1] < 0.8 * mean.value < blind.value
        assert own["right place, random features (control)"].value < 0.1
        chance = own["distance to the place, normal patch, a place at random"].value
        assert own["distance to the place, random features (control)"].interval[1] > 0.8 * chance


def test_table_5_stands_beside_patches_that_are_no_outliers(found):
    for one in found.values():
        keyed = {row.key: row for row in one.rows if row.key.endswith("other")}
        assert set(keyed) == {"position.other", "pixels.other"}
        assert keyed["position.other"].value == rows(one)["right place, normal patch"].value
    own = rows(found["organism-reg4"])
    assert own["right place, outlier patch"].value is None and own["right place, normal patch"].number == 20
    assert "outlier patch: no outliers by rule auto" in found["organism-reg4"].summary["notes"]
    assert "right place, outlier less normal patch, within images" not in own


def test_one_probe_may_serve_both_kinds(sources, folder, found):
    one = measured(sources, folder / "normal", trained_on="normal", unit="unit")
    both, own = rows(found["organism"]), rows(one)
    by_normal = both["right place, outlier patch, probe of normal patches"]
    assert own["right place, outlier patch"].value == by_normal.value
    assert [(s["trained_on"], s["tested_on"]) for s in one.summary["scores"]] == [
        ("normal", "normal"), ("random", "random"), ("normal", "outlier")]  # fmt: skip
    half = both["error of pixels, normal patch, mean patch"].value / 2  # [-1, 1] became [0, 1]
    assert own["error of pixels, normal patch, mean patch"].value == pytest.approx(half)
    assert one.summary["unit"] == "unit" and one.summary["images"]["outlier"]["of_test"] == 20


def test_what_is_refused(sources, tmp_path):
    for asked, said in (({"trained_on": "x"}, "own, normal, both"), ({"unit": "byte"}, "model, unit"),
                        ({"alpha_grid": True}, "several with commas")):  # fmt: skip
        with pytest.raises(ArgumentError, match=said):
            LocalOptions(**asked)
    few = [open_truths("scenes", split=split, limit=12) for split in ("train", "test")]
    assert measured(few, tmp_path, "organism-reg4").startswith("nothing can be read: 12 of 12 training images")


def test_the_figure_shows_every_quantity_of_every_model(found):
    figure = figures(ITEMS["fig5b"], *found.values())["local_probes"]
    assert [ax.get_title(loc="left") for ax in figure.axes] == [
        "where the patch is", "how far off the guess is", "the patch's pixels"]  # fmt: skip
    for ax, name in zip(figure.axes, ("position", "distance", "pixels"), strict=True):
        marks = [line for line in ax.lines if line.get_linestyle() == "None"]
        assert len(marks) == 6 + 3  # without registers: 4 probes and 2 chances; with: 2 and 1
        first = found["organism"].summary["scores"][0][name]["value"]
        assert float(marks[0].get_xdata()[0]) == pytest.approx(first)
        low, high = ax.get_xlim()
        assert all(low <= float(line.get_xdata()[0]) <= high for line in marks)  # what is beyond stands at the end
