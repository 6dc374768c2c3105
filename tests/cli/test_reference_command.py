"""The reference ViT by its names, as their user meets them: measured, trained, and set beside timm's."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vitprobe.backbones import load

Run = Callable[..., tuple[int, str, str]]
SIZE = ["depth=2", "width=32", "num_heads=2", "patch_size=4"]
SHORT = "--image-size 32 --steps 4 --batch-size 4 --eval-every 2 --num-held-out 4 --num-bank 8 --device cpu --workers 0"


def test_models_tells_the_truth_about_it(run: Run) -> None:
    rows = {row["alias"]: row for row in json.loads(run("models", "--json")[1])}
    backbone = load("reference-vit-ti", weights="random")
    backbone.reset_head(0)
    row, spec = rows["reference-vit-ti"], backbone.spec
    assert row["params"] == round(sum(p.numel() for p in backbone.module.parameters()) / 1e6, 1)
    assert (row["num_registers"], row["paradigm"], row["library"]) == (0, spec.paradigm, spec.library)
    assert (row["patch"],) * 2 == backbone.patch_size and (row["image_size"],) * 2 == spec.image_size
    assert not any(rows[name]["cached"] for name in ("reference-vit-ti", "reference-vit-s", "reference-vit-b"))
    assert run("fetch", "reference-vit-s")[:2] == (
        0,
        "reference-vit-s: has random weights or those of a file, nothing to fetch\n",
    )


def test_norms_of_a_name_and_of_what_was_trained(run: Run, tmp_path: Path) -> None:
    few = ["--limit", 2, "--format", "none", "--workers", 0, "--json"]
    asked = ["--model", "reference-vit-ti", "--weights", "random", "--image-size", 64]
    code, out, _ = run("norms", "samples", *asked, *few, "--out", tmp_path / "norms")
    assert code == 0 and json.loads(out)["model"] == "reference-vit-ti"
    code, _, err = run("norms", "samples", "--model", "reference-vit-ti", *few, "--out", tmp_path / "none")
    assert code == 2 and "reference-vit-ti has no weights on the hub; give --weights random, or a file" in err
    arch = ["--arch", "reference-vit-ti", *(part for size in SIZE for part in ("--arch-arg", size)), "--num-reg", 2]
    code, _, err = run("train-registers", *arch, *SHORT.split(), "--format", "none", "--out", tmp_path / "run")
    assert (code, err) == (0, "")
    for name, number in (("reg0", 0), ("reg2", 2)):
        last = tmp_path / "run" / name / "last"
        code, out, _ = run("norms", "scenes", "--model", last, *few, "--out", tmp_path / f"of {name}")
        stored = json.loads((tmp_path / f"of {name}" / "result.json").read_text())
        assert code == 0 and stored["provenance"]["model"]["num_registers"] == number
        assert stored["provenance"]["model"]["library"] == "timm"
    wrong = ["--arch", "reference-vit-ti", "--arch-arg", "embed_dim=32", *SHORT.split(), "--out", tmp_path / "wrong"]
    code, _, err = run("train-registers", *wrong)
    assert code == 2 and "reference-vit-ti takes no embed_dim; allowed are width" in err


@pytest.mark.parametrize("more", [[], ["--train"]])
def test_bench_sets_it_beside_timms(more: list[str], run: Run) -> None:
    models = ["--model", "timm:vit_tiny_patch16_224", "--against", "reference-vit-ti", "--image-size", 32]
    code, out, _ = run("bench", *models, "--rounds", 2, "--batch-size", 2, "--device", "cpu", "--json", *more)
    ways = [row["way"] for row in json.loads(out)["rows"]]
    assert code == 0 and ("by hand, reference-vit-ti" if more else "bare forward of reference-vit-ti") in ways
