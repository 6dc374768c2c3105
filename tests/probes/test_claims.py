"""Claims and their answers, at a cutoff that is read off statistics of norms."""

import numpy as np
import pytest

from vitprobe import backbones
from vitprobe.errors import ArgumentError
from vitprobe.inputs.loading import ImageBatch
from vitprobe.inputs.scenes import SceneConfig, generate
from vitprobe.probes.by_image import FEWEST, Estimate
from vitprobe.probes.claims import CLAIMS, SIGNS, UNITS, cutoff_at, judge_claim, not_tested, overall
from vitprobe.probes.norms import measure_norms
from vitprobe.probes.outliers import OutlierRule


def estimate(low, high, number=50):
    return Estimate((low + high) / 2, (low, high), number)


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_holds_on_its_own_side_alone(name):
    sign = SIGNS[name]
    sides = {"holds": (0.1, 0.3), "does not hold": (-0.3, -0.1), "not clear": (-0.1, 0.3)}
    for answer, (low, high) in sides.items():
        ends = sorted((sign * low, sign * high))
        found = judge_claim(name, estimate(*ends), part="x")
        assert found.answer == answer and found.difference.interval == tuple(ends)  # what was measured is kept
        told = found.as_dict()
        assert told["answer"] == answer and told["sign"] == sign and told["unit"] == UNITS[name]
    few = judge_claim(name, estimate(*sorted((sign * 0.1, sign * 0.3)), number=FEWEST - 1))
    assert few.answer == "not clear"
    assert judge_claim(name, Estimate(None, None, 0)).answer == "not clear"
    assert not_tested(name, "too few").answer == "not tested: too few"


def test_outliers_are_said_to_tell_less_of_their_place_and_more_of_their_image():
    assert {name: sign for name, sign in SIGNS.items() if sign < 0} == {"position": -1}
    assert judge_claim("position", estimate(-0.3, -0.1)).answer == "holds"
    assert judge_claim("pixels", estimate(1.0, 2.0)).answer == "holds"  # the error is larger


def test_answers_on_several_tasks_are_put_together():
    holds, not_clear = judge_claim("classes", estimate(0.1, 0.2)), judge_claim("classes", estimate(-0.1, 0.2))
    assert overall([holds, holds]) == "holds" and overall([not_clear]) == "not clear"
    assert overall([holds, not_clear, not_clear]) == "holds on 1 of 3 tasks"


def test_the_cutoff_is_the_percentile_of_the_norms_of_that_block():
    backbone = backbones.load("organism-clean", image_size=(96, 96))
    images = generate(12, config=SceneConfig(size=(96, 96)), seed=2).images * 2 - 1
    where = tuple(range(12))
    batch = ImageBatch(tuple(map(str, where)), images, ("",) * 12, where)
    stats = measure_norms(backbone, [batch], blocks=[7]).result(OutlierRule.parse("auto"), point=7)
    streams = backbone.module.forward_intermediates(images, norm=False, intermediates_only=True)
    for block in (0, 7):
        norms = np.linalg.norm(streams[block].detach().flatten(2).transpose(1, 2).numpy(), axis=-1)
        cutoff = cutoff_at(stats, block, OutlierRule.parse("p98"))
        assert cutoff == pytest.approx(np.quantile(norms, 0.98), rel=2e-3)
        assert np.mean(norms >= cutoff) == pytest.approx(0.02, abs=0.004)
    assert cutoff_at(stats, 7, OutlierRule.parse("auto")) is None  # two per cent are there whatever the shape
    with pytest.raises(ArgumentError, match="got block 8"):
        cutoff_at(stats, 8, OutlierRule.parse("p98"))
