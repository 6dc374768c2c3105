"""``finetune`` from end to end at a tiny size: what it writes and says, that it goes on, what it refuses."""

import json
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from vitprobe.backbones import load
from vitprobe.cli import run_finetune_set
from vitprobe.inputs.labels import open_labelled

sys.path.append(str(Path(__file__).parents[1] / "training"))  # tests are no package
from made_sets import write_model, write_pictures, write_set, write_task

Run = Callable[..., tuple[int, str, str]]
SHORT = "--steps 6 --batch-size 16 --lr 0.1 --eval-every 3 --device cpu --workers 0 --format none"
FILES = {"model.safetensors", "config.json", "README.md", "training.pt", "checkpoint.json"}
NAMES = ("reg0-smooth0", "reg2-smooth0", "reg0-smooth0.1", "reg2-smooth0.1")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and sets."""
    folder = tmp_path_factory.mktemp("place")
    write_model(folder / "model")
    write_set(folder / "colours", train=20, test=15)
    write_pictures(folder / "one" / "x", 4, seed=0)
    shutil.rmtree(folder / "one" / "x" / "red")
    write_task(folder / "vtab" / "svhn", 10, 30)
    write_task(folder / "vtab" / "patch_camelyon", 2, 20)
    (folder / "real.json").write_text("[]")
    return folder


def asked(place: Path, *more: str, data: str = "colours", options: str = SHORT) -> list[str]:
    given = ["finetune", "--model", str(place / "model"), *shlex.split(options), *more]
    return [*given, "--data", f"vtab:{place / data}" if data.startswith("vtab") else str(place / data)]


@pytest.fixture(scope="module")
def finished(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run of four variants at a larger size, and what it printed with --json."""
    import contextlib
    import io

    from vitprobe.cli import main

    out, said = tmp_path_factory.mktemp("finished") / "out", io.StringIO()
    more = shlex.split("--image-size 24 --num-reg 2 --smoothing 0 --smoothing 0.1 --json --num-frozen 30 --format png")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said), pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["vitprobe", *asked(place, *more, "--out", str(out))])
        main()
    assert not ended.value.code
    return out, said.getvalue()


def test_what_it_writes(finished: tuple[Path, str], place: Path) -> None:
    out, said = finished
    stored = json.loads((out / "result.json").read_text())
    summary = stored["summary"]
    assert stored["schema"] == "vitprobe.finetune/1" and json.loads(said) == summary
    figures = {f"{stem}.png" for stem in ("accuracy", "reliability", "curves", "norms", "histogram", "attention")}
    assert {path.name for path in out.iterdir()} == {
        "run.json", "result.json", "arrays.npz", "table.md", *figures, *NAMES
    }  # fmt: skip
    assert [row["name"] for row in summary["variants"]] == list(NAMES)
    sizes = summary["sizes"]
    assert (sizes["from"], sizes["to"], sizes["tokens_from"], sizes["tokens_to"]) == ([16, 16], [24, 24], 16, 36)
    assert sizes["positions"] == "learned positions interpolated in 2-D"
    assert (summary["num_train"], summary["num_held_out"], summary["chance"]) == (40, 30, 0.5)
    assert summary["before"]["frozen"]["linear"]["num_train"] == 30
    specs = stored["provenance"]["model"]
    assert specs["reg0-smooth0"]["weights"] == f"trained 6 steps (supervised) from {specs['before']['weights']}"
    for name in NAMES:
        assert {path.name for path in (out / name / "last").iterdir()} == FILES
        assert "Trained from the weights" in (card := (out / name / "last" / "README.md").read_text())
        assert "`vitprobe finetune`" in card


def test_accuracy_is_that_of_the_checkpoint_opened_again(finished: tuple[Path, str], place: Path) -> None:
    out, said = finished
    images = open_labelled([str(place / "colours" / "test")], need="labels")
    arrays = np.load(out / "arrays.npz")
    for row in json.loads(said)["variants"]:
        backbone = load(str(out / row["checkpoint"]))
        assert backbone.layout().num_registers == row["num_registers"]
        with torch.no_grad():
            logits = backbone(torch.stack([backbone.transform(item.read().image) for item in images.items]))
        assert row["accuracy"] == pytest.approx((logits.argmax(1).numpy() == images.labels).mean())
        assert np.allclose(arrays[f"{row['name']}/predictions/logits"], logits.numpy(), atol=1e-4)
        own = timm.create_model(f"local-dir:{out / row['checkpoint']}", pretrained=True)
        assert own.num_classes == 2
        nll = torch.nn.functional.cross_entropy(logits.double(), torch.from_numpy(images.labels)).item()
        assert row["reliability"]["nll"] == pytest.approx(nll, abs=1e-4)
    first = json.loads(said)["variants"][0]
    for row in json.loads(said)["variants"][1:]:
        assert row["difference"]["value"] == pytest.approx(row["accuracy"] - first["accuracy"], abs=1e-9)
        assert row["difference"]["to"] == "reg0-smooth0"


def test_it_is_drawn_again_and_measured_by_norms(run: Run, finished: tuple[Path, str], tmp_path: Path) -> None:
    out = shutil.copytree(finished[0], tmp_path / "out")
    before = {path.name: path.read_bytes() for path in out.glob("*.png")}
    for name in before:
        (out / name).unlink()
    code, said, err = run("redraw", out)
    assert (code, err) == (0, "") and said.count(".png") == len(before) == 6
    assert {path.name: path.read_bytes() for path in out.glob("*.png")} == before
    code, said, err = run(
        "norms", "samples", "--model", out / "reg2-smooth0" / "last", "--limit", "2", "--json", "--format", "none",
        "--device", "cpu", "--out", tmp_path / "n",
    )  # fmt: skip
    assert code == 0 and json.loads(said)["num_images"] == 2


def models(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("model.safetensors"))}


def test_stopped_it_goes_on_to_the_same_weights(
    run: Run, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while a rate is tried, and while the second variant is trained."""
    more = shlex.split("--smoothing 0 --smoothing 0.1 --lr 0.01 --eval-every 6 --no-frozen")
    code, whole, err = run(*asked(place, *more, "--json", "--out", str(tmp_path / "whole")))
    assert (code, err) == (0, "")
    out = tmp_path / "parts"

    def stopped_at(wanted: str) -> None:
        @contextmanager
        def bar(title: str, steps: int, *, shown: bool) -> Iterator[Callable[[Any], None]]:
            def show(progress: Any) -> None:
                if title.endswith(wanted) and progress.step == 4:
                    os.kill(os.getpid(), signal.SIGINT)

            yield show

        monkeypatch.setattr(run_finetune_set, "training", bar)

    stopped_at("no registers, trying lr 0.01")
    code, said, err = run(*asked(place, *more, "--out", str(out)))
    assert (code, said) == (130, "") and f"go on with --resume {out}" in err and err.count("\n") == 1
    assert not (out / "result.json").exists()
    stopped_at("no registers, smoothing 0.1")
    code, _, err = run("finetune", "--resume", out, "--format", "none")
    assert code == 130 and "stopped at step" in err
    stopped_at("nothing")
    code, said, err = run("finetune", "--resume", out, "--format", "none", "--json")
    assert (code, err) == (0, "")
    assert models(out) == models(tmp_path / "whole") and len(models(out)) == 2
    assert json.loads(said)["variants"] == json.loads(whole)["variants"]
    assert [len(row["tried"]) for row in json.loads(said)["variants"]] == [2, 2]
    again = run("finetune", "--resume", out, "--format", "none", "--json")
    assert again == (0, said, "")  # what is finished is not measured again


def test_several_sets_and_the_means_of_vtab(run: Run, place: Path, tmp_path: Path) -> None:
    code, said, err = run(*asked(place, "--no-frozen", "--json", "--out", str(tmp_path / "o"), data="vtab"))
    assert (code, err) == (0, "")
    summary = json.loads(said)
    assert [one["set"] for one in summary["sets"]] == ["svhn", "patch_camelyon"]
    assert [one["augment"] for one in summary["sets"]] == ["none", "none"]
    found = summary["vtab"]["no registers"]
    values = {one["set"]: one["variants"][0]["accuracy"] for one in summary["sets"]}
    assert found["groups"]["natural"] == {"mean": values["svhn"], "num_tasks": 1, "of": 7}
    assert found["groups"]["structured"]["mean"] is None and found["vtab"] is None
    assert json.loads((tmp_path / "o" / "svhn" / "result.json").read_text())["summary"]["set"] == "svhn"
    table = (tmp_path / "o" / "table.md").read_text()
    assert "natural" in table and "missing: cifar" in table
    code, said, _ = run("redraw", tmp_path / "o")
    assert code == 0 and f"o{os.sep}accuracy.png" in said and f"svhn{os.sep}norms.png" in said


def test_a_dry_run_writes_nothing(run: Run, place: Path, tmp_path: Path) -> None:
    given = asked(place, *shlex.split("--num-reg 2 --lr 0.2 --dry-run --out x --recipe vit --image-size 24"))
    code, said, err = run(*given, "--json")
    assert (code, err) == (0, "")
    (one,) = json.loads(said)["sets"]
    assert [each["variant"] for each in one["plan"]] == ["reg0-smooth0", "reg2-smooth0"]
    assert (one["trainings"], one["rates"], one["image_size"]) == (6, [0.1, 0.2], [24, 24])
    assert "16 images a step, not 512" in one["departures"]
    code, said, _ = run(*given)
    assert code == 0 and "nothing was trained" in said and list(tmp_path.iterdir()) == []


def test_an_unreadable_picture_is_named(run: Run, place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "colours", tmp_path / "set")
    (tmp_path / "set" / "test" / "red" / "bad.png").write_bytes(b"no picture")
    given = ["finetune", "--model", place / "model", *shlex.split(SHORT), "--data", tmp_path / "set", "--no-frozen"]
    code, said, err = run(*given, "--json", "--out", tmp_path / "o")
    assert code == 1 and "bad.png" in err
    (row,) = json.loads(said)["variants"]
    assert row["num_images"] == 30 and len(json.loads(said)["skipped"]) == 1


def test_registers_that_a_model_came_with_are_its_own(run: Run, place: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "reg", registers=2)
    given = ["--data", place / "colours", *shlex.split(SHORT), "--no-frozen", "--json", "--out", tmp_path / "o"]
    code, said, err = run("finetune", "--model", model, *given)
    assert (code, err) == (0, "")
    (row,) = json.loads(said)["variants"]
    assert (row["title"], row["num_registers"]) == ("its own 2 registers", 2)
    assert load(str(tmp_path / "o" / row["checkpoint"])).layout().num_registers == 2
    assert all("without a control" in one["conclusion"] for one in json.loads(said)["compared"])


REFUSED = [
    ("--lr 0", "got --lr 0.0; give a positive number"),
    ("--lr 1e40", "got --lr 1e.40; give a positive number, 3e.38 at most"),
    ("--lr nan", "got --lr .*nan.*; give a finite number"),
    ("--lr 0.1", "got --lr 0.1, 0.1; give each once"),
    ("--smoothing 1.5", "got --smoothing 1.5; allowed is 0 to 0.9"),
    ("--num-reg -1", "give numbers of registers, 0 or more"),
    ("--recipe magic", "got --recipe 'magic'; allowed are small, vit"),
    ("--development 1", "got --development 1; give a share between 0 and 1"),
    ("--development 0.99 --lr 0.2", "of the 40 images of train to hold out"),
    ("--num-held-out 31", "got --num-held-out 31; colours has 30 images to hold out"),
    ("--num-held-out 1", "got --num-held-out 1; give 2 or more"),
    ("--num-watched 1", "got --num-watched 1; give 2 or more"),
    ("--image-size 18", "an image height of 18 px; it must be a multiple of the patch, 4 px"),
    ("--steps 0", "got --steps 0; give 1 or more"),
    ("--warmup 6", "got --warmup 6 for 6 steps"),
    ("--augment magic", "got --augment 'magic'"),
    ("--trainable magic", "got --trainable 'magic'"),
    ("--data {there}/one", "one class only"),
    ("--held-out {there}/one --data {there}/colours/train", "got --held-out with 2 sets; it is for one"),
    ("--data {there}/nowhere", "nowhere: no such file"),
    ("--data -", "got -, a list on stdin"),
    ("--data vtab:{there}/vtab/magic", "'magic' is no task of VTAB-1k"),
    ("--real {there}/real.json", "a list of 0, where a list of 50,000 lists is needed"),
    ("--real timm", "ReaL labels|number of ImageNet's validation images"),
    ("--real {there}/none.json", "none.json"),
    ("--format bmp", "got format 'bmp'"),
    ("--device gpu", "got device 'gpu'"),
]


@pytest.mark.parametrize(("given", "said"), REFUSED)
def test_it_is_refused_in_one_line_and_nothing_is_written(
    given: str, said: str, run: Run, place: Path, tmp_path: Path
) -> None:
    """What is written first counts as given: ``--lr 0.1`` comes a second time."""
    more = shlex.split(given.format(there=place))
    code, printed, err = run(*asked(place, *more, "--out", str(tmp_path / "out")))
    assert (code, printed) == (2, ""), err
    assert err.startswith("vitprobe: ") and err.count("\n") == 1, err
    assert re.search(said, err), err
    assert list(tmp_path.iterdir()) == []


def test_other_models_and_folders_are_refused(run: Run, finished: tuple[Path, str], tmp_path: Path) -> None:
    for extra in (["--lr", "0.1"], ["--no-frozen"], ["--no-control"], ["--out", "other"]):
        code, _, err = run("finetune", "--resume", finished[0], *extra)
        assert code == 2 and err.startswith(f"vitprobe: got {extra[0]} with --resume") and err.count("\n") == 1
    code, _, err = run("train-registers", "--resume", finished[0])
    assert code == 2 and "holds no run of train-registers (it is vitprobe.finetune.options/1)" in err
    code, _, err = run("finetune", "--out", finished[0])
    assert code == 2 and f"give --resume {finished[0]}" in err
    code, _, err = run("finetune", "--model", "nonsense", "--out", tmp_path / "o")
    assert code == 2 and "got model 'nonsense'" in err
    code, _, err = run("finetune", "--model", "timm:resnet18", "--weights", "random", "--out", tmp_path / "o")
    assert code == 2 and err.count("\n") == 1


def test_several_processes_are_refused(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitprobe.cli import session

    class Two:
        world = 2

        def __enter__(self) -> "Two":
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(session.Shards, "open", lambda _device: Two())
    code, _, err = run(*asked(place))
    assert code == 2 and "finetune runs in one process" in err
