"""What figure 20 shows is what the result holds."""

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from vitprobe.plots import components, style
from vitprobe.probes.components import FITS, Components


def made(*, images=3, grid=(4, 5), has_outliers=True, seed=0, same=True):
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=(2, images, *grid))
    outliers = (rng.random((images, *grid)) < 0.2) & has_outliers
    maps[0][outliers] = 8.0
    area = {"value": 0.98 if has_outliers else None}
    summary = {
        "over": "images",
        "point": "resid_post",
        "block": 7,
        "variance": {"all": {"value": 0.62}, "without_outliers": {"value": 0.31}},
        "auroc": {"all": area, "without_outliers": {"value": 0.51 if has_outliers else None}},
        "num_outliers": int(outliers.sum()),
    }
    pixels = np.random.default_rng(0 if same else seed).integers(0, 255, (images, 8 * grid[0], 8 * grid[1], 3))
    names = np.array([f"folder/photo_{i}.jpg" for i in range(images)])
    return Components(summary, np.ones((2, 1)), maps, outliers, pixels.astype(np.uint8), names)


@pytest.mark.parametrize("fit", FITS)
def test_maps_are_scores_on_one_scale_with_outliers_outlined(fit):
    found = made()
    shown = components.ComponentDisplay(found, "organism", fit=fit).plot()
    for image, scores in zip(shown.images_, found.example_maps[FITS.index(fit)], strict=True):
        np.testing.assert_array_equal(image.get_array(), scores)
        assert image.get_clim() == (-3, 3)
    assert all(
        bool(len(lines.get_segments())) == mask.any()
        for lines, mask in zip(shown.outlines_, found.example_outliers, strict=True)
    )
    text = shown.note_.get_text()
    assert ("62 %" in text and "0.98" in text) if fit == "all" else ("31 %" in text and "0.51" in text)


def test_no_outliers_are_said():
    shown = components.ComponentDisplay(made(has_outliers=False), "organism-clean").plot()
    assert "no outliers" in shown.words() and not any(len(lines.get_segments()) for lines in shown.outlines_)
    figure = components.draw_components([("organism-clean", made(has_outliers=False))])
    assert "outlined" not in figure.get_supxlabel()


def test_outlines_of_small_patches_leave_them_visible():
    coarse, fine = (
        components.ComponentDisplay(made(grid=grid), "x").plot().outlines_[0] for grid in ((4, 5), (60, 75))
    )
    assert fine.get_linewidth()[0] < coarse.get_linewidth()[0] == 0.7


@pytest.mark.parametrize("case", ["one", "same images", "other images", "many images", "one image", "tall"])
def test_models_draw_whole(case, pyplot):
    before = dict(matplotlib.rcParams)
    results = {
        "one": [("organism", made())],
        "same images": [("organism", made()), ("organism-clean, nothing planted", made(has_outliers=False, seed=1))],
        "other images": [("organism", made()), ("scenes-content", made(seed=1, same=False))],
        "many images": [(f"a-long-name-of-a-model-{i}, random", made(images=8, seed=i)) for i in range(3)],
        "one image": [("organism", made(images=1)), ("a-long-name-" * 5, made(images=1, seed=2))],
        "tall": [("organism", made(grid=(9, 3)))],
    }[case]
    figure = components.draw_components(results)
    FigureCanvasAgg(figure).draw()
    pictures = 2 if case == "other images" else 1
    images = len(results[0][1].example_images)
    assert len(figure.axes) == images * (len(results) + pictures) + 1  # and the scale
    assert figure.get_figwidth() <= style.WIDTH + 0.01
    assert not pyplot.get_fignums() and dict(matplotlib.rcParams) == before
    notes = [n.get_window_extent().transformed(figure.dpi_scale_trans.inverted()) for n in figure.findobj(Annotation)]
    box, (width, height) = Bbox.union([figure.get_tightbbox(), *notes]), figure.get_size_inches()
    assert box.x0 > -0.02 and box.y0 > -0.02 and box.x1 < width + 0.02 and box.y1 < height + 0.02, "text is cut off"
