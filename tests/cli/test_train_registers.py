"""``train-registers`` from end to end at a tiny size: what it writes, what it says, that it goes on."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from vitprobe.cli import main
from vitprobe.training.metrics import read

Run = Callable[..., tuple[int, str, str]]
SIZE = ["--arch-arg", "depth=2", "--arch-arg", "embed_dim=32", "--arch-arg", "num_heads=2", "--num-reg", "2"]
SHORT = ["--steps", "4", "--batch-size", "4", "--eval-every", "2", "--device", "cpu", "--workers", "0"]
TINY = [*SIZE, *SHORT, "--format", "none"]


def write_pictures(folder: Path, number: int = 12) -> Path:
    """Write pictures of two colours, a folder for each."""
    draw = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green")):
        (folder / name).mkdir(parents=True)
        for i in range(number):
            pixels = draw.integers(0, 120, (24, 32, 3), dtype=np.uint8)
            pixels[..., channel] += 130
            Image.fromarray(pixels).save(folder / name / f"{i:02}.png")
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of 24 pictures in two classes."""
    return write_pictures(tmp_path / "pictures")


def test_the_whole_thing(run: Run, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, said, err = run("train-registers", "--data", pictures, *SIZE, *SHORT, "--keep", "2", "--out", out)
    assert (code, err) == (0, "")
    for words in ("no registers", "2 registers", "accuracy", "4 held-out images"):
        assert words in said
    assert {path.name for path in out.iterdir() if path.suffix != ".png"} == {
        "run.json",
        "result.json",
        "arrays.npz",
        "reg0",
        "reg2",
    }
    assert len(list(out.glob("*.png"))) >= 3
    for name, number in (("reg0", 0), ("reg2", 2)):
        assert {path.name for path in (out / name).iterdir()} == {"last", "step-2", "step-4", "metrics.jsonl"}
        files = {"model.safetensors", "config.json", "README.md"}
        assert {path.name for path in (out / name / "last").iterdir()} == files | {"training.pt", "checkpoint.json"}
        assert {path.name for path in (out / name / "step-2").iterdir()} == files | {"checkpoint.json"}
        steps = [record["step"] for record in read(out / name) if "held_out" in record]
        assert steps == [0, 2, 4]
        model = timm.create_model(f"local-dir:{out / name / 'last'}", pretrained=True)
        assert (0 if model.reg_token is None else model.reg_token.shape[1]) == number
    stored = json.loads((out / "result.json").read_text())
    assert stored["schema"] == "vitprobe.train-registers/1"
    rows = {row["name"]: row for row in stored["summary"]["variants"]}
    for name, row in rows.items():
        last = [record["held_out"] for record in read(out / name) if "held_out" in record][-1]
        assert row["measures"]["accuracy"] == pytest.approx(last["accuracy"])
        assert row["verdict"] == last["verdict"]
    options = json.loads((out / "run.json").read_text())["options"]
    assert (options["num_registers"], options["steps"], options["data"]) == ([2], 4, [str(pictures)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run, and what it printed with --json."""
    folder, said = tmp_path_factory.mktemp("finished"), io.StringIO()
    pictures = write_pictures(folder / "pictures")
    arguments = ["--data", str(pictures), *TINY, "--json", "--out", str(folder / "out")]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said), pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["vitprobe", "train-registers", *arguments])
        main()
    assert not ended.value.code
    return folder / "out", said.getvalue()


def test_json_prints_the_summary_and_nothing_else(finished: tuple[Path, str]) -> None:
    out, said = finished
    assert json.loads(said) == json.loads((out / "result.json").read_text())["summary"]


def test_a_finished_run_is_resumed_to_the_same_answer(run: Run, finished: tuple[Path, str], tmp_path: Path) -> None:
    out, said = shutil.copytree(finished[0], tmp_path / "out"), finished[1]
    weights = (out / "reg2" / "last" / "model.safetensors").read_bytes()
    code, again, err = run("train-registers", "--resume", out, "--format", "none", "--json")
    assert (code, err) == (0, "")
    assert json.loads(again) == json.loads(said)
    assert (out / "reg2" / "last" / "model.safetensors").read_bytes() == weights


def test_a_variant_that_is_missing_is_trained_on_resuming(run: Run, finished: tuple[Path, str], tmp_path: Path) -> None:
    """As after a kill between two variants: the same weights come again."""
    out = shutil.copytree(finished[0], tmp_path / "out")
    weights = (out / "reg2" / "last" / "model.safetensors").read_bytes()
    shutil.rmtree(out / "reg2")
    (out / "result.json").unlink()
    assert run("train-registers", "--resume", out, "--format", "none")[0] == 0
    assert (out / "reg2" / "last" / "model.safetensors").read_bytes() == weights
    assert (out / "result.json").exists()


@pytest.mark.parametrize("extra", [["--lr", "0.1"], ["--no-control"], ["--num-reg", "4"], ["--out", "other"]])
def test_resuming_takes_no_other_options(
    run: Run, finished: tuple[Path, str], tmp_path: Path, extra: list[str]
) -> None:
    code, said, err = run("train-registers", "--resume", finished[0], *extra)
    assert (code, said) == (2, "")
    assert err.startswith(f"vitprobe: got {extra[0]} with --resume") and err.count("\n") == 1


def test_a_folder_in_use_is_refused(run: Run, finished: tuple[Path, str], tmp_path: Path) -> None:
    code, _, err = run("train-registers", *TINY, "--out", finished[0])
    assert code == 2
    assert f"{finished[0]} exists and is not empty; give --resume {finished[0]}" in err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    code, _, err = run("train-registers", *TINY, "--out", tmp_path / "other")
    assert code == 2 and "give --out a new or empty folder" in err and err.count("\n") == 1
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes.txt"]


def test_a_variant_opens_in_norms_and_attn_maps(run: Run, finished: tuple[Path, str], tmp_path: Path) -> None:
    for command in ("norms", "attn-maps"):
        model = finished[0] / "reg2" / "last"
        asked = ["--model", model, tmp_path / "one.png", "--format", "none", "--device", "cpu", "--json"]
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "one.png")
        code, said, err = run(command, *asked, "--out", tmp_path / command)
        assert code == 0, err
        assert json.loads(said)["model"] == str(model)
        stored = json.loads((tmp_path / command / "result.json").read_text())
        assert stored["provenance"]["model"]["num_registers"] == 2


def test_a_dry_run_writes_nothing_and_counts(run: Run, pictures: Path, tmp_path: Path) -> None:
    asked = ["train-registers", "--data", pictures, *TINY, "--dry-run", "--out", tmp_path / "out"]
    code, said, err = run(*asked, "--json")
    assert (code, err) == (0, "")
    plans = {one["variant"]: one for one in json.loads(said)["plan"]}
    assert set(plans) == {"reg0", "reg2"}
    own = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=2,
        init_values=0.1, no_embed_class=True, reg_tokens=2,
    )  # fmt: skip
    number = sum(p.numel() for p in own.parameters())
    assert plans["reg2"]["trainable_parameters"] == number
    assert plans["reg0"]["trainable_parameters"] == number - 2 * 32 + 32  # where there are none, CLS has a position
    assert 1 < plans["reg2"]["forward_flops"] / plans["reg0"]["forward_flops"] < 67 / 65 * 1.05
    code, said, _ = run(*asked)
    assert code == 0 and "nothing was trained" in said and "4 steps of 4 images each" in said
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_an_unreadable_picture_is_named_and_the_exit_code_is_1(run: Run, pictures: Path, tmp_path: Path) -> None:
    (pictures / "red" / "99.png").write_bytes(b"no picture")
    code, said, err = run("train-registers", "--data", pictures, *TINY, "--json", "--out", tmp_path / "out")
    assert code == 1
    assert "99.png" in err
    assert ["99.png" in one["name"] for one in json.loads(said)["skipped"]] == [True]


@pytest.mark.parametrize(
    "extra",
    [
        ["--objective", "text", "--caption", "class", "--objective-arg", "text_layers=1"],
        ["--objective", "self-distillation", "--objective-arg", "num_prototypes=16"],
        ["--objective", "retrofit", "--model", "organism", "--image-size", "64", "--objective-arg", "num_views=2"],
        pytest.param(["--recipe", "deit3", "--arch", "scenes-tiny", "--layer-scale", "1e-4"], marks=pytest.mark.slow),
        pytest.param(["--recipe", "vit", "--arch", "scenes-tiny", "--precision", "bfloat16"], marks=pytest.mark.slow),
    ],
)
def test_every_objective_and_recipe_from_the_command_line(
    extra: list[str], run: Run, pictures: Path, tmp_path: Path
) -> None:
    size = SIZE[-2:] if "--model" in extra else SIZE
    asked = ["--data", pictures, *size, *SHORT, "--steps", "1", "--format", "none", "--out", tmp_path / "out", "--json"]
    code, said, err = run("train-registers", *asked, *extra, *([] if "retrofit" in extra else ["--no-control"]))
    assert code == 0, err
    names = [row["name"] for row in json.loads(said)["variants"]]
    assert names == (["reg0", "reg2", "reg0-plain", "reg2-plain"] if "retrofit" in extra else ["reg2"])
    for row in json.loads(said)["variants"]:
        assert row["measures"]["knn"] >= 0
        losses = [record["loss"] for record in read(tmp_path / "out" / row["name"]) if "loss" in record]
        assert losses and all(np.isfinite(losses))


def test_pictures_without_labels_need_none_for_self_distillation(run: Run, pictures: Path, tmp_path: Path) -> None:
    """One class alone says nothing: they are trained on all the same, and there is no k-NN."""
    extra = ["--objective", "self-distillation", "--objective-arg", "num_prototypes=16", "--steps", "1", "--no-control"]
    code, said, err = run(
        "train-registers", "--data", pictures / "red", *TINY, *extra, "--json", "--out", tmp_path / "o"
    )
    assert (code, err) == (0, "")
    (row,) = json.loads(said)["variants"]
    assert "knn" not in row["measures"]


def test_scenes_with_a_bank_of_any_size(run: Run, tmp_path: Path) -> None:
    sizes = ["--num-held-out", "8", "--num-bank", "16", "--no-control"]
    code, said, err = run("train-registers", *TINY, *sizes, "--json", "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    (row,) = json.loads(said)["variants"]
    assert {"accuracy", "knn", "count_accuracy"} <= row["measures"].keys()


def test_epochs_are_counted_in_steps(run: Run, pictures: Path, tmp_path: Path) -> None:
    """24 pictures, of which 4 are held out: an epoch is 5 steps of 4, and one and a half are 8."""
    asked = [*SIZE, "--batch-size", "4", "--device", "cpu", "--workers", "0", "--format", "none", "--no-control"]
    code, said, _ = run(
        "train-registers", "--data", pictures, *asked, "--epochs", "1.5", "--out", tmp_path / "o", "--json"
    )
    assert code == 0
    assert json.loads(said)["steps"] == 8
    assert torch.load(tmp_path / "o" / "reg2" / "last" / "training.pt", weights_only=True)["step"] == 8


def test_help_comes_at_once() -> None:
    """Under half a second of the processor's time, whatever else the machine does."""
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-m", "vitprobe", "train-registers", "--help"], capture_output=True, text=True
    )
    after = os.times()
    assert done.returncode == 0
    for option in ("--num-reg", "--objective", "--data", "--resume", "--dry-run", "--trainable", "--num-bank"):
        assert option in done.stdout
    assert after.children_user + after.children_system - before.children_user - before.children_system < 0.5
