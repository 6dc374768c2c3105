"""Vision towers of OpenCLIP, in open_clip's own ``VisionTransformer``."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitprobe.backbones.base import Backbone, ModelSpec, Transform, absorbed_rows, check_image_size, digest_module
from vitprobe.backbones.weights import hub_file, load_into, read_state_dict
from vitprobe.backbones.zoo import HUB, LOCAL, hub_repo, read_config
from vitprobe.errors import ArgumentError, WeightsError
from vitprobe.tokens import TokenLayout

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""The names of open_clip's files in a folder or on the hub."""


class OpenClipViT(Backbone):
    """Adapt open_clip's tower; tokens are CLS, patches.

    Depends on the names of weights (``in_proj_weight``, ``out_proj``), not on the class of the attention, which has
    changed between releases. Its fast path hides queries and keys, so rows are computed from what attention reads.
    """

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
        return TokenLayout.prefix_first(has_cls=True, num_registers=0, grid=grid)

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


def refuse_if_not_plain(module: nn.Module, name: str) -> None:
    """Raise `ArgumentError`, by name, for a tower that is not open_clip's own plain ViT."""
    from open_clip.transformer import VisionTransformer

    if type(module) is not VisionTransformer:
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
    if spec.architecture.startswith((HUB, LOCAL)):
        stored = _read_stored(spec)
        config, preprocess, tag = stored["model_cfg"], dict(stored.get("preprocess_cfg") or {}), "pretrained"
        refuse_other_towers(config, spec.name)
    else:
        config = _config(spec)
        preprocess = _preprocess(spec, tag, needed=weights == "hub")
    vision = {"image_size": 224, "patch_size": 16} | config["vision_cfg"]  # what open_clip takes where nothing is said
    native = _pair(vision["image_size"])
    size = check_image_size(image_size or native, _pair(vision["patch_size"]))
    quick_gelu = bool(config.get("quick_gelu") or preprocess.get("quick_gelu"))
    try:
        module = _tower(config, vision | {"image_size": size}, quick_gelu=quick_gelu, seed=seed)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        detail = " ".join(str(error).split())[:200]
        raise ArgumentError(
            f"open_clip cannot build the tower of {spec.name} ({detail}); is its config whole?"
        ) from error
    made = f"random (seed {seed})"
    if weights != "random":
        file = _fetch(spec, preprocess) if weights == "hub" else Path(weights)
        state = visual_state(read_state_dict(file))
        resize_positions(state, module.grid_size)
        load_into(module, state, file=file.name, model=spec.name)
        made = str(tag) if weights == "hub" else file.name
    spec = replace(spec, image_size=size, weights=made, digest=digest_module(module))
    return OpenClipViT(module.eval(), spec, open_clip_transform(preprocess, size))


def _config(spec: ModelSpec) -> dict[str, Any]:
    import open_clip

    known = spec.architecture in open_clip.list_models()  # any other name would be looked for on the hub or on disk
    config = open_clip.get_model_config(spec.architecture) if known else None
    if config is None:
        base = spec.architecture[:5].lower()
        near = [name for name in open_clip.list_models() if name.lower().startswith(base)][:4]
        raise ArgumentError(f"open_clip has no model {spec.architecture}; near it: {', '.join(near or ['ViT-B-32'])}")
    refuse_other_towers(config, spec.name)
    return config


def refuse_other_towers(config: dict[str, Any], name: str) -> None:
    """Raise `ArgumentError`, by name, for a config whose tower is not open_clip's own ViT."""
    vision = config.get("vision_cfg")
    if not isinstance(vision, dict) or not isinstance(config.get("embed_dim"), int):
        raise ArgumentError(f"the config of {name} has no vision_cfg and embed_dim; open_clip's own are allowed")
    if vision.get("timm_model_name"):
        raise ArgumentError(f"the tower of {name} is built by timm; ask for it as timm:{vision['timm_model_name']}")
    if isinstance(vision.get("layers"), (list, tuple)):
        raise ArgumentError(f"the tower of {name} is a ResNet; open_clip's ViTs are allowed, e.g. ViT-B-32")


def _read_stored(spec: ModelSpec) -> dict[str, Any]:
    """Read the config that lies beside the weights, on the hub or in a folder."""
    if spec.architecture.startswith(HUB):
        repo = hub_repo(spec.architecture)
        path, label = hub_file(repo, [CONFIG], model=spec.name), repo
    else:
        label = spec.architecture.removeprefix(LOCAL)
        path = Path(label) / CONFIG
    return read_config(path, label=label, kind="model_cfg")


def _preprocess(spec: ModelSpec, tag: str | None, *, needed: bool) -> dict[str, Any]:
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(spec.architecture)
    if tag is None and needed:
        listed = ", ".join(tags) or "none is published: give --weights FILE or --weights random"
        raise ArgumentError(f"{spec.name} needs a tag, open_clip:{spec.architecture}/TAG; tags: {listed}")
    if tag is not None and tag not in tags:
        raise ArgumentError(f"{spec.architecture} has no weights {tag}; tags: {', '.join(tags) or 'none'}")
    return dict(open_clip.get_pretrained_cfg(spec.architecture, tag)) if tag else {}


def _tower(config: dict[str, Any], vision: dict[str, Any], *, quick_gelu: bool, seed: int) -> nn.Module:
    from open_clip.model import _build_vision_tower

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _build_vision_tower(config["embed_dim"], vision, quick_gelu=quick_gelu)


def _fetch(spec: ModelSpec, preprocess: dict[str, Any]) -> Path:
    if spec.architecture.startswith(HUB):
        return hub_file(hub_repo(spec.architecture), WEIGHTS, model=spec.name)
    if spec.architecture.startswith(LOCAL):
        folder = Path(spec.architecture.removeprefix(LOCAL))
        found = [folder / name for name in WEIGHTS if (folder / name).is_file()]
        if not found:
            raise WeightsError(f"{folder} holds no weights; beside {CONFIG} belongs {' or '.join(WEIGHTS)}")
        return found[0]
    repo, _, filename = str(preprocess.get("hf_hub", "")).rpartition("/")
    if repo:
        names = [filename] if filename else list(WEIGHTS)
        stem = filename.rpartition(".")[0]
        names = [f"{stem}.safetensors", filename] if stem and not filename.endswith(".safetensors") else names
        return hub_file(repo, names, model=spec.name)
    from open_clip import download_pretrained

    try:
        return Path(download_pretrained(preprocess))
    except (OSError, RuntimeError) as error:
        url = preprocess.get("url", "?")
        raise WeightsError(f"no weights for {spec.name}: {url}: {error}; fetch it and give --weights FILE") from error


def visual_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the visual tower's tensors out of a whole model's state dict; a tower's own passes as it is."""
    inside = {name.removeprefix("visual."): t for name, t in state.items() if name.startswith("visual.")}
    return inside or state


def resize_positions(state: dict[str, Tensor], grid: tuple[int, int]) -> None:
    """Resize ``positional_embedding``, (1 + rows * cols, D), in place to another grid; CLS keeps its own.

    The stored table is taken to be square, as every published one is. Where it is not, it is left to be refused.
    """
    table = state.get("positional_embedding")
    if table is None or table.ndim != 2:
        return
    side = math.isqrt(table.shape[0] - 1)
    if (side, side) == tuple(grid) or side * side != table.shape[0] - 1:
        return
    first, rest = table.split([1, side * side])
    rest = rest.float().unflatten(0, (side, side)).permute(2, 0, 1).unsqueeze(0)  # (1, D, side, side)
    rest = nn.functional.interpolate(rest, size=tuple(grid), mode="bicubic", antialias=True, align_corners=False)
    rest = rest[0].permute(1, 2, 0).flatten(0, 1).to(table.dtype)  # (rows * cols, D)
    state["positional_embedding"] = torch.cat([first, rest])


def open_clip_transform(preprocess: dict[str, Any], size: tuple[int, int]) -> Transform:
    """Build open_clip's evaluation transform with the mean, spread and interpolation of the pretrained tag."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    keys = ("mean", "std", "interpolation", "resize_mode")
    config = PreprocessCfg(size=size, **{key: preprocess[key] for key in keys if key in preprocess})
    return Transform(image_transform_v2(config, is_train=False), tuple(config.mean), tuple(config.std))


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
