"""Killed at any moment and resumed, a run ends with the weights of one that was never stopped, to the last bit."""

import multiprocessing
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitprobe.training import checkpoint
from vitprobe.training.metrics import read

KILLS = 12
ASKED: dict[str, Any] = {
    "steps": 90,
    "eval_every": 2,
    "num_held_out": 4,
    "num_bank": 8,
    "keep": 3,
    "drop_path": 0.2,
    "dropout": 0.1,
    "ema": 0.9,
    "accumulation": 2,
}


def work(here: str, folder: str, objective: str) -> None:
    """What a process does until it is killed."""
    sys.path.insert(0, here)
    from conftest import small_config, small_run

    small_run(small_config(objective=objective, **ASKED), Path(folder))


def start(context: Any, folder: Path, objective: str) -> Any:
    process = context.Process(target=work, args=(str(Path(__file__).parent), str(folder), objective))
    process.start()
    return process


def files(folder: Path) -> dict[str, bytes]:
    """The models of all checkpoints, last and kept."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("model.safetensors"))}


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["supervised", "text", "self-distillation"])
def test_killed_a_dozen_times_it_ends_with_the_same_weights(
    objective: str, tmp_path: Path, make_config: Callable
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vitprobe.training.loop", "vitprobe.cli.train_result"])
    whole = start(context, tmp_path / "whole", objective)
    whole.join()
    assert whole.exitcode == 0
    draw, folder, seen = random.Random(0), tmp_path / "killed", [0]
    for kill in range(KILLS):
        process = start(context, folder, objective)
        until = seen[-1] + draw.randint(1, 5) if kill % 4 else 0  # some are killed before they have begun
        while process.is_alive() and (checkpoint.step_of(folder) or 0) < until:
            time.sleep(0.002)
        process.join(timeout=draw.uniform(0, 0.3))
        assert process.exitcode is None, "it ended before it was killed: give it more steps"
        process.kill()
        process.join()
        checkpoint.recover(folder)
        seen.append(checkpoint.step_of(folder) or 0)
    assert seen == sorted(seen)
    assert len(set(seen)) > KILLS / 2
    last = start(context, folder, objective)
    last.join()
    assert last.exitcode == 0
    assert files(folder) == files(tmp_path / "whole")
    one, other = checkpoint.read(folder), checkpoint.read(tmp_path / "whole")
    assert repr(one) == repr(other)
    steps = [[record["step"] for record in read(path)] for path in (folder, tmp_path / "whole")]
    assert steps[0] == steps[1]
