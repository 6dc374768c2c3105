"""Plain vision transformers of timm: DeiT-III, DINOv2, AugReg, MAE, DINO, CLIP and SigLIP towers, ...; and loading."""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from vitprobe.backbones.base import Backbone, ModelSpec, check_image_size, digest_module
from vitprobe.backbones.positions import check_official, set_official
from vitprobe.backbones.timm_build import (
    build_blank,
    build_drawn,
    build_pretrained,
    made_by,
    source_of,
    stored_args,
    timm_transform,
)
from vitprobe.backbones.timm_eva import TimmEva, refuse_if_not_plain_eva
from vitprobe.backbones.timm_tower import ALLOWED, TimmTower, num_registers
from vitprobe.errors import ArgumentError, WeightsError


class TimmViT(TimmTower):
    """Adapt timm's ``VisionTransformer`` of plain ``Block`` and ``Attention``."""

    @staticmethod
    def refuse(module: nn.Module, name: str) -> None:
        refuse_if_not_plain(module, name)

    def query_key_modules(self, index: int) -> tuple[nn.Module, nn.Module] | None:
        return self.attention(index).q_norm, self.attention(index).k_norm

    def query_key_value(self, index: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attn = self.attention(index)
        qkv = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1))  # (B, T, 3, H, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, T, d) each
        return attn.q_norm.forward(q), attn.k_norm.forward(k), v  # no calls: hooks on them await the model's own


def refuse_if_not_plain(module: nn.Module, name: str) -> None:
    """Raise `ArgumentError`, by name, for a timm model whose tokens or blocks this adapter cannot state."""
    from timm.layers import Attention
    from timm.models.vision_transformer import Block, VisionTransformer

    if getattr(module, "dist_token", None) is not None:
        raise ArgumentError(
            f"{name} has a distillation token, which is neither CLS nor register, and is refused; {ALLOWED}; "
            "take the model without distillation"
        )
    if type(module) is not VisionTransformer:
        raise ArgumentError(f"{name} is a {type(module).__name__}, no plain ViT; {ALLOWED}")
    for block in module.blocks:
        if type(block) is not Block:
            raise ArgumentError(f"{name} is built of {type(block).__name__}, no plain Block; {ALLOWED}")
        if type(block.attn) is not Attention or not hasattr(block.mlp, "fc2"):
            parts = f"{type(block.attn).__name__} and {type(block.mlp).__name__}"
            raise ArgumentError(f"{name} has blocks of {parts}, not of Attention and an MLP with fc2; {ALLOWED}")
    if module.num_prefix_tokens != int(module.has_class_token) + module.num_reg_tokens:
        raise ArgumentError(f"{name} has prefix tokens that are neither CLS nor registers; {ALLOWED}")


def adapter_for(module: nn.Module, name: str) -> type[TimmViT] | type[TimmEva]:
    """Choose the adapter by the class of the model. Raises `ArgumentError`, by name, for what neither can state."""
    from timm.models.eva import Eva

    if type(module) is Eva:
        refuse_if_not_plain_eva(module, name)
        return TimmEva
    refuse_if_not_plain(module, name)
    return TimmViT


VITS, SOME = ("vit_*", "deit3_*", "eva02_*"), ("vit_base_patch16_224", "deit3_small_patch16_224")
"""What a wrong name is compared with, and what is named where nothing is near it."""


def load_timm(spec: ModelSpec, *, weights: str, image_size: tuple[int, int] | None, seed: int) -> Backbone:
    """Load a timm ViT by ``spec.architecture`` (name and tag, ``hf-hub:`` or ``local-dir:``) at any image size.

    ``weights``: ``hub``, ``random`` or a path. Positions are resized in 2-D by timm itself (bicubic, antialiased), or
    as ``spec.pos_embed`` asks. Raises `ArgumentError` for what is no plain ViT, a size off the patch grid or positions
    that the model does not have, `WeightsError` for the weights.
    """
    source = source_of(spec)
    seen = look(spec, source)
    cfg, native, grid = seen.pretrained_cfg, seen.patch_embed.img_size, seen.patch_embed.grid_size
    size = check_image_size(image_size or tuple(native), (native[0] // grid[0], native[1] // grid[1]))
    if spec.pos_embed == "official":
        check_official(spec.name, cfg.get("architecture", ""), num_registers=num_registers(seen))
    if weights == "random":
        module = _random(spec, source, size=size, seed=seed).eval()
    else:
        module = _pretrained(spec, source, cfg, weights=weights, size=size).eval()
    registers, digest = num_registers(module), digest_module(module)
    made = made_by(cfg, weights=weights, seed=seed)
    spec = replace(spec, image_size=size, num_registers=registers, weights=made, digest=digest)
    backbone = adapter_for(module, spec.name)(module, spec, timm_transform(module, size))
    backbone.model_args = stored_args(spec, source)  # what a variant's architecture is beside its name
    return backbone


def look(spec: ModelSpec, source: str) -> nn.Module:
    """Build the model without memory: refuse it early, and learn its config, patch and default size in pixels."""
    module = build_blank(spec, source, patterns=VITS, by_default=SOME)
    adapter_for(module, spec.name)
    return module


def _random(spec: ModelSpec, source: str, *, size: tuple[int, int], seed: int) -> nn.Module:
    module = build_drawn(source, seed=seed, img_size=size)
    if spec.pos_embed == "official":  # of the table that this seed gives at the model's own size
        set_official(module, build_drawn(source, seed=seed).state_dict(), file="the random table")
    return module


def _pretrained(spec: ModelSpec, source: str, cfg: dict[str, Any], *, weights: str, size: tuple[int, int]) -> nn.Module:
    module, state, file = build_pretrained(spec, source, cfg, weights=weights, img_size=size)
    if state is None:
        return module
    stored, own = (tensors.get("patch_embed.proj.weight") for tensors in (state, module.state_dict()))
    resized = stored is not None and stored.ndim == 4 and stored.shape != own.shape  # by timm, without a word
    if resized and weights != "hub":
        got, need = (" x ".join(map(str, w.shape[-2:])) for w in (stored, own))
        raise WeightsError(f"{file} has patches of {got} px, {spec.name} of {need}; is it another model's file?")
    if spec.pos_embed == "official":
        set_official(module, state, file=file)
    return module
