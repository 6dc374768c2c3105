"""The command ``inspect`` as its user meets it."""

import json

import numpy as np
import pytest
from PIL import Image

from vitprobe import results

SMALL = ("--image-size", "64", "--limit", "3", "--workers", "0")


def png(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(2):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((120, 90)).save(folder / f"{i}.png")
    return folder


def test_a_model_gives_a_page_and_a_table(run, tmp_path):
    code, out, err = run("inspect", *SMALL, "--out", tmp_path / "r", "--rule", "p90", "--blocks", "0,last")
    assert (code, err) == (0, "")
    assert "smoother than random" in out and "as if shuffled" in out and "without outliers" in out
    assert png(tmp_path / "r") == {"page.png"}
    stored = results.load(tmp_path / "r")
    assert stored.schema == "vitprobe.inspect/1" and stored.summary["norms"]["rule"] == "p90"
    assert stored.arrays["positions.similarity"].shape == (4, 4, 4, 4)
    assert stored.arrays["attention.distance"].shape[:2] == (2, 2)  # with and without outliers
    assert stored.summary["attention"]["blocks"] == [0, 7]
    with Image.open(tmp_path / "r/page.png") as page:
        assert page.width == 1400 and page.height < 2340
    before = (tmp_path / "r/page.png").read_bytes()
    (tmp_path / "r/page.png").unlink()
    assert run("redraw", tmp_path / "r")[0] == 0 and (tmp_path / "r/page.png").read_bytes() == before


def test_models_and_a_convolutional_network_are_compared_and_drawn_again(run, tmp_path):
    models = ("--model", "organism", "--model", "organism-reg4", "--conv", "resnet18", "--weights", "random")
    parts = ("--part", "filters", "--part", "translation")
    code, out, _ = run("inspect", *models, *parts, *SMALL, "--json", "--out", tmp_path / "r")
    assert code == 0
    summaries = json.loads(out)
    assert [one["model"] for one in summaries] == ["organism", "organism-reg4", "resnet18"]
    assert [one["kind"] for one in summaries] == ["transformer"] * 2 + ["convolutional"]
    assert [one["translation"]["step"] for one in summaries] == [[16, 16], [16, 16], [32, 32]]
    assert len({str([row["shift"] for row in one["translation"]["shifts"]]) for one in summaries}) == 1
    own = [one["translation"]["grouped"] for one in summaries]
    assert own[0] == own[1] and [0, 4] in own[0]["fractional"] and [0, 24] not in own[0]["fractional"]
    assert [0, 24] in own[2]["fractional"] and [0, 4] not in own[2]["fractional"]
    assert summaries[1]["num_registers"] == 4 and summaries[1]["norms"]["num_images"] == 3
    figures = {f"{one}/page.png" for one in ("organism", "organism-reg4", "resnet18")}
    figures |= {f"compare-{one}.png" for one in ("filters", "translation")}
    assert png(tmp_path / "r") == figures
    before = {name: (tmp_path / "r" / name).read_bytes() for name in figures}
    for name in figures:
        (tmp_path / "r" / name).unlink()
    assert run("redraw", tmp_path / "r")[0] == 0
    assert {name: (tmp_path / "r" / name).read_bytes() for name in figures} == before


def test_parts_without_images_read_none(run, tmp_path):
    code, out, err = run("inspect", "--part", "filters", "--part", "positions", "--out", tmp_path / "r", "--json")
    summary = json.loads(out)
    assert (code, err) == (0, "") and summary["norms"] is None
    assert {"filters", "positions"} <= summary.keys() and not {"attention", "translation"} & summary.keys()
    assert results.load(tmp_path / "r").provenance["inputs"]["num_images"] == 0


def test_a_convolutional_network_alone(run, tmp_path):
    code, out, _ = run("inspect", "--conv", "resnet18", "--weights", "random", *SMALL, "--out", tmp_path / "r")
    assert code == 0 and "resnet18, random" in out and "organism" not in out and png(tmp_path / "r") == {"page.png"}


def test_broken_images_are_named_and_one_image_cannot_be_shifted(run, photos, tmp_path):
    (photos / "broken.png").write_bytes(b"no image")
    code, out, err = run("inspect", photos, "--image-size", "64", "--out", tmp_path / "r", "--part", "translation")
    assert code == 1 and "broken.png" in err and "images are too narrow; give 6 or more" in out
    (skipped,) = results.load(tmp_path / "r").summary["skipped"]
    assert skipped["name"].endswith("broken.png") and png(tmp_path / "r") == {"page.png"}
    code, out, err = run("inspect", photos / "0.png", "--image-size", "64", "--out", tmp_path / "one")
    assert (code, err) == (0, "") and "takes two or more" in out
    assert "absent" in results.load(tmp_path / "one").summary["translation"]
    assert run("redraw", tmp_path / "one")[0] == 0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--part", "colours"], "got --part 'colours'; allowed are filters, positions, attention, translation"),
        (["--outliers", "some"], "allowed are both, with, without"),
        (["--rule", "big"], "allowed are auto"),
        (["--block", "all"], "got --block 'all'; allowed for organism, planted are 0 to 7 and last"),
        (["--block", "8"], "got --block '8'; allowed for organism, planted are 0 to 7 and last"),
        (["--blocks", "0,8"], "allowed are 0 to 7"),
        (["--model", "resnet18"], "a convolutional network; give --conv resnet18"),
        (["--conv", "vit_tiny_patch16_224", "--weights", "random"], "ResNet"),
        (["--weights", "random", "--weights", "hub"], "2 --weights for 1 models"),
        (["--format", "gif"], "png, svg, pdf"),
        (["nothing-here"], "nothing-here"),
    ],
)
def test_bad_arguments_get_one_line_and_leave_nothing(run, tmp_path, args, says):
    code, out, err = run("inspect", *args)
    assert (code, out) == (2, "") and says in err and err.count("\n") == 1
    assert not list(tmp_path.glob("runs/inspect/*"))


def test_an_interrupt_leaves_nothing(run, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("vitprobe.cli.run_inspect.measure_translation", stop)
    code, _, err = run("inspect", *SMALL, "--out", tmp_path / "r")
    assert code == 130 and "nothing was written" in err and not list(tmp_path.glob("*r*"))
