"""LOST against loops with a flood fill of their own, scenes made by hand, and boxes counted pixel by pixel."""

import numpy as np
import pytest
import torch

from vitprobe.errors import ArgumentError
from vitprobe.probes.boxes import (
    DiscoverySettings,
    best_iou,
    box_iou,
    checked_boxes,
    discover,
    discover_many,
    to_pixels,
)

LOST = DiscoverySettings("keys", 11)
GRID = (6, 9)


def by_hand(features, grid, settings):
    """The description in plain loops, in float64: seed, degrees, mask and box."""
    rows, cols = grid
    x = [[float(v) for v in f] for f in features]
    width, number = len(x[0]), len(x)
    if settings.centring == "image mean":
        mean = [sum(f[d] for f in x) / number for d in range(width)]
        x = [[f[d] - mean[d] for d in range(width)] for f in x]
    if settings.normalise:
        x = [[v / (sum(u * u for u in f) ** 0.5 or 1.0) for v in f] for f in x]
    a = [[sum(u * v for u, v in zip(p, q, strict=True)) + settings.bias for q in x] for p in x]
    degrees = [sum(1 for j in range(number) if j != i and a[i][j] > 0) for i in range(number)]
    order = sorted(range(number), key=lambda i: (degrees[i], i))
    seed = order[0]
    similar = [p for p in order[: settings.k] if a[seed][p] > 0]
    weigh = (lambda v: v) if settings.weights == "real" else (lambda v: 1.0 if v > 0 else 0.0)
    mask = [sum(weigh(a[s][p]) for s in similar) > 0 for p in range(number)]
    reached, waiting = set(), [seed] if mask[seed] else []
    while waiting:
        p = waiting.pop()
        if p in reached:
            continue
        reached.add(p)
        r, c = divmod(p, cols)
        near = [(r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)]
        waiting += [i * cols + j for i, j in near if 0 <= i < rows and 0 <= j < cols and mask[i * cols + j]]
    box = None
    if reached:
        places = [divmod(p, cols) for p in reached]
        ys, xs = zip(*places, strict=True)
        box = (min(xs), min(ys), max(xs) + 1, max(ys) + 1)
    return divmod(seed, cols), degrees, mask, box, len(similar)


CASES = [
    LOST,
    DiscoverySettings("keys", 0, k=5),
    DiscoverySettings("keys", 0, k=5, weights="binary"),
    DiscoverySettings("keys", 0, bias=-2.0, k=12),
    DiscoverySettings("keys", 0, bias=-0.35, centring="image mean", normalise=True, k=20),
    DiscoverySettings("keys", 0, bias=0.05, centring="image mean", normalise=True, weights="binary"),
    DiscoverySettings("keys", 0, bias=-0.9, normalise=True, k=1),
    DiscoverySettings("keys", 0, bias=-30.0, k=12),
]


@pytest.mark.parametrize("kind", ["noise", "ties", "shared direction"])
def test_it_agrees_with_plain_loops(kind):
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(8, 54, 7, generator=generator)
    if kind == "ties":  # small whole numbers: products are exact, many are zero, many degrees are equal
        features = torch.randint(-1, 2, (8, 54, 6), generator=generator).float()
    if kind == "shared direction":
        features = features + 1.0
    cases = [c for c in CASES if kind != "ties" or not (c.normalise or c.centring != "none")]
    found = discover_many(features, GRID, cases)
    boxes = set()
    for settings, image in [(s, i) for s in cases for i in range(len(features))]:
        got = found[settings][image]
        seed, degrees, mask, box, similar = by_hand(features[image].tolist(), GRID, settings)
        assert (got.seed, got.box, got.num_similar) == (seed, box, similar)
        assert got.degrees.ravel().tolist() == degrees and got.mask.ravel().tolist() == mask
        boxes.add(box)
    assert len(boxes) > 10 and None in boxes  # of all sizes, and seeds in the background among them
    if kind == "ties":
        least = [np.sum(d.degrees == d.degrees.min()) for d in found[LOST]]
        assert max(least) > 1  # the first of several was taken


def test_the_mask_of_numbers_and_of_ones_differ():
    features = torch.randn(20, 54, 7, generator=torch.Generator().manual_seed(5))
    real, binary = CASES[1], CASES[2]
    found = discover_many(features, GRID, (real, binary))
    pairs = list(zip(found[real], found[binary], strict=True))
    assert all((a.seed, a.num_similar) == (b.seed, b.num_similar) for a, b in pairs)
    assert all((b.mask | ~a.mask).all() for a, b in pairs)  # a positive sum has a positive part
    assert sum(a.box != b.box for a, b in pairs) > 5


def square(rows=slice(2, 5), cols=slice(3, 7), *, noise=0.0):
    """A square of one direction on a ground of another, at an angle over 90 degrees."""
    x = torch.empty(*GRID, 4)
    x[...] = torch.tensor([1.0, -0.3, 0.0, 0.0])
    x[rows, cols] = torch.tensor([-0.3, 1.0, 0.0, 0.0])
    return (x + noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).flatten(0, 1)


@pytest.mark.parametrize("settings", [LOST, CASES[1], CASES[2]])
def test_a_square_is_found_exactly(settings):
    found = discover(square(), GRID, settings)
    assert found.box == (3, 2, 7, 5) and found.seed == (2, 3) and not found.is_arbitrary
    assert found.mask.sum() == 12 and found.degrees[2, 3] == 11 and found.degrees[0, 0] == 41
    assert discover(square(noise=0.05), GRID, settings).box == (3, 2, 7, 5)


def test_only_the_seeds_own_part_is_boxed_and_corners_do_not_connect():
    x = square(slice(0, 2), slice(0, 2)).reshape(*GRID, 4)
    x[2, 2] = x[5, 8] = x[0, 0]  # touches by a corner; far away
    found = discover(x.flatten(0, 1), GRID, LOST)
    assert found.mask.sum() == 6 and found.box == (0, 0, 2, 2)


def test_a_shared_direction_makes_the_seed_arbitrary_until_it_is_centred_or_biased():
    """All products are positive: every degree is 53, and the first patch, in the ground, stands for nothing."""
    features = square() + torch.tensor([0.0, 0.0, 0.0, 3.0])
    found = discover(features, GRID, LOST)
    assert found.is_arbitrary and found.seed == (0, 0) and found.box == (0, 0, 9, 6)
    assert (found.degrees == 53).all()
    centred = DiscoverySettings("keys", 11, centring="image mean")
    for settings in (centred, DiscoverySettings("keys", 11, bias=-9.0)):
        found = discover(features, GRID, settings)
        assert found.box == (3, 2, 7, 5) and not found.is_arbitrary


def test_a_seed_in_the_background_gives_no_box():
    found = discover(square(), GRID, DiscoverySettings("keys", 11, bias=-10.0))
    assert found.box is None and found.num_similar == 0 and not found.mask.any()
    # The seed's own mask value: small features, so that a negative bias outweighs the seed's square.
    x = torch.zeros(4, 2)
    x[:, 0] = torch.tensor([0.1, 5.0, 5.0, 5.0])
    found = discover(x, (1, 4), DiscoverySettings("keys", 0, bias=-1.0))
    assert found.seed == (0, 0) and found.box is None


def test_many_images_in_pieces_are_the_same(monkeypatch):
    features = torch.randn(7, 54, 6, generator=torch.Generator().manual_seed(1))
    whole = discover_many(features, GRID, CASES)
    monkeypatch.setattr("vitprobe.probes.boxes._CHUNK", 2 * 54**2)
    parts = discover_many(features, GRID, CASES)
    for settings in CASES:
        assert [d.box for d in whole[settings]] == [d.box for d in parts[settings]]
        assert [d.box for d in whole[settings]] == [discover(f, GRID, settings).box for f in features]


def test_products_are_taken_in_float32_under_autocast():
    features = torch.randn(4, 54, 6, generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = discover_many(features, GRID, CASES)
    expected = discover_many(features, GRID, CASES)
    assert all((a.degrees == b.degrees).all() for s in CASES for a, b in zip(found[s], expected[s], strict=True))


def test_patches_become_pixels_and_are_clipped():
    assert to_pixels((1, 2, 3, 5), (8, 4), (100, 100)) == (4, 16, 12, 40)
    assert to_pixels((0, 0, 4, 3), (16, 16), (40, 60)) == (0, 0, 60, 40)


def test_iou_is_a_count_of_pixels():
    rng = np.random.default_rng(0)
    corners = np.sort(rng.integers(0, 13, (300, 2, 2)), axis=1)  # (N, ends, xy), empty ones among them
    boxes = corners.reshape(300, 4)

    def pixels(box):
        seen = np.zeros((13, 13), bool)
        seen[box[1] : box[3], box[0] : box[2]] = True
        return seen

    for a, b in zip(boxes[:150], boxes[150:], strict=True):
        either = (pixels(a) | pixels(b)).sum()
        expected = (pixels(a) & pixels(b)).sum() / either if either else 0.0
        assert box_iou(a, b) == pytest.approx(expected)
    assert box_iou(boxes[:150], boxes[150:]).shape == (150,)
    assert box_iou((0, 0, 2, 2), (2, 0, 4, 2)) == 0  # ends are exclusive
    assert best_iou((0, 0, 2, 2), np.array([[5, 5, 6, 6], [0, 0, 2, 1]])) == 0.5
    assert best_iou(None, np.array([[0, 0, 2, 1]])) == best_iou((0, 0, 1, 1), np.zeros((0, 4))) == 0


def test_true_boxes_are_checked():
    assert checked_boxes([(0, 0, 10, 5), [1.5, 2, 10.4, 5]], (5, 10), "a").shape == (2, 4)
    assert checked_boxes((), (5, 10), "a").shape == (0, 4)
    for wrong in [(0, 0, 50, 5), (3, 0, 3, 5), (-9, 0, 3, 5), (0, float("nan"), 3, 5), (1, 2, 3)]:
        with pytest.raises(ArgumentError, match=r"^a: got") as error:
            checked_boxes([(0, 0, 1, 1), wrong], (5, 10), "a")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "values",
    [
        {"features": "key"},
        {"block": -1},
        {"block": 1.0},
        {"k": 0},
        {"bias": float("nan")},
        {"centring": "mean"},
        {"weights": "ones"},
    ],
)
def test_settings_that_are_not_allowed(values):
    with pytest.raises(ArgumentError, match="got") as error:
        DiscoverySettings(**{"features": "keys", "block": 0} | values)
    assert "\n" not in str(error.value)


def test_features_that_do_not_fit():
    for features, grid in [(torch.ones(5, 3), GRID), (torch.ones(5), (1, 5)), (torch.ones(0, 3), (0, 3))]:
        with pytest.raises(ArgumentError, match="got features"):
            discover(features, grid, LOST)
    with pytest.raises(ArgumentError, match="not finite"):
        discover(torch.full((54, 3), float("inf")), GRID, LOST)


def test_labels_say_what_differs():
    assert LOST.label == "keys of block 11, bias 0"
    assert CASES[5].label == "keys of block 0, bias 0.05, centred, normalised, binary weights"
    assert len({c.label for c in CASES}) == len(CASES)
