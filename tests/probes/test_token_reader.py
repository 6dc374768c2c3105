"""Readers of drawn tokens: several in one pass, pixels beside features, and nothing left of one that did not finish."""

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch

from vitprobe import backbones
from vitprobe.errors import ArgumentError, InputError
from vitprobe.inputs.loading import ImageBatch
from vitprobe.inputs.scenes import MIXED, generate
from vitprobe.probes.local_probes import token_pixels
from vitprobe.probes.passes import run_pass
from vitprobe.probes.token_features import TokenReader, draw_tokens, open_tokens

SIZE, CUTOFF = (128, 128), 50.0


def batches(images, size=16):
    for i in range(0, len(images), size):
        part = images[i : i + size]
        where = tuple(range(i, i + len(part)))
        yield ImageBatch(tuple(map(str, where)), part, ("",) * len(part), where)


def where(tokens):
    """What was drawn: image, row, col, draw of every row."""
    return np.c_[tokens.images, tokens.positions, tokens.draws].tolist()


@pytest.fixture(scope="module")
def organism():
    return backbones.load("organism", image_size=SIZE)


@pytest.fixture(scope="module")
def images():
    return generate(42, config=replace(MIXED, size=SIZE), seed=7).images * 2 - 1


def test_two_readers_share_a_pass_and_draw_what_each_would_alone(organism, images, tmp_path):
    alone = draw_tokens(organism, batches(images), rule_cutoff=CUTOFF, num_draws=2, folder=tmp_path / "a")
    readers = [
        TokenReader(organism, tmp_path / "b", rule_cutoff=CUTOFF, num_draws=2),
        TokenReader(organism, tmp_path / "c", rule_cutoff=CUTOFF, kinds=("normal",), point="final_norm", seed=4),
    ]
    calls = []
    handle = organism.module.register_forward_hook(lambda *_: calls.append(1))
    assert run_pass(organism, batches(images), readers) == 42 and len(calls) == 3
    handle.remove()
    assert len({site for reader in readers for site in reader.sites}) == 3  # the norms are recorded once
    found = readers[0].finish()
    assert readers[0].finish() is found and list(readers[1].finish()) == [("normal", 7)]
    for key, tokens in alone.items():
        assert where(tokens) == where(found[key])
        np.testing.assert_array_equal(tokens.features, found[key].features)


@pytest.mark.parametrize("unit", ["model", "unit"])
def test_pixels_beside_features_are_those_that_a_second_pass_reads(organism, images, tmp_path, unit):
    options = {"rule_cutoff": CUTOFF, "num_draws": 2, "replacement": True, "pixels": unit}
    found = draw_tokens(organism, batches(images), folder=tmp_path / "t", **options)
    sets = [found["normal", 7], found["outlier", 7]]
    expected = token_pixels(organism, batches(images), sets, unit=unit)
    for one, pixels in zip(sets, expected, strict=True):
        assert isinstance(one.pixels, np.memmap) and len(pixels) > 20
        np.testing.assert_array_equal(one.pixels, pixels)
        np.testing.assert_array_equal(one.of_draw(1).pixels, pixels[1::2])
    assert found["cls", 7].pixels is None
    assert (
        draw_tokens(organism, batches(images[:2]), rule_cutoff=5.0, folder=tmp_path / "u")["normal", 7].pixels is None
    )
    with pytest.raises(ArgumentError, match="allowed are model, unit, or None"):
        TokenReader(organism, tmp_path / "v", rule_cutoff=5.0, pixels="bytes")


def test_a_reader_that_is_not_finished_leaves_nothing(organism, images, tmp_path):
    def reader():
        made = TokenReader(organism, tmp_path / "t", rule_cutoff=CUTOFF, pixels="model")
        run_pass(organism, batches(images[:8]), [made])
        assert [path.name[:3] for path in tmp_path.iterdir()] == [".t."]
        return made

    with reader():
        pass
    assert not list(tmp_path.iterdir())
    closed = reader()
    closed.close()
    closed.close()  # as often as one likes
    assert not list(tmp_path.iterdir())
    forgotten = reader()
    del forgotten
    gc.collect()
    assert not list(tmp_path.iterdir())
    with reader() as whole:
        found = whole.finish()
    assert list(tmp_path.iterdir()) == [tmp_path / "t"] and len(found["cls", 7].features) == 8
    whole.close()
    assert where(open_tokens(tmp_path / "t")["cls", 7]) == where(found["cls", 7])


def test_a_reader_that_refuses_a_batch_leaves_nothing(organism, images, tmp_path):
    reader = TokenReader(organism, tmp_path / "t", rule_cutoff=CUTOFF)
    bad = torch.cat([images[:4], images[4:8] * float("nan")])
    with pytest.raises(ArgumentError, match="not finite"):
        run_pass(organism, batches(bad, 4), [reader])
    assert not list(tmp_path.iterdir())
    empty = TokenReader(organism, tmp_path / "t", rule_cutoff=CUTOFF)
    with pytest.raises(InputError, match="no token was drawn"):
        empty.finish()
    assert not list(tmp_path.iterdir())
