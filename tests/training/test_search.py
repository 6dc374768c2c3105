"""Rows of a search: what they hold, against the result they come from and the criterion itself."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitprobe.backbones import load
from vitprobe.cli import main
from vitprobe.errors import ArgumentError
from vitprobe.inputs.scenes import CROWDED
from vitprobe.probes.emergence import judge_all, nearest, read_scenes, removed
from vitprobe.training import search
from vitprobe.training.search import judge_kept, judge_run

TINY = "--arch-arg depth=2 --arch-arg embed_dim=32 --arch-arg num_heads=2 --steps 4 --batch-size 4 --device cpu"
QUIET = "--workers 0 --format none --num-held-out 8 --num-bank 8"


def train(monkeypatch: pytest.MonkeyPatch, out: Path, *options: str) -> Path:
    """Run ``train-registers`` with few steps."""
    arguments = ["vitprobe", "train-registers", *TINY.split(), *QUIET.split(), "--out", str(out), *options]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    return out


def test_rows_of_scenes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = train(monkeypatch, tmp_path / "out", "--data", "scenes:crowded", "--num-reg", "2", "--keep", "2")
    rows = judge_run(out, num=20)
    variants = json.loads((out / "result.json").read_text())["summary"]["variants"]
    assert [row["num_registers"] for row in rows] == [0, 2]
    assert rows == json.loads(json.dumps(rows))
    for row, variant, folder in zip(rows, variants, ("reg0", "reg2"), strict=True):
        reading = read_scenes(load(str(out / folder / "last")), config=CROWDED, num=20)
        expected = judge_all(reading)
        assert row["blocks"] == json.loads(json.dumps([one.as_dict() for one in expected]))
        assert row["answers"] == nearest(expected).answers
        assert row["measures"] == variant["measures"]
        assert row["verdict"] == variant["verdict"]
        assert [line["norm"] for line in row["norms"]] == [line["norm"] for line in variant["norms"]["blocks"]]
        assert np.allclose(row["register_received"], reading.register_received, atol=1e-4)
    assert not any("removed" in row for row in rows)  # nothing has emerged that could be
    kept = judge_kept(out, "reg2", num=20)
    assert [step for step, _ in kept] == [2, 4]
    assert kept[-1][1] == rows[1]["blocks"]


def test_registers_are_asked_where_something_emerged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = train(monkeypatch, tmp_path / "out", "--data", "scenes:crowded", "--num-reg", "2")
    monkeypatch.setattr(search, "nearest", lambda blocks: replace(blocks[1], answers=dict.fromkeys("abcde", True)))
    control, twin = judge_run(out, num=20)
    reading = read_scenes(load(str(out / "reg2/last")), config=CROWDED, num=20)
    known = {"accuracy": twin["measures"]["accuracy"], "control_accuracy": control["measures"]["accuracy"]}
    assert twin["removed"] == removed(reading, 1, **known)
    assert "removed" not in control


def test_pictures_have_no_background_to_judge_by(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for i in range(24):
        folder = tmp_path / "pictures" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    out = train(
        monkeypatch, tmp_path / "out", "--data", str(tmp_path / "pictures"), "--num-reg", "0", "--num-held-out", "4"
    )
    (row,) = judge_run(out)
    assert "blocks" not in row
    assert len(row["norms"]) == 2
    with pytest.raises(ArgumentError, match="no checkpoints of a training on scenes"):
        judge_kept(out)


def test_a_folder_without_a_result_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="no finished training"):
        judge_run(tmp_path)
