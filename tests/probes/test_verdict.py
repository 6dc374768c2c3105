import dataclasses

import pytest

from vitprobe.probes.evidence import Contrasted, Evidence
from vitprobe.probes.outliers import Bimodality
from vitprobe.probes.verdict import judge

TWO = Bimodality(True, 100.0, 0.02, 6.0, 0.0, 1e-30)
LOW, HIGH, CHANCE = ((0.1, (0.05, 0.2)), (0.9, (0.8, 0.95)), (0.5, (0.4, 0.6)))


def evidence(contrast=LOW, cosine=HIGH, **changes):
    blank = Evidence(
        num_outliers=40,
        num_images_with_outliers=20,
        outlier_fraction_ci=(0.01, 0.03),
        neighbour_cosine=Contrasted(0.9, 0.5, *cosine),
        pixel_contrast=Contrasted(0.01, 0.2, *contrast),
        received_attention=[],
        centred_ratio=8.0,
        centred_bimodal=True,
        top_positions_share=0.1,
        top_positions_if_uniform=0.01,
        massive_dims=[],
        max_over_median=100.0,
    )
    return dataclasses.replace(blank, **changes)


def test_one_mode_is_none_whatever_a_cutoff_says():
    assert judge(Bimodality(False, None), evidence(num_outliers=9999)).answer == "none"


def test_a_few_tokens_beyond_a_gap_are_not_called_none():
    modes = Bimodality(False, None, beyond_gap=3)
    found = judge(modes, evidence(num_outliers=0))
    assert found.answer == "unclear" and "measure more images" in found.reasons[0]


def test_outliers_on_low_information_patches_are_artifacts():
    assert judge(TWO, evidence()).answer == "artifacts"


@pytest.mark.parametrize(("contrast", "cosine"), [(HIGH, LOW), (HIGH, CHANCE), (CHANCE, LOW)])
def test_outliers_elsewhere_are_content(contrast, cosine):
    assert judge(TWO, evidence(contrast, cosine)).answer == "content outliers"


@pytest.mark.parametrize(
    "found",
    [
        evidence(LOW, LOW),
        evidence(HIGH, HIGH),
        evidence(CHANCE, CHANCE),
        evidence(LOW, CHANCE),
        evidence((0.2, (0.1, 0.55)), HIGH),
        evidence(centred_ratio=1.2),
        evidence(centred_ratio=None),
        evidence(num_outliers=4),
        evidence(num_images_with_outliers=1),
        evidence(num_outliers=0, num_images_with_outliers=0),
    ],
)
def test_what_does_not_agree_or_is_too_little_is_unclear(found):
    assert judge(TWO, found).answer == "unclear"
