"""Depths of NYU Depth V2, by lists of files as BTS lays them out and from the labelled MATLAB file."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from vitprobe.errors import InputError
from vitprobe.inputs.geometry import CentreCrop, Geometry, Resize
from vitprobe.inputs.truths import TruthSource, open_truths

MILLIMETRES = np.array([[0, 1, 1500], [9999, 10000, 10001]], np.uint16)
METRES = np.array([[np.nan, 0.001, 1.5], [9.999, 10.0, np.nan]], np.float32)


def write(folder: Path, *pairs: tuple[str, str]) -> None:
    for image, depth in pairs:
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2)).save(folder / image)
        Image.fromarray(MILLIMETRES).save(folder / depth)


def names(source: TruthSource) -> list[str]:
    return [Path(item.path).name for item in source.items]


PAIRS = (
    ("bathroom/rgb_00045.jpg", "bathroom/sync_depth_00045.png"),
    ("kitchen_0001/rgb_00001.jpg", "kitchen_0001/sync_depth_00001.png"),
)


@pytest.mark.parametrize(
    ("part", "table", "folder"),
    [
        ("train", "nyudepthv2_train_files_with_gt.txt", "sync"),
        ("test", "nyudepthv2_test_files_with_gt.txt", "official_splits/test"),
        ("test", "train_test_inputs/nyudepthv2_test_files_with_gt.txt", "test"),
        ("test", "nyu_test.txt", "."),
    ],
)
def test_lists_of_files(part: str, table: str, folder: str, tmp_path: Path) -> None:
    write(tmp_path / folder, *PAIRS)
    rows = [f"/{image} /{depth} 518.8579" for image, depth in PAIRS]  # the lists of BTS begin with a slash, or not
    rows += ["/hall/rgb_1.jpg /hall/sync_depth_1.png 518.8579", f"{PAIRS[0][0]} None 518.8579"]
    (tmp_path / table).parent.mkdir(exist_ok=True)
    (tmp_path / table).write_text("\n".join(rows))
    found = open_truths(f"nyud:{tmp_path}", split=part)
    assert (found.name, found.has, found.depth_unit) == (f"nyud, {part}", {"depth"}, "m")
    assert names(found) == ["rgb_00045.jpg", "rgb_00001.jpg"]
    depth = found.raw_depth(1)
    assert depth.dtype == np.float32 and np.array_equal(depth, METRES, equal_nan=True)
    seen = found.depth(0, Geometry((Resize((4, 6)), CentreCrop((2, 8)))))
    expected = np.full((2, 8), np.nan, np.float32)
    expected[:, 1:7] = METRES.repeat(2, 0).repeat(2, 1)[1:3]
    assert np.array_equal(seen, expected, equal_nan=True)
    (lost, why), bare = found.skipped
    assert (lost, bare) == ("/hall/rgb_1.jpg", (PAIRS[0][0], "no depth")) and why.startswith("no such file: ")
    assert pickle.loads(pickle.dumps(found.items))[0].read().image.size == (3, 2)


def test_lists_and_files_that_are_refused(tmp_path: Path) -> None:
    table = tmp_path / "nyudepthv2_test_files_with_gt.txt"
    write(tmp_path / "test", *PAIRS)
    table.write_text(f"{PAIRS[0][0]} ../../secret.png 5\n")
    with pytest.raises(InputError, match=r"nyudepthv2_test_files_with_gt.txt: '../../secret.png' leads out of"):
        open_truths(f"nyud:{tmp_path}", split="test")
    table.write_text("gone/a.jpg gone/a.png 5\n")
    with pytest.raises(InputError, match=r"no pair of files of nyudepthv2_test.* github.com/cleinc/bts"):
        open_truths(f"nyud:{tmp_path}", split="test")
    table.write_text("\n".join(" ".join(pair) for pair in PAIRS))
    with pytest.raises(InputError, match="no split 'val'; nyud has train and test"):
        open_truths(f"nyud:{tmp_path}:val", split="test")
    found = open_truths(f"nyud:{tmp_path}", split="test")
    Image.new("L", (3, 2)).save(tmp_path / "test" / PAIRS[0][1])
    Image.fromarray(MILLIMETRES[:, :2].copy()).save(tmp_path / "test" / PAIRS[1][1])
    for index, says in enumerate(("mode L; a PNG of one 16-bit number", "2 x 2 pixels, but its image rgb_00001.jpg")):
        with pytest.raises(InputError, match=says):
            found.raw_depth(index)


def write_mat(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Write 5 images of 4 x 6 px as MATLAB does, in its order; returns images (5, 4, 6, 3) and depths (5, 4, 6)."""
    h5py = pytest.importorskip("h5py")
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (5, 4, 6, 3), np.uint8)
    depths = generator.uniform(0.5, 9.5, (5, 4, 6)).astype(np.float32)
    depths[:, 0, 0], depths[:, 1, 1] = 0.0, 10.5
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"], file["depths"] = images.transpose(0, 3, 2, 1), depths.transpose(0, 2, 1)
    savemat(root / "splits.mat", {"trainNdxs": np.array([[1], [3]]), "testNdxs": np.array([[5], [2], [4]])})
    return images, depths


def test_the_labelled_file(tmp_path: Path) -> None:
    images, depths = write_mat(tmp_path)
    test, train = (open_truths(f"nyud:{tmp_path}", split=split) for split in ("test", "train"))
    assert (len(test), len(train), test.has, test.depth_unit) == (3, 2, {"depth"}, "m")
    for source, rows in ((test, (4, 1, 3)), (train, (0, 2))):
        for index, (item, row) in enumerate(zip(pickle.loads(pickle.dumps(source.items)), rows, strict=True)):
            assert item.name == f"{tmp_path / 'nyu_depth_v2_labeled.mat'}#{row}"
            assert np.array_equal(np.asarray(item.read().image), images[row])
            depth = source.raw_depth(index)
            assert np.argwhere(np.isnan(depth)).tolist() == [[0, 0], [1, 1]]
            assert np.array_equal(np.where(np.isnan(depth), depths[row], depth), depths[row])
    assert len({item.read().digest for item in test.items}) == 3
    savemat(tmp_path / "splits.mat", {"trainNdxs": np.array([[9]]), "x": 1})
    for split, says in (("train", r"do not fit splits.mat"), ("test", "no testNdxs in it")):
        with pytest.raises(InputError, match=says):
            open_truths(f"nyud:{tmp_path}", split=split)
    (tmp_path / "nyu_depth_v2_labeled.mat").write_bytes(b"MATLAB 5.0")
    with pytest.raises(InputError, match="damaged, or no HDF5"):
        open_truths(f"nyud:{tmp_path}", split="train")
    with pytest.raises(InputError, match="damaged, or no HDF5"):
        test.items[0].read()


def test_without_h5py_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nyu_depth_v2_labeled.mat").write_bytes(b"x")
    with pytest.raises(InputError, match=r"no file .*splits.mat; ROOT must hold"):
        open_truths(f"nyud:{tmp_path}", split="test")
    savemat(tmp_path / "splits.mat", {"testNdxs": np.array([[1]])})
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match="takes h5py, which is not installed: pip install h5py"):
        open_truths(f"nyud:{tmp_path}", split="test")
