"""The figure of data sizes: every number where it belongs, intervals, one scale, marks that need no colour."""

from dataclasses import replace

import numpy as np
import pytest

from vitprobe.plots.data_sizes import MARKS, DataSizesDisplay, draw_data_sizes
from vitprobe.plots.style import new_figure
from vitprobe.probes.data_sizes import MEASURES, DataSizes, empty


@pytest.fixture
def result() -> DataSizes:
    """Three networks on three sizes with two seeds; one has not been trained on the last."""
    models = [{"name": name, "parameters": 7e5} for name in ("ResNet", "ViT", "hybrid")]
    told = {"models": models, "num_held_out": 1000, "classes": list("abcd"), "flops": 5.5e12}
    found, draw = empty(told, (500, 2000, 8000), 2), np.random.default_rng(0)
    for name in MEASURES:
        getattr(found, name)[:] = draw.uniform(0.2, 0.9, found.right.shape)
    found.right[:] = draw.integers(300, 900, found.right.shape)
    found.maximum[:] = 3 * found.median
    found.right[2, 2] = np.nan
    return found


def test_lines_stand_at_the_numbers(result: DataSizes) -> None:
    shown = DataSizesDisplay(result, "accuracy").plot(new_figure(2.0).add_subplot())
    for m in range(3):
        x, y = shown.lines_[m].get_data()
        assert np.array_equal(y, result.right[m].mean(axis=1) / 1000, equal_nan=True)
        assert np.abs(np.log10(x / result.sizes)).max() < 0.05
        assert np.array_equal(shown.trained_[m].get_ydata(), result.train_accuracy[m].mean(axis=1))
        segments = shown.bars_[m].get_segments()
        for s in range(2):
            assert segments[s][:, 1].tolist() == pytest.approx(result.interval(m, s))
            assert segments[s][0, 1] < y[s] < segments[s][1, 1]
    norms = DataSizesDisplay(result, "norms").plot(new_figure(2.0).add_subplot())
    assert norms.lines_[1].get_ydata() == pytest.approx([3, 3, 3]) and norms.trained_ == []


def test_networks_are_told_apart_without_colour(result: DataSizes) -> None:
    figure = draw_data_sizes({"one": result})
    lines = [line for line in figure.axes[0].lines if line.get_linestyle() == "-" and line.get_marker() != "None"]
    assert len({line.get_marker() for line in lines}) == 3 == len({mark for mark, _ in MARKS[:3]})
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[:3] == [f"{name}, 0.70 M parameters" for name in ("ResNet", "ViT", "hybrid")]


def test_columns_share_their_scales_and_say_what_they_are(result: DataSizes) -> None:
    other = replace(result, maximum=9 * result.median)
    figure = draw_data_sizes({"cifar10": result, "scenes": other})
    above, below = figure.axes[:2], figure.axes[2:]
    assert len({ax.get_ylim() for ax in above}) == 1 == len({ax.get_ylim() for ax in below})
    assert below[0].get_ylim()[1] > 9 and [ax.get_title(loc="left") for ax in above] == ["cifar10", "scenes"]
    assert (above[0].get_ylabel(), below[0].get_ylabel()) == ("accuracy", "largest norm, in medians")
    assert {ax.get_xlabel() for ax in below} == {"training images"}
