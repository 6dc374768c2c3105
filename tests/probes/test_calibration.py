"""The calibration passes with a sound instrument and fails with each detector broken on purpose."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vitprobe import backbones
from vitprobe.backbones.organism import planted_truth
from vitprobe.backbones.timm_vit import TimmViT
from vitprobe.inputs.loading import ImageLoader
from vitprobe.inputs.samples import sample_items
from vitprobe.inputs.scenes import MIXED, scene_items
from vitprobe.probes import calibration as cal
from vitprobe.probes.outliers import Bimodality


@pytest.fixture(scope="module")
def subject():
    backbone = backbones.load("organism")
    items = [*sample_items(), *scene_items(14, config=replace(MIXED, size=(224, 224)), seed=1)]
    return backbone, list(ImageLoader(items, backbone.transform, workers=0))


def failed(found):
    return [check.what for check in found.checks if not check.passed]


def test_a_sound_instrument_passes(subject):
    found = cal.calibrate_organism(*subject, planted_truth)
    assert failed(found) == [] and found.passed
    assert len(found.checks) == 7 and len(found.detections) == 7
    assert cal.calibrate_bimodality(draws=20).passed


def test_a_detector_that_finds_nothing_fails(subject, monkeypatch):
    for module in ("calibration", "outliers", "norm_stats", "evidence"):
        monkeypatch.setattr(f"vitprobe.probes.{module}.find_two_modes", lambda norms: Bimodality(False, None))
    assert "the verdict is artifacts" in failed(cal.calibrate_organism(*subject, planted_truth))
    assert "two modes are found" in failed(cal.calibrate_bimodality(draws=5))


def test_a_detector_that_cries_wolf_fails(subject, monkeypatch):
    always = lambda norms: Bimodality(True, norms.median * 1.01, 0.4, 2.0, 0.1, 0.0)  # noqa: E731
    for module in ("calibration", "outliers", "norm_stats", "evidence"):
        monkeypatch.setattr(f"vitprobe.probes.{module}.find_two_modes", always)
    assert "rule auto finds the planted tokens and no other" in failed(cal.calibrate_organism(*subject, planted_truth))
    assert "nothing is found in pure noise" in failed(cal.calibrate_noise(subject[0], num_images=4))
    assert "one mode is not called two" in failed(cal.calibrate_bimodality(draws=5))


def test_wrong_attention_arithmetic_fails(subject, monkeypatch):
    monkeypatch.setattr(TimmViT, "project_heads", lambda self, index, heads, x: heads.transpose(1, 2).flatten(2))
    found = cal.check_recorder(subject[0], subject[1][0].images[:2])
    assert [check.what for check in found if not check.passed] == [
        "rows times values, projected, are the model's own attention"
    ]


def test_a_recorder_that_changes_the_output_fails(subject, monkeypatch):
    monkeypatch.setattr(cal, "Recorder", lambda backbone, sites: Noisy(backbone, sites))
    found = cal.check_recorder(subject[0], subject[1][0].images[:2])
    assert "recording changes no bit of the output" in [check.what for check in found if not check.passed]


class Noisy(cal.Recorder):
    def __init__(self, backbone, sites):
        super().__init__(backbone, [*sites, cal.Site("resid_post", 0, edit=lambda x: x * 1.001, keep=False)])


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "open_clip:ViT-B-32"])
def test_a_plant_in_a_users_model_is_found(name, subject):
    backbone = backbones.load(name, weights="random")
    items = scene_items(24, config=replace(MIXED, size=(224, 224)), seed=2)
    found = cal.calibrate_model(backbone, list(ImageLoader(items, backbone.transform, workers=0)))
    assert failed(found) == []
    auto = found.detections[0]
    assert (auto.planted, auto.found, auto.precision, auto.recall) == (24, 24, 1.0, 1.0)


def test_the_plant_is_where_it_was_put(subject):
    backbone, batches = subject
    positions = torch.arange(16) + backbone.layout().patches.start
    bare = cal.block_norms(backbone, batches)
    norms = cal.block_norms(backbone, batches, plant=(2, positions, 500.0))
    rows = np.arange(16)
    np.testing.assert_allclose(norms[2, rows, rows], 500, rtol=1e-5)
    np.testing.assert_array_equal(norms[:2], bare[:2])


def test_precision_and_recall_are_counted_right():
    norms = np.full((2, 100), 10.0)
    norms[0, :3], planted = 200.0, np.zeros((2, 100), bool)
    planted[0, 1:5] = True
    found = {one.rule: one for one in cal.detect("x", norms, planted)}["150"]
    assert (found.found, found.planted, found.precision, found.recall) == (3, 4, 2 / 3, 0.5)
    assert found.false_alarms == 1 / 196
