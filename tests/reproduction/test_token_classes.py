"""Table 1 end to end: rows against probes by hand, and what is said where a model has no outliers, or hardly any."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vitprobe import backbones
from vitprobe.errors import ArgumentError
from vitprobe.inputs.truths import open_truths
from vitprobe.probes.linear import logistic_probe
from vitprobe.probes.token_features import draw_tokens
from vitprobe.reproduction.token_classes import ITEMS, ClassOptions, dataset_key
from vitprobe.reproduction.token_draws import TOLD

sys.path.append(str(Path(__file__).parent))  # tests are no package
from made_settings import figures, loader, run_items

GRID = (0.01, 1.0)
SMALL = {"num_draws": 2, "c_grid": GRID, "tasks": "background"}


@pytest.fixture(scope="module")
def train():
    return open_truths("scenes", split="train", limit=36)


@pytest.fixture(scope="module")
def test():
    return open_truths("scenes", split="test", limit=18)


@pytest.fixture(scope="module")
def found(train, test, tmp_path_factory):
    folder = tmp_path_factory.mktemp("table1")
    models = ("organism", "organism-reg4")
    return {
        m: run_items(["table1"], ITEMS, folder / m, model=m, train=train, test=test, **SMALL)["table1"] for m in models
    }


def rows(found):
    return {row.what.removeprefix("background, "): row for row in found.rows}


def test_rows_are_probes_by_hand_of_the_same_tokens(found, train, test, tmp_path):
    one = found["organism"]
    backbone, cutoff = backbones.load("organism"), one.summary["cutoff"]
    kinds = ("normal", "outlier", "cls")
    drawn = [
        draw_tokens(backbone, loader(backbone, source), rule_cutoff=cutoff, kinds=kinds, num_draws=2, paired=True,
                    point="final_norm", replacement=True, split=split, folder=tmp_path / name)
        for split, (name, source) in enumerate((("train", train), ("test", test)))
    ]  # fmt: skip
    for kind, label in zip(kinds, ("normal patch", "outlier patch", "CLS"), strict=True):
        expected = []
        for draw in range(1 if kind == "cls" else 2):
            a, b = (sets[kind, 7].of_draw(draw) for sets in drawn)
            labels = [source.labels["background"][t.images] for source, t in ((train, a), (test, b))]
            expected.append(logistic_probe(a.features, labels[0], b.features, labels[1], grid=GRID).accuracy)
        row = rows(one)[label]
        assert row.value == pytest.approx(np.mean(expected), abs=0.03), kind  # the last bits of features may differ
        assert row.number == len(b.images) and row.interval[0] < row.value < row.interval[1]
        assert (row.spread is None) == (kind == "cls")
    counts = one.summary["images"]
    assert counts["normal"]["test_images"] == counts["cls"]["test_images"] == counts["outlier"]["test_images"]
    assert one.summary["notes"][1] == TOLD.format("the cutoff of the test images' norms")
    assert one.summary["paired"] and one.summary["point"] == "final_norm"


def test_the_difference_is_that_of_the_rows_and_controls_know_nothing(found):
    own = rows(found["organism"])
    apart = own["outlier less normal patch, within images"]
    assert apart.value == pytest.approx(own["outlier patch"].value - own["normal patch"].value)
    chance = own["most frequent class"].value
    blind = own["random features (control)"]
    assert blind.interval[0] < chance + 0.2 and blind.value < 0.5
    assert own["CLS"].value > chance


def test_a_model_without_outliers_says_so_and_its_registers_are_read(found):
    one = found["organism-reg4"]
    own = rows(one)
    assert own["outlier patch"].value is None and own["normal patch"].number == 18
    registers = [s["accuracy"] for s in one.summary["scores"] if s["kind"].startswith("register")]
    assert len(registers) == 4 and own["register 0"].value == registers[0]
    assert own["registers, mean of 4"].value == pytest.approx(np.mean(registers))
    notes = one.summary["notes"]
    assert "rule auto finds no outliers: the other kinds are read of all images" in notes[0]
    assert any(note == "no outliers by rule auto (background, outlier patch)" for note in notes)
    assert "outlier less normal patch, within images" not in own


def test_few_outliers_are_told_and_not_probed(train, test, tmp_path):
    """A cutoff that few images reach: all other kinds are read of all images, the outliers of none."""
    one = run_items(["table1"], ITEMS, tmp_path, train=train, test=test, rule="p99.95", **SMALL, registers=0)["table1"]
    own = rows(one)
    assert own["outlier patch"].value is None and own["normal patch"].number == 18 and not one.summary["paired"]
    assert any("test images have an outlier: the other kinds are read of all images" in n for n in one.summary["notes"])
    assert any("training images have outlier tokens to compare; 30 are needed" in n for n in one.summary["notes"])


def test_sets_of_table_6_are_known_by_name_and_number_of_classes(train, test, tmp_path):
    for name, size, key in (
        ("CIFAR10, test", 10, "cf10"),
        ("CIFAR100, test", 100, "cf100"),
        ("imagenet, val", 1000, "in1k"),
        ("imagenet, val", 100, ""),
        ("FGVCAircraft, test", 100, "airc"),
        ("cub, test", 200, "cub"),
        ("Oxford-IIIT Pet", 37, "pets"),
        ("oxford_iiit_pet", 37, "pets"),
        ("Flowers102", 102, "flow"),
        ("voc2007, val", 20, ""),  # one class an image is not what the paper reads
        ("voc2012, val", 20, ""),
        ("imagenette2, val", 10, ""),
        ("scenes, test", 10, ""),
    ):
        assert dataset_key(name, size) == key, name
    named = [
        replace(one, name="DTD, x", labels={"class": one.labels["background"]}, classes={"class": tuple(range(47))})
        for one in (train, test)
    ]
    options = {"num_draws": 1, "c_grid": 1.0}
    one = run_items(["table1"], ITEMS, tmp_path, train=named[0], test=named[1], **options)["table1"]
    assert [row.key for row in one.rows if row.key] == ["dtd.normal", "dtd.outlier", "dtd.cls"]
    assert [row.spread for row in one.rows[:2]] == [None, None]


def test_a_task_of_one_class_is_left_out_and_the_others_stand(train, test, tmp_path):
    flat = [replace(one, labels={"flat": one.labels["same"] * 0, **one.labels}) for one in (train, test)]
    asked = {**SMALL, "tasks": ("flat", "background"), "num_draws": 1}
    one = run_items(["table1"], ITEMS, tmp_path, train=flat[0], test=flat[1], **asked)["table1"]
    own = {row.what: row.value for row in one.rows}
    assert own["flat, normal patch"] is None and own["background, normal patch"] > 0.2
    assert any("all training images are of one class" in note for note in one.summary["notes"])


def test_what_is_refused(train, test, tmp_path):
    for asked, said in (({"point": "x"}, "allowed are auto"), ({"num_draws": 0}, "1 on"), ({"solver": "y"}, "torch"),
                        ({"c_grid": "small"}, "several with commas"), ({"registers": -1}, "from 0 on"),
                        ({"paired": 2}, "True, False")):  # fmt: skip
        with pytest.raises(ArgumentError, match=said):
            ClassOptions(**asked)
    one = run_items(["table1"], ITEMS, tmp_path, train=train, test=test, tasks="colour")["table1"]
    assert one.startswith("got task 'colour'; allowed are count, majority")
    other = replace(train, labels={"other": train.labels["same"]})
    assert "share no labels" in run_items(["table1"], ITEMS, tmp_path, train=other, test=test)["table1"]


def test_the_figure_has_a_mark_for_every_score(found):
    figure = figures(ITEMS["table1"], *found.values())["token_classes"]
    (ax,) = figure.axes
    marks = [line for line in ax.lines if line.get_linestyle() == "None"]
    scores = [score for one in found.values() for score in one.summary["scores"]]
    assert len(marks) == len(scores) + 2  # the most frequent class, of each model
    drawn = sorted(float(line.get_xdata()[0]) for line in marks)
    chances = [one.summary["scores"][0]["chance"] for one in found.values()]
    assert drawn == pytest.approx(sorted([*(score["accuracy"] for score in scores), *chances]))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:4] == ["normal patch", "outlier patch", "CLS", "register (each)"]


def test_too_few_images_for_any_kind_are_refused_in_one_line(train, test, tmp_path):
    few = replace(train, items=train.items[:8], labels={k: v[:8] for k, v in train.labels.items()})
    said = run_items(["table1"], ITEMS, tmp_path, train=few, test=test, **SMALL)["table1"]
    assert said.startswith("nothing can be read: 8 of 8 training images have normal tokens") and "\n" not in said
