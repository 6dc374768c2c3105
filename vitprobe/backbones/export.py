"""Write a variant as a folder that plain timm, or plain open_clip, opens in a process without vitprobe."""

import copy
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from vitprobe.backbones.base import Backbone
from vitprobe.backbones.conv_net import ConvNet
from vitprobe.backbones.open_clip_files import CONFIG, WEIGHTS
from vitprobe.backbones.open_clip_vit import PREPROCESS, OpenClipViT
from vitprobe.backbones.reference import ReferenceViT
from vitprobe.backbones.reference_names import timm_args, timm_state
from vitprobe.backbones.timm_eva import TimmEva
from vitprobe.backbones.timm_tower import num_registers
from vitprobe.backbones.trunk import Trunk
from vitprobe.errors import ArgumentError, OutputError

PLAIN = "vit_base_patch16_224"
"""timm's factory for a ``VisionTransformer`` that no factory of its own built: all is said by keywords."""
TOWERS = {
    (1e-5, "gelu"): "vit_base_patch16_clip_224",
    (1e-5, "quick_gelu"): "vit_base_patch16_clip_quickgelu_224",
    (1e-6, "gelu"): PLAIN,
}
"""timm's factories by the norm's eps and the activation, which no keyword of JSON could say."""
SWAPS = (
    (r"^conv1\.", "patch_embed.proj."), (r"^ln_pre\.", "norm_pre."), (r"^transformer\.resblocks\.", "blocks."),
    (r"\.ln_(\d)\.", r".norm\1."), (r"\.ls_(\d)\.", r".ls\1."), (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."), (r"\.mlp\.c_fc\.", ".mlp.fc1."), (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)  # fmt: skip
"""open_clip's names of weights and timm's."""
REFERENCE = {192: "vit_tiny_patch16_224", 384: "vit_small_patch16_224"}  # timm's names, by the reference's width
POOLS = {"tok": "token", "avg": "avg"}
DATA = {"interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center"}
"""timm's keywords of its evaluation transform, saying what open_clip's does, and the organisms'."""
NAMES = {"first_conv": "patch_embed.proj", "classifier": "head"}
RATES = ("drop_rate", "drop_path_rate")  # of training alone


@dataclass(frozen=True)
class _Tower:
    """What timm needs to build a tower again, and its weights."""

    architecture: str
    args: dict[str, Any]
    state: dict[str, Tensor]
    data: dict[str, Any]
    """How images come to the model: interpolation, crop_pct, crop_mode."""
    tolerance: float
    """Largest difference between the outputs of what timm builds and the own, relative to the largest output."""


def export(backbone: Trunk, folder: Path, *, classes: Sequence[str] = (), card: str = "") -> None:
    """Write ``model.safetensors``, ``config.json`` and, where ``card`` has text, ``README.md`` into a folder.

    ``timm.create_model("local-dir:FOLDER", pretrained=True)`` then gives the same outputs, and so does
    `vitprobe.backbones.load`. Weights are saved as float32; the same backbone gives the same bytes. A tower of
    open_clip is written as timm's equal, its projection as a head without bias; the reference ViT in timm's names, and
    what opens it is timm's ViT; what opens a convolutional network is `conv_net.load_conv`. ``classes``: their names.
    What timm would build is compared with the backbone before anything is written. Raises `ArgumentError` for a tower
    that timm cannot hold or names that are not as many as the outputs, `OutputError` where the disk refuses.
    """
    towers = {OpenClipViT: _open_clip_tower, ReferenceViT: _reference_tower, ConvNet: _conv_tower}
    tower = towers.get(type(backbone), _timm_tower)(backbone)
    number = tower.args["num_classes"]
    if classes and len(classes) != number:
        raise ArgumentError(f"got {len(classes)} names of classes for a head of {number} outputs; give one for each")
    _check(backbone, tower)
    size, transform = list(backbone.spec.image_size), backbone.transform
    config = {
        "architecture": tower.architecture,
        "num_classes": number,
        "num_features": backbone.width,
        "global_pool": tower.args["global_pool"],
        **({"label_names": list(classes)} if classes else {}),
        "model_args": tower.args,
        "pretrained_cfg": {
            "custom_load": False, "input_size": [3, *size], "num_classes": number, "pool_size": None,
            "fixed_input_size": tower.args.get("dynamic_img_size") is False,  # a convolutional network takes any
            "mean": list(transform.mean), "std": list(transform.std), **NAMES, **tower.data,
        },
    }  # fmt: skip
    texts = {"config.json": _json(config, backbone), **({"README.md": card} if card else {})}
    _write(folder, {"model.safetensors": tower.state}, texts)


def export_open_clip(
    tower: OpenClipViT, text_state: Mapping[str, Tensor], model_cfg: dict, preprocess: dict, folder: Path
) -> None:
    """Write a whole model of open_clip, which ``open_clip.create_model("local-dir:FOLDER")`` opens.

    ``text_state``: the text tower's tensors, with or without ``text.`` before their names, and ``logit_scale``; those
    of another visual tower are passed over.
    ``model_cfg``, ``preprocess``: as open_clip's configs have them; the tower's image size and activation are put in.
    Raises `ArgumentError` for a tower with registers or without the projection into the text tower's space.
    """
    proj, name = tower.module.proj, tower.spec.name
    if num_registers(tower.module):
        raise ArgumentError(f"open_clip cannot hold the registers of {name}; export the tower, which timm can hold")
    if proj is None or proj.shape[1] != model_cfg.get("embed_dim") or "logit_scale" not in text_state:
        got = f"a projection to {None if proj is None else proj.shape[1]} and {len(text_state)} tensors of text"
        raise ArgumentError(
            f"got {got} for {name}; open_clip needs one to embed_dim, {model_cfg.get('embed_dim')}, and a logit_scale"
        )
    text = model_cfg.get("text_cfg") or {}
    prefix = "text." if model_cfg.get("custom_text") or text.get("hf_model_name") else ""
    scales = ("logit_scale", "logit_bias")
    state = {f"visual.{key}": value for key, value in tower.module.state_dict().items()}
    words = {key: value for key, value in text_state.items() if not key.startswith("visual.")}
    state |= {k if k in scales else prefix + k.removeprefix("text."): v for k, v in words.items()}
    vision = {**model_cfg["vision_cfg"], "image_size": _side(tower.spec.image_size)}
    quick = _activation(tower) == "quick_gelu"
    config = {
        "model_cfg": {**model_cfg, "vision_cfg": vision, **({"quick_gelu": True} if quick else {})},
        "preprocess_cfg": {key: preprocess[key] for key in PREPROCESS if key in preprocess},
    }
    _write(folder, {WEIGHTS[0]: _plain(state)}, {CONFIG: _json(config, tower)})


def _timm_tower(backbone: Backbone) -> _Tower:
    """Read what a module of timm is out of the module itself; what it does not show, `model_args` says."""
    module, block, is_eva = backbone.module, backbone.block(0), isinstance(backbone, TimmEva)
    cfg = getattr(module, "pretrained_cfg", None) or {}
    named = cfg.get("architecture")
    if is_eva and not named:
        raise ArgumentError(f"{backbone.spec.name} is an Eva that timm did not build by a name; load one by its name")
    args = {
        **({} if named else _plain_args(module)),
        **{k: v for k, v in backbone.model_args.items() if not k.endswith(RATES)},
    }
    args |= {
        "img_size": list(backbone.spec.image_size), "patch_size": _side(module.patch_embed.patch_size),
        "embed_dim": backbone.width, "depth": backbone.num_blocks, "num_heads": backbone.num_heads,
        "num_classes": module.num_classes, "global_pool": module.global_pool,
        "class_token": module.cls_token is not None, "no_embed_class": module.no_embed_class,
        "num_reg_tokens" if is_eva else "reg_tokens": num_registers(module),
        "use_fc_norm" if is_eva else "fc_norm": not isinstance(module.fc_norm, nn.Identity),
        "dynamic_img_size": module.dynamic_img_size,
    }  # fmt: skip
    if is_eva:
        args["use_post_transformer_norm"] = not isinstance(module.norm, nn.Identity)
    if backbone.parameter_names("layer_scale"):  # its values are among the weights: any number makes it be built
        args.setdefault("init_values", getattr(block, "init_values", None) or 1e-5)
    data = {key: cfg.get(key, by_default) for key, by_default in DATA.items()}
    return _Tower(named or TOWERS.get((block.norm1.eps, "gelu"), PLAIN), args, _plain(module.state_dict()), data, 1e-6)


def _conv_tower(conv: ConvNet) -> _Tower:
    """Say a convolutional network in the name that timm built it by and the keywords given beside."""
    cfg, said = conv.module.pretrained_cfg, {k: v for k, v in conv.model_args.items() if not k.endswith(RATES)}
    args = {"global_pool": "avg", **said, "num_classes": conv.module.num_classes}
    data = {key: cfg.get(key, by_default) for key, by_default in (DATA | NAMES).items()}
    return _Tower(cfg["architecture"], args, _plain(conv.module.state_dict()), data, tolerance=1e-6)


def _plain_args(module: nn.Module) -> dict[str, Any]:
    """Describe a ``VisionTransformer`` that no factory built; `_check` finds what these keywords do not say."""
    block = module.blocks[0]
    hidden = getattr(block.mlp, "fc1", block.mlp.fc2).weight.shape[0]
    scales = {"scale_attn_norm": getattr(block.attn, "norm", None), "scale_mlp_norm": getattr(block.mlp, "norm", None)}
    return {
        "mlp_ratio": _ratio(hidden, module.embed_dim),
        "qkv_bias": block.attn.qkv.bias is not None,
        "qk_norm": not isinstance(block.attn.q_norm, nn.Identity),
        "pre_norm": not isinstance(module.norm_pre, nn.Identity),
        "final_norm": not (isinstance(module.norm, nn.Identity) and isinstance(module.fc_norm, nn.Identity)),
        **{name: True for name, norm in scales.items() if isinstance(norm, nn.LayerNorm)},
    }


def _reference_tower(backbone: ReferenceViT) -> _Tower:
    """Say the reference ViT in timm's names."""
    config = backbone.module.config
    size = {"img_size": list(config.image_size), "patch_size": _side(config.patch_size)}
    data = {key: backbone.model_args["data"][key] for key in DATA}
    architecture = REFERENCE.get(config.width, PLAIN)
    return _Tower(architecture, size | timm_args(config), _plain(timm_state(backbone.module)), data, tolerance=1e-6)


def _open_clip_tower(backbone: OpenClipViT) -> _Tower:
    """Turn open_clip's tower into timm's. Raises `ArgumentError` for a kind that timm does not have."""
    module, block, name = backbone.module, backbone.block(0), backbone.spec.name
    norm, act = block.ln_1.eps, _activation(backbone)
    custom = {type(b).__name__ for b in module.transformer.resblocks if type(b) is not ResidualAttentionBlock}
    faults = [*(["an attentional pooler"] if module.attn_pool is not None else []), *sorted(custom)]
    faults += [f"pool {module.pool_type}"] if module.pool_type not in POOLS else []
    faults += [f"eps {norm} with {act}"] if (norm, act) not in TOWERS else []
    if faults:
        raise ArgumentError(f"timm has no equal of the tower of {name} ({', '.join(faults)}), so it cannot be exported")
    args = {
        "img_size": list(backbone.spec.image_size), "patch_size": _side(backbone.patch_size),
        "embed_dim": backbone.width, "depth": backbone.num_blocks, "num_heads": backbone.num_heads,
        "mlp_ratio": _ratio(block.mlp.c_fc.out_features, backbone.width),
        "num_classes": 0 if module.proj is None else module.proj.shape[1], "global_pool": POOLS[module.pool_type],
        "class_token": True, "no_embed_class": num_registers(module) > 0, "reg_tokens": num_registers(module),
        "pre_norm": not isinstance(module.ln_pre, nn.Identity), "fc_norm": module.final_ln_after_pool,
        "dynamic_img_size": False, **({"init_values": 1e-5} if backbone.parameter_names("layer_scale") else {}),
    }  # fmt: skip
    said = backbone.model_args.get("preprocess", {})
    mode = {"squash": "squash", "longest": "border"}.get(said.get("resize_mode"), "center")
    data = {**DATA, "interpolation": said.get("interpolation", DATA["interpolation"]), "crop_mode": mode}
    return _Tower(TOWERS[norm, act], args, _plain(_converted(module, args)), data, tolerance=1e-4)


def _converted(module: nn.Module, args: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename open_clip's weights to timm's; with registers, CLS takes its position in, as `insert` does elsewhere."""
    state = dict(module.state_dict())
    cls, table = state.pop("class_embedding").view(1, 1, -1), state.pop("positional_embedding").unsqueeze(0)
    if args["reg_tokens"]:
        first, table = table.split([1, table.shape[1] - 1], dim=1)
        cls = cls + first
    out = {"cls_token": cls, "pos_embed": table}
    if not args["pre_norm"]:  # timm's patch embedding then has a bias
        out["patch_embed.proj.bias"] = torch.zeros(args["embed_dim"])
    proj = state.pop("proj", None)
    if proj is not None:
        out |= {"head.weight": proj.T, "head.bias": torch.zeros(proj.shape[1])}
    for name, tensor in state.items():
        name = name.replace("ln_post.", "fc_norm." if args["fc_norm"] else "norm.")
        for theirs, ours in SWAPS:
            name = re.sub(theirs, ours, name)
        out[name] = tensor
    return out


def _activation(backbone: OpenClipViT) -> str:
    """Name the activation of the first block as timm does, or say what it is."""
    act = backbone.block(0).mlp.gelu
    if type(act) is nn.GELU and act.approximate == "none":
        return "gelu"
    return "quick_gelu" if type(act) is QuickGELU else str(act)


@torch.no_grad()
def _check(backbone: Trunk, tower: _Tower) -> None:
    """Raise `ArgumentError` where timm builds something else of what is to be written."""
    import timm

    name, args = backbone.spec.name, json.loads(_json(tower.args, backbone))
    image = torch.randn(1, 3, *backbone.spec.image_size, generator=torch.Generator().manual_seed(0))
    try:
        with torch.random.fork_rng(devices=[]):
            built = timm.create_model(tower.architecture, pretrained=False, **args).eval()
        built.load_state_dict(tower.state)
        got = built(image)
    except (TypeError, ValueError, AssertionError, RuntimeError, KeyError) as error:
        detail = " ".join(str(error).split())[:200]
        raise ArgumentError(f"timm cannot build {name} again as {tower.architecture} ({detail})") from error
    own = copy.deepcopy(backbone.module).to("cpu", torch.float32).eval()(image)
    if not own.isfinite().all():
        raise ArgumentError(f"{name} gives numbers that are not finite; its training has come apart")
    if got.shape != own.shape or not (got - own).abs().max() <= tower.tolerance * own.abs().max():
        raise ArgumentError(f"what timm builds of {name}, a {tower.architecture}, has other outputs than {name} itself")


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring tensors to what is saved: on the CPU, in one piece, float32."""
    kinds = {name: torch.float32 if t.is_floating_point() else t.dtype for name, t in state.items()}
    return {name: t.detach().to("cpu", kinds[name]).contiguous() for name, t in state.items()}


def _ratio(hidden: int, width: int) -> float:
    """Return a factor by which ``int(width * factor)`` is ``hidden``."""
    return hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width


def _side(size: Sequence[int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)


def _json(body: Mapping[str, Any], backbone: Trunk) -> str:
    try:
        return json.dumps(body, indent=2) + "\n"
    except TypeError as error:
        raise ArgumentError(f"what {backbone.spec.name} was built of cannot be written as JSON ({error})") from error


def _write(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], texts: Mapping[str, str]) -> None:
    if not folder.is_dir():
        raise OutputError(f"got {folder}, which is no folder; make it first")
    try:
        for name, state in tensors.items():
            save_file(dict(state), folder / name, metadata={"format": "pt"})
        for name, text in texts.items():
            (folder / name).write_text(text)
        for name in tensors:
            shutil.copymode(folder / next(iter(texts)), folder / name)  # safetensors lets nobody else read them
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write into {folder} ({' '.join(str(error).split())[:200]})") from error
