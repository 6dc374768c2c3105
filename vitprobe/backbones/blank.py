"""Build towers without weights, and without memory for them: what can be counted of an architecture alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitprobe.backbones.base import ModelSpec, check_image_size
from vitprobe.backbones.open_clip_files import CONFIG, find_model
from vitprobe.backbones.open_clip_registers import put_registers
from vitprobe.backbones.open_clip_vit import refuse_if_not_plain
from vitprobe.backbones.reference import config_of
from vitprobe.backbones.reference_vit import VisionTransformer
from vitprobe.backbones.timm_tower import num_registers
from vitprobe.backbones.timm_vit import look
from vitprobe.backbones.zoo import ALIASES, HUB, LOCAL, REFERENCES, SHIPPED, SHORT_NAMES
from vitprobe.errors import ArgumentError


def blank(name: str, *, num_registers: int | None = None, image_size: tuple[int, int] | None = None) -> nn.Module:
    """Build the tower behind a name on torch's ``meta`` device, in evaluation mode: shapes without numbers.

    ``name``: an alias of the zoo, ``timm:NAME``, ``open_clip:ARCH[/TAG]``, a reference ViT, a shipped one, or a folder.
    ``num_registers``: how many registers it is to have, None for its own. They are put in as `Backbone.add_registers`
    does: without a position, and where positions covered CLS, that one is folded into the CLS token. ``image_size``:
    (height, width) in pixels, None for the architecture's own.
    Raises `ArgumentError` for what is no plain ViT, a size off the patch grid, or a number of registers that is none.
    """
    if num_registers is not None and (type(num_registers) is not int or num_registers < 0):
        raise ArgumentError(f"got {num_registers!r} registers; give a whole number, 0 for none")
    if name in REFERENCES:
        return _reference(name, num_registers or 0, image_size).eval()
    library, architecture = _read(name)
    if library == "timm":
        return _timm(name, architecture, num_registers, image_size).eval()
    return _open_clip(name, architecture, num_registers or 0, image_size).eval()


def native_size(module: nn.Module) -> tuple[int, int]:
    """Return the (height, width) in pixels that a tower was built for."""
    if isinstance(module, VisionTransformer):
        return module.config.image_size
    return tuple(module.patch_embed.img_size if hasattr(module, "patch_embed") else module.image_size)


def _read(name: str) -> tuple[str, str]:
    """Tell the library that a name belongs to, and what that library calls the architecture."""
    entry = ALIASES.get(name)
    if entry is not None:
        tag = f".{entry.tag}" if entry.library == "timm" else ""
        return entry.library, entry.architecture + tag
    library, _, rest = name.partition(":")
    if library == "open_clip":
        return library, rest if rest.startswith(HUB) else rest.partition("/")[0]  # a tag names weights, no shape
    if library == "timm":
        return library, rest
    folder = Path(__file__).parent / "shipped" / name if name in SHIPPED else Path(name.removeprefix(LOCAL))
    if not folder.is_dir():
        known = ", ".join((*SHORT_NAMES, *REFERENCES, *SHIPPED))
        raise ArgumentError(f"got model {name!r}; of architectures alone: {known}, timm:NAME, open_clip:ARCH, a folder")
    is_clip = (folder / CONFIG).is_file() and not (folder / "config.json").is_file()
    return "open_clip" if is_clip else "timm", f"{LOCAL}{folder}"


def _timm(name: str, source: str, asked: int | None, image_size: tuple[int, int] | None) -> nn.Module:
    import timm

    seen = look(ModelSpec(name, "timm", source, "", "", (0, 0), 0), source)
    embed = seen.patch_embed
    native = tuple(embed.img_size)
    patch = (native[0] // embed.grid_size[0], native[1] // embed.grid_size[1])
    size = check_image_size(image_size or native, patch)
    is_asked = asked is not None and asked != num_registers(seen)
    if size == native and not is_asked and next(seen.parameters()).is_meta:
        return seen
    args: dict[str, Any] = {"img_size": size}
    if is_asked:
        keyword = "reg_tokens" if hasattr(seen, "num_reg_tokens") else "num_reg_tokens"  # VisionTransformer's, Eva's
        args |= {keyword: asked, "no_embed_class": True} if asked else {keyword: 0}
    with torch.device("meta"):
        return timm.create_model(source, pretrained=False, **args)


def _reference(name: str, asked: int, image_size: tuple[int, int] | None) -> nn.Module:
    config = config_of(name)
    size = check_image_size(image_size or config.image_size, config.patch_size)
    with torch.device("meta"):
        return VisionTransformer(replace(config, image_size=size, num_registers=asked, cls_has_position=not asked))


def _open_clip(name: str, architecture: str, asked: int, image_size: tuple[int, int] | None) -> nn.Module:
    from open_clip.model import _build_vision_tower

    found = find_model(ModelSpec(name, "open_clip", architecture, "", "", (0, 0), 0), tag=None, weights="random")
    vision = {"image_size": 224, "patch_size": 16} | found.config["vision_cfg"]
    native, patch = (_pair(vision[key]) for key in ("image_size", "patch_size"))
    size = check_image_size(image_size or native, patch)
    with torch.device("meta"):
        module = _build_vision_tower(found.config["embed_dim"], vision | {"image_size": size}, found.quick_gelu)
        refuse_if_not_plain(module, name)
        if asked:
            put_registers(module, torch.empty(asked, module.conv1.out_channels))
    return module


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
