"""Attention maps as they are drawn: the artists hold the result's numbers."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from vitprobe.plots import attention
from vitprobe.probes.attention import AttentionMaps


def made(blocks=1, heads=1, *, rollout=False, prefix=1, size=(48, 64)) -> AttentionMaps:
    rng = np.random.default_rng(0)
    maps = rng.random((3, blocks, heads, 3, 4)).astype(np.float32)
    maps /= maps.sum((-2, -1), keepdims=True) * 1.25
    mass = np.full((3, blocks, heads, prefix), 0.2 / max(prefix, 1), np.float32)
    outliers = np.zeros((3, 3, 4), bool)
    outliers[0, 1, 2] = True
    summary = {
        "query": "CLS",
        "blocks": list(range(blocks)),
        "head": "mean" if heads == 1 else "all",
        "prefix_share": [[0.2] * heads] * blocks,
        "outlier_share": [[0.1] * heads] * blocks,
    }
    return AttentionMaps(
        summary=summary,
        maps=maps,
        prefix_mass=mass,
        outliers=outliers,
        norms=np.ones((3, 3, 4), np.float32),
        rollout=maps[:, 0, 0] if rollout else np.zeros((0, 3, 4), np.float32),
        images=rng.integers(0, 255, (3, *size, 3), dtype=np.uint8),
        names=np.array(["a.jpg", "b $x$.jpg", "folder/c.jpg"]),
    )


def images_of(figure: Figure) -> list:
    return [image for ax in figure.axes for image in ax.images if image.get_array().ndim == 2]


def test_a_display_draws_into_given_axes_and_holds_the_map():
    found = made()
    ax = Figure().add_subplot()
    shown = attention.AttentionMapDisplay(found, 0).plot(ax)
    assert shown.ax_ is ax
    np.testing.assert_allclose(shown.image_.get_array(), found.maps[0, 0, 0] * 13)
    assert shown.image_.get_interpolation() == "nearest" and shown.image_.get_extent() == [0, 64, 48, 0]
    assert len(shown.outlines_.get_segments()) == 4
    assert shown.prefix == pytest.approx(0.2)


def test_models_share_one_scale_in_multiples_of_the_uniform_share():
    one, other = made(), made(prefix=5)
    figure = attention.draw_maps([("a", one), ("b", other)])
    drawn = images_of(figure)[:6]
    assert {image.get_clim() for image in drawn} == {(0, attention.color_limit([one, other]))}
    np.testing.assert_allclose(drawn[3].get_array(), other.maps[0, 0, 0] * 17)


@pytest.mark.parametrize(
    ("found", "rows"),
    [
        (made(), 1),
        (made(4), 4),
        (made(2, 3), 3),
        (made(rollout=True), 2),
        (made(prefix=0), 1),
        (made(size=(20, 90)), 1),
    ],
)
@pytest.mark.parametrize("upsample", ["nearest", "bilinear"])
def test_figures_draw_whole(found, rows, upsample, recwarn):
    figure = attention.draw_maps([("a model, random", found)], upsample=upsample)
    figure.draw_without_rendering()
    pictures = [i for ax in figure.axes for i in ax.images if i.get_array().shape[:2] == found.maps.shape[-2:]]
    assert len(pictures) == 3 * rows
    assert {image.get_interpolation() for image in pictures} == {upsample}
    assert not recwarn.list


def test_shares_add_up_to_one():
    figure = attention.draw_share([("a", made(3)), ("b", made(3))])
    tops = [max(bar.get_y() + bar.get_height() for bar in ax.patches) for ax in figure.axes]
    assert tops == pytest.approx([1, 1])


def test_an_overlay_has_the_size_of_its_image(tmp_path):
    from PIL import Image

    from vitprobe.plots import write

    (path,) = write(attention.draw_overlay(made(), 1), tmp_path / "x", ("png",), dpi=attention.OVERLAY_DPI)
    with Image.open(path) as picture:
        assert picture.size == (64, 48)
