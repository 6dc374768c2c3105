"""How far features move with the image: maps that do exactly, maps that do not at all, slow loops, true models."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d, conv2d

from vitprobe.probes.by_image import NO_OUTLIERS
from vitprobe.probes.feature_maps import FeatureMaps, Seen
from vitprobe.probes.shifts import default_shifts, window_at
from vitprobe.probes.translation import measure_translation
from vitprobe.probes.translation_sums import COMPARED

SIZE, STEP, MARGIN = (24, 32), (4, 4), 16
SHIFTS = default_shifts(STEP)
WHOLE = [i for i, shift in enumerate(SHIFTS) if max(shift) % 4 == 0]
FRACTIONAL = [i for i in range(len(SHIFTS)) if i not in WHOLE]
MOVED, NEAREST, UNMOVED, PLACE, IMAGE = range(5)


def batches(images, sizes=(3, 5)):
    """Canvases in batches, as a loader gives them."""
    starts = np.cumsum([0, *sizes])
    return [
        SimpleNamespace(names=("x",) * size, indices=tuple(range(start, start + size)), images=images[start:][:size])
        for start, size in zip(starts, sizes, strict=False)
    ]


def noise(number=8, seed=0):
    shape = (number, 3, SIZE[0] + 2 * MARGIN, SIZE[1] + 2 * MARGIN)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fake(maps, *, step=STEP, norms=None):
    """A model of a function from images to maps; it pools by averaging."""

    def see(images):
        features = maps(images)
        return Seen(features, None if norms is None else norms(images, features), features.mean(dim=(2, 3)))

    return FeatureMaps("fake", see, step, SIZE)


def conv(kernel=8, *, padding=0, width=6, seed=0):
    weight = torch.randn(width, 3, kernel, kernel, generator=torch.Generator().manual_seed(seed))
    return lambda images: conv2d(images, weight, stride=4, padding=padding) + 5  # far from 0: only differences count


@pytest.mark.parametrize("maps", [conv(4), conv(8), lambda images: avg_pool2d(images, 4)], ids=["4", "8", "pool"])
def test_what_is_computed_alike_everywhere_moves_with_the_image(maps):
    found = measure_translation(fake(maps), batches(noise()), shifts=SHIFTS)
    for row in (MOVED, NEAREST):
        assert (found.errors[0, row, WHOLE] < 1e-9).all()
        assert (found.errors[0, row, FRACTIONAL] > 0.2).all()  # white noise is not to be interpolated
    assert (found.errors[0, UNMOVED, WHOLE] > 0.8).all()
    assert found.cosines[0, 0, WHOLE] == pytest.approx(1, abs=1e-5)
    assert found.summary["whole"]["all"]["moved"]["value"] < 1e-9
    assert found.summary["outliers_go"] == NO_OUTLIERS and np.isnan(found.outliers).all()
    np.testing.assert_array_equal(found.errors[0], found.errors[1])


def test_means_over_own_shifts_do_not_depend_on_the_shifts_of_other_models():
    """A model of stride 8 beside one of patch 2: its mean over fractions would else be that of shifts by a pixel."""
    shared = default_shifts((8, 8), (2, 2), axes="x")
    shared = [shift for shift in shared if max(shift) <= MARGIN]
    own = [shift for shift in default_shifts((8, 8), axes="x") if max(shift) <= MARGIN]
    model = fake(lambda images: avg_pool2d(images, 8), step=(8, 8))
    alone = measure_translation(model, batches(noise()), shifts=own).summary
    beside = measure_translation(model, batches(noise()), shifts=shared, grouped=own).summary
    mixed = measure_translation(model, batches(noise()), shifts=shared).summary
    assert alone["grouped"] == {"whole": [[0, 8], [0, 16]], "fractional": [[0, 2], [0, 4], [0, 6]]}
    assert len(beside["shifts"]) == len(shared) > len(own) and beside["grouped"] == alone["grouped"]
    for group in ("whole", "fractional"):
        assert beside[group] == alone[group]
    assert mixed["fractional"]["all"]["unmoved"]["value"] < 0.9 * alone["fractional"]["all"]["unmoved"]["value"]


def test_intervals_are_as_wide_as_other_images_make_them():
    """Against the spread over 40 other sets of images, whose chance is each set's own."""
    shape, found = (20, 3, SIZE[0] + 2 * MARGIN, SIZE[1] + 2 * MARGIN), []
    for seed in range(40):
        draw = torch.Generator().manual_seed(seed)
        images = torch.nn.functional.interpolate(torch.randn(20, 3, 3, 3, generator=draw), shape[2:], mode="bilinear")
        images = 1.5 * images + torch.randn(shape, generator=draw)
        model = fake(lambda images: avg_pool2d(images, 4))
        found.append(measure_translation(model, batches(images, (20,)), shifts=[(0, 2)], seed=seed))
    errors, widths = np.stack([one.errors[0, :, 0] for one in found]), [one.error_intervals[0, :, 0] for one in found]
    pooled, pooled_widths = ([getattr(one, name)[0, 0] for one in found] for name in ("pooled", "pooled_intervals"))
    spreads = np.append(errors.std(axis=0), np.std(pooled))
    means = np.append(np.diff(widths)[..., 0].mean(axis=0), np.diff(pooled_widths).mean()) / (2 * 1.96)
    found = means / spreads
    assert np.delete(found, PLACE) == pytest.approx(1, abs=0.3)
    assert 0.8 < found[PLACE] < 2  # all of it is of pairs; it errs to the wide side


def test_zero_padding_is_seen_at_the_border_alone():
    found = measure_translation(fake(conv(8, padding=4)), batches(noise()), shifts=SHIFTS)
    border = found.border[0][WHOLE]  # (6, K)
    assert found.border.shape == (2, len(SHIFTS), 4)  # 7 x 9 places
    assert (border[:, 0] > 0.1).all() and (border[np.isfinite(border[:, 1]), 1] < 1e-9).all()
    inner = measure_translation(fake(conv(8, padding=4)), batches(noise()), shifts=SHIFTS, border=1)
    assert inner.errors[0, MOVED, WHOLE][:2] == pytest.approx(0, abs=1e-9)
    assert np.nanmax(inner.errors[0, MOVED, WHOLE]) < 1e-9 < found.errors[0, MOVED, WHOLE].min()


def test_ramps_are_interpolated_exactly():
    draw = torch.Generator().manual_seed(0)
    slopes, starts = torch.randn(2, 8, 3, 1, 1, generator=draw), torch.randn(8, 3, 1, 1, generator=draw)
    rows, cols = torch.meshgrid(torch.arange(56.0), torch.arange(64.0), indexing="ij")
    images = slopes[0] * rows + slopes[1] * cols + starts
    shifts = (*SHIFTS, (-3, 5), (7, -16))
    found = measure_translation(fake(lambda x: avg_pool2d(x, 4)), batches(images), shifts=shifts)
    assert (found.errors[0, MOVED] < 1e-9).all() and found.errors[0, NEAREST, 0] > 1e-6 > found.errors[0, MOVED, 0]


def test_unrelated_maps_are_as_chance():
    inside = []
    for seed in range(3):
        draw = torch.Generator().manual_seed(seed)
        maps = fake(lambda images, draw=draw: torch.randn(len(images), 6, 6, 8, generator=draw))
        found = measure_translation(maps, batches(noise(16), (10, 6)), shifts=SHIFTS, seed=seed)
        assert found.errors[0] == pytest.approx(np.ones_like(found.errors[0]), abs=0.12)
        low, high = found.error_intervals[0, :3].reshape(-1, 2).T
        inside.append(((low <= 1) & (high >= 1)).mean())
        assert found.pooled[0].mean() == pytest.approx(1, abs=0.25)
    assert np.mean(inside) > 0.8


def test_maps_of_the_place_alone_stay():
    draw = torch.Generator().manual_seed(0)
    places = 10 + torch.randn(1, 6, 6, 8, generator=draw)
    noisy = [fake(lambda x, u=u: places + u * torch.randn(len(x), 6, 6, 8, generator=draw)) for u in (0.0, 1.0)]
    bound, half = (measure_translation(maps, batches(noise()), shifts=SHIFTS) for maps in noisy)
    assert (bound.errors[0, UNMOVED] < 1e-9).all() and (np.abs(bound.errors[0, PLACE]) < 1e-5).all()
    assert bound.errors[0, MOVED, WHOLE] == pytest.approx(1, abs=0.3)
    assert half.errors[0, PLACE] == pytest.approx(0.5, abs=0.1)  # half of the variance is of the place
    assert half.errors[0, UNMOVED] == pytest.approx(half.errors[0, PLACE], abs=0.1)


def test_maps_of_the_image_alone_tell_no_places():
    maps = fake(lambda images: images.mean((2, 3), keepdim=True).expand(-1, 3, 6, 8))
    images = noise() + 5 * torch.arange(8.0).view(-1, 1, 1, 1)
    found = measure_translation(maps, batches(images), shifts=SHIFTS)
    for row in (MOVED, NEAREST, UNMOVED, IMAGE):
        assert (found.errors[0, row] < 1e-3).all()
    assert found.errors[0, PLACE] == pytest.approx(1, abs=1e-4)


def by_loop(bases, shifted, out_base, out_shifted, shift):
    """The errors by `COMPARED` of maps (B, rows, cols, D), a place at a time; what is out is left out."""
    count, rows, cols = bases.shape[:3]
    places = []
    for p, q in np.ndindex(rows, cols):
        y, x = p + shift[0] / 4, q + shift[1] / 4
        if y >= 0 and np.ceil(y) < rows and x >= 0 and np.ceil(x) < cols:
            places.append(((p, q), (y, x)))

    def target(name, i, place):
        (p, q), (y, x) = place
        if name == "unmoved":
            corners = [(p, q, 1.0)]
        elif name == "nearest":
            corners = [(int(np.floor(y + 0.5)), int(np.floor(x + 0.5)), 1.0)]
        else:
            ends = [(a, b) for a in {np.floor(y), np.ceil(y)} for b in {np.floor(x), np.ceil(x)}]
            corners = [(int(a), int(b), (1 - abs(a - y)) * (1 - abs(b - x))) for a, b in ends]
        if any(out_base[i, a, b] for a, b, _ in corners):
            return None
        return sum(w * bases[i, a, b] for a, b, w in corners)

    found = {}
    for name in COMPARED:
        of = {"place": "unmoved", "image": "nearest"}.get(name, name)
        targets = [[target(of, i, place) for place in places] for i in range(count)]
        top = bottom = 0.0
        for i in range(count):
            everyone = np.array([z for j in range(count) if j != i for z in targets[j] if z is not None])
            for k, ((p, q), _) in enumerate(places):
                seen = shifted[i, p, q]
                if out_shifted[i, p, q]:
                    continue
                if name == "place":
                    others = [targets[j][k] for j in range(count) if j != i]
                elif name == "image":
                    others = [targets[i][m] for m in range(len(places)) if m != k]
                else:
                    others = [targets[i][k]]
                others = [z for z in others if z is not None]
                if others:
                    top += np.mean([np.square(seen - z).sum() for z in others])
                    bottom += np.square(seen - everyone).sum(axis=1).mean()
        found[name] = top / bottom
    return found


@pytest.mark.parametrize("shift", [(0, 4), (4, -8), (0, 1), (-2, 3), (6, 0)])
def test_numbers_are_those_of_a_slow_loop(shift):
    images, maps = noise(5), conv(4)
    model = fake(maps, norms=lambda _, features: features.norm(dim=1))
    bases, shifted = (maps(window_at(images, s, SIZE)).permute(0, 2, 3, 1).double().numpy() for s in ((0, 0), shift))
    cutoff = float(np.quantile(np.linalg.norm(bases, axis=-1), 0.85))
    found = measure_translation(model, batches(images, (3, 2)), shifts=[(0, 8), shift], cutoff=cutoff)
    outs = [np.linalg.norm(x, axis=-1) >= cutoff for x in (bases, shifted)]
    none = [np.zeros_like(out) for out in outs]
    for kind, (out_base, out_shifted) in enumerate((none, outs)):
        expected = by_loop(bases, shifted, out_base, out_shifted, shift)
        assert found.errors[kind, :, 1] == pytest.approx([expected[name] for name in COMPARED], rel=1e-4)
    assert found.summary["num_outliers"] == outs[0].sum() and found.summary["num_patches"] == outs[0].size


def test_cosines_and_pooled_vectors_are_those_of_a_loop():
    images, maps = noise(5), conv(4)
    found = measure_translation(fake(maps), batches(images, (4, 1)), shifts=[(0, 8)])
    base, shifted = (maps(window_at(images, s, SIZE)).double().numpy() for s in ((0, 0), (0, 8)))
    mean = base.mean(axis=(0, 2, 3))

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    pairs = [(i, p, q) for i in range(5) for p in range(6) for q in range(6)]
    moved = [cosine(shifted[i, :, p, q] - mean, base[i, :, p, q + 2] - mean) for i, p, q in pairs]
    stayed = [cosine(shifted[i, :, p, q] - mean, base[i, :, p, q] - mean) for i, p, q in pairs]
    assert found.cosines[0, :, 0] == pytest.approx([np.mean(moved), np.mean(moved), np.mean(stayed)], abs=1e-4)
    a, b = shifted.mean(axis=(2, 3)), base.mean(axis=(2, 3))
    others = [(i, j) for i in range(5) for j in range(5) if i != j]
    chance = np.mean([np.square(a[i] - b[j]).sum() for i, j in others])
    assert found.pooled[0, 0] == pytest.approx(np.square(a - b).sum(axis=1).mean() / chance, rel=1e-4)
    assert found.pooled[1, 0] == pytest.approx(np.mean([cosine(a[i], b[i]) for i in range(5)]), abs=1e-5)
    assert found.pooled[2, 0] == pytest.approx(np.mean([cosine(a[i], b[j]) for i, j in others]), abs=1e-5)


def test_the_split_into_batches_changes_nothing():
    one, other = (
        measure_translation(fake(conv(8, padding=4)), batches(noise(), sizes), shifts=SHIFTS)
        for sizes in ((3, 5), (1, 6, 1))
    )
    for name, values in one.arrays().items():
        np.testing.assert_allclose(other.arrays()[name], values, rtol=2e-4, atol=1e-6)
