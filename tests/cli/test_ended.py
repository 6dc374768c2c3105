"""A program that is ended from outside leaves nothing half-written, and says how to go on where it can."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vitprobe.cli import run_fetch, run_finetune


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_measurement_that_is_ended_leaves_nothing(number, tmp_path):
    given = "norms scenes --limit 100000 --model scenes-content --workers 0 --format none --device cpu --out r"
    program = f"import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); {MAIN}"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *shlex.split(given)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(tmp_path.glob(".r.*")), process.communicate()  # it was being written
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (128 + number, "", "vitprobe: interrupted; nothing was written\n")
    assert list(tmp_path.iterdir()) == []


MAIN = "from vitprobe.cli import main; main()"


def test_fine_tuning_interrupted_between_trainings_says_how_to_go_on(run, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_finetune.Work, "run", interrupted)
    code, out, err = run(
        "finetune", "--limit", "60", "--num-held-out", "20", "--device", "cpu", "--out", tmp_path / "o"
    )
    assert (code, out) == (130, "")
    assert err == f"vitprobe: interrupted; go on with --resume {tmp_path / 'o'}\n"
    assert (tmp_path / "o" / "run.json").exists()


@pytest.mark.parametrize(("error", "ends"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)])
def test_an_interrupted_fetch_says_that_what_came_is_kept(error, ends, run, monkeypatch):
    def interrupted(*_):
        raise error

    monkeypatch.setattr(run_fetch, "_fetch", interrupted)
    code, out, err = run("fetch", "deit3-s16")
    assert (code, out) == (ends, "")
    assert err == "vitprobe: deit3-s16: interrupted; what came is kept, fetch again to go on\n"
