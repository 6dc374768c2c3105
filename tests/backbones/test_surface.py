"""What training reads of a backbone: all its tokens at any size, pooled features, a head of its own, names."""

from collections.abc import Callable
from contextlib import ExitStack
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from open_clip.model import resize_pos_embed
from timm.layers import HybridEmbed, PatchEmbed, resample_abs_pos_embed
from torch import Tensor, nn

from vitprobe.backbones import load
from vitprobe.backbones.base import Backbone, digest_module
from vitprobe.backbones.create import create
from vitprobe.errors import ArgumentError
from vitprobe.recorder import Recorder, Site

TIMM = (
    "timm-cls", "timm-no-cls", "timm-reg4", "timm-reg4-no-cls", "timm-fc-norm", "timm-map-pool", "timm-qk-norm",
    "timm-gated", "timm-layer-scale", "timm-swiglu", "timm-glu", "timm-pre-norm", "timm-dynamic", "timm-eva",
    "timm-eva-split", "timm-eva-glu", "timm-eva-pool", "timm-eva-mixed", "timm-eva-groups", "timm-eva-no-rope",
)  # fmt: skip
OPEN_CLIP = ("clip", "clip-average", "clip-layer-scale", "clip-custom-block", "clip-attention-pool")
TRUE = {
    "dinov2-reg-s14": (70, 98), "deit3-s16": (64, 96), "openclip-b32": (96, 128), "open_clip:ViT-B-32/openai": (96, 96),
    "timm:vit_base_patch16_siglip_224": (64, 96), "timm:vit_small_patch16_dinov3": (64, 96),
    "timm:eva02_tiny_patch14_224": (56, 84), "timm:vit_medium_patch16_rope_reg1_gap_256": (64, 96),
    "timm:vit_base_patch16_clip_224.openai": (64, 64), "timm:vit_pe_core_tiny_patch16_384": (64, 96),
    "timm:vit_pe_spatial_tiny_patch16_512": (64, 96), "timm:vit_small_patch16_rope_mixed_ape_224": (64, 96),
}  # fmt: skip
"""Sizes of their images."""
FEW = ("timm-cls", "timm-no-cls", "timm-reg4", "timm-map-pool", "timm-eva-split", "timm-eva-mixed", "clip")


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def own_tokens(module: nn.Module, images: Tensor) -> Tensor:
    """All tokens after the last block and the final norm, by the library's own calls."""
    if hasattr(module, "forward_features"):
        return module.forward_features(images)
    x = module.transformer(module._embeds(images))
    return x if module.attn_pool is not None or module.final_ln_after_pool else module.ln_post(x)


def own_pool(module: nn.Module, images: Tensor) -> Tensor:
    """What the head reads, by the library's own calls."""
    if hasattr(module, "forward_head"):
        return module.forward_head(module.forward_features(images), pre_logits=True)
    return module._pool(module.transformer(module._embeds(images)))[0]


@pytest.fixture(scope="module", params=[*TIMM, *OPEN_CLIP, *(pytest.param(n, marks=pytest.mark.slow) for n in TRUE)])
def any_model(request: pytest.FixtureRequest, make_tiny: Callable, stir: Callable) -> Backbone:
    """Every tiny backbone, and true architectures with random weights."""
    if request.param not in TRUE:
        return make_tiny(request.param)
    backbone = load(request.param, weights="random", image_size=TRUE[request.param])
    stir(backbone.module)
    return backbone


@pytest.mark.parametrize("mode", ["no_grad", "gradients", "bf16 autocast"])
def test_the_surface_is_the_librarys_own(any_model: Backbone, mode: str) -> None:
    """To the bit: tokens, pooled tokens, features, in the images' own size."""
    backbone, module = any_model, any_model.module
    images = noise(2, 3, *backbone.spec.image_size)
    with ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(mode != "no_grad"))
        if mode == "bf16 autocast":
            stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        tokens = backbone.tokens(images)
        assert torch.equal(tokens, own_tokens(module, images))
        assert tokens.shape == (len(images), backbone.layout().num_tokens, backbone.width)
        if getattr(module, "global_pool", "token") == "":
            with pytest.raises(ArgumentError, match="does not pool its tokens"):
                backbone.features(images)
            return
        pooled = backbone.pool(tokens, backbone.layout())
        assert torch.equal(pooled, own_pool(module, images))
        expected = backbone(images) if hasattr(module, "proj") else pooled  # of a CLIP tower, the embedding
        assert torch.equal(backbone.features(images), expected)


@torch.no_grad()
def resized(backbone: Backbone, size: tuple[int, int]) -> nn.Module:
    """A copy of the module at another size, its positions resized by the library when it loads or resizes a model."""
    module = deepcopy(backbone.module)
    if hasattr(module, "set_input_size"):
        module.set_input_size(size)
        return module
    grid = backbone.layout(size).grid
    state = {"visual.positional_embedding": module.positional_embedding.data}
    resize_pos_embed(state, SimpleNamespace(visual=SimpleNamespace(grid_size=grid)))
    module.positional_embedding = nn.Parameter(state["visual.positional_embedding"])
    return module


@pytest.mark.parametrize("size", [(24, 40), (64, 96)])
@pytest.mark.parametrize("name", TIMM + OPEN_CLIP)
def test_another_size_is_as_the_library_resizes(name: str, size: tuple[int, int], make_tiny: Callable) -> None:
    backbone = make_tiny(name, size=(48, 48))
    images = noise(2, 3, *size)
    with torch.no_grad():
        tokens = backbone.tokens(images)
        assert tokens.shape[1] == backbone.layout(size).num_tokens
        expected = own_tokens(resized(backbone, size), images)
        assert torch.allclose(tokens, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(backbone.pool(tokens, backbone.layout(size)), pool_of(backbone, tokens))
        assert backbone.features(images).shape[0] == 2
        assert backbone.tokens(noise(1, 3, 48, 48)).shape[1] == backbone.layout().num_tokens  # nothing was kept


def pool_of(backbone: Backbone, tokens: Tensor) -> Tensor:
    """The library's pooling of tokens that passed the final norm, where they pass one."""
    module = backbone.module
    if hasattr(module, "forward_head"):
        return module.forward_head(tokens, pre_logits=True)
    return module._pool(tokens)[0] if backbone.final_norm is None else module._global_pool(tokens)[0]


def test_the_sizes_would_show_a_table_that_stays(make_tiny: Callable) -> None:
    """A negative control of the test above: the first rows of the table in place of the resized one."""
    backbone = make_tiny("timm-no-cls", size=(48, 48))
    images, module = noise(1, 3, 24, 40), backbone.module
    expected = own_tokens(resized(backbone, (24, 40)), images)
    module.pos_embed = nn.Parameter(module.pos_embed.data.flip(1))
    assert not torch.allclose(backbone.tokens(images), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", FEW)
def test_gradients_reach_everything_before_the_head(name: str, make_tiny: Callable) -> None:
    """At another size, in training, and under autocast; masked patches alone teach the mask token."""
    backbone = make_tiny(name)
    backbone.module.train()
    token = nn.Parameter(noise(backbone.width, seed=2))
    masked = torch.zeros(2, 12, dtype=torch.bool)
    masked[:, ::3] = True
    with torch.autocast("cpu", torch.bfloat16):
        tokens = backbone.tokens(noise(2, 3, 24, 32), masked=masked, mask_token=token)
    (tokens.float() * noise(*tokens.shape, seed=3)).sum().backward()
    head = {*backbone.parameter_names("head"), *backbone.parameter_names("final_norm")}
    silent = [
        n for n, p in backbone.module.named_parameters() if n not in head and (p.grad is None or not p.grad.any())
    ]
    assert silent == []
    assert token.grad.abs().sum() > 0


def test_training_draws_as_the_library_does() -> None:
    """Dropout and stochastic depth at the same places in the same order."""
    rates = {"drop_path_rate": 0.4, "proj_drop_rate": 0.2, "pos_drop_rate": 0.2, "attn_drop_rate": 0.2}
    for name in ("scenes-tiny", "eva02_tiny_patch14_224"):
        size = (32, 32) if name == "scenes-tiny" else (56, 56)
        backbone = create(name, image_size=size, overrides={**rates, "depth": 3})
        backbone.module.train()
        images, got = noise(4, 3, *size), []
        for run in (backbone.tokens, backbone.module.forward_features, backbone.module.forward_features):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(len(got) == 2)
                got.append(run(images))
        assert torch.equal(got[0], got[1])
        assert not torch.equal(got[1], got[2])  # the rates do something


@pytest.mark.parametrize("name", FEW)
def test_masked_patches_are_one_token_with_its_positions(name: str, make_tiny: Callable) -> None:
    backbone, layout = make_tiny(name), make_tiny(name).layout()
    masked = torch.zeros(2, layout.num_patches, dtype=torch.bool)
    masked[0, 5] = masked[1, 7:20] = True
    token, images = noise(backbone.width, seed=2), noise(2, 3, *backbone.spec.image_size)

    def stream(images: Tensor, **kwargs: Tensor) -> Tensor:
        with Recorder(backbone, [Site("resid_pre", 0)]) as recorder, torch.no_grad():
            backbone.tokens(images, **kwargs)
            return next(iter(recorder.take().values()))

    plain = stream(images)
    got = stream(images, masked=masked, mask_token=token)
    where = torch.zeros(2, layout.num_tokens, dtype=torch.bool)
    where[:, layout.patches] = masked
    assert torch.equal(got[~where], plain[~where])
    assert torch.equal(
        got[where], stream(noise(2, 3, *backbone.spec.image_size, seed=9), masked=masked, mask_token=token)[where]
    )
    module = backbone.module
    table = getattr(module, "pos_embed", None) if hasattr(module, "pos_embed") else module.positional_embedding[None]
    positions = table[:, -layout.num_patches :].expand(2, -1, -1)[masked]
    expected = token + positions
    if hasattr(module, "ln_pre"):
        expected = nn.functional.layer_norm(expected, expected.shape[-1:], module.ln_pre.weight, module.ln_pre.bias)
    assert torch.allclose(got[where], expected, atol=1e-5)
    nothing = torch.zeros_like(masked)
    assert torch.equal(stream(images, masked=nothing, mask_token=token), plain)


def test_masks_that_do_not_fit_are_refused(make_tiny: Callable) -> None:
    for name in ("timm-cls", "timm-eva", "clip"):
        backbone = make_tiny(name)
        images, masked, token = noise(2, 3, 48, 64), torch.zeros(2, 48, dtype=torch.bool), torch.zeros(48)
        for wrong in (
            {"masked": masked}, {"mask_token": token}, {"masked": masked[:1], "mask_token": token},
            {"masked": masked[:, :9], "mask_token": token}, {"masked": masked.float(), "mask_token": token},
        ):  # fmt: skip
            with pytest.raises(ArgumentError, match=r"a mask takes masked, \(2, 48\) bool"):
                backbone.tokens(images, **wrong)


def test_what_cannot_be_embedded_or_pooled_is_refused(make_tiny: Callable) -> None:
    for name in ("timm-cls", "timm-dynamic", "timm-eva", "clip"):
        backbone = make_tiny(name)
        with pytest.raises(ArgumentError, match="an image width of 60 px; it must be a multiple"):
            backbone.tokens(noise(1, 3, 48, 60))
        with pytest.raises(ArgumentError, match="give their own layout"):
            backbone.pool(backbone.tokens(noise(1, 3, 24, 24)), backbone.layout())
    dropping = create("scenes-tiny", overrides={"patch_drop_rate": 0.5})
    assert dropping.tokens(noise(1, 3, 32, 32)).shape[1] == 65
    dropping.module.train()
    with pytest.raises(ArgumentError, match="drops patches while it trains"):
        dropping.tokens(noise(1, 3, 32, 32))
    odd = create("scenes-tiny")
    odd.module.patch_embed.__class__ = type("OddEmbed", (PatchEmbed,), {})
    with pytest.raises(ArgumentError, match="embeds patches by a OddEmbed: give 32 x 32 px, not 32 x 64 px"):
        odd.tokens(noise(1, 3, 32, 64))


@torch.no_grad()
def test_a_hybrid_reads_other_sizes(stir: Callable) -> None:
    """Its ResNet takes any; positions are resized as timm does when it loads weights into a model of that size."""
    hybrid = create("vit_tiny_r_s16_p8_224", image_size=(64, 64), overrides={"depth": 1})
    stir(hybrid.module, 2)
    assert type(hybrid.patch_embedding) is HybridEmbed
    assert torch.equal(hybrid.tokens(noise(1, 3, 64, 64)), hybrid.module.forward_features(noise(1, 3, 64, 64)))
    other = create("vit_tiny_r_s16_p8_224", image_size=(64, 128), overrides={"depth": 1})
    state, table = hybrid.module.state_dict(), hybrid.module.pos_embed
    table = resample_abs_pos_embed(table, new_size=[2, 4], old_size=[2, 2], num_prefix_tokens=1)
    other.module.load_state_dict(state | {"pos_embed": table})
    images = noise(2, 3, 64, 128)
    assert torch.allclose(hybrid.tokens(images), other.module.forward_features(images), atol=1e-5)
    assert hybrid.layout((64, 128)).grid == (2, 4) == other.layout().grid


@pytest.mark.parametrize("name", [*FEW, "clip-average", "clip-attention-pool", "timm-fc-norm"])
def test_a_new_head_reads_the_pooled_tokens(name: str, make_tiny: Callable) -> None:
    backbone, other = make_tiny(name), make_tiny(name)
    images, state = noise(2, 3, *backbone.spec.image_size), torch.get_rng_state()
    backbone.reset_head(7, seed=3)
    other.reset_head(7, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert backbone.spec.digest == digest_module(backbone.module) != other.spec.digest
    other.reset_head(7, seed=3)
    assert other.spec.digest == backbone.spec.digest
    head = backbone.module.head if hasattr(backbone.module, "head") else lambda x: x @ backbone.module.proj
    with torch.no_grad():
        pooled = backbone.pool(backbone.tokens(images), backbone.layout())
        assert backbone(images).shape == (2, 7)
        assert torch.equal(backbone(images), head(pooled))
        assert torch.equal(backbone.features(images), pooled)
        backbone.reset_head(0)
        assert torch.equal(backbone(images), pooled)
        assert torch.equal(backbone.features(images), pooled)
    for wrong in (-1, True, 2.0):
        with pytest.raises(ArgumentError, match="give a whole number, 0 for none"):
            backbone.reset_head(wrong)


def test_every_parameter_has_one_name(any_model: Backbone) -> None:
    """Kinds do not overlap, and only a norm between embedding and block 0 has no kind."""
    backbone = any_model
    blocks = [f"block:{index}" for index in range(backbone.num_blocks)]
    kinds = ["registers", "cls", "positions", "patch_embedding", *blocks, "final_norm", "head"]
    names = [name for kind in kinds for name in backbone.parameter_names(kind)]
    assert len(names) == len(set(names))
    left = {name for name, _ in backbone.module.named_parameters()} - set(names)
    assert {name.split(".")[0] for name in left} <= {"norm_pre", "ln_pre"}
    assert backbone.parameter_names("last_block") == backbone.parameter_names(blocks[-1]) != ()
    assert set(backbone.parameter_names("layer_scale")) <= set(names)
    assert (backbone.parameter_names("registers") != ()) == (backbone.spec.num_registers > 0)
    assert (backbone.parameter_names("cls") != ()) == (backbone.layout().cls is not None)


def test_names_of_kinds(make_tiny: Callable) -> None:
    scale = make_tiny("timm-layer-scale")
    assert scale.parameter_names("layer_scale") == tuple(f"blocks.{i}.ls{j}.gamma" for i in range(3) for j in (1, 2))
    assert scale.parameter_names("positions") == ("pos_embed",)
    assert make_tiny("timm-eva-split").parameter_names("layer_scale")[:2] == ("blocks.0.gamma_1", "blocks.0.gamma_2")
    assert make_tiny("timm-eva-mixed").parameter_names("positions") == ("pos_embed", "rope.freqs")
    assert make_tiny("timm-fc-norm").parameter_names("final_norm") == ("fc_norm.weight", "fc_norm.bias")
    assert make_tiny("clip-layer-scale").parameter_names("layer_scale")[0] == "transformer.resblocks.0.ls_1.gamma"
    assert make_tiny("clip").parameter_names("head") == ("proj",)
    assert "attn_pool.latent" in make_tiny("timm-map-pool").parameter_names("head")
    for wrong in ("block", "block:x", "block:2", "registers:1", "gamma", "last_block:1", "block:-1"):
        with pytest.raises(ArgumentError):
            make_tiny("timm-cls").parameter_names(wrong)
