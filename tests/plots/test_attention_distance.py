"""Attention distances as they are drawn: the result's own numbers, on scales that models share."""

from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from vitprobe.plots import attention_distance as plots
from vitprobe.plots import style
from vitprobe.probes.attention_distance import KINDS, OWN, PARTS, AttentionDistanceResult

FIELDS = ("distance", "locality", "near")


def made(
    kinds: int = 2, *, blocks: int = 3, heads: int = 4, far: float = 80.0, seed: int = 0
) -> AttentionDistanceResult:
    rng = np.random.default_rng(seed)
    shape = (kinds, 2, blocks, heads)
    arrays: dict[str, Any] = {name: rng.random(shape) * (far if name == "distance" else 1) for name in FIELDS}
    arrays |= {f"{name}_ci": np.stack([arrays[name] - 0.01, arrays[name] + 0.01]) for name in FIELDS}
    middle = {"distance": 0.9 * far, "locality": 0.0, "near": 0.1}
    for name in FIELDS:
        spread = rng.random((2, *shape)) * 0.1 * middle[name]
        arrays[f"{name}_permuted"] = np.stack([middle[name] - spread[0], middle[name] + spread[1]])
    shares = rng.random((kinds, len(PARTS), blocks, heads)) * 0.1
    if kinds == 1:
        shares[:, [PARTS.index("outliers"), PARTS.index("each outlier")]] = 0
    uniform = np.full((2, kinds, 2), [[[0.9 * far] * 2] * kinds, [[0.1] * 2] * kinds])
    locality = arrays["locality"].mean(-1)  # (M, 2, L)
    averages = {
        kind: {
            own: {"locality": locality[k, o].tolist(), "locality_ci": [[x - 0.1, x + 0.1] for x in locality[k, o]]}
            for o, own in enumerate(OWN)
        }
        for k, kind in enumerate(KINDS[:kinds])
    }
    summary = {
        "blocks": list(range(2, 2 + blocks)),
        "num_blocks": blocks + 2,
        "num_images": 7,
        "queries": {"asking patches": 16, "lattice": [4, 4], "of": 64},
        "outliers": {"images with": 3 * (kinds > 1)},
        "averages": averages,
    }
    return AttentionDistanceResult(
        summary=summary, uniform=uniform, shares=shares, shares_ci=np.stack([shares, shares]), **arrays
    )


def draw(figure: Figure) -> list[str]:
    """Draw it whole, within its own rim; returns what is written in it."""
    FigureCanvasAgg(figure).draw()
    box, size = figure.get_tightbbox(), figure.get_size_inches()
    assert box.x0 > -0.02 and box.y0 > -0.02 and box.x1 < size[0] + 0.02 and box.y1 < size[1] + 0.02
    return [text.get_text() for text in figure.findobj(Text)]


@pytest.mark.parametrize("kinds", [1, 2])
def test_every_head_is_a_dot(kinds: int) -> None:
    found = made(kinds)
    display = plots.DistanceDisplay(found).plot()
    assert len(display.dots_) == kinds
    for k, line in enumerate(display.dots_):
        assert line.get_ydata() == pytest.approx(found.distance[k, 0].ravel())
        assert np.round(line.get_xdata()).tolist() == np.repeat(range(3), 4).tolist()
        assert (line.get_markerfacecolor() == "white") == (k == 1)  # open: without outliers
    assert display.uniform_.get_ydata()[0] == found.uniform[0, 0, 0]
    bands = [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in display.ax_.patches]
    low, high = found.distance_permuted[:, 0, 0]
    assert np.array(bands) == pytest.approx(np.stack([low.min(-1), high.max(-1)], axis=1))
    assert [label.get_text() for label in display.ax_.get_xticklabels()] == ["2", "3", "4"]
    assert display.ax_.get_ylim()[1] > max(found.distance[:, 0].max(), high.max())


def test_shares_stand_on_each_other() -> None:
    found = made()
    display = plots.ShareDisplay(found).plot()
    base = np.zeros(3)
    for part, bars in zip(("CLS", "registers", "outliers"), display.bars_, strict=True):
        share = found.shares[0, PARTS.index(part)].mean(-1)
        assert [bar.get_y() for bar in bars] == pytest.approx(base)
        assert [bar.get_height() for bar in bars] == pytest.approx(share)
        base = base + share
    assert display.ax_.get_ylim()[1] > base.max()


def test_a_scale_holds_all_models_and_what_is_not_measured() -> None:
    one, other = made(1, far=100.0), made(2, far=300.0, seed=1)
    other.distance[:, :, 1] = np.nan
    other.distance_permuted[:, :, :, 1] = np.nan
    scale = plots.shared_scale([one, other])
    assert scale.pixels > 0.9 * 300
    assert scale == plots.shared_scale([other, one])
    assert plots.shared_scale([one]).pixels < scale.pixels
    assert len(plots.DistanceDisplay(other, scale).plot().ax_.patches) == 2  # the block without a number has no band


@pytest.mark.parametrize("size", [(7.0, plots.PART_HEIGHT), (3.5, plots.PART_HEIGHT)])
def test_a_part_of_a_page_draws_whole(size: tuple[float, float]) -> None:
    before = dict(matplotlib.rcParams)
    figure = style.new_figure(size[1], width=size[0])
    found = made(blocks=24, heads=16)
    scale = plots.shared_scale([found, made(far=500.0)])
    plots.page_part(figure.subfigures(), found, scale=scale)
    words = draw(figure)
    assert "7 images, 16 of 64 patches as queries; own patch: 0 px" in words
    assert {"a head, all patches", "a head, without outliers", "uniform attention", "on registers"} <= set(words)
    assert {ax.get_ylim() for ax in figure.findobj(matplotlib.axes.Axes)} == {(0, scale.pixels), (0, scale.share)}
    assert dict(matplotlib.rcParams) == before


def test_one_kind_has_no_legend_of_outliers() -> None:
    words = draw(plots.figure({"a": made(1)}))
    assert "a head" in words and not any("outliers" in word and "\n" not in word for word in words)


@pytest.mark.parametrize("number", [2, 3, 5])
def test_models_are_compared_on_shared_scales(number: int) -> None:
    results = {f"model {i}": made(1 + i % 2, far=50.0 * (i + 1), seed=i) for i in range(number)}
    figure = plots.compare(results)
    words = draw(figure)
    assert set(results) <= set(words)
    scale = plots.shared_scale(list(results.values()))
    limits = [ax.get_ylim() for ax in figure.findobj(matplotlib.axes.Axes) if ax.axison and ax.get_title(loc="left")]
    assert limits[:number] == [(0, scale.pixels)] * number


def test_locality_has_a_line_for_each_model_and_kind() -> None:
    results = {"one": made(1), "other": made(2, seed=1)}
    display = plots.LocalityDisplay(results).plot()
    assert [line.get_label() for line in display.lines_] == ["one", "other", "other, without outliers"]
    for line, (title, k) in zip(display.lines_, (("one", 0), ("other", 0), ("other", 1)), strict=True):
        assert line.get_ydata() == pytest.approx(results[title].locality[k, 0].mean(-1))
        assert line.get_xdata() == pytest.approx(np.array([3, 4, 5]) / 5)


def test_one_model_has_nothing_to_compare() -> None:
    assert plots.compare({"alone": made()}) is None
    assert plots.figure({"alone": made()}) is not None
