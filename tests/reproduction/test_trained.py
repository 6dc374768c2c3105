"""Items that read a run of ``train-registers``: norms by training step, a sweep over registers."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from vitprobe import backbones
from vitprobe.backbones.export import export
from vitprobe.cli.train_result import write_comparison
from vitprobe.errors import ArgumentError, InputError
from vitprobe.probes.outliers import OutlierRule
from vitprobe.reproduction import growth, sweep
from vitprobe.reproduction.base import Setting
from vitprobe.training.checkpoint import ABOUT

sys.path.extend([str(Path(__file__).parent), str(Path(__file__).parents[1] / "probes")])  # tests are no package
from made_settings import figures, run_items
from made_variants import make_variant


def setting(run):
    rule = OutlierRule.parse("auto")
    return Setting(str(run), None, None, None, rule, 0, None, 0, None, Path("unused"), run)


def write_checkpoint(folder, step):
    folder.mkdir(parents=True)
    (folder / ABOUT).write_text(json.dumps({"step": step}))
    return folder


def test_checkpoints_are_listed_by_variant_and_step(tmp_path):
    for variant in ("reg16", "reg0", "reg4"):
        for name, step in (("step-100", 100), ("step-20", 20), ("last", 120)):
            write_checkpoint(tmp_path / variant / name, step)
    write_checkpoint(tmp_path / "reg0" / "step-120", 120)  # the last one, kept under its number too
    found = [Path(one).relative_to(tmp_path).as_posix() for one in growth.checkpoints(tmp_path)]
    own = ["step-20", "step-100", "last"]
    assert found == [*(f"reg0/{n}" for n in (*own[:2], "step-120")), *(f"reg{r}/{n}" for r in (4, 16) for n in own)]


def test_a_folder_without_kept_checkpoints_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="no kept checkpoints of train-registers; train with --keep"):
        growth.checkpoints(tmp_path)
    (tmp_path / "reg0" / "step-3").mkdir(parents=True)
    with pytest.raises(ArgumentError, match="is no checkpoint of train-registers"):
        growth.checkpoints(tmp_path)


def test_norms_of_checkpoints_stand_at_their_steps(tmp_path):
    """Of two checkpoints the later one has planted artifacts, and only there outliers are found."""
    found = []
    for step, name in ((10, "organism-clean"), (40, "organism")):
        folder = write_checkpoint(tmp_path / "reg0" / f"step-{step}", step)
        export(backbones.load(name), folder)
        found.append(run_items(["fig4b"], growth.ITEMS, tmp_path / f"f{step}", model=str(folder))["fig4b"])
    assert [one.summary["step"] for one in found] == [10, 40] and {one.summary["variant"] for one in found} == {"reg0"}
    assert found[0].rows[0].value == 0 < found[1].rows[0].value
    (drawn,) = figures(growth.ITEMS["fig4b"], *found).values()
    medians = drawn.axes[0].get_lines()[0].get_data()
    np.testing.assert_array_equal(medians[0], [10, 40])


def test_a_sweep_is_read_from_its_run(tmp_path):
    variants = [make_variant(r, outliers="" if r else "artifacts", num_blocks=3, images=12) for r in (0, 1, 4)]
    run = tmp_path / "run"
    run.mkdir()
    write_comparison(run, variants, {"seed": 3}, {"steps": 400}, {"steps": 400, "objective": "supervised"}, ())
    folders = sweep.variants_of(run)
    assert [Path(one).name for one in folders] == ["reg0", "reg1", "reg4"]
    found = [sweep.measure(setting(one), None).found() for one in folders]
    rows = [{row.what: row for row in one.rows} for one in found]
    assert rows[0]["outlier patches"].value == variants[0].norms.summary["outlier_fraction"] > 0
    assert rows[2]["outlier patches"].value == 0
    assert rows[1]["accuracy"].value == variants[1].measures["accuracy"]
    assert found[0].summary["seed"] == 3 and found[0].summary["steps"] == 400
    assert set(figures(sweep.ITEMS["fig8"], *found)) == {"sweep", "maps"}


def test_what_is_no_sweep_is_refused(tmp_path):
    with pytest.raises(InputError, match="no result"):
        sweep.variants_of(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    write_comparison(run, [make_variant(0, num_blocks=3, images=12)], {"seed": 3}, {}, {}, ())
    with pytest.raises(InputError, match="holds no sweep"):
        sweep.variants_of(run)
