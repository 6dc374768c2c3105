"""What figure 13 shows is what the result holds."""

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from vitprobe.plots import null_space, style
from vitprobe.probes.null_space import NullSpace, NullSpaceAccumulator, ValueBasis, ValueProjection, spectrum

WIDTH = 16


def made(*, share=0.1, rank=12, blocks=3, seed=0):
    """A result of random projections of a rank; outliers lie in the null space of the last one."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(blocks, WIDTH, rank)) @ rng.normal(size=(blocks, rank, WIDTH))
    projections = [ValueProjection(weight.reshape(2, 8, WIDTH), np.zeros((2, 8))) for weight in weights]
    basis = ValueBasis.of(projections[-1])
    accumulator = NullSpaceAccumulator(basis)
    tokens, outliers = rng.normal(size=(8, 40, WIDTH)), rng.random((8, 40)) < share
    tokens[outliers] = basis.directions[-1]
    accumulator.update(range(8), torch.from_numpy(tokens), outliers)
    heads = np.linalg.svd(projections[-1].weight, compute_uv=False) / basis.singular[0]
    with np.errstate(invalid="ignore"):
        energy = accumulator.energy / accumulator.counts[:, None]
    summary = {"block": blocks - 1, **accumulator.summary()}
    return NullSpace(summary, np.stack([spectrum(p) for p in projections]), heads, energy)


def test_lines_are_spectra_and_cumulated_shares():
    found = made()
    shown = null_space.NullSpaceDisplay(found, "organism").plot()
    for line, values in zip(shown.blocks_, found.spectrum, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), values.clip(null_space.LOWEST))
    for line, values in zip(shown.heads_, found.heads, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), values.clip(null_space.LOWEST))
    outliers, others, random = (line.get_data() for line in shown.energy_)
    at = [y[np.searchsorted(x, 2 * null_space.LOWEST) - 1] for x, y in (outliers, others, random)]
    assert at == pytest.approx([1, found.summary["null_share"]["others"]["value"], 4 / WIDTH], abs=1e-4)
    assert all(y[0] == 0 and y[-1] == pytest.approx(1, abs=1e-4) for _, y in (outliers, others, random))
    assert [line.get_linewidth() for line in shown.blocks_] == [0.7, 0.7, null_space.MEASURED["linewidth"]]


def test_gains_are_told():
    found = made()
    gain = {name: found.summary["gain"][name]["value"] for name in ("outliers", "others")}
    words = f"gain: outliers {gain['outliers']:.2g}, others {gain['others']:.2g}, "
    shown = null_space.NullSpaceDisplay(found, "x").plot()
    assert shown.note_.get_text() == f"{words}random {found.summary['random']['gain']:.2g}"


def test_no_outliers_are_said_and_not_drawn():
    shown = null_space.NullSpaceDisplay(made(share=0), "organism-clean").plot()
    assert len(shown.energy_) == 2 and shown.note_.get_text().startswith("no outliers; gain: others")
    labels = [text.get_text() for text in shown.figure_.legends[0].get_texts()]
    assert "outliers" not in labels and "null below 0.01" in labels


@pytest.mark.parametrize("number", [1, 3])
def test_models_draw_whole(number, pyplot):
    before = dict(matplotlib.rcParams)
    results = [(f"a-long-name-of-a-model-{i}, random $x_{i}$", made(share=0.1 * i, seed=i)) for i in range(number)]
    figure = null_space.draw_null_space(results)
    FigureCanvasAgg(figure).draw()
    assert len(figure.axes) == 3 * number and figure.get_figwidth() <= style.WIDTH
    for column in range(3):
        assert len({(ax.get_ylim(), ax.get_yscale()) for ax in figure.axes[column::3]}) == 1
    assert not pyplot.get_fignums() and dict(matplotlib.rcParams) == before
    notes = [n.get_window_extent().transformed(figure.dpi_scale_trans.inverted()) for n in figure.findobj(Annotation)]
    box, (width, height) = Bbox.union([figure.get_tightbbox(), *notes]), figure.get_size_inches()
    assert box.x0 > -0.02 and box.y0 > -0.02 and box.x1 < width + 0.02 and box.y1 < height + 0.02, "text is cut off"


def test_displays_draw_into_given_axes(pyplot):
    figure, axes = pyplot.subplots(1, 3)
    shown = null_space.NullSpaceDisplay(made(), "x")
    assert shown.plot(axes) is shown and shown.axes_ == list(axes) and figure.axes == list(axes)
