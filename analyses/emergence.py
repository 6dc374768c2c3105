"""Search for recipes under which a small ViT grows artifacts by itself, by a criterion that was fixed beforehand.

Command   python analyses/emergence.py [ROW ...]     (without rows: three of them, for a tenth of their steps)
Time      4 minutes of one CPU core; all rows of emergence.toml: about 2.5 hours of one core
Needs     nothing for rows on scenes; for those on pictures ../shared/data, or other folders in emergence.toml
Writes    runs/emergence/small or whole (search.json, arrays.npz, search.png, growth.png); goes on where it was stopped

Expected: no row passes. At this size and length no high norms come on low-information patches; where norms split
(``average-of-raw``, ``content-seed0`` ...) they split by content. The criterion is `vitprobe.probes.emergence`.
"""

import json
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np

from vitprobe.plots.emergence import draw_growth, draw_search
from vitprobe.training.search import judge_kept, judge_run

SMALL = ("base", "no-cls-average", "average-of-raw")
FEW = ["--num-held-out", "256", "--num-bank", "64", "--eval-every", "1500", "--device", "cpu", "--format", "none"]


def main() -> None:
    """Train what is not trained yet, judge, draw."""
    names, out = sys.argv[1:] or SMALL, Path("runs/emergence") / ("whole" if sys.argv[1:] else "small")
    groups = tomllib.loads(Path(__file__).with_suffix(".toml").read_text()).values()
    table = {name: shlex.split(f"{g['common']} {own}") for g in groups for name, own in g.items() if name != "common"}
    if unknown := [name for name in names if name not in table]:
        sys.exit(f"got row {unknown[0]}; emergence.toml has {', '.join(table)}")
    found, kept = [], {}
    for name in names:
        options = table[name] + ([] if "--num-reg" in table[name] else ["--num-reg", "0", "--no-control"])
        options += [] if sys.argv[1:] else ["--steps", "450"]
        command = [*FEW, *options, "--out", str(out / name)]
        if (out / name / "run.json").exists():
            command = ["--resume", str(out / name)]
        if not (out / name / "result.json").exists():
            subprocess.run([sys.executable, "-m", "vitprobe", "train-registers", *command], check=True)
        for row in judge_run(out / name):
            title = f"{name} + {row['num_registers']} registers" if row["num_registers"] else name
            found.append({"name": title, "options": shlex.join(options), **row})
        if "--keep" in options:
            kept[name] = judge_kept(out / name)
    (out / "search.json").write_text(json.dumps(found, indent=1) + "\n")
    np.savez(out / "arrays.npz", **{r["name"]: [b["p99"] for b in r["blocks"]] for r in found if "blocks" in r})
    draw_search(found).savefig(out / "search.png")
    if kept:
        (out / "growth.json").write_text(json.dumps(kept, indent=1) + "\n")
        draw_growth(kept).savefig(out / "growth.png")
    passed = [row["name"] for row in found if "answers" in row and all(row["answers"].values())]
    print(f"{len(found)} models; by the criterion, artifacts emerged in {', '.join(passed) or 'none'}")


if __name__ == "__main__":
    main()
