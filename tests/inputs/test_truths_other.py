"""ImageNet's folders and whatever else is taken: which images are to train on, which to test on, and their classes."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torchvision.datasets as sets
from PIL import Image
from scipy.io import savemat

from vitprobe.errors import ArgumentError, InputError
from vitprobe.inputs.named_sets import KnownFile, named_parts, open_named
from vitprobe.inputs.truths import TruthSource, open_truths

DATA = Path(os.environ.get("VITPROBE_DATA", Path(__file__).parents[3] / "shared" / "data"))


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name)
    return root


def paths(source: TruthSource) -> list[str]:
    return [str(Path(*Path(item.path).parts[-3:])) for item in source.items]


def spoken(source: TruthSource) -> list[str]:
    return [source.classes["class"][at] for at in source.labels["class"]]


def test_imagenet(tmp_path: Path) -> None:
    write(tmp_path, "val/n02/x.JPEG", "val/n01/y.JPEG", "val/n02/a.png", "train/n01/t.JPEG", "train/n03/u.JPEG")
    (tmp_path / "val" / "n02" / "list.txt").write_text("no image")
    test, train = (open_truths(f"imagenet:{tmp_path}", split=split) for split in ("test", "train"))
    assert paths(test) == ["val/n01/y.JPEG", "val/n02/a.png", "val/n02/x.JPEG"]
    assert (test.name, spoken(test), test.has) == ("imagenet, val", ["n01", "n02", "n02"], {"labels"})
    assert test.classes["class"] == ("n01", "n02", "n03") and spoken(train) == ["n01", "n03"]
    write(tmp_path, "flat/a.JPEG")
    with pytest.raises(InputError, match=r"flat holds no folder of a class; sort its images into folders, flat/WNID"):
        open_truths(f"imagenet:{tmp_path}:flat", split="test")


def test_folders_with_splits(tmp_path: Path) -> None:
    write(tmp_path, *(f"{split}/{name}/1.png" for split, name in (("train", "b"), ("train", "a"), ("val", "b"))))
    test, train = (open_truths(str(tmp_path), split=split) for split in ("test", "train"))
    assert (paths(test), spoken(test), test.classes["class"]) == (["val/b/1.png"], ["b"], ("a", "b"))
    assert (paths(train), spoken(train)) == (["train/a/1.png", "train/b/1.png"], ["a", "b"])
    assert (test.name, train.name) == (f"{tmp_path.name}, test", f"{tmp_path.name}, train")
    assert paths(open_truths(str(tmp_path), split="whole")) == paths(test)
    write(tmp_path, "test/7.png")  # as in Kaggle's ImageNet: a test set without classes
    assert paths(open_truths(str(tmp_path), split="test")) == ["val/b/1.png"]
    write(tmp_path, "test/a/8.png")
    assert [path[-5:] for path in paths(open_truths(f"{tmp_path}/test", split="whole"))] == ["7.png", "8.png"]


def test_a_class_that_is_not_trained_on_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png")
    with pytest.raises(InputError, match=r"class 'c' of test .* is not among the 2 classes"):
        open_truths(str(tmp_path), split="test")


def test_plain_pictures_have_no_labels(tmp_path: Path) -> None:
    write(tmp_path, *(f"{number}.png" for number in range(10)))
    whole, test, train = (open_truths(str(tmp_path), split=split, seed=2) for split in ("whole", "test", "train"))
    assert (len(whole), len(test), len(train), whole.has) == (10, 2, 8, frozenset())
    assert sorted(paths(test) + paths(train)) == paths(whole) and paths(test) == sorted(paths(test))
    assert (whole.name, test.name) == (tmp_path.name, f"{tmp_path.name}, test")
    assert {tuple(paths(open_truths(str(tmp_path), split="test", seed=seed))) for seed in range(9)} != {(*paths(test),)}
    assert len(open_truths(str(tmp_path), split="train", limit=3)) == 3
    with pytest.raises(ArgumentError, match="none can be"):
        open_truths(str(tmp_path / "1.png"), split="test")
    with pytest.raises(InputError, match="no such file"):
        open_truths(str(tmp_path / "gone"), split="whole")


def test_a_fifth_of_each_class_is_held_out(tmp_path: Path) -> None:
    write(tmp_path, *(f"{name}/{number}.png" for name, count in (("a", 20), ("b", 10)) for number in range(count)))
    test, train = (open_truths(str(tmp_path), split=split) for split in ("test", "train"))
    assert np.bincount(test.labels["class"]).tolist() == [4, 2] and np.bincount(train.labels["class"]).tolist() == [
        16,
        8,
    ]
    assert not set(paths(test)) & set(paths(train))
    few = write(tmp_path / "few", *(f"{name}/1.png" for name in "abcdefghij"))
    assert open_truths(str(few), split="test").has == frozenset()  # one of each: no class can be split
    assert open_truths(str(few), split="whole").has == {"labels"}


@pytest.mark.parametrize(
    "names",
    [
        ("train.parquet", "test.parquet"),
        ("data/train-00000-of-00001.parquet", "data/validation-00000-of-00001-f00d.parquet"),
    ],
)
def test_parquet_files_with_splits(tmp_path: Path, names: tuple[str, str]) -> None:
    image = write(tmp_path / "one", "x.png") / "x.png"
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    (tmp_path / "set" / "data").mkdir(parents=True)
    for name, labels in zip(names, ([0, 3, 5, 5], [5, 3]), strict=True):
        rows = pa.array([{"bytes": image.read_bytes(), "path": None}] * len(labels), kind)
        pq.write_table(pa.table({"image": rows, "label": labels}), tmp_path / "set" / name)
    test, train = (open_truths(str(tmp_path / "set"), split=split) for split in ("test", "train"))
    assert (spoken(test), spoken(train), test.classes["class"]) == (["5", "3"], ["0", "3", "5", "5"], ("0", "3", "5"))
    assert pickle.loads(pickle.dumps(test.items))[0].read().image.size == (4, 4)


def write_textures(root: Path) -> None:
    base = root / "dtd" / "dtd"
    for split, lines in (
        ("train", ["woven/a.jpg", "dotted/b.jpg"]),
        ("val", ["woven/c.jpg"]),
        ("test", ["woven/d.jpg", "dotted/e.jpg"]),
    ):
        (base / "labels").mkdir(parents=True, exist_ok=True)
        write(base / "images", *lines)
        (base / "labels" / f"{split}1.txt").write_text("\n".join(lines))


def test_named_sets_have_their_own_splits(tmp_path: Path) -> None:
    write_textures(tmp_path)
    text = f"torchvision:DTD:{tmp_path}"
    test, train, val = (
        open_truths(text + part, split=split) for part, split in (("", "test"), ("", "train"), (":val", "test"))
    )
    assert [Path(item.path).stem for item in (*train.items, *val.items, *test.items)] == ["a", "b", "c", "d", "e"]
    assert (test.name, test.classes["class"], spoken(test)) == ("DTD, test", ("dotted", "woven"), ["woven", "dotted"])
    assert paths(open_truths(f"{text}:val", split="train")) == paths(train)
    (tmp_path / "dtd" / "dtd" / "labels" / "train1.txt").rename(tmp_path / "dtd" / "train1.txt")
    assert spoken(open_truths(text, split="test")) == ["woven", "dotted"]  # it takes no training images
    with pytest.raises(InputError, match="nothing is left to train on beside the split that it names"):
        open_truths(f"{text}:train", split="train")


def test_parts_of_named_sets(tmp_path: Path) -> None:
    root = write(tmp_path, "train/a/1.png", "validation/a/1.png")
    for text, train, test in (
        ("torchvision:CIFAR10:data", "torchvision:CIFAR10:data:train", "torchvision:CIFAR10:data:test"),
        ("torchvision:OxfordIIITPet:data:download", ":data:trainval:download", ":data:test:download"),
        ("torchvision:Places365:data", ":train-standard", ":val"),
        ("torchvision:DTD:data:val", ":data:train", ":data:val"),
        ("torchvision:SUN397:data", None, None),
        ("timm:torch/cifar10:data", ":train", ":validation"),
        ("timm:torch/cifar10:data:train", None, ":train"),
        (f"timm:folder:{root}", f"{root}:train", f"{root}:validation"),
        (f"timm:folder:{root}/train", None, None),
    ):
        for made, ending in zip(named_parts(text), (train, test), strict=True):
            assert made is None if ending is None else made.endswith(ending), text


def write_cars(root: Path) -> None:
    base = root / "stanford_cars"
    write(base, "cars_train/00001.jpg", "cars_train/00002.jpg", "cars_test/00001.jpg")
    kind = [("fname", object), ("class", object)]
    (base / "devkit").mkdir()
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": np.array(["AM General Hummer", "Acura RL"], object)})
    rows = np.array([("00001.jpg", 2), ("00002.jpg", 1)], kind)
    savemat(base / "devkit" / "cars_train_annos.mat", {"annotations": rows})
    savemat(
        base / "cars_test_annos_withlabels.mat", {"annotations": np.array([("00001.jpg", 1), ("00001.jpg", 1)], kind)}
    )


def write_sun(root: Path) -> None:
    names = [
        f"{letter}/{place}/sun_{number}.jpg" for letter, place in (("b", "bar"), ("a", "abbey")) for number in range(5)
    ]
    write(root / "SUN397", *names)
    (root / "SUN397" / "ClassName.txt").write_text("/a/abbey\n/b/bar\n")


def write_caltech(root: Path) -> None:
    names = [
        f"{name}/image_{number:04d}.jpg" for name in ("ant", "BACKGROUND_Google", "yin_yang") for number in range(1, 6)
    ]
    write(root / "caltech101" / "101_ObjectCategories", *names)


def write_places(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets.places365, "check_integrity", lambda path, md5=None: os.path.isfile(path))
    write(root, "data_large_standard/a/abbey/1.jpg", "data_large_standard/b/bar/2.jpg", "val_large/3.jpg")
    (root / "categories_places365.txt").write_text("/a/abbey 0\n/b/bar 1\n")
    (root / "places365_train_standard.txt").write_text("/a/abbey/1.jpg 0\n/b/bar/2.jpg 1\n")
    (root / "places365_val.txt").write_text("3.jpg 1\n")


def test_the_rest_of_the_papers_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cars(tmp_path)
    write_sun(tmp_path)
    write_caltech(tmp_path)
    write_places(tmp_path, monkeypatch)
    cars = open_truths(f"torchvision:StanfordCars:{tmp_path}", split="train")
    assert spoken(cars) == ["Acura RL", "AM General Hummer"] and paths(cars)[1] == "stanford_cars/cars_train/00002.jpg"
    assert spoken(open_truths(f"torchvision:StanfordCars:{tmp_path}", split="test")) == ["AM General Hummer"] * 2
    for name, classes in (("SUN397", ("a/abbey", "b/bar")), ("Caltech101", ("ant", "yin_yang"))):
        text = f"torchvision:{name}:{tmp_path}"
        test, train = (open_truths(text, split=split) for split in ("test", "train"))
        assert test.classes["class"] == (classes if name == "Caltech101" else ("abbey", "bar"))
        for source, each in ((test, 1), (train, 4)):
            assert np.bincount(source.labels["class"]).tolist() == [each, each]
            assert all(label in item.path for item, label in zip(source.items, spoken(source), strict=True))
        assert all(isinstance(item, KnownFile) and item.read().image.size == (4, 4) for item in test.items)
        listed = [item.path for item in open_named(text).items]
        assert listed == sorted(listed)
    places = [open_truths(f"torchvision:Places365:{tmp_path}", split=split) for split in ("train", "test")]
    assert [spoken(source) for source in places] == [["/a/abbey", "/b/bar"], ["/b/bar"]]
    assert paths(places[1])[0].endswith("val_large/3.jpg")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("StanfordCars", "Dataset not found; .* must hold stanford_cars/ [^:]*$"),  # no page has it any more
        ("SUN397", "Dataset not found; .* must hold SUN397/ .*:download$"),
        ("Caltech101", "Dataset not found; .* must hold caltech101/.*:download$"),
        ("Places365", "categories_places365.txt does not exist or is corrupted; .*:train-standard:download$"),
    ],
)
def test_a_named_set_that_is_not_there(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        open_truths(f"torchvision:{name}:{tmp_path}", split="train")
    assert list(tmp_path.iterdir()) == []  # torchvision would make a folder
    with pytest.raises(InputError, match=f"no split 'dev'; {name} has"):
        open_truths(f"torchvision:{name}:{tmp_path}:dev", split="test")


@pytest.fixture
def data() -> Callable[[str], str]:
    """The function ``data(name)``: the path of real images, or skip."""

    def find(name: str) -> str:
        if not (DATA / name).exists():
            pytest.skip(f"no {name} in {DATA}; set VITPROBE_DATA")
        return str(DATA / name)

    return find


def test_cifar_10_itself(data: Callable[[str], str]) -> None:
    train, test = (open_truths(data("cifar10"), split=split) for split in ("train", "test"))
    assert (len(train), len(test), train.classes) == (50_000, 10_000, test.classes)
    column = pq.read_table(Path(data("cifar10")) / "test.parquet", columns=["label"]).column("label").to_numpy()
    assert np.array_equal(test.labels["class"], column)
    few = open_truths(data("cifar10"), split="test", limit=30, seed=4)
    assert [int(label) for label in spoken(few)] == [int(column[item.row]) for item in few.items]


def test_imagenet_sample_itself(data: Callable[[str], str]) -> None:
    whole = open_truths(data("imagenet-sample"), split="whole", limit=40)
    assert [Path(item.path).parent.name for item in whole.items] == spoken(whole)
    test, train = (open_truths(data("imagenet-sample"), split=split) for split in ("test", "train"))
    assert (len(test), len(train), test.has) == (200, 800, frozenset())  # an image a class cannot be split by class
