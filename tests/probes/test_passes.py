"""One forward pass for several readers: what each gets, and that none of them changes what another sees."""

import numpy as np
import pytest
import torch

from vitprobe import backbones
from vitprobe.errors import ArgumentError, InputError
from vitprobe.inputs.loading import ImageLoader
from vitprobe.inputs.scenes import SceneConfig, scene_items
from vitprobe.probes.attention import AttentionReader, measure_attention
from vitprobe.probes.norms import NormReader, measure_norms
from vitprobe.probes.outliers import OutlierRule
from vitprobe.probes.passes import run_pass
from vitprobe.recorder import Site, token_norms

RULE = OutlierRule.parse("auto")


class Kept:
    """Keep all that a pass gives."""

    def __init__(self, *sites):
        self.sites, self.batches, self.outputs = sites, [], []

    def update(self, batch, taken, output):
        assert set(taken) == set(self.sites)
        self.batches.append({site: value.clone() for site, value in taken.items()})
        self.outputs.append(output)


@pytest.fixture(scope="module")
def backbone():
    return backbones.load("organism")


def images(backbone, number=5):
    items = scene_items(number, config=SceneConfig(size=(224, 224)), seed=3)
    return ImageLoader(items, backbone.transform, batch_size=2, workers=0)


def test_readers_of_one_pass_find_what_each_finds_alone(backbone):
    norms, maps = NormReader(backbone, seed=1), AttentionReader(backbone)
    assert run_pass(backbone, images(backbone), [norms, maps]) == 5
    alone = measure_norms(backbone, images(backbone), seed=1)
    np.testing.assert_array_equal(norms.accumulator.counts, alone.counts)
    last = backbone.num_blocks - 1
    assert norms.accumulator.result(RULE, point=last).summary == alone.result(RULE, point=last).summary
    other = measure_attention(backbone, images(backbone), rule=RULE)
    for name, value in maps.result(RULE).arrays().items():
        np.testing.assert_array_equal(value, other.arrays()[name], err_msg=name)


def test_the_backbone_runs_once_a_batch_and_gives_its_own_output(backbone):
    runs = []
    handle = backbone.module.register_forward_hook(lambda *_: runs.append(1))
    one, other = Kept(Site("resid_post", 0, reduce=token_norms)), Kept(Site("resid_post", 0, reduce=token_norms))
    bare = Kept()
    seen = []
    run_pass(backbone, images(backbone), [one, other, one, bare], on_batch=lambda batch: seen.append(batch.indices))
    handle.remove()
    assert len(runs) == len(one.batches) == len(other.batches) == len(bare.outputs) == 3  # a reader named twice: once
    assert seen == [(0, 1), (2, 3), (4,)]
    with torch.no_grad():
        for batch, output in zip(images(backbone), bare.outputs, strict=True):
            torch.testing.assert_close(output, backbone(batch.images), rtol=0, atol=0)


def test_only_the_first_images_are_kept_where_that_is_asked(backbone):
    reader = AttentionReader(backbone, most=3)
    run_pass(backbone, images(backbone), [reader])
    found = reader.result(RULE)
    whole = measure_attention(backbone, images(backbone), rule=RULE)
    assert found.names.tolist() == whole.names.tolist()[:3]
    np.testing.assert_array_equal(found.maps, whole.maps[:3])


def test_what_is_refused(backbone):
    with pytest.raises(InputError, match="no image"):
        run_pass(backbone, [], [Kept()])
    small = backbones.load("organism", image_size=(64, 96))
    with pytest.raises(ArgumentError, match=r"224 x 224 px; organism was loaded for 64 x 96"):
        run_pass(small, images(backbone), [Kept()])
