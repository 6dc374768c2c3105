"""Scenes with their truths, and masks in the layouts of CamVid, ADE20K and one's own; what is missing is said."""

import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitprobe.backbones import load
from vitprobe.errors import ArgumentError, InputError
from vitprobe.inputs.geometry import Geometry, read_geometry
from vitprobe.inputs.scene_shapes import COLOURS
from vitprobe.inputs.scene_stream import FIRST_HELD_OUT
from vitprobe.inputs.sources import FileItem
from vitprobe.inputs.truth_files import file_boxes, file_mask
from vitprobe.inputs.truth_masks import CAMVID
from vitprobe.inputs.truths import HAS, LAYOUTS, READERS, TruthSource, layout_help, open_truths

DATA = Path(os.environ.get("VITPROBE_DATA", Path(__file__).parents[3] / "shared" / "data"))


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def stems(source: TruthSource) -> list[str]:
    return [Path(item.path).stem for item in source.items]


def test_one_shape_lies_where_the_scene_says() -> None:
    """Mask, box, depth and colour of the only shape, against the picture itself."""
    found = open_truths("scenes:single", split="test", limit=12, seed=3)
    assert (found.name, len(found), found.depth_unit) == ("scenes:single, test", 12, "of the farthest")
    assert found.has == frozenset(HAS)
    geometry = read_geometry(load("organism").transform.apply)
    palette = np.array(list(COLOURS.values()))  # (6, 3)
    for index, item in enumerate(pickle.loads(pickle.dumps(found.items))):
        assert item.index == FIRST_HELD_OUT + index
        pixels = np.asarray(item.read().image) / 255.0  # (224, 224, 3)
        mask, depth, boxes = (one(index, geometry) for one in (found.mask, found.depth, found.boxes))
        on = mask > 0
        rows, cols = np.flatnonzero(on.any(1)), np.flatnonzero(on.any(0))
        assert boxes.tolist() == [[cols[0], rows[0], cols[-1] + 1, rows[-1] + 1]]
        assert found.mask_classes[mask[on][0]] in found.captions[index]
        assert mask.dtype == np.int64 and depth.dtype == np.float32 and mask.shape == depth.shape == (224, 224)
        assert depth[on].max() < depth[~on].min()
        colour = pixels[on].mean(0)
        shades = (palette @ colour) / np.linalg.norm(palette, axis=1)  # a shade is darker, and as blue
        assert found.labels["majority"][index] == shades.argmax()
        assert found.labels["count"][index] == 0 and found.labels["same"][index] == 0
        assert found.classes["background"][found.labels["background"][index]] in found.captions[index]


def test_crowded_scenes() -> None:
    found = open_truths("scenes:crowded", split="train", limit=3)
    for index, item in enumerate(found.items):
        assert item.index == index
        size, boxes = found.raw_boxes(index)
        assert size == (224, 224) and len(boxes) == found.labels["count"][index] + 1
        assert int(found.classes["count"][found.labels["count"][index]]) == len(boxes)
        mask = found.raw_mask(index)
        for x0, y0, x1, y1 in boxes.astype(int):
            assert mask[y0:y1, x0:x1].any()
        whole = boxes[:, 0].min(), boxes[:, 1].min(), boxes[:, 2].max(), boxes[:, 3].max()
        rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert whole == (cols[0], rows[0], cols[-1] + 1, rows[-1] + 1)


def test_numbers_of_scenes() -> None:
    train, test = (open_truths("scenes:sparse", split=split, seed=1) for split in ("train", "test"))
    assert (len(train), len(test)) == (512, 256)
    assert not {item.index for item in train.items} & {item.index for item in test.items}
    assert {len(labels) for labels in test.labels.values()} == {len(test.captions)} == {256}
    assert open_truths("scenes:sparse", split="whole", limit=2, seed=1).items == test.items[:2]
    other = open_truths("scenes:sparse", split="test", seed=2)
    assert not np.array_equal(other.labels["majority"], test.labels["majority"])


def write_masks(root: Path, split: str, classes: dict[str, np.ndarray], suffix: str = "jpg") -> None:
    for name, mask in classes.items():
        save(root / split / "images" / f"{name}.{suffix}", np.zeros((*mask.shape, 3), np.uint8))
        save(root / split / "masks" / f"{name}.png", mask)


def test_camvid(tmp_path: Path) -> None:
    mask = np.array([[0, 10, 11], [4, 4, 11]], np.uint8)
    write_masks(tmp_path, "test", {"b": mask, "a": mask[:, ::-1]})
    save(tmp_path / "test" / "images" / "bare.jpg", np.zeros((2, 3, 3), np.uint8))
    write_masks(tmp_path, "val", {"c": mask})
    found = open_truths(f"camvid:{tmp_path}", split="test")
    assert (found.name, found.mask_classes, found.has) == ("camvid, test", CAMVID, {"masks"})
    assert stems(found) == ["a", "b"]
    assert found.raw_mask(1).tolist() == [[0, 10, -1], [4, 4, -1]] and found.raw_mask(1).dtype == np.int64
    assert found.mask(0, Geometry()).tolist() == [[-1, 10, 0], [-1, 4, 4]]
    assert found.skipped == ((str(tmp_path / "test" / "images" / "bare.jpg"), "no mask"),)
    assert stems(open_truths(f"camvid:{tmp_path}:val", split="test")) == ["c"]
    with pytest.raises(InputError, match=r"no folder .*/train/images; ROOT must hold SPLIT/images/.*get it from"):
        open_truths(f"camvid:{tmp_path}:val", split="train")
    write_masks(tmp_path, "train", {"d": mask})
    assert stems(open_truths(f"camvid:{tmp_path}:val", split="train")) == ["d"]
    with pytest.raises(InputError, match="nothing is left to train on beside 'train'"):
        open_truths(f"camvid:{tmp_path}:train", split="train")


def test_masks_that_do_not_fit(tmp_path: Path) -> None:
    write_masks(tmp_path, "test", {"a": np.full((2, 2), 12, np.uint8), "b": np.zeros((2, 2), np.uint8)})
    save(tmp_path / "test" / "images" / "b.jpg", np.zeros((2, 4, 3), np.uint8))
    write_masks(tmp_path, "test", {"c": np.zeros((2, 2), np.uint8), "d": np.zeros((2, 2), np.uint8)})
    save(tmp_path / "test" / "masks" / "c.png", np.zeros((2, 2, 3), np.uint8))
    (tmp_path / "test" / "masks" / "d.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    found = open_truths(f"camvid:{tmp_path}", split="test")
    says = ("a.png: class number 12; allowed are 0 to 10, and 11 for void", "b.png: 2 x 2 pixels, but its image b.jpg")
    for index, text in enumerate((*says, "c.png: a picture of mode RGB", "d.png: ")):
        with pytest.raises(InputError, match=text) as error:
            found.raw_mask(index)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_and_boxes_turn_with_the_picture(orientation: int, tmp_path: Path) -> None:
    values = np.zeros((32, 48), np.uint8)
    values[3:19, 5:30] = 1
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    Image.fromarray(values * 255).save(path, exif=exif)
    seen = np.asarray(FileItem(str(path)).read().image)[..., 0] // 255
    mask = save(tmp_path / "mask.png", values)
    assert np.array_equal(file_mask([(str(path), str(mask))], 255, 0, 2, 0), seen)
    size, boxes = file_boxes([str(path)], [np.array([[5.0, 3.0, 30.0, 19.0]])], 0)
    rows, cols = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    assert size == seen.shape and boxes.tolist() == [[cols[0], rows[0], cols[-1] + 1, rows[-1] + 1]]
    save(mask, seen)  # upright already, which shows where the sides change places
    assert orientation < 5 or np.array_equal(file_mask([(str(path), str(mask))], 255, 0, 2, 0), seen)


def grey_png(values: np.ndarray, bits: int) -> bytes:
    """A grey PNG of 1, 2 or 4 bits a pixel, as tools write that make files small."""
    height, width = values.shape
    rows = [int("".join(f"{value:0{bits}b}" for value in row).ljust(8, "0"), 2).to_bytes(1, "big") for row in values]
    assert width * bits <= 8
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)),)
    chunks += ((b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), (b"IEND", b""))
    parts = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_masks_of_ones_own(tmp_path: Path) -> None:
    values = np.array([[0, 3], [255, 1]], np.uint8)
    write_masks(tmp_path, "val", {"a": values}, suffix="png")
    write_masks(tmp_path, "train", {"b": values * 0, "two": values, "four": values, "palette": values})
    palette = Image.fromarray(values % 4)
    palette.putpalette([9, 9, 9] * 256)
    palette.save(tmp_path / "train" / "masks" / "palette.png")
    for name, bits in (("two", 2), ("four", 4)):
        (tmp_path / "train" / "masks" / f"{name}.png").write_bytes(grey_png(values % 4, bits))
    test, train = (open_truths(f"masks:{tmp_path}", split=split) for split in ("test", "train"))
    assert test.mask_classes == train.mask_classes == ("0", "1", "2", "3")
    assert test.raw_mask(0).tolist() == [[0, 3], [-1, 1]]
    assert stems(train) == ["b", "four", "palette", "two"]
    for index in (1, 2, 3):
        assert train.raw_mask(index).tolist() == [[0, 3], [3, 1]]
    (tmp_path / "classes.txt").write_text("grass\nsky\n")
    named = open_truths(f"masks:{tmp_path}:train", split="test")
    assert named.mask_classes == ("grass", "sky")
    with pytest.raises(InputError, match=r"four.png: class number 3; allowed are 0 to 1"):
        named.raw_mask(1)


@pytest.mark.parametrize("inside", [".", "ADEChallengeData2016"])
def test_ade20k(tmp_path: Path, inside: str) -> None:
    root = tmp_path / inside
    for part, name in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        save(root / "images" / part / f"{name}.jpg", np.zeros((1, 4, 3), np.uint8))
        save(root / "annotations" / part / f"{name}.png", np.array([[0, 1, 2, 150]], np.uint8))
    found = open_truths(f"ade20k:{tmp_path}", split="test")
    assert (stems(found), found.raw_mask(0).tolist()) == (["ADE_val_00000001"], [[-1, 0, 1, 149]])
    assert found.mask_classes == tuple(str(number) for number in range(1, 151))
    rows = [f"{number}\t0.1\t9\t9\t1\tclass {number}, word" for number in range(1, 151)]
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tStuff\tName", *rows]))
    train = open_truths(f"ade20k:{tmp_path}", split="train")
    assert (train.name, stems(train)) == ("ade20k, training", ["ADE_train_00000001"])
    assert (train.mask_classes[0], train.mask_classes[149]) == ("class 1", "class 150")
    (root / "objectInfo150.txt").write_text("\n".join(rows[:149]))
    with pytest.raises(InputError, match="no class 150; a table of 150"):
        open_truths(f"ade20k:{tmp_path}", split="train")


def test_a_limit_draws_by_seed_in_order(tmp_path: Path) -> None:
    write_masks(tmp_path, "test", {f"{number:02d}": np.full((1, 1), number % 10, np.uint8) for number in range(20)})
    some, same, other = (open_truths(f"camvid:{tmp_path}", split="test", limit=8, seed=seed) for seed in (0, 0, 1))
    assert stems(some) == stems(same) == sorted(stems(some)) != stems(other)
    for index, stem in enumerate(stems(some)):
        assert some.raw_mask(index)[0, 0] == int(stem) % 10
    assert len(open_truths(f"camvid:{tmp_path}", split="test", limit=99)) == 20


@pytest.mark.parametrize("name", READERS)
def test_what_is_missing_is_said_in_one_line(name: str, tmp_path: Path) -> None:
    for text in (f"{name}:{tmp_path}", f"{name}:{tmp_path}/gone"):
        with pytest.raises(InputError) as error:
            open_truths(text, split="test")
        said = str(error.value)
        assert said.startswith(f"{text}: no ") and "\n" not in said and str(tmp_path) in said.partition(";")[0]
        assert LAYOUTS[name].layout in said and LAYOUTS[name].source in said
    with pytest.raises(InputError, match=f"no folder; give {name}:ROOT"):
        open_truths(f"{name}:", split="test")


def test_values_that_are_not_allowed() -> None:
    for options, says in (({"split": "dev"}, "split 'dev'; allowed are train, test"), ({"limit": 0}, "limit of 0")):
        with pytest.raises(ArgumentError, match=says):
            open_truths("scenes", **{"split": "test"} | options)
    with pytest.raises(ArgumentError, match="got 'scenes:empty'; allowed are scenes, "):
        open_truths("scenes:empty", split="test")


def test_the_help_names_every_set() -> None:
    rows = layout_help()
    assert [grammar.partition(":")[0] for grammar, _, _ in rows[1:-1]] == list(READERS)
    for (grammar, has, layout), known in zip(rows, LAYOUTS.values(), strict=True):
        assert grammar == known.grammar and set(has.split(", ")) <= set(HAS) and known.layout in layout


def test_camvid_itself() -> None:
    if not (DATA / "camvid").exists():
        pytest.skip(f"no camvid in {DATA}; set VITPROBE_DATA")
    text = f"camvid:{DATA / 'camvid'}"
    assert [len(open_truths(text, split=split)) for split in ("train", "test")] == [367, 233]
    assert len(open_truths(f"{text}:val", split="test")) == 101
    found = open_truths(text, split="test", limit=12)
    transform = load("organism").transform
    geometry = read_geometry(transform.apply)
    bright = []
    for index, item in enumerate(found.items):
        mask = found.mask(index, geometry)
        assert mask.shape == (224, 224) and {-1, 10} >= {min(-1, mask.min()), max(10, mask.max())}
        rows = np.arange(224)[:, None] * np.ones((1, 224))
        assert rows[mask == CAMVID.index("sky")].mean() < rows[mask == CAMVID.index("road")].mean()
        pixels = transform.pixels(transform.apply(item.read().image)[None])[0].mean(0).numpy()  # (224, 224)
        bright.append(pixels[mask == CAMVID.index("sky")].mean() - pixels[mask == CAMVID.index("tree")].mean())
    assert np.min(bright) > 0.1  # the sky is brighter than the trees in front of it
