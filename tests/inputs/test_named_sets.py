"""Open data sets of torchvision and timm from folders made here: labels without reading images, and what is missing."""

import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torchvision.datasets as sets
from PIL import Image

from vitprobe.errors import InputError
from vitprobe.inputs.labels import open_labelled
from vitprobe.inputs.named_sets import TORCHVISION, KnownFile, KnownRow, is_named, open_named


def write_mnist(root: Path) -> np.ndarray:
    """Write 6 training and 4 test images of 28 x 28 px as MNIST lies on disk; returns the training images."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)
    for part, count in (("train", 6), ("t10k", 4)):
        head = struct.pack(">IIII", 0x803, count, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + pixels[:count].tobytes())
        labels = bytes(range(3, 3 + count))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels)
    return pixels


def test_a_set_whose_images_are_no_files(tmp_path: Path) -> None:
    pixels = write_mnist(tmp_path)
    found = open_labelled([f"torchvision:MNIST:{tmp_path}"], need="labels")
    assert len(found.classes) == 10
    assert [found.classes[at] for at in found.labels] == [
        "3 - three", "4 - four", "5 - five", "6 - six", "7 - seven", "8 - eight",
    ]  # fmt: skip
    assert [item.name for item in found.items][-1] == f"torchvision:MNIST:{tmp_path}#5"
    first, copy = found.items[0].read(), pickle.loads(pickle.dumps(found.items[0])).read()
    assert first.image.mode == "RGB"
    assert np.array_equal(np.array(first.image), np.repeat(pixels[0][:, :, None], 3, 2))
    assert first.digest == copy.digest != found.items[1].read().digest
    assert len(open_labelled([f"torchvision:MNIST:{tmp_path}:test"], need="nothing")) == 4


def test_timm_gives_the_same(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    ours, theirs = open_named(f"torchvision:MNIST:{tmp_path}:test"), open_named(f"timm:torch/mnist:{tmp_path}:val")
    assert ours.classes == theirs.classes
    assert [item.label for item in ours.items] == [item.label for item in theirs.items]
    assert [item.read().digest for item in ours.items] == [item.read().digest for item in theirs.items]


def test_cifar_10_as_it_is_distributed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are pickles, which torchvision loads only where their digests are the published ones."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rows = np.random.default_rng(0).integers(0, 256, (2, 3 * 32 * 32), np.uint8)
    contents = {
        "test_batch": {"data": rows, "labels": [1, 0]},
        "batches.meta": {"label_names": ["plane", "car"]},
    }
    for name, value in contents.items():
        (folder / name).write_bytes(pickle.dumps(value))
    text = f"torchvision:CIFAR10:{tmp_path}:test"
    with pytest.raises(
        InputError, match=r"not found or corrupted; .* must hold cifar-10-batches-py/ .*:test:download$"
    ):
        open_named(text)
    digests = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in contents}
    monkeypatch.setattr(sets.CIFAR10, "train_list", [])
    monkeypatch.setattr(sets.CIFAR10, "test_list", [["test_batch", digests["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": digests["batches.meta"]}
    monkeypatch.setattr(sets.CIFAR10, "meta", meta)
    found = open_labelled([text], need="captions", caption="class")
    assert found.captions == ["a photo of a car", "a photo of a plane"]
    assert np.array_equal(np.array(found.items[1].read().image), rows[1].reshape(3, 32, 32).transpose(1, 2, 0))


def write_textures(root: Path) -> None:
    base = root / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    lines = ["woven/a.jpg", "dotted/b.jpg", "woven/c.jpg"]
    for number, line in enumerate(lines):
        (base / "images" / line).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(base / "images" / line)
    (base / "labels" / "train1.txt").write_text("\n".join(lines))


def test_a_set_of_files_is_read_as_files(tmp_path: Path) -> None:
    write_textures(tmp_path)
    found = open_named(f"torchvision:DTD:{tmp_path}:train")
    assert found.classes == ("dotted", "woven")
    assert [type(item) for item in found.items] == [KnownFile] * 3
    assert [(item.label, Path(item.path).name) for item in found.items] == [
        ("woven", "a.jpg"),
        ("dotted", "b.jpg"),
        ("woven", "c.jpg"),
    ]
    Path(found.items[0].path).unlink()
    with pytest.raises(InputError, match="no such file"):
        found.items[0].read()


def test_folders_through_timm(tmp_path: Path) -> None:
    for name in ("train/b/1.png", "train/a/1.png", "val/a/1.png", "val/a/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    for name in ("folder", "torch/image_folder"):
        train = open_named(f"timm:{name}:{tmp_path}")
        assert sorted(item.label for item in train.items) == ["a", "b"] == list(train.classes)
        held = open_labelled([f"timm:{name}:{tmp_path}:val"], need="labels", classes=("a", "b"))
        assert (held.labels.tolist(), held.classes) == ([0, 0], ("a", "b"))


def test_an_image_that_the_set_cannot_give() -> None:
    with pytest.raises(InputError, match="the data set cannot read it: list index out of range"):
        KnownRow("made", [], 3, None).read()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("torchvision:MNIST", "no folder; give LIBRARY:NAME:ROOT"),
        ("timm::{}", "no name; give"),
        ("torchvision:CIFAR11:{}", "no set 'CIFAR11'; of torchvision's there are CIFAR10, .*as that folder"),
        ("torchvision:MNIST:{}:dev", "no split 'dev'; MNIST has train, test$"),
        ("torchvision:MNIST:{}", "Dataset not found; .* must hold MNIST/ with raw/.*:download$"),
        ("torchvision:Food101:{}:test", "must hold food-101/ with images/ and meta/"),
        ("timm:torch/cifar10:{}:trian", "no split 'trian'; give one of train, validation"),
        ("timm:torch/cifar10:{}:train", "corrupted; .* must hold cifar-10-batches-py/.*:train:download$"),
        ("timm:torch/nabirds:{}", "no set 'torch/nabirds'; give folder, hfds/USER/NAME or torch/ and cifar10"),
        ("timm:folder:{}/gone", "no such folder; .*gone must hold the set, or folders of classes$"),
        ("timm:wds/set:{}", "a stream, not drawn from at random; give its shards or Parquet files"),
        ("timm:hfds/user/name:{}", "the hub is asked for it; give its Parquet files, or say so: .*:download$"),
    ],
)
def test_what_is_not_there_says_what_is_needed(
    text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((sets.MNIST, "download"), (sets.CIFAR10, "download")):
        monkeypatch.setattr(module, name, lambda _self: pytest.fail("something is fetched"))
    with pytest.raises(InputError, match=says) as error:
        open_labelled([text.format(tmp_path)], need="labels")
    assert "\n" not in str(error.value)


def test_fetching_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets.MNIST, "download", lambda self: write_mnist(Path(self.root)))
    assert len(open_named(f"torchvision:MNIST:{tmp_path}:train:download").items) == 6
    asked = {}
    monkeypatch.setattr(timm.data, "create_dataset", lambda name, **options: asked.update(options) or sets.FakeData())
    with pytest.raises(InputError, match="its labels cannot be listed"):
        open_named(f"timm:torch/cifar10:{tmp_path}:train:download")
    assert asked["download"] is True


def test_names_are_told_from_paths(tmp_path: Path) -> None:
    assert [is_named(text) for text in ("timm:x:y", "torchvision:x", "timm", "photos/timm:x", "scenes:sparse")] == [
        True, True, False, False, False,
    ]  # fmt: skip
    odd = tmp_path / "a:test"
    write_mnist(odd)
    assert len(open_named(f"torchvision:MNIST:{odd}").items) == 6  # a folder of that name is that folder
    assert len(open_named(f"torchvision:MNIST:{odd}:test").items) == 4


def test_the_table_names_what_torchvision_has() -> None:
    for name, known in TORCHVISION.items():
        made = getattr(sets, name)
        assert issubclass(made, sets.VisionDataset)
        assert ("train" in made.__init__.__code__.co_varnames) == known.has_train_flag
