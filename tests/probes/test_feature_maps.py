"""Feature maps are what the model itself computes, laid on its grid."""

import pytest
import torch

from vitprobe.backbones.conv_net import create_conv
from vitprobe.errors import ArgumentError
from vitprobe.probes.feature_maps import of_backbone, of_conv
from vitprobe.recorder import Recorder, Site

FAMILIES = ["timm-cls", "timm-reg4", "timm-fc-norm", "timm-map-pool", "timm-eva", "clip", "clip-average", "reference"]


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_backbones_map_is_its_stream_on_the_grid(name, make_tiny, images):
    backbone = make_tiny(name)
    site, layout = Site("resid_post", 1), backbone.layout()
    with torch.no_grad(), Recorder(backbone, [site]) as recorder:
        backbone(images)
        stream = recorder.take()[site]
    mapped = of_backbone(backbone, after_final_norm=False)
    seen = mapped.see(images)
    assert mapped.step == (8, 8) and mapped.image_size == (48, 64) and "residual stream" in mapped.point
    assert torch.equal(seen.features[1, :, 2, 5], stream[1, layout.patch_position(2, 5)])
    expected = layout.to_grid(stream).norm(dim=-1)  # (B, rows, cols)
    torch.testing.assert_close(seen.norms, expected)
    with torch.no_grad():
        assert torch.equal(seen.pooled, backbone.features(images))
    assert torch.equal(mapped.run(images), seen.features) and torch.equal(mapped.norms(images), seen.norms)


@pytest.mark.parametrize("name", ["timm-cls", "timm-reg4", "reference"])
def test_by_default_the_last_block_comes_with_the_final_norm(name, make_tiny, images):
    backbone = make_tiny(name)
    seen, raw = of_backbone(backbone).see(images), of_backbone(backbone, 1, after_final_norm=False).see(images)
    with torch.no_grad():
        normed = backbone.final_norm(raw.features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(seen.features, normed)
    assert torch.equal(seen.norms, raw.norms)  # before the norm, both times
    first = of_backbone(backbone, 0)
    assert "block 0, residual stream" in first.point and not torch.equal(first.run(images), raw.features)


def test_a_norm_that_is_not_there_is_refused(make_tiny):
    for name, block in (("timm-cls", 0), ("clip-average", 1)):  # the latter norms its pooled vector alone
        with pytest.raises(ArgumentError, match="no norm"):
            of_backbone(make_tiny(name), block, after_final_norm=True)
    with pytest.raises(ArgumentError, match="block 7"):
        of_backbone(make_tiny(), 7)


def test_a_convolutional_networks_map_is_its_last(images):
    conv = create_conv("resnet18", image_size=(64, 64), overrides={"output_stride": 8})
    mapped = of_conv(conv)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    seen = mapped.see(images)
    with torch.no_grad():
        maps, pooled = conv.module.forward_features(images), conv.features(images)
    assert mapped.step == (8, 8) and seen.features.shape == (2, 512, 8, 8)
    torch.testing.assert_close(seen.features, maps)
    torch.testing.assert_close(seen.pooled, pooled)
    torch.testing.assert_close(seen.norms, maps.square().sum(dim=1).sqrt())
