"""Stream scenes: the truth of images and patches against counting pixels, the same bits however they are asked for."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vitprobe.errors import ArgumentError
from vitprobe.inputs.augment import multi_crop_transform, plain_transform
from vitprobe.inputs.scene_shapes import BACKGROUNDS, COLOURS, KINDS
from vitprobe.inputs.scene_stream import (
    FIRST_HELD_OUT,
    TASKS,
    SceneStream,
    image_truth,
    patch_truth,
    scene_set,
    scene_truth,
)
from vitprobe.inputs.scenes import COLOUR_NAMES, CROWDED, MIXED, SPARSE, SceneConfig, Scenes, generate, patch_coverage
from vitprobe.inputs.stream import TrainBatch

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
OBLONG = SceneConfig(size=(32, 48), max_shapes=6)


def stream(**options) -> SceneStream:
    given = {"config": MIXED, "batch_size": 6, "seed": 3, "mean": MEAN, "std": STD, "patch": 4}
    return SceneStream(**{**given, **options})


def same(one: TrainBatch, other: TrainBatch) -> bool:
    """Whether two batches hold the same bits."""
    assert one.truth.keys() == other.truth.keys()
    pairs = [*zip(one.views, other.views, strict=True), (one.indices, other.indices), (one.labels, other.labels)]
    pairs += [(value, other.truth[name]) for name, value in one.truth.items()]
    return all(torch.equal(*pair) for pair in pairs) and one.captions == other.captions


def scenes(config: SceneConfig = MIXED, num: int = 40) -> Scenes:
    return generate(num, config=config, seed=3)


def test_a_batch_is_what_is_generated() -> None:
    made = scenes(num=12)
    batches = list(stream().batches(0, 2))
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(12))
    assert torch.equal(torch.cat([batch.labels for batch in batches]), made.majority)
    assert [caption for batch in batches for caption in batch.captions] == made.captions
    pixels = torch.cat([batch.views[0] for batch in batches]) * torch.tensor(STD).reshape(3, 1, 1)
    pixels = pixels + torch.tensor(MEAN).reshape(3, 1, 1)
    torch.testing.assert_close(pixels, made.images, atol=0.5 / 255 + 1e-5, rtol=0)
    assert set(batches[0].truth) == {*TASKS, "patch_object"}
    assert batches[0].views[0].dtype == torch.float32


def test_views_have_the_bits_that_held_out_scenes_have() -> None:
    """A scene looks the same to the model whether it is trained on or read as an item through the plain transform."""
    batch = next(stream(seed=5).batches(0, 1))
    items = scene_set(6, config=MIXED, seed=5, first=0).items
    read = torch.stack([plain_transform(32, MEAN, STD)(item.read().image) for item in items])
    assert torch.equal(batch.views[0], read)


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_and_split_over_ranks_to_the_last_bit(workers: int) -> None:
    whole = list(stream().batches(0, 5))
    assert all(map(same, stream(workers=workers).batches(2, 5), whole[2:]))
    parts = [list(stream(rank=rank, world=2, workers=workers).batches(0, 5)) for rank in range(2)]
    for batch, low, high in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([low.views[0], high.views[0]]), batch.views[0])
        for name, value in batch.truth.items():
            assert torch.equal(torch.cat([low.truth[name], high.truth[name]]), value), name
        assert low.captions + high.captions == batch.captions
    assert not same(next(stream(seed=4).batches(0, 1)), whole[0])


@pytest.mark.parametrize("config", [MIXED, SPARSE, CROWDED, OBLONG])
def test_truth_of_images_by_counting(config: SceneConfig) -> None:
    made = scenes(config)
    truth = image_truth(made)
    for at in range(40):
        objects = [
            (kind, colour) for kind, colour in zip(made.kinds[at].tolist(), made.colours[at].tolist(), strict=True)
            if kind >= 0
        ]  # fmt: skip
        assert truth["count"][at] == len(objects) - 1
        assert truth["same"][at] == (len(set(objects)) < len(objects))
        colours = [colour for _, colour in objects]
        assert truth["majority"][at] == max(set(colours), key=colours.count)
        presence = truth["presence"][at].reshape(len(KINDS), len(COLOURS))
        assert set(map(tuple, presence.nonzero().tolist())) == set(objects)
    assert torch.equal(truth["background"], made.background)


@pytest.mark.parametrize(
    ("config", "patch"), [(MIXED, 4), (CROWDED, 8), (SPARSE, 2), (OBLONG, 16), (replace(SPARSE, size=(64, 64)), 32)]
)
def test_truth_of_patches_by_counting_pixels(config: SceneConfig, patch: int) -> None:
    made = scenes(config, num=10)
    truth = patch_truth(made, patch)
    rows, cols = config.size[0] // patch, config.size[1] // patch
    masks, depth = made.masks.numpy(), made.depth.double().numpy()
    for at in range(10):
        for place in range(rows * cols):
            row, col = divmod(place, cols)
            here = np.s_[row * patch : (row + 1) * patch, col * patch : (col + 1) * patch]
            counts = [int(mask[here].sum()) for mask in masks[at]]
            held = sum(counts) / patch**2 >= 0.02
            nearest = counts.index(max(counts))
            pair = made.kinds[at, nearest] * len(COLOURS) + made.colours[at, nearest]
            assert truth["patch_object"][at, place] == held
            assert truth["patch_class"][at, place] == (pair + 1 if held else 0)
            others = [c for k, c in enumerate(made.colours[at].tolist()) if k != nearest]
            mates = min(others.count(int(made.colours[at, nearest])), 5)
            assert truth["patch_mates"][at, place] == (mates if held else 0)
            assert float(truth["patch_depth"][at, place]) == pytest.approx(depth[at][here].mean(), rel=1e-5)
    assert torch.equal(truth["patch_coverage"], patch_coverage(made, patch))
    if config is MIXED:
        assert 0.2 < truth["patch_object"].float().mean() < 0.8


def test_a_sliver_of_an_object_is_background() -> None:
    """One pixel of a patch of 64 is 1.6 %, two are 3.1 %."""
    made = scenes(SceneConfig(max_shapes=1), num=1)
    masks = torch.zeros_like(made.masks)
    masks[0, 0, 0, 0] = masks[0, 0, 0, 8:10] = True
    truth = patch_truth(replace(made, masks=masks), 8)
    assert truth["patch_object"][0, :3].tolist() == [False, True, False]
    assert (truth["patch_class"][0, :3] > 0).tolist() == [False, True, False]


@pytest.mark.parametrize("config", [MIXED, CROWDED, SceneConfig(max_shapes=3, palette=("pink", "red"))])
def test_answers_fit_the_table_of_tasks(config: SceneConfig) -> None:
    truth = next(stream(config=config, batch_size=200).batches(0, 1)).truth
    shapes = {"classes": (200,), "multi-label": (200, 24), "dense classes": (200, 64), "dense regression": (200, 64)}
    for name, task in TASKS.items():
        answers, outputs = truth[name], task.num_outputs(config)
        assert answers.shape == shapes[task.kind]
        assert task.is_dense == name.startswith("patch")
        assert answers.dtype == (torch.int64 if task.kind.endswith("classes") else torch.float32)
        if answers.dtype == torch.int64:
            assert 0 <= answers.min() < answers.max() < outputs
        elif task.kind == "multi-label":
            assert answers.shape[1] == outputs
    assert TASKS["background"].num_outputs(config) == len(BACKGROUNDS)


def test_crops_are_seeded_by_position_and_leave_patches_out() -> None:
    crops = multi_crop_transform(32, 16, 2, (0.4, 1.0), (0.1, 0.4), MEAN, STD)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    whole = list(stream(transform=crops).batches(0, 4))
    assert torch.equal(torch.rand(1), expected)
    assert [tuple(view.shape) for view in whole[0].views] == [(6, 3, 32, 32)] * 2 + [(6, 3, 16, 16)] * 2
    assert set(whole[0].truth) == {"count", "majority", "same", "background", "presence"}
    for workers in (0, 2):
        assert all(map(same, stream(transform=crops, workers=workers).batches(1, 4), whole[1:]))
    half = next(stream(transform=crops, rank=1, world=2).batches(0, 1))
    assert torch.equal(half.views[3], whole[0].views[3][3:])


@pytest.mark.parametrize("config", [replace(MIXED, size=(64, 64)), OBLONG])
def test_held_out_scenes_and_their_truth(config: SceneConfig) -> None:
    held = scene_set(70, config=config, seed=3)
    made = generate(70, config=config, seed=3, start=FIRST_HELD_OUT)
    assert held.classes == COLOUR_NAMES
    assert held.labels.tolist() == made.majority.tolist()
    assert held.captions == made.captions
    assert [item.index for item in held.items] == list(range(10**9, 10**9 + 70))
    image = np.array(held.items[7].read().image).transpose(2, 0, 1)
    assert np.array_equal(image, (made.images[7] * 255).round().byte().numpy())
    some = [69, 0, 1, 2, 66, 5]
    truth = scene_truth(held.take(some).items, patch=8)
    for name, value in (image_truth(made) | patch_truth(made, 8)).items():
        assert torch.equal(truth[name], value[some]), name
    assert "patch_class" not in scene_truth(held.items[:2])


def test_arguments_are_checked() -> None:
    for make, says in (
        (lambda: stream(patch=5), "patch 5 on 32 x 32 pixels"),
        (lambda: stream(batch_size=5, world=2), "batch size of 5 for 2 processes"),
        (lambda: stream().batches(2, 1), "batches 2 to 1"),
        (lambda: stream().batches(0, 10**9), "0 <= start <= stop <= 166,666,666"),
        (lambda: scene_set(0, seed=0), "0 scenes; give 1 or more"),
        (lambda: scene_truth([]), "no scene to tell the truth of"),
    ):
        with pytest.raises(ArgumentError, match=says):
            make()
