"""Variants side by side: curves from records, the table's numbers, and conclusions that claim no more than was seen."""

import json
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from vitprobe import results
from vitprobe.errors import ArgumentError, InputError
from vitprobe.probes.comparison import (
    VariantResult,
    compare,
    conclude,
    control_of,
    finding,
    from_arrays,
    to_arrays,
    to_rows,
)
from vitprobe.probes.curves import LONG, Curve

sys.path.append(str(Path(__file__).parent))  # tests are no package
from made_variants import IMAGES, ONSET, make_norms, make_variant

CLEAR = {"": "none", "artifacts": "artifacts", "content": "content outliers", "scattered": "unclear"}


@pytest.fixture(scope="module")
def made() -> dict[tuple[int, str], VariantResult]:
    """Variants by their number of registers and what they have."""
    return {(number, what): make_variant(number, outliers=what) for number in (0, 4) for what in CLEAR}


def look(share, *, step, **more):
    held_out = {
        "verdict": "none",
        "outlier_fraction": share,
        "outlier_fractions": [0.0, 2 * share, share],
        "norm": {"median": 20.0, "p99": 30.0 + step, "max": 90.0},
        "register_norms": [],
    }
    return {"step": step, "held_out": held_out | more}


def logged(step, loss):
    return {"step": step, "loss": loss, "cls": 0.1, "gradient_norm": 1.0, "lr": 1e-3, "images_per_s": 10.0}


def test_a_curve_is_gathered_from_records():
    records = [
        look(0.0, step=0, accuracy=0.25),
        logged(20, 2.5),
        logged(40, None),
        look(0.5, step=40, accuracy=0.5),
        look(0.01, step=40, accuracy=0.75, knn=0.5, register_norms=[7.0, 8.0, 9.0]),  # measured again after a resume
        logged(30, 2.25),
    ]
    curve = Curve.of(records, "accuracy")
    np.testing.assert_array_equal(curve.steps, [20, 30, 40])
    np.testing.assert_array_equal(curve.loss, [2.5, 2.25, np.nan])
    np.testing.assert_array_equal(curve.eval_steps, [0, 40])
    np.testing.assert_array_equal(curve.outlier_fraction, [0, 0.01])
    np.testing.assert_array_equal(curve.outlier_fractions, [[0, 0, 0], [0, 0.02, 0.01]])
    np.testing.assert_array_equal(curve.highest, [0, 0.02])
    np.testing.assert_array_equal(curve.measure, [0.25, 0.75])
    np.testing.assert_array_equal(curve.knn, [np.nan, 0.5])
    np.testing.assert_array_equal(curve.register_norm, [np.nan, 9])
    np.testing.assert_array_equal(curve.tail, [1.5, 3.5])
    assert curve.steps.dtype == curve.eval_steps.dtype == np.int64 and curve.has_knn


def test_a_curve_without_its_measure_or_k_nn_holds_nan():
    curve = Curve.of([look(0.0, step=0), look(0.0, step=2)], "agreement")
    assert np.isnan(curve.measure).all() and not curve.has_knn and curve.loss.shape == (0,)
    assert not Curve.of([look(0.0, step=0, knn=0.5)], "knn").has_knn  # not beside itself


@pytest.mark.parametrize("number", [1, LONG, LONG + 1, 997])
def test_a_long_loss_is_smoothed(number):
    drawn = np.random.default_rng(0).normal(size=number)
    drawn[number // 3] = np.nan if number > 1 else 1.0
    drawn[number // 2] = 1e18 if number > LONG else 1.0  # what comes after must not feel it
    curve = Curve.of((logged(i, None if np.isnan(v) else v) for i, v in enumerate(drawn)), "x")
    assert curve.window % 2 == 1 and (curve.window > 1) == (number > LONG)
    half = curve.window // 2
    parts = [drawn[max(i - half, 0) : i + half + 1] for i in range(number)]
    expected = [np.nan if np.isnan(part).all() else np.nanmean(part) for part in parts]
    np.testing.assert_allclose(curve.smoothed(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("what", CLEAR)
def test_the_drawn_variants_are_what_they_are_called(what):
    found, where = finding(make_norms(outliers=what))
    assert found == CLEAR[what] and where == (tuple(range(4)) if found == "none" else (2, 3))


def test_the_table_holds_the_numbers_of_norms_and_maps(made):
    control, other = made[0, "artifacts"], made[4, ""]
    rows = compare([control, other])
    stats = control.norms
    counts, edges = stats.counts[-1, 2], stats.edges
    assert rows[0]["outlier_fraction"] == counts[edges[:-1] >= stats.cutoffs[-1]].sum() / counts.sum() > 0.02
    low, high = rows[0]["outlier_fraction_ci"]
    assert 0 < low < rows[0]["outlier_fraction"] < high < 0.1
    assert rows[0]["artifact_blocks"] == [2, 3] and rows[0]["highest"]["block"] in (2, 3)
    assert (rows[0]["control"], rows[0]["difference"], rows[1]["control"]) == (None, None, "reg0")
    assert rows[1]["highest"] == {"block": None, "outlier_fraction": 0.0, "outlier_fraction_ci": [0.0, 0.0]}
    assert rows[0]["norm"]["max"] == stats.maxima[-1, 2] and rows[0]["num_images"] == IMAGES
    for row in rows:
        assert row["max_over_median"] == row["norm"]["max"] / row["norm"]["median"]
        assert row["p99_over_median"] == row["norm"]["p99"] / row["norm"]["median"]
    assert rows[0]["register_norm"] is None
    assert 350 < rows[1]["register_norm"] < 450  # 40 x 2 x 5
    mass = other.maps.prefix_mass
    assert rows[1]["attention"]["prefix"] == pytest.approx(float(mass.sum(-1).mean()))
    assert rows[1]["attention"]["registers"] == pytest.approx(float(mass.sum(-1).mean()) * 20 / 22)  # CLS has 2 of 22
    assert rows[0]["attention"]["registers"] == 0 < rows[0]["attention"]["outliers"]


def test_differences_are_variant_minus_control(made):
    control, other = made[0, "artifacts"], made[4, ""]
    less = replace(control, measures={"accuracy": 0.5, "knn": float("nan"), "extra": 1.0})
    rows = compare([less, other])
    assert rows[0]["measures"] == {"accuracy": 0.5, "knn": None, "extra": 1.0}
    assert rows[1]["difference"]["measures"] == {"accuracy": other.measures["accuracy"] - 0.5}
    for name in ("outlier_fraction", "p99_over_median", "max_over_median"):
        assert rows[1]["difference"][name] == rows[1][name] - rows[0][name] < 0
    assert rows[1]["difference"]["highest_outlier_fraction"] == -rows[0]["highest"]["outlier_fraction"]
    json.dumps(rows, allow_nan=False)


@pytest.mark.parametrize(
    ("control", "variant", "says"),
    [
        ("artifacts", "", "artifacts in the control (blocks 2 to 3), none with 4 registers"),
        ("", "", "no outliers in the control, none with 4 registers: there was nothing to remove"),
        ("", "artifacts", "no outliers in the control, artifacts with 4 registers (blocks 2 to 3)"),
        ("", "content", "no outliers in the control, outliers on content with 4 registers (blocks 2 to 3)"),
        ("artifacts", "content", "artifacts in the control (blocks 2 to 3), outliers on content with 4 registers (b"),
        ("content", "", "outliers on content in the control (blocks 2 to 3), no outliers with 4 registers: there were"),
        ("content", "artifacts", "outliers on content in the control (blocks 2 to 3), artifacts with 4 registers (b"),
        ("artifacts", "scattered", "not clear what the outliers are with 4 registers (blocks 2 to 3): nothing can be"),
        ("scattered", "", "not clear what the outliers are in the control (blocks 2 to 3), no outliers with 4 registe"),
        ("artifacts", "artifacts", "artifacts with 4 registers (blocks 2 to 3): in no clearly different number"),
    ],
)
def test_conclusions_claim_no_more_than_was_measured(made, control, variant, says):
    said = conclude(made[4, variant], made[0, control])
    assert says in said
    assert ("nothing can be concluded" in said) == ("scattered" in (control, variant))
    assert ("to remove" in said) == (control in ("", "content") and variant == "")


@pytest.mark.parametrize(("shares", "says"), [((0.08, 0.02), ": fewer with"), ((0.02, 0.08), ": more with")])
def test_numbers_differ_where_intervals_do_not_overlap(shares, says):
    control, other = (make_variant(r, outliers="artifacts", share=s) for r, s in zip((0, 4), shares, strict=True))
    assert says in conclude(other, control)


def test_without_a_control_nothing_is_said_of_a_change(made):
    for what in CLEAR:
        assert "without a control, what registers changed is not known" in conclude(made[4, what], None)
    assert conclude(made[0, ""], made[0, ""]) == "no outliers without registers"


def test_two_modes_that_were_not_judged_are_unclear(made):
    only_last = make_norms(outliers="artifacts", judged=False)
    assert finding(only_last) == ("artifacts", (3,)) and finding(only_last, [ONSET]) == ("unclear", (ONSET,))
    odd = replace(made[4, ""], norms=with_block(made[4, ""].norms, 0, bimodal=True))
    assert conclude(odd, made[0, "artifacts"]) == (
        "artifacts in the control (blocks 2 to 3), none there with 4 registers; "
        "elsewhere not clear what the outliers are with 4 registers (block 0)"
    )
    assert "nothing can be concluded" in conclude(odd, made[0, ""])


def with_block(stats, block, **changes):
    """Return norms whose line of one block is changed, and was not judged."""
    lines = [dict(line) for line in stats.summary["blocks"]]
    lines[block] = {key: value for key, value in lines[block].items() if key != "verdict"} | changes
    return replace(stats, summary={**stats.summary, "blocks": lines})


def test_each_family_has_its_own_control(made):
    plain = [make_variant(number, family="-plain", outliers="artifacts") for number in (0, 4)]
    every = [made[4, ""], *plain]
    assert [control_of(one, every) for one in every] == [None, plain[0], plain[0]]
    assert [row["control"] for row in compare([made[0, ""], *every])] == [None, "reg0", None, "reg0-plain"]


def test_a_comparison_comes_back_from_disk_exactly(made, tmp_path):
    was = [made[0, "artifacts"], made[4, ""], make_variant(16, family="-plain", curve={"knn": False})]
    with results.result_directory(tmp_path / "r") as folder:
        summary = {"variants": to_rows(was)}
        results.save(folder, results.StoredResult("vitprobe.test/1", {}, {}, summary, to_arrays(was)))
    stored = results.load(tmp_path / "r")
    assert "reg4/norms/counts" in stored.arrays and "reg16-plain/curve/eval_steps" in stored.arrays
    read = from_arrays(stored.summary["variants"], stored.arrays)
    for one, other in zip(read, was, strict=True):
        assert (one.name, one.title, one.num_registers, one.measures) == (
            *(other.name, other.title, other.num_registers),
            other.measures,
        )
        for part in ("norms", "maps", "curve"):
            for name in (field.name for field in fields(getattr(one, part))):
                got, wanted = getattr(getattr(one, part), name), getattr(getattr(other, part), name)
                if isinstance(wanted, np.ndarray):
                    assert got.dtype == wanted.dtype
                    np.testing.assert_array_equal(got, wanted)
                else:
                    assert results.to_json(got) == results.to_json(wanted)
    assert results.to_json(compare(read)) == results.to_json(compare(was))


def test_what_is_not_whole_is_refused(made):
    was = [made[0, ""], made[4, ""]]
    rows, arrays = to_rows(was), to_arrays(was)
    with pytest.raises(InputError, match=r"reg4/maps/rollout.*measure again"):
        from_arrays(rows, {name: value for name, value in arrays.items() if name != "reg4/maps/rollout"})
    with pytest.raises(InputError, match="not whole"):
        from_arrays([{key: value for key, value in rows[0].items() if key != "maps"}], arrays)
    with pytest.raises(ArgumentError, match="a name of its own"):
        to_arrays([was[0], was[0]])
