"""Plain vision transformers of timm: DeiT-III, DINOv2, AugReg, MAE, DINO, CLIP and SigLIP towers, ...; and loading."""

import difflib
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitprobe.backbones.base import Backbone, ModelSpec, Transform, check_image_size, digest_module
from vitprobe.backbones.positions import check_official, set_official
from vitprobe.backbones.timm_eva import TimmEva, refuse_if_not_plain_eva
from vitprobe.backbones.timm_tower import ALLOWED, TimmTower, num_registers
from vitprobe.backbones.weights import hub_file, read_state_dict, weights_in
from vitprobe.backbones.zoo import HUB, LOCAL, hub_repo, read_config
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


def load_timm(spec: ModelSpec, *, weights: str, image_size: tuple[int, int] | None, seed: int) -> Backbone:
    """Load a timm ViT by ``spec.architecture`` (name and tag, ``hf-hub:`` or ``local-dir:``) at any image size.

    ``weights``: ``hub``, ``random`` or a path. Positions are resized in 2-D by timm itself (bicubic, antialiased), or
    as ``spec.pos_embed`` asks. Raises `ArgumentError` for what is no plain ViT, a size off the patch grid or positions
    that the model does not have, `WeightsError` for the weights.
    """
    source = _source(spec)
    seen = look(spec, source)
    cfg, native, grid = seen.pretrained_cfg, seen.patch_embed.img_size, seen.patch_embed.grid_size
    size = check_image_size(image_size or tuple(native), (native[0] // grid[0], native[1] // grid[1]))
    if spec.pos_embed == "official":
        check_official(spec.name, cfg.get("architecture", ""), num_registers=num_registers(seen))
    if weights == "random":
        module = _random(spec, source, size=size, seed=seed).eval()
    else:
        module = _pretrained(spec, source, cfg, weights=weights, size=size).eval()
    made = {"hub": cfg.get("tag") or "pretrained", "random": f"random (seed {seed})"}.get(weights, Path(weights).name)
    registers, digest = num_registers(module), digest_module(module)
    spec = replace(spec, image_size=size, num_registers=registers, weights=made, digest=digest)
    backbone = adapter_for(module, spec.name)(module, spec, timm_transform(module, size))
    if source.startswith(LOCAL):  # what a variant's architecture is beside its name
        config = read_config(Path(source.removeprefix(LOCAL)) / "config.json", label=spec.name, kind="architecture")
        backbone.model_args = dict(config.get("model_args") or {})
    return backbone


def _source(spec: ModelSpec) -> str:
    """Return what timm's factory takes; a config on the hub is fetched, or found in the cache, and its folder taken."""
    if spec.architecture.startswith(HUB):
        repo = hub_repo(spec.architecture)
        path, label = hub_file(repo, ["config.json"], model=spec.name), repo
    elif spec.architecture.startswith(LOCAL):
        label = spec.architecture.removeprefix(LOCAL)
        path = Path(label) / "config.json"
    else:
        return spec.architecture
    read_config(path, label=label, kind="architecture")
    return f"{LOCAL}{path.parent}"


def look(spec: ModelSpec, source: str) -> nn.Module:
    """Build the model without memory: refuse it early, and learn its config, patch and default size in pixels."""
    import timm
    from timm.models import is_model

    if not (source.startswith(LOCAL) or is_model(source.split(".")[0])):
        names = timm.list_models(["vit_*", "deit3_*", "eva02_*"], exclude_filters=["vit_*relpos*"])
        near = difflib.get_close_matches(source.split(".")[0], names, n=3)
        near = near or ["vit_base_patch16_224", "deit3_small_patch16_224"]
        raise ArgumentError(f"timm has no model {source}; near it: {', '.join(near)}")
    try:
        with torch.device("meta"):
            module = timm.create_model(source, pretrained=False)
    except (RuntimeError, NotImplementedError, TypeError):  # an architecture that cannot be built on meta
        module = _create_anyway(spec, source)
    adapter_for(module, spec.name)
    return module


def _create_anyway(spec: ModelSpec, source: str) -> nn.Module:
    """Build the model in memory. Raises `ArgumentError` where timm cannot: an unknown tag or argument."""
    import timm

    try:
        with torch.random.fork_rng(devices=[]):
            return timm.create_model(source, pretrained=False)
    except (RuntimeError, TypeError) as error:
        base, _, tag = source.partition(".")
        tags = timm.list_pretrained(f"{base}.*") if tag and not base.startswith(LOCAL) else []
        near = f"; its tags: {', '.join(name.partition('.')[2] for name in tags)}" if tags else ""
        raise ArgumentError(f"timm cannot build {spec.name} ({' '.join(str(error).split())[:200]}){near}") from error


def _random(spec: ModelSpec, source: str, *, size: tuple[int, int], seed: int) -> nn.Module:
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = timm.create_model(source, pretrained=False, img_size=size)
        if spec.pos_embed == "official":  # of the table that this seed gives at the model's own size
            torch.manual_seed(seed)
            set_official(module, timm.create_model(source, pretrained=False).state_dict(), file="the random table")
    return module


def _pretrained(spec: ModelSpec, source: str, cfg: dict[str, Any], *, weights: str, size: tuple[int, int]) -> nn.Module:
    file = _find_weights(spec, source, cfg) if weights == "hub" else Path(weights)
    if file is None:
        return _create(spec, source, f"timm's weights of {spec.name}", img_size=size)
    state = read_state_dict(file)
    module = _create(spec, source, file.name, img_size=size, pretrained_cfg_overlay={"state_dict": state})
    stored, own = (tensors.get("patch_embed.proj.weight") for tensors in (state, module.state_dict()))
    resized = stored is not None and stored.ndim == 4 and stored.shape != own.shape  # by timm, without a word
    if resized and weights != "hub":
        got, need = (" x ".join(map(str, w.shape[-2:])) for w in (stored, own))
        raise WeightsError(f"{file.name} has patches of {got} px, {spec.name} of {need}; is it another model's file?")
    if spec.pos_embed == "official":
        set_official(module, state, file=file.name)
    return module


def _find_weights(spec: ModelSpec, source: str, cfg: dict[str, Any]) -> Path | None:
    """Return the weights file behind a model's name; None where timm alone can fetch it, from an address."""
    repo = hub_repo(spec.architecture) if spec.architecture.startswith(HUB) else cfg.get("hf_hub_id")
    if spec.architecture.startswith(LOCAL):
        return weights_in(Path(source.removeprefix(LOCAL)))
    if repo:
        name = cfg.get("hf_hub_filename")
        return hub_file(repo, [name] if name else ["model.safetensors", "pytorch_model.bin"], model=spec.name)
    if cfg.get("url") and spec.pos_embed == "timm":
        return None
    raise WeightsError(f"timm has no pretrained weights for {spec.name}; give --weights FILE or --weights random")


def _create(spec: ModelSpec, source: str, file: str, **kwargs: Any) -> nn.Module:
    """Let timm build and load a model, its own key filter and position resize included; every key must fit."""
    import timm

    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore", UserWarning)
            return timm.create_model(source, pretrained=True, **kwargs)
    except (RuntimeError, KeyError, AttributeError, ValueError, AssertionError, OSError) as error:
        detail = " ".join(str(error).split())[:240] or type(error).__name__
        raise WeightsError(f"{file} does not fit {spec.name} ({detail}); is it the file of another model?") from error


def timm_transform(module: nn.Module, size: tuple[int, int]) -> Transform:
    """Build the model's own evaluation transform (resize, crop, normalisation of its pretrained config) at ``size``."""
    from timm.data import create_transform, resolve_model_data_config

    config = resolve_model_data_config(module) | {"input_size": (3, *size)}
    return Transform(create_transform(**config, is_training=False), tuple(config["mean"]), tuple(config["std"]))
