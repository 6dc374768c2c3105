"""Classes from one token an image: tokens that carry the class, noise, and images that have none."""

import numpy as np
import pytest

from vitprobe.probes.knn import wilson_interval
from vitprobe.probes.linear import logistic_probe
from vitprobe.probes.token_classes import classify_tokens
from vitprobe.probes.token_sets import FEWEST_TEST, FEWEST_TRAIN, TokenSet, random_like, too_few

CLASSES = 4


def labels_of(number, seed):
    return np.random.default_rng(seed).integers(0, CLASSES, number)


def token_set(labels, images, *, draws=3, noise=0.3, seed=0, kind="outlier", num_images=None):
    """Tokens of some images, ``draws`` of each, that name the image's class but for noise."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(images, draws)
    features = (np.eye(CLASSES)[labels[rows]] + noise * rng.normal(size=(len(rows), CLASSES))).astype(np.float32)
    number = len(labels) if num_images is None else num_images
    without = number - len(images)
    draw = np.tile(np.arange(draws), len(images))
    return TokenSet(kind, 7, "resid_post", 9.0, (4, 4), draws, features, rows, np.zeros((len(rows), 2), int), draw,
                    number, without)  # fmt: skip


@pytest.fixture(scope="module")
def labels():
    return labels_of(120, 0), labels_of(90, 1)


def test_accuracy_is_the_mean_over_draws_of_probes_by_hand(labels):
    train, test = (token_set(y, np.arange(len(y)), noise=0.7, seed=i) for i, y in enumerate(labels))
    found = classify_tokens(train, test, *labels, grid=(0.1, 1.0), seed=5)
    expected = []
    for draw in range(3):
        (x, y), (z, w) = ((one.features[draw::3], own) for one, own in zip((train, test), labels, strict=True))
        expected.append(logistic_probe(x, y, z, w, grid=(0.1, 1.0), seed=5).accuracy)
    assert found.accuracy == pytest.approx(np.mean(expected)) and 0.4 < found.accuracy < 0.95
    assert found.spread == pytest.approx(np.std(expected, ddof=1)) and found.spread > 0
    assert found.interval == wilson_interval(round(np.mean(expected) * 90), 90)
    assert (found.num_train, found.num_test, len(found.draws)) == (120, 90, 3)
    images, hits = found.hits
    assert len(hits) == 270 and hits.mean() == pytest.approx(found.accuracy)
    assert (np.sort(images) == np.repeat(np.arange(90), 3)).all()


def test_noise_in_the_place_of_features_is_at_chance(labels):
    sets = [token_set(y, np.arange(len(y)), seed=i) for i, y in enumerate(labels)]
    assert classify_tokens(*sets, *labels, grid=(1.0,)).accuracy > 0.9
    control = [random_like(one, seed=i) for i, one in enumerate(sets)]
    blind = classify_tokens(*control, *labels, grid=(1e-3,))
    assert blind.interval[0] < blind.chance < blind.interval[1] and blind.accuracy < 0.45
    few = random_like(sets[0], seed=0, most=7)
    assert len(few.images) == 7 and few.features.std() == pytest.approx(1, abs=0.3)
    assert not np.array_equal(few.features, random_like(sets[0], seed=1, most=7).features)


def test_an_image_without_a_class_is_left_out(labels):
    """Half of the images have none; with their tokens the probe would see classes of the wrong images."""
    known = [np.where(np.arange(len(y)) % 2, y, -1) for y in labels]
    sets = [token_set(np.abs(y), np.arange(len(y)), seed=i) for i, y in enumerate(known)]
    found = classify_tokens(*sets, *known, grid=(1.0,))
    assert (found.num_train, found.num_test) == (60, 45) and found.accuracy > 0.9
    assert set(found.hits[0].tolist()) == set(range(1, 90, 2))


def test_tokens_of_some_images_take_the_classes_of_those(labels):
    chosen = [np.random.default_rng(i).choice(len(y), 50, replace=False) for i, y in enumerate(labels)]
    sets = [token_set(y, np.sort(c), seed=i) for i, (y, c) in enumerate(zip(labels, chosen, strict=True))]
    assert classify_tokens(*sets, *labels, grid=(1.0,)).accuracy > 0.9


def test_one_draw_has_no_spread_and_too_few_images_are_told(labels):
    sets = [token_set(y, np.arange(len(y)), draws=1, seed=i) for i, y in enumerate(labels)]
    assert classify_tokens(*sets, *labels, grid=(1.0,)).spread is None and too_few(*sets) == ""
    scarce = token_set(labels[0], np.arange(FEWEST_TRAIN - 1))
    assert too_few(scarce, sets[1]) == (
        f"{FEWEST_TRAIN - 1} of 120 training images have outlier tokens to compare; {FEWEST_TRAIN} are needed"
    )
    assert "3 of 90 test images" in too_few(sets[0], token_set(labels[1], np.arange(3)))
    assert too_few(token_set(labels[0], np.arange(FEWEST_TRAIN)), token_set(labels[1], np.arange(FEWEST_TEST))) == ""
