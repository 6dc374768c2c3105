"""Search for recipes under which a small ViT grows artifacts by itself, by a criterion that was fixed beforehand.

Command   python analyses/emergence.py [ROW ... | all]     (without rows: three of them, for 450 steps)
Time      2 minutes of one CPU core; all rows of emergence.toml: about 3 hours of one core
Needs     nothing for rows on scenes; for those on pictures CIFAR-10 or photographs in folders named in emergence.toml
Writes    runs/emergence/small or whole (search and growth as .json and .png, arrays.npz); goes on where it was stopped

Expected: no row passes; where norms split (``average-of-raw``, ``content-seed0`` ...) they split by content. The
criterion is `vitprobe.probes.emergence`; figures/emergence/ holds what ``all`` wrote.
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

FEW = ["--num-held-out", "256", "--num-bank", "64", "--eval-every", "1500", "--device", "cpu", "--format", "none"]


def main() -> None:
    """Train what is not trained yet, judge, draw."""
    asked, found, kept = sys.argv[1:], [], {}
    out = Path("runs/emergence/whole" if asked else "runs/emergence/small")
    groups = tomllib.loads(Path(__file__).with_suffix(".toml").read_text()).values()
    table = {name: shlex.split(f"{g['common']} {own}") for g in groups for name, own in g.items() if name != "common"}
    names = table if asked == ["all"] else asked or ("base", "no-cls-average", "average-of-raw")
    if unknown := [name for name in names if name not in table]:
        sys.exit(f"got row {unknown[0]}; emergence.toml has {', '.join(table)}")
    for name in names:
        options = table[name] + ([] if "--num-reg" in table[name] else ["--num-reg", "0", "--no-control"])
        options += [] if asked else ["--steps", "450"]
        begun = (out / name / "run.json").exists()
        command = ["--resume", str(out / name)] if begun else [*FEW, *options, "--out", str(out / name)]
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
    judged = {row["name"]: all(row["answers"].values()) for row in found if "answers" in row}
    passed = ", ".join(name for name, has_passed in judged.items() if has_passed)
    print(f"{len(judged)} of {len(found)} models judged by scenes; artifacts emerged in {passed or 'none'}")


if __name__ == "__main__":
    main()
