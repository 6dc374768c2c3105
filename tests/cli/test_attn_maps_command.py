"""The commands ``attn-maps`` and ``calibrate`` as their users meet them."""

import json

import numpy as np
import pytest
from PIL import Image

from vitprobe import results


def test_without_arguments_it_draws_the_sample_photographs(run, tmp_path):
    code, out, err = run("attn-maps")
    assert (code, err) == (0, "") and "organism, planted" in out
    (folder,) = (tmp_path / "runs/attn-maps").iterdir()
    assert {p.name for p in folder.iterdir()} == {"result.json", "arrays.npz", "maps.png", "share.png"}
    stored = results.load(folder)
    assert stored.schema == "vitprobe.attn-maps/1"
    assert stored.arrays["maps"].shape == (2, 1, 1, 14, 14) and stored.arrays["maps"].dtype == np.float32
    assert stored.arrays["prefix_mass"].shape == (2, 1, 1, 1) and stored.arrays["outliers"].shape == (2, 14, 14)


def test_several_models_and_overlays(run, tmp_path):
    names = ("organism", "organism-reg4")
    args = [word for name in names for word in ("--model", name)]
    code, out, _ = run("attn-maps", *args, "--overlay", "--rollout", "--json", "--out", tmp_path / "r")
    assert code == 0
    assert [one["model"] for one in json.loads(out)] == list(names)
    for name in names:
        with Image.open(tmp_path / "r" / name / "overlay/china.png") as picture:
            assert picture.size == (224, 224)
    assert results.load(tmp_path / "r/organism").arrays["rollout"].shape == (2, 14, 14)


def test_it_is_drawn_again(run, tmp_path):
    run("attn-maps", "--out", tmp_path / "r", "--block", "all")
    before = (tmp_path / "r/maps.png").read_bytes()
    (tmp_path / "r/maps.png").unlink()
    assert run("redraw", tmp_path / "r")[0] == 0
    assert (tmp_path / "r/maps.png").read_bytes() == before


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--query", "registers"], "it has cls"),
        (["--query", "14,0"], "the grid has 14 rows"),
        (["--head", "9"], "heads 0 to 3"),
        (["--head", "some"], "allowed are mean, all"),
        (["--block", "8"], "allowed are 0 to 7"),
        (["--upsample", "cubic"], "nearest and bilinear"),
        (["--rule", "big"], "allowed are auto"),
    ],
)
def test_bad_arguments_get_one_line_and_leave_nothing(run, tmp_path, args, says):
    code, out, err = run("attn-maps", *args)
    assert (code, out) == (2, "") and says in err and err.count("\n") == 1
    assert not list(tmp_path.glob("runs/attn-maps/*"))


def test_calibrate_passes_and_can_be_cited(run, tmp_path):
    code, out, err = run("calibrate", "--out", tmp_path / "r")
    assert (code, err) == (0, "") and "the instrument is right" in out
    stored = results.load(tmp_path / "r")
    assert stored.summary["passed"] and stored.summary["failed"] == []
    auto = [line for line in stored.summary["detections"] if line["rule"] == "auto" and line["planted"]]
    assert {(line["precision"], line["recall"], line["false_alarms"]) for line in auto} == {(1.0, 1.0, 0.0)}


def test_calibrate_says_when_the_instrument_is_off(run, monkeypatch):
    monkeypatch.setattr("vitprobe.probes.verdict.LOW", -1.0)
    code, out, _ = run("calibrate")
    assert code == 1 and "the instrument is off" in out and "the verdict is artifacts" in out
