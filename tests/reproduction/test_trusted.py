"""Images of a bad truth are named and left out; each truth is read once for all readers of a batch."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from vitprobe import backbones
from vitprobe.errors import InputError
from vitprobe.reproduction.trusted import TrustedLoader, cached

sys.path.append(str(Path(__file__).parent))  # tests are no package
from made_settings import loader, scenes

BAD = {2, 5, 8, 9}


def masked(number):
    reads = []

    def read(index):
        reads.append(index)
        if index in BAD:
            raise InputError("the mask is not of the image's size")
        return np.zeros((224, 224), np.int64)

    return replace(scenes(number), raw_mask=read), reads


def test_images_of_a_bad_truth_are_named_and_left_out():
    backbone = backbones.load("organism")
    source, _ = masked(10)
    trusted = TrustedLoader(loader(backbone, source), source, {"masks"})
    for _ in range(2):  # the counts start again
        batches = list(trusted)
        assert [batch.indices for batch in batches] == [(0, 1, 3), (4, 6, 7)]
        whole = {
            index: image for b in loader(backbone, source) for index, image in zip(b.indices, b.images, strict=True)
        }
        for batch in batches:
            assert len(batch.names) == len(batch.digests) == len(batch.images) == 3
            assert all((image == whole[i]).all() for i, image in zip(batch.indices, batch.images, strict=True))
        assert [name[-1] for name, _ in trusted.skipped] == ["2", "5", "8", "9"] and trusted.num_read == 6
    assert {why for _, why in trusted.skipped} == {"the mask is not of the image's size"}


def test_truths_that_no_item_needs_are_not_read():
    backbone = backbones.load("organism")
    source, reads = masked(10)
    trusted = TrustedLoader(loader(backbone, source), source, {"boxes", "labels"})
    assert sum(len(batch.indices) for batch in trusted) == 10 == trusted.num_read and not reads and not trusted.skipped


def test_a_truth_is_read_once():
    source, reads = masked(10)
    kept = cached(source)
    for _ in range(3):
        kept.raw_mask(3)
    assert reads == [3] and kept.raw_boxes is None and kept.has == source.has
