"""Registers put into every family: none of them changes nothing, and some of them act through attention alone."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from open_clip.model import CLIP
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from vitprobe.backbones import load
from vitprobe.backbones.base import Backbone, ModelSpec, Transform, digest_module
from vitprobe.backbones.open_clip_vit import OpenClipViT
from vitprobe.errors import ArgumentError
from vitprobe.recorder import Recorder, Site
from vitprobe.registers.insert import insert

TINY = (
    "timm-cls", "timm-no-cls", "timm-fc-norm", "timm-map-pool", "timm-qk-norm", "timm-gated", "timm-layer-scale",
    "timm-swiglu", "timm-pre-norm", "timm-dynamic", "timm-eva-split", "timm-eva-glu", "timm-eva-pool",
    "timm-eva-mixed", "timm-eva-groups", "timm-eva-gated", "clip", "clip-quickgelu", "clip-odd-heads", "clip-average",
    "clip-layer-scale", "clip-custom-block", "clip-attention-pool",
)  # fmt: skip
TRUE = {
    "deit3-s16": (64, 96), "dinov2-s14": (70, 98), "openclip-b32": (96, 128), "timm:eva02_tiny_patch14_224": (56, 84),
    "timm:vit_base_patch16_clip_224.openai": (64, 96), "timm:vit_base_patch16_siglip_224": (64, 96),
    "timm:vit_small_patch16_rope_mixed_ape_224": (64, 96), "timm:vit_pe_core_tiny_patch16_384": (64, 96),
}  # fmt: skip
"""True architectures without registers, and the size of their images."""
READS_ALL = ("timm-eva-pool", "timm:vit_pe_core_tiny_patch16_384")
"""timm's Eva pools these by attention to all tokens, prefix tokens included."""


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[*TINY, *(pytest.param(name, marks=pytest.mark.slow) for name in TRUE)])
def plain(request: pytest.FixtureRequest, make_tiny: Callable, stir: Callable) -> Backbone:
    """Every family without registers, fresh."""
    if request.param not in TRUE:
        return make_tiny(request.param)
    backbone = load(request.param, weights="random", image_size=TRUE[request.param])
    stir(backbone.module)
    return backbone


def images_of(backbone: Backbone) -> Tensor:
    return noise(2, 3, *backbone.spec.image_size)


def record(backbone: Backbone, images: Tensor, *sites: Site) -> list[Tensor]:
    with Recorder(backbone, sites) as recorder, torch.no_grad():
        backbone.tokens(images)
        got = recorder.take()
    return [got[site] for site in sites]


@torch.no_grad()
def test_none_change_nothing(plain: Backbone) -> None:
    images, sites = images_of(plain), Site("resid_post").at(range(plain.num_blocks))
    before = [plain(images), plain.tokens(images), plain.features(images), *record(plain, images, *sites)]
    names = {name: tuple(p.shape) for name, p in plain.module.named_parameters()}
    after = insert(plain, 0)
    assert after is not plain and type(after) is type(plain)
    assert after.spec == replace(plain.spec, digest=digest_module(plain.module))
    for old, new in zip(
        before,
        [after(images), after.tokens(images), after.features(images), *record(after, images, *sites)],
        strict=True,
    ):
        assert (old - new).abs().max() == 0.0
    assert {name: tuple(p.shape) for name, p in after.module.named_parameters()} == names


@torch.no_grad()
def test_cls_and_patches_enter_block_0_as_they_did(plain: Backbone) -> None:
    """To the bit; and nothing is new but the registers, nothing lost, nothing of another shape but the positions."""
    images, old = images_of(plain), plain.layout()
    (before,) = record(plain, images, Site("resid_pre", 0))
    state = {name: p.clone() for name, p in plain.module.named_parameters()}
    after = insert(plain, 3)
    layout, own = after.layout(), dict(after.module.named_parameters())
    assert (layout.num_registers, after.spec.num_registers, layout.num_tokens) == (3, 3, old.num_tokens + 3)
    (stream,) = record(after, images, Site("resid_pre", 0))
    assert torch.equal(stream[:, layout.patches], before[:, old.patches])
    if old.cls is not None:
        assert torch.equal(stream[:, layout.cls], before[:, old.cls])
    assert set(own) - set(state) == {"reg_token"} == set(after.parameter_names("registers"))
    assert set(state) <= set(own)
    other = {name for name, p in state.items() if p.shape != own[name].shape}
    assert other <= {"pos_embed"}
    changed = {name for name, p in state.items() if name not in other and not torch.equal(p, own[name])}
    assert changed <= ({"cls_token"} if "pos_embed" in other else set())
    assert after.spec.digest == digest_module(after.module)


@torch.no_grad()
def test_registers_act_through_attention_alone(plain: Backbone) -> None:
    """With no attention to them, CLS and patches are what they were; so rotary positions still turn patches alone."""
    images, old = images_of(plain), plain.layout()
    before = plain.tokens(images)
    after = insert(plain, 3)
    module, layout = after.module, after.layout()
    hidden = torch.ones(layout.num_tokens, dtype=torch.bool)
    hidden[list(layout.positions("registers"))] = False
    mask = torch.zeros(layout.num_tokens, layout.num_tokens).masked_fill(~hidden, -torch.inf)  # (T, T)
    if isinstance(after, OpenClipViT):
        tokens = module.transformer(module._embeds(images), attn_mask=mask)
        tokens = tokens if after.final_norm is None else after.final_norm(tokens)
    else:
        tokens = module.forward_features(images, attn_mask=mask[None, None])
    kept = [*layout.positions("cls"), *layout.positions("patches")]
    assert (tokens[:, kept] - before).abs().max() < 2e-5 * before.abs().max()
    assert len(kept) == old.num_tokens
    assert (after.tokens(images)[:, kept] - before).abs().max() > 1e-3 * before.abs().max()  # seen, they do act


def test_gradients_reach_the_registers(plain: Backbone) -> None:
    after = insert(plain, 2)
    after.tokens(images_of(after))[:, after.layout().patches].square().sum().backward()
    token = after.module.reg_token
    assert token.shape == (1, 2, after.width)
    assert (token.grad.abs().sum(dim=-1) > 0).all()


@pytest.mark.parametrize("factor", [(1, 1), (1, 2), (2, 1)])
def test_tokens_stand_where_the_layout_says(plain: Backbone, factor: tuple[int, int]) -> None:
    """Another pixel or register moves its own token alone, in other sizes too."""
    after = insert(plain, 3)
    height, width = after.patch_size
    size = (3 * height * factor[0], 3 * width * factor[1]) if factor != (1, 1) else after.spec.image_size
    layout, images = after.layout(size), noise(1, 3, *size)
    (before,) = record(after, images, Site("resid_pre", 0))

    def moved(images: Tensor) -> list[int]:
        (stream,) = record(after, images, Site("resid_pre", 0))
        return (stream != before).any(dim=-1)[0].nonzero().flatten().tolist()

    assert before.shape[1] == layout.num_tokens
    row, col = layout.grid[0] - 1, 1
    other = images.clone()
    other[:, :, row * height, col * width : (col + 1) * width] += 1
    assert moved(other) == [layout.patch_position(row, col)]
    after.module.reg_token.data[:, 1] += 1 + noise(after.width)
    assert moved(images) == [layout.positions("registers")[1]]


@torch.no_grad()
def test_registers_are_never_pooled_as_patches(plain: Backbone) -> None:
    """Other registers after the last block leave pooled features as they are, CLS or patches would not."""
    after = insert(plain, 3)
    tokens, layout = after.tokens(images_of(after)), after.layout()
    pooled = after.pool(tokens, layout)
    other, patches = tokens.clone(), tokens.clone()
    other[:, layout.registers] += 5 * noise(3, after.width)
    patches[:, list(layout.positions("cls")) or list(layout.positions("patches"))] += 5 * noise(1, after.width)
    patches[:, layout.patches] += noise(layout.num_patches, after.width)
    assert torch.equal(after.pool(other, layout), pooled) != (plain.spec.name in READS_ALL)
    assert not torch.equal(after.pool(patches, layout), pooled)


def test_the_draw_is_its_own(make_tiny: Callable) -> None:
    state = torch.get_rng_state()
    one, same, other, wide = (
        insert(make_tiny("timm-cls"), 64, seed=seed, std=std).module.reg_token.data
        for seed, std in ((1, 0.02), (1, 0.02), (2, 0.02), (1, 0.5))
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert one.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.allclose(wide, 25 * one)


def test_the_mode_and_the_arguments_stay(make_tiny: Callable) -> None:
    for name in ("timm-eva-split", "clip"):
        backbone = make_tiny(name)
        backbone.model_args = {"depth": 2}
        backbone.module.train()
        after = insert(backbone, 1)
        assert after.module.training and after.module is backbone.module
        assert after.model_args == {"depth": 2}
        assert after.module.reg_token.requires_grad
    assert deepcopy(after).module.reg_token.shape == (1, 1, 48)


def test_what_cannot_be_done_is_refused_in_one_line(make_tiny: Callable) -> None:
    class Placeless(OpenClipViT):
        add_registers = Backbone.add_registers

    tiny = make_tiny("clip")
    placeless = Placeless(tiny.module, tiny.spec, tiny.transform)
    for backbone, number, kwargs, match in (
        (make_tiny("timm-cls"), -1, {}, "got -1 registers; give a whole number, 0 for none"),
        (make_tiny("timm-cls"), 2.0, {}, "got 2.0 registers"),
        (make_tiny("timm-cls"), True, {}, "got True registers"),
        (make_tiny("timm-cls"), 2, {"std": -0.1}, "spread -0.1"),
        (make_tiny("timm-cls"), 2, {"std": float("nan")}, "spread nan"),
        (make_tiny("timm-reg4"), 2, {}, "timm-reg4 already has 4 registers"),
        (make_tiny("timm-eva"), 1, {}, "timm-eva already has 4 registers"),
        (insert(make_tiny("clip"), 1), 1, {}, "clip already has 1 registers"),
        (placeless, 1, {}, "clip has no place for registers"),
    ):
        before = digest_module(backbone.module)
        with pytest.raises(ArgumentError, match=match) as caught:
            insert(backbone, number, **kwargs)
        assert "\n" not in str(caught.value)
        assert digest_module(backbone.module) == before
    assert insert(make_tiny("timm-reg4"), 0).spec.num_registers == 4


def whole_clip() -> CLIP:
    vision = {"image_size": (48, 64), "patch_size": 8, "width": 48, "head_width": 12, "layers": 2}
    text = {"context_length": 8, "vocab_size": 100, "width": 16, "heads": 2, "layers": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CLIP(16, vision, text).eval()


@torch.no_grad()
def test_inside_a_whole_clip() -> None:
    """The text tower is not touched, and what open_clip hands out are patches alone."""
    model = whole_clip()
    captions, images = torch.arange(1, 9).view(1, 8), noise(2, 3, 48, 64)
    before = model.encode_text(captions)
    text = {name: p.clone() for name, p in model.named_parameters() if not name.startswith("visual.")}
    transform = Transform(lambda image: image, (0.0,) * 3, (1.0,) * 3)
    backbone = OpenClipViT(model.visual, ModelSpec("clip", "open_clip", "tiny", "", "", (48, 64), 0), transform)
    pooled, patches = outputs(model.visual, images)
    after = insert(backbone, 4)
    assert after.module is model.visual and isinstance(model.visual, VisionTransformer)
    assert torch.equal(model.encode_text(captions), before)
    assert all(torch.equal(p, dict(model.named_parameters())[name]) for name, p in text.items())
    assert torch.equal(model.encode_image(images), after(images)) and not torch.equal(after(images), pooled)
    assert outputs(model.visual, images)[1].shape == patches.shape
    assert torch.equal(outputs(model.visual, images)[1], after.tokens(images)[:, after.layout().patches])
    assert "reg_token" in model.visual.no_weight_decay()


def outputs(visual: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """What a tower hands out that is asked for its tokens: (pooled, patches)."""
    visual.output_tokens = True
    got = visual(images)
    visual.output_tokens = False
    return got


@torch.no_grad()
def test_intermediates_of_open_clip(make_tiny: Callable) -> None:
    after = insert(make_tiny("clip"), 3)
    images, layout = images_of(after), after.layout()
    (stream,) = record(after, images, Site("resid_post", 1))
    out = after.module.forward_intermediates(images, indices=[1])
    assert set(out) == {"image_intermediates", "image_features"}
    assert torch.equal(out["image_intermediates"][0], layout.to_grid(stream).permute(0, 3, 1, 2))
    assert torch.equal(out["image_features"], after(images))
    out = after.module.forward_intermediates(
        images, output_fmt="NLC", output_extra_tokens=True, intermediates_only=True
    )
    assert set(out) == {"image_intermediates", "image_intermediates_prefix"}
    pair = (out["image_intermediates_prefix"][1], out["image_intermediates"][1])
    assert torch.equal(torch.cat(pair, dim=1), stream)


@pytest.mark.slow
@torch.no_grad()
def test_official_positions_stay(stir: Callable) -> None:
    """DINOv2 off its own size, with the hub's positions: folded as they are."""
    official, own = (
        load("dinov2-s14", weights="random", image_size=(70, 98), pos_embed=p) for p in ("official", "timm")
    )
    images = images_of(official)
    (before,), (timms,) = (record(b, images, Site("resid_pre", 0)) for b in (official, own))
    after, layout = insert(official, 4), official.layout()
    (stream,) = record(after, images, Site("resid_pre", 0))
    kept = [*layout.positions("cls"), *layout.positions("patches")]
    assert after.spec.pos_embed == "official"
    assert torch.equal(stream[:, kept], before)
    assert not torch.equal(stream[:, kept], timms)
