"""``vitprobe norms`` in two processes of torchrun: the result of one process, one voice, one message for an error."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from vitprobe import results

ROOT = Path(__file__).parents[2]
LAUNCH = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint")
ASKED = ("--batch-size", "2", "--format", "none", "--json")

DRIVER = """
import os, signal, sys, time
import vitprobe.cli.run_norms as body
from vitprobe.cli import main
from vitprobe.errors import VitprobeError

case, rank, plain = sys.argv.pop(1), int(os.environ["RANK"]), body.measure_norms

def measure(*args, **kwargs):
    if case == "raises" and rank == 1:
        raise VitprobeError("process 1 would not")
    if case == "memory" and rank == 1:
        raise RuntimeError("CUDA out of memory. Tried to allocate 9.00 GiB")
    if case == "killed":
        time.sleep(1 if rank else 60)
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(*args, **kwargs)

def draw(*_):
    raise OSError(28, "No space left on device")

body.measure_norms = measure
body.draw = draw if case == "full" else body.draw
main()
"""


def launch(folder, *args, driver=()):
    """Run in two processes: torchrun's exit code, stdout, what the program itself said on stderr, and all of it."""
    command = [sys.executable, *LAUNCH, "localhost:0", *(driver or ("-m", "vitprobe")), *map(str, args)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=180)
    own = [line for line in done.stderr.splitlines() if line.startswith(("vitprobe:", "skipped", "2 inputs"))]
    return done.returncode, done.stdout, own, done.stderr


@pytest.fixture
def photos(tmp_path):
    """Nine pictures, one with alpha, and two files in different shares that are none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(9):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 4 if i == 7 else 3), dtype=np.uint8))
        coarse.resize((120, 90)).save(folder / f"{i}.png")
    for i in (1, 6):
        (folder / f"{i}b.png").write_text("no picture")
    return folder


@pytest.fixture
def one_thread():
    """Run this process with one thread, as torchrun's run: the number of threads may decide the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def same(found, expected):
    """Whether two summaries agree, floating-point numbers to 1e-9 of their size."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return found == (pytest.approx(expected, rel=1e-9) if isinstance(expected, float) else expected)


def test_two_processes_give_the_result_of_one(run, photos, tmp_path, one_thread):
    models = ("--model", "organism", "--model", "organism-reg4")
    asked = (photos, *ASKED, *models, "--tokens", "--rule", "p98", "--all-rules")
    code, out, err = run("norms", *asked, "--out", tmp_path / "one")
    assert code == 1
    launched, both, said, everything = launch(tmp_path, "norms", *asked, "--out", tmp_path / "two")
    assert launched == 1 and everything.count("exitcode  : 1") == 2, everything
    assert same(json.loads(both), json.loads(out))
    assert said == err.splitlines() and len(said) == 3
    for name in ("organism", "organism-reg4"):
        one, two = results.load(tmp_path / "one" / name), results.load(tmp_path / "two" / name)
        assert two.provenance["inputs"] == one.provenance["inputs"]
        assert one.provenance["inputs"]["num_images"] == 9 and len(one.provenance["inputs"]["notes"]) == 1
        assert two.summary["skipped"] == one.summary["skipped"] and len(one.summary["skipped"]) == 2
        assert (two.provenance["device"], two.settings) == ("cpu", {**one.settings, "processes": 2})
        assert two.arrays.keys() == one.arrays.keys() and two.files == one.files
        for key, value in one.arrays.items():
            if value.dtype.kind == "f":
                np.testing.assert_allclose(two.arrays[key], value, rtol=1e-9, err_msg=key)
            else:
                assert np.array_equal(two.arrays[key], value), key
        tables = [parquet.read_table(tmp_path / which / name / "tokens.parquet") for which in ("one", "two")]
        assert tables[1].equals(tables[0]) and len(tables[0]) >= 9 * 8 * 197
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "photos", "two"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("raises", "process 1 would not"),
        ("memory", "out of memory; try a smaller --batch-size"),
        ("killed", "stopped by the launcher"),
        ("full", "No space left on device"),
    ],
)
def test_an_error_in_any_process_is_one_message_and_leaves_nothing(photos, tmp_path, case, says):
    (tmp_path / "driver.py").write_text(DRIVER)
    code, out, said, everything = launch(tmp_path, case, "norms", photos, *ASKED, driver=("driver.py",))
    assert (code, out, len(said)) == (1, "", 1) and says in said[0], everything
    assert "exitcode  : 2" in everything and ("exitcode  : -9" in everything) == (case == "killed")
    assert "vitprobe/" not in everything  # no stack trace of ours
    assert list((tmp_path / "runs/norms").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["norms", "photos", "--rule", "5sd"], "allowed are auto"),
        (["norms", "missing"], "missing: no such file"),
        (["norms", "photos/1b.png", "photos/6b.png", "--batch-size", "1"], "no image could be read"),
        (["attn-maps", "photos"], "attn-maps runs in one process"),
    ],
)
def test_a_bad_argument_is_one_message(photos, tmp_path, args, says):
    code, out, said, everything = launch(tmp_path, *args)
    assert (code, out, len(said)) == (1, "", 1) and says in said[0], everything
    assert everything.count("exitcode  : 2") == 2
    assert not list(tmp_path.glob("runs/*/*"))


@pytest.mark.slow
def test_an_option_that_is_none_is_explained_once(tmp_path):
    _, out, _, everything = launch(tmp_path, "norms", "--bogus")
    assert out == "" and everything.count("No such option") == 1 and everything.count("exitcode  : 2") == 2


@pytest.mark.slow
def test_fewer_images_than_processes(photos, tmp_path):
    code, out, said, _ = launch(tmp_path, "norms", "photos/0.png", "photos/2.png", *ASKED)
    assert (code, said, json.loads(out)["num_images"]) == (0, [], 2)
    (folder,) = (tmp_path / "runs/norms").iterdir()  # one clock decides its name
    assert results.load(folder).settings["processes"] == 2
