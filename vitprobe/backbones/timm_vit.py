"""Plain vision transformers of timm: DeiT-III, DINOv2, AugReg, MAE, DINO, CLIP and SigLIP towers, ..."""

import difflib
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitprobe.backbones.base import Backbone, ModelSpec, Transform, check_image_size, digest_module
from vitprobe.backbones.weights import hub_file, read_state_dict, weights_in
from vitprobe.errors import ArgumentError, WeightsError
from vitprobe.tokens import TokenLayout


class TimmViT(Backbone):
    """Adapt timm's ``VisionTransformer`` of plain ``Block`` and ``Attention``; tokens are CLS, registers, patches."""

    def __init__(self, module: nn.Module, spec: ModelSpec, transform: Transform) -> None:
        refuse_if_not_plain(module, spec.name)
        self.module, self.spec, self.transform = module, spec, transform
        self.num_blocks = len(module.blocks)
        self.num_heads = module.blocks[0].attn.num_heads
        self.width = module.embed_dim
        rows, cols = module.patch_embed.grid_size
        self.patch_size = (spec.image_size[0] // rows, spec.image_size[1] // cols)
        self.final_norm = None if isinstance(module.norm, nn.Identity) else module.norm
        self.check_attention()

    def layout(self, image_size: tuple[int, int] | None = None) -> TokenLayout:
        height, width = check_image_size(image_size or self.spec.image_size, self.patch_size)
        return TokenLayout.prefix_first(
            has_cls=self.module.has_class_token,
            num_registers=self.module.num_reg_tokens,
            grid=(height // self.patch_size[0], width // self.patch_size[1]),
        )

    @property
    def patch_embedding(self) -> nn.Module:
        return self.module.patch_embed

    def patch_tokens(self, output: Tensor) -> Tensor:
        return output.flatten(1, -2)

    def patch_output(self, tokens: Tensor, like: Tensor) -> Tensor:
        return tokens.reshape(like.shape)

    def block(self, index: int) -> nn.Module:
        return self.module.blocks[self.check_block(index)]

    def attention(self, index: int) -> nn.Module:
        return self.block(index).attn

    def second_linear(self, index: int) -> nn.Module:
        return self.block(index).mlp.fc2

    def query_key_modules(self, index: int) -> tuple[nn.Module, nn.Module] | None:
        return self.attention(index).q_norm, self.attention(index).k_norm

    def query_key_value(self, index: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attn = self.attention(index)
        qkv = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1))  # (B, T, 3, H, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, T, d) each
        return attn.q_norm.forward(q), attn.k_norm.forward(k), v  # no calls: hooks on them await the model's own

    def project_heads(self, index: int, heads: Tensor, x: Tensor) -> Tensor:
        attn = self.attention(index)
        out = heads.transpose(1, 2).flatten(2)  # (B, T, H*d)
        norm, gate = getattr(attn, "norm", None), getattr(attn, "gate", None)  # both are newer than timm 1.0.20
        out = out if norm is None else norm(out)
        out = out if gate is None else out * gate(x).sigmoid()
        return attn.proj(out)


def refuse_if_not_plain(module: nn.Module, name: str) -> None:
    """Raise `ArgumentError`, by name, for a timm model whose tokens or blocks this adapter cannot state."""
    from timm.layers import Attention
    from timm.models.vision_transformer import Block, VisionTransformer

    allowed = "allowed are timm's plain ViTs (VisionTransformer of Block and Attention), open_clip's, and the aliases"
    if getattr(module, "dist_token", None) is not None:
        raise ArgumentError(
            f"{name} has a distillation token, which is neither CLS nor register, and is refused; {allowed}; "
            "take the model without distillation"
        )
    if type(module) is not VisionTransformer:
        raise ArgumentError(f"{name} is a {type(module).__name__}, no plain ViT; {allowed}")
    for block in module.blocks:
        if type(block) is not Block:
            raise ArgumentError(f"{name} is built of {type(block).__name__}, no plain Block; {allowed}")
        if type(block.attn) is not Attention or not hasattr(block.mlp, "fc2"):
            parts = f"{type(block.attn).__name__} and {type(block.mlp).__name__}"
            raise ArgumentError(f"{name} has blocks of {parts}, not of Attention and an MLP with fc2; {allowed}")
    if module.num_prefix_tokens != int(module.has_class_token) + module.num_reg_tokens:
        raise ArgumentError(f"{name} has prefix tokens that are neither CLS nor registers; {allowed}")


def load_timm(spec: ModelSpec, *, weights: str, image_size: tuple[int, int] | None, seed: int) -> TimmViT:
    """Load a timm ViT by ``spec.architecture`` (with its tag, if any) at any image size.

    ``weights``: ``hub``, ``random`` or a path. Positions are resized in 2-D by timm itself (bicubic, antialiased).
    Raises `ArgumentError` for what is no plain ViT or a size off the patch grid, `WeightsError` for the weights.
    """
    cfg, patch, default_size = _look(spec)
    size = check_image_size(image_size or default_size, patch)
    module = _build(spec, cfg, weights=weights, size=size, seed=seed).eval()
    made = {"hub": cfg.tag or "pretrained", "random": f"random (seed {seed})"}.get(weights, Path(weights).name)
    spec = replace(
        spec, image_size=size, num_registers=module.num_reg_tokens, weights=made, digest=digest_module(module)
    )
    return TimmViT(module, spec, timm_transform(module, size))


def _look(spec: ModelSpec) -> tuple[Any, tuple[int, int], tuple[int, int]]:
    """Build the model without memory: refuse it early, and learn its config, patch and default size in pixels."""
    import timm
    from timm.models import is_model

    known = spec.architecture.startswith("local-dir:") or is_model(spec.architecture.split(".")[0])
    if not known:
        names = timm.list_models(["vit_*", "deit3_*"], exclude_filters=["vit_*rope*", "vit_*relpos*"])
        near = difflib.get_close_matches(spec.architecture.split(".")[0], names, n=3)
        near = near or ["vit_base_patch16_224", "deit3_small_patch16_224"]
        raise ArgumentError(f"timm has no model {spec.architecture}; near it: {', '.join(near)}")
    try:
        with torch.device("meta"):
            module = timm.create_model(spec.architecture, pretrained=False)
    except (RuntimeError, NotImplementedError, TypeError):  # an architecture that cannot be built on meta
        module = _create_anyway(spec)
    refuse_if_not_plain(module, spec.name)
    size = module.patch_embed.img_size
    rows, cols = module.patch_embed.grid_size
    from timm.models import PretrainedCfg

    cfg = PretrainedCfg(**{k: v for k, v in module.pretrained_cfg.items() if k in PretrainedCfg.__annotations__})
    return cfg, (size[0] // rows, size[1] // cols), (size[0], size[1])


def _create_anyway(spec: ModelSpec) -> nn.Module:
    """Build the model in memory. Raises `ArgumentError` where timm cannot: an unknown tag or argument."""
    import timm

    try:
        with torch.random.fork_rng(devices=[]):
            return timm.create_model(spec.architecture, pretrained=False)
    except (RuntimeError, TypeError) as error:
        base, _, tag = spec.architecture.partition(".")
        tags = timm.list_pretrained(f"{base}.*") if tag and not base.startswith("local-dir:") else []
        near = f"; its tags: {', '.join(name.partition('.')[2] for name in tags)}" if tags else ""
        raise ArgumentError(f"timm cannot build {spec.name} ({' '.join(str(error).split())[:200]}){near}") from error


def _build(spec: ModelSpec, cfg: Any, *, weights: str, size: tuple[int, int], seed: int) -> nn.Module:
    import timm

    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return timm.create_model(spec.architecture, pretrained=False, img_size=size)
    if weights != "hub":
        file = Path(weights)
    elif spec.architecture.startswith("local-dir:"):
        file = weights_in(Path(spec.architecture.removeprefix("local-dir:")))
    elif cfg.hf_hub_id:
        names = [cfg.hf_hub_filename] if cfg.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
        file = hub_file(cfg.hf_hub_id, names, model=spec.name)
    elif cfg.url:
        return _create(spec, f"timm's weights of {spec.name}", img_size=size)
    else:
        raise WeightsError(f"timm has no pretrained weights for {spec.name}; give --weights FILE or --weights random")
    state = read_state_dict(file)
    module = _create(spec, file.name, img_size=size, pretrained_cfg_overlay={"state_dict": state})
    stored, own = (tensors.get("patch_embed.proj.weight") for tensors in (state, module.state_dict()))
    resized = stored is not None and stored.ndim == 4 and stored.shape != own.shape  # by timm, without a word
    if resized and weights != "hub":
        got, need = (" x ".join(map(str, w.shape[-2:])) for w in (stored, own))
        raise WeightsError(f"{file.name} has patches of {got} px, {spec.name} of {need}; is it another model's file?")
    return module


def _create(spec: ModelSpec, file: str, **kwargs: Any) -> nn.Module:
    """Let timm build and load a model, its own key filter and position resize included; every key must fit."""
    import timm

    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore", UserWarning)
            return timm.create_model(spec.architecture, pretrained=True, **kwargs)
    except (RuntimeError, KeyError, AttributeError, ValueError, AssertionError, OSError) as error:
        detail = " ".join(str(error).split())[:240] or type(error).__name__
        raise WeightsError(f"{file} does not fit {spec.name} ({detail}); is it the file of another model?") from error


def timm_transform(module: nn.Module, size: tuple[int, int]) -> Transform:
    """Build the model's own evaluation transform (resize, crop, normalisation of its pretrained config) at ``size``."""
    from timm.data import create_transform, resolve_model_data_config

    config = resolve_model_data_config(module) | {"input_size": (3, *size)}
    return Transform(create_transform(**config, is_training=False), tuple(config["mean"]), tuple(config["std"]))
