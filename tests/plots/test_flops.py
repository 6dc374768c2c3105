"""The lines of the costs of registers hold the result's numbers, and are told apart without colour."""

import numpy as np
import pytest

from vitprobe.plots.flops import CostsDisplay, draw_costs, looks_of
from vitprobe.probes.flops import RegisterCosts


def made(name="a", side=224, *, base=1000, numbers=(0, 1, 2, 4, 8, 16)):
    numbers = np.array(numbers)
    return RegisterCosts(name, (side, side), numbers, base + 7 * numbers, 10 * base + numbers // 2)


def test_lines_are_the_increases():
    results = [("a, 224 px", made()), ("a, 518 px", made(side=518, base=9000)), ("b, 224 px", made("b", base=500))]
    flops = CostsDisplay(results, "flops").plot()
    assert len(flops.lines_) == 3
    for line, (_, costs) in zip(flops.lines_, results, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), costs.numbers)
        np.testing.assert_allclose(line.get_ydata(), costs.flops / costs.flops[0] - 1)
    parameters = CostsDisplay(results, "parameters").plot()
    assert [line.get_ydata()[-1] for line in parameters.lines_] == pytest.approx([8 / 90_000, 8 / 5_000])


def test_the_look_of_a_model_is_the_same_in_both_panels_and_its_own():
    results = [("a", made()), ("b", made("b")), ("b, larger", made("b", 518))]
    flops, parameters = (CostsDisplay(results, what).plot().lines_ for what in ("flops", "parameters"))
    assert parameters[1].get_marker() == flops[2].get_marker()
    looks = {(str(look["linestyle"]), look["marker"]) for look in looks_of(8)}
    assert len(looks) == 8


@pytest.mark.parametrize("numbers", [(0,), (0, 4), (0, 1, 2, 3, 100)])
def test_figures_draw_whole(numbers, recwarn):
    figure = draw_costs([("a $x$", made(numbers=numbers)), ("b", made("b", numbers=numbers))])
    figure.draw_without_rendering()
    assert len(figure.axes) == 2 and len(figure.legends[0].get_texts()) == 2 and not recwarn.list
    ticks = figure.axes[0].get_xticks()
    assert set(ticks) <= set(numbers) and {numbers[0], numbers[-1]} <= set(ticks)
