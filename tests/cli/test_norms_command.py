"""The command ``norms`` as its user meets it: exit codes, stdout, stderr, what is on disk."""

import json

import numpy as np
import pytest
from PIL import Image

from vitprobe import results

FIGURES = {f"{name}.png" for name in ("histogram", "blocks", "kinds", "frequency", "examples", "attention")}
SUMMARY_KEYS = {
    "model", "num_images", "num_patch_tokens", "block", "norm_point", "rule", "cutoff", "bimodal", "outlier_fraction",
    "outlier_fraction_ci", "onset_block", "norm", "verdict", "evidence", "skipped",
}  # fmt: skip


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((120, 90)).save(folder / f"{i}.png")
    return folder


def test_without_arguments_it_shows_planted_artifacts(run, tmp_path):
    code, out, err = run("norms")
    assert code == 0 and err == ""
    assert "artifacts" in out and "organism, planted" in out
    (folder,) = (tmp_path / "runs/norms").iterdir()
    assert str(folder.relative_to(tmp_path)) in out
    assert {p.name for p in folder.iterdir()} == {"result.json", "arrays.npz"} | FIGURES
    body = json.loads((folder / "result.json").read_text())
    assert body["schema"] == "vitprobe.norms/1"
    assert body["summary"].keys() >= SUMMARY_KEYS
    assert body["summary"]["num_images"] == 8 and body["summary"]["verdict"] == "artifacts"
    assert body["provenance"]["model"]["weights"] == "planted (seed 0)"
    assert body["provenance"]["command"] == ["vitprobe", "norms"]
    assert body["files"].keys() == {"arrays.npz"} | FIGURES


def test_json_prints_the_summary_and_nothing_else(run, tmp_path):
    code, out, err = run("norms", "--json", "--format", "none", "--out", tmp_path / "r", "--all-rules")
    assert code == 0 and err == ""
    assert json.loads(out) == json.loads((tmp_path / "r/result.json").read_text())["summary"]
    assert len(json.loads(out)["all_rules"]) == 7


def test_several_models_give_a_list_and_a_result_each(run, photos, tmp_path):
    names = ("timm:vit_tiny_patch16_224", "open_clip:ViT-B-32", "timm:vit_tiny_patch16_224")[:2]
    args = [x for name in names for x in ("--model", name)]
    code, out, _ = run(
        "norms", photos, *args, "--weights", "random", "--json", "--out", tmp_path / "r", "--image-size", "64x96"
    )
    assert code == 0
    assert [one["model"] for one in json.loads(out)] == list(names)
    assert {p.name for p in (tmp_path / "r").iterdir()} >= FIGURES | {"result.json"}
    inner = results.load(tmp_path / "r/open_clip-ViT-B-32")
    assert inner.summary["model"] == names[1] and inner.arrays["outlier_frequency"].shape == (2, 3)
    assert inner.provenance["model"]["weights"] == "random (seed 0)"


def test_one_bad_image_is_named_and_skipped(run, photos, tmp_path):
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff no more")
    code, _, err = run("norms", photos, "--format", "none", "--out", tmp_path / "r")
    assert code == 1
    assert "broken.jpg" in err and "1 input could not be read" in err
    summary = json.loads((tmp_path / "r/result.json").read_text())["summary"]
    assert [one["name"] for one in summary["skipped"]] == [str(photos / "broken.jpg")]
    assert summary["num_images"] == 4


def test_the_token_table_holds_every_token(run, photos, tmp_path):
    from pyarrow import parquet

    run(
        "norms",
        photos,
        "--tokens",
        "--format",
        "none",
        "--out",
        tmp_path / "r",
        "--model",
        "organism-reg4",
        "--rule",
        "p98",
    )
    table = parquet.read_table(tmp_path / "r/tokens.parquet").to_pydict()
    stored = results.load(tmp_path / "r")
    assert list(table) == ["image", "block", "kind", "row", "col", "norm", "outlier"]
    assert len(table["norm"]) == 4 * 8 * (1 + 4 + 196)
    kinds, blocks, norms = np.array(table["kind"]), np.array(table["block"]), np.array(table["norm"], np.float32)
    last = (blocks == 7) & (kinds == "patch")
    assert norms[last].max() == np.float32(stored.summary["norm"]["max"])
    assert np.array(table["outlier"])[last].mean() == pytest.approx(stored.summary["outlier_fraction"])
    assert (np.array(table["outlier"])[last] == (norms[last] >= stored.summary["cutoff"])).all()
    assert not np.array(table["outlier"])[kinds != "patch"].any()
    first = (np.array(table["image"]) == table["image"][0]) & last
    grid = np.zeros((14, 14), np.float32)
    grid[np.array(table["row"])[first].astype(int), np.array(table["col"])[first].astype(int)] = norms[first]
    assert (grid == stored.arrays["example_norms"][0]).all()


def test_a_result_is_drawn_again_from_its_numbers(run, photos, tmp_path):
    run("norms", photos, "--out", tmp_path / "r")
    before = {p.name: p.read_bytes() for p in (tmp_path / "r").glob("*.png")}
    for name in before:
        (tmp_path / "r" / name).unlink()
    code, _, err = run("redraw", tmp_path / "r")
    assert (code, err) == (0, "")
    assert {p.name: p.read_bytes() for p in (tmp_path / "r").glob("*.png")} == before
    code, out, _ = run("redraw", tmp_path / "r", "--format", "svg")
    assert code == 0 and len(out.split()) == len(FIGURES)


def test_a_folder_that_cannot_be_drawn_into_is_one_line(run, photos, tmp_path, monkeypatch):
    run("norms", photos, "--format", "none", "--out", tmp_path / "r")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vitprobe.plots.write", full)
    code, out, err = run("redraw", tmp_path / "r")
    assert (code, out) == (2, "") and "No space left" in err and err.count("\n") == 1


def test_a_block_and_the_final_norm_can_be_asked_for(run, tmp_path):
    def summary(*args):
        return json.loads(run("norms", "--json", "--format", "none", "--out", tmp_path / "r", *args)[1])

    assert (summary("--block", "2")["block"], summary("--block", "2")["verdict"]) == (2, "none")
    assert [line["verdict"] for line in summary("--block", "all")["blocks"]] == ["none"] * 4 + ["artifacts"] * 4
    after = summary("--after-final-norm")
    assert (after["norm_point"], after["verdict"], after["block"]) == ("final_norm", "none", 7)


def test_the_same_call_gives_the_same_numbers(run, photos, tmp_path):
    first = run("norms", photos, "--json", "--format", "none", "--out", tmp_path / "a")[1]
    assert run("norms", photos, "--json", "--format", "none", "--out", tmp_path / "b", "--workers", "2")[1] == first


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--model", "dino2"], "did you mean"),
        (["--rule", "5sd"], "allowed are auto"),
        (["--block", "8"], "allowed are 0 to 7"),
        (["--block", "-1"], "allowed are 0 to 7"),
        (["--image-size", "big"], "allowed are N or HxW"),
        (["--image-size", "100"], "96 or 112"),
        (["--device", "tpu9"], "device"),
        (["--dtype", "int8"], "float32 and bfloat16"),
        (["--format", "gif"], "png, svg, pdf"),
        (["--weights", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--weights", "random", "--weights", "hub"], "2 --weights for 1 models"),
        (["--limit", "0"], "limit"),
        (["--batch-size", "0"], "batch size"),
        (["missing-folder"], "missing-folder"),
        (["--out", "."], "is no result"),
        (["--after-final-norm", "--block", "3"], "--after-final-norm"),
    ],
)
def test_bad_arguments_get_one_line_and_leave_nothing(run, photos, tmp_path, args, says):
    code, out, err = run("norms", *args)
    assert code == 2 and out == ""
    assert says in err and err.count("\n") == 1
    assert {p.name for p in tmp_path.rglob("*") if p.is_dir()} <= {"photos", "runs", "norms"}
    assert not list(tmp_path.glob("runs/norms/*"))


def test_nothing_readable_is_exit_code_2(run, tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    code, out, err = run("norms", tmp_path / "bad.png")
    assert (code, out) == (2, "") and "bad.png" in err
    assert not list(tmp_path.glob("runs/norms/*"))


def test_an_interrupt_is_one_line_and_leaves_nothing(run, monkeypatch, tmp_path):
    def stops(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("vitprobe.cli.run_norms.measure_norms", stops)
    code, out, err = run("norms")
    assert (code, out) == (130, "") and err == "vitprobe: interrupted; nothing was written\n"
    assert not list(tmp_path.glob("runs/norms/*"))


def test_a_full_memory_is_one_line(run, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("CUDA out of memory. Tried to allocate 9.00 GiB")

    monkeypatch.setattr("vitprobe.cli.run_norms.measure_norms", fails)
    code, _, err = run("norms")
    assert code == 2 and "smaller --batch-size" in err and err.count("\n") == 1
