"""Two real processes over gloo: shares, gathering, merged norms, and errors that end both."""

import os
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vitprobe.errors import ArgumentError, InputError
from vitprobe.probes.norms import NormAccumulator
from vitprobe.probes.outliers import OutlierRule
from vitprobe.probes.shards import Shards, merge_norms

WORKER = Path(__file__).with_name("shard_worker.py")


def start(case: str, folder: Path) -> tuple[list[int], float]:
    """Run a case in two processes: their exit codes, and the seconds between their ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    started = []
    for rank in range(2):
        command = [sys.executable, "-W", "error", str(WORKER), case, str(folder)]
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with (folder / f"{rank}.err").open("w") as err:
            started.append(subprocess.Popen(command, env=os.environ | shared | own, stderr=err))
    ends: dict[int, float] = {}
    deadline = time.monotonic() + 120
    while len(ends) < 2:
        assert time.monotonic() < deadline, [(folder / f"{rank}.err").read_text() for rank in range(2)]
        ends |= {rank: time.monotonic() for rank in range(2) if rank not in ends and started[rank].poll() is not None}
        time.sleep(0.01)
    return [process.returncode for process in started], abs(ends[0] - ends[1])


def read(folder: Path, kind: str) -> list:
    return [pickle.loads((folder / f"{rank}.{kind}").read_bytes()) for rank in range(2)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes saw, and how they ended: the second one raised while the first waited for it."""
    folder = tmp_path_factory.mktemp("two")
    codes, apart = start("works", folder)
    assert (folder / "0.pickle").exists(), (folder / "0.err").read_text()
    return read(folder, "pickle"), read(folder, "error"), codes, apart


def test_values_pass_between_processes(two):
    first, second = two[0]
    assert (first["rank"], second["rank"], first["device"]) == (0, 1, "cpu")
    assert first["shares"] == second["shares"] == [(range(7), range(8)), (range(7, 13), range(8, 13))]
    assert (first["few"], second["few"]) == ([["lonely"], []], None)
    assert first["large"] == second["large"] == 40_000_000
    assert first["on_main"] == second["on_main"] == first["pid"] != second["pid"]
    assert first["turns"][0] < first["turns"][1]


def arrays_of(accumulator: NormAccumulator) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """All integers, and all floating-point sums, of an accumulator; of what is stored by octaves, its total by bin."""
    exact, sums = {"counts": accumulator.counts, "maxima": accumulator.maxima}, {}
    for point, evidence in accumulator.evidence.items():
        exact |= {f"{name}{point}": getattr(evidence, name) for name in ("norms", "centred")}
        exact[f"number{point}"] = np.array([evidence.num_images, accumulator.num_images])
        for name in ("positions", "dimensions", "kth_largest"):
            exact[f"{name}{point}"] = getattr(evidence, name).values
        for name in ("features", "received", "replicates"):
            sums[f"{name}{point}"] = getattr(evidence, name).values
    for index, (name, pixels, norms) in accumulator.examples.kept.items():
        exact |= {f"{name} at {index}": pixels, f"norms of {name}": norms}
    return exact, sums


def differing(found: object, expected: object, where: str = "") -> list[str]:
    """Where two summaries differ by more than the order of sums explains."""
    if isinstance(expected, dict) and found.keys() == expected.keys():
        return [d for key in expected for d in differing(found[key], expected[key], f"{where}.{key}")]
    if isinstance(expected, list | tuple) and len(found) == len(expected):
        return [d for i, value in enumerate(expected) for d in differing(found[i], value, f"{where}[{i}]")]
    same = found == pytest.approx(expected, rel=1e-9) if isinstance(expected, float) else found == expected
    return [] if same else [f"{where}: {found} is not {expected}"]


@pytest.mark.parametrize("name", ["split", "one"])
def test_merged_norms_are_those_of_one_process(two, name):
    (first, second), single = two[0], two[0][0]["single"]
    exact, sums = arrays_of(single)
    assert single.num_images == 13 and exact["counts"].sum() == 13 * 12 * (1 + 6)
    assert [i for i in single.examples.kept] == list(range(6)) and "image 5 at 5" in exact
    for merged in (first[name], second[name]):
        own_exact, own_sums = arrays_of(merged)
        assert own_exact.keys() == exact.keys() and own_sums.keys() == sums.keys()
        for key, value in exact.items():
            assert np.array_equal(own_exact[key], value, equal_nan=True), key
        for key, value in sums.items():
            np.testing.assert_allclose(own_sums[key], value, rtol=1e-9, atol=1e-12, err_msg=key)
        rule = OutlierRule.parse("p98")
        assert differing(merged.result(rule, point=11).summary, single.result(rule, point=11).summary) == []


def test_only_the_main_process_keeps_what_is_not_for_all(two):
    assert [one["kept"] for one in two[0]] == [True, False]


def test_without_any_image_all_processes_say_so(two):
    assert {one["nothing"] for one in two[0]} == {"no image could be read; nothing was measured"}


def test_an_error_in_one_process_ends_both(two):
    _, errors, codes, apart = two
    assert errors == [("VitprobeError", "process 1 would not"), ("VitprobeError", "process 1 would not")]
    assert codes == [2, 2] and apart < 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "main", "other", "codes"),
    [
        ("main", ("VitprobeError", "process 0 would not"), ("StoppedError", "the main process has failed"), [2, 2]),
        ("busy", ("VitprobeError", "process 1 would not"), ("VitprobeError", "process 1 would not"), [2, 2]),
        ("memory", ("RuntimeError", "out of memory"), ("RuntimeError", "out of memory"), [2, 2]),
        ("interrupt", ("KeyboardInterrupt", ""), ("KeyboardInterrupt", ""), [-2, -2]),
        ("killed", ("VitprobeError", "process 1 of the 2 processes has ended without a word"), None, [2, -9]),
    ],
)
def test_no_process_is_left_waiting(tmp_path, case, main, other, codes):
    assert start(case, tmp_path)[0] == codes
    for rank, expected in enumerate((main, other)):
        path = tmp_path / f"{rank}.error"
        assert path.exists() == (expected is not None)
        if expected is not None:
            kind, text = pickle.loads(path.read_bytes())
            assert kind == expected[0] and expected[1] in text


def test_alone_nothing_is_set_up(monkeypatch):
    import torch

    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    shards = Shards.open("cpu")
    assert shards == Shards.alone("cpu") == Shards(0, 1, 0, "cpu") and shards.is_main
    assert not torch.distributed.is_initialized()
    with shards:
        assert shards.gather(3) == shards.gather_all(3) == [3]
        assert shards.on_main(lambda: 4) == shards.first_here(lambda: 4) == 4
        assert shards.share([1, 2, 3], chunk=2) == [1, 2, 3]
        shards.heed()
    with pytest.raises(InputError, match="no image"):
        merge_norms(shards, None)
    with pytest.raises(KeyError), shards:  # an error is not swallowed
        raise KeyError


@pytest.mark.parametrize(("number", "chunk", "world"), [(10, 3, 4), (0, 2, 3), (1, 1, 5), (64, 8, 8), (100, 7, 3)])
def test_shares_tile_the_source_in_whole_chunks(number, chunk, world):
    shares = [Shards(rank, world, rank, "cpu").share(range(number), chunk=chunk) for rank in range(world)]
    assert [i for share in shares for i in share] == list(range(number))
    assert all(share.start % chunk == 0 for share in shares if len(share))
    chunks = [-(-len(share) // chunk) for share in shares]
    assert max(chunks) - min(chunks) <= 1


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two'"),
        ({"WORLD_SIZE": "2"}, "RANK=''"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}, "RANK=2 and no launcher"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, "start with torchrun or accelerate launch"),
    ],
)
def test_variables_that_do_not_fit_are_refused(monkeypatch, variables, says):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ArgumentError, match=says):
        Shards.open("cpu")
