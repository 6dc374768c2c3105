"""Build a ViT from scratch: any plain ViT of timm, with timm's own keywords, a small one for scenes, the reference."""

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from vitprobe.backbones.base import Backbone, ModelSpec, check_image_size, digest_module
from vitprobe.backbones.reference import create_reference
from vitprobe.backbones.timm_build import SCENES, Preset, build_new, check_keywords, timm_transform
from vitprobe.backbones.timm_tower import num_registers
from vitprobe.backbones.timm_vit import adapter_for, look
from vitprobe.backbones.zoo import REFERENCES
from vitprobe.errors import ArgumentError

_SMALL_ARGS = {"patch_size": 4, "num_heads": 4, "init_values": 0.1}

SMALL: dict[str, Preset] = {
    "scenes-tiny": Preset("vit_tiny_patch16_224", (32, 32), {**_SMALL_ARGS, "embed_dim": 96, "depth": 8}, data=SCENES),
    "scenes-small": Preset(
        "vit_tiny_patch16_224", (32, 32), {**_SMALL_ARGS, "embed_dim": 128, "depth": 12}, data=SCENES
    ),
    "scenes-hybrid": Preset(
        "vit_tiny_r_s16_p8_224", (32, 32), {**_SMALL_ARGS, "patch_size": 1, "embed_dim": 96, "depth": 7}, data=SCENES
    ),
}
"""ViTs for images of 32 px, of 0.9 and 2.4 million parameters, and a hybrid of 0.8 million that embeds the output of a
ResNet's stem; all have 8 x 8 patches. Images are resized to 32 x 32, whatever their sides."""


def create(
    arch: str,
    *,
    image_size: tuple[int, int] | None = None,
    seed: int = 0,
    num_classes: int = 0,
    overrides: Mapping[str, Any] = MappingProxyType({}),
) -> Backbone:
    """Build a ViT with random weights, in evaluation mode.

    ``arch``: a row of `SMALL`, timm's name of a plain ViT or ``Eva`` (``deit3_small_patch16_224``), or a reference ViT
    of the zoo. ``overrides``: timm's own keywords, e.g. ``patch_size``, ``depth``, ``init_values`` (LayerScale),
    ``class_token``, ``global_pool``, ``drop_path_rate``; of the reference, fields of its `ViTConfig`. Weights are the
    library's initialisation from ``seed``; the global generator stays as it was. ``image_size``: (height, width) in
    pixels, by default the architecture's. ``num_classes``: outputs of the head, 0 for pooled features.
    Raises `ArgumentError`, in one line, for a name, a keyword, a size or a width that does not fit.
    """
    if arch in REFERENCES:
        own = overrides | ({"patch_size": _pair(overrides["patch_size"])} if "patch_size" in overrides else {})
        return create_reference(arch, image_size=image_size, seed=seed, num_classes=num_classes, overrides=own)
    preset = SMALL.get(arch)
    architecture = preset.architecture if preset else arch
    seen = _look(arch, architecture)
    args = {**(preset.model_args if preset else {}), **overrides}
    check_keywords(arch, args, type(seen))
    patch = _pair(args.get("patch_size", seen.patch_embed.patch_size))
    native = preset.image_size if preset else tuple(seen.patch_embed.img_size)
    size = check_image_size(image_size or native, patch)
    sizes = {"embed_dim": seen.embed_dim, "num_heads": seen.blocks[0].attn.num_heads, "depth": len(seen.blocks)}
    _check_sizes(
        arch, {name: args.get(name, own) for name, own in sizes.items()}, turns=getattr(seen, "rope", None) is not None
    )
    if type(num_classes) is not int or num_classes < 0:
        raise ArgumentError(f"got a head of {num_classes!r} classes; give a whole number, 0 for none")
    data = {**(preset.data if preset else {}), "input_size": (3, *size)}
    module = build_new(arch, architecture, {**args, "img_size": size, "num_classes": num_classes}, data=data, seed=seed)
    made = f"random (seed {seed})"
    spec = ModelSpec(arch, "timm", architecture, made, digest_module(module), size, num_registers(module))
    backbone = adapter_for(module, arch)(module, spec, timm_transform(module, size))
    backbone.model_args = args
    return backbone


def _look(arch: str, architecture: str) -> nn.Module:
    """Build the architecture without memory. Raises `ArgumentError` for a name that is none, or no plain ViT's."""
    import timm

    if not timm.is_model(architecture):
        theirs = timm.list_models(["vit_*", "deit3_*", "eva02_*"], exclude_filters=["vit_*relpos*"])
        near = difflib.get_close_matches(arch, [*SMALL, *REFERENCES, *theirs], n=3) or [*SMALL, "vit_small_patch16_224"]
        raise ArgumentError(f"no architecture {arch} to train from scratch; near it: {', '.join(near)}")
    spec = ModelSpec(arch, "timm", architecture, "", "", (0, 0), 0)
    return look(spec, architecture)


def _check_sizes(arch: str, sizes: dict[str, Any], *, turns: bool) -> None:
    for name, size in sizes.items():
        if type(size) is not int or size < 1:
            raise ArgumentError(f"got {name} {size!r} for {arch}; give a whole number from 1 on")
    width, heads = sizes["embed_dim"], sizes["num_heads"]
    if width % heads:
        near = ", ".join(str(n) for n in range(1, 33) if width % n == 0)
        raise ArgumentError(f"{arch} has width {width} and {heads} heads, which must divide it, as {near} do")
    if turns and (width // heads) % 4:  # by rotary positions, pairs of dimensions for rows and for columns
        raise ArgumentError(f"{arch} has heads of width {width // heads}; its rotary positions need a multiple of 4")


def _pair(value: Any) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or any(type(side) is not int or side < 1 for side in pair):
        raise ArgumentError(f"got a patch of {value!r} px; give a whole number, or two")
    return pair
