"""What a classifier says of held-out images: against the model run by hand, formulas written out, ReaL labels."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.data import ImageNetInfo

from vitprobe.backbones import load
from vitprobe.inputs.labels import Labelled, open_labelled
from vitprobe.inputs.sources import FileItem
from vitprobe.probes.knn import knn_accuracy
from vitprobe.training.finetuned import Predictions, differ, frozen_scores, norms_of, predict, real_of
from vitprobe.training.held_out import Reader

sys.path.append(str(Path(__file__).parent))  # tests are no package
from made_sets import write_model, write_set


def predictions(right: list[bool]) -> Predictions:
    """Two classes, the label always 1: right where the logit of 1 is larger."""
    logits = np.array([[0.0, 1.0] if good else [1.0, 0.0] for good in right], np.float32)
    return Predictions(np.arange(len(right)), np.ones(len(right), np.int64), logits)


def test_differences_are_paired() -> None:
    draw = np.random.default_rng(0)
    hard = draw.random(400) < 0.5  # images that both have wrong
    one, other = predictions(list(~hard)), predictions(list(~hard & (draw.random(400) > 0.06)))
    found = differ(one, other, seed=0)
    gap = one.right.mean() - other.right.mean()
    assert found["value"] == pytest.approx(gap) and found["num_differ"] == round(400 * gap)
    low, high = found["interval"]
    spread = np.std(one.right.astype(float) - other.right) / 20  # of the mean of 400 differences
    assert (high - low) / (2 * 1.96 * spread) == pytest.approx(1, abs=0.15)
    assert 0 < low < gap < high and found["clear"]
    apart = 1.96 * np.sqrt(0.5 / 400)  # half the interval of two accuracies of different images
    assert (high - low) / 2 < 0.5 * apart
    back = differ(other, one, seed=0)
    assert back["value"] == pytest.approx(-gap) and back["interval"] == pytest.approx((-high, -low))


def test_the_same_answers_give_no_interval() -> None:
    one = predictions([True, False] * 20)
    found = differ(one, one, seed=0)
    assert (found["value"], found["interval"], found["num_differ"], found["clear"]) == (0.0, None, 0, False)


def test_chance_is_not_called_a_difference() -> None:
    draw = np.random.default_rng(1)
    one, other = (predictions(list(draw.random(300) < 0.7)) for _ in range(2))
    assert not differ(one, other, seed=0)["clear"]


@pytest.mark.parametrize(("for_it", "against", "clear"), [(4, 0, False), (5, 0, False), (6, 0, True), (7, 1, False)])
def test_a_few_images_make_no_difference_clear(for_it: int, against: int, clear: bool) -> None:
    """Of 4 images that one alone has right, all are one side's by chance in 1 of 8 cases."""
    one, other = np.zeros(400, bool), np.zeros(400, bool)
    one[:for_it], other[for_it : for_it + against] = True, True
    found = differ(predictions(list(one)), predictions(list(other)), seed=0)
    number = for_it + against
    tail = sum(math.comb(number, k) for k in range(for_it, number + 1)) / 2**number
    assert found["num_differ"] == number and found["p_value"] == pytest.approx(2 * tail)
    assert found["clear"] == clear and (found["interval"] is None) == (number < 6)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    write_model(folder / "model")
    write_set(folder / "colours", train=15, test=10)
    write_set(folder / "nothing", train=60, test=60, learnable=False)
    return folder


def reader(images: Labelled, backbone: object) -> Reader:
    return Reader(images, backbone.transform, 7, 0, range(len(images)))


def test_predictions_are_those_of_the_model(place: Path, stir: Callable[..., None]) -> None:
    backbone = load(str(place / "model"))
    backbone.reset_head(3)
    stir(backbone.module, 0)
    images = open_labelled([str(place / "colours" / "test")], need="labels")
    seen: list[int] = []
    found = predict(backbone, reader(images, backbone), torch.device("cpu"), None, seen.append)
    with torch.no_grad():
        batch = torch.stack([backbone.transform(item.read().image) for item in images.items])
        own = backbone.module(batch)
    assert np.allclose(found.logits, own.numpy(), atol=1e-5)
    assert np.array_equal(found.labels, images.labels) and seen == [7, 7, 6]
    assert np.array_equal(found.predicted, own.argmax(1).numpy())
    assert np.allclose(found.probabilities(), own.double().softmax(1).numpy(), atol=1e-6)
    assert set(found.arrays()) == {"indices", "labels", "predicted", "logits"}


@pytest.mark.parametrize("data", ["colours", "nothing"])
def test_frozen_features_tell_what_they_hold(data: str, place: Path, tmp_path: Path) -> None:
    backbone = load(str(place / "model"))
    parts = [open_labelled([str(place / data / part)], need="labels") for part in ("train", "test")]
    both = [reader(images, backbone) for images in parts]
    found = frozen_scores(backbone, *both, tmp_path / "features", None, lambda _: None, seed=0)
    assert not list(tmp_path.iterdir())
    assert found["knn"]["features"] == found["linear"]["features"] == "mean"  # it has no CLS
    low, high = found["linear"]["interval"]
    if data == "colours":
        assert found["linear"]["accuracy"] == found["knn"]["accuracy"] == 1.0
    else:
        assert 0.3 < found["knn"]["accuracy"] < 0.7 and low < 0.6 and high > 0.4
    with torch.no_grad():
        rows = [torch.cat([backbone.tokens(b.images)[:, backbone.layout().patches].mean(1) for b in r]) for r in both]
    own = knn_accuracy(rows[0].numpy(), parts[0].labels, rows[1].numpy(), parts[1].labels)
    assert found["knn"]["accuracy"] == own.accuracy


def test_norms_are_those_of_the_residual_stream(place: Path) -> None:
    backbone = load(str(place / "model"))
    images = open_labelled([str(place / "colours" / "test")], need="labels")
    found = norms_of(backbone, reader(images, backbone), None, seed=0)
    assert found.summary["block"] == backbone.num_blocks - 1
    assert len(found.outlier_fractions) == backbone.num_blocks and found.summary["num_images"] == 20


def test_real_labels_are_found_by_name(tmp_path: Path) -> None:
    """Three images: a prediction inside its set, one outside, and one without a set, which does not count."""
    classes = tuple(sorted(ImageNetInfo("imagenet-1k").label_names()))
    sets: list[list[int]] = [[] for _ in range(50_000)]
    sets[0], sets[1] = [5, 7], [9]
    (tmp_path / "real.json").write_text(json.dumps(sets))
    items = [FileItem(f"val/x/ILSVRC2012_val_{number:08}.JPEG") for number in (1, 2, 3)]
    logits = np.zeros((3, 1000), np.float32)
    logits[0, 7] = logits[1, 8] = logits[2, 0] = 1
    found = Predictions(np.arange(3), np.array([5, 9, 1]), logits)
    images = Labelled("x", items, found.labels, classes, None, ())
    told = real_of(found, images, str(tmp_path / "real.json"))
    assert (told["accuracy"], told["num_images"]) == (0.5, 2)
    assert real_of(found, images, "timm")["num_images"] == 2  # of the first three, one has no class that fits
