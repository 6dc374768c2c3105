"""Maps of CLS and registers as they are drawn: one scale, the asked-for queries, the result's own numbers."""

import numpy as np
import pytest

from vitprobe.plots import register_maps as plots
from vitprobe.probes.register_maps import KINDS, RegisterMaps


def made(registers=4, *, images=3, has_cls=True, size=(48, 64), seed=0):
    rng = np.random.default_rng(seed)
    queries = ["CLS"] * has_cls + [f"register {k}" for k in range(registers)]
    number = len(queries)
    maps = rng.random((images, number, 3, 4)).astype(np.float32) / 20
    matrices = rng.random((2, len(KINDS), number, number))
    outliers = np.zeros((images, 3, 4), bool)
    outliers[0, 1, 2] = True
    summary = {"queries": queries, "num_registers": registers, "block": 5, "num_images": 40, "num_compared": 30}
    return RegisterMaps(
        summary=summary,
        maps=maps,
        mean_maps=maps.mean(0),
        prefix=np.full((number, number), 0.1 / max(number, 1)),
        cosine=matrices[0],
        intersection=matrices[1],
        outliers=outliers,
        images=np.random.default_rng(0).integers(0, 255, (images, *size, 3), dtype=np.uint8),
        names=np.array(["a.jpg", "b $x$.jpg", "folder/c.jpg"][:images]),
    )


def drawn_maps(figure):
    return [image for ax in figure.axes for image in ax.images if image.get_array().shape == (3, 4)]


@pytest.mark.parametrize(
    ("registers", "asked", "wanted"),
    [
        (4, (), [0, 1, 2, 3, 4]),
        (16, (), [0, 1, 7, 9, 13]),
        (8, (), [0, 1, 7]),
        (16, (15, 2), [0, 16, 3]),
        (0, (3,), [0]),
    ],
)
def test_of_many_registers_some_are_shown(registers, asked, wanted):
    assert plots.chosen(made(registers), asked) == wanted
    assert plots.chosen(made(registers, has_cls=False), asked) == [q - 1 for q in wanted if q]


def test_all_maps_have_one_scale_in_multiples_of_the_uniform_share():
    one, other = made(4), made(0, seed=1)
    figure = plots.draw_queries([("a", one), ("b", other)])
    found = drawn_maps(figure)
    assert len(found) == 3 * (5 + 1)
    np.testing.assert_allclose(found[4].get_array(), one.maps[1, 1] * (12 + 5), rtol=1e-6)
    np.testing.assert_allclose(found[-1].get_array(), other.maps[2, 0] * (12 + 1), rtol=1e-6)
    limit = plots.limit_of([one.maps * 17, other.maps * 13])
    assert {image.get_clim() for image in found} == {(0, limit)}
    labels = [ax.get_ylabel() for ax in figure.axes if ax.get_ylabel().startswith(("CLS", "register"))]
    assert labels[1] == "register 0\nprefix 10 %" and len(labels) == 6
    outlined = [
        ax for ax in figure.axes if any(len(c.get_segments()) for c in ax.collections if hasattr(c, "get_segments"))
    ]
    assert len(outlined) == 6


def test_means_are_those_of_the_result():
    one, other = made(16), made(4, has_cls=False)
    found = drawn_maps(figure := plots.draw_means([("a", one), ("b", other)], (0, 3)))
    assert len(found) == 3 + 2 and len({image.get_clim() for image in found}) == 1
    np.testing.assert_allclose(found[2].get_array(), one.mean_maps[4] * 29, rtol=1e-6)
    assert [ax.get_xlabel() for ax in figure.axes[:5]] == [
        "CLS",
        "register 0",
        "register 3",
        "register 0",
        "register 3",
    ]


@pytest.mark.parametrize("registers", [1, 4, 16])
def test_a_matrix_holds_the_cosines_of_its_kind(registers):
    found = made(registers)
    for k, kind in enumerate(KINDS):
        display = plots.OverlapDisplay(found, kind).plot()
        np.testing.assert_array_equal(display.image_.get_array(), found.cosine[k])
        assert display.image_.get_clim() == (0, 1)
        texts = [text.get_text() for text in display.texts_]
        assert texts == [f"{value:.2f}" for value in found.cosine[k].ravel()] * (registers < 16)


def test_models_of_one_query_are_named_beside_the_matrices():
    figure = plots.draw_overlaps([("lone $x$", made(0)), ("b", made(2))])
    assert sum(len(ax.images) for ax in figure.axes if not ax.get_label().startswith("<colorbar")) == 3
    assert "lone $x$: no registers" in figure.get_supxlabel()


@pytest.mark.parametrize(
    "results",
    [
        [("a", made(4)), ("b", made(4, seed=3))],
        [("a model of a rather long name, random", made(16, images=1))],
        [("a", made(0)), ("b", made(4, size=(20, 90))), ("c", made(1, has_cls=False))],
    ],
)
def test_figures_draw_whole(results, recwarn):
    for draw in (plots.draw_queries, plots.draw_means, plots.draw_overlaps):
        draw(results).draw_without_rendering()
    assert not recwarn.list


def test_what_was_not_compared_is_blank(recwarn):
    found = made(2, images=1)
    found.cosine[2] = np.nan
    display = plots.OverlapDisplay(found, "between").plot()
    assert {text.get_text() for text in display.texts_} == {"-"}
    plots.draw_overlaps([("a", found)]).draw_without_rendering()
    assert not recwarn.list
