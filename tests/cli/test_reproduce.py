"""``reproduce`` from end to end on embedded models: what it writes, what it says, what it refuses."""

import json

import numpy as np
import pytest
from PIL import Image

from vitprobe.reproduction.table import TABLE

FEW = ["--limit", "12", "--workers", "0", "--device", "cpu"]


def pictures(folder, number=9):
    draw = np.random.default_rng(0)
    folder.mkdir()
    for i in range(number):
        Image.fromarray(draw.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def test_without_items_they_are_listed(run):
    code, said, err = run("reproduce")
    assert (code, err) == (0, "")
    for words in (*TABLE, "Table 3", "voc2007", "boxes around objects"):
        assert words in said
    listed = json.loads(run("reproduce", "--json")[1])
    assert [one["item"] for one in listed["items"]] == list(TABLE)


def test_items_of_one_call_stand_beside_each_other(run, tmp_path):
    out = tmp_path / "out"
    code, said, err = run("reproduce", "fig3", "fig7", *FEW, "--out", out)
    assert (code, err) == (0, "")
    for words in ("organism-reg4", "2.4% DINOv2-g [paper]", "fig7", "written to"):
        assert words in said
    assert {path.name for path in out.iterdir()} == {"result.json", "fig3", "fig7"}
    models = {"organism", "organism-reg4", "organism-clean"}
    assert {path.name for path in (out / "fig3").iterdir()} == models | {"result.json", "histogram.png", "table.md"}
    text = (out / "fig3" / "table.md").read_text()
    assert "| patches over the cutoff |" in text and "2.4% DINOv2-g [paper]" in text and "arXiv 2309.16588" in text
    stored = json.loads((out / "result.json").read_text())
    assert stored["schema"] == "vitprobe.reproduce/1" and set(stored["summary"]["items"]) == {"fig3", "fig7"}
    row = stored["summary"]["items"]["fig3"]["rows"][0]
    assert row["cells"][0]["value"] > 0.01 and row["cells"][2]["value"] == 0
    assert row["published"][0]["value"] == 0.0237 and row["published"][0]["trust"] == "paper"
    own = json.loads((out / "fig3" / "organism" / "result.json").read_text())
    assert own["settings"]["item"] == "fig3" and own["provenance"]["inputs"]["test"]["num_images"] == 12
    assert len(own["provenance"]["inputs"]["test"]["digest"]) == 64


def test_a_result_is_drawn_again_from_its_numbers(run, tmp_path):
    out = tmp_path / "out"
    run("reproduce", "fig15", "fig1", "-m", "organism", *FEW, "--out", out, "--format", "none")
    assert not list(out.rglob("*.png"))
    code, said, _ = run("redraw", out, "--format", "svg")
    assert code == 0 and {line.rsplit("/", 1)[-1] for line in said.splitlines()} == {"kinds.svg", "maps.svg"}
    code, said, _ = run("redraw", out / "fig15")
    assert code == 0 and (out / "fig15" / "kinds.png").is_file()


def test_what_images_do_not_have_is_said_and_left_out(run, tmp_path):
    folder = pictures(tmp_path / "pictures")
    code, _, err = run("reproduce", "table3", "--data", folder, *FEW)
    assert code == 2 and "table3" in err and "boxes around objects" in err and len(err.splitlines()) == 1
    code, said, err = run("reproduce", "table3", "fig15", "-m", "organism", "--data", folder, *FEW, "--json")
    assert (code, err) == (0, "")
    summary = json.loads(said)
    assert set(summary["items"]) == {"fig15"} and "boxes" in summary["left_out"]["table3"][0]


def test_a_broken_image_is_named_and_the_rest_is_measured(run, tmp_path):
    folder = pictures(tmp_path / "pictures")
    (folder / "5.png").write_bytes(b"no image at all")
    code, said, err = run("reproduce", "fig15", "-m", "organism-clean", "--data", folder, *FEW)
    assert code == 1 and "5.png" in err and "1 input could not be read" in err and "fig15" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fig99"], "got item 'fig99'; allowed are fig1, fig3"),
        (["fig3", "--set", "bias=1"], "got --set 'bias=1'; allowed is"),
        (["fig1", "--set", "num_shown"], "got --set 'num_shown'"),
        (["fig3", "--rule", "many"], "got rule 'many'"),
        (["fig3", "--block", "12", *FEW], "got block '12'; allowed are 0 to 7"),
        (["fig3", "--block", "all", *FEW], "block"),
        (["fig3", "--block", "99", *FEW], "allowed are 0 to 7, and last"),
        (["fig3", "--run", "nowhere", *FEW], "got --run nowhere, which no item asked for reads"),
        (["fig3", "--data", "nowhere"], "nowhere"),
        (["fig3", "--limit", "0"], "limit"),
        (["fig3", "-m", "nobody"], "nobody"),
        (["table2-zero-shot", *FEW], "text tower"),
        (["fig4b", "--run", "nowhere"], "no kept checkpoints"),
        (["fig8", "--run", "nowhere"], "no result"),
    ],
)
def test_what_is_refused(run, tmp_path, arguments, words):
    code, said, err = run("reproduce", *arguments, "--out", tmp_path / "out")
    assert code == 2 and said == "" and words in err and len(err.splitlines()) == 1, err
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_choices_go_to_the_items_that_have_them(run, tmp_path):
    out = tmp_path / "out"
    code, _, err = run("reproduce", "fig1", "fig3", "-m", "organism", "--set", "fig1.num_shown=2", *FEW, "--out", out)
    assert (code, err) == (0, "")
    stored = json.loads((out / "fig1" / "result.json").read_text())
    assert stored["settings"]["options"]["num_shown"] == 2 and stored["summary"]["maps"]["num_images"] == 2
    assert json.loads((out / "fig3" / "result.json").read_text())["settings"]["options"] == {}


def test_one_model_with_two_files_of_weights_is_two_models(run, tmp_path):
    from vitprobe import backbones
    from vitprobe.backbones.export import export

    files = []
    for seed in (0, 1):
        folder = tmp_path / f"seed{seed}"
        folder.mkdir()
        export(backbones.load("timm:vit_tiny_patch16_224", weights="random", seed=seed, image_size=(64, 64)), folder)
        files.append((folder / "model.safetensors").rename(tmp_path / f"weights{seed}.safetensors"))
    models = ["-m", "timm:vit_tiny_patch16_224", "-m", "timm:vit_tiny_patch16_224", "--image-size", "64"]
    weights = ["--weights", files[0], "--weights", files[1]]
    code, said, err = run("reproduce", "fig3", *models, *weights, *FEW, "--json", "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    item = json.loads(said)["items"]["fig3"]
    assert [title.rpartition(", ")[2] for title in item["columns"]] == ["weights0.safetensors", "weights1.safetensors"]
    medians = next(row["cells"] for row in item["rows"] if row["what"] == "median norm")
    assert medians[0]["value"] != medians[1]["value"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "organism", "-m", "organsim"], "did you mean organism"),
        (["--data", "scenes", "--data", "voc2007:nowhere"], "no folder nowhere"),
        (["--data", "scenes", "--data", "senes"], "did you mean scenes?"),
        (["--data", "voc2077:nowhere"], "did you mean voc2007?"),
        (["-m", "reference-vit-ti", "-m", "organism", "--weights", "random", "--block", "11"], "got block '11'"),
    ],
)
def test_a_later_model_or_set_that_is_wrong_ends_the_run_before_anything_is_measured(
    run, tmp_path, monkeypatch, arguments, words
):
    from vitprobe.cli import reproduce_work

    monkeypatch.setattr(reproduce_work, "measure", lambda *_, **__: pytest.fail("something was measured"))
    code, said, err = run("reproduce", "fig3", *arguments, *FEW, "--out", tmp_path / "out")
    assert code == 2 and said == "" and words in err and len(err.splitlines()) == 1, err
    assert list(tmp_path.iterdir()) == []


def test_a_set_to_test_on_alone_serves_the_items_that_train_nothing(run, tmp_path):
    for name in ("n01", "n02"):
        (tmp_path / "set" / "train").mkdir(parents=True, exist_ok=True)
        pictures(tmp_path / "set" / "train" / name, 3)
    data = f"imagenet:{tmp_path / 'set'}:train"
    code, said, err = run("reproduce", "fig15", "knn", "-m", "organism", "--data", data, *FEW, "--json")
    assert (code, err) == (0, "")
    summary = json.loads(said)
    assert set(summary["items"]) == {"fig15"} and "nothing is left to train on" in summary["left_out"]["knn"][0]


def test_nothing_to_read_classes_from_is_said_and_left_out(run, tmp_path):
    out = tmp_path / "out"
    code, said, err = run("reproduce", "fig3", "table1", "-m", "organism", *FEW, "--out", out, "--json")
    assert (code, err) == (0, "") and not (out / "table1").exists()
    assert "12 of 12 training images have normal tokens" in json.loads(said)["left_out"]["table1"][0]


def test_a_small_training_that_is_stopped_promises_no_checkpoint(run, tmp_path, monkeypatch):
    from vitprobe.cli import run_train
    from vitprobe.errors import Stopped

    def stopped(asked, *, out, **_):
        out.mkdir()
        raise Stopped(f"stopped at step 3; the last checkpoint is whole in {out}; go on with --resume {out}", 2)

    monkeypatch.setattr(run_train, "run", stopped)
    code, said, err = run("reproduce", "fig8", *FEW, "--out", tmp_path / "out")
    assert (code, said, err) == (130, "", "vitprobe: interrupted; nothing was written\n")
    assert list(tmp_path.iterdir()) == []
