"""What is held of trainings on growing sets: means over seeds, intervals over images, a table, and back from disk."""

import json
from math import sqrt

import numpy as np
import pytest

from vitprobe.errors import ArgumentError, InputError
from vitprobe.probes.data_sizes import MEASURES, DataSizes, empty, table
from vitprobe.results import to_json

MODELS = [{"name": name, "parameters": 1e5, "images_seen": 4000} for name in ("ResNet", "ViT")]


def made() -> DataSizes:
    """Two networks, two sizes, two seeds; the second network has not been trained on the larger set."""
    result = empty({"models": MODELS, "num_held_out": 200, "classes": ["a", "b"]}, (100, 400), 2)
    result.right[0], result.right[1, 0] = [[100, 120], [150, 154]], [90, 90]
    for name in MEASURES[1:]:
        getattr(result, name)[0] = getattr(result, name)[1, 0] = 0.5
    result.maximum[0] = 2.0
    result.outlier_share[0] = np.nan
    return result


def test_accuracy_is_the_mean_over_seeds_and_its_interval_wilsons() -> None:
    result = made()
    assert result.names == ("ResNet", "ViT")
    assert result.accuracy[0].tolist() == [0.55, 0.76] and np.isnan(result.accuracy[1, 1])
    p, n, z = 0.55, 200, 1.959964
    middle, half = (p + z**2 / (2 * n)), z * sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert result.interval(0, 0) == pytest.approx([(middle + s * half) / (1 + z**2 / n) for s in (-1, 1)], abs=1e-6)
    assert np.isnan(result.interval(1, 1)).all()


def test_the_table_says_what_was_trained_and_what_was_not() -> None:
    head, rule, *lines = table({"scenes": made()}).splitlines()
    assert len({line.count("|") for line in (head, rule, *lines)}) == 1
    assert "| scenes | ResNet | 100 | 40 | 55.0 % (48.1 to 61.7) | 50.0 % | 50.0 % | 1.00 | 4.00 | not a" in lines[0]
    assert "| scenes | ViT | 400 | not trained |" in lines[3]
    assert lines[2].endswith("| 50 % |")


def test_what_is_stored_is_read_back() -> None:
    result = made()
    again = DataSizes.read(result.arrays(), json.loads(to_json(result.summary)))
    assert all(np.array_equal(again.arrays()[k], v, equal_nan=True) for k, v in result.arrays().items())
    assert again.names == result.names
    with pytest.raises(InputError, match="knn is missing; train again"):
        DataSizes.read({k: v for k, v in result.arrays().items() if k != "knn"}, {})


@pytest.mark.parametrize("sizes", [(), (0, 5), (5, 5), (9, 5)])
def test_sizes_grow(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match="give growing whole numbers"):
        empty({"models": MODELS}, sizes, 1)
