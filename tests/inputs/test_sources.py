"""Open what the INPUT arguments of a command can be: files, folders, globs, lists, Parquet files, tar shards."""

import io
import multiprocessing
import os
import pickle
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vitprobe.errors import ArgumentError, InputError
from vitprobe.inputs.images import Item
from vitprobe.inputs.sources import FileItem, Source, open_inputs

REPOSITORY = Path(__file__).resolve().parents[2]


def png(red: int = 0) -> bytes:
    """Return a PNG that is told apart by its red channel."""
    stream = io.BytesIO()
    Image.new("RGB", (4, 3), (red, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def reds(source: Source) -> list[int]:
    return [item.read().image.getpixel((0, 0))[0] for item in source.items]


def write(folder: Path, *names: str) -> None:
    """Write one image a name; the first is black, the next redder by one."""
    for red, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(red))


def below(source: Source, folder: Path) -> list[str]:
    return [os.path.relpath(item.name, folder) for item in source.items]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    write(
        folder, "b.png", "a/2.JPG", "a/10.png", "c.webp", "a.jpeg", ".hidden.png", ".cache/x.png", "notes.txt", "d.npy"
    )
    return folder


def test_folder_is_searched_below_in_order_of_path(photos: Path) -> None:
    source = open_inputs([str(photos)])
    assert below(source, photos) == ["a.jpeg", "a/10.png", "a/2.JPG", "b.png", "c.webp"]
    assert reds(source) == [4, 2, 1, 0, 3]
    assert (source.name, source.skipped, len(source)) == ("photos", (), 5)


def test_folder_names_what_cannot_be_read_and_survives_loops(photos: Path) -> None:
    (photos / "broken.png").symlink_to(photos / "gone.png")
    (photos / "linked.png").symlink_to(photos / "b.png")
    (photos / "a" / "up").symlink_to(photos)
    (photos / "turning").symlink_to(photos / "turning")
    (photos / "again").symlink_to(photos / "a")
    os.mkfifo(photos / "pipe.png")
    source = open_inputs([str(photos)])
    assert below(source, photos) == ["a.jpeg", "a/10.png", "a/2.JPG", "b.png", "c.webp", "linked.png"]
    assert source.skipped == ((f"{photos}/broken.png", "broken link"), (f"{photos}/pipe.png", "a pipe, not a file"))


def test_linked_folder_is_searched(photos: Path, tmp_path: Path) -> None:
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    (chosen / "class").symlink_to(photos / "a")
    assert below(open_inputs([str(chosen)]), chosen) == ["class/10.png", "class/2.JPG"]


def test_file_by_name_is_tried_whatever_its_suffix(photos: Path) -> None:
    source = open_inputs([str(photos / "d.npy"), str(photos / ".hidden.png")])
    assert reds(source) == [8, 5]
    assert source.name == "d.npy and 1 more"


def test_the_same_file_is_taken_once(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    source = open_inputs(["b.png", "./b.png", "b.png", str(photos / "b.png"), ".", "a"])
    assert [os.path.normpath(item.name) for item in source.items] == [
        "b.png",
        "a.jpeg",
        "a/10.png",
        "a/2.JPG",
        "c.webp",
    ]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["b.png"]),
        ("[abcn]*", ["a.jpeg", "a/10.png", "a/2.JPG", "b.png", "c.webp"]),
        ("**/*.png", ["a/10.png", "b.png"]),
        ("**", ["a.jpeg", "a/10.png", "a/2.JPG", "b.png", "c.webp"]),
        ("**/a", ["a/10.png", "a/2.JPG"]),
        ("[ab].*", ["a.jpeg", "b.png"]),
        ("*.npy", ["d.npy"]),
        ("{b,c,a/2}.*", ["b.png", "c.webp", "a/2.JPG"]),
        ("a/{2.JPG,10.png}", ["a/2.JPG", "a/10.png"]),
    ],
)
def test_globs_and_braces(photos: Path, pattern: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    absolute = open_inputs([f"{photos}/{pattern}"])
    assert sorted(below(absolute, photos)) == sorted(expected)
    monkeypatch.chdir(photos)
    relative = open_inputs([pattern])
    assert [item.name for item in relative.items] == [item.name.removeprefix(f"{photos}/") for item in absolute.items]
    if "{" in pattern:
        assert below(absolute, photos) == expected


def test_what_is_reached_through_links_is_taken_once(photos: Path) -> None:
    (photos / "a" / "up").symlink_to(photos)
    assert below(open_inputs([f"{photos}/**/*.png"]), photos) == ["a/10.png", "b.png"]
    assert sorted(reds(open_inputs([f"{photos}/*"]))) == [0, 1, 2, 3, 4]
    assert sorted(reds(open_inputs([f"{photos}/a/up/b.png", str(photos)]))) == [0, 1, 2, 3, 4]


def test_a_file_whose_name_is_a_pattern_is_that_file(tmp_path: Path) -> None:
    write(tmp_path, "a[1].png", "a1.png", "{x,y}.png", "*.png")
    assert reds(open_inputs([f"{tmp_path}/a[1].png"])) == [0]
    assert reds(open_inputs([f"{tmp_path}/{{x,y}}.png"])) == [2]
    assert reds(open_inputs([f"{tmp_path}/*.png"])) == [3]


def test_too_many_braces_are_refused() -> None:
    for text in ("x{0..999999999}.tar", "x{0..999}{0..999}.tar"):
        with pytest.raises(InputError, match="at most 100,000"):
            open_inputs([text])


def test_list_on_stdin(photos: Path) -> None:
    listed = f"{photos}/b.png\r\n\n{photos}/gone.png\n{photos}/a\n{photos}/b.png\n"
    source = open_inputs(["-"], stdin=io.StringIO(listed))
    assert below(source, photos) == ["b.png", "a/10.png", "a/2.JPG"]
    assert source.skipped == ((f"{photos}/gone.png", "no such file"),)
    assert source.name == "stdin"
    with pytest.raises(InputError, match="no image to read; give image files"):
        open_inputs(["-"], stdin=io.StringIO(""))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse names that are not UTF-8")
def test_odd_names_on_stdin_and_in_folders(tmp_path: Path) -> None:
    names = [b"-dash.png", b"a b.png", b"new\nline.png", b"\xff.png"]
    folder = os.fsencode(tmp_path)
    for red, name in enumerate(names):
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(png(red))
    stdin = io.TextIOWrapper(io.BytesIO(b"\0".join(folder + b"/" + name for name in names)), encoding="utf-8")
    listed = open_inputs(["-"], stdin=stdin)
    assert reds(listed) == [0, 1, 2, 3]
    assert reds(open_inputs([str(tmp_path)])) == [0, 1, 2, 3]
    assert listed.items[2].name == f"{tmp_path}/new\\nline.png"
    assert listed.items[3].name == f"{tmp_path}/\\udcff.png"
    stdin = io.TextIOWrapper(io.BytesIO(folder + b"/\xff.png\n"), encoding="utf-8")
    assert reds(open_inputs(["-"], stdin=stdin)) == [3]


def test_leading_dash_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "-x.png")
    monkeypatch.chdir(tmp_path)
    assert reds(open_inputs(["-x.png"])) == [0]


def test_missing_among_present_is_skipped(photos: Path) -> None:
    (photos / "empty").mkdir()
    os.mkfifo(photos / "fifo")
    inputs = [f"{photos}/{name}" for name in ("gone.png", "b.png", "x*.png", "empty", "fifo", "z.tar.gz")] + [""]
    (photos / "z.tar.gz").write_bytes(b"x")
    source = open_inputs(inputs)
    assert reds(source) == [0]
    assert source.skipped == (
        (f"{photos}/gone.png", "no such file"),
        (f"{photos}/x*.png", "matches no file"),
        (f"{photos}/empty", "no image, Parquet file or tar shard in this folder or below it"),
        (f"{photos}/fifo", "a pipe, not a file"),
        (f"{photos}/z.tar.gz", "a compressed archive; unpack it first, to a folder or a plain .tar"),
        ("''", "no such file"),
    )


def test_nothing_to_read_is_one_line_that_helps(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        open_inputs([f"{tmp_path}/{name}.png" for name in "abcde"], extra={"scenes": list, "samples": list})
    assert str(caught.value) == (
        f"no image to read: {tmp_path}/a.png: no such file; {tmp_path}/b.png: no such file; "
        f"{tmp_path}/c.png: no such file; and 2 more; give image files, folders, globs, Parquet files, tar shards "
        "or - (paths on stdin), or a name: samples, scenes"
    )
    with pytest.raises(InputError, match=r"^no input; give image files"):
        open_inputs([])


def test_extra_names_win_over_folders(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scenes() -> Sequence[Item]:
        return [FileItem(str(photos / "c.webp"))]

    monkeypatch.chdir(photos)
    source = open_inputs(["a"], extra={"a": scenes})
    assert (reds(source), source.name) == ([3], "a")
    assert reds(open_inputs(["./a"], extra={"a": scenes})) == [2, 1]


def test_limit_draws_a_subset_by_seed(tmp_path: Path) -> None:
    write(tmp_path, *(f"{number:02d}.png" for number in range(40)))
    draws = [reds(open_inputs([str(tmp_path)], limit=10, seed=seed)) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert draws[0] != list(range(10))
    assert all(draw == sorted(set(draw)) and len(draw) == 10 for draw in draws)
    assert len(open_inputs([str(tmp_path)], limit=40)) == len(open_inputs([str(tmp_path)], limit=99)) == 40
    for limit in (0, -1):
        with pytest.raises(ArgumentError, match=f"limit of {limit} images; give 1 or more"):
            open_inputs([str(tmp_path)], limit=limit)


def hub_rows(count: int) -> pa.Array:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": png(row), "path": f"{row}.png"} for row in range(count)], kind)


def test_parquet_of_the_hub(tmp_path: Path) -> None:
    table = pa.table({"caption": [f"text {row}" for row in range(25)], "image": hub_rows(25)})
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=10)
    source = open_inputs([str(tmp_path / "train.parquet")])
    assert reds(source) == list(range(25))
    assert source.items[17].name == f"{tmp_path}/train.parquet#17"
    assert [item.read().image.getpixel((0, 0))[0] for item in reversed(source.items)] == list(range(24, -1, -1))
    assert reds(open_inputs([str(tmp_path / "train.parquet")], limit=3, seed=5)) == [8, 19, 23]


def test_parquet_that_is_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for red in (3, 4):
        pq.write_table(pa.table({"image": [png(red)]}), path)
        os.utime(path, ns=(red, red))
        assert reds(open_inputs([str(path)])) == [red]


def test_folder_of_parquet_files(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for shard in range(2):
        pq.write_table(pa.table({"img": hub_rows(2)}), tmp_path / "data" / f"test-{shard}.parquet")
    pq.write_table(pa.table({"file_name": ["x"]}), tmp_path / "metadata.parquet")
    (tmp_path / "data" / "bad.parquet").write_bytes(b"PAR1 not really")
    source = open_inputs([str(tmp_path)])
    assert [os.path.basename(item.name) for item in source.items] == [
        "test-0.parquet#0", "test-0.parquet#1", "test-1.parquet#0", "test-1.parquet#1",
    ]  # fmt: skip
    [(name, reason)] = source.skipped
    assert name.endswith("bad.parquet")
    assert "\n" not in reason
    assert reason.startswith("not a Parquet file that can be read")


def test_parquet_in_other_layouts(tmp_path: Path) -> None:
    write(tmp_path, "x/0.png", "x/1.png")
    paths = pa.array(["x/1.png", str(tmp_path / "x/0.png")])
    structs = pa.array([{"bytes": None, "path": "x/1.png"}, {"bytes": png(0), "path": None}], hub_rows(1).type)
    tables = {
        "binary": {"label": [1, 2], "picture": [png(1), png(0)]},
        "large": {"picture": pa.array([png(1), png(0)], pa.large_binary())},
        "named": {"image": [png(1), png(0)], "mask": [png(8), png(9)]},
        "struct": {"thumbnail": [b"", b""], "photo": structs},
        "path": {"caption": ["one", "two"], "file_name": paths},
        "dictionary": {"image": paths.dictionary_encode()},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
        assert reds(open_inputs([str(tmp_path / f"{name}.parquet")])) == [1, 0], name


def test_parquet_without_a_clear_column_names_the_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"left": [b"x"], "right": [b"y"]}), path)
    with pytest.raises(InputError, match="columns left, right may all hold the image"):
        open_inputs([str(path)])
    pq.write_table(pa.table({"text": ["x"], "label": [1]}), path)
    with pytest.raises(InputError, match=r"no column of images among text \(string\), label \(int64\)"):
        open_inputs([str(path)])


def test_bad_rows_are_named_when_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    column = pa.array(
        [None, {"bytes": None, "path": "gone.png"}, {"bytes": b"text", "path": "t.png"}], hub_rows(1).type
    )
    pq.write_table(pa.table({"image": column}), path)
    source = open_inputs([str(path)])
    for item, reason in zip(source.items, ["holds no image", "no such file.*'gone.png'", "not an image"], strict=True):
        with pytest.raises(InputError, match=reason):
            item.read()
    damaged = bytearray(path.read_bytes())
    damaged[4:40] = bytes(36)
    path.write_bytes(damaged)
    with pytest.raises(InputError, match="damaged row group"):
        source.items[0].read()
    path.unlink()
    with pytest.raises(InputError, match="no such file"):
        source.items[0].read()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_tar_shards_take_one_image_a_sample(tmp_path: Path) -> None:
    members = {
        "000.txt": b"caption", "000.jpg": png(1), "000.seg.png": png(9), "000.json": b"{}",
        "dir/000.png": png(2), "._000.png": b"mac", "001.txt": b"no image", "long" * 60 + ".PNG": png(3),
    }  # fmt: skip
    write_tar(tmp_path / "a.tar", members)
    source = open_inputs([str(tmp_path / "a.tar")])
    assert reds(source) == [1, 2, 3]
    assert source.items[0].name == f"{tmp_path}/a.tar#000.jpg"
    assert source.items[1].name == f"{tmp_path}/a.tar#dir/000.png"


def test_brace_expansion_of_shards(tmp_path: Path) -> None:
    for shard in range(3):
        write_tar(tmp_path / f"s-{shard:03d}.tar", {"a.png": png(shard)})
    source = open_inputs([f"{tmp_path}/s-{{000..003}}.tar"])
    assert reds(source) == [0, 1, 2]
    assert source.skipped == ((f"{tmp_path}/s-003.tar", "no such file"),)
    assert reds(open_inputs([f"{tmp_path}/s-{{002..000}}.tar"])) == [2, 1, 0]
    assert reds(open_inputs([str(tmp_path)])) == [0, 1, 2]


def test_damaged_tars_give_what_they_hold_and_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, {f"{number}.png": png(number) for number in range(4)})
    whole = path.read_bytes()
    path.write_bytes(whole[: 3 * 1024 + 540])  # inside the data of the fourth member
    cut = open_inputs([str(path)])
    assert len(cut) == 4
    assert reds(Source("", cut.items[:3])) == [0, 1, 2]
    with pytest.raises(InputError, match="ends inside this member"):
        cut.items[3].read()
    assert cut.skipped[0][1].startswith("damaged after 4 images")
    path.write_bytes(whole[:2048] + b"\xff" * 512 + whole[2560:])  # the header of the third member
    broken = open_inputs([str(path)])
    assert reds(broken) == [0, 1]
    assert broken.skipped == ((str(path), "damaged after 2 images: no readable header at byte 2,048"),)
    for data, reason in (
        (b"", "empty file"),
        (b"text" * 300, "not a tar file"),
        (bytes(10240), "no image in this tar"),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match=reason):
            open_inputs([str(path)])


def _read_names(items: Sequence[Item], results: "multiprocessing.Queue[list[tuple[str, str]]]") -> None:
    results.put([(item.name, item.read().digest) for item in items])


def test_items_are_read_in_a_spawned_process(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    write_tar(tmp_path / "b.tar", {"0.png": png(1)})
    pq.write_table(pa.table({"image": hub_rows(2)}), tmp_path / "c.parquet")
    items = open_inputs([str(tmp_path)]).items
    assert pickle.loads(pickle.dumps(items)) == items
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_read_names, args=(items, results))
    process.start()
    assert results.get(timeout=60) == [(item.name, item.read().digest) for item in items]
    process.join(timeout=60)


def test_listing_reads_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pa.array([{"bytes": b"x", "path": None}] * 50_000, hub_rows(1).type)
    pq.write_table(pa.table({"image": rows}), tmp_path / "a.parquet", row_group_size=1000)
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda *_a, **_k: pytest.fail("read"))
    assert len(open_inputs([str(tmp_path)])) == 50_000


def test_real_images() -> None:
    data = Path(os.environ.get("VITPROBE_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (data / "cifar10" / "test.parquet").exists() or not (data / "imagenet-sample").exists():
        pytest.skip(f"no real images in {data}; set VITPROBE_DATA")
    cifar = open_inputs([str(data / "cifar10" / "test.parquet")])
    assert len(cifar) == 10_000
    assert cifar.items[9_999].read().image.size == (32, 32)
    sample = open_inputs([str(data / "imagenet-sample")], limit=20)
    assert len(sample) == 20
    assert all(min(item.read().image.size) <= 320 for item in sample.items)
