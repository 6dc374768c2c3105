"""Claims drawn by the side on which they hold, and those that were not tested."""

import pytest

from vitprobe.plots.claims import LOOKS, ClaimDisplay, draw_claims


def claim(name, value, interval, answer, *, part="", sign=1, unit="cosine"):
    return {"name": name, "part": part, "value": value, "interval": interval, "answer": answer, "sign": sign,
            "unit": unit}  # fmt: skip


HOLDS = claim("neighbours", 0.2, [0.1, 0.3], "holds")
NOT = claim("neighbours", -0.4, [-0.5, -0.3], "does not hold")
LESS = claim("position", -0.1, [-0.2, 0.05], "not clear", sign=-1, unit="share")
NONE = claim("position", None, None, "not tested: too few", sign=-1, unit="share")


def test_the_side_on_which_a_claim_holds_is_marked_and_the_axis_is_even():
    results = [("one", {"tested": [HOLDS, LESS]}), ("two", {"tested": [NOT, NONE]})]
    for name, side in (("neighbours", 1), ("position", -1)):
        display = ClaimDisplay(name, "", results).plot()
        low, high = display.ax_.get_xlim()
        assert low == -high
        span = display.ax_.patches[0].get_extents().transformed(display.ax_.transData.inverted())
        assert [span.x0, span.x1] == pytest.approx([0, high] if side > 0 else [low, 0], abs=1e-9)
    display = ClaimDisplay("neighbours", "", results).plot()
    marks = [(float(m.get_xdata()[0]), m.get_marker(), m.get_markerfacecolor()) for m in display.marks_]
    assert marks == [(0.2, "o", LOOKS["holds"]["color"]), (-0.4, "X", LOOKS["does not hold"]["color"])]
    display = ClaimDisplay("position", "", results).plot()
    assert len(display.marks_) == 1 and [text.get_text() for text in display.ax_.texts if text.get_text()] == [
        "not tested"
    ]
    assert display.ax_.get_xlabel() == "difference, percentage points"
    assert display.ax_.xaxis.get_major_formatter()(-0.05, 0) == "−5"


def test_a_claim_that_one_model_lacks_is_drawn_for_the_other():
    extra = claim("classes", 0.1, None, "not clear", part="count", unit="share")
    figure = draw_claims([("a", {"cut": "p98", "tested": [HOLDS, extra]}), ("b", {"cut": "p98", "tested": [HOLDS]})])
    figure.draw_without_rendering()
    assert len(figure.axes) == 2 and "not tested" in [text.get_text() for text in figure.axes[1].texts]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "holds", "not clear", "side on which the claim holds"]  # fmt: skip
