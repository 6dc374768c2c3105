"""Items of one run share passes; one that cannot be measured is told, and does not stop the others."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from vitprobe.errors import ArgumentError
from vitprobe.recorder import Site, token_norms
from vitprobe.reproduction.base import Found, Item, Row, fill
from vitprobe.reproduction.run import lacks
from vitprobe.reproduction.table import ALSO, TABLE, Entry, find
from vitprobe.reproduction.tables import cell, table

sys.path.append(str(Path(__file__).parent))  # tests are no package
from made_settings import read_again, run_items, scenes


class Counting:
    """Count batches; refuse from the given one on."""

    def __init__(self, *, refuse_at=10**9, kind="resid_post", seen=None):
        self.sites = (Site(kind, 0, reduce=token_norms),)
        self.batches, self.refuse_at, self.seen = 0, refuse_at, seen if seen is not None else []

    def update(self, batch, taken, output):
        self.batches += 1
        self.seen.append(batch.indices)
        if self.batches > self.refuse_at:
            raise ArgumentError("this reader has had enough")


@dataclass
class Measured:
    train: tuple = ()
    test: tuple = ()
    log: list = None

    def train_readers(self):
        return self.train

    def test_readers(self):
        if self.log is not None:
            self.log.append([reader.batches for reader in self.train])
        return self.test

    def found(self):
        return Found((Row("batches", sum(r.batches for r in self.train + self.test), "batches", 1),), {})


def test_a_reader_that_two_items_share_reads_once_and_training_images_come_first(tmp_path):
    log = []

    def one(setting, options):
        shared = setting.reader("counting", Counting)
        return Measured(train=(shared,), test=(Counting(),), log=log)

    def other(setting, options):
        assert setting.norms.summary["num_images"] == 8 and setting.cutoff > 0
        return Measured(train=(setting.reader("counting", Counting),))

    items = {"table1": Item(one, None), "knn": Item(other, None)}
    train, test = scenes(12, labelled=True), scenes(8, seed=9, labelled=True)
    found = run_items(["table1", "knn"], items, tmp_path, train=train, test=test)
    assert {name: one.rows[0].value for name, one in found.items()} == {"table1": 3 + 2, "knn": 3}
    assert log == [[3]]  # when the readers of the test images are asked for, training images have been read


def test_an_item_that_fails_leaves_the_others_alone(tmp_path):
    def refusing(setting, options):
        return Measured(test=(Counting(refuse_at=1),))

    def impossible(setting, options):
        return Measured(test=(Counting(kind="no such site"),))

    def never(setting, options):
        raise ArgumentError("not for this model")

    items = {
        "fig1": Item(refusing, None),
        "fig20": Item(impossible, None),
        "fig9": Item(never, None),
        "fig5a": Item(lambda setting, options: Measured(test=(Counting(),)), None),
        "table3": Item(never, None),
    }
    found = run_items(list(items), items, tmp_path)
    assert found["fig1"] == "this reader has had enough" and "no such site" in found["fig20"]
    assert found["fig9"] == "not for this model" and found["fig5a"].rows[0].value == 2
    assert found["table3"] == "needs boxes around objects"


def test_what_a_set_of_images_lacks_is_said():
    bare, labelled = scenes(4), scenes(4, labelled=True)
    assert lacks(TABLE["fig3"], None, bare) == "" == lacks(TABLE["table1"], labelled, labelled)
    assert "train on" in lacks(TABLE["table1"], None, labelled)
    assert "class for each image (a set that is split by seed" in lacks(TABLE["table1"], bare, labelled)
    assert lacks(TABLE["table2-zero-shot"], None, bare) == "needs a class for each image"
    assert "class for each pixel" in lacks(TABLE["table2-masks"], labelled, labelled)


def test_names_of_items():
    assert [e.name for e in find("fig4")] == ["fig4a", "fig4b", "fig4c"]
    assert [e.name for e in find("fig1")] == ["fig1"] == [e.name for e in find("Fig2")]
    assert [e.name for e in find("table2")] == [name for name in TABLE if name.startswith("table2-")]
    assert len(find("all")) == len(TABLE) and find("fig") == find("figure") == find("") == ()
    assert all(find(name) == (TABLE[target],) for name, target in ALSO.items())


def test_options_that_an_item_has_not_are_refused():
    @dataclass(frozen=True)
    class Choices:
        bias: float = 0.0

    assert fill(Choices, {"bias": 1.0}).bias == 1.0 and fill(None, {}) is None
    with pytest.raises(ArgumentError, match="got option block; allowed are bias"):
        fill(Choices, {"block": 1})


def test_a_table_sets_models_and_published_numbers_side_by_side():
    entry = Entry("table3", "Table 3", "CorLoc", ("boxes",), "discovery")
    one = Found((Row("CorLoc", 0.5, "share", 9, (0.2, 0.8), key="voc2007"), Row("mean IoU", 0.3, "share", 9)), {})
    said = {"note": "one seed", "claims": {"a": "it helps", "b": "untold"}, "answers": {"a": "not clear"}}
    other = Found((Row("CorLoc", 0.6, "share", 9, key="voc2007"),), said)
    found = table(entry, [("a", "dinov2-l14", one), ("b", "dinov2-reg-l14", other)])
    assert found["columns"] == ["a", "b"] and found["notes"] == ["b: it helps: not clear", "b: one seed"]
    first, second = found["rows"]
    assert [cell["value"] for cell in first["cells"]] == [0.5, 0.6] and second["cells"][1] is None
    assert {one["model"] for one in first["published"]} == {"DINOv2-L", "DINOv2-L + 4 reg"} and not second["published"]
    assert read_again(one) == one
    short = table(entry, [("a", "dinov2", one)])["rows"][0]["published"]
    assert {one["model"] for one in short} == {"DINOv2-L"}


def test_a_note_of_some_models_says_of_which():
    def of(*notes):
        return Found((Row("parameters", 12288.0, "", 0), Row("norm", 12288.5, "", 0)), {"notes": notes})

    parts = [("one", "m1", of("all", "some")), ("two", "m2", of("all", "some")), ("six", "m6", of("all", "of m6"))]
    found = table(TABLE["fig3"], parts)
    assert found["notes"] == ["all", "one and two: some", "of m6"]
    assert [cell(row["cells"][0], row["unit"]) for row in found["rows"]] == ["12288", "1.229e+04"]
    assert table(TABLE["fig3"], parts[:1])["notes"] == ["all", "some"]
