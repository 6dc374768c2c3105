"""Whether outliers go with the content or stay, and how far true models move: ViTs and a convolutional network."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d

from vitprobe import backbones
from vitprobe.backbones.canvas import canvas_transform
from vitprobe.backbones.conv_net import load_conv
from vitprobe.errors import ArgumentError, InputError
from vitprobe.inputs.loading import ImageLoader
from vitprobe.inputs.samples import sample_items
from vitprobe.inputs.scenes import MIXED, scene_items
from vitprobe.probes.feature_maps import FeatureMaps, Seen, of_backbone, of_conv
from vitprobe.probes.shifts import default_shifts
from vitprobe.probes.translation import TranslationResult, measure_translation
from vitprobe.probes.translation_sums import FOLLOWED

SIZE = (32, 32)
SHIFTS = [(0, 1), (0, 4), (8, 0), (4, 4), (-4, 12)]
MOVED, UNMOVED = 0, 2


def canvases(number=12, seed=0):
    images = torch.rand(number, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    return [
        SimpleNamespace(names=("x",) * 4, indices=tuple(range(i, i + 4)), images=images[i : i + 4])
        for i in range(0, number, 4)
    ]


def model(norms, **fields):
    def see(images):
        maps = avg_pool2d(images, 4)
        return Seen(maps, None if norms is None else norms(maps), maps.mean(dim=(2, 3)))

    return FeatureMaps("fake", see, (4, 4), SIZE, **fields)


def rows(found):
    return dict(zip(FOLLOWED, found.outliers, strict=True))


def test_outliers_that_follow_the_content_are_told():
    found = measure_translation(model(lambda maps: maps[:, 0]), canvases(), shifts=SHIFTS, cutoff=0.6)
    where = rows(found)
    assert np.isnan(found.outliers[:, 0]).all()  # a quarter of a place: content and place are one
    assert (where["content"] + where["both"])[1:] == pytest.approx(1) and not where["neither"][1:].any()
    share = found.summary["num_outliers"] / found.summary["num_patches"]
    assert where["chance"][1:] == pytest.approx(share, abs=0.05) and where["both"][1:] == pytest.approx(share, abs=0.08)
    assert where["popular"][1:] == pytest.approx(share, abs=0.05)
    assert found.summary["outliers_go"] == "with the content"


def test_outliers_that_stay_at_their_place_are_told():
    fixed = torch.rand(8, 8, generator=torch.Generator().manual_seed(1))
    bound = model(lambda maps: fixed.expand(len(maps), 8, 8))
    found = measure_translation(bound, canvases(), shifts=SHIFTS, cutoff=0.9)
    where = rows(found)
    assert (where["place"] + where["both"])[1:] == pytest.approx(1) and where["popular"][1:] == pytest.approx(1)
    assert found.summary["outliers_go"] == "at their place"


def test_outliers_at_random_are_neither():
    answers = []
    for seed in range(8):
        draw = torch.Generator().manual_seed(seed)
        strewn = model(lambda maps, draw=draw: torch.rand(len(maps), 8, 8, generator=draw))
        found = measure_translation(strewn, canvases(), shifts=SHIFTS, cutoff=0.9, seed=seed)
        where = rows(found)
        assert (where["content"] + where["both"])[1:] == pytest.approx(where["chance"][1:], abs=0.12)
        assert where["neither"][1:].mean() == pytest.approx(0.81, abs=0.08)
        answers.append(found.summary["outliers_go"])
    assert answers.count("not clear") >= 6


def test_outliers_are_left_out_of_the_second_kind():
    """A map that moves, but for outliers that stay: without them it moves exactly."""

    def see(images):
        maps = avg_pool2d(images, 4)
        maps[:, :, 2, ::3] = 50.0
        return Seen(maps, maps.norm(dim=1), maps.mean(dim=(2, 3)))

    found = measure_translation(FeatureMaps("x", see, (4, 4), SIZE), canvases(), shifts=[(4, 0), (0, 4)], cutoff=20.0)
    assert (found.errors[0, MOVED] > 0.5).all() and (found.errors[1, MOVED] < 1e-9).all()
    assert found.summary["num_outliers"] == 12 * 3 and found.summary["outliers_go"] == "at their place"


@pytest.mark.parametrize(("name", "answer"), [("organism", "at their place"), ("organism-content", "with the content")])
def test_organisms(name, answer):
    """One breaks ties by a code of position; the other's outliers are what stands out, wherever it lies."""
    backbone = backbones.load(name)
    mapped = of_backbone(backbone, after_final_norm=False)
    transform = canvas_transform(backbone.transform, mapped.image_size, 32)
    items = scene_items(8, config=replace(MIXED, size=(224, 224)), seed=0)
    batches = ImageLoader(items, transform, workers=0)
    found = measure_translation(mapped, batches, shifts=[(0, 16), (32, 0)], cutoff=100.0)
    assert found.summary["outliers_go"] == answer and found.summary["num_outliers"] > 8
    assert (found.errors[1, MOVED] < 0.1).all()
    assert (found.errors[0, MOVED] > found.errors[0, UNMOVED]).all() == (name == "organism")


def test_positions_hold_a_transformer_in_place(make_tiny):
    """Whole-patch shifts: without positions the map moves but for what leaves the window, with strong ones it stays."""
    images = torch.randn(8, 3, 48 + 32, 64 + 32, generator=torch.Generator().manual_seed(0))
    batches = [SimpleNamespace(names=("x",) * 8, indices=tuple(range(8)), images=images)]
    errors = {}
    for strength in (0.0, 20.0):
        backbone = make_tiny("timm-reg4")
        backbone.module.pos_embed.data.mul_(strength)
        found = measure_translation(of_backbone(backbone), batches, shifts=[(0, 8), (8, 0), (0, 16)])
        errors[strength] = found.errors[0]
    assert (errors[0.0][MOVED] < 0.3).all() and (errors[0.0][UNMOVED] > 0.7).all()
    assert (errors[20.0][MOVED] > 0.6).all() and (errors[20.0][UNMOVED] < 0.3).all()


def test_photographs_move_under_a_vit_and_a_convolutional_network():
    shifts = [(0, 8), (0, 32)]
    whole, half = {}, {}
    for which in ("vit", "conv"):
        if which == "vit":
            trunk = backbones.load("deit3-s16", weights="random")
            mapped = of_backbone(trunk)
        else:
            trunk = load_conv("resnet18", weights="random")
            mapped = of_conv(trunk)
        batches = ImageLoader(sample_items(), canvas_transform(trunk.transform, mapped.image_size, 32), workers=0)
        found = measure_translation(mapped, batches, shifts=shifts)
        half[which], whole[which] = found.errors[0, MOVED]
        assert found.summary["num_images"] == 2 and found.errors[0, UNMOVED, 1] > 0.3
        assert mapped.step == ((16, 16) if which == "vit" else (32, 32))
    assert whole["vit"] < 0.01 < 0.1 < half["vit"]  # random positions are small beside content
    assert whole["conv"] < 0.15 < half["conv"]


def test_scenes_and_what_is_stored():
    backbone = backbones.load("scenes-content")
    mapped = of_backbone(backbone)
    items = scene_items(6, config=replace(MIXED, size=(64, 64)), seed=0)
    batches, seen = ImageLoader(items, canvas_transform(backbone.transform, (32, 32), 16), workers=0), []
    found = measure_translation(
        mapped, batches, shifts=default_shifts(mapped.step), cutoff=None, on_batch=lambda batch: seen.append(batch)
    )
    assert len(seen) == 1 and found.errors.shape == (2, 5, 12) and np.isfinite(found.errors).all()
    assert (found.errors[0, MOVED] < found.errors[0, UNMOVED] + 0.05).all()
    text = json.dumps(found.summary, allow_nan=False)
    again = TranslationResult.read(found.arrays(), json.loads(text))
    assert json.dumps(again.summary) == text and again.arrays().keys() == found.arrays().keys()
    assert found.summary["margin"] == [16, 16] and found.summary["grid"] == [8, 8]
    with pytest.raises(InputError, match="no errors"):
        TranslationResult.read({n: a for n, a in found.arrays().items() if n != "errors"}, found.summary)


def test_a_map_too_small_is_said_and_the_pooled_vector_measured():
    def see(images):
        maps = avg_pool2d(images, 32)
        return Seen(maps, None, maps.mean(dim=(2, 3)))

    found = measure_translation(FeatureMaps("x", see, (32, 32), SIZE), canvases(), shifts=SHIFTS)
    assert "1 x 1" in found.summary["absent"] and found.summary["left_out"] == [list(s) for s in SHIFTS]
    assert np.isnan(found.errors).all() and np.isfinite(found.pooled).all()
    part = measure_translation(model(None), canvases(), shifts=[(0, 4), (0, 16)], border=2)
    assert part.summary["left_out"] == [[0, 16]] and "absent" not in part.summary
    assert np.isfinite(part.errors[0, MOVED, 0]) and np.isnan(part.errors[:, :, 1]).all()


def test_what_cannot_be_measured_is_refused():
    good = model(None)
    cases = [
        ({"canvases": iter(canvases())}, ArgumentError, "read twice"),
        ({"border": -1}, ArgumentError, "border"),
        ({"shifts": [(0, 17)]}, ArgumentError, "margin"),
        ({"cutoff": 1.0}, ArgumentError, "no norms"),
        ({"canvases": []}, InputError, "got 0 images"),
        ({"mapped": model(lambda maps: maps[:, 0] * torch.inf), "cutoff": 1.0}, ArgumentError, "not finite"),
    ]
    for changed, error, match in cases:
        given = {"mapped": good, "canvases": canvases(), "shifts": SHIFTS} | changed
        with pytest.raises(error, match=match):
            measure_translation(given.pop("mapped"), given.pop("canvases"), **given)
    one = [SimpleNamespace(names=("x",), indices=(0,), images=canvases()[0].images[:1])]
    with pytest.raises(InputError, match="got 1 images"):
        measure_translation(good, one, shifts=SHIFTS)
