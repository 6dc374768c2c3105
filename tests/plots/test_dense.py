"""Maps of classes and depths show what was read, on one scale, and bars are the scores."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from vitprobe.plots.dense import (
    PALETTE,
    ClassesDisplay,
    DepthDisplay,
    MaskDisplay,
    Read,
    class_colors,
    depth_limits,
    draw_classes,
    draw_depths,
    draw_masks,
    paint,
)
from vitprobe.probes.dense import Examples

CLASSES = ("sky", "road", "tree", "car")


def read(title: str = "model", *, size: int = 16, seed: int = 0, depth: bool = False, classes=CLASSES) -> Read:
    """Three made examples of a model; the second class is the most frequent, the last is in no test image."""
    rng = np.random.default_rng(seed)
    coarse = np.random.default_rng(9).integers(0, 255, (3, 4, 4, 3), np.uint8)
    images = coarse.repeat(size // 4, 1).repeat(size // 4, 2)
    if depth:
        truth = rng.uniform(1, 5, (3, size, size)).astype(np.float32)
        truth[:, :3] = np.nan
        predicted = np.nan_to_num(truth, nan=2.0) + 0.5
        return Read(title, Examples(images, np.array(["a/1.png", "b", "c"]), truth, predicted), unit="m")
    truth = rng.integers(-1, 3, (3, size, size)).astype(np.int16)
    predicted = np.where(rng.random(truth.shape) < 0.7, truth.clip(0), 1).astype(np.int16)
    number = len(classes)
    shares = np.array([0.3, 0.5, 0.2, *[0.0] * (number - 3)])
    values = np.array([0.6, 0.9, 0.3, *[np.nan] * (number - 3)])
    return Read(
        title,
        Examples(images, np.array(["a/1.png", "b", "c"]), truth, predicted),
        tuple(classes),
        values,
        np.c_[values - 0.05, values + 0.05],
        values / 2,
        shares,
    )


def test_classes_keep_their_colours_and_void_is_white(pyplot):
    one = read()
    colors = class_colors([one])
    assert [to_rgb(PALETTE[i]) for i in range(4)] == [tuple(colors[c]) for c in (1, 0, 2, 3)]  # by frequency
    drawn = MaskDisplay(one, 1, truth=True).plot()
    shown, truth = drawn.image_.get_array(), one.examples.truth[1]
    for y, x in ((0, 0), (5, 3), (15, 15)):
        wanted = (1, 1, 1) if truth[y, x] < 0 else tuple(colors[truth[y, x]])
        assert tuple(shown[y, x]) == pytest.approx(wanted)
    assert (paint(np.array([[-1, 0]]), colors)[0, 0] == 1).all() and drawn.right is None


def test_colours_of_many_classes_differ():
    many = read(classes=[str(i) for i in range(30)])
    colors = class_colors([many])
    apart = np.linalg.norm(colors[:, None] - colors[None], axis=-1) + np.eye(30)
    assert apart.min() > 0.05 and np.linalg.norm(colors - 1, axis=1).min() > 0.1  # and none is that of void
    first = np.array([to_rgb(color) for color in PALETTE])
    weights = np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]])
    seen = first @ weights.T  # to readers without green cones (Machado et al., 2009, severity 1)
    assert (np.linalg.norm(seen[:, None] - seen[None], axis=-1) + np.eye(12)).min() > 0.1


def test_what_is_right_is_counted_where_the_class_is_known(pyplot):
    one = read()
    drawn = MaskDisplay(one, 2).plot()
    pairs = [(p, t) for p, t in zip(one.examples.predicted[2].ravel(), one.examples.truth[2].ravel(), strict=True)]
    right = np.mean([p == t for p, t in pairs if t >= 0])
    assert drawn.right == pytest.approx(right) and drawn.ax_.get_xlabel() == f"{100 * right:.0f} % right"


def test_depths_are_on_one_scale(pyplot):
    reads = [read("one", depth=True), read("two", depth=True, seed=1)]
    low, high = depth_limits(reads)
    every = np.concatenate([one.examples.truth.ravel() for one in reads])
    assert (low, high) == (np.nanmin(every), np.nanmax(every))
    figure = draw_depths(reads)
    maps = [image for ax in figure.axes for image in ax.images if image.get_array().ndim == 2]
    assert len(maps) == 3 + 6 and {image.get_clim() for image in maps} == {(low, high)}
    drawn = DepthDisplay(reads[0], 0).plot()
    assert drawn.error == pytest.approx(0.5, rel=1e-5) and drawn.ax_.get_xlabel() == "RMSE 0.5"
    void = np.full_like(reads[0].examples.truth, np.nan)
    unknown = Read("x", Examples(reads[0].examples.images, reads[0].examples.names, void, reads[0].examples.predicted))
    assert depth_limits([unknown])[0] == unknown.examples.predicted.min()
    assert DepthDisplay(unknown, 0).plot().error is None


def titles(figure):
    return [text.get_text() for ax in figure.axes for text in ax.texts if text.get_text()]


def test_models_that_saw_the_same_pictures_share_a_row_of_them():
    same, larger = read("one"), read("two", size=32)
    other = read("three")
    other = replace(other, examples=replace(other.examples, images=255 - other.examples.images))
    assert titles(draw_masks([same, larger])) == ["images", "truth", "one", "two"]
    assert titles(draw_masks([same, other, larger])) == ["images", "truth", "one", "two", "images", "truth", "three"]


def test_bars_are_the_scores_and_the_most_frequent_class_is_on_top(pyplot):
    one, order = read(), np.array([1, 0, 2, 3])
    drawn = ClassesDisplay(one, order).plot()
    assert [bar.get_width() for bar in drawn.bars_] == pytest.approx([0.9, 0.6, 0.3, 0])
    assert drawn.intervals_.get_segments()[1][:, 0] == pytest.approx([0.55, 0.65])
    assert drawn.position_.get_xdata()[:3] == pytest.approx([0.45, 0.3, 0.15])
    assert [text.get_text() for text in drawn.ax_.get_yticklabels()] == ["road", "sky", "tree", "car"]
    assert drawn.ax_.texts[0].get_text() == "not here" and drawn.ax_.yaxis_inverted()
    figure = draw_classes([one, read("two"), read("three"), read("four")])
    assert len(figure.axes) == 4 and {ax.get_xlim() for ax in figure.axes} == {(0.0, 1.0)}


@pytest.mark.parametrize("number", [3, 30])
def test_legends_cover_nothing(number):
    classes = [f"class {i}" for i in range(number)]
    one = read(classes=[*CLASSES[:3], *classes[3:]])
    for figure in (draw_masks([one]), draw_classes([one, one])):
        FigureCanvasAgg(figure).draw()
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert not any(box.overlaps(ax.get_tightbbox()) for ax in figure.axes)
    named = [text.get_text() for text in draw_masks([one]).legends[0].get_texts()]
    assert named == ["road", "sky", "tree", "no class known"]  # those that are seen
