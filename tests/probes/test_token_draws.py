"""How tokens are drawn, on norms and features made by hand: none twice, as many of each kind, apart in each split."""

import numpy as np
import pytest
import torch

from vitprobe import backbones
from vitprobe.inputs.loading import ImageBatch
from vitprobe.probes.claims import judge_claim
from vitprobe.probes.knn import wilson_interval
from vitprobe.probes.local_probes import QUANTITIES, difference, position_probe, probe_pairs
from vitprobe.probes.token_features import TokenReader, patchify
from vitprobe.probes.token_sets import PATCH_KINDS

NUMBER, PLACES, OVER = 240, 64, 10.0
CODES = np.random.default_rng(9).standard_normal((PLACES, 96))
READ = np.random.default_rng(8).standard_normal((768, 96)) / 768**0.5


@pytest.fixture(scope="module")
def organism():
    return backbones.load("organism", image_size=(128, 128))


def drawn(organism, folder, *, split=0, outliers=1, salt=0, noise=2.0, **options):
    """Draw from features that are a noisy code of place and pixels; outliers are patches picked at random."""
    rng = np.random.default_rng((split, salt))
    images = torch.from_numpy(rng.standard_normal((NUMBER, 3, 128, 128), np.float32))
    cells = patchify(images, (16, 16)).numpy()  # (N, P, 768)
    features = CODES + cells @ READ * 2 + noise * rng.standard_normal((NUMBER, PLACES, 96))
    number = np.broadcast_to(outliers, NUMBER)
    over = rng.random((NUMBER, PLACES)).argsort(1).argsort(1) < number[:, None]  # (N, P)
    made = {"rule_cutoff": OVER, "kinds": PATCH_KINDS, "num_draws": 8, "split": split, "pixels": "model"}
    with TokenReader(organism, folder, **{**made, **options}) as reader:
        stream = np.concatenate([np.zeros((NUMBER, 1, 96)), features], 1)  # CLS, then patches
        norms = np.concatenate([np.zeros((NUMBER, 1)), 1 + 2 * OVER * over], 1)
        taken = {site: torch.from_numpy(stream if site.reduce is None else norms) for site in reader.sites}
        where = tuple(range(NUMBER))
        reader.update(ImageBatch(tuple(map(str, where)), images, ("",) * NUMBER, where), taken, None)
        return {kind: tokens for (kind, _), tokens in reader.finish().items()}


def places(tokens):
    return tokens.positions @ (8, 1)


def per_image(tokens):
    return np.bincount(tokens.images, minlength=NUMBER)


def test_no_token_is_drawn_twice_and_paired_kinds_have_as_many(organism, tmp_path):
    outliers = np.resize([0, 1, 3, 8, 20, 61, 64], NUMBER)
    for paired in (False, True):
        sets = drawn(organism, tmp_path, outliers=outliers, paired=paired)
        both = {"outlier": outliers, "normal": PLACES - outliers}
        for kind, tokens in sets.items():
            least = np.minimum(outliers, PLACES - outliers) if paired else both[kind]
            assert per_image(tokens).tolist() == np.minimum(8, least).tolist()
            assert len(np.unique(np.c_[tokens.images, places(tokens)], axis=0)) == len(tokens.images)
            assert tokens.draws.tolist() == [draw for n in per_image(tokens) for draw in range(n)]
    once = drawn(organism, tmp_path, outliers=outliers, paired=True, num_draws=1)
    for kind, tokens in once.items():  # what is drawn first does not depend on how much follows
        assert places(tokens).tolist() == places(sets[kind].of_draw(0)).tolist()


def test_a_draw_is_one_token_an_image_of_sets_of_unequal_numbers_too(organism, tmp_path):
    tokens = drawn(organism, tmp_path, outliers=np.resize([0, 1, 3, 30], NUMBER))["outlier"]
    holders = np.unique(tokens.images)
    for draw in range(8):
        one = tokens.of_draw(draw)
        assert one.images.tolist() == holders.tolist() and one.num_draws == 1
        for row, image in enumerate(holders[:12]):
            own = np.flatnonzero(tokens.images == image)
            at = own[draw % len(own)]
            assert (one.features[row] == tokens.features[at]).all() and places(one)[row] == places(tokens)[at]


def test_distinct_draws_are_even(organism, tmp_path):
    tokens = drawn(organism, tmp_path, outliers=0)["normal"]
    counts = np.bincount(places(tokens), minlength=PLACES)
    expected = NUMBER * 8 / PLACES
    assert ((counts - expected) ** 2 / expected).sum() <= 63 + 6 * (2 * 63) ** 0.5


@pytest.mark.parametrize("replacement", [False, True])
def test_splits_are_drawn_apart(organism, tmp_path, replacement):
    """Drawn alike, both splits would have the same places, image by image."""
    options = {"outliers": 0, "num_draws": 4, "replacement": replacement}
    train, test = (drawn(organism, tmp_path / str(s), split=s, **options)["normal"] for s in (0, 1))
    low, high = wilson_interval(int((places(train) == places(test)).sum()), len(test.images))
    assert low <= 1 / PLACES <= high
    again = drawn(organism, tmp_path / "again", split=0, **options)["normal"]
    assert (places(again) == places(train)).all()
    few = [one.rows(slice(200)) for one in (train, test)]
    low, high = wilson_interval(round(position_probe(*few, grid=(0.01,)).chance * 200), 200)
    assert low <= 1 / PLACES <= high


def answers(organism, folder, **options):
    train, test = (drawn(organism, folder / str(s), split=s, paired=True, **options) for s in (0, 1))
    sets = {kind: (train[kind], test[kind]) for kind in PATCH_KINDS}
    pairs = [(kind, kind) for kind in PATCH_KINDS]
    found = probe_pairs(sets, pairs, grid=(0.1,), alpha_grid=(100.0,), solver="torch")
    normal, outlier = (found[pair] for pair in pairs)
    return {name: judge_claim(name, difference(name, outlier, normal, seed=0)).answer for name in QUANTITIES}


def test_no_claim_holds_of_patches_picked_at_random(organism, tmp_path):
    """An outlier that is drawn eight times teaches less than eight normal patches: every claim would seem to hold.

    Of 12 answers at 95 % one may well be false, by chance of the tokens.
    """
    fair = [answers(organism, tmp_path, outliers=number, salt=salt) for number in (1, 3) for salt in range(2)]
    assert sum(list(one.values()).count("holds") for one in fair) <= 1
    for name in QUANTITIES:
        assert [one[name] for one in fair].count("not clear") >= 3
    faked = [answers(organism, tmp_path, outliers=number, replacement=True) for number in (1, 3)]
    assert faked == [dict.fromkeys(QUANTITIES, "holds")] * 2
