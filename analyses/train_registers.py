"""Train a small ViT on generated scenes with and without registers, and see whether artifacts come.

Command   python analyses/train_registers.py [--keep-checkpoints]
Time      14 minutes of one CPU core (25 minutes on 2 cores that had other work); no weights, no network
Needs     nothing: scenes are generated, 64,000 of them to train on, 512 held out
Writes    figures/train_registers/ (the comparison and each variant's metrics.jsonl, not the checkpoints)

Expected: at this size and length no artifacts appear, with or without registers, and the verdict is ``none`` for both
(the published cases took 10^8 images and more). Accuracies of the two are within a few points of each other; one seed
says no more. What the figures show is that the instrument can say *no artifacts here* of a model that was trained
before its eyes; see ``vitprobe norms --model organism`` for the opposite.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUT = ROOT / "figures" / "train_registers"
VARIANTS = ("reg0", "reg4")


def main() -> None:
    """Run the command as a user does, keep what is small, and compare the verdicts with what is expected."""
    work = Path(tempfile.mkdtemp(prefix="train-registers-"))
    command = [sys.executable, "-m", "vitprobe", "train-registers", "--num-reg", "4", "--out", "train_registers"]
    subprocess.run(command, check=True, cwd=work)
    run = work / "train_registers"
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    for path in (*run.glob("*.json"), *run.glob("*.png"), run / "arrays.npz"):
        shutil.copy2(path, OUT / path.name)
    for name in VARIANTS:
        (OUT / name).mkdir()
        shutil.copy2(run / name / "metrics.jsonl", OUT / name / "metrics.jsonl")
    if "--keep-checkpoints" in sys.argv:
        print(f"checkpoints are in {run}")
    else:
        shutil.rmtree(work)
    rows = json.loads((OUT / "result.json").read_text())["summary"]["variants"]
    found = {row["name"]: row["verdict"] for row in rows}
    if found != dict.fromkeys(VARIANTS, "none"):
        sys.exit(f"expected no artifacts in either, found {found}")


if __name__ == "__main__":
    main()
