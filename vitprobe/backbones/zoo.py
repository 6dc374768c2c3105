"""The backbones that have a short name: a table, and how a name is read."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitprobe.errors import ArgumentError

PARADIGMS = {
    "deit3": "supervised",
    "openclip": "text-supervised",
    "dinov2": "self-supervised",
    "dinov2-reg": "self-supervised",
}


@dataclass(frozen=True)
class ZooEntry:
    """One line of the zoo: a short name and everything needed to cite and fetch the model behind it."""

    alias: str
    library: str
    architecture: str
    tag: str
    """The library's exact pretrained tag."""
    patch: int
    image_size: int
    """Side in pixels of the images that the weights were made for."""
    params: float
    """Parameters of the vision tower, in millions."""
    licence: str
    source: str
    num_registers: int = 0

    @property
    def family(self) -> str:
        """The alias without its size: ``dinov2-reg`` of ``dinov2-reg-s14``."""
        return self.alias.rpartition("-")[0]

    @property
    def paradigm(self) -> str:
        """How the model was trained."""
        return PARADIGMS[self.family]


_DEIT3 = ("Apache-2.0", "facebookresearch/deit; Touvron et al., DeiT III, arXiv 2204.07118")
_CLIP = ("MIT", "mlfoundations/open_clip, LAION; Cherti et al., arXiv 2212.07143")
_DINO = ("Apache-2.0", "facebookresearch/dinov2; Oquab et al., arXiv 2304.07193")
_REGS = ("Apache-2.0", "facebookresearch/dinov2; Darcet et al., arXiv 2309.16588")


def _deit3(size: str, name: str, patch: int, params: float) -> ZooEntry:
    architecture = f"deit3_{name}_patch{patch}_224"
    return ZooEntry(f"deit3-{size}", "timm", architecture, "fb_in22k_ft_in1k", patch, 224, params, *_DEIT3)


def _openclip(size: str, architecture: str, tag: str, patch: int, params: float) -> ZooEntry:
    return ZooEntry(f"openclip-{size}", "open_clip", architecture, tag, patch, 224, params, *_CLIP)


def _dinov2(size: str, name: str, params: float, registers: int) -> ZooEntry:
    alias, infix = (f"dinov2-reg-{size}", "_reg4") if registers else (f"dinov2-{size}", "")
    architecture = f"vit_{name}_patch14{infix}_dinov2"
    cite = _REGS if registers else _DINO
    return ZooEntry(alias, "timm", architecture, "lvd142m", 14, 518, params, *cite, num_registers=registers)


_DINO_SIZES = (("s14", "small", 22.1), ("b14", "base", 86.6), ("l14", "large", 304.4), ("g14", "giant", 1136.5))

ZOO: tuple[ZooEntry, ...] = (
    _deit3("s16", "small", 16, 21.7),
    _deit3("b16", "base", 16, 85.8),
    _deit3("l16", "large", 16, 303.3),
    _deit3("h14", "huge", 14, 630.8),
    _openclip("b32", "ViT-B-32", "laion2b_s34b_b79k", 32, 87.8),
    _openclip("b16", "ViT-B-16", "laion2b_s34b_b88k", 16, 86.2),
    _openclip("l14", "ViT-L-14", "laion2b_s32b_b82k", 14, 304.0),
    _openclip("h14", "ViT-H-14", "laion2b_s32b_b79k", 14, 632.1),
    *(_dinov2(*size, registers=0) for size in _DINO_SIZES),
    *(_dinov2(*size, registers=4) for size in _DINO_SIZES),
)

SHORT_NAMES = {"deit3": "deit3-b16", "openclip": "openclip-b16", "dinov2": "dinov2-l14", "dinov2-reg": "dinov2-reg-l14"}
"""The sizes that Darcet et al. train (arXiv 2309.16588, section 3)."""

ORGANISMS = ("organism", "organism-reg4", "organism-content", "organism-clean")
SHIPPED = ("scenes-content", "scenes-content-reg4")
"""Trained here on generated scenes; each is a folder in ``shipped/``, with a card that says how."""
EMBEDDED = (*ORGANISMS, *SHIPPED)
"""What needs no weights from anywhere."""


@dataclass(frozen=True)
class ReferenceSize:
    """Hold one size of the reference ViT: 12 blocks, patches of 16 px, images of 224 px."""

    width: int
    num_heads: int
    params: float
    """Parameters without a head, in millions."""
    source: str
    depth: int = 12


_VIT, _DEIT = "Dosovitskiy et al., arXiv 2010.11929, table 1", "Touvron et al., arXiv 2012.12877, table 1"
REFERENCES: dict[str, ReferenceSize] = {
    "reference-vit-ti": ReferenceSize(192, 3, 5.5, _DEIT),
    "reference-vit-s": ReferenceSize(384, 6, 21.7, _DEIT),
    "reference-vit-b": ReferenceSize(768, 12, 85.8, _VIT),
}
"""The ViT that is written to be read, ``reference_vit.py``; its weights are random, trained here, or from a file."""

ALIASES: dict[str, ZooEntry] = {entry.alias: entry for entry in ZOO}
ALIASES.update({short: ALIASES[alias] for short, alias in SHORT_NAMES.items()})

NAMES_HELP = (
    "an alias (" + ", ".join((*EMBEDDED, *SHORT_NAMES)) + ", dinov2-s14 ...), reference-vit-ti, -s or -b, timm:NAME, "
    "open_clip:ARCH/TAG, hf-hub:ORG/NAME or a checkpoint's folder"
)

HUB, LOCAL = "hf-hub:", "local-dir:"
"""How both libraries mark a repository of the hub and a folder."""


def hub_repo(name: str) -> str:
    """Take the repository out of ``hf-hub:ORG/NAME``. Raises `ArgumentError` where it is none, or has a revision."""
    repo = name.removeprefix(HUB)
    if repo.count("/") != 1 or not all(repo.split("/")) or set(repo) & set("@:?# "):
        raise ArgumentError(f"got {name!r}; allowed is hf-hub:ORG/NAME, without a revision")
    return repo


def read_config(path: Path, *, label: str, kind: str) -> dict[str, Any]:
    """Read a model's JSON config. Raises `ArgumentError`, calling the model's folder ``label``, where it is none.

    ``kind``: the key whose value tells that the config is of the library asked for, ``architecture`` (a string, timm)
    or ``model_cfg`` (an object, open_clip).
    """
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ArgumentError(
            f"{label} holds no {path.name}; a checkpoint is a folder with {path.name} and weights"
        ) from error
    except (ValueError, OSError) as error:
        raise ArgumentError(f"{label}/{path.name} cannot be read ({error}); it must be JSON") from error
    needed, whose = (str, "timm's") if kind == "architecture" else (dict, "open_clip's")
    if not isinstance(config, dict) or not isinstance(config.get(kind), needed):
        raise ArgumentError(f"{label}/{path.name} names no {kind}; a checkpoint's config names {whose}")
    return config
