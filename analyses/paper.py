"""Reproduce the figures and tables of "Vision Transformers Need Registers" on what is at hand.

Command   python analyses/paper.py [PART ...]     (without parts: all of paper.toml whose data are at hand)
Time      of each part, in paper.toml, on 2 CPU cores; all of them about 20 minutes
Needs     nothing for scenes; parts on CIFAR-10 or CamVid want VITPROBE_DATA to be the folder of both
Writes    figures/ITEM/ (figures, table.md with published numbers beside, result.json and arrays of each model)

Expected: paper.toml has the commands and the expected numbers of each part, and what they mean; each is checked. On
real models: ``vitprobe reproduce ITEM --model dinov2 --model dinov2-reg --data ...``; ``vitprobe reproduce`` lists what
each item needs.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Run each part as a user does, put its folders into figures/, and hold the numbers against what is expected."""
    recipes = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
    data = Path(os.environ.get("VITPROBE_DATA", ""))
    chosen = sys.argv[1:] or [name for name, one in recipes.items() if all((data / d).exists() for d in one["data"])]
    if unknown := [name for name in chosen if name not in recipes]:
        sys.exit(f"got {unknown[0]}; paper.toml has {', '.join(recipes)}")
    faults = [fault for name in chosen for fault in run(name, recipes[name], data)]
    sys.exit("\n".join(faults) or None)


def run(name: str, recipe: dict, data: Path) -> list[str]:
    """Run one part; returns what is not as expected."""
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "data").symlink_to(data.resolve())
        for command in recipe["commands"]:
            words = shlex.split(command)[1:]
            out = [] if "--out" in words else ["--out", "out"]
            subprocess.run([sys.executable, "-m", "vitprobe", *words, *out], check=True, cwd=work)
        tables = json.loads((Path(work) / "out" / "result.json").read_text())["summary"]["items"]
        for item in tables:
            target = ROOT / "figures" / (item + recipe.get("folder", ""))
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(Path(work) / "out" / item, target)
    faults = []
    for item, column, what, low, high in recipe["expected"]:
        rows = {row["what"]: row["cells"] for row in tables[item]["rows"]}
        cell = rows[what][column]
        if cell is None or not low <= cell["value"] <= high:
            faults.append(f"{item}, {what}, column {column}: expected {low} to {high}, found {cell}")
    return faults


if __name__ == "__main__":
    main()
