"""Published numbers: whole, of a known kind, and found beside the models that they are of."""

import pytest

from vitprobe.backbones.zoo import ALIASES, PARADIGMS
from vitprobe.published import MODELS, PUBLISHED, TRUST, beside, published
from vitprobe.reproduction.table import TABLE


def test_every_number_is_whole():
    assert len({(one.item, one.key, one.model, one.source) for one in PUBLISHED}) == len(PUBLISHED)
    for one in PUBLISHED:
        assert one.item in TABLE and one.trust in TRUST and one.source and one.model in MODELS, one
        assert one.unit != "share" or 0 < one.value < 1, one
    assert {name for name in MODELS.values() if name} <= {*ALIASES, *PARADIGMS}


@pytest.mark.parametrize(
    ("item", "key", "model", "value"),
    [
        ("fig3", "outlier_share", "DINOv2-g", 0.0237),
        ("table1", "cub.outlier", "DINOv2-g", 0.849),
        ("table1", "cal101.cls", "DINOv2-g", 0.969),
        ("table2-depth", "nyud", "OpenCLIP-B/16 + 4 reg", 0.661),
        ("table2-masks", "ade20k", "DINOv2-L + 4 reg", 0.479),
        ("table3", "voc2012", "DeiT-III-B + 4 reg", 0.327),
        ("table3", "coco20k", "OpenCLIP-B/16", 0.310),
        ("fig5b", "distance.outlier", "DINOv2-g", 5.09),
    ],
)
def test_numbers_are_those_of_the_field_notes(item, key, model, value):
    assert value in [one.value for one in published(item, key) if one.model == model]


def test_registers_did_not_help_every_cell():
    """The table must show where they hurt: OpenCLIP's LOST, and its accuracy on ImageNet."""
    values = {(one.item, one.key, one.model): one.value for one in PUBLISHED if "Darcet" in one.source}
    for key in ("voc2007", "voc2012", "coco20k"):
        assert values["table3", key, "OpenCLIP-B/16 + 4 reg"] < values["table3", key, "OpenCLIP-B/16"]


def test_a_model_stands_beside_what_was_published_of_it_else_beside_all():
    assert {one.model for one in beside("table3", "voc2007", "dinov2-l14")} == {"DINOv2-L"}
    assert {one.model for one in beside("table3", "voc2007", "dinov2-reg-l14")} == {"DINOv2-L + 4 reg"}
    assert {one.model for one in beside("table3", "voc2007", "organism")} > {"DINOv2-L", "DeiT-III-B + 4 reg"}
    assert beside("table3", "", "dinov2-l14") == () == published("fig20", "anything")
    assert {one.trust for one in beside("table3", "voc2007", "dinov2-l14")} == {"paper", "secondary"}
    assert {one.model for one in beside("fig5b", "position.other", "dinov2-reg-l14")} == {"DINOv2 + 4 reg"}
    assert {one.model for one in beside("fig5b", "position.other", "dinov2-l14")} == {"DINOv2"}
    assert "DINOv2-L" in {one.model for one in beside("table3", "voc2007", "dinov2-s14")}  # of no such size: all
    assert len(beside("table1", "airc.cls", "dinov2-reg-g14")) == len(published("table1", "airc.cls"))
