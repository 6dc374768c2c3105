"""Search for recipes under which a small ViT grows artifacts by itself, by a criterion that was fixed beforehand.

Command   python analyses/emergence.py [ROW ...]     (three rows at a tenth of their steps; rows named run whole)
Time      4 minutes of one CPU core; all rows of emergence.toml whole: about 2.5 hours of one core
Needs     nothing for rows on scenes; ../shared/data, or your own folders in the table, for those on pictures
Writes    runs/emergence/ (search.json, arrays.npz, search.png); figures/emergence/ holds all rows, run whole

Expected: no row passes. At this size and length no high-norm tokens come on low-information patches; where norms do
split (``average-of-raw``, ``content-...``) they split by content. The criterion is `vitprobe.probes.emergence`.
"""

import json
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np

from vitprobe.plots.emergence import draw_search
from vitprobe.training.search import judge_run

OUT, SMALL = Path("runs/emergence"), ("base", "no-cls-average", "average-of-raw")
FEW = ["--num-held-out", "256", "--num-bank", "64", "--eval-every", "1500", "--device", "cpu", "--format", "none"]


def main() -> None:
    """Train, judge, draw."""
    groups, found = tomllib.loads(Path(__file__).with_suffix(".toml").read_text()).values(), []
    table = {name: shlex.split(f"{g['common']} {own}") for g in groups for name, own in g.items() if name != "common"}
    for name in sys.argv[1:] or SMALL:
        options = table[name] + ([] if "--num-reg" in table[name] else ["--num-reg", "0", "--no-control"])
        if not sys.argv[1:]:
            options += ["--steps", "450"]
        if not (OUT / name / "result.json").exists():
            command = [sys.executable, "-m", "vitprobe", "train-registers", *options, *FEW, "--out", str(OUT / name)]
            subprocess.run(command, check=True)
        for row in judge_run(OUT / name):
            title = f"{name} + {row['num_registers']} registers" if row["num_registers"] else name
            found.append({"name": title, "options": shlex.join(options), **row})
    (OUT / "search.json").write_text(json.dumps(found, indent=1) + "\n")
    tails = {row["name"]: [one["p99"] for one in row["blocks"]] for row in found if "blocks" in row}
    np.savez(OUT / "arrays.npz", **tails)
    draw_search(found).savefig(OUT / "search.png")
    passed = [row["name"] for row in found if "answers" in row and all(row["answers"].values())]
    print(f"{len(found)} models; by the criterion, artifacts emerged in {', '.join(passed) or 'none'}")


if __name__ == "__main__":
    main()
