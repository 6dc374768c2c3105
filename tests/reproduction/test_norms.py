"""Figures of norms against the measurement that the command ``norms`` makes."""

import sys
from pathlib import Path

import numpy as np
import pytest

from vitprobe import backbones
from vitprobe.probes.norms import measure_norms
from vitprobe.probes.outliers import OutlierRule
from vitprobe.reproduction import attention, norms, sizes

sys.path.append(str(Path(__file__).parent))  # tests are no package
from made_settings import figures, loader, read_again, run_items, scenes

NAMES = ["fig3", "fig4a", "fig7", "fig10", "fig15"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    items = {**norms.ITEMS, **sizes.ITEMS, **attention.ITEMS}
    asked = [*NAMES, "fig4c", "fig1"]
    folder = tmp_path_factory.mktemp("norms")
    return {name: run_items(asked, items, folder / name, model=name) for name in ("organism", "organism-clean")}


def row(found, what):
    return next(row for row in found.rows if row.what == what)


def test_numbers_are_those_of_the_command_norms(found):
    backbone = backbones.load("organism")
    own = measure_norms(backbone, loader(backbone, scenes(8))).result(OutlierRule.parse("auto"), point=7)
    one = found["organism"]["fig3"]
    assert one.rows[0].value == own.summary["outlier_fraction"] > 0.01 and one.rows[0].key == "outlier_share"
    assert one.rows[0].interval == tuple(own.summary["outlier_fraction_ci"])
    np.testing.assert_array_equal(one.arrays["counts"], own.counts)
    assert row(found["organism"]["fig4a"], "block from which on outliers stay").value == 4  # the planted block
    params = sum(p.numel() for p in backbone.module.parameters()) / 1e6
    assert row(found["organism"]["fig4c"], "parameters").value == params


def test_a_clean_model_has_none(found):
    clean = found["organism-clean"]
    assert clean["fig3"].rows[0].value == 0 and row(clean["fig4a"], "block from which on outliers stay").value is None
    assert [row.what for row in clean["fig10"].rows] == ["images with an outlier at the commonest place"]
    assert (
        row(clean["fig1"], "patches that are outliers").value
        == 0
        == row(clean["fig1"], "attention on outlier patches").value
    )


def test_shares_of_the_rim_are_those_of_a_slow_count(found):
    frequency = found["organism"]["fig10"].arrays["outlier_frequency"]
    rows, cols = frequency.shape
    rim = sum(frequency[r, c] for r in range(rows) for c in range(cols) if r in (0, rows - 1) or c in (0, cols - 1))
    one = found["organism"]["fig10"]
    assert row(one, "outliers at the rim of the grid").value == pytest.approx(rim / frequency.sum())
    assert row(one, "places at the rim of the grid").value == pytest.approx((2 * rows + 2 * cols - 4) / (rows * cols))


def test_every_figure_is_drawn_from_what_is_stored(found):
    items = {**norms.ITEMS, **sizes.ITEMS, **attention.ITEMS}
    for name, item in items.items():
        drawn = figures(item, *(found[model][name] for model in found))
        assert len(drawn) == 1, name
    again = read_again(found["organism"]["fig7"])
    assert norms.unpack(again).summary["cutoff"] == found["organism"]["fig7"].summary["norms"]["cutoff"]


def test_a_strip_holds_every_patch(found):
    from vitprobe.plots.strips import StripDisplay

    stats = norms.unpack(found["organism"]["fig7"])
    display = StripDisplay(stats, "x")
    edges, counts = display.steps()
    assert counts.sum() == 8 * 14 * 14 and stats.summary["cutoff"] in edges
    assert counts[edges[:-1] >= stats.summary["cutoff"]].sum() == round(
        stats.summary["outlier_fraction"] * counts.sum()
    )


def test_dinov2_without_registers_is_looked_at_with_both_resizes():
    assert [v.get("pos_embed") for v in norms.both_resizes("dinov2-l14")] == ["timm", "official"]
    assert norms.both_resizes("dinov2-reg-l14") == norms.both_resizes("organism") == ({},)


def test_sizes_of_one_family_are_joined():
    assert sizes.family_of("dinov2-reg-s14") == "dinov2-reg" and sizes.family_of("organism") == "organism"
    names = ("timm:vit_small_patch16_224.dino", "timm:vit_base_patch16_224.dino")
    assert len({sizes.family_of(name) for name in names}) == 1
