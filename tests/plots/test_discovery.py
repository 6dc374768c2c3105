"""The sweep's map and examples: cells by setting, one scale, images in which nothing was found."""

import numpy as np

from vitprobe.plots.discovery import FoundDisplay, SweepDisplay, draw_examples, draw_sweep


def cell(bias, centring, corloc, *, normalise=True, features="keys", block=11):
    return {"bias": bias, "centring": centring, "corloc": corloc, "normalise": normalise, "features": features,
            "block": block, "label": f"{features}, bias {bias:g}"}  # fmt: skip


CELLS = [
    cell(0.0, "none", 0.005, normalise=False),
    cell(0.0, "none", 0.02),
    cell(-0.2, "none", 0.4),
    cell(0.0, "image mean", 0.616),
    cell(-0.2, "image mean", 0.0),
]
SUMMARY = {"cells": CELLS, "whole_image_corloc": 0.1, "best": 3, "grid": [4, 4]}


def test_cells_lie_by_bias_and_centring_with_their_numbers():
    display = SweepDisplay(SUMMARY, "keys", 11, "a model").plot(limit=0.8)
    assert display.image_.get_array().tolist() == [[0.02, 0.4], [0.616, 0.0]] and display.image_.norm.vmax == 0.8
    assert [text.get_text() for text in display.texts_] == ["2.0", "40.0", "61.6", "0"]
    assert [text.get_weight() for text in display.texts_] == ["normal", "normal", "bold", "normal"]
    assert [text.get_text() for text in display.ax_.get_xticklabels()] == ["0", "−0.2"]
    (frame,) = display.ax_.patches
    assert frame.get_xy() == (-0.5, 0.5)  # around the best
    said = [child.get_text() for child in display.ax_.get_children() if hasattr(child, "get_text")]
    assert "keys of block 11; LOST as published 0.50 %; whole image 10 %" in said


def test_all_panels_share_one_scale_and_nothing_found_is_no_error():
    none = {**SUMMARY, "cells": [{**one, "corloc": 0.0, "features": "values"} for one in CELLS[1:]]}
    figure = draw_sweep([("a", SUMMARY), ("b", none)])
    figure.draw_without_rendering()
    maps = [ax.images[0] for ax in figure.axes if ax.images]
    assert [image.norm.vmax for image in maps] == [0.616, 0.616]
    alone = draw_sweep([("b", none)])
    assert [ax.images[0].norm.vmax for ax in alone.axes if ax.images] == [1.0]


def arrays(found):
    truth = np.full((1, 2, 4), np.nan)
    truth[0, 0] = 0.1, 0.2, 0.5, 0.9
    return {
        "example_images": np.full((1, 40, 80, 3), 200, np.uint8),
        "example_seeds": np.array([[1, 3]]),
        "example_found": np.array([found], float),
        "example_truth": truth,
        "example_iou": np.array([0.5]),
    }


def test_boxes_and_seed_are_laid_on_the_picture():
    display = FoundDisplay(SUMMARY, arrays((0.25, 0.5, 0.75, 1.0)), 0).plot()
    boxes = [[round(x, 6) for x in box.get_bbox().extents] for box in display.boxes_]
    assert boxes == [[8, 8, 40, 36]] * 2 + [[20, 20, 60, 40]] * 2  # each with a dark edge under it
    (seed,) = display.ax_.lines
    assert (float(seed.get_xdata()[0]), float(seed.get_ydata()[0])) == (70.0, 15.0)
    assert display.ax_.get_xlabel() == "IoU 0.50"


def test_an_image_without_a_box_says_so():
    display = FoundDisplay(SUMMARY, arrays((0, 0, 0, 0)), 0).plot()
    assert display.ax_.get_xlabel() == "no box" and len(display.boxes_) == 2
    figure = draw_examples([("a model", SUMMARY, arrays((0, 0, 0, 0)))])
    figure.draw_without_rendering()
    assert len(figure.axes) == 1 and len(figure.legends[0].get_texts()) == 3
