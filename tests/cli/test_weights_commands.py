"""The commands ``models`` and ``fetch`` as their user meets them, on a hub of this machine."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from vitprobe.backbones import load
from vitprobe.backbones.hub import hub_location
from vitprobe.backbones.zoo import ALIASES, EMBEDDED, REFERENCES, ZOO
from vitprobe.cli import main

sys.path.append(str(Path(__file__).parents[1] / "backbones"))  # tests are no package
from hub_server import COMMIT, FakeHub, serving, sha256

FILE = "model.safetensors"
DEIT, DINO = (hub_location(ALIASES[alias])[0] for alias in ("deit3-s16", "dinov2-s14"))
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run the command line in a folder of its own: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vitprobe", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture(scope="session")
def true_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DeiT-III S in timm's layout, random."""
    path = tmp_path_factory.mktemp("served") / FILE
    with torch.random.fork_rng(devices=[]):
        save_file(timm.create_model("deit3_small_patch16_224").state_dict(), path)
    return path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with one small file, at the place of deit3-s16."""
    path = tmp_path / "served.safetensors"
    save_file({"a": torch.arange(40_000.0)}, path)
    with serving(tmp_path / "hub", monkeypatch) as served:
        served.files[DEIT, FILE] = path
        yield served


def switch_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_models_lists_the_zoo_and_what_is_cached(run: Run, hub: FakeHub) -> None:
    assert run("fetch", "deit3-s16")[0] == 0
    hub.asked.clear()
    code, out, err = run("models", "--json")
    rows = json.loads(out)
    assert (code, err, hub.asked) == (0, "", [])
    assert [row["alias"] for row in rows] == [*(entry.alias for entry in ZOO), *EMBEDDED, *REFERENCES]
    assert {row["alias"] for row in rows if row["cached"]} == {"deit3-s16", *EMBEDDED}
    by_alias = {row["alias"]: row for row in rows}
    assert by_alias["deit3-s16"]["file"] == f"{DEIT}/{FILE}"
    assert (by_alias["dinov2-l14"]["short_name"], by_alias["dinov2-s14"]["short_name"]) == ("dinov2", None)
    assert all(row.keys() == rows[0].keys() for row in rows)
    code, out, err = run("models")
    assert (code, err) == (0, "")
    for part in (
        *(entry.alias for entry in ZOO),
        *EMBEDDED,
        *REFERENCES,
        "fb_in22k_ft_in1k",
        "embedded",
        "arXiv 2309.16588",
    ):
        assert part in out


@pytest.mark.parametrize("name", EMBEDDED)
def test_models_tells_the_truth_about_what_is_embedded(name: str, run: Run) -> None:
    row = next(row for row in json.loads(run("models", "--json")[1]) if row["alias"] == name)
    backbone = load(name)
    assert row["params"] == round(sum(p.numel() for p in backbone.module.parameters()) / 1e6, 1)
    assert (row["num_registers"], row["paradigm"]) == (backbone.spec.num_registers, backbone.spec.paradigm)
    assert (row["patch"],) * 2 == backbone.patch_size and (row["image_size"],) * 2 == backbone.spec.image_size


def test_models_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['vitprobe', 'models', '--json']\nfrom vitprobe.cli import main\n"
        "try: main()\nfinally: sys.stderr.write(str({'torch', 'numpy', 'timm', 'open_clip'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == "set()"


def test_fetch_fills_the_cache_once(run: Run, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, true_file: Path) -> None:
    hub.files[DEIT, FILE] = true_file
    code, out, err = run("fetch", "deit3-s16")
    assert (code, err) == (0, "") and out.startswith("deit3-s16: fetched: ") and f"/{COMMIT}/{FILE} (88.3 MB)" in out
    switch_off(monkeypatch)
    code, out, err = run("fetch", "deit3-s16")
    assert (code, err) == (0, "") and out.startswith("deit3-s16: is here already, whole: ")
    assert load("deit3-s16").spec.weights == "fb_in22k_ft_in1k"
    assert not [path for path in Path(constants.HF_HUB_CACHE).rglob("*") if path.suffix in (".part", ".incomplete")]


def test_a_fetched_folder_moves_to_a_machine_without_network(
    run: Run, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, true_file: Path, tmp_path: Path
) -> None:
    hub.files[DEIT, FILE] = true_file
    code, out, err = run("fetch", "deit3-s16", "--to", "w")
    assert (code, err) == (0, "") and f"use it with --model deit3-s16 --weights w/deit3-s16/{FILE}" in out
    assert {path.name for path in Path("w/deit3-s16").iterdir()} == {FILE, "source.json"}
    record = json.loads(Path("w/deit3-s16/source.json").read_text())
    assert (record["alias"], record["repo"], record["file"]) == ("deit3-s16", DEIT, FILE)
    assert (record["revision"], record["sha256"]) == (COMMIT, sha256(true_file))
    assert (record["etag"], record["licence"]) == (record["sha256"], "Apache-2.0")
    assert record["size"] == true_file.stat().st_size and "arXiv" in record["source"]
    assert not (tmp_path / "hub").exists()  # past the cache: its room is taken once
    shutil.move("w", "elsewhere")
    switch_off(monkeypatch)
    assert load("deit3-s16", weights=f"elsewhere/deit3-s16/{FILE}").spec.weights == FILE
    assert "is here already, whole" in run("fetch", "deit3-s16", "--to", "elsewhere")[1]


def test_a_folder_is_filled_from_the_cache(run: Run, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    run("fetch", "deit3-s16")
    switch_off(monkeypatch)
    assert run("fetch", "deit3-s16", "--to", "w")[::2] == (0, "")
    record = json.loads(Path("w/deit3-s16/source.json").read_text())
    assert (record["revision"], record["sha256"]) == (COMMIT, sha256(hub.files[DEIT, FILE]))


@pytest.mark.parametrize("to", [(), ("--to", "w")])
def test_an_interrupted_fetch_goes_on(to: tuple[str, ...], run: Run, hub: FakeHub, true_file: Path) -> None:
    hub.files[DEIT, FILE] = true_file
    hub.cuts = [40_000_000, 0, 0, 0, 0]
    code, out, err = run("fetch", "deit3-s16", *to)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and "31.5 MB came and are kept: fetch again to go on" in err  # whole chunks
    hub.cuts.clear()
    hub.asked.clear()
    code, out, err = run("fetch", "deit3-s16", *to)
    assert (code, err, hub.ranges()) == (0, "", ["bytes=31457280-"])
    path = Path(out.partition(": fetched: ")[2].partition(" (")[0])
    assert path.read_bytes() == true_file.read_bytes()


@pytest.mark.parametrize("to", [(), ("--to", "w")])
def test_damage_done_later_is_found_and_mended(to: tuple[str, ...], run: Run, hub: FakeHub) -> None:
    path = Path(run("fetch", "deit3-s16", *to)[1].partition(": fetched: ")[2].partition(" (")[0])
    whole = path.read_bytes()
    path.resolve().write_bytes(whole[:-1] + b"\xff")
    code, out, err = run("fetch", "deit3-s16", *to)
    assert (code, err) == (0, "") and ": fetched: " in out
    assert path.read_bytes() == whole


def test_a_file_that_fetch_did_not_write_is_left_alone(run: Run, hub: FakeHub) -> None:
    mine = Path("w/deit3-s16") / FILE
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    code, out, err = run("fetch", "deit3-s16", "--to", "w")
    assert (code, out) == (2, "") and "is another file than the hub's (4 bytes, not 160" in err
    assert mine.read_bytes() == b"mine"
    mine.write_bytes(hub.files[DEIT, FILE].read_bytes())  # but the same bytes are taken
    assert run("fetch", "deit3-s16", "--to", "w")[0] == 0
    assert hub.ranges() == [] and (mine.parent / "source.json").exists()


def test_one_failure_does_not_stop_the_others(run: Run, hub: FakeHub) -> None:
    code, out, err = run("fetch", "dinov2-s14", "deit-s16", "organism", "deit3-s16")
    assert code == 1
    assert [line.partition(":")[0] for line in out.splitlines()] == ["organism", "deit3-s16"]
    first, second = err.splitlines()
    assert first.startswith("vitprobe: dinov2-s14: the hub (http") and f"has no repository {DINO}" in first
    assert second.startswith("vitprobe: deit-s16: is no alias") and "did you mean deit3-s16" in second
    assert run("fetch", "dinov2-s14", "deit-s16")[0] == 2


@pytest.mark.parametrize("to", [(), ("--to", "served.safetensors")])
def test_a_folder_that_cannot_be_written_is_one_line(
    to: tuple[str, ...], run: Run, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not to:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "served.safetensors"))
    code, out, err = run("fetch", "deit3-s16", *to)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "cannot write" in err and "served.safetensors" in err


@pytest.mark.parametrize("command", [("fetch", "deit3-s16"), ("norms", "--model", "deit3-s16")])
@pytest.mark.parametrize("answer", [(404, "EntryNotFound"), (401, "RepoNotFound"), (403, "GatedRepo"), (500, ""), None])
def test_each_failure_of_the_hub_is_one_line(
    command: tuple[str, ...], answer: tuple[int, str] | None, run: Run, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.5)
    hub.refuse, hub.silent = answer, answer is None
    code, out, err = run(*command)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("vitprobe: ") and "Traceback" not in err
