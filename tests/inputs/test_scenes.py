"""Generated scenes: the same whatever the batch, and a truth that the pixels bear out."""

import pickle
import re
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from vitprobe.errors import ArgumentError
from vitprobe.inputs import scene_shapes as shapes
from vitprobe.inputs import scenes as module
from vitprobe.inputs.scene_shapes import BACKGROUNDS, COLOURS, KINDS
from vitprobe.inputs.scenes import (
    CROWDED,
    MIXED,
    NAMED,
    SPARSE,
    SceneConfig,
    SceneItem,
    Scenes,
    generate,
    patch_coverage,
    scene_items,
)

CONFIGS = {
    "mixed": MIXED,
    "sparse": SPARSE,
    "crowded": CROWDED,
    "wide": replace(MIXED, size=(32, 48)),
    "tall": replace(MIXED, size=(75, 40)),
    "small": replace(MIXED, size=(16, 16)),
    "few colours": replace(MIXED, palette=("yellow", "red"), kinds=("cross", "disc"), backgrounds=("textured",)),
    "one colour": replace(SPARSE, palette=("pink",), kinds=("triangle",), backgrounds=("graded",)),
}


@pytest.fixture(params=CONFIGS, scope="module")
def scenes(request: pytest.FixtureRequest) -> Scenes:
    return generate(150, config=CONFIGS[request.param], seed=11)


def join(*parts: Scenes) -> Scenes:
    return Scenes(**{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Scenes)})


def differing(first: Scenes, second: Scenes) -> list[str]:
    names = [field.name for field in fields(Scenes)]
    return [name for name in names if not torch.equal(getattr(first, name), getattr(second, name))]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_scene_does_not_depend_on_its_batch(config: SceneConfig) -> None:
    whole = generate(70, config=config, seed=1, start=5)
    split = [generate(num, config=config, seed=1, start=start) for num, start in ((1, 5), (3, 6), (63, 9), (3, 72))]
    assert differing(whole, join(*split)) == []
    assert whole.captions == [caption for part in split for caption in part.captions]


def test_large_images_are_drawn_in_chunks_with_the_same_result() -> None:
    config = replace(MIXED, size=(224, 224))
    whole = generate(3, config=config, seed=1)
    assert differing(whole, join(*(generate(1, config=config, seed=1, start=index) for index in range(3)))) == []


def test_other_seeds_and_other_indices_give_other_scenes() -> None:
    scenes = join(generate(200, seed=0), generate(200, seed=1), generate(200, seed=2**62, start=10**9))
    assert len({image.tobytes() for image in scenes.images.numpy()}) == 600


def test_the_global_random_state_is_neither_read_nor_moved() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = generate(5, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert differing(first, generate(5, seed=0)) == []


def test_types_and_shapes(scenes: Scenes) -> None:
    num, slots, height, width = scenes.masks.shape
    assert scenes.images.shape == (num, 3, height, width)
    assert scenes.images.dtype == scenes.depth.dtype == torch.float32
    assert scenes.images.min() >= 0 and scenes.images.max() <= 1
    assert scenes.boxes.shape == (num, slots, 4) and scenes.depth.shape == (num, height, width)
    for name in ("present", "kinds", "colours"):
        assert getattr(scenes, name).shape == (num, slots)
    for name in ("count", "majority", "same", "background"):
        assert getattr(scenes, name).shape == (num,)


def test_masks_are_disjoint_and_agree_with_presence_and_boxes(scenes: Scenes) -> None:
    assert scenes.masks.sum(1).max() <= 1
    assert torch.equal(scenes.masks.flatten(2).any(2), scenes.present)
    for image, slot in scenes.present.nonzero().tolist():
        ys, xs = np.nonzero(scenes.masks[image, slot].numpy())
        assert scenes.boxes[image, slot].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    for name in ("kinds", "colours", "boxes"):
        assert (getattr(scenes, name)[~scenes.present] == -1).all()
        assert (getattr(scenes, name)[scenes.present] >= 0).all()


def test_pixels_have_the_colour_that_the_truth_says(scenes: Scenes) -> None:
    palette = torch.tensor(list(COLOURS.values()))
    palette = palette / palette.norm(dim=1, keepdim=True)
    for image, slot in scenes.present.nonzero().tolist():
        pixels = scenes.images[image][:, scenes.masks[image, slot]]  # (3, N)
        seen = pixels.mean(1)
        assert (palette @ (seen / seen.norm())).argmax() == scenes.colours[image, slot]
        assert pixels.shape[1] < 20 or pixels.std(1).max() < 0.04


def test_background_pixels_are_nearly_grey(scenes: Scenes) -> None:
    background = ~scenes.masks.any(1)
    spread = scenes.images.amax(1) - scenes.images.amin(1)  # (B, H, W)
    objects = spread[~background]
    assert spread[background].quantile(0.99) < 0.4 < objects.quantile(0.05)


def test_depth_is_one_value_an_object_rising_along_the_slots(scenes: Scenes) -> None:
    nothing = ~scenes.masks.any(1)
    for image in range(len(scenes.images)):
        values = [scenes.depth[image][mask].unique() for mask in scenes.masks[image][scenes.present[image]]]
        assert all(len(value) == 1 for value in values)
        assert (torch.cat(values).diff() > 0).all() and values[0] > 0 and values[-1] < 0.9
        if nothing[image].any():
            far = scenes.depth[image][nothing[image]]
            assert far.min() + 1e-6 >= 0.9 and far.max() <= 1
            assert (far == 1).all() or scenes.background[image] == BACKGROUNDS.index("graded")


@pytest.mark.parametrize("config", [MIXED, CROWDED])
def test_the_nearest_shape_owns_each_pixel(config: SceneConfig) -> None:
    scenes = generate(60, config=config, seed=2)
    layout, _ = module._place(shapes.image_keys(2, 0, 60), config)
    form = (layout.centres, layout.radii, layout.tilts, layout.kinds)
    whole = shapes.silhouettes(*form, scenes.present, size=config.size)  # (B, K, H, W)
    depths = layout.depths[:, :, None, None].where(whole, torch.tensor(2.0))
    nearest = depths.min(1)
    owner = torch.nn.functional.one_hot(nearest.indices, config.max_shapes).movedim(3, 1).bool()
    assert torch.equal(scenes.masks, owner & (nearest.values < 2)[:, None])
    assert torch.equal(scenes.depth[nearest.values < 2], nearest.values[nearest.values < 2])
    area = torch.tensor(shapes.AREAS)[layout.kinds] * (layout.radii * min(config.size)) ** 2
    assert ((scenes.masks.sum((2, 3)) / area)[scenes.present] >= module.MIN_VISIBLE).all()


def test_occlusion_leaves_out_a_shape_that_is_mostly_hidden_and_what_it_hid_comes_back() -> None:
    masks = torch.zeros(1, 3, 1, 10, dtype=torch.bool)
    masks[0, 0, 0, :6] = True
    masks[0, 1, 0, 4:8] = True  # 2 of 4 pixels are hidden
    masks[0, 2, 0, 5:10] = True
    assert shapes.occlude(masks).sum((2, 3)).tolist() == [[6, 2, 2]]
    assert shapes.occlude(masks, torch.tensor([[1, 3, 1]])).sum((2, 3)).tolist() == [[6, 0, 4]]


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_silhouettes_have_the_stated_area_however_they_are_tilted(kind: int) -> None:
    tilts = torch.tensor([[0.0, 0.2, -0.1]])
    radii, used = torch.tensor([[0.3, 0.25, 0.2]]), torch.tensor([[True, True, False]])
    masks = shapes.silhouettes(
        torch.full((1, 3, 2), 0.5), radii, tilts, torch.tensor([[kind] * 3]), used, size=(200, 200)
    )
    expected = shapes.AREAS[kind] * (radii * 200) ** 2
    assert torch.allclose(masks.sum((2, 3))[used].float(), expected[used], rtol=0.02)
    assert not masks[~used].any()


def test_labels_agree_with_the_objects(scenes: Scenes) -> None:
    for image in range(len(scenes.images)):
        here = scenes.present[image].tolist()
        pairs = list(zip(scenes.kinds[image].tolist(), scenes.colours[image].tolist(), strict=True))
        pairs = [pair for pair, is_here in zip(pairs, here, strict=True) if is_here]
        totals = sorted(((sum(colour == c for _, colour in pairs), c) for c in range(len(COLOURS))), reverse=True)
        assert scenes.count[image] == len(pairs) >= 1
        assert scenes.majority[image] == totals[0][1] and totals[0][0] > totals[1][0]
        assert scenes.same[image] == (len(set(pairs)) < len(pairs))


WORDS = dict(zip(shapes.NUMBERS, range(21), strict=True)) | {"a": 1}


def test_captions_say_what_is_there(scenes: Scenes) -> None:
    for image, caption in enumerate(scenes.captions):
        found = re.fullmatch(r"(\w+) (shapes?): (.+) on a (\w+) background", caption)
        assert found, caption
        total, noun, listed, background = found.groups()
        assert WORDS[total] == scenes.count[image] and noun == ("shape" if total == "one" else "shapes")
        assert BACKGROUNDS.index(background) == scenes.background[image]
        said = torch.zeros(len(KINDS), len(COLOURS), dtype=torch.int64)
        for phrase in re.split(r", | and ", listed):
            number, colour, kind = phrase.split()
            singular = kind if number == "a" else kind.removesuffix("es" if kind == "crosses" else "s")
            assert (number == "a") == (singular == kind)
            said[KINDS.index(singular), module.COLOUR_NAMES.index(colour)] += WORDS[number]
        here = scenes.present[image]
        truth = torch.zeros_like(said)
        for kind, colour in zip(scenes.kinds[image][here], scenes.colours[image][here], strict=True):
            truth[kind, colour] += 1
        assert torch.equal(said, truth)


def test_a_caption_reads_as_english() -> None:
    scenes = replace(
        generate(1, seed=0),
        kinds=torch.tensor([[0, 1, 0, 3, -1, 3]]),
        colours=torch.tensor([[1, 0, 1, 2, -1, 2]]),
        background=torch.tensor([2]),
    )
    assert scenes.captions == [
        "five shapes: two red discs, a blue square and two green crosses on a textured background"
    ]


@pytest.mark.parametrize(("small", "large"), [((32, 32), (224, 224)), ((32, 32), (96, 96)), ((32, 64), (70, 140))])
def test_the_same_scene_at_two_sizes(small: tuple[int, int], large: tuple[int, int]) -> None:
    first, second = (generate(20, config=replace(MIXED, size=size), seed=4) for size in (small, large))
    assert not set(differing(first, second)) - {"images", "masks", "boxes", "depth"}
    assert first.captions == second.captions
    shrunk = torch.nn.functional.interpolate(second.masks.float(), size=small, mode="area")
    assert (shrunk - first.masks.float()).abs().mean() < 0.01
    assert ((shrunk > 0.5) == first.masks).float().mean() > 0.99
    blurred = [torch.nn.functional.adaptive_avg_pool2d(scenes.images, 8) for scenes in (first, second)]
    assert (blurred[0] - blurred[1]).abs().mean() < 0.03


def test_labels_are_spread() -> None:
    scenes = generate(1500, seed=0)
    assert 0.3 < scenes.same.float().mean() < 0.7
    for labels, classes in ((scenes.majority, len(COLOURS)), (scenes.background, len(BACKGROUNDS))):
        shares = labels.bincount(minlength=classes) / len(labels)
        assert (shares > 0.7 / classes).all()
    assert ((scenes.count.bincount(minlength=13)[1:13] / 1500) > 0.03).all()
    for kind in range(len(KINDS)):
        assert (scenes.kinds[scenes.present] == kind).float().mean() == pytest.approx(0.25, abs=0.04)


def test_presets_differ_in_blank_area() -> None:
    coverage = [patch_coverage(generate(200, config=config, seed=0), 4) for config in (CROWDED, MIXED, SPARSE)]
    crowded, mixed, sparse = ((share < 0.02).float().mean() for share in coverage)
    assert crowded < 0.08 < 0.25 < mixed < 0.5 < 0.6 < sparse


def test_patch_coverage_counts_object_pixels() -> None:
    scenes = generate(3, config=replace(MIXED, size=(32, 48)), seed=0)
    coverage = patch_coverage(scenes, 8)
    assert coverage.shape == (3, 4, 6)
    block = scenes.masks[1, :, 8:16, 40:48].sum().item()  # masks are disjoint
    assert coverage[1, 1, 5].item() == pytest.approx(block / 64)
    assert coverage.mean((1, 2)).tolist() == pytest.approx(scenes.masks.any(1).float().mean((1, 2)).tolist())
    for patch in (0, 5, 32):
        with pytest.raises(ArgumentError, match="divides height and width"):
            patch_coverage(scenes, patch)


def test_items_read_the_generated_image() -> None:
    config = replace(SPARSE, size=(40, 30))
    items = scene_items(14, config=config, seed=0)
    item = pickle.loads(pickle.dumps(items[12]))
    assert len(items) == 14 and item == items[12] == SceneItem(seed=0, index=12, config=config)
    assert item.name == "scenes:sparse/seed0/000012"
    decoded = item.read()
    assert decoded.image.mode == "RGB" and decoded.image.size == (30, 40) and decoded.notes == ()
    pixels = torch.from_numpy(np.array(decoded.image)).permute(2, 0, 1) / 255
    truth = generate(14, config=config, seed=0).images[12]
    assert (pixels - truth).abs().max() <= 0.5 / 255 + 1e-6
    assert re.fullmatch("[0-9a-f]{64}", decoded.digest)
    assert decoded.digest == items[12].read().digest != items[13].read().digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (32,)}, "height, width"),
        ({"size": (8, 32)}, "at least 16"),
        ({"size": (32.0, 32)}, "whole numbers"),
        ({"min_shapes": 0}, "0 to 16 shapes"),
        ({"min_shapes": 5, "max_shapes": 4}, "5 to 4 shapes"),
        ({"max_shapes": 21}, "<= 20"),
        ({"radius": (0.2, 0.1)}, "farthest, nearest"),
        ({"radius": (0.01, 0.1)}, "0.08"),
        ({"kinds": ("disc", "star")}, "disc, square, triangle, cross"),
        ({"kinds": "disc"}, "tuple"),
        ({"palette": ()}, "blue, red, green"),
        ({"palette": ("red", "red")}, "palette"),
        ({"backgrounds": ("striped",)}, "plain, graded, textured"),
        ({"pixel_noise": 0.5}, "0 to 0.2"),
        ({"pixel_noise": float("nan")}, "0 to 0.2"),
    ],
)
def test_a_bad_config_is_refused_in_one_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)) as caught:
        SceneConfig(**change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"num": 0}, {"start": -1}, {"seed": -1}, {"seed": 2**63}])
def test_bad_ranges_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ArgumentError, match="give num >= 1"):
        generate(**({"num": 2, "seed": 0} | change))


def test_every_kind_has_a_name_of_its_own() -> None:
    """Two kinds of one seed and number are other images, so they must not be taken for one."""
    names = [scene_items(1, config=replace(config, size=(64, 64)), seed=3)[0].name for config in NAMED.values()]
    assert len(set(names)) == len(set(NAMED.values()))
    assert names[0] == "scenes/seed3/000000"
    assert scene_items(1, config=SceneConfig(palette=("red",)), seed=3)[0].name == "scenes/seed3/000000"
    single = generate(200, config=NAMED["scenes:single"], seed=0)
    assert set(single.count.tolist()) == {1}
    assert 0.04 < single.masks.any(1).float().mean() < 0.12
