"""Look at what small models know of 2-D structure: planted ones, and a ResNet, a ViT and a hybrid of equal compute.

Command   python analyses/structure.py
Time      6 minutes on one CPU core
Needs     nothing; for the trained three, runs/cnn_vit_hybrid of analyses/cnn_vit_hybrid.py on CIFAR-10
Writes    figures/structure/planted and figures/structure/trained (pages, comparisons, result.json and arrays)

Expected: the organism's planted outliers stay at their place when the image is shifted, and without them its features
move as those of its twin with registers do. Of the trained three (too short a training to be called good) none sees
position embeddings that are as if shuffled; the ResNet's map of 4 x 4 moves no better with the image than the ViT's of
8 x 8: its steps are twice as wide, and zeros come in at its border.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from vitprobe.probes.by_image import NO_OUTLIERS

ROOT, RUNS = Path(__file__).parents[1], Path("runs/cnn_vit_hybrid/small-runs/cifar10")


def measure(name: str, models: list[str], links: dict[str, Path]) -> list[dict]:
    """Run ``vitprobe inspect`` into figures/structure/NAME, beside links to checkpoints; returns a summary a model."""
    target = ROOT / "figures" / "structure" / name
    with tempfile.TemporaryDirectory() as work:
        for short, folder in links.items():  # short names for the titles
            (Path(work) / short).symlink_to(folder.resolve())
        command = [sys.executable, "-m", "vitprobe", "inspect", "scenes", *models, "--limit", "64", "--out", "out"]
        subprocess.run(command, check=True, cwd=work)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(Path(work) / "out", target)
    return json.loads((target / "result.json").read_text())["summary"]


def main() -> None:
    """Measure the planted models, and the trained ones where they are; hold what is expected against what is found."""
    names = ("organism", "organism-reg4", "organism-clean", "scenes-content")
    planted = [one["translation"] for one in measure("planted", [x for n in names for x in ("-m", n)], {})]
    assert planted[0]["outliers_go"] == "at their place", planted[0]["outliers_go"]
    assert {one["outliers_go"] for one in planted[1:3]} == {NO_OUTLIERS}
    found = {name: sorted(RUNS.glob(f"{name}-32000-seed0-*/last")) for name in ("ViT", "hybrid", "ResNet")}
    if not all(found.values()):
        sys.exit("no trained networks in runs/cnn_vit_hybrid: planted models alone were looked at")
    links = {name: folders[0] for name, folders in found.items()}
    trained = measure("trained", ["-m", "ViT", "-m", "hybrid", "--conv", "ResNet"], links)
    assert all(one["positions"]["answer"] != "as if shuffled" for one in trained[:2])


if __name__ == "__main__":
    main()
