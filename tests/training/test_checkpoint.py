"""Checkpoints are whole or absent, whenever the process ends."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from vitprobe.errors import InputError, OutputError, WeightsError
from vitprobe.training import checkpoint


def write(folder: Path, step: int) -> None:
    with checkpoint.writing(folder) as aside:
        (aside / "model.safetensors").write_bytes(b"weights" * step)
        state = {"w": torch.full((3,), float(step))}
        checkpoint.write_state(aside, step=step, objective=state, optimizer={"state": {}}, about={"variant": "reg0"})


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    assert checkpoint.read(tmp_path / "new") is None
    write(tmp_path, 3)
    write(tmp_path, 5)
    saved = checkpoint.read(tmp_path)
    assert saved is not None
    assert (saved.step, saved.objective["w"].tolist()) == (5, [5.0, 5.0, 5.0])
    assert checkpoint.step_of(tmp_path) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("writing failed")])
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, error: Exception) -> None:
    write(tmp_path, 3)
    with pytest.raises(OutputError, match="of step 3, is whole"), checkpoint.writing(tmp_path) as aside:
        (aside / "model.safetensors").write_bytes(b"half")
        raise error
    assert checkpoint.read(tmp_path).step == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last"]


def test_an_end_between_the_two_moves_is_made_good(tmp_path: Path) -> None:
    write(tmp_path, 3)
    os.replace(tmp_path / "last", tmp_path / ".previous")
    (tmp_path / ".writing").mkdir()
    checkpoint.recover(tmp_path)
    assert checkpoint.read(tmp_path).step == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last"]


def test_kept_checkpoints_are_models_without_state(tmp_path: Path) -> None:
    write(tmp_path, 3)
    checkpoint.keep(tmp_path, 3)
    write(tmp_path, 4)
    assert (tmp_path / "step-3" / "model.safetensors").read_bytes() == b"weights" * 3
    assert not (tmp_path / "step-3" / checkpoint.STATE).exists()


def test_a_damaged_checkpoint_is_said_to_be_one(tmp_path: Path) -> None:
    write(tmp_path, 3)
    path = tmp_path / "last" / checkpoint.STATE
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(WeightsError, match=r"training\.pt cannot be read"):
        checkpoint.read(tmp_path)


class _Code:
    def __reduce__(self) -> tuple:
        return (os.system, ("echo run > ran",))


def test_nothing_in_a_checkpoint_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, 3)
    torch.save({"step": 1, "objective": _Code(), "optimizer": {}}, tmp_path / "last" / checkpoint.STATE)
    with pytest.raises(WeightsError):
        checkpoint.read(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_options_of_no_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        checkpoint.read_run(tmp_path)


LOOP = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_checkpoint import write
folder = Path(sys.argv[1])
for step in range(1, 10_000):
    write(folder, step)
    print(step, flush=True)
"""


def test_killed_at_any_moment_a_whole_checkpoint_is_left(tmp_path: Path) -> None:
    code = LOOP.format(here=str(Path(__file__).parent))
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(0.05 + 0.037 * attempt)
        process.send_signal(signal.SIGKILL)
        done = int((first + process.stdout.read()).split()[-1])
        process.wait()
        process.stdout.close()
        checkpoint.recover(folder)
        saved = checkpoint.read(folder)
        assert saved is not None
        assert saved.step in (done, done + 1)
        assert (folder / "last" / "model.safetensors").read_bytes() == b"weights" * saved.step
        assert sorted(path.name for path in folder.iterdir()) == ["last"]
