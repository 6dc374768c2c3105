"""FLOPs against closed formulas written from the architectures' papers, and parameters against published counts."""

import json

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitprobe.backbones.blank import blank
from vitprobe.errors import ArgumentError
from vitprobe.probes.flops import count_flops, count_parameters, default_sizes, measure_costs, tower


def by_hand(*, width, blocks, patch, side, registers, first, second, outputs):
    """FLOPs of a ViT, two a multiply-add: ``first`` and ``second``, outputs and inputs of the MLP's linear layers."""
    patches = (side // patch) ** 2
    tokens = 1 + registers + patches
    embedding = 3 * patch * patch * width * patches
    linear = tokens * (width * 3 * width + width * width + width * first + second * width)
    attention = 2 * tokens * tokens * width  # queries times keys, pattern times values, all heads together
    return 2 * (embedding + blocks * (linear + attention) + width * outputs)


KNOWN = {
    "deit3-s16": {"width": 384, "blocks": 12, "patch": 16, "first": 1536, "second": 1536, "outputs": 1000},
    "dinov2-l14": {"width": 1024, "blocks": 24, "patch": 14, "first": 4096, "second": 4096, "outputs": 0},
    "dinov2-g14": {"width": 1536, "blocks": 40, "patch": 14, "first": 8192, "second": 4096, "outputs": 0},  # SwiGLU
    "openclip-b16": {"width": 768, "blocks": 12, "patch": 16, "first": 3072, "second": 3072, "outputs": 512},
}


@pytest.mark.parametrize(
    ("name", "side"), [("deit3-s16", 224), ("dinov2-l14", 518), ("dinov2-g14", 224), ("openclip-b16", 224)]
)
def test_flops_are_those_of_the_closed_formula(name, side):
    costs = measure_costs(name, numbers=(16, 4), image_size=(side, side))
    assert costs.numbers.tolist() == [0, 4, 16]
    wanted = [by_hand(**KNOWN[name], side=side, registers=number) for number in (0, 4, 16)]
    assert costs.flops.tolist() == wanted
    assert costs.flops_increase.tolist() == pytest.approx([one / wanted[0] - 1 for one in wanted])


def test_the_bounds_of_figure_12_hold_at_256_patches_and_not_of_fewer():
    """Less than 2 % with 4 registers, up to 6 % with 16; at 196 patches both are more."""
    large = measure_costs("dinov2-l14", numbers=(4, 16), image_size=(224, 224)).flops_increase
    base = measure_costs("deit3-b16", numbers=(4, 16), image_size=(224, 224)).flops_increase
    assert large[1] < 0.02 < base[1] and round(large[2], 2) == 0.06 < round(base[2], 2)


def test_parameters_are_the_published_ones():
    """Of DeiT-III-S with 4 registers, 22 061 032, as the log of a public run has it; DINOv2-L has 304.4 million."""
    costs = measure_costs("deit3-s16", numbers=(1, 4), image_size=(224, 224))
    assert costs.parameters.tolist() == [22_059_496, 22_059_496 + 384, 22_061_032]
    folded = measure_costs("dinov2-l14", numbers=(1, 2), image_size=(518, 518)).parameters
    assert np.diff(folded).tolist() == [0, 1024] and round(folded[0] / 1e6, 1) == 304.4
    assert costs.parameters_increase[2] == pytest.approx(4 * 384 / 22_059_496)


def test_registers_of_its_own_are_counted_like_others():
    size = (224, 224)
    own = count_flops(tower("dinov2-reg-s14", None, size), size)
    assert own == measure_costs("dinov2-s14", numbers=(4,), image_size=size).flops[1]
    one, other = (measure_costs(name, numbers=(4,), image_size=size) for name in ("organism", "organism-reg4"))
    assert one.flops.tolist() == other.flops.tolist() and one.parameters.tolist() == other.parameters.tolist()


def test_counting_on_meta_sees_what_computing_does(make_tiny):
    """Attention is counted whichever kernel computes it; without it, and on the CPU, open_clip's would be missing."""
    timm_tiny, clip = make_tiny("timm-reg4", size=(48, 48)), make_tiny("clip", size=(48, 48))
    images = torch.randn(1, 3, 48, 48)
    timm_tiny.module.blocks[0].attn.fused_attn = False
    with torch.no_grad(), FlopCounterMode(display=False) as computed:
        timm_tiny.module(images)
    assert count_flops(timm_tiny.module.to("meta"), (48, 48)) == computed.get_total_flops()
    with FlopCounterMode(display=False) as slow:  # gradients keep the fast path away
        clip.module(images)
    counted = count_flops(clip.module.to("meta"), (48, 48))
    assert counted == slow.get_total_flops()
    attention = 2 * 2 * 2 * 37 * 37 * 48 + 2 * 2 * 37 * (4 * 48 * 48 + 8 * 48 * 48)
    assert counted == attention + 2 * (3 * 8 * 8 * 48 * 36 + 48 * 16)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("dinov2-s14", ((224, 224), (518, 518))),
        ("deit3-b16", ((224, 224),)),
        ("scenes-content", ((32, 32),)),
        ("organism", ((224, 224),)),
        ("timm:vit_base_patch16_plus_240", ((224, 224), (240, 240))),
        ("timm:vit_betwixt_patch32_clip_224", ((224, 224),)),
    ],
)
def test_sizes_are_that_of_the_paper_where_smaller_and_the_models_own(name, sizes):
    assert default_sizes(name) == sizes


def test_a_patch_that_does_not_fit_leaves_the_own_size(tmp_path):
    model_args = {"patch_size": 15, "img_size": 240, "depth": 1}
    config = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {}, "model_args": model_args}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert default_sizes(str(tmp_path)) == ((240, 240),)


def test_what_is_refused(timm_tiny):
    with pytest.raises(ArgumentError, match="on cpu"):
        count_flops(timm_tiny.module, (48, 64))
    for numbers in ((-1,), (1.5,), ("4",), (True,)):
        with pytest.raises(ArgumentError, match="whole numbers"):
            measure_costs("deit3-s16", numbers=numbers, image_size=(224, 224))
    with pytest.raises(ArgumentError, match="multiple of the patch"):
        measure_costs("deit3-s16", image_size=(220, 224))
    assert count_parameters(blank("deit3-s16")) == 22_059_496
