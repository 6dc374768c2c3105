"""Open images with their labels and captions: from folders, Parquet columns and the members of tar shards."""

import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vitprobe.errors import ArgumentError, InputError
from vitprobe.inputs.labels import Labelled, open_labelled

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("VITPROBE_DATA", REPOSITORY.parent / "shared" / "data"))


def png(red: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 3), (red, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def write(folder: Path, *names: str) -> Path:
    for red, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(red))
    return folder


def parquet(path: Path, metadata: Mapping[bytes, bytes] | None = None, **columns: Any) -> str:
    """Write the columns beside images that are redder from row to row."""
    count = len(next(iter(columns.values())))
    table = pa.table({"image": [{"bytes": png(red), "path": None} for red in range(count)], **columns})
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=3)
    return str(path)


def tar(path: Path, **members: bytes) -> str:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(path)


def names(found: Labelled) -> list[str]:
    return [found.classes[at] for at in found.labels]


def reds(found: Labelled) -> list[int]:
    return [item.read().image.getpixel((0, 0))[0] for item in found.items]


def test_folders_are_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "zebra/1.png", "ant/1.png", "ant/2.png", "deep/er/bee/1.png")
    found = open_labelled([str(tmp_path)], need="labels")
    assert found.classes == ("ant", "bee", "zebra")
    assert found.labels.dtype == np.int64
    assert names(found) == ["ant", "ant", "bee", "zebra"] == [Path(i.path).parent.name for i in found.items]
    assert (found.captions, found.skipped, len(found)) == (None, (), 4)
    monkeypatch.chdir(tmp_path / "ant")
    assert names(open_labelled(["1.png", "./2.png", "../zebra/1.png"], need="labels")) == ["ant", "ant", "zebra"]


def test_nothing_needed_is_nothing_looked_for(tmp_path: Path) -> None:
    found = open_labelled([str(write(tmp_path, "1.png"))], need="nothing")
    assert (found.labels, found.captions, found.classes, len(found)) == (None, None, (), 1)


def test_parquet_numbers_words_and_named_numbers(tmp_path: Path) -> None:
    numbers = open_labelled([parquet(tmp_path / "a.parquet", label=[10, 2, 10, 9])], need="labels")
    assert numbers.classes == ("2", "9", "10")
    assert numbers.labels.tolist() == [2, 0, 2, 1]
    words = pa.array(["b", "a", "b"]).dictionary_encode()
    assert names(open_labelled([parquet(tmp_path / "b.parquet", Class=words)], need="labels")) == ["b", "a", "b"]
    feature = {"info": {"features": {"label": {"names": ["zebra", "bee", "ant"], "_type": "ClassLabel"}}}}
    named = parquet(tmp_path / "c.parquet", {b"huggingface": json.dumps(feature).encode()}, label=[2, 0, -1, 2])
    found = open_labelled([named], need="labels")
    assert found.classes == ("zebra", "bee", "ant")  # all of them, in the file's own order
    assert (names(found), reds(found)) == (["ant", "zebra", "ant"], [0, 1, 3])
    assert found.skipped == ((f"{named}#2", "no label"),)
    both = open_labelled([named, parquet(tmp_path / "d.parquet", label=["bee", "cow"])], need="labels")
    assert both.classes == ("ant", "bee", "cow", "zebra")
    too_many = parquet(tmp_path / "e.parquet", {b"huggingface": json.dumps(feature).encode()}, label=[0, 3])
    with pytest.raises(InputError, match="holds 3, but its schema names 3 classes"):
        open_labelled([too_many], need="labels")


def test_parquet_is_read_once_and_never_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, calls, read = parquet(tmp_path / "a.parquet", label=[0, 1] * 50), [], pq.ParquetFile.read

    def counted(self: pq.ParquetFile, **options: Any) -> pa.Table:
        calls.append(options["columns"])
        return read(self, **options)

    monkeypatch.setattr(pq.ParquetFile, "read", counted)
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda *_a, **_k: pytest.fail("an image is read"))
    assert len(open_labelled([path], need="labels")) == 100
    assert calls == [["label"]]


@pytest.mark.parametrize(
    ("columns", "options", "says"),
    [
        ({"score": [1.5]}, {}, r"a\.parquet: no column of labels among image .*, score \(double\); looked for label,"),
        ({"label": [[1], [2]]}, {}, r"no column of labels among .*label \(list<"),
        ({"label": [1], "fine_label": [2]}, {}, "columns label and fine_label may both hold the labels"),
        ({"label": [1]}, {"label": "kind"}, "no column of labels .*; looked for kind"),
        ({"kind": [1.5]}, {"label": "kind"}, r"column 'kind' cannot hold labels .*kind \(double\)"),
        ({"label": [1, 1]}, {}, "^one class only: all 2 images of a.parquet are '1', their label"),
        ({"label": pa.array([None, None], pa.int64())}, {}, "^none of the 2 images of a.parquet has a label; looked"),
        ({"a": ["x"]}, {"need": "captions"}, "no column of captions among"),
        (
            {"text": ["x"], "caption": ["y"]},
            {"need": "captions"},
            "columns text and caption may both hold the captions",
        ),
        ({"label": [1, 2]}, {"caption": "class"}, "class '1' is a number, and no caption can be made of it"),
    ],
)
def test_what_cannot_be_settled_is_one_line(
    tmp_path: Path, columns: dict[str, Any], options: dict[str, str], says: str
) -> None:
    with pytest.raises(InputError, match=says) as error:
        open_labelled([parquet(tmp_path / "a.parquet", **columns)], **{"need": "labels", **options})
    assert "\n" not in str(error.value)


def test_the_column_named_is_taken(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", label=[0, 0], coarse=["x", "y"], text=["t", "u"], note=["long", "short"])
    found = open_labelled([path], label="coarse", caption="note", need="labels")
    assert (names(found), found.captions) == (["x", "y"], None)
    assert open_labelled([path], caption="note", need="captions").captions == ["long", "short"]
    assert open_labelled([path], need="captions").captions == ["t", "u"]


def test_tar_members_beside_the_image(tmp_path: Path) -> None:
    by_member = tar(
        tmp_path / "a.tar",
        **{"0.cls": b"7\n", "0.jpg": png(0), "0.txt": b" a\n  dog ", "0.json": b'{"label": 5}'},
        **{"1.jpg": png(1), "1.seg.png": png(99), "1.cls.txt": b"12", "1.caption": b"two"},
        **{"2.jpg": png(2), "2.json": b'{"label": "7", "Caption": ["three", "drei"]}'},
        **{"3.jpg": png(3), "3.json": b"not json"},
        **{"d/0.jpg": png(4), "d/0.cls": b"7"},
    )
    found = open_labelled([by_member], need="labels")
    assert (found.classes, names(found), reds(found)) == (("7", "12"), ["7", "12", "7", "7"], [0, 1, 2, 4])
    assert found.skipped == ((f"{by_member}#3.jpg", "no label"),)
    told = open_labelled([by_member], need="captions")
    assert (told.captions, reds(told)) == (["a dog", "two", "three"], [0, 1, 2])
    by_key = tar(tmp_path / "b.tar", **{"0.jpg": png(), "0.json": b'{"kind": 3}', "1.jpg": png(), "1.kind": b"4"})
    assert names(open_labelled([by_key], label="kind", need="labels")) == ["3", "4"]
    with pytest.raises(InputError, match=r"none of the 2 images of b.tar has a label; .*\.json, named label, .*\.cls"):
        open_labelled([by_key], need="labels")


def test_damaged_tar_keeps_what_stands_before_the_damage(tmp_path: Path) -> None:
    path = Path(
        tar(tmp_path / "a.tar", **{f"{n}.{e}": d for n in range(3) for e, d in (("jpg", png(n)), ("cls", b"%d" % n))})
    )
    whole = path.read_bytes()
    path.write_bytes(whole[: 4 * 1024] + b"\xff" * 512 + whole[4 * 1024 + 512 :])
    found = open_labelled([str(path)], need="labels")
    assert (names(found), len(found.skipped)) == (["0", "1"], 1)
    assert "damaged after 2 images" in found.skipped[0][1]


def test_captions_of_class_names(tmp_path: Path) -> None:
    write(tmp_path, "n01440764/1.png", "n01443537_gold_fish/1.png", "traffic_light/1.png")
    found = open_labelled([str(tmp_path)], need="captions", caption="class")
    assert found.captions == ["a photo of a tench", "a photo of a gold fish", "a photo of a traffic light"]
    assert found.classes == ("n01440764", "n01443537_gold_fish", "traffic_light")
    with pytest.raises(InputError, match="no WordNet number that timm knows; call it n00000000_WORD"):
        open_labelled([str(write(tmp_path, "n00000000/1.png"))], need="captions", caption="class")
    with pytest.raises(InputError, match=r"none of the .* images of .* has a caption; .*'class' makes captions"):
        open_labelled([str(tmp_path)], need="captions")


def test_classes_of_another_part(tmp_path: Path) -> None:
    train = open_labelled([str(write(tmp_path / "train", "b/1.png", "c/1.png", "a/1.png"))], need="labels")
    held = write(tmp_path / "val", "c/1.png", "c/2.png")
    found = open_labelled([str(held)], need="labels", classes=train.classes)
    assert (found.classes, found.labels.tolist()) == (("a", "b", "c"), [2, 2])
    write(held, "newt/1.png")
    with pytest.raises(
        InputError, match=r"class 'newt' of val \(1 images, such as .*newt/1.png\) .* 3 classes .*a, b, c"
    ):
        open_labelled([str(held)], need="labels", classes=train.classes)
    with pytest.raises(
        InputError, match=r"^one class only: all 2 images of c are 'c', the folder that holds them; put"
    ):
        open_labelled([str(held / "c")], need="labels")


def test_arguments_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="need 'pictures'; give one of labels"):
        open_labelled([str(tmp_path)], need="pictures")
    with pytest.raises(ArgumentError, match="limit of 0"):
        open_labelled([str(tmp_path)], need="nothing", limit=0)


def labelled(*counts: int) -> Labelled:
    """So many images of each class, the classes in turn as long as they last."""
    rows = sorted((at / count, label) for label, count in enumerate(counts) for at in range(count))
    labels = np.array([label for _, label in rows])
    texts = [f"{at}" for at in range(len(labels))]
    return Labelled("made", texts, labels, tuple("abcdefgh"[: len(counts)]), texts, ())


def test_split_takes_its_share_of_each_class() -> None:
    whole = labelled(60, 30, 10)
    rest, held = whole.split(20, seed=0)
    assert np.bincount(held.labels).tolist() == [12, 6, 2]
    assert sorted([*map(int, rest.items), *map(int, held.items)]) == list(range(100))
    for part in (rest, held):
        assert list(map(int, part.items)) == sorted(map(int, part.items))
        assert part.captions == list(part.items)
        assert part.labels.tolist() == [int(whole.labels[int(item)]) for item in part.items]
    assert whole.split(20, seed=0)[1].items == held.items != whole.split(20, seed=1)[1].items
    drawn = np.concatenate([np.array(whole.split(20, seed=seed)[1].items, int) for seed in range(100)])
    assert np.bincount(drawn, minlength=100).min() > 5  # each is expected 20 times


def test_split_leaves_one_of_each_class() -> None:
    rest, held = labelled(5, 2, 1).split(5, seed=3)
    assert np.bincount(rest.labels).tolist() == [1, 1, 1]
    assert np.bincount(held.labels).tolist() == [4, 1]
    for few, says in (((5, 2, 1), "1 to 5 can be, since one of each of 3 classes"), ((1, 1), "none can be")):
        with pytest.raises(ArgumentError, match=says):
            labelled(*few).split(6, seed=0)
    assert np.bincount(labelled(5, 2, 1).sample(7, seed=0).labels).sum() == 7  # which may take all of a class
    with pytest.raises(ArgumentError, match="give 1 to 8"):
        labelled(5, 2, 1).sample(9, seed=0)


def test_split_without_labels(tmp_path: Path) -> None:
    found = open_labelled([str(write(tmp_path, *(f"{n}.png" for n in range(10))))], need="nothing")
    rest, held = found.split(3, seed=0)
    assert (len(rest), len(held), held.labels) == (7, 3, None)
    assert {item.path for item in rest.items} | {item.path for item in held.items} == {i.path for i in found.items}
    with pytest.raises(ArgumentError, match=r"10 of the 10 images .* 1 to 9 can be"):
        found.split(10, seed=0)


@pytest.fixture
def data() -> Callable[[str], str]:
    """The function ``data(name)``: the path of real images, or skip."""

    def find(name: str) -> str:
        if not (DATA / name).exists():
            pytest.skip(f"no {name} in {DATA}; set VITPROBE_DATA")
        return str(DATA / name)

    return find


def test_cifar_10(data: Callable[[str], str]) -> None:
    train = open_labelled([data("cifar10/train.parquet")], need="labels")
    held = open_labelled([data("cifar10/test.parquet")], need="labels", classes=train.classes)
    assert train.classes == held.classes == tuple("0123456789")
    assert np.bincount(train.labels).tolist() == [5000] * 10
    column = pq.read_table(data("cifar10/test.parquet"), columns=["label"]).column("label").to_numpy()
    assert np.array_equal(held.labels, column)
    few = open_labelled([data("cifar10/test.parquet")], need="labels", limit=50, seed=1)
    assert [int(label) for label in few.labels] == [int(column[item.row]) for item in few.items]


def test_imagenet_words_are_those_of_the_file_names(data: Callable[[str], str]) -> None:
    found = open_labelled([data("imagenet-sample")], need="captions", caption="class")
    assert len(found) == len(found.classes) == 1000
    words = [Path(item.path).stem.partition("_")[2].replace("_", " ") for item in found.items]
    assert [caption.removeprefix("a photo of a ").lower() for caption in found.captions] == [w.lower() for w in words]
