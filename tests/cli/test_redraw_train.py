"""A comparison of trained variants on disk: beside their checkpoints, whole or not at all, and drawn again."""

import errno
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from vitprobe import results
from vitprobe.cli import echo_train, train_result
from vitprobe.cli.train_result import SCHEMA, read_back, write_comparison
from vitprobe.errors import InputError, OutputError
from vitprobe.plots.training import figures

sys.path.append(str(Path(__file__).parents[1] / "probes"))  # tests are no package
from made_variants import make_variant

OWN = {"result.json", "arrays.npz", "norms.png", "histogram.png", "attention.png", "curves.png"}
THEIRS = {"run.json": "{}", "reg0/metrics.jsonl": "", "reg0/last/result.json": "no", "reg4/last/model.safetensors": "x"}


@pytest.fixture(scope="module")
def variants():
    """A control with artifacts and a variant without, and a sweep of four."""
    sweep = [make_variant(r, outliers="" if r else "artifacts", num_blocks=3, images=12) for r in (0, 1, 2, 4)]
    return {"pair": [sweep[0], sweep[3]], "sweep": sweep}


@pytest.fixture
def folder(tmp_path):
    """The folder of a training that has ended."""
    for name, text in THEIRS.items():
        (tmp_path / "r" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "r" / name).write_text(text)
    return tmp_path / "r"


@pytest.fixture
def quick(monkeypatch):
    """Put a name in the place of every figure's picture, where the pictures do not matter."""

    def draw(found, folder, formats):
        paths = [folder / f"{stem}.{name}" for stem in figures(found) for name in formats]
        for path in paths:
            path.write_text(path.name)
        return paths

    monkeypatch.setattr(train_result, "draw", draw)


def write(folder, found, formats=("png",), **summary):
    return write_comparison(folder, found, {"seed": 0}, {"steps": 400}, {"skipped": [], **summary}, formats)


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_comparison_stands_beside_the_variants(folder, variants, quick):
    summary = write(folder, variants["pair"])
    assert files(folder) == OWN | set(THEIRS) and not (folder / ".comparison").exists()
    assert all((folder / name).read_text() == text for name, text in THEIRS.items())
    stored = results.load(folder)
    assert (stored.schema, set(stored.files)) == (SCHEMA, OWN - {"result.json"})
    assert stored.settings == {"steps": 400} and stored.provenance == {"seed": 0}
    assert results.to_json(stored.summary) == results.to_json(summary)
    assert [row["name"] for row in stored.summary["variants"]] == ["reg0", "reg4"]
    assert stored.summary["skipped"] == []


def test_it_is_drawn_again_from_its_numbers(run, folder, variants):
    write(folder, variants["sweep"])
    before = {path: path.read_bytes() for path in folder.glob("*.png")}
    assert {path.stem for path in before} == {"norms", "histogram", "attention", "curves", "sweep"}
    for path in before:
        path.unlink()
    code, out, err = run("redraw", folder)
    assert (code, err) == (0, "") and out.split() == [str(folder / path.name) for path in sorted_as(out, before)]
    assert {path: path.read_bytes() for path in folder.glob("*.png")} == before
    assert all((folder / name).read_text() == text for name, text in THEIRS.items())


def sorted_as(out, paths):
    """Return the paths in the order in which they are named."""
    return sorted(paths, key=lambda path: out.index(path.name))


def test_a_second_comparison_replaces_the_first(folder, variants, quick):
    write(folder, variants["sweep"], ("png", "svg"))
    write(folder, variants["pair"])
    assert files(folder) == OWN | set(THEIRS)  # no sweep, no svg of the first
    assert len(results.load(folder).summary["variants"]) == 2


def test_what_a_killed_process_left_is_cleared_away(folder, variants):
    (folder / ".comparison/half").mkdir(parents=True)
    write(folder, variants["pair"], formats=())
    assert files(folder) == {"result.json", "arrays.npz"} | set(THEIRS)


def test_a_full_disk_leaves_the_older_comparison(folder, variants, monkeypatch, quick):
    write(folder, variants["pair"])
    before = {name: (folder / name).read_bytes() for name in files(folder)}

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OutputError, match=r"No space left.*the checkpoints are whole.*--resume"):
        write(folder, variants["sweep"])
    assert {name: (folder / name).read_bytes() for name in files(folder)} == before
    assert not (folder / ".comparison").exists()


@pytest.mark.parametrize("moved", range(6))
def test_a_process_ended_between_two_moves_leaves_no_result(folder, variants, monkeypatch, moved, quick):
    write(folder, variants["pair"])
    real, done = os.replace, []

    def ends(source, target):
        if len(done) == moved:
            raise KeyboardInterrupt
        done.append(Path(target).name)
        real(source, target)

    monkeypatch.setattr(train_result.os, "replace", ends)
    with pytest.raises(KeyboardInterrupt):
        write(folder, variants["pair"])
    assert len(done) == moved and "result.json" not in files(folder)
    with pytest.raises(InputError, match="no result"):
        results.load(folder)
    monkeypatch.setattr(train_result.os, "replace", real)
    write(folder, variants["pair"])
    assert files(folder) == OWN | set(THEIRS)


def test_a_foreign_result_loses_no_file_but_its_name(folder, variants, quick):
    body = {"schema": "other/1", "provenance": {}, "settings": {}, "summary": {}, "files": {"run.json": "figure"}}
    (folder / "result.json").write_text(json.dumps(body))
    write(folder, variants["pair"])
    assert files(folder) == OWN | set(THEIRS)


@pytest.mark.parametrize("damage", ["no variants", "no arrays", "other arrays", "no result"])
def test_what_is_not_whole_is_one_line(run, folder, variants, damage):
    write(folder, variants["pair"], formats=())
    body = json.loads((folder / "result.json").read_text())
    if damage == "no variants":
        body["summary"] = {}
        (folder / "result.json").write_text(json.dumps(body))
    elif damage == "no arrays":
        (folder / "arrays.npz").unlink()
    elif damage == "other arrays":
        np.savez(folder / "arrays.npz", x=np.zeros(3))
    else:
        (folder / "result.json").unlink()
    code, out, err = run("redraw", folder)
    assert (code, out) == (2, "") and err.count("\n") == 1 and not list(folder.glob("*.png"))


def test_reading_back_gives_what_was_written(folder, variants, quick):
    write(folder, variants["pair"])
    read = read_back(results.load(folder))
    assert [(one.name, one.title) for one in read] == [("reg0", "no registers"), ("reg4", "4 registers")]
    np.testing.assert_array_equal(read[1].curve.loss, variants["pair"][1].curve.loss)


def test_the_table_says_what_was_found(folder, variants, capsys):
    summary = write(folder, variants["pair"], formats=())
    echo_train.train(summary, folder, as_json=False)
    out = capsys.readouterr().out
    rows = summary["variants"]
    assert "artifacts in the control (block 2), none with 4 registers" in out
    assert f"{rows[0]['outlier_fraction']:.2%}" in out and f"{rows[1]['attention']['registers']:.1%}" in out
    points = 100 * rows[1]["difference"]["measures"]["accuracy"]
    assert f"{rows[1]['measures']['accuracy']:.2%} ({points:+.2f} points)" in out
    assert "one training of each variant" in out and f"written to {folder}/" in out


def test_json_is_the_stored_summary_and_nothing_else(folder, variants, capsys):
    summary = write(folder, variants["sweep"], formats=())
    echo_train.train(summary, folder, as_json=True)
    assert json.loads(capsys.readouterr().out) == results.load(folder).summary
