"""What networks share: a head of zeros, the kinds of parameters, names that stay where they were."""

from collections.abc import Callable

import pytest
import torch

from vitprobe.backbones import base, trunk
from vitprobe.backbones.base import Backbone
from vitprobe.backbones.trunk import KINDS, Trunk, digest_module


@pytest.mark.parametrize("name", ["timm-cls", "timm-map-pool", "timm-eva", "clip", "clip-attention-pool", "reference"])
def test_a_head_of_zeros_changes_the_head_alone(name: str, make_tiny: Callable) -> None:
    backbone, plain = make_tiny(name), make_tiny(name)
    before = {key: value.clone() for key, value in backbone.module.state_dict().items()}
    images = torch.randn(3, 3, *backbone.spec.image_size, generator=torch.Generator().manual_seed(1))
    backbone.reset_head(5, seed=2, zero=True)
    plain.reset_head(5, seed=2)
    with torch.no_grad():
        assert torch.equal(backbone(images), torch.zeros(3, 5))
        assert plain(images).abs().max() > 0
    after = backbone.module.state_dict()
    new = {key for key, value in after.items() if key not in before or not torch.equal(value, before[key])}
    assert new and all(not after[key].any() for key in new)
    assert new <= set(backbone.parameter_names("head"))
    assert backbone.spec.digest == digest_module(backbone.module) != plain.spec.digest
    loss = torch.nn.functional.cross_entropy(backbone(images), torch.tensor([0, 1, 2]))
    loss.backward()
    assert any(after_grad is not None and after_grad.abs().max() > 0 for after_grad in _gradients(backbone, new))


def _gradients(backbone: Backbone, names: set[str]) -> list[torch.Tensor | None]:
    return [parameter.grad for name, parameter in backbone.module.named_parameters() if name in names]


def test_no_head_takes_no_zeros(make_tiny: Callable) -> None:
    one, other = make_tiny("timm-cls"), make_tiny("timm-cls")
    one.reset_head(0, zero=True)
    other.reset_head(0)
    assert one.spec.digest == other.spec.digest


@pytest.mark.parametrize("name", ["timm-cls", "timm-eva", "clip", "reference"])
def test_a_backbone_is_a_trunk_and_old_names_lead_there(name: str, make_tiny: Callable) -> None:
    backbone = make_tiny(name)
    assert isinstance(backbone, Trunk)
    assert set(backbone.parameter_patterns) == set(KINDS)
    for name in ("ModelSpec", "Transform", "digest_module"):
        assert getattr(base, name) is getattr(trunk, name)
