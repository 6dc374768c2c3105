import numpy as np
import pytest

from vitprobe.errors import ArgumentError
from vitprobe.probes.histogram import EDGES, NUM_BINS, Joint, NormHistogram, bin_of, edge_index, snap

RNG = np.random.default_rng(0)


def test_integers_are_edges_so_their_counts_are_exact():
    for cutoff in (1, 75, 100, 150, 333, 2047):
        assert snap(cutoff) == cutoff
    norms = np.float32([149.9, 149.999, 150.0, 150.001, 151])
    assert NormHistogram.of(norms).above(150) == 3


def test_cutoffs_move_by_less_than_a_thousandth():
    for cutoff in RNG.uniform(0.01, 5000, 200):
        assert abs(snap(cutoff) / cutoff - 1) < 5.1e-4


def test_bins_agree_with_a_search_of_the_edges():
    norms = RNG.lognormal(3, 2, 5000).astype(np.float32)
    expected = np.clip(np.searchsorted(EDGES, norms, side="right") - 1, 0, NUM_BINS - 1)
    assert (bin_of(norms) == expected).all()


def test_norms_beyond_the_range_are_counted_in_the_outermost_bins():
    counts = NormHistogram.of(np.float32([0.0, 1e-9, 1e30])).counts
    assert counts[0] == 2 and counts[-1] == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_norms_that_are_not_finite_are_refused(bad):
    with pytest.raises(ArgumentError, match="1 of 3 token norms are not finite"):
        bin_of(np.float32([1, bad, 2]))


def test_statistics_agree_with_numpy():
    norms = RNG.lognormal(3, 0.4, 100_000).astype(np.float32)
    histogram = NormHistogram.of(norms)
    for q in (0.01, 0.25, 0.5, 0.9, 0.99, 0.999):
        assert histogram.quantile(q) == pytest.approx(np.quantile(norms, q), rel=1e-3)
    assert histogram.mean == pytest.approx(norms.mean(), rel=1e-4)
    assert histogram.std == pytest.approx(norms.std(), rel=1e-3)
    assert histogram.mad == pytest.approx(np.median(np.abs(norms - np.median(norms))), rel=5e-3)


def test_adding_histograms_is_counting_together():
    a, b = RNG.uniform(1, 9, 50), RNG.uniform(5, 99, 70)
    both = NormHistogram.of(np.concatenate([a, b]))
    assert (NormHistogram.of(a) + NormHistogram.of(b)).counts.tolist() == both.counts.tolist()


def test_nothing_counted_has_no_median():
    empty = NormHistogram.of(np.zeros(0))
    assert np.isnan(empty.median) and empty.fraction_above(1.0) == 0


def test_joint_sums_over_any_cutoff_like_a_plain_loop():
    norms, place = RNG.lognormal(2, 1.5, 4000).astype(np.float32), RNG.integers(0, 5, 4000)
    joint = Joint((5,))
    for part in np.array_split(np.arange(4000), 7):  # windows grow in both directions
        joint.add((place[part],), bin_of(norms[part]))
    for cutoff in (0.001, 1.0, 20.0, 500.0, 1e6):
        expected = [int((norms[place == k] >= snap(cutoff)).sum()) for k in range(5)]
        assert joint.from_edge(edge_index(cutoff)).tolist() == expected
    assert joint.total().sum() == 4000


def test_joints_merge_in_any_order():
    norms, place = RNG.lognormal(2, 1.5, 600).astype(np.float32), RNG.integers(0, 3, 600)
    whole, first, second = Joint((3,)), Joint((3,)), Joint((3,))
    whole.add((place,), bin_of(norms))
    first.add((place[:100],), bin_of(norms[:100]))
    second.add((place[100:],), bin_of(norms[100:]))
    second.merge(first)
    first.merge(Joint((3,)))
    edge = edge_index(7.0)
    assert second.from_edge(edge).tolist() == whole.from_edge(edge).tolist()
    assert first.total().sum() == 100
