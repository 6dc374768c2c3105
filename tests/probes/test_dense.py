"""Dense probes: drawn pixels are fair, planted classes and depths are read, noise gives no more than a constant."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from vitprobe.backbones.base import Transform
from vitprobe.errors import ArgumentError, InputError
from vitprobe.probes.dense import (
    CONSTANT,
    FEATURES,
    NOISE,
    POSITION,
    PatchMap,
    depth_reader,
    fit_depth,
    fit_masks,
    mask_reader,
    upsample,
)
from vitprobe.probes.dense_sample import PixelSampler, by_patch, draw_pixels
from vitprobe.probes.linear_fit import LinearMap
from vitprobe.recorder import Recorder, Site
from vitprobe.tokens import TokenLayout

ROWS, COLS, WIDTH, CLASSES = 4, 5, 6, 3


class Tokens:
    """A backbone in name: what its last block gives is planted."""

    def __init__(self, patch: int = 4) -> None:
        self.patch_size, self.width, self.num_blocks, self.final_norm = (patch, patch), WIDTH, 1, None
        self.spec = SimpleNamespace(name="planted", image_size=(ROWS * patch, COLS * patch))
        self.module = torch.nn.Linear(1, 1)
        self.transform = Transform(None, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))

    def layout(self) -> TokenLayout:
        return TokenLayout.prefix_first(has_cls=True, num_registers=2, grid=(ROWS, COLS))

    def check_block(self, index: int) -> int:
        return index


def scenes(number, *, seed, patch=4, by_place=False):
    """Class of each patch, laid over its pixels; the class follows the column where ``by_place``, else nothing."""
    rng = np.random.default_rng(seed)
    shares = (0.2, 0.5, 0.3)
    classes = rng.choice(CLASSES, (number, ROWS, COLS), p=shares)
    if by_place:
        fixed = np.broadcast_to(np.arange(COLS) % CLASSES, classes.shape)
        classes = np.where(rng.random(classes.shape) < 0.9, fixed, classes)
    return classes, classes.repeat(patch, 1).repeat(patch, 2).astype(np.int64)


def feed(reader, backbone, patches, *, size=3):
    """Give a reader (N, P, D) features as if a backbone had made them."""
    prefix = torch.full((len(patches), 3, patches.shape[-1]), 1e6)
    tokens = torch.cat([prefix, torch.from_numpy(patches)], 1)
    images = torch.rand(len(patches), 3, *backbone.spec.image_size)
    for start in range(0, len(tokens), size):
        part = tuple(range(start, min(start + size, len(tokens))))
        batch = SimpleNamespace(names=tuple(map(str, part)), indices=part, images=images[list(part)])
        reader.update(batch, {reader.site: tokens[list(part)]}, torch.zeros(len(part)))


def one_hot(classes, *, noise=0.0, seed=0):
    """Features that say the class of their patch, (N, P, D)."""
    said = np.eye(WIDTH)[classes.reshape(len(classes), -1)]
    return (said + noise * np.random.default_rng(seed).normal(size=said.shape)).astype(np.float32)


def sampled(backbone, features, truth, folder, **options):
    sampler = PixelSampler(backbone, truth, folder, block=0, **options)
    feed(sampler, backbone, features)
    return sampler.finish()


def test_every_known_pixel_is_drawn_as_often():
    rng = np.random.default_rng(0)
    known = np.zeros((6, 8), bool)
    for patch, number in enumerate((8, 1, 0, 3, 8, 5)):
        known[patch, rng.choice(8, number, replace=False)] = True
    counts = np.zeros(known.shape)
    for draw in range(4000):
        patches, pixels = draw_pixels(known, 10, np.random.default_rng(draw))
        assert len(patches) == 10 and known[patches, pixels].all()
        shares = np.bincount(patches, minlength=6)
        assert (np.abs(shares - 10 * known.sum(1) / known.sum()) < 1).all()
        np.add.at(counts, (patches, pixels), 1)
    expected = 4000 * 10 / known.sum()
    assert (counts[~known] == 0).all() and counts[known] == pytest.approx(expected, abs=6 * expected**0.5)
    patches, _ = draw_pixels(known, 100, rng)
    assert np.bincount(patches, minlength=6).tolist() == known.sum(1).tolist()
    assert len(draw_pixels(np.zeros((2, 2), bool), 3, rng)[0]) == 0


def test_pixels_are_cut_into_patches_row_by_row():
    values = np.arange(6 * 8).reshape(6, 8)
    cells = by_patch(values, (3, 2), (2, 4))
    for p in range(8):
        row, col = divmod(p, 4)
        assert cells[p].tolist() == [values[3 * row + i, 2 * col + j] for i in range(3) for j in range(2)]
    with pytest.raises(ArgumentError, match=r"got pixels \(6, 8\); 3 x 4 patches"):
        by_patch(values, (3, 2), (3, 4))


def test_a_sample_holds_the_patch_of_each_pixel(tmp_path):
    backbone = Tokens()
    classes, masks = scenes(9, seed=0)
    masks[2] = -1
    masks[:, :, :6] = -1
    features = np.random.default_rng(1).normal(size=(9, ROWS * COLS, WIDTH)).astype(np.float32)
    sample = sampled(backbone, features, masks.__getitem__, tmp_path, number=11)
    assert len(sample.targets) == 8 * 11 and sample.num_without == 1 and 2 not in sample.images
    assert np.array_equal(sample.features, features[sample.images, sample.patches])
    assert sample.targets.tolist() == classes.reshape(9, -1)[sample.images, sample.patches].tolist()
    assert (sample.patches % COLS >= 1).all()
    assert abs(sample.noise.mean()) < 0.1 and abs(sample.noise.std() - 1) < 0.1
    again = sampled(backbone, features, masks.__getitem__, tmp_path / "again", number=11)
    other = sampled(backbone, features, masks.__getitem__, tmp_path / "other", number=11, seed=1)
    assert again.patches.tolist() == sample.patches.tolist() != other.patches.tolist()
    assert not np.array_equal(other.noise, sample.noise)
    with pytest.raises(InputError, match="no training image has a labelled pixel"):
        sampled(backbone, features, np.full_like(masks, -1).__getitem__, tmp_path / "void")
    with pytest.raises(ArgumentError, match="0 pixels"):
        PixelSampler(backbone, masks.__getitem__, tmp_path / "none", block=0, number=0)


def masks_read(tmp_path, train, test, *, patch=4, by_place=False, seed=0, **options):
    """Train and test on features (N, P, D) of made scenes; scores by map, and the reader."""
    backbone = Tokens(patch)
    truths = [scenes(len(x), seed=seed + i, patch=patch, by_place=by_place)[1] for i, x in enumerate((train, test))]
    fit = fit_masks(sampled(backbone, train, truths[0].__getitem__, tmp_path, number=20), **options)
    reader = mask_reader(backbone, truths[1].__getitem__, fit, num_classes=CLASSES + 1, block=0)
    feed(reader, backbone, test)
    scores = {name: counts.score() for name, counts in reader.gathered.items()}
    return scores | {CONSTANT: reader.gathered[FEATURES].constant(int(fit.constant)).score()}, reader, fit


def test_planted_classes_are_read_at_every_pixel_of_patches_of_one_pixel(tmp_path):
    features = [one_hot(scenes(n, seed=i, patch=1)[0]) for i, n in enumerate((30, 12))]
    scores, reader, fit = masks_read(tmp_path, *features, patch=1)
    assert scores[FEATURES].mean_iou == scores[FEATURES].accuracy == 1.0
    assert fit.constant == 1 and fit.classes.tolist() == [0, 1, 2]
    assert np.isnan(scores[FEATURES].iou[3]) and scores[CONSTANT].accuracy < 0.6
    shown = reader.examples()
    assert len(shown.names) == 4 and shown.images.dtype == np.uint8 and shown.images.shape == (4, ROWS, COLS, 3)
    assert np.array_equal(shown.truth, shown.predicted) and shown.truth.dtype == np.int16


def test_random_features_give_no_more_than_the_most_frequent_class(tmp_path):
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(n, ROWS * COLS, WIDTH)).astype(np.float32) for n in (60, 40)]
    scores, _, _ = masks_read(tmp_path, *features)
    for name in (FEATURES, NOISE, POSITION):
        assert scores[name].accuracy == pytest.approx(scores[CONSTANT].accuracy, abs=0.02), name
        assert scores[name].mean_iou < scores[CONSTANT].mean_iou + 0.04, name


def test_what_the_position_tells_is_found_without_features(tmp_path):
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(n, ROWS * COLS, WIDTH)).astype(np.float32) for n in (60, 40)]
    scores, _, fit = masks_read(tmp_path, *features, patch=1, by_place=True)
    assert scores[POSITION].accuracy > 0.85 > 0.6 > scores[FEATURES].accuracy
    shares = np.exp(fit.position)  # (P, K)
    assert shares.sum(1) == pytest.approx(1) and (shares.argmax(1) == np.tile(np.arange(COLS) % CLASSES, ROWS)).all()


@pytest.mark.parametrize("solver", ["torch", "sklearn"])
def test_with_patches_of_one_pixel_it_is_scikit_learns_regression(tmp_path, solver):
    """All pixels are drawn, so the fit is that of scikit-learn on all of them; and so is every prediction."""
    backbone = Tokens(1)
    (classes, truth), (_, wanted) = scenes(25, seed=0, patch=1), scenes(10, seed=1, patch=1)
    features = [one_hot(c.reshape(len(c), ROWS, COLS), noise=0.7, seed=s) for c, s in ((classes, 1), (wanted, 2))]
    sample = sampled(backbone, features[0], truth.__getitem__, tmp_path, number=ROWS * COLS)
    assert len(np.unique(sample.images * 100 + sample.patches)) == 25 * ROWS * COLS
    fit = fit_masks(sample, grid=(0.1,), solver=solver)
    reader = mask_reader(backbone, wanted.__getitem__, fit, num_classes=CLASSES, block=0, shown=range(10))
    feed(reader, backbone, features[1])
    scaler = StandardScaler().fit(features[0].reshape(-1, WIDTH).astype(float))
    own = LogisticRegression(C=0.1, tol=1e-6, max_iter=2000)
    own.fit(scaler.transform(features[0].reshape(-1, WIDTH)), truth.ravel())
    predicted = own.predict(scaler.transform(features[1].reshape(-1, WIDTH)))
    assert (reader.examples().predicted.ravel() == predicted).mean() > 0.995
    accuracy = (predicted == wanted.ravel()).mean()
    assert reader.gathered[FEATURES].score().accuracy == pytest.approx(accuracy, abs=0.01) and 0.5 < accuracy < 0.95


def test_a_patch_map_is_the_map_that_was_fitted():
    rng = np.random.default_rng(0)
    found = LinearMap(*(rng.normal(size=s) + o for s, o in ((6, 3), (6, 9), ((4, 6), 0), (4, 0))))
    features = rng.normal(size=(7, 6)).astype(np.float32)
    ((_, wanted),) = found(features, np.arange(7))
    assert PatchMap(found, "cpu")(torch.from_numpy(features)).numpy() == pytest.approx(wanted, abs=1e-5)


def test_upsampling_is_bilinear_between_the_centres_of_patches():
    values = np.random.default_rng(0).normal(size=(2 * 3, 2))
    found = upsample(torch.from_numpy(values), (2, 3), (8, 12)).numpy()
    grid = values.reshape(2, 3, 2)
    for y, x in ((0, 0), (3, 5), (4, 6), (7, 11), (2, 9)):
        r, c = np.clip((y + 0.5) / 4 - 0.5, 0, 1), np.clip((x + 0.5) / 4 - 0.5, 0, 2)
        (top, left), (below, right) = (int(r), int(c)), (min(int(r) + 1, 1), min(int(c) + 1, 2))
        upper = grid[top, left] * (1 - c % 1) + grid[top, right] * (c % 1)
        lower = grid[below, left] * (1 - c % 1) + grid[below, right] * (c % 1)
        assert found[:, y, x] == pytest.approx(upper * (1 - r % 1) + lower * (r % 1))


def depths(number, *, seed, patch=4):
    """Depths that a feature tells exactly, and what the feature is."""
    values = np.random.default_rng(seed).uniform(1, 3, (number, ROWS, COLS))
    features = np.random.default_rng(seed + 50).normal(size=(number, ROWS * COLS, WIDTH))
    features[:, :, 0] = 5 * values.reshape(number, -1) - 2
    return features.astype(np.float32), values.repeat(patch, 1).repeat(patch, 2).astype(np.float32)


def test_planted_depths_are_read_and_a_constant_is_as_far_off_as_they_vary(tmp_path):
    backbone = Tokens(1)
    (train, truth), (test, wanted) = depths(30, seed=0, patch=1), depths(12, seed=1, patch=1)
    wanted[3, 0] = np.nan
    fit = fit_depth(sampled(backbone, train, truth.__getitem__, tmp_path, number=20))
    reader = depth_reader(backbone, wanted.__getitem__, fit, limits=(1e-3, np.inf), block=0)
    feed(reader, backbone, test)
    found = {name: errors.means.estimate("rmse").value for name, errors in reader.gathered.items()}
    each = [np.sqrt(np.nanmean((image - truth.mean()) ** 2)) for image in wanted]
    assert found[FEATURES] < 0.01 and found[CONSTANT] == pytest.approx(np.mean(each), rel=1e-4)
    for name in (NOISE, POSITION):
        assert found[name] == pytest.approx(found[CONSTANT], rel=0.05)
    assert np.isnan(reader.examples().truth[3, 0]).all() and fit.constant == pytest.approx(truth.mean(), rel=1e-5)
    cut = depth_reader(backbone, wanted.__getitem__, fit, limits=(1.5, 2.0), block=0)
    feed(cut, backbone, test)
    shown = cut.examples().predicted
    assert shown.min() == 1.5 and shown.max() == 2.0


def test_the_depth_of_a_patch_is_the_mean_of_what_was_measured(tmp_path):
    backbone = Tokens(4)
    features, truth = depths(3, seed=0)
    truth = truth + np.random.default_rng(0).normal(size=truth.shape).astype(np.float32)
    truth[np.random.default_rng(1).random(truth.shape) < 0.4] = np.nan
    sample = sampled(backbone, features, truth.__getitem__, tmp_path, number=30)
    for target, patch, image in zip(sample.targets, sample.patches, sample.images, strict=True):
        row, col = divmod(patch, COLS)
        pixels = truth[image, 4 * row : 4 * row + 4, 4 * col : 4 * col + 4]
        assert target == pytest.approx(np.nanmean(pixels.astype(float)))


def test_patches_of_a_backbone_are_those_of_its_layout(make_tiny, tmp_path):
    backbone = make_tiny("timm-reg4")
    images = torch.randn(3, 3, *backbone.spec.image_size, generator=torch.Generator().manual_seed(0))
    masks = np.random.default_rng(0).integers(0, 2, (3, *backbone.spec.image_size))
    sampler = PixelSampler(backbone, masks.__getitem__, tmp_path, block=1)
    assert sampler.site == Site("final_norm")
    with torch.inference_mode(), Recorder(backbone, [*sampler.sites]) as recorder:
        backbone(images)
        taken = recorder.take()
    sampler.update(SimpleNamespace(names=("a", "b", "c"), indices=(0, 1, 2), images=images), taken, images)
    sample = sampler.finish()
    rows, cols = backbone.layout().grid
    assert len(sample.targets) == 3 * min(64, masks[0].size) and sample.grid == (rows, cols)
    for i in range(0, len(sample.targets), 17):
        at = backbone.layout().patch_position(*divmod(int(sample.patches[i]), cols))
        wanted = taken[sampler.site][sample.images[i], at].numpy()
        assert np.array_equal(sample.features[i], wanted)
