"""Show high norms that came by training and are no artifacts: a model that weighs objects by their norm.

Command   python analyses/content_outliers.py
Time      under a minute of one CPU core; no weights are fetched, no network
Needs     nothing: the two models come with vitprobe, 500 scenes with one shape each are generated
Writes    figures/content_outliers/

Expected: verdict ``content outliers`` for both, in every block. After the last one 9 % of the patches have norms five
to six times the median, with a gap below; in some blocks they receive over five times the uniform share of attention.
They are patches of the object. With four registers, trained along, norms are as high in the last blocks and lower in
the middle. How they were trained: their cards (vitprobe/backbones/shipped/), ``content-seed0`` in emergence.toml.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUT = Path("figures/content_outliers")
MODELS = ("scenes-content", "scenes-content-reg4")


def main() -> None:
    """Run ``vitprobe norms`` on the pair and compare the verdicts with what is expected."""
    models = [word for name in MODELS for word in ("--model", name)]
    asked = ["norms", "scenes:single", "--limit", "500", "--seed", "1", "--block", "all", *models, "--out", str(OUT)]
    subprocess.run([sys.executable, "-m", "vitprobe", *asked], check=True, cwd=ROOT)
    summaries = json.loads((ROOT / OUT / "result.json").read_text())["summary"]
    found = {one["model"]: one["verdict"] for one in summaries}
    if found != dict.fromkeys(MODELS, "content outliers"):
        sys.exit(f"expected content outliers in both, found {found}")


if __name__ == "__main__":
    main()
