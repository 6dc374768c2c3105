import numpy as np
import pytest

from vitprobe.errors import ArgumentError
from vitprobe.probes.histogram import NormHistogram
from vitprobe.probes.mixture import fit_two
from vitprobe.probes.outliers import OutlierRule, find_two_modes


def bulk(rng, n):
    return np.clip(rng.normal(50, 15, n), 5, None)


UNIMODAL = {
    "normal": lambda rng, n: rng.normal(40, 4, n),
    "log-normal": lambda rng, n: rng.lognormal(3, 0.5, n),
    "wide log-normal": lambda rng, n: rng.lognormal(3, 1, n),
    "exponential": lambda rng, n: rng.exponential(10, n) + 0.1,
    "Pareto": lambda rng, n: 10 * (1 + rng.pareto(1.5, n)),
    "log Student t": lambda rng, n: np.exp(3 + 0.3 * rng.standard_t(3, n)),
    "uniform": lambda rng, n: rng.uniform(1, 100, n),
    "norms of Gaussian tokens": lambda rng, n: np.linalg.norm(rng.normal(size=(n, 16)), axis=1),
    "left tail": bulk,
}


@pytest.mark.parametrize("name", UNIMODAL)
@pytest.mark.parametrize("n", [50, 1000, 20_000])
def test_one_mode_is_never_called_two(name, n):
    """Negative control: forty draws of each, heavy tails and skewed bulks among them."""
    rng = np.random.default_rng(n)
    assert not any(find_two_modes(NormHistogram.of(UNIMODAL[name](rng, n))).bimodal for _ in range(40))


def test_two_lumps_of_content_are_no_outliers():
    rng = np.random.default_rng(0)
    near = np.concatenate([rng.normal(30, 2, 400), rng.normal(50, 3, 600)])  # less than twice apart
    many = np.concatenate([rng.normal(30, 2, 600), rng.normal(120, 9, 400)])  # no minority
    assert not find_two_modes(NormHistogram.of(near)).bimodal
    assert not find_two_modes(NormHistogram.of(many)).bimodal


@pytest.mark.parametrize("share", [0.003, 0.01, 0.0237, 0.05, 0.15])
@pytest.mark.parametrize("n", [20_000, 200_000])
def test_a_few_outliers_are_found_between_the_modes(share, n):
    """Positive control in the proportions of DINOv2-g (Darcet et al., figure 3: 2.37 % over 150, bulk under 100)."""
    rng = np.random.default_rng(1)
    few = rng.normal(300, 60, int(n * share))
    modes = find_two_modes(NormHistogram.of(np.concatenate([bulk(rng, n), few])))
    assert modes.bimodal and 100 < modes.cutoff < 180
    assert modes.share == pytest.approx(len(few) / (n + len(few)), rel=0.03)


@pytest.mark.parametrize("n", [2000, 20_000])
def test_a_rare_mode_is_found_above_two_ordinary_ones(n):
    """The gap between two ordinary modes must not hide the valley that matters."""
    rng = np.random.default_rng(7)
    parts = [rng.lognormal(np.log(m), 0.05, int(n * share)) for m, share in ((10, 0.6), (40, 0.38), (400, 0.02))]
    modes = find_two_modes(NormHistogram.of(np.concatenate(parts)))
    assert modes.bimodal and 50 < modes.cutoff < 350 and modes.share == pytest.approx(0.02, abs=1e-3)
    few = np.concatenate([*parts[:2], [400.0] * 4])
    assert find_two_modes(NormHistogram.of(few)).beyond_gap == 4


def test_ordinary_tokens_of_large_norm_are_no_outliers():
    """DeiT-III's ordinary tokens are at 300 to 600: a cutoff of 150 calls them all outliers, the modes do not."""
    norms = NormHistogram.of(np.random.default_rng(2).normal(450, 60, 20_000))
    assert OutlierRule.parse("auto").cutoff(norms) is None
    assert norms.fraction_above(OutlierRule.parse("150").cutoff(norms)) == 1.0


def test_a_single_extreme_token_is_no_mode_but_is_counted():
    rng = np.random.default_rng(3)
    modes = find_two_modes(NormHistogram.of(np.append(bulk(rng, 5000), 900.0)))
    assert (modes.bimodal, modes.beyond_gap) == (False, 1)
    assert find_two_modes(NormHistogram.of(bulk(rng, 5000))).beyond_gap == 0


@pytest.mark.parametrize(
    "text", ["auto", "150", "12.5", "mean+3sd", "mean+2.5sd", "median*4", "mad:6", "p98", "p99.9", "gmm"]
)
def test_rules_are_read_and_written_the_same(text):
    assert str(OutlierRule.parse(text)) == text
    assert OutlierRule.parse(text.upper()) == OutlierRule.parse(text)


@pytest.mark.parametrize("text", ["", "-3", "p101", "mean+sd", "median", "k*3", "nan", "0", "median*0", "150px"])
def test_other_rules_are_refused_with_what_is_allowed(text):
    with pytest.raises(ArgumentError, match="got rule") as error:
        OutlierRule.parse(text)
    assert "\n" not in str(error.value)


def test_cutoffs_agree_with_numpy():
    x = np.random.default_rng(4).lognormal(3, 0.4, 50_000)
    norms = NormHistogram.of(x)
    median = np.median(x)
    expected = {
        "150": 150,
        "mean+3sd": x.mean() + 3 * x.std(),
        "median*4": 4 * median,
        "mad:6": median + 6 * 1.4826 * np.median(np.abs(x - median)),
        "p98": np.quantile(x, 0.98),
    }
    for text, cutoff in expected.items():
        assert OutlierRule.parse(text).cutoff(norms) == pytest.approx(cutoff, rel=3e-3), text
    assert norms.fraction_above(OutlierRule.parse("p98").cutoff(norms)) == pytest.approx(0.02, abs=3e-4)


def test_no_rule_finds_anything_in_nothing():
    empty = NormHistogram.of(np.zeros(0))
    assert all(OutlierRule.parse(t).cutoff(empty) is None for t in ("auto", "150", "mean+3sd", "p98", "gmm"))


def test_two_gaussians_agree_with_scikit_learn():
    from sklearn.mixture import GaussianMixture

    rng = np.random.default_rng(5)
    x = np.sort(np.concatenate([rng.normal(5, 0.3, 4000), rng.normal(8, 0.5, 400)]))
    ours = fit_two(x, np.ones(len(x)))
    theirs = GaussianMixture(2, n_init=3, random_state=0).fit(x[:, None])
    assert sorted(ours.means) == pytest.approx(sorted(theirs.means_.ravel()), abs=0.01)
    assert sorted(ours.weights) == pytest.approx(sorted(theirs.weights_), abs=0.005)


def test_gmm_cuts_in_the_valley():
    rng = np.random.default_rng(6)
    norms = NormHistogram.of(np.exp2(np.concatenate([rng.normal(5, 0.3, 4000), rng.normal(8, 0.3, 400)])))
    assert 2**6 < OutlierRule.parse("gmm").cutoff(norms) < 2**7.5
