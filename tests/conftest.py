"""Tiny random backbones of both libraries, and figures that do not leak from one test into the next."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from types import ModuleType

import numpy as np
import pytest
import timm
import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from timm.layers import LayerNorm, SwiGLU, SwiGLUPacked
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitprobe.backbones import load
from vitprobe.backbones.base import Backbone, ModelSpec, Transform, digest_module
from vitprobe.backbones.open_clip_vit import OpenClipViT
from vitprobe.backbones.reference import ReferenceViT
from vitprobe.backbones.reference_vit import VisionTransformer as WrittenToBeRead
from vitprobe.backbones.reference_vit import ViTConfig
from vitprobe.backbones.timm_tower import num_registers
from vitprobe.backbones.timm_vit import TimmViT, adapter_for, timm_transform
from vitprobe.backbones.zoo import ALIASES, REFERENCES

PATCH, WIDTH, HEADS, SIZE = 8, 48, 4, (48, 64)


TRUE_SIZES = {
    "dinov2-s14": 224,
    "dinov2-reg-s14": 224,
    "deit3-s16": 224,
    "openclip-b32": 224,
    "timm:vit_medium_patch16_reg4_gap_256": 256,
    "timm:vit_base_patch16_siglip_224": 224,
    "timm:vit_small_patch16_dinov3": 224,
    "timm:eva02_tiny_patch14_224": 224,
    "timm:vit_medium_patch16_rope_reg1_gap_256": 256,
    "timm:vit_small_patch8_224.dino": 64,
    "open_clip:ViT-B-32/openai": 96,
    "timm:vit_tiny_r_s16_p8_224": 224,
    "timm:vit_small_r26_s32_224": 128,
    "reference-vit-ti": 224,
    "reference-vit-s": 96,
}
"""True architectures with random weights, and the side of their images."""
SLOW_SIZES = {
    "deit3-b16": 224,
    "dinov2-b14": 224,
    "openclip-b16": 224,
    "timm:vit_base_patch16_clip_224.openai": 224,
    "timm:vit_base_patch16_224.mae": 224,
    "timm:vit_small_patch16_224.dino": 224,
    "giant of 2 blocks": 224,
    "timm:vit_base_patch16_siglip_224.v2_webli": 224,
    "open_clip:ViT-B-32-quickgelu/openai": 224,
    "timm:vit_base_patch16_dinov3": 256,
    "timm:vit_small_plus_patch16_dinov3": 256,
    "timm:eva02_base_patch14_224": 224,
    "timm:eva02_base_patch16_clip_224": 224,
    "timm:vit_base_patch16_rope_reg1_gap_256": 256,
    "timm:vit_betwixt_patch16_rope_reg4_gap_256": 256,
    "timm:vit_small_patch16_rope_mixed_ape_224": 224,
    "timm:vit_pe_core_tiny_patch16_384": 384,
    "timm:vit_pe_spatial_tiny_patch16_512": 256,
    "reference-vit-b": 224,
}

TIMM = {
    "timm-cls": {},
    "timm-no-cls": {"class_token": False, "global_pool": "avg", "fc_norm": False},
    "timm-reg4": {"reg_tokens": 4, "no_embed_class": True},
    "timm-reg4-no-cls": {"reg_tokens": 4, "class_token": False, "global_pool": "avg", "no_embed_class": True},
    "timm-fc-norm": {"global_pool": "avg", "fc_norm": True},
    "timm-map-pool": {"class_token": False, "global_pool": "map"},
    "timm-qk-norm": {"qk_norm": True},
    "timm-scale-norms": {"scale_attn_norm": True, "scale_mlp_norm": True},
    "timm-gated": {},
    "timm-layer-scale": {"init_values": 0.1, "depth": 3},
    "timm-swiglu": {"mlp_layer": SwiGLU, "act_layer": nn.SiLU},
    "timm-glu": {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "init_values": 0.1, "reg_tokens": 4},
    "timm-pre-norm": {"pre_norm": True, "norm_layer": partial(LayerNorm, eps=1e-5)},
    "timm-dynamic": {"dynamic_img_size": True},
}


OPEN_CLIP = {
    "clip": {},
    "clip-quickgelu": {"quick_gelu": True, "layers": 3},
    "clip-odd-heads": {"head_width": WIDTH // 3},
    "clip-average": {"pool_type": "avg", "final_ln_after_pool": True},
    "clip-layer-scale": {"ls_init_value": 0.1},
    "clip-custom-block": {"block_type": "custom", "scale_fc": True, "scale_attn": True},
    "clip-attention-pool": {"attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True},
}
REFUSED = {"clip-hidden-norm": {"block_type": "custom", "qk_norm": True}}


EVA = {
    "timm-eva": {"num_reg_tokens": 4, "rope_type": "dinov3", "rope_rotate_half": True, "dynamic_img_size": True},
    "timm-eva-split": {"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "init_values": 0.1},
    "timm-eva-glu": {"swiglu_mlp": True, "scale_attn_inner": True, "global_pool": "token", "depth": 3},
    "timm-eva-pool": {"attn_type": "rope", "use_pre_transformer_norm": True, "global_pool": "map"},
    "timm-eva-mixed": {"attn_type": "rope", "rope_type": "mixed", "class_token": False, "qk_norm": True},
    "timm-eva-groups": {"attn_type": "rope", "qkv_fused": False, "num_kv_heads": (4, 2)},
    "timm-eva-gated": {"attn_type": "rope"},
    "timm-eva-no-rope": {"use_rot_pos_emb": False, "num_reg_tokens": 2, "no_embed_class": True},
}


REFERENCE = {
    "reference": {},
    "reference-no-cls": {"has_cls": False, "pooling": "mean", "layer_scale": 0.1},
    "reference-reg4": {"num_registers": 4, "cls_has_position": False},
    "reference-cls-position": {"num_registers": 2, "pooling": "mean", "has_qk_norm": True, "depth": 3},
}


def stir_module(module: nn.Module, seed: int = 0) -> None:
    """Redraw all parameters so that attention is peaked and every branch, bias and token matters."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "token" in name or "pos" in name or name in ("class_embedding", "cls", "registers"):
            value = 0.5 * noise
        elif parameter.ndim >= 2:
            value = 1.5 * noise / parameter[0].numel() ** 0.5
        elif name.endswith("bias"):
            value = 0.3 * noise
        else:  # gains of norms and of LayerScale
            value = 1 + 0.3 * noise
        parameter.data.copy_(value)


def _transform(size: tuple[int, int]) -> Transform:
    def apply(image: object) -> Tensor:
        pixels = np.asarray(image.convert("RGB").resize(size[::-1]), dtype=np.float32)  # (H, W, 3)
        return (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - 0.5) / 0.25

    return Transform(apply, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def tiny_backbone(name: str = "timm-cls", *, size: tuple[int, int] = SIZE, seed: int = 0) -> Backbone:
    """Build a tiny random backbone of 2 or 3 blocks; the name's first part is its library."""
    spec = ModelSpec(name, "timm", "tiny", f"random (seed {seed})", "", size, 0)
    with torch.random.fork_rng(devices=[]):
        if name in REFERENCE:
            kwargs = {"depth": 2, "num_classes": 5} | REFERENCE[name]
            config = ViTConfig(width=WIDTH, num_heads=HEADS, image_size=size, patch_size=(PATCH, PATCH), **kwargs)
            module = WrittenToBeRead(config)
        elif name in EVA:
            kwargs = {"depth": 2, "num_classes": 5, "use_rot_pos_emb": True} | EVA[name]
            module = Eva(size, PATCH, embed_dim=WIDTH, num_heads=HEADS, **kwargs)
        elif name in TIMM:
            kwargs = {"depth": 2, "num_classes": 5} | TIMM[name]
            module = VisionTransformer(size, PATCH, embed_dim=WIDTH, num_heads=HEADS, **kwargs)
        else:
            kwargs = {"layers": 2, "head_width": WIDTH // HEADS} | (OPEN_CLIP | REFUSED)[name]
            quick_gelu = kwargs.pop("quick_gelu", False)
            config = CLIPVisionCfg(width=WIDTH, patch_size=PATCH, image_size=size, **kwargs)
            module = _build_vision_tower(16, config, quick_gelu=quick_gelu)
        if name.endswith("gated"):  # timm builds it only inside other models
            for block in module.blocks:
                block.attn = type(block.attn)(WIDTH, HEADS, qkv_bias=True, gated=True)
    stir_module(module, seed)
    if name in REFERENCE:
        registers = module.config.num_registers
        spec = replace(spec, library="vitprobe", digest=digest_module(module), num_registers=registers)
        return ReferenceViT(module.eval(), spec, _transform(size))
    library = "timm" if name.startswith("timm") else "open_clip"
    spec = replace(spec, library=library, digest=digest_module(module), num_registers=num_registers(module))
    adapter = adapter_for(module, name) if library == "timm" else OpenClipViT
    return adapter(module.eval(), spec, _transform(size))


@pytest.fixture(scope="session")
def make_tiny() -> Callable[..., Backbone]:
    """The function ``make_tiny(name, *, size, seed)``, a fresh tiny backbone a call."""
    return tiny_backbone


@pytest.fixture(scope="session")
def stir() -> Callable[..., None]:
    """The function ``stir(module, seed)``, which redraws all parameters so that nothing stays near zero."""
    return stir_module


def giant_of_two_blocks() -> Backbone:
    """DINOv2's giant with its SwiGLU at full width, 2 blocks deep."""
    with torch.random.fork_rng(devices=[]):
        module = timm.create_model("vit_giant_patch14_dinov2", depth=2, img_size=224).eval()
    spec = ModelSpec("giant", "timm", "vit_giant_patch14_dinov2", "random (seed 0)", "", (224, 224), 0)
    return TimmViT(module, spec, timm_transform(module, (224, 224)))


SLOW_PARAMS = [pytest.param(name, marks=pytest.mark.slow) for name in SLOW_SIZES]


@pytest.fixture(scope="module", params=[*TIMM, *EVA, *OPEN_CLIP, *REFERENCE, *TRUE_SIZES, *SLOW_PARAMS])
def any_backbone(request: pytest.FixtureRequest) -> Backbone:
    """Every tiny backbone and every true architecture in turn, all of them random."""
    name = request.param
    if name in {**TIMM, **EVA, **OPEN_CLIP, **REFERENCE}:
        return tiny_backbone(name)
    if name in ALIASES or name in REFERENCES or ":" in name:
        side = (TRUE_SIZES | SLOW_SIZES)[name]
        backbone = load(name, weights="random", image_size=(side, side))
    else:
        backbone = giant_of_two_blocks()
    stir_module(backbone.module)
    backbone.check_attention()
    return backbone


@pytest.fixture
def timm_tiny() -> TimmViT:
    """A tiny timm ViT with CLS, 4 registers and a grid of 6 x 8 patches, 2 blocks, width 48, 4 heads."""
    return tiny_backbone("timm-reg4")


@pytest.fixture
def open_clip_tiny() -> OpenClipViT:
    """A tiny open_clip tower with CLS and a grid of 6 x 8 patches, 2 blocks, width 48, 4 heads."""
    return tiny_backbone("clip")


@pytest.fixture
def pyplot() -> Iterator[ModuleType]:
    """matplotlib.pyplot on the Agg backend, without any figure before and after."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.close("all")
    yield plt
    plt.close("all")
