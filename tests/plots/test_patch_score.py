"""Maps of Patch Scores: one scale that outliers do not set, boxes and the patch of highest score in their places."""

import numpy as np
import pytest

from vitprobe.plots.patch_score import ScoreMapDisplay, draw_maps, draw_point_in_box, score_limits


def arrays(*, shade=100, outlier=True):
    scores = np.linspace(0.4, 0.9, 32).reshape(1, 4, 8).astype(np.float32)
    outliers = np.zeros((1, 4, 8), bool)
    if outlier:
        scores[0, 0, 0], outliers[0, 0, 0] = -0.9, True
    truth = np.full((1, 2, 4), np.nan)
    truth[0, 1] = 0.25, 0.5, 1.0, 1.0
    return {
        "example_images": np.full((1, 40, 80, 3), shade, np.uint8),
        "example_scores": scores,
        "example_outliers": outliers,
        "example_truth": truth,
        "example_top": np.array([[3, 7]]),
        "example_in_box": np.array([True]),
    }


def share(value):
    return {"value": value, "interval": [value - 0.1, value + 0.1], "num_images": 9}


SUMMARY = {"reference": "cls", "shares": {"top": share(0.4), "top of others": None, "random patch": share(0.2)}}


def test_an_outlier_does_not_set_the_scale():
    low, high = score_limits([arrays()])
    assert 0.4 < low < 0.45 and 0.85 < high < 0.9
    only = arrays()
    only["example_outliers"][:] = True
    assert score_limits([only]) == (0.0, pytest.approx(1e-6))


def test_box_top_patch_and_outliers_stand_in_their_places():
    display = ScoreMapDisplay(arrays(), 0).plot(limits=(0.0, 1.0))
    assert display.image_.get_array().shape == (4, 8) and display.image_.norm.vmax == 1.0
    (box,) = display.ax_.patches
    assert box.get_bbox().extents.tolist() == [20, 20, 80, 40]
    assert (float(display.top_.get_xdata()[0]), float(display.top_.get_ydata()[0])) == (75.0, 35.0)
    assert display.ax_.get_xlabel() == "in a box" and len(display.ax_.collections[0].get_segments()) == 4


def test_pictures_stand_wherever_they_change():
    results = [("a", SUMMARY, arrays()), ("b", SUMMARY, arrays(outlier=False)), ("c", SUMMARY, arrays(shade=20))]
    figure = draw_maps(results)
    figure.draw_without_rendering()
    pictures = [ax for ax in figure.axes if ax.images and ax.images[0].get_array().ndim == 3]
    maps = [ax for ax in figure.axes if ax.images and ax.get_xlabel() == "in a box"]
    assert len(pictures) == 2 and len(maps) == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "outliers (white)"


def test_point_in_box_leaves_out_what_was_not_measured():
    figure = draw_point_in_box([("a", SUMMARY), ("b", {**SUMMARY, "reference": "mean"})])
    (ax,) = figure.axes
    marks = [float(line.get_xdata()[0]) for line in ax.lines if line.get_linestyle() == "None"]
    assert marks == [0.4, 0.2, 0.4, 0.2]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["patch of highest score", "random patch"]
