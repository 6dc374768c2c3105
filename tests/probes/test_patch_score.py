"""Point-in-Box of features that point at a box, of noise, and of a backbone against its library's own numbers."""

import numpy as np
import pytest
import torch

from vitprobe.errors import ArgumentError, InputError
from vitprobe.inputs.loading import ImageBatch
from vitprobe.probes.knn import wilson_interval
from vitprobe.probes.passes import run_pass
from vitprobe.probes.patch_score import PatchScoreReader, is_inside, patch_centres
from vitprobe.recorder import Site, token_norms

BOX = [(8.0, 8.0, 33.0, 25.0)]
"""Holds the centres of patches in rows 1 and 2, columns 1 to 3, of a grid of 6 x 8 patches of 8 pixels."""
INSIDE = {(r, c) for r in (1, 2) for c in (1, 2, 3)}


def batch_of(number, start=0, size=(48, 64)):
    images = torch.randn(number, 3, *size, generator=torch.Generator().manual_seed(start))
    where = tuple(range(start, start + number))
    return ImageBatch(tuple(f"image{i}" for i in where), images, ("",) * number, where)


def fed(reader, layout, patches, cls, norms=None, *, start=0):
    """Hand a reader made tokens: patches (B, P, D), CLS (B, D), norms (B, P)."""
    tokens = torch.zeros(len(patches), layout.num_tokens, patches.shape[-1])
    tokens[:, layout.patches], tokens[:, layout.cls] = patches, cls[:, None]
    own = torch.ones(len(patches), layout.num_tokens)
    if norms is not None:
        own[:, layout.patches] = norms
    features, norm_site = reader.sites
    reader.update(batch_of(len(patches), start), {features: tokens, norm_site: own}, torch.zeros(1))


@pytest.fixture
def made(make_tiny):
    backbone = make_tiny("timm-reg4")
    return backbone, backbone.layout()


def test_inside_is_counted_by_hand():
    centres = patch_centres((6, 8), (8, 8))
    found = is_inside(centres, np.array(BOX))
    assert {divmod(i, 8) for i in np.flatnonzero(found)} == INSIDE
    edge = np.array([[10.0, 10.0], [20.0, 10.0]])
    assert is_inside(edge, np.array([[10.0, 10.0, 20.0, 20.0]])).tolist() == [True, False]  # ends are exclusive
    assert is_inside(edge, np.array([[0, 0, 5, 5], [15, 5, 25, 15.0]])).tolist() == [False, True]  # in any of them


def test_features_that_point_at_the_box_are_seen_and_outliers_can_hide_it(made):
    """The patch most like CLS lies in the box; an outlier outside it is still more like CLS."""
    backbone, layout = made
    reader = PatchScoreReader(backbone, lambda index: BOX, block=1, cutoff=5.0, num_examples=1)
    rng = np.random.default_rng(0)
    patches = torch.tensor(rng.normal(size=(20, 48, 6)), dtype=torch.float32)
    cls = torch.tensor(rng.normal(size=(20, 6)), dtype=torch.float32)
    norms = torch.ones(20, 48)
    patches[:, 8 + 2] = 3 * cls + 0.1  # row 1, column 2
    patches[:10, 47], norms[:10, 47] = 9 * cls[:10], 9.0  # the last patch, an outlier, is CLS itself
    fed(reader, layout, patches, cls, norms)
    found = reader.result()
    assert found.in_box.tolist() == [False] * 10 + [True] * 10 == (~found.is_outlier).tolist()
    assert found.others_in_box.tolist() == [1.0] * 20
    assert found.top[0].tolist() == [5, 7] and found.top[10].tolist() == [1, 2]
    assert found.share("in_box").value == 0.5 and found.share("in_box").interval == wilson_interval(10, 20)
    assert found.share("others_in_box").value == 1.0 and found.share("is_outlier").value == 0.5
    assert found.random == pytest.approx(6 / 48) and found.mean("random").value == pytest.approx(6 / 48)
    assert found.over_random().value == pytest.approx(0.5 - 6 / 48)
    assert not found.centre.any()  # row 3, column 4 is not in the box
    cosines = torch.nn.functional.cosine_similarity(patches, cls[:, None], dim=-1).numpy()
    mask = is_inside(patch_centres((6, 8), (8, 8)), np.array(BOX))
    expected = cosines[:, mask].mean(1) - cosines[:, ~mask].mean(1)
    assert found.difference == pytest.approx(expected, abs=1e-6)
    (example,) = reader.examples.values()
    assert example.scores == pytest.approx(cosines[0].reshape(6, 8), abs=1e-6)
    assert example.outliers.sum() == 1 and example.outliers[5, 7]
    assert example.boxes.tolist() == [[8 / 64, 8 / 48, 33 / 64, 25 / 48]]


def test_noise_is_in_the_box_as_often_as_a_random_patch(made):
    backbone, layout = made
    reader = PatchScoreReader(backbone, lambda index: BOX, block=1, cutoff=None)
    draw = torch.Generator().manual_seed(1)
    fed(reader, layout, torch.randn(400, 48, 16, generator=draw), torch.randn(400, 16, generator=draw))
    found = reader.result()
    low, high = found.share("in_box").interval
    assert low < 6 / 48 < high and found.over_random().exceeds(0) == "not clear"
    assert not found.is_outlier.any() and found.share("others_in_box") == found.share("in_box")
    apart = found.mean("difference").interval
    assert apart[0] < 0 < apart[1]


def test_images_without_a_box_or_with_outliers_alone(made):
    backbone, layout = made
    boxes = {0: BOX, 1: [], 2: [(0.0, 0.0, 64.0, 48.0)], 3: [(0.0, 0.0, 2.0, 2.0)]}
    reader = PatchScoreReader(backbone, boxes, block=1, cutoff=5.0)
    draw = torch.Generator().manual_seed(2)
    norms = torch.ones(4, 48)
    norms[2] = 9.0
    fed(reader, layout, torch.randn(4, 48, 6, generator=draw), torch.randn(4, 6, generator=draw), norms)
    found = reader.result()
    assert found.indices.tolist() == [0, 2, 3] and found.num_without_truth == 1
    assert found.random.tolist() == pytest.approx([6 / 48, 1.0, 0.0])  # the last box holds no centre
    assert np.isnan(found.others_in_box).tolist() == [False, True, False]
    assert found.share("others_in_box").num_images == 2 and np.isnan(found.difference).tolist() == [False, True, True]
    empty = PatchScoreReader(backbone, {}, block=1, cutoff=None)
    fed(empty, layout, torch.randn(1, 48, 6), torch.randn(1, 6))
    with pytest.raises(InputError, match="none of 1 images has a true box"):
        empty.result()


@pytest.mark.parametrize(("point", "reference"), [("auto", "auto"), ("resid_post", "cls"), ("final_norm", "mean")])
def test_scores_of_a_backbone_are_those_of_its_librarys_features(make_tiny, point, reference):
    backbone = make_tiny("timm-reg4")
    reader = PatchScoreReader(
        backbone, lambda index: BOX, block=1, cutoff=None, point=point, reference=reference, num_examples=5
    )
    batches = [batch_of(3), batch_of(2, start=3)]
    run_pass(backbone, batches, [reader])
    found = reader.result()
    assert found.point == ("resid_post" if point == "resid_post" else "final_norm")
    with torch.no_grad():
        images = torch.cat([batch.images for batch in batches])
        norm = point != "resid_post"
        tokens = backbone.module.forward_intermediates(
            images, indices=[1], norm=norm, return_prefix_tokens=True, intermediates_only=True
        )
    patches, prefix = tokens[0][0].flatten(2).transpose(1, 2), tokens[0][1]
    target = patches.mean(1, keepdim=True) if reference == "mean" else prefix[:, :1]
    expected = torch.nn.functional.cosine_similarity(patches, target, dim=-1).numpy()
    for i, example in enumerate(reader.examples.values()):
        assert example.scores.ravel() == pytest.approx(expected[i], abs=1e-5)
    assert (found.top @ (8, 1)).tolist() == expected.argmax(1).tolist()
    assert found.reference == ("mean" if reference == "mean" else "cls")


def test_a_model_without_cls_is_compared_with_its_mean_patch(make_tiny):
    backbone = make_tiny("timm-no-cls")
    assert PatchScoreReader(backbone, {}, block=1, cutoff=None).reference == "mean"
    with pytest.raises(ArgumentError, match="no CLS; give mean or auto"):
        PatchScoreReader(backbone, {}, block=1, cutoff=None, reference="cls")
    with pytest.raises(ArgumentError, match="allowed are auto, cls, mean"):
        PatchScoreReader(backbone, {}, block=1, cutoff=None, reference="register")
    reader = PatchScoreReader(backbone, {}, block=1, cutoff=None)
    assert Site("resid_post", 1, reduce=token_norms) in reader.sites
