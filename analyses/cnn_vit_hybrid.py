"""Train a ResNet, a ViT and a hybrid of both on growing sets of images, each with the same number of operations.

Command   python analyses/cnn_vit_hybrid.py [small | check | gpu] [SET ...]     (the first, on all its sets)
Time      small: about an hour of one CPU core to itself; check: a minute; goes on where it was stopped
Needs     for CIFAR-10 VITPROBE_DATA to be the folder that holds cifar10/; nothing for scenes
Writes    figures/cnn_vit_hybrid/ (check and gpu: runs/cnn_vit_hybrid/NAME), trainings in runs/cnn_vit_hybrid/

Expected (small): CIFAR-10: ResNet 43 to 56 %, ViT and hybrid 33 and 35 % however many images: operations are what they
lack. Scenes: from 72 to 90 %, 82 %, 82 %. The question is that of arXiv 2010.11929, section 4.3; the scale is not.
"""

import os
import sys
import tomllib
from dataclasses import asdict, replace
from pathlib import Path

from vitprobe import results
from vitprobe.cli.train_progress import training
from vitprobe.plots import write
from vitprobe.plots.data_sizes import draw_data_sizes
from vitprobe.probes.data_sizes import table
from vitprobe.training.data_sizes import Study, open_images, run_study

ROOT, RUNS = Path(__file__).parents[1], Path("runs/cnn_vit_hybrid")


def watch(title: str, steps: int) -> object:
    """Say on stderr what is trained, and show a bar where that is a terminal."""
    print(title, file=sys.stderr, flush=True)
    return training(title, steps, shown=True)


def main() -> None:
    """Run what is asked for, and put table and figure beside the numbers they were drawn from."""
    settings = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
    name, *chosen = sys.argv[1:] or ["small"]
    if name not in settings or set(chosen) - set(settings[name]["sets"]):
        sys.exit(f"got {' '.join(sys.argv[1:])}; cnn_vit_hybrid.toml has {', '.join(settings)}, and sets in each")
    setting, data, found = settings[name], Path(os.environ.get("VITPROBE_DATA", "")), {}
    study = Study.from_dict(setting["study"])
    for label, one in setting["sets"].items():
        train, held = (str(data / path) if path and "/" in path else path for path in (one["train"], one.get("held")))
        if label in (chosen or setting["sets"]) and (train == one["train"] or Path(train).exists()):
            own = replace(study, base=replace(study.base, augment=one["augment"]))
            found[label] = run_study(own, open_images(label, train, held, own), RUNS / f"{name}-runs", watch=watch)
    out = ROOT / "figures" / "cnn_vit_hybrid" if name == "small" else RUNS / name
    with results.result_directory(out) as folder:
        (folder / "table.md").write_text(table(found))
        write(draw_data_sizes(found), folder / "data_sizes", ["png"])
        told = {"device": study.base.device, "dtype": study.base.precision, "command": ("python", *sys.argv)}
        summary = {label: one.summary for label, one in found.items()}
        inputs = {label: {"num_images": one["num_held_out"], "digest": one["digest"]} for label, one in summary.items()}
        where = results.Provenance({}, inputs, study.seeds[0], **told)
        arrays = {f"{label}/{key}": value for label, one in found.items() for key, value in one.arrays().items()}
        results.save(folder, results.StoredResult("vitprobe.data-sizes/1", asdict(where), setting, summary, arrays))


if __name__ == "__main__":
    main()
