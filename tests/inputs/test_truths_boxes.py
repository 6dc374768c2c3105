"""Boxes in the layouts of VOC, COCO 20k and CUB, written here; XML and lists that would do harm."""

import json
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitprobe.errors import InputError
from vitprobe.inputs import truth_coco
from vitprobe.inputs.geometry import CentreCrop, Geometry
from vitprobe.inputs.truth_coco import read_boxes
from vitprobe.inputs.truth_voc import CLASSES, read_xml
from vitprobe.inputs.truths import TruthSource, open_truths

SIZE = (30, 40)
"""Height and width of the pictures."""


def picture(path: Path, size: tuple[int, int] = SIZE, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1]).save(path, **options)
    return path


def stems(source: TruthSource) -> list[str]:
    return [Path(item.path).stem for item in source.items]


def voc_object(name: str, *corners: int, difficult: int = 0, parts: str = "") -> str:
    ends = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    box = "".join(f"<{end}>{number}</{end}>" for end, number in ends)
    return (
        f"<object><name>{name}</name><pose>Left</pose><truncated>1</truncated><difficult>{difficult}</difficult>"
        f"<bndbox>{box}</bndbox>{parts}</object>"
    )


PART = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"


def write_voc(base: Path, lists: dict[str, str], objects: dict[str, str]) -> Path:
    for name, text in lists.items():
        (base / "ImageSets" / name).parent.mkdir(parents=True, exist_ok=True)
        (base / "ImageSets" / name).write_text(text)
    (base / "Annotations").mkdir(parents=True, exist_ok=True)
    for name, inside in objects.items():
        picture(base / "JPEGImages" / f"{name}.jpg")
        text = f"<annotation><filename>{name}.jpg</filename><size><width>40</width></size>{inside}</annotation>"
        (base / "Annotations" / f"{name}.xml").write_text(text)
    return base


OBJECTS = {
    "000001": voc_object("dog", 1, 1, 10, 10) + voc_object("person", 11, 1, 40, 30, difficult=1, parts=PART),
    "000002": voc_object("cat", 5, 6, 7, 8),
    "000003": voc_object("bus", 1, 1, 40, 30),
    "000004": voc_object("car", 2, 3, 12, 13),
}
LISTS = {
    "Main/train.txt": "000001\n",
    "Main/val.txt": "000002\n000003\n000009\n",
    "Main/trainval.txt": "000001\n000002\n000003\n",
    "Main/cat_val.txt": "000002  1\n000003 -1\n",
    "Segmentation/train.txt": "000004\n",
    "Segmentation/val.txt": "000003\n",
}


@pytest.mark.parametrize("inside", ["VOC2007", "VOCdevkit/VOC2007", "."])
def test_voc(tmp_path: Path, inside: str) -> None:
    write_voc(tmp_path / inside, LISTS, OBJECTS)
    train = open_truths(f"voc2007:{tmp_path}", split="train")
    assert (train.name, stems(train), train.has) == ("voc2007, train", ["000001"], {"labels", "boxes"})
    size, boxes = train.raw_boxes(0)
    assert size == SIZE and boxes.tolist() == [[0, 0, 10, 10], [10, 0, 40, 30]]  # the difficult one is kept
    assert train.classes["class"] == CLASSES and CLASSES[train.labels["class"][0]] == "person"  # its box is larger
    assert train.boxes(0, Geometry((CentreCrop((30, 30)),))).tolist() == [[0, 0, 5, 10], [5, 0, 30, 30]]
    test = open_truths(f"voc2007:{tmp_path}", split="test")
    assert stems(test) == ["000002", "000003"]
    assert [CLASSES[at] for at in test.labels["class"]] == ["cat", "bus"]
    assert [(Path(name).name, why) for name, why in test.skipped] == [("000009.jpg", "no 000009.jpg in JPEGImages")]
    assert pickle.loads(pickle.dumps(test.items))[0].read().image.size == (40, 30)


def test_the_split_of_lost_leaves_nothing_to_train_on(tmp_path: Path) -> None:
    write_voc(tmp_path, LISTS, OBJECTS)
    assert stems(open_truths(f"voc2012:{tmp_path}:trainval", split="test")) == ["000001", "000002", "000003"]
    with pytest.raises(InputError, match="nothing is left to train on beside 'trainval'"):
        open_truths(f"voc2012:{tmp_path}:trainval", split="train")
    assert stems(open_truths(f"voc2012:{tmp_path}:cat_val", split="test")) == ["000002"]
    with pytest.raises(InputError, match=r"no file .*ImageSets/Main/dev.txt; ROOT must hold VOCdevkit"):
        open_truths(f"voc2012:{tmp_path}:dev", split="test")


def test_voc_with_masks(tmp_path: Path) -> None:
    base = write_voc(tmp_path, LISTS, OBJECTS)
    values = np.zeros(SIZE, np.uint8)
    values[2, 3:6] = (6, 20, 255)
    mask = Image.fromarray(values)
    mask.putpalette(list(range(256)) * 3)
    for name in ("000003", "000004"):
        (base / "SegmentationClass").mkdir(exist_ok=True)
        mask.save(base / "SegmentationClass" / f"{name}.png")
    found = open_truths(f"voc2012:{tmp_path}:segmentation", split="test")
    assert (stems(found), found.has) == (["000003"], {"labels", "boxes", "masks"})
    assert found.raw_mask(0)[2, 2:7].tolist() == [0, 6, 20, -1, 0]
    assert found.mask_classes[6] == "bus" and len(found.mask_classes) == 21
    assert stems(open_truths(f"voc2012:{tmp_path}:segmentation", split="train")) == ["000004"]
    assert "masks" not in open_truths(f"voc2012:{tmp_path}", split="test").has


BOMB = """<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><annotation>&b;</annotation>"""


def test_annotations_that_are_refused(tmp_path: Path) -> None:
    bad = {
        "a": BOMB,
        "b": BOMB.encode().decode().replace("<annotation>", '<annotation xmlns:x="http://x">'),
        "c": "<annotation><object></annotation>",
        "d": f"<annotation>{voc_object('dog', 9, 1, 9, 9).replace('<xmin>9</xmin>', '')}</annotation>",
        "e": f"<annotation>{voc_object('dog', 12, 1, 9, 9)}</annotation>",
        "f": f"<annotation>{voc_object('unicorn', 1, 1, 9, 9)}</annotation>",
        "g": '<!DOCTYPE annotation SYSTEM "http://example.org/x.dtd"><annotation/>',
    }
    base = write_voc(tmp_path, {"Main/val.txt": "\n".join([*bad, "good", "far"])}, dict.fromkeys([*bad, "good"], ""))
    for name, text in bad.items():
        (base / "Annotations" / f"{name}.xml").write_text(text)
    write_voc(base, {}, {"far": voc_object("dog", 1, 1, 99, 9)})
    found = open_truths(f"voc2007:{tmp_path}", split="test")
    assert stems(found) == ["good", "far"]
    assert found.labels["class"].tolist() == [-1, CLASSES.index("dog")] and found.raw_boxes(0)[1].shape == (0, 4)
    reasons = [why for _, why in found.skipped]
    starts = ("a.xml: declares a document type", "b.xml: declares a document type", "c.xml: no XML", "d.xml: an object")
    starts += ("e.xml: a box that ends before", "f.xml: class 'unicorn'", "g.xml: declares a document type")
    assert [why.startswith(start) for why, start in zip(reasons, starts, strict=True)] == [True] * 7, reasons
    with pytest.raises(InputError, match=r"far.jpg: 30 x 40 pixels, but its boxes reach to x, y = 99, 9"):
        found.raw_boxes(1)
    utf16 = base / "Annotations" / "wide.xml"
    utf16.write_bytes(BOMB.replace("?>", ' encoding="UTF-16"?>', 1).encode("utf-16"))
    with pytest.raises(InputError, match="declares a document type"):
        read_xml(utf16)


def test_lists_that_lead_out_of_the_folder(tmp_path: Path) -> None:
    write_voc(tmp_path / "voc", {"Main/val.txt": "../../secret\n"}, OBJECTS)
    picture(tmp_path / "secret.jpg")
    with pytest.raises(InputError, match=r"val.txt: '../../secret.jpg' leads out of .*JPEGImages"):
        open_truths(f"voc2007:{tmp_path / 'voc'}", split="test")


def coco(number: int, *box: float, crowd: int = 0) -> dict:
    return {"id": 1, "image_id": number, "bbox": list(box), "iscrowd": crowd, "segmentation": [[0.5, 1.5] * 9]}


ANNOTATIONS = [coco(9, 1.4, 2.6, 10.2, 5.0), coco(25, 0, 0, 4, 4, crowd=1), coco(9, 0, 0, 40, 30), coco(77, 1, 1, 2, 2)]
IMAGES = [{"id": number, "file_name": f"COCO_train2014_{number:012d}.jpg"} for number in (9, 25, 77)]
TRUTH = {"info": {"year": 2014, "x": [1, {"y": "]}"}]}, "images": IMAGES, "licenses": [], "annotations": ANNOTATIONS}


def write_coco(root: Path) -> None:
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "instances_train2014.json").write_text(json.dumps(TRUTH))
    for number in (9, 25, 77):
        picture(root / "train2014" / f"COCO_train2014_{number:012d}.jpg")
    names = [f"train2014/COCO_train2014_{number:012d}.jpg" for number in (25, 9, 31)]
    (root / "coco_20k_filenames.txt").write_text("\n".join(names))


def test_coco20k(tmp_path: Path) -> None:
    write_coco(tmp_path)
    found = open_truths(f"coco20k:{tmp_path}", split="test")
    assert (found.name, found.has, [int(stem[-12:]) for stem in stems(found)]) == ("coco20k", {"boxes"}, [25, 9])
    assert found.raw_boxes(0)[1].shape == (0, 4)  # a crowd
    assert found.raw_boxes(1)[1].tolist() == [[1, 3, 12, 8], [0, 0, 40, 30]]
    assert [(Path(name).stem[-2:], why) for name, why in found.skipped] == [("31", "no such file")]
    for text, split, says in (("", "train", "nothing to train on"), (":val", "test", "no split 'val'")):
        with pytest.raises(InputError, match=f"{says}; coco20k is one list"):
            open_truths(f"coco20k:{tmp_path}{text}", split=split)
    (tmp_path / "coco_20k_filenames.txt").unlink()
    with pytest.raises(
        InputError, match=r"no file .*coco_20k_filenames.txt.* github.com/valeoai/LOST, datasets/coco_20k"
    ):
        open_truths(f"coco20k:{tmp_path}", split="test")


@pytest.mark.parametrize("chunk", [1, 7, 2**20])
def test_a_large_file_is_read_in_parts(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truth_coco, "CHUNK", chunk)
    orders = (TRUTH, dict(reversed(TRUTH.items())), {"a": 12, **TRUTH, "b": None, "é": 1.5e3})
    for number, truth in enumerate(orders):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(truth, indent=number or None, ensure_ascii=False))
        made = read_boxes(path, {9, 25, 5})
        assert sorted(made) == [9, 25]
        assert made[9].tolist() == [[1, 3, 12, 8], [0, 0, 40, 30]] and made[25].shape == (0, 4)


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truth_coco, "CHUNK", 2**16)
    one = json.dumps(coco(1, 0, 0, 2, 2) | {"segmentation": [[0.25] * 400]})
    path = tmp_path / "large.json"
    path.write_text('{"images": [{"id": 1}], "annotations": [' + ", ".join([one] * 1000) + "]}")
    assert path.stat().st_size > 2e6
    tracemalloc.start()
    made = read_boxes(path, {1})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert made[1].shape == (1000, 4) and peak < 8e5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"images": [], "annotations": [{"image_id": 9', "no annotations as COCO writes them"),
        ('{"images": []}', "no annotations in it"),
        ("[1, 2]", "'\\[' where '{' is due"),
        ('{"images": [], "annotations": [{"image_id": 9, "bbox": [1, 2]}]}', "no annotations as COCO"),
        ('{"images": [3], "annotations": []}', "no annotations as COCO"),
        ('{"images": [], "x": ' + "[" * 100_000, "no annotations as COCO"),
        ("", "'' where '{' is due"),
    ],
)
def test_json_that_is_not_coco(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=says) as error:
        read_boxes(tmp_path / "x.json", {9})
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def write_cub(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    names = ("001.Black_footed_Albatross/a.jpg", "002.Laysan_Albatross/b.jpg", "002.Laysan_Albatross/c.jpg")
    for name in names:
        picture(root / "images" / name)
    lists = {
        "images": [f"{at} {name}" for at, name in enumerate(names, 1)],
        "image_class_labels": ["1 1", "2 2", "3 2"],
        "train_test_split": ["1 0", "2 1", "3 0"],
        "classes": ["1 001.Black_footed_Albatross", "2 002.Laysan_Albatross"],
        "bounding_boxes": ["1 6.0 7.0 20.0 10.0", "2 0.0 0.0 40.0 30.0", "3 1.0 2.0 3.0 4.0"],
    }
    for name, rows in lists.items():
        (root / f"{name}.txt").write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize("inside", [".", "CUB_200_2011"])
def test_cub(tmp_path: Path, inside: str) -> None:
    write_cub(tmp_path / inside)
    test, train = (open_truths(f"cub:{tmp_path}", split=split) for split in ("test", "train"))
    assert (stems(test), stems(train), test.has) == (["a", "c"], ["b"], {"labels", "boxes"})
    assert test.classes["class"] == ("Black_footed_Albatross", "Laysan_Albatross")
    assert (test.labels["class"].tolist(), train.labels["class"].tolist()) == ([0, 1], [1])
    assert test.raw_boxes(0)[0] == SIZE and test.raw_boxes(0)[1].tolist() == [[6, 7, 26, 17]]
    (tmp_path / inside / "images" / "002.Laysan_Albatross" / "c.jpg").unlink()
    assert [why for _, why in open_truths(f"cub:{tmp_path}", split="test").skipped] == ["no such file"]
    (tmp_path / inside / "image_class_labels.txt").write_text("2 2\n")
    with pytest.raises(InputError, match="its images and the lists beside it do not agree"):
        open_truths(f"cub:{tmp_path}", split="test")
    (tmp_path / inside / "images.txt").write_text("one a.jpg\n")
    with pytest.raises(InputError, match=r"images.txt: 'one a.jpg' is no number and 1 more words"):
        open_truths(f"cub:{tmp_path}", split="test")
