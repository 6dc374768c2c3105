"""Drawn tokens against the organism's planted truth, against timm's own features, and against other ways to split."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from vitprobe import backbones
from vitprobe.backbones.organism import planted_truth
from vitprobe.errors import ArgumentError, InputError
from vitprobe.inputs.loading import ImageBatch
from vitprobe.inputs.scenes import CROWDED, MIXED, generate
from vitprobe.probes.norms import measure_norms
from vitprobe.probes.outliers import OutlierRule
from vitprobe.probes.token_features import draw_tokens, open_tokens

SIZE, NUMBER, FIRST = (128, 128), 40, 100


def batches(images, size=16, first=FIRST):
    for i in range(0, len(images), size):
        part = images[i : i + size]
        where = tuple(range(first + i, first + i + len(part)))
        yield ImageBatch(tuple(map(str, where)), part, ("",) * len(part), where)


@pytest.fixture(scope="module")
def images():
    """Scenes as the organism reads them; some of the crowded ones have no patch of little contrast."""
    drawn = [generate(NUMBER // 2, config=replace(c, size=SIZE), seed=5).images for c in (MIXED, CROWDED)]
    noisy = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    return torch.cat([*drawn, noisy]) * 2 - 1


@pytest.fixture(scope="module")
def organism():
    return backbones.load("organism", image_size=SIZE)


@pytest.fixture(scope="module")
def cutoff(organism, images):
    found = measure_norms(organism, batches(images)).result(OutlierRule.parse("auto"), point=7).summary["cutoff"]
    assert found is not None
    return found


@pytest.fixture(scope="module")
def truth(organism, images):
    return planted_truth(organism, images).patches.numpy()  # (N, P)


@torch.no_grad()
def streams(backbone, images, *, norm=False):
    """Patches and prefix tokens of all blocks by timm itself: (N, P, D) and (N, prefix, D) a block."""
    found = backbone.module.forward_intermediates(images, norm=norm, return_prefix_tokens=True, intermediates_only=True)
    return [(patches.flatten(2).transpose(1, 2).numpy(), prefix.numpy()) for patches, prefix in found]


def where(tokens):
    """What was drawn: image, row, col, draw of every row."""
    return np.c_[tokens.images, tokens.positions, tokens.draws].tolist()


def test_outliers_are_drawn_as_outliers_and_never_as_normal(organism, images, cutoff, truth, tmp_path):
    found = draw_tokens(organism, batches(images), rule_cutoff=cutoff, num_draws=3, seed=1, replacement=True,
                        folder=tmp_path / "tokens")  # fmt: skip
    patches, prefix = streams(organism, images)[7]
    assert list(found) == [("normal", 7), ("outlier", 7), ("cls", 7)]
    assert 0 < (~truth.any(1)).sum() < len(images)  # both sorts of image are there
    for kind, wanted, holders in (("normal", False, len(images)), ("outlier", True, int(truth.any(1).sum()))):
        tokens = found[kind, 7]
        image, patch = tokens.images - FIRST, tokens.positions @ (8, 1)
        assert (truth[image, patch] == wanted).all()
        assert len(tokens.features) == 3 * holders and tokens.num_without == len(images) - holders
        assert tokens.draws.tolist() == [0, 1, 2] * holders and (np.diff(image) >= 0).all()
        assert tokens.features == pytest.approx(patches[image, patch], abs=2e-4)
        assert isinstance(tokens.features, np.memmap) and tokens.features.dtype == np.float32
        assert (tokens.cutoff, tokens.point, tokens.grid, tokens.num_images) == (cutoff, "resid_post", (8, 8), 42)
    cls = found["cls", 7]
    assert (
        cls.images.tolist() == list(range(FIRST, FIRST + 42)) and (cls.positions == -1).all() and cls.num_without == 0
    )
    assert cls.features == pytest.approx(prefix[:, 0], abs=2e-4)


@pytest.mark.parametrize("size", [1, 7, 42])
def test_another_batch_size_gives_the_same_tokens(organism, images, cutoff, tmp_path, size):
    options = {"rule_cutoff": cutoff, "num_draws": 2, "blocks": (5, 7)}
    whole = draw_tokens(organism, batches(images), folder=tmp_path / "a", **options)
    other = draw_tokens(organism, batches(images, size), folder=tmp_path / "b", **options)
    for key, tokens in whole.items():
        assert where(tokens) == where(other[key])
        assert tokens.features == pytest.approx(np.asarray(other[key].features), abs=2e-4)


def test_shards_give_the_tokens_of_the_whole(organism, images, cutoff, tmp_path):
    whole = draw_tokens(organism, batches(images), rule_cutoff=cutoff, num_draws=2, folder=tmp_path / "a")
    parts = [
        draw_tokens(
            organism, batches(images[i:j], first=FIRST + i), rule_cutoff=cutoff, num_draws=2, folder=tmp_path / str(i)
        )
        for i, j in ((0, 17), (17, 42))
    ]
    for key, tokens in whole.items():
        assert where(tokens) == where(parts[0][key]) + where(parts[1][key])
        assert sum(part[key].num_without for part in parts) == tokens.num_without


def test_choice_depends_on_seed_and_draw_and_is_even(organism, images, cutoff, truth, tmp_path):
    def draw(**options):
        return draw_tokens(organism, batches(images[:8]), rule_cutoff=cutoff, folder=tmp_path / "tokens", **options)

    draw = partial(draw, replacement=True)
    few, many, other = draw(num_draws=1), draw(num_draws=2000), draw(num_draws=1, seed=9)
    for kind, wanted in (("normal", False), ("outlier", True)):
        tokens = many[kind, 7]
        assert where(tokens.of_draw(0)) == where(few[kind, 7]) != where(other[kind, 7])
        assert len(tokens.of_draw(1999).images) == len(few[kind, 7].images)
        assert len(draw(num_draws=2)["cls", 7].of_draw(1).images) == 8
        for image in np.unique(tokens.images):  # a chi-square of so many cells exceeds mean + 6 sd once in 10^7
            counts = np.bincount(tokens.of_images(image).positions @ (8, 1), minlength=64)
            cells = int((truth[image - FIRST] == wanted).sum())
            counts, expected = counts[truth[image - FIRST] == wanted], 2000 / cells
            assert counts.sum() == 2000
            assert ((counts - expected) ** 2 / expected).sum() <= cells - 1 + 6 * np.sqrt(2 * cells)


def test_paired_sets_have_the_same_images(organism, images, cutoff, truth, tmp_path):
    found = draw_tokens(organism, batches(images), rule_cutoff=cutoff, num_draws=2, paired=True, folder=tmp_path / "t")
    holders = (np.flatnonzero(truth.any(1)) + FIRST).tolist()
    for kind in ("normal", "outlier", "cls"):
        assert found[kind, 7].of_draw(1).images.tolist() == holders
        assert found[kind, 7].num_without == 42 - len(holders) > 0
        numbers = np.bincount(found[kind, 7].images - FIRST, minlength=42)
        assert numbers.tolist() == (np.minimum(truth.sum(1), 2) if kind != "cls" else truth.any(1)).tolist()
    unpaired = draw_tokens(organism, batches(images), rule_cutoff=cutoff, num_draws=2, folder=tmp_path / "u")
    kept = unpaired["normal", 7].of_images(holders)
    assert where(kept.of_draw(0)) == where(found["normal", 7].of_draw(0))


def test_an_image_of_outliers_alone_has_no_normal_token(organism, images, tmp_path):
    found = draw_tokens(organism, batches(images[:3]), rule_cutoff=1e-3, folder=tmp_path / "t")
    assert [len(found[kind, 7].features) for kind in ("normal", "outlier", "cls")] == [0, 3, 3]
    assert found["normal", 7].num_without == 3 and found["normal", 7].features.shape == (0, 96)
    paired = draw_tokens(organism, batches(images[:3]), rule_cutoff=1e-3, paired=True, folder=tmp_path / "u")
    assert [len(paired[kind, 7].features) for kind in ("normal", "outlier", "cls")] == [0, 0, 0]


def test_registers_and_no_cutoff(images, tmp_path):
    backbone = backbones.load("organism-reg4", image_size=SIZE)
    kinds = ("outlier", "normal", "register:2")
    found = draw_tokens(backbone, batches(images[:5]), rule_cutoff=None, kinds=kinds, folder=tmp_path / "t")
    assert len(found["outlier", 7].features) == 0 and found["outlier", 7].num_without == 5
    assert len(found["normal", 7].features) == 5 and found["normal", 7].cutoff is None
    _, prefix = streams(backbone, images[:5])[7]  # CLS, then 4 registers
    assert found["register:2", 7].features == pytest.approx(prefix[:, 3], abs=2e-4)


def test_the_norm_point_of_features_does_not_move_the_choice(organism, images, cutoff, tmp_path):
    before = draw_tokens(organism, batches(images), rule_cutoff=cutoff, folder=tmp_path / "a")
    after = draw_tokens(organism, batches(images), rule_cutoff=cutoff, point="final_norm", folder=tmp_path / "b")
    early = draw_tokens(
        organism, batches(images), rule_cutoff={7: cutoff}, blocks=(2,), norm_block=7, folder=tmp_path / "c"
    )
    patches, at_2 = (streams(organism, images, norm=norm)[block][0] for norm, block in ((True, 7), (False, 2)))
    for kind in ("normal", "outlier", "cls"):
        assert where(before[kind, 7]) == where(after[kind, 7]) == where(early[kind, 2])
    tokens = after["outlier", 7]
    index = tokens.images - FIRST, tokens.positions @ (8, 1)
    assert tokens.features == pytest.approx(patches[index], abs=2e-4) and tokens.point == "final_norm"
    assert early["outlier", 2].features == pytest.approx(at_2[index], abs=2e-4)


def test_half_precision_gives_float32_features(organism, images, cutoff, tmp_path):
    found = draw_tokens(
        organism, batches(images[:4]), rule_cutoff=cutoff, autocast=torch.bfloat16, folder=tmp_path / "t"
    )
    assert found["cls", 7].features.dtype == np.float32


def test_what_is_interrupted_leaves_nothing(organism, images, cutoff, tmp_path):
    def broken(error):
        yield from batches(images[:8], 4)
        raise error

    for error in (KeyboardInterrupt(), InputError("gone")):
        with pytest.raises(type(error)):
            draw_tokens(organism, broken(error), rule_cutoff=cutoff, folder=tmp_path / "tokens")
        assert list(tmp_path.iterdir()) == []
    whole = draw_tokens(organism, batches(images[:8]), rule_cutoff=cutoff, folder=tmp_path / "tokens")
    with pytest.raises(InputError):
        draw_tokens(organism, broken(InputError("gone")), rule_cutoff=cutoff, folder=tmp_path / "tokens")
    again = open_tokens(tmp_path / "tokens")  # the older one stands
    assert list(tmp_path.iterdir()) == [tmp_path / "tokens"] and where(again["cls", 7]) == where(whole["cls", 7])
    assert not organism.module.blocks[7]._forward_hooks


def test_a_file_that_is_not_whole_is_refused(organism, images, cutoff, tmp_path):
    draw_tokens(organism, batches(images[:8]), rule_cutoff=cutoff, folder=tmp_path)
    path = tmp_path / "cls.block7.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError, match=r"cls\.block7\.npy is damaged"):
        open_tokens(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match="not whole"):
        open_tokens(tmp_path)


def test_what_cannot_be_drawn_is_refused_in_one_line(organism, images, tmp_path):
    cases = [
        ({"kinds": ("register:0",)}, "got kind 'register:0'; organism has normal, outlier, cls"),
        ({"kinds": ()}, "one or more of both"),
        ({"kinds": ("cls", "cls")}, "each once"),
        ({"blocks": (8,)}, "blocks 0 to 7"),
        ({"norm_block": -1}, "blocks 0 to 7"),
        ({"point": "resid_pre"}, "allowed are resid_post and final_norm"),
        ({"point": "final_norm", "blocks": (6, 7)}, "follows block 7 alone"),
        ({"num_draws": 0}, "1 draw or more"),
        ({"seed": -1}, "seed from 0 on"),
        ({"split": -1}, "split -1"),
        ({"rule_cutoff": {6: 5.0}}, "block 7 needs one too"),
        ({"rule_cutoff": 0.0}, "over 0"),
        ({"rule_cutoff": float("nan")}, "over 0"),
        ({"batches": batches(images[:, :, :64])}, "loaded for 128 x 128 px"),
        ({"batches": batches(images * float("nan"))}, "not finite"),
    ]
    for wrong, says in cases:
        given = {"batches": batches(images[:2]), "rule_cutoff": 50.0} | wrong
        with pytest.raises(ArgumentError, match=says) as caught:
            draw_tokens(organism, folder=tmp_path / "tokens", **given)
        assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="no image"):
        draw_tokens(organism, [], rule_cutoff=50.0, folder=tmp_path / "tokens")
    tokens = draw_tokens(organism, batches(images[:2]), rule_cutoff=50.0, folder=tmp_path / "tokens")["normal", 7]
    with pytest.raises(ArgumentError, match="draws 0 to 0"):
        tokens.of_draw(1)
