"""The page of ``inspect``: what is drawn is what the results hold, whole, on scales that models share."""

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from vitprobe import backbones
from vitprobe.plots import filters, position_similarity, style
from vitprobe.plots.inspect import chosen, comparisons, draw_page, scales
from vitprobe.probes.absent import Absent
from vitprobe.probes.attention_distance import measure_attention_distance
from vitprobe.probes.feature_maps import of_backbone
from vitprobe.probes.filters import absent as no_filters
from vitprobe.probes.filters import analyse_filters
from vitprobe.probes.position_similarity import LINES, analyse_positions
from vitprobe.probes.position_similarity import absent as no_positions
from vitprobe.probes.translation import measure_translation


def some_filters(side=8, seed=0, number=40):
    return analyse_filters(np.random.default_rng(seed).normal(size=(number, 3, side, side)), what="patch embedding")


def some_positions(grid=(5, 6), seed=0):
    return analyse_positions(np.random.default_rng(seed).normal(size=(grid[0] * grid[1], 16)), grid)


class Images:
    """A batch, as probes take it."""

    def __init__(self, side):
        import torch

        self.images = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0))
        self.names, self.indices = ("a", "b", "c"), (0, 1, 2)


@pytest.fixture(scope="module")
def parts():
    """All parts of a small model whose outliers are a quarter of its patches."""
    backbone = backbones.load("organism", image_size=(64, 64))
    shifts, cutoff = ((0, 8), (0, 16), (16, 0)), 20.0
    mapped = of_backbone(backbone)
    cutoff = float(np.quantile(mapped.norms(Images(64).images).numpy(), 0.75))
    return {
        "filters": some_filters(),
        "positions": some_positions(),
        "attention": measure_attention_distance(backbone, [Images(64)], cutoff=cutoff, max_queries=16),
        "translation": measure_translation(mapped, [Images(96)], shifts=shifts, cutoff=cutoff),
    }


def drawn(figure):
    FigureCanvasAgg(figure).draw()
    return [text.get_text() for text in figure.findobj(Text)]


def test_pictures_are_the_components_on_one_scale():
    found = some_filters(number=12)  # 11 components, 7 in a row
    figure = style.new_figure(3.0).subfigures()
    filters.page_part(figure, found, scale=2.0)
    canvas = figure.axes[0].images[0].get_array()
    gap = 1
    assert canvas.shape == (2 * 8 + gap, 7 * 8 + 6 * gap, 3)
    for i in (0, 8):
        top, left = (i // 7) * 9, (i % 7) * 9
        picture = found.components[i] * np.sqrt(3 * 8 * 8)
        expected = (0.5 + picture.transpose(1, 2, 0) / 4).clip(0, 1)
        np.testing.assert_allclose(canvas[top : top + 8, left : left + 8], expected, atol=1e-6)
    line, random = figure.axes[1].lines
    np.testing.assert_allclose(line.get_ydata(), np.cumsum(found.explained[:11]))
    np.testing.assert_allclose(random.get_ydata(), np.cumsum(found.random_explained[:11]))


def test_maps_are_the_similarities_of_evenly_spread_positions():
    found = some_positions((9, 5))
    figure = style.new_figure(3.0).subfigures()
    position_similarity.page_part(figure, found, scale=(-1.0, 1.0))
    canvas = figure.axes[0].images[0].get_array()
    assert figure.axes[0].images[0].get_clim() == (-1, 1)
    assert canvas.shape == (7 * 9 + 6, 5 * 5 + 4)
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["0", "1", "3", "4", "5", "7", "8"]
    np.testing.assert_allclose(canvas[20:29, 12:17], found.similarity[3, 2])
    for line, values in zip(figure.axes[1].lines, found.by_distance, strict=True):
        np.testing.assert_allclose(line.get_ydata(), values[np.isfinite(values)])
    assert [line.get_label() for line in figure.axes[1].lines] == list(LINES)


def test_scales_hold_all_models():
    low, high = position_similarity.shared_scale([some_positions(), some_positions((2, 3)), no_positions("none")])
    assert high == 1 and low == min(one.similarity.min() for one in (some_positions(), some_positions((2, 3))))
    assert position_similarity.shared_scale([no_positions("none")]) == (0, 1)
    assert filters.shared_scale([no_filters("none")]) == 1
    values = np.abs(some_filters().components * np.sqrt(192))
    assert filters.shared_scale([some_filters(), no_filters("none")]) == pytest.approx(np.percentile(values, 99.5))


@pytest.mark.parametrize("case", ["all", "filters", "images", "absent"])
def test_a_page_is_drawn_whole(case, parts, pyplot):
    before = dict(matplotlib.rcParams)
    shown = {
        "all": parts,
        "filters": {"filters": parts["filters"]},
        "images": {name: parts[name] for name in ("attention", "translation")},
        "absent": {
            "filters": no_filters("its filters read no pixels"),
            "positions": no_positions("its positions are rotary"),
            "translation": Absent({"absent": "one image could be read"}),
        },
    }[case]
    figure = draw_page("a model, random", "224 x 224 px, " * 20, shown, scale=scales([shown]))
    texts = drawn(figure)
    assert "a model, random" in texts
    if case == "absent":
        assert {"its filters read no pixels", "its positions are rotary", "one image could be read"} <= set(texts)
    assert figure.get_figwidth() == style.WIDTH and figure.get_figheight() < 11.7  # of a page
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert box.x0 > -0.02 and box.y0 > -0.02 and box.x1 < width + 0.02 and box.y1 < height + 0.02, "cut off"
    assert not pyplot.get_fignums() and dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("number", [2, 3, 4])
def test_several_models_are_compared_on_one_scale(number):
    models = {
        f"model {i}": {"filters": some_filters(4 + i, i), "positions": some_positions((4, 3 + i), i)}
        for i in range(number)
    }
    models["a convolutional network"] = {"filters": some_filters(3)}
    found = comparisons(models)
    assert set(found) == {"filters", "positions"}
    for figure in found.values():
        assert any("model 1" in text for text in drawn(figure))
    images = [image for ax in found["positions"].axes for image in ax.images]
    assert len(images) == number and len({image.get_clim() for image in images}) == 1
    assert comparisons({"one": models["model 0"]}) == {}
    alone = {"one": models["model 0"], "other": {"filters": no_filters("none")}}
    assert comparisons(alone) == {}


def test_outliers_are_drawn_or_not(parts):
    both = parts["attention"]
    assert len(both.distance) == 2 and chosen(parts, "both") is parts
    for kind, outliers in enumerate(("with", "without")):
        shown = chosen(parts, outliers)
        np.testing.assert_array_equal(shown["attention"].distance, both.distance[kind : kind + 1])
        np.testing.assert_array_equal(shown["attention"].distance_ci, both.distance_ci[:, kind : kind + 1])
        np.testing.assert_array_equal(shown["attention"].uniform, both.uniform[:, kind : kind + 1])
        np.testing.assert_array_equal(shown["translation"].errors[0], parts["translation"].errors[kind])
        texts = " ".join(drawn(draw_page("x", "y", shown, scale=scales([shown]))))
        assert "without outliers" not in texts and "no outliers" not in texts
        assert ("outliers were" in texts) == (outliers == "with")
    texts = " ".join(drawn(draw_page("x", "y", parts, scale=scales([parts]))))
    assert "without outliers" in texts and "no outliers" in texts
