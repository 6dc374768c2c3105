"""Load backbones by name: DeiT-III and DINOv2 through timm, OpenCLIP, the reference ViT, organisms from a seed.

Nothing heavy is imported until a backbone is loaded.
"""

import difflib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vitprobe.backbones.zoo import (
    ALIASES,
    EMBEDDED,
    HUB,
    LOCAL,
    NAMES_HELP,
    ORGANISMS,
    REFERENCES,
    SHIPPED,
    read_config,
)
from vitprobe.errors import ArgumentError

if TYPE_CHECKING:
    from vitprobe.backbones.base import Backbone


def load(
    name: str,
    *,
    weights: str = "hub",
    image_size: tuple[int, int] | None = None,
    seed: int = 0,
    device: str = "cpu",
    pos_embed: str = "timm",
) -> "Backbone":
    """Load a backbone in evaluation mode.

    ``name``: an alias of the zoo, ``timm:NAME``, ``open_clip:ARCH[/TAG]``, a repository of the hub or a folder as the
    libraries take them (``[timm:]hf-hub:ORG/NAME``, ``open_clip:hf-hub:ORG/NAME``, ``local-dir:PATH``), an organism,
    a small model that is shipped, a reference ViT (random, or of a file), or a checkpoint's folder. ``weights``:
    ``hub`` (the libraries' cache and client), a file, or ``random`` with ``seed``. ``image_size``: (height, width) in
    pixels, multiples of the patch; by default the size the weights were made for. ``pos_embed``: how positions
    come to another size, ``timm`` or, for DINOv2 without registers, ``official``. Raises `ArgumentError` for a name,
    size or way that is not allowed, `WeightsError` where weights cannot be had.
    """
    from vitprobe.backbones.weights import check_weights

    check_weights(weights)
    if pos_embed not in ("timm", "official"):
        raise ArgumentError(f"got positions {pos_embed!r}; allowed are timm and official")
    backbone = _load(name, weights=weights, image_size=image_size, seed=seed, pos_embed=pos_embed)
    backbone.module.to(device)
    return backbone


def _load(name: str, *, weights: str, image_size: tuple[int, int] | None, seed: int, pos_embed: str) -> "Backbone":
    from vitprobe.backbones.base import ModelSpec
    from vitprobe.backbones.positions import check_official

    entry = ALIASES.get(name)
    library, architecture = ("", "") if entry or name in (*EMBEDDED, *REFERENCES) else _read_name(name)
    library = entry.library if entry else library
    if pos_embed == "official" and library != "timm":
        check_official(name, "", num_registers=0)
    if name in ORGANISMS:
        from vitprobe.backbones.organism import load_organism

        if weights != "hub":
            raise ArgumentError(f"{name} is planted from a seed and takes no weights; leave --weights out")
        return load_organism(name, image_size=image_size, seed=seed)
    if name in SHIPPED:
        return _load_shipped(name, weights, image_size)
    if name in REFERENCES:
        from vitprobe.backbones.reference import load_reference

        return load_reference(name, weights=weights, image_size=image_size, seed=seed)
    blank = {"weights": "", "digest": "", "image_size": (0, 0), "num_registers": 0, "pos_embed": pos_embed}
    if library == "timm":
        from vitprobe.backbones.timm_vit import load_timm

        architecture = f"{entry.architecture}.{entry.tag}" if entry else architecture
        spec = ModelSpec(name, "timm", architecture, paradigm=entry.paradigm if entry else "unknown", **blank)
        return load_timm(spec, weights=weights, image_size=image_size, seed=seed)
    from vitprobe.backbones.open_clip_vit import load_open_clip

    tag = None
    if entry:
        architecture, tag = entry.architecture, entry.tag
    elif not architecture.startswith((HUB, LOCAL)):  # those name one set of weights
        architecture, _, tag = architecture.partition("/")
    spec = ModelSpec(name, "open_clip", architecture, paradigm="text-supervised", **blank)
    return load_open_clip(spec, tag=tag or None, weights=weights, image_size=image_size, seed=seed)


def _load_shipped(name: str, weights: str, image_size: tuple[int, int] | None) -> "Backbone":
    from vitprobe.backbones.base import ModelSpec
    from vitprobe.backbones.timm_vit import load_timm

    if weights != "hub":
        raise ArgumentError(f"{name} is shipped with its weights and takes no others; leave --weights out")
    folder = Path(__file__).parent / "shipped" / name
    spec = ModelSpec(name, "timm", f"{LOCAL}{folder}", "", "", (0, 0), 0, paradigm="supervised")
    backbone = load_timm(spec, weights="hub", image_size=image_size, seed=0)
    made = f"a ViT of {backbone.num_blocks} blocks, width {backbone.width}, patch {backbone.patch_size[0]}"
    told = {"library": "vitprobe", "architecture": f"{name}, {made}", "weights": "shipped"}
    return backbone.rewrap(backbone.module, replace(backbone.spec, **told))


def _read_name(name: str) -> tuple[str, str]:
    """Tell the library that a name belongs to, and what that library calls the model.

    Raises `ArgumentError` for a name that is no model's, and for a path that is no folder.
    """
    library, _, rest = name.partition(":")
    if library in ("timm", "open_clip"):
        return library, rest
    if name.startswith(HUB):
        return "timm", name
    folder = Path(name.removeprefix(LOCAL))
    if folder.is_file():
        raise ArgumentError(
            f"{name} is a file, which does not say its architecture; give --model NAME --weights {name}"
        )
    if not folder.is_dir():
        raise ArgumentError(f"got {name}, which is no folder" if name.startswith(LOCAL) else _unknown(name))
    return "open_clip" if _is_open_clip_folder(folder) else "timm", f"{LOCAL}{folder}"


def _is_open_clip_folder(folder: Path) -> bool:
    """Tell whether a folder holds open_clip's config and none of timm's; some repositories hold both."""
    if not (folder / "open_clip_config.json").is_file():
        return False
    try:
        read_config(folder / "config.json", label=str(folder), kind="architecture")
    except ArgumentError:
        return True
    return False


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, (*EMBEDDED, *REFERENCES, *ALIASES), n=3, cutoff=0.5)
    return f"got model {name!r}; allowed is {NAMES_HELP}" + (f"; did you mean {' or '.join(near)}?" if near else "")
