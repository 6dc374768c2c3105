"""Vision towers of OpenCLIP, in open_clip's own ``VisionTransformer``."""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from vitprobe.backbones.base import Backbone, ModelSpec, Transform, absorbed_rows, check_image_size, digest_module
from vitprobe.backbones.open_clip_files import find_model
from vitprobe.backbones.open_clip_registers import (
    RegisterVisionTransformer,
    embed,
    put_registers,
    resize_positions,
    without_registers,
)
from vitprobe.backbones.timm_tower import check_num_tokens, num_registers
from vitprobe.backbones.weights import load_into, read_state_dict
from vitprobe.errors import ArgumentError
from vitprobe.tokens import TokenLayout

PREPROCESS = ("mean", "std", "interpolation", "resize_mode")
"""What a tag or a config may say of the evaluation transform."""


class OpenClipViT(Backbone):
    """Adapt open_clip's tower; tokens are CLS, registers where they were put in, patches.

    Depends on the names of weights (``in_proj_weight``, ``out_proj``), not on the class of the attention, which has
    changed between releases. Its fast path hides queries and keys, so rows are computed from what attention reads.
    """

    parameter_patterns: ClassVar[dict[str, str]] = {
        "registers": "reg_token",
        "cls": "class_embedding",
        "positions": "positional_embedding",
        "patch_embedding": r"conv1\..*",
        "final_norm": r"ln_post\..*",
        "head": r"proj|attn_pool.*",
        "layer_scale": r"transformer\.resblocks\.\d+\.ls_\d\.gamma",
        "block": r"transformer\.resblocks\.(\d+)\..*",
    }

    def __init__(self, module: nn.Module, spec: ModelSpec, transform: Transform) -> None:
        refuse_if_not_plain(module, spec.name)
        self.module, self.spec, self.transform = module, spec, transform
        blocks = module.transformer.resblocks
        self.num_blocks = len(blocks)
        self.num_heads = blocks[0].attn.num_heads
        self.width = blocks[0].attn.out_proj.weight.shape[0]
        self.patch_size = tuple(module.patch_size)
        pooled = module.attn_pool is not None or module.final_ln_after_pool
        self.final_norm = None if pooled else module.ln_post
        self.check_attention()

    def layout(self, image_size: tuple[int, int] | None = None) -> TokenLayout:
        height, width = check_image_size(image_size or self.spec.image_size, self.patch_size)
        grid = (height // self.patch_size[0], width // self.patch_size[1])
        return TokenLayout.prefix_first(has_cls=True, num_registers=num_registers(self.module), grid=grid)

    @property
    def patch_embedding(self) -> nn.Module:
        return self.module.conv1

    def patch_tokens(self, output: Tensor) -> Tensor:
        return output.flatten(2).transpose(1, 2)  # (B, D, rows, cols) -> (B, P, D)

    def patch_output(self, tokens: Tensor, like: Tensor) -> Tensor:
        return tokens.transpose(1, 2).reshape(like.shape)

    def block(self, index: int) -> nn.Module:
        return self.module.transformer.resblocks[self.check_block(index)]

    def attention(self, index: int) -> nn.Module:
        return self.block(index).attn

    def second_linear(self, index: int) -> nn.Module:
        return self.block(index).mlp.c_proj

    def query_key_modules(self, index: int) -> tuple[nn.Module, nn.Module] | None:
        return None

    def query_key_value(self, index: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attn = self.attention(index)
        qkv = nn.functional.linear(x, attn.in_proj_weight, attn.in_proj_bias)
        qkv = qkv.unflatten(-1, (3, attn.num_heads, -1))  # (B, T, 3, H, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, T, d) each
        return q, k, v

    def attention_rows(self, index: int, x: Tensor, queries: Any) -> Tensor:
        attn = self.attention(index)
        if len(queries) >= self.width // self.num_heads:  # absorbing the keys no longer pays
            return super().attention_rows(index, x, queries)
        return absorbed_rows(x, queries, weight=attn.in_proj_weight, bias=attn.in_proj_bias, num_heads=attn.num_heads)

    def project_heads(self, index: int, heads: Tensor, x: Tensor) -> Tensor:
        return self.attention(index).out_proj(heads.transpose(1, 2).flatten(2))

    def run_attention(self, index: int, x: Tensor) -> Tensor:
        attn = self.attention(index)
        return attn(x, x, x, need_weights=False)[0] if isinstance(attn, nn.MultiheadAttention) else attn(x)

    def __call__(self, images: Tensor) -> Tensor:
        output = self.module(images)
        return output[0] if isinstance(output, tuple) else output  # CoCa's towers return their tokens as well

    def tokens(self, images: Tensor, *, masked: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        check_image_size(tuple(images.shape[-2:]), self.patch_size)
        if self.module.training and getattr(self.module.patch_dropout, "prob", 0):
            raise ArgumentError(f"{self.spec.name} drops patches while it trains; build it without patch_dropout")
        x = self.module.transformer(embed(self.module, images, masked, mask_token))  # (B, T, D)
        return x if self.final_norm is None else self.final_norm(x)

    def pool(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        check_num_tokens(tokens, layout)
        if self.final_norm is None:
            return self.module._pool(tokens)[0]
        return self.module._global_pool(without_registers(self.module, tokens))[0]

    def features(self, images: Tensor) -> Tensor:
        pooled = self.pool(self.tokens(images), self.layout(tuple(images.shape[-2:])))
        return pooled @ self.module.proj if self.model_args.get("projects", self.module.proj is not None) else pooled

    def replace_head(self, num_classes: int, generator: torch.Generator) -> None:
        like, width = self.module.conv1.weight, self.module.ln_post.weight.shape[0]
        weight = width**-0.5 * torch.randn(width, num_classes, generator=generator)  # as open_clip draws it
        self.module.proj = nn.Parameter(weight.to(like)) if num_classes else None
        self.model_args = {**self.model_args, "projects": False}  # what is left is no embedding

    def add_registers(self, values: Tensor) -> None:
        put_registers(self.module, values)


def refuse_if_not_plain(module: nn.Module, name: str) -> None:
    """Raise `ArgumentError`, by name, for a tower that is not open_clip's own plain ViT."""
    if type(module) not in (VisionTransformer, RegisterVisionTransformer):
        raise ArgumentError(
            f"the tower of {name} is a {type(module).__name__}, not open_clip's own VisionTransformer; "
            "ViT-B-32, ViT-B-16, ViT-L-14, ViT-H-14 and their like are allowed, towers built by timm as timm:NAME"
        )
    if not all(hasattr(block.attn, "in_proj_weight") for block in module.transformer.resblocks):
        raise ArgumentError(f"the attention of {name} has no in_proj_weight; open_clip's plain towers are allowed")


def load_open_clip(
    spec: ModelSpec, *, tag: str | None, weights: str, image_size: tuple[int, int] | None, seed: int
) -> OpenClipViT:
    """Load the vision tower of an open_clip architecture at any image size; the text tower is never built.

    ``spec.architecture``: open_clip's name, ``hf-hub:ORG/NAME`` or ``local-dir:PATH``; those two hold one set of
    weights and take no tag. ``weights``: ``hub`` (the file behind ``tag``, or beside the config), ``random``, or a path
    to the whole model or to its visual tower. Positions are resized in 2-D (bicubic, antialiased, as open_clip does at
    creation), rows and columns apart.
    Raises `ArgumentError` for what is no plain ViT or a size off the patch grid, `WeightsError` for the weights.
    """
    found = find_model(spec, tag=tag, weights=weights)
    config, preprocess = found.config, found.preprocess
    vision = {"image_size": 224, "patch_size": 16} | config["vision_cfg"]  # what open_clip takes where nothing is said
    native = _pair(vision["image_size"])
    patch = _pair(vision["patch_size"])
    size = check_image_size(image_size or native, patch)
    try:
        module = _tower(config, vision | {"image_size": size}, quick_gelu=found.quick_gelu, seed=seed)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        detail = " ".join(str(error).split())[:200]
        raise ArgumentError(
            f"open_clip cannot build the tower of {spec.name} ({detail}); is its config whole?"
        ) from error
    made = f"random (seed {seed})"
    if found.weights is not None:
        state = visual_state(read_state_dict(found.weights))
        resize_positions(state, module.grid_size, native=(native[0] // patch[0], native[1] // patch[1]))
        load_into(module, state, file=found.weights.name, model=spec.name)
        made = found.tag or found.weights.name
    spec = replace(spec, image_size=size, weights=made, digest=digest_module(module))
    backbone = OpenClipViT(module.eval(), spec, open_clip_transform(preprocess, size))
    backbone.model_args = {"preprocess": {key: preprocess[key] for key in PREPROCESS if key in preprocess}}
    return backbone


def _tower(config: dict[str, Any], vision: dict[str, Any], *, quick_gelu: bool, seed: int) -> nn.Module:
    from open_clip.model import _build_vision_tower

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _build_vision_tower(config["embed_dim"], vision, quick_gelu=quick_gelu)


def visual_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the visual tower's tensors out of a whole model's state dict; a tower's own passes as it is."""
    inside = {name.removeprefix("visual."): t for name, t in state.items() if name.startswith("visual.")}
    return inside or state


def open_clip_transform(preprocess: dict[str, Any], size: tuple[int, int]) -> Transform:
    """Build open_clip's evaluation transform with the mean, spread and interpolation of the pretrained tag."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    config = PreprocessCfg(size=size, **{key: preprocess[key] for key in PREPROCESS if key in preprocess})
    return Transform(image_transform_v2(config, is_train=False), tuple(config.mean), tuple(config.std))


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
