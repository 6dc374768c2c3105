"""One vector an image: against the tokens by hand, with planted outliers, planted classes, and on noise."""

from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from vitprobe.errors import ArgumentError, InputError, OutputError
from vitprobe.probes.feature_file import FeatureFile, feature_site
from vitprobe.probes.frozen import ImageFeatureReader, classify, known, nearest
from vitprobe.probes.passes import run_pass
from vitprobe.recorder import Recorder, Site


def batches(backbone, number, *, size=4, seed=0, indices=None):
    images = torch.randn(number, 3, *backbone.spec.image_size, generator=torch.Generator().manual_seed(seed))
    indices = tuple(range(number)) if indices is None else indices
    for start in range(0, number, size):
        part = indices[start : start + size]
        yield SimpleNamespace(names=tuple(map(str, part)), indices=part, images=images[start : start + size])


def streams(backbone, number, site, **options):
    """All tokens at a site, one image at a time."""
    found = []
    for batch in batches(backbone, number, size=1, **options):
        with torch.inference_mode(), Recorder(backbone, [site]) as recorder:
            backbone(batch.images)
            found.append(recorder.take()[site][0].double().numpy())
    return found


@pytest.mark.parametrize("name", ["timm-reg4", "timm-no-cls", "clip", "timm-fc-norm"])
@pytest.mark.parametrize("point", ["auto", "resid_post"])
def test_rows_are_means_and_cls_by_hand(name, point, make_tiny, tmp_path):
    backbone = make_tiny(name)
    layout, last = backbone.layout(), backbone.num_blocks - 1
    site = feature_site(backbone, last, point)
    assert site.kind == ("final_norm" if point == "auto" and name != "timm-fc-norm" else "resid_post")
    stream = streams(backbone, 5, Site("resid_post", last))
    norms = [[float(np.sqrt((token**2).sum())) for token in image] for image in stream]
    patches = layout.positions("patches")
    cutoff = float(np.median([norms[i][p] for i in range(5) for p in patches]))
    reader = ImageFeatureReader(backbone, tmp_path / "deep" / "x.npy", block=last, point=point, cutoff=cutoff)
    order = (7, 3, 9, 0, 4)
    run_pass(backbone, batches(backbone, 5, size=2, indices=order), [reader])
    found = reader.finish()
    assert found is reader.finish() and found.images.tolist() == list(order)
    assert found.has_cls == (layout.cls is not None) and isinstance(found.rows, np.memmap)
    number = 0
    for i, image in enumerate(streams(backbone, 5, site)):
        under = [p for p in patches if norms[i][p] < cutoff]
        number += len(patches) - len(under)
        mean, without = image[list(patches)].mean(0), image[under or list(patches)].mean(0)
        cls = image[layout.positions("cls")[0]] if layout.cls else None
        for kind, parts in (("mean", [mean]), ("cls", [cls]), ("cls+mean", [mean, cls])):
            wanted = [mean] if cls is None else parts
            assert found.take(kind)[i] == pytest.approx(np.concatenate(wanted), abs=1e-4), kind
        wanted = {"mean": [without], "cls": [without if cls is None else cls]}
        wanted["cls+mean"] = [without] if cls is None else [cls, without]
        for kind, parts in wanted.items():
            assert found.take(kind, without_outliers=True)[i] == pytest.approx(np.concatenate(parts), abs=1e-4), kind
    assert found.num_outliers == number and 0 < number < found.num_patches == 5 * layout.num_patches


def test_an_image_of_outliers_alone_keeps_its_mean(make_tiny, tmp_path):
    backbone = make_tiny("timm-reg4")
    reader = ImageFeatureReader(backbone, tmp_path / "x.npy", block=1, cutoff=1e-6)
    run_pass(backbone, batches(backbone, 3), [reader])
    found = reader.finish()
    assert found.num_all_outliers == 3 and found.num_outliers == found.num_patches
    assert found.take("mean", without_outliers=True) == pytest.approx(found.take("mean"), abs=1e-5)


def test_without_a_cutoff_there_is_no_second_mean(make_tiny, tmp_path):
    backbone = make_tiny("timm-reg4")
    reader = ImageFeatureReader(backbone, tmp_path / "x.npy", block=1)
    assert [site.reduce for site in reader.sites] == [None]
    with pytest.raises(InputError, match="no image"):
        reader.finish()
    run_pass(backbone, batches(backbone, 3), [reader])
    found = reader.finish()
    assert found.rows.shape == (3, 2 * backbone.width) and found.num_outliers == 0
    for asked, said in (({"without_outliers": True}, "no cutoff"), ({"features": "all"}, "allowed are cls")):
        with pytest.raises(ArgumentError, match=said):
            found.take(**({"features": "mean"} | asked))


def test_points_that_are_not_there_are_refused(make_tiny):
    backbone = make_tiny("timm-cls")
    assert feature_site(backbone, 0) == Site("resid_post", 0)
    for block, point, said in ((0, "final_norm", "follows block 1"), (9, "auto", "blocks 0 to 1"), (1, "x", "auto")):
        with pytest.raises(ArgumentError, match=said):
            feature_site(backbone, block, point)
    with pytest.raises(ArgumentError, match="has no norm"):
        feature_site(make_tiny("timm-fc-norm"), 1, "final_norm")


def test_a_feature_file_takes_what_is_finite_and_says_where_it_cannot_write(tmp_path):
    file = FeatureFile(tmp_path / "x.npy", 3)
    rows = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)
    for part in np.split(rows, [2, 7]):
        file.add(part)
    assert np.array_equal(file.finish(), rows)
    assert FeatureFile(tmp_path / "none.npy", 3).finish().shape == (0, 3)
    with pytest.raises(ArgumentError, match="1 of 2 features"):
        FeatureFile(tmp_path / "y.npy", 2).add(np.array([[1.0, 2.0], [np.nan, 0.0]]))
    with pytest.raises(OutputError, match="cannot write features"):
        FeatureFile(tmp_path / "x.npy" / "z.npy", 2)


class Planted:
    """Gathered features that were made by hand."""

    def __init__(self, rows: np.ndarray, images: np.ndarray) -> None:
        self.rows, self.images = rows, images

    def take(self, features: str, *, without_outliers: bool = False) -> np.ndarray:
        return self.rows


def planted(number, spread, *, seed, classes=3, width=8) -> tuple[Planted, np.ndarray]:
    """Features around a centre each class, in an order that is not the source's; a tenth of the images unlabelled."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, number)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    order = rng.permutation(number)
    rows = (centres[labels] + spread * rng.normal(size=(number, width))).astype(np.float32)[order]
    labels[::10] = -1
    return Planted(rows, order), labels


def test_planted_classes_are_read_and_images_without_one_are_left_out():
    (train, labels), (test, wanted) = planted(300, 0.05, seed=0), planted(200, 0.05, seed=1)
    pair = known(train, labels, "cls"), known(test, wanted, "cls")
    assert len(pair[0].features) == 270 and len(pair[1].features) == 180
    for right in (classify(*pair)[0].accuracy, nearest(*pair).accuracy):
        assert right == 1.0
    whole = known(train, labels.clip(0), "cls")
    assert whole.features is train.rows and whole.labels.tolist() == labels.clip(0)[train.images].tolist()


def test_noise_is_at_chance():
    rng = np.random.default_rng(3)
    pair = [
        known(Planted(rng.normal(size=(n, 16)).astype(np.float32), np.arange(n)), np.arange(n) % 4, "cls")
        for n in (300, 800)
    ]
    for found in (classify(*pair)[0], nearest(*pair)):
        assert found.interval[0] < 0.25 < found.interval[1]


def test_each_seed_draws_its_own_held_out_images_and_the_fit_is_scikit_learns():
    (train, labels), (test, wanted) = planted(120, 2.0, seed=0), planted(400, 2.0, seed=1)
    one, other = known(train, labels, "cls"), known(test, wanted, "cls")
    results = classify(one, other, seeds=(5, 6))
    assert results[0].held_out != results[1].held_out
    scaler = StandardScaler().fit(one.features.astype(float))
    for result in results:
        own = LogisticRegression(C=result.c, max_iter=1000).fit(scaler.transform(one.features), one.labels)
        score = own.score(scaler.transform(other.features), other.labels)
        assert result.accuracy == pytest.approx(score, abs=0.01) and 0.4 < score < 0.9
    assert isinstance(results, list) and not isinstance(results, Mapping)
