"""Show planted artifacts, the same model with registers, and a look-alike that is no artifact.

Command   python analyses/planted_artifacts.py
Time      under a minute on 2 CPU cores; no weights, no network
Needs     nothing: four organisms (small ViTs written down from a seed) on 24 generated scenes
Writes    figures/planted_artifacts/

Expected, from the organisms' own published truth (`vitprobe.backbones.organism.planted_truth`):

=================  ================  =================================================================
organism           verdict           what is planted
=================  ================  =================================================================
organism           artifacts         a neuron of block 4 fires on a few low-information patches
organism-reg4      none              the same neuron; 4 registers take its load
organism-content   content outliers  the same neuron firing on patches of high contrast
organism-clean     none              nothing
=================  ================  =================================================================
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUT = Path("figures/planted_artifacts")
EXPECTED = {
    "organism": "artifacts",
    "organism-reg4": "none",
    "organism-content": "content outliers",
    "organism-clean": "none",
}


def main() -> None:
    """Run ``vitprobe norms`` on the four organisms and compare the verdicts with what was planted."""
    models = [word for name in EXPECTED for word in ("--model", name)]
    command = [sys.executable, "-m", "vitprobe", "norms", "scenes", "--limit", "24", *models, "--out", str(OUT)]
    subprocess.run(command, check=True, cwd=ROOT)
    summaries = json.loads((ROOT / OUT / "result.json").read_text())["summary"]
    found = {one["model"]: one["verdict"] for one in summaries}
    if found != EXPECTED:
        sys.exit(f"expected {EXPECTED}, found {found}")


if __name__ == "__main__":
    main()
