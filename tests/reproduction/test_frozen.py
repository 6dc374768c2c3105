"""Classes from one vector an image, end to end: rows against features and fits by hand, and what is said of them."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from vitprobe import backbones
from vitprobe.errors import ArgumentError
from vitprobe.recorder import Recorder, Site, token_norms
from vitprobe.reproduction.frozen import CHANCE, ITEMS, WITHOUT, ClassOptions, NearestOptions

sys.path.append(str(Path(__file__).parent))  # tests are no package
from made_settings import figures, loader, run_items, scenes

TRAIN, TEST = scenes(40, seed=6, labelled=True), scenes(24, seed=7, labelled=True)
FEW = [replace(source, items=source.items[:16]) for source in (TRAIN, TEST)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("frozen")


@pytest.fixture(scope="module")
def found(folder):
    names = list(ITEMS)
    return {
        model: run_items(names, ITEMS, folder / model, model=model, train=TRAIN, test=TEST)
        for model in ("organism", "organism-clean", "scenes-content")
    }


@torch.no_grad()
def by_hand(source, cutoff):
    """CLS, the mean of the patches, and the mean of those under the cutoff, (N, D) each, image by image."""
    backbone = backbones.load("organism")
    sites, layout = [Site("final_norm"), Site("resid_post", 7, reduce=token_norms)], backbone.layout()
    rows = []
    for batch in loader(backbone, source):
        with Recorder(backbone, sites) as recorder:
            backbone(batch.images)
            taken = recorder.take()
        for tokens, norms in zip(taken[sites[0]], taken[sites[1]], strict=True):
            patches, own = tokens[layout.patches], norms[layout.patches]
            rows.append((tokens[0], patches.mean(0), patches[own < cutoff].mean(0)))
    return [torch.stack(one).double().numpy() for one in zip(*rows, strict=True)]


def test_rows_are_those_of_features_and_a_fit_by_hand(found):
    one = found["organism"]["table2-classes"]
    what = "majority"
    assert [row.what for row in one.rows] == [what, f"{what}, {WITHOUT}", f"majority: {CHANCE}"]
    cutoff = one.summary["cutoff"]
    (cls, mean, under), (cls_, mean_, under_) = by_hand(TRAIN, cutoff), by_hand(TEST, cutoff)
    labels, wanted = (source.labels["majority"] for source in (TRAIN, TEST))
    for row, score, pair in (
        (one.rows[0], one.summary["scores"][0], ((cls, mean), (cls_, mean_))),
        (one.rows[1], one.summary["scores"][1], ((cls, under), (cls_, under_))),
    ):
        train, test = (np.concatenate(parts, 1) for parts in pair)
        scaler, accuracies = StandardScaler().fit(train), []
        for c in score["c"]:
            own = LogisticRegression(C=c, max_iter=2000).fit(scaler.transform(train), labels)
            accuracies.append(own.score(scaler.transform(test), wanted))
        assert row.value == pytest.approx(np.mean(accuracies), abs=0.03) and len(accuracies) == 3
        assert row.value == score["accuracy"] and row.number == 24 and row.interval[0] < row.value < row.interval[1]
    assert np.abs(mean - under).max() > 0.05  # outliers make a difference to the features
    assert one.summary["outlier_patches"]["test"]["outliers"] > 0
    counts = np.bincount(labels, minlength=6)
    chance = np.mean([(wanted == c).mean() for c in np.flatnonzero(counts == counts.max())])
    assert one.rows[2].value == pytest.approx(chance)


def test_what_a_model_does_not_have_is_said(found):
    clean, content = found["organism-clean"], found["scenes-content"]
    assert [row.what for row in clean["table2-classes"].rows] == [
        "majority",
        f"majority: {CHANCE}",
    ]
    assert clean["table2-classes"].summary["cutoff"] is None
    assert content["knn"].summary["features"] == "mean"
    assert any("has no CLS" in note for note in content["knn"].summary["notes"])
    assert any("not the published protocol" in note for note in content["table2-classes"].summary["notes"])
    assert "features of organism: CLS after the final norm" in found["organism"]["knn"].summary["notes"]
    assert found["organism"]["knn"].rows[0].what == "majority" and found["organism"]["knn"].rows[0].key == ""


def test_both_items_share_the_features(found, folder):
    written = sorted(path.name for path in (folder / "organism").rglob("*.npy"))
    assert written == ["test.auto.npy", "train.auto.npy"]


def test_the_bank_itself_is_found_and_labels_that_mean_nothing_are_not(tmp_path):
    same = run_items(["knn"], ITEMS, tmp_path / "a", train=FEW[0], test=FEW[0], k=1)["knn"]
    assert same.rows[0].value == 1.0
    draw = np.random.default_rng(0)
    mixed = [replace(one, labels={"majority": draw.permutation(one.labels["majority"]) % 2}) for one in (TRAIN, TEST)]
    chance = run_items(["knn"], ITEMS, tmp_path / "b", train=mixed[0], test=mixed[1])["knn"]
    assert chance.rows[0].interval[0] < 0.5 < chance.rows[0].interval[1]


def test_published_numbers_stand_beside_imagenet_alone(tmp_path):
    classes = {"class": tuple(f"n{number:08}" for number in range(1000))}
    labelled = [replace(one, labels={"class": one.labels["majority"]}, classes=classes) for one in FEW]
    for name, keys in (("imagenet, val", ["in1k", "", ""]), ("imagenet-sample, test", ["", "", ""])):
        test = replace(labelled[1], name=name)
        asked = {"train": labelled[0], "test": test, "seeds": 1, "solver": "sklearn", "c": 0.1}
        one = run_items(["table2-classes"], ITEMS, tmp_path / name, **asked)["table2-classes"]
        assert [row.key for row in one.rows] == keys
        assert one.rows[0].spread is None and one.summary["scores"][0]["grid"] == [0.1]


def test_tasks_that_cannot_be_told_are_left_out_with_a_reason(tmp_path):
    nothing = {"majority": TRAIN.labels["majority"], "same": np.zeros(40, int)}
    train = replace(FEW[0], labels=nothing)
    test = replace(FEW[1], labels={"majority": TEST.labels["majority"], "same": np.ones(24, int)})
    one = run_items(["knn"], ITEMS, tmp_path / "a", train=train, test=test)["knn"]
    assert any("same: all 16 training images are of one class" in note for note in one.summary["notes"])
    only = [replace(source, labels={"same": source.labels["same"]}) for source in (train, test)]
    refused = run_items(["knn"], ITEMS, tmp_path / "b", train=only[0], test=only[1])["knn"]
    assert refused == "nothing can be classified: all 16 training images are of one class, or none is labelled (same)"


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (ClassOptions, {"features": "all"}),
        (ClassOptions, {"point": "middle"}),
        (ClassOptions, {"seeds": 0}),
        (ClassOptions, {"solver": "x"}),
        (ClassOptions, {"c": (0.1, "x")}),
        (NearestOptions, {"features": 3}),
        (NearestOptions, {"k": 2.5}),
    ],
)
def test_wrong_options_are_refused_in_one_line(kind, wrong):
    with pytest.raises(ArgumentError, match=f"got .*{next(iter(wrong))}|got {next(iter(wrong.values()))}") as caught:
        kind(**wrong)
    assert "\n" not in str(caught.value)


def test_the_figures_hold_every_model(found):
    for name, item in ITEMS.items():
        (figure,) = figures(item, *(one[name] for one in found.values())).values()
        dots = [line for line in figure.axes[0].lines if line.get_marker() != "None"]
        values = sorted(float(line.get_xdata()[0]) for line in dots)
        assert values == pytest.approx(sorted(row.value for one in found.values() for row in one[name].rows))
        assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["model 0", "model 1", "model 2"]
