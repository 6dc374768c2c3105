"""Show high norms that came by training and are no artifacts: a model that weighs objects by their norm.

Command   python analyses/content_outliers.py
Time      under a minute of one CPU core; no weights are fetched, no network
Needs     nothing: the two models come with vitprobe, 500 scenes with one shape each are generated
Writes    figures/content_outliers/

Expected: verdict ``content outliers`` for both, 9 % of patches, norms five to six times the median, up to seven times
the uniform share of attention, in every block: by norm, gap and attention these are artifacts; they lie on the object.
Four registers, trained along, remove nothing, since there is nothing to remove. How the models were trained is on their
cards (vitprobe/backbones/shipped/) and in analyses/emergence.toml, ``content-seed0``.
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
    asked = ["norms", "scenes:single", "--limit", "500", "--block", "all", *models, "--out", str(OUT)]
    subprocess.run([sys.executable, "-m", "vitprobe", *asked], check=True, cwd=ROOT)
    summaries = json.loads((ROOT / OUT / "result.json").read_text())["summary"]
    found = {one["model"]: one["verdict"] for one in summaries}
    if found != dict.fromkeys(MODELS, "content outliers"):
        sys.exit(f"expected content outliers in both, found {found}")


if __name__ == "__main__":
    main()
