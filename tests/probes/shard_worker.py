"""What each process of test_shards.py runs: ``python shard_worker.py CASE FOLDER``; it answers in FOLDER."""

import os
import pickle
import signal
import sys
import time
from functools import cache
from pathlib import Path

import torch

from vitprobe import backbones
from vitprobe.backbones.base import Backbone
from vitprobe.errors import InputError, VitprobeError
from vitprobe.inputs.loading import ImageBatch
from vitprobe.probes.norms import NormAccumulator, measure_norms
from vitprobe.probes.shards import Shards, merge_norms

NUM_IMAGES, BATCH = 13, 2


@cache
def model() -> Backbone:
    """A model of random weights, the same in all processes."""
    return backbones.load("timm:vit_tiny_patch16_224", weights="random", image_size=(32, 48))


def measured(shares: list[range]) -> NormAccumulator | None:
    """Norms of some of the images, in batches of at most `BATCH`."""
    images = torch.randn(NUM_IMAGES, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    images[:, :, :16, :16] *= 0.1
    batches = [
        ImageBatch(tuple(f"image {i}" for i in part), images[list(part)], ("",) * len(part), tuple(part))
        for share in shares
        for part in (share[i : i + BATCH] for i in range(0, len(share), BATCH))
    ]
    return measure_norms(model(), batches, blocks=[5, 11], seed=3) if batches else None


def works(shards: Shards) -> dict[str, object]:
    """Everything that does not fail; what each rank saw."""
    everything = range(NUM_IMAGES)
    found: dict[str, object] = {"rank": shards.rank, "device": shards.device}
    found["shares"] = shards.gather_all((shards.share(everything), shards.share(everything, chunk=BATCH)))
    found["few"] = shards.gather([*shards.share(["lonely"])])
    found["large"] = sum(len(x) for x in shards.gather_all(bytes(20_000_000)))
    found["on_main"] = shards.on_main(os.getpid)
    turns: list[float] = []
    shards.first_here(lambda: (time.sleep(0.2 * shards.is_main), turns.append(time.monotonic())))
    found["turns"] = shards.gather_all(turns)
    for name, shares in {
        "split": [shards.share(everything, chunk=BATCH)],
        "one": [everything] if shards.rank == 1 else [],
    }.items():
        found[name] = merge_norms(shards, measured(shares))
    kept = merge_norms(shards, measured([shards.share(everything, chunk=BATCH)]), to_all=False)
    found["kept"] = kept is not None
    found["single"] = measured([everything])
    try:
        merge_norms(shards, None)
    except InputError as error:
        found["nothing"] = str(error)
    shards.heed()
    found["pid"] = os.getpid()
    return found


def fails(case: str, shards: Shards) -> None:
    """End in the way that the case names."""
    failing = 0 if case == "main" else 1
    if shards.rank == failing:
        time.sleep(0.5)
        if case == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if case == "memory":
            raise RuntimeError("CUDA out of memory. Tried to allocate 9.00 GiB")
        if case == "interrupt":
            raise KeyboardInterrupt
        raise VitprobeError(f"process {shards.rank} would not")
    if case == "busy":
        while True:
            time.sleep(0.05)
            shards.heed()
    shards.gather("waiting")
    shards.on_main(lambda: shards.gather("waiting"))


def main() -> int:
    case, folder = sys.argv[1], Path(sys.argv[2])
    with Shards.open("cpu") as shards:
        answer = folder / f"{shards.rank}.pickle"
        if case == "works":
            answer.write_bytes(pickle.dumps(works(shards)))
        try:
            fails(case, shards)
        except BaseException as error:
            said = type(error).__name__, str(error)
            (folder / f"{shards.rank}.error").write_bytes(pickle.dumps(said))
            raise
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (VitprobeError, RuntimeError):
        sys.exit(2)
