"""A study of data sizes: equal operations, nested sets, nothing done twice, numbers that a reader can count again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitprobe.backbones import load
from vitprobe.backbones.conv_net import create_conv, load_conv
from vitprobe.errors import ArgumentError
from vitprobe.training.data_sizes import Images, Study, open_images, run_study
from vitprobe.training.loop import Progress

CHANNELS = (8, 8, 8, 8)
TOLD: dict[str, Any] = {
    "sizes": [24, 48],
    "flops": 1.2e9,
    "rates": [1e-4, 3e-3],
    "choose_at": 24,
    "choose_share": 0.5,
    "num_held_out": 40,
    "num_development": 24,
    "num_seen": 30,
    "contenders": [
        {"name": "ResNet", "arch": "scenes-resnet", "arch_args": {"channels": list(CHANNELS)}},
        {"name": "ViT", "arch": "scenes-tiny", "arch_args": {"depth": 1, "embed_dim": 32, "num_heads": 2}},
    ],
    "base": {"batch_size": 8, "num_held_out": 16, "num_bank": 16, "workers": 0, "device": "cpu"},
}


@pytest.fixture(scope="module")
def study() -> Study:
    return Study.from_dict(TOLD)


@pytest.fixture(scope="module")
def images(study: Study) -> Images:
    return open_images("scenes", "scenes:single", None, study)


class Watched:
    """Note what is trained; with ``stop``, end at the second step of the training of that number."""

    def __init__(self, stop: int | None = None) -> None:
        self.titles: list[str] = []
        self.stop = stop

    @contextmanager
    def __call__(self, title: str, steps: int) -> Iterator[Callable[[Progress], None]]:
        self.titles.append(title)

        def show(progress: Progress) -> None:
            if len(self.titles) == self.stop and progress.step == 2:
                raise KeyboardInterrupt

        yield show


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def found(study: Study, images: Images, work: Path) -> tuple[Any, list[str]]:
    watch = Watched()
    return run_study(study, images, work, watch=watch), watch.titles


def test_all_spend_the_same_operations(study: Study, found: tuple[Any, list[str]]) -> None:
    rows = found[0].summary["models"]
    for row in rows:
        assert abs(row["steps"] * 8 * row["training_flops"] - 1.2e9) <= 0.5 * 8 * row["training_flops"]
        assert row["images_seen"] == 8 * row["steps"]
    assert rows[0]["steps"] != rows[1]["steps"]
    conv = create_conv("scenes-resnet", num_classes=6, overrides={"channels": CHANNELS}).module.train()
    with FlopCounterMode(display=False) as counter:
        conv(torch.zeros(2, 3, 32, 32)).sum().backward()
    assert rows[0]["training_flops"] == counter.get_total_flops() // 2
    assert rows[0]["parameters"] == sum(p.numel() for p in conv.parameters())


def test_sets_are_nested_and_share_no_image_with_what_judges(study: Study, images: Images) -> None:
    sets = {size: {item.name for item in part.items} for size, part in images.nested((12, 24, 48)).items()}
    assert [len(names) for names in sets.values()] == [48, 24, 12]
    assert sets[12] < sets[24] < sets[48] == {item.name for item in images.train.items}
    others = {item.name for part in (images.development, images.held) for item in part.items}
    assert len(others) == 24 + 40 and not others & sets[48]
    counts = np.bincount(images.nested((12, 24, 48))[12].labels, minlength=6)
    assert np.abs(counts - np.bincount(images.train.labels, minlength=6) / 4).max() < 1.5


def test_what_is_measured_can_be_measured_again(images: Images, found: tuple[Any, list[str]], work: Path) -> None:
    """Right answers of the saved networks, counted here; norms too."""
    result = found[0]
    pixels = torch.stack([load_conv_transform(item) for item in images.held.items])
    for m, (name, opener) in enumerate((("ResNet", load_conv), ("ViT", load))):
        rate = result.summary["models"][m]["lr"]
        (folder,) = (
            path
            for path in (work / "scenes").glob(f"{name}-48-seed0-*")
            if (path / "last").is_dir() and '"measures"' in (path / "done.json").read_text()
        )
        network = opener(str(folder / "last"))
        with torch.no_grad():
            right = (network(pixels).argmax(1).numpy() == images.held.labels).sum()
        assert right == result.right[m, 1, 0] and rate in (1e-4, 3e-3)
        assert not (folder / "last" / "training.pt").exists()
    with torch.no_grad():
        norms = load_conv(str(next((work / "scenes").glob("ResNet-48-*")) / "last")).feature_map(pixels).norm(dim=1)
    assert result.maximum[0, 1, 0] <= norms.max() * 1.0001  # of 16 of these images
    assert np.isnan(result.outlier_share[0]).all() and (result.outlier_share[1] >= 0).all()
    assert set(result.summary["verdicts"]["ResNet"]) == {"not a transformer"}


def load_conv_transform(item: Any) -> torch.Tensor:
    """One scene as all these networks read it."""
    pixels = torch.from_numpy(np.asarray(item.read().image).copy()).permute(2, 0, 1)
    return (pixels / 255 - 0.5) / 0.5


def test_the_rate_is_the_best_on_images_of_its_own(found: tuple[Any, list[str]]) -> None:
    result, titles = found
    assert len([title for title in titles if "tried" in title]) == 4 and len(titles) == 4 + 4
    for row in result.summary["models"]:
        tried = {float(rate): share for rate, share in row["rates_tried"].items()}
        assert set(tried) == {1e-4, 3e-3} and tried[row["lr"]] == max(tried.values())


def test_nothing_is_done_twice(study: Study, images: Images, work: Path, found: tuple[Any, list[str]]) -> None:
    watch = Watched()
    again = run_study(study, images, work, watch=watch)
    assert watch.titles == []
    assert all(np.array_equal(value, found[0].arrays()[name], equal_nan=True) for name, value in again.arrays().items())
    assert again.summary == found[0].summary
    other = replace(study, rates=(3e-3,), num_held_out=30)
    run_study(other, images, work, watch=watch)
    assert len(watch.titles) == 4  # a changed study reads no measure of another


def test_a_stopped_study_goes_on(study: Study, images: Images, tmp_path: Path, found: tuple[Any, list[str]]) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_study(study, images, tmp_path, watch=Watched(stop=6))
    watch = Watched()
    result = run_study(study, images, tmp_path, watch=watch)
    assert len(watch.titles) == 8 - 5
    assert np.array_equal(result.right, found[0].right) and np.array_equal(result.p99, found[0].p99)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"rates": []}, "needs a network, a rate and a seed"),
        ({"flops": 0.0}, "operations"),
        ({"choose_at": 7}, r"got 7 images to choose a rate; give one of \[24, 48\]"),
        ({"base": {"lr": -1.0}}, "positive number"),
    ],
)
def test_what_makes_no_study_is_refused(changed: dict[str, Any], why: str) -> None:
    with pytest.raises(ArgumentError, match=why):
        Study.from_dict(TOLD | changed)


def test_pictures_need_held_out_ones(study: Study, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="without held-out images"):
        open_images("pictures", str(tmp_path), None, study)
