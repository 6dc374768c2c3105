"""``train-registers`` as a process: interrupted, out of disk, its data gone, started by a launcher."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COMMAND = [sys.executable, "-m", "vitprobe", "train-registers"]
SHAPE = ("depth=2", "embed_dim=32", "num_heads=2")
TINY = [word for pair in SHAPE for word in ("--arch-arg", pair)]
TINY += ["--batch-size", "8", "--num-held-out", "8", "--device", "cpu", "--format", "none", "--seed", "3"]
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

pytestmark = pytest.mark.slow


def start(arguments: Sequence[str], **kwargs: object) -> subprocess.Popen:
    return subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)


def wait_for(path: Path, lines: int, process: subprocess.Popen) -> None:
    """Wait until a file has so many lines."""
    limit = time.monotonic() + 120
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.01)


def photos(folder: Path, number: int) -> Path:
    """Write noise in two classes."""
    draw = np.random.default_rng(0)
    for i in range(number):
        path = folder / f"class{i % 2}" / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return folder


def models(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("model.safetensors"))}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_writes_a_checkpoint_and_goes_on(number: signal.Signals, tmp_path: Path) -> None:
    asked = [*TINY, "--steps", "60", "--eval-every", "30", "--num-reg", "2"]
    whole = start([*asked, "--out", str(tmp_path / "whole")])
    assert whole.communicate()[1] == ""
    assert whole.returncode == 0
    process = start([*asked, "--out", str(tmp_path / "parts")])
    wait_for(tmp_path / "parts" / "reg0" / "metrics.jsonl", 2, process)
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == 128 + number
    assert out == ""
    assert err.count("\n") == 1
    assert "--resume" in err
    assert not (tmp_path / "parts" / "result.json").exists()
    again = start(["--resume", str(tmp_path / "parts"), "--format", "none"])
    assert again.communicate()[1] == ""
    assert again.returncode == 0
    assert models(tmp_path / "parts") == models(tmp_path / "whole")
    stored = [json.loads((tmp_path / name / "result.json").read_text())["summary"] for name in ("whole", "parts")]
    for summary in stored:
        for row in summary["variants"]:
            row.pop("curve", None)
    assert stored[0] == stored[1]


def test_a_full_disk_ends_in_one_line_with_the_last_checkpoint_whole(tmp_path: Path) -> None:
    """A run goes on where no file may grow over 300 kB: its next checkpoint's training state does not fit."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    asked = [*TINY, "--arch-arg", "embed_dim=64", "--steps", "5000", "--eval-every", "20"]
    first = start([*asked, "--out", str(tmp_path / "run")])
    wait_for(tmp_path / "run" / "reg0" / "last" / "checkpoint.json", 1, first)
    first.send_signal(signal.SIGTERM)
    first.communicate()
    before = models(tmp_path / "run")
    process = start(["--resume", str(tmp_path / "run")], preexec_fn=limit)
    out, err = process.communicate()
    assert process.returncode == 2, err
    assert out == ""
    assert err.startswith("vitprobe: cannot write a checkpoint to ")
    assert err.count("\n") == 1
    assert "is whole in" in err
    assert models(tmp_path / "run") == before
    assert not list((tmp_path / "run" / "reg0").glob(".writing*"))


def test_a_group_that_is_told_to_end_writes_a_checkpoint(tmp_path: Path) -> None:
    """As schedulers do it: the workers that read images get the signal too."""
    folder = photos(tmp_path / "photos", 60)
    asked = [*TINY, "--data", str(folder), "--steps", "5000", "--eval-every", "1000", "--workers", "2"]
    process = start([*asked, "--out", str(tmp_path / "run")], start_new_session=True)
    wait_for(tmp_path / "run" / "reg0" / "metrics.jsonl", 3, process)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert err.count("\n") == 1, err
    assert (tmp_path / "run" / "reg0" / "last" / "checkpoint.json").exists()
    next((folder / "class0").iterdir()).unlink()
    again = start(["--resume", str(tmp_path / "run")])
    assert "have changed since it began" in again.communicate()[1]
    assert again.returncode == 2


FAILING = """
import sys
from vitprobe.errors import InputError
from vitprobe.training.step import Stepper
import os
take = Stepper.take
def fails(self, batches, step):
    if step == 5 and os.environ["RANK"] == "1":
        raise InputError("photo.jpg is gone")
    return take(self, batches, step)
Stepper.take = fails
from vitprobe.cli import main
main()
"""


def test_an_error_in_one_process_ends_all(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text(FAILING)
    asked = [*TINY, "--steps", "50", "--eval-every", "3", "--out", str(tmp_path / "run")]
    command = [*LAUNCHER, str(tmp_path / "fails.py"), "train-registers", *asked]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert done.stderr.count("vitprobe: ") == 1, done.stderr
    assert "photo.jpg is gone" in done.stderr
    assert json.loads((tmp_path / "run" / "reg0" / "last" / "checkpoint.json").read_text())["step"] == 3


def test_a_file_that_vanishes_ends_in_one_line(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 60)
    asked = [*TINY, "--data", str(folder), "--steps", "5000", "--eval-every", "20", "--workers", "0"]
    process = start([*asked, "--out", str(tmp_path / "run")])
    wait_for(tmp_path / "run" / "reg0" / "last" / "checkpoint.json", 1, process)
    for path in (folder / "class1").iterdir():
        path.unlink()
    _, err = process.communicate()
    assert process.returncode == 2
    assert err.count("\n") == 1, err
    assert "class1" in err
    state = json.loads((tmp_path / "run" / "reg0" / "last" / "checkpoint.json").read_text())
    assert state["step"] % 20 == 0


def test_a_launcher_gives_the_same_answer(tmp_path: Path) -> None:
    asked = [*TINY, "--steps", "20", "--eval-every", "10", "--optimizer", "sgd", "--json"]
    single = start([*asked, "--out", str(tmp_path / "one")])
    alone = json.loads(single.communicate()[0])
    device = asked.index("--device")  # left out: on a machine without a GPU the processes must join all the same
    command = [*LAUNCHER, "-m", "vitprobe", "train-registers", *asked[:device], *asked[device + 2 :]]
    command += ["--out", str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    both = json.loads(done.stdout)
    for one, two in zip(alone["variants"], both["variants"], strict=True):
        assert one["verdict"] == two["verdict"]
        assert one["outlier_fraction"] == pytest.approx(two["outlier_fraction"], abs=1e-3)
        assert one["measures"]["accuracy"] == pytest.approx(two["measures"]["accuracy"], abs=0.02)
    assert models(tmp_path / "two").keys() == models(tmp_path / "one").keys()


def test_compiled_blocks_are_trained_and_looked_into(tmp_path: Path) -> None:
    """Compiled code rounds otherwise, so the numbers agree to a tolerance; the recorder still sees every site."""
    asked = [*TINY, "--steps", "6", "--eval-every", "3", "--optimizer", "sgd", "--json", "--no-control"]
    found = []
    for extra in ([], ["--compile"]):
        process = start([*asked, *extra, "--out", str(tmp_path / f"run{len(extra)}")])
        out, err = process.communicate()
        assert process.returncode == 0, err
        found.append(json.loads(out)["variants"][0])
    assert found[0]["norm"] == pytest.approx(found[1]["norm"], rel=1e-3)
    assert found[0]["attention"]["registers"] == pytest.approx(found[1]["attention"]["registers"], rel=1e-3)
