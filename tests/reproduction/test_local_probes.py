"""Figure 5 b and table 5 end to end: rows against probes of the same tokens, controls, and options."""

import sys
from pathlib import Path

import numpy as np
import pytest

from vitprobe.errors import ArgumentError
from vitprobe.inputs.truths import open_truths
from vitprobe.probes.knn import wilson_interval
from vitprobe.probes.local_probes import pixel_probe, position_probe
from vitprobe.probes.token_sets import open_tokens
from vitprobe.reproduction.local_probes import ITEMS, LocalOptions, comparable
from vitprobe.reproduction.token_draws import TOLD

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
        assert own[f"error of pixels, {kind} patch"].unit == "L2 of a patch"
    by_hand = []  # the same images have both kinds, as many tokens of each
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
        control = own["right place, random features (control)"]
        number = next(s["num_test"] for s in one.summary["scores"] if s["tested_on"] == "random")
        low, high = wilson_interval(round(control.value * number), number)
        assert low <= 1 / 196 <= high < 0.12 and number >= 50
        chance = own["distance to the place, normal patch, a place at random"].value
        assert own["distance to the place, random features (control)"].interval[1] > 0.8 * chance


def test_published_numbers_stand_beside_what_is_of_their_patches_and_places(found, sources, folder, monkeypatch):
    places = ("position", "distance")
    assert comparable((14, 14), (37, 37), "model") == comparable((14, 14), (16, 16), "model") == (*places, "pixels")
    assert comparable((14, 14), (37, 37), "unit") == places and comparable((14, 14), (14, 14), "model") == ("pixels",)
    assert comparable((16, 16), (16, 16), "model") == comparable((14, 14), (32, 32), "unit") == ()
    for one in found.values():  # patches of 16 x 16
        assert not [row.key for row in one.rows if row.key] and "table 5" not in str(one.rows)
        assert one.summary["notes"][1].startswith(
            "positions: 1 of 196, a grid of 14 x 14; pixels: 768 numbers of a 16 x 16 patch, as the model reads them"
        )
    monkeypatch.setattr("vitprobe.reproduction.local_probes.comparable", lambda *like: (*places, "pixels"))
    keyed = {row.key: row for row in measured(sources, folder / "keyed").rows if row.key}
    kinds = ("normal", "other", "outlier")
    assert set(keyed) == {f"{n}.{k}" for n in (*places, "pixels") for k in kinds} - {"distance.other"}
    assert keyed["position.other"].value == keyed["position.normal"].value


def test_splits_are_drawn_at_places_of_their_own(found, folder):
    """Places of training image i must not be those of test image i: chance would be read from them."""
    own = found["organism-reg4"]
    train, test = (
        open_tokens(folder / "organism-reg4" / "fig5b" / f"tokens-{s}")["normal", 7] for s in ("train", "test")
    )
    assert len(test.images) == 80 and (train.images[:80] == test.images).all()
    alike = int((train.positions[:80] == test.positions).all(1).sum())
    low, high = wilson_interval(alike, 80)
    assert low <= 1 / 196 <= high
    blind = rows(own)["right place, normal patch, most frequent place"].value
    low, high = wilson_interval(round(blind * 80), 80)
    assert low <= 1 / 196 <= high
    assert TOLD.format("the cutoff of the test images' norms") in found["organism"].summary["notes"]
    assert not any("told by" in note for note in own.summary["notes"])  # no cutoff


def test_a_model_without_outliers_says_so(found):
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


def test_outliers_at_places_that_are_not_trained_on_are_told_and_the_rest_stands(sources, tmp_path):
    one = measured(sources, tmp_path, num_draws=1, trained_on="both")
    own = rows(one)
    assert own["right place, outlier patch"].value is None and own["right place, normal patch"].value is not None
    assert any(note.startswith("outlier patch: no class of the test tokens") for note in one.summary["notes"])


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
