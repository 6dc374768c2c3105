import json
from pathlib import Path

import numpy as np
import pytest

from vitprobe import results
from vitprobe.errors import ArgumentError, InputError, OutputError


def stored(**changes):
    provenance = results.Provenance(
        model={"name": "m"}, inputs={"name": "i"}, seed=0, device="cpu", dtype="float32", command=("vitprobe",)
    )
    parts = {
        "schema": "vitprobe.test/1",
        "provenance": results.provenance_dict(provenance),
        "settings": {"rule": "auto"},
        "summary": {"share": 0.5, "none": None, "list": [1, 2]},
        "arrays": {"norms": np.arange(6.0).reshape(2, 3), "names": np.array(["a", "ü"])},
    }
    return results.StoredResult(**(parts | changes))


def write(path, **changes):
    with results.result_directory(path) as folder:
        (folder / "picture.png").write_bytes(b"x")
        results.save(folder, stored(**changes))
    return results.load(path)


def test_what_is_saved_is_loaded(tmp_path):
    read, was = write(tmp_path / "r"), stored()
    assert (read.schema, read.settings, read.summary) == (was.schema, was.settings, was.summary)
    assert {k: v for k, v in read.provenance.items() if k != "created"}["model"] == {"name": "m"}
    for name, array in was.arrays.items():
        assert read.arrays[name].dtype == array.dtype and (read.arrays[name] == array).all()
    assert set(read.files) == {"arrays.npz", "picture.png"}


def test_json_holds_no_nan_and_numbers_of_numpy(tmp_path):
    summary = {"nan": float("nan"), "inf": np.inf, "share": np.float32(0.25), "count": np.int64(3), "yes": np.True_}
    write(tmp_path / "r", summary=summary)
    body = json.loads((tmp_path / "r/result.json").read_text(), parse_constant=pytest.fail)
    assert body["summary"] == {"nan": None, "inf": None, "share": 0.25, "count": 3, "yes": True}


def test_versions_are_told():
    assert {"vitprobe", "python", "torch", "timm", "open_clip_torch"} <= results.versions().keys()


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), results.result_directory(tmp_path / "r") as folder:
        (folder / "half.png").write_bytes(b"x")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_older_result(tmp_path):
    write(tmp_path / "r")
    with pytest.raises(RuntimeError), results.result_directory(tmp_path / "r"):
        raise RuntimeError
    assert results.load(tmp_path / "r").summary["share"] == 0.5
    assert [p.name for p in tmp_path.iterdir()] == ["r"]


def test_a_newer_result_takes_the_place_of_an_older_whole(tmp_path):
    write(tmp_path / "r")
    (tmp_path / "r/old.png").write_bytes(b"x")
    assert write(tmp_path / "r", summary={"share": 0.75}).summary == {"share": 0.75}
    assert not (tmp_path / "r/old.png").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["r"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_result_is_not_overwritten(tmp_path, kind):
    target = tmp_path / "thesis"
    if kind == "file":
        target.write_text("years of work")
    else:
        target.mkdir()
        (target / "chapter.tex").write_text("years of work")
    with pytest.raises(ArgumentError, match="is no result"), results.result_directory(target):
        pass
    assert target.exists()


def test_a_result_json_of_somebody_else_protects_its_folder(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/result.json").write_text('{"hello": 1}')
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(ArgumentError, match="is no result"):
        results.check_free(tmp_path / "mine")


def test_a_result_with_other_files_in_it_is_not_overwritten(tmp_path):
    write(tmp_path / "r")
    results.check_free(tmp_path / "r")
    (tmp_path / "r/notes.txt").write_text("what I saw")
    with pytest.raises(ArgumentError, match="alone"):
        results.check_free(tmp_path / "r")


def test_the_working_folder_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for path in (".", "..", "../here"):
        with pytest.raises(ArgumentError, match="the folder you are in"):
            results.check_free(Path(path))


def test_damaged_arrays_are_one_line(tmp_path):
    write(tmp_path / "r")
    whole = (tmp_path / "r/arrays.npz").read_bytes()
    (tmp_path / "r/arrays.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is damaged"):
        results.load(tmp_path / "r")


def test_a_full_disk_is_one_line(tmp_path):
    with pytest.raises(OutputError, match="No space left"), results.result_directory(tmp_path / "r"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["missing", "no json", "other json", "file lost"])
def test_what_is_not_whole_is_not_loaded(tmp_path, damage):
    path = tmp_path / "r"
    write(path)
    if damage == "missing":
        path = tmp_path / "nowhere"
    elif damage == "no json":
        (path / "result.json").write_text("{")
    elif damage == "other json":
        (path / "result.json").write_text("[1]")
    else:
        (path / "arrays.npz").unlink()
    with pytest.raises(InputError) as error:
        results.load(path)
    assert "\n" not in str(error.value)
