"""Two processes of a launcher against one: the same losses and weights, copied (DDP) or sharded (FSDP2)."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vitprobe.training import checkpoint
from vitprobe.training.metrics import read

WORKER = """
import ast, sys
sys.path.insert(0, {here!r})
from pathlib import Path
from conftest import small_built, small_config
from vitprobe.probes.shards import Shards
from vitprobe.training.engine import Engine
from vitprobe.training.loop import train
for name, asked in ast.literal_eval(sys.argv[2]).items():
    config = small_config(**asked)
    engine = Engine.open(config)
    with Shards.open("cpu") as shards:
        assert (engine.world, shards.world) == (2, 2)
        train(config, small_built(config, shards=shards), Path(sys.argv[1]) / name, engine, shards)
"""
CASES: dict[str, dict[str, Any]] = {
    "supervised": {"accumulation": 2, "ema": 0.9},
    "text": {"objective": "text"},
    "self-distillation": {"objective": "self-distillation"},
    "retrofit": {"objective": "retrofit", "lr": 1e-4},
}
CASES = {name: {"optimizer": "sgd", "lr": 0.05} | asked for name, asked in CASES.items()}
"""Not Adam, which divides by a gradient's size: where that is rounding itself, its updates are chance."""
SHARDED: dict[str, dict[str, Any]] = {name: CASES[name] | {"shard": True} for name in ("supervised", "text")}


def launch(folder: Path, cases: dict[str, dict[str, Any]]) -> None:
    code = WORKER.format(here=str(Path(__file__).parent))
    (folder / "worker.py").write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(folder / "worker.py"), str(folder), repr(cases)], capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every case trained by two processes."""
    folder = tmp_path_factory.mktemp("two")
    launch(folder, CASES | {f"sharded {name}": asked for name, asked in SHARDED.items()})
    return folder


def curve(folder: Path, part: str) -> list[float]:
    return [record[part] for record in read(folder) if part in record]


def compare(one: Path, other: Path) -> None:
    """The losses agree to float tolerance, and so do the gradients and the weights."""
    for part in ("loss", "gradient_norm"):
        assert curve(one, part) == pytest.approx(curve(other, part), rel=1e-4)
    left, right = (checkpoint.read(folder) for folder in (one, other))
    assert left is not None
    assert right is not None
    assert left.step == right.step
    assert left.objective.keys() == right.objective.keys()
    for name, tensor in left.objective.items():
        assert torch.allclose(tensor, right.objective[name], rtol=1e-4, atol=1e-5), name
    looked = [[r["held_out"] for r in read(folder) if "held_out" in r] for folder in (one, other)]
    assert len(looked[0]) == len(looked[1]) > 1
    assert json.dumps(looked[0][0]) == json.dumps(looked[1][0])  # before the first step, and merged


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(
    name: str, two: Path, tmp_path: Path, make_config: Callable, run_small: Callable
) -> None:
    run_small(make_config(**CASES[name]), tmp_path)
    compare(tmp_path, two / name)


@pytest.mark.parametrize("name", SHARDED)
def test_two_shards_train_as_one_process(
    name: str, two: Path, tmp_path: Path, make_config: Callable, run_small: Callable
) -> None:
    run_small(make_config(**CASES[name]), tmp_path)
    compare(tmp_path, two / f"sharded {name}")
