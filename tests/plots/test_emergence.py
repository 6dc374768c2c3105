"""Figures of a search: every number of a row is where the axis says."""

from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from vitprobe.plots import style
from vitprobe.plots.emergence import GrowthDisplay, SearchDisplay, draw_growth, draw_search, summit


def block(number: int, p99: float, **more: Any) -> dict[str, Any]:
    """One block's line."""
    line = {"block": number, "p99": p99, "q95": 0.8 * p99, "largest": 1.2 * p99, "background": 0.25}
    return line | {"background_base": 0.7, "received": [1.0, 2.0 * p99]} | more


RUNS = [
    {"name": "first", "blocks": [block(0, 1.4), block(1, 1.2)]},
    {"name": "second + 4 registers", "blocks": [block(0, 1.5), block(1, 6.0, background=1.0)]},
    {"name": "of pictures", "norms": [{"block": 0, "norm": {"median": 10.0, "p99": 20.0, "max": 30.0}}]},
]


def test_the_summit_is_the_block_of_the_largest_tail() -> None:
    assert [summit(run)["p99"] for run in RUNS] == [1.4, 6.0, 2.0]
    assert summit(RUNS[2])["largest"] == 3.0
    assert np.isnan(summit(RUNS[2])["background"])


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [("tail", [1.4, 6.0, 2.0]), ("place", [0.25, 1.0, np.nan]), ("attention", [2.8, 12.0, np.nan])],
)
def test_dots_are_the_numbers(quantity: str, expected: list[float]) -> None:
    ax = SearchDisplay(RUNS, quantity).plot().ax_
    dots = next(line for line in ax.lines if line.get_marker() == "o")
    assert np.allclose(dots.get_xdata(), expected, equal_nan=True)
    assert list(dots.get_ydata()) == [0, 1, 2]
    assert [label.get_text() for label in ax.get_yticklabels()] == [run["name"] for run in RUNS]
    low, high = ax.get_xlim()
    assert low <= np.nanmin(expected) and np.nanmax(expected) <= high


def test_an_unknown_quantity_is_refused() -> None:
    with pytest.raises(ValueError, match="tail, place and attention"):
        SearchDisplay(RUNS, "colour")


@pytest.mark.parametrize("number", [1, 3, 27])
def test_the_search_draws_whole(number: int) -> None:
    before = dict(matplotlib.rcParams)
    figure = draw_search((RUNS * 9)[:number])
    FigureCanvasAgg(figure).draw()
    assert dict(matplotlib.rcParams) == before
    assert figure.get_figwidth() <= style.WIDTH
    box, size = figure.get_tightbbox(), figure.get_size_inches()
    assert box.x0 > -0.02 and box.y0 > -0.02 and box.x1 < size[0] + 0.02 and box.y1 < size[1] + 0.02


def test_growth_has_a_line_for_each_checkpoint() -> None:
    readings = [(200, [block(0, 1.5), block(1, 2.0)]), (100, [block(0, 1.1), block(1, 1.2)])]
    display = GrowthDisplay(readings).plot()
    lines = [line for line in display.ax_.lines if line.get_marker() == "o"]
    assert [line.get_label() for line in lines] == ["100", "200"]
    assert [list(line.get_ydata()) for line in lines] == [[1.1, 1.2], [1.5, 2.0]]
    figure = draw_growth({"one training": readings, "another": [(5, [block(0, 7.0), block(1, 1.0)])]})
    FigureCanvasAgg(figure).draw()
    assert len({ax.get_ylim() for ax in figure.axes}) == 1
    assert figure.axes[0].get_ylim()[1] > 7
    assert {"one training", "another"} <= {text.get_text() for text in figure.findobj(Text)}
