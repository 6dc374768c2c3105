"""Load backbones by name: DeiT-III and DINOv2 through timm, OpenCLIP through open_clip, organisms from a seed.

Nothing heavy is imported until a backbone is loaded.
"""

import difflib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from vitprobe.backbones.zoo import ALIASES, NAMES_HELP, ORGANISMS
from vitprobe.errors import ArgumentError, WeightsError

if TYPE_CHECKING:
    from vitprobe.backbones.base import Backbone


def load(
    name: str,
    *,
    weights: str = "hub",
    image_size: tuple[int, int] | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> "Backbone":
    """Load a backbone in evaluation mode.

    ``name``: an alias of the zoo, ``timm:NAME``, ``open_clip:ARCH[/TAG]``, an organism, or a checkpoint's folder.
    ``weights``: ``hub`` (the libraries' cache and client), a file, or ``random`` with ``seed``. ``image_size``:
    (height, width) in pixels, multiples of the patch; by default the size the weights were made for. Raises
    `ArgumentError` for a name or size that is not allowed, `WeightsError` where weights cannot be had.
    """
    if weights not in ("hub", "random") and not Path(weights).is_file():
        raise WeightsError(f"got weights {weights!r}; allowed are hub, random, or a file that exists")
    backbone = _load(name, weights=weights, image_size=image_size, seed=seed)
    backbone.module.to(device)
    return backbone


def _load(name: str, *, weights: str, image_size: tuple[int, int] | None, seed: int) -> "Backbone":
    from vitprobe.backbones.base import ModelSpec

    blank = {"weights": "", "digest": "", "image_size": (0, 0), "num_registers": 0}
    if name in ORGANISMS:
        from vitprobe.backbones.organism import load_organism

        if weights != "hub":
            raise ArgumentError(f"{name} is planted from a seed and takes no weights; leave --weights out")
        return load_organism(name, image_size=image_size, seed=seed)
    entry = ALIASES.get(name)
    if entry is not None and entry.library == "timm":
        from vitprobe.backbones.timm_vit import load_timm

        spec = ModelSpec(name, "timm", f"{entry.architecture}.{entry.tag}", paradigm=entry.paradigm, **blank)
        return load_timm(spec, weights=weights, image_size=image_size, seed=seed)
    if name.startswith("timm:") or _is_timm_checkpoint(name):
        from vitprobe.backbones.timm_vit import load_timm

        architecture = name.removeprefix("timm:") if name.startswith("timm:") else f"local-dir:{name}"
        return load_timm(
            ModelSpec(name, "timm", architecture, **blank), weights=weights, image_size=image_size, seed=seed
        )
    if entry is not None or name.startswith("open_clip:"):
        from vitprobe.backbones.open_clip_vit import load_open_clip

        architecture, _, tag = name.removeprefix("open_clip:").partition("/")
        if entry is not None:
            architecture, tag = entry.architecture, entry.tag
        paradigm = "text-supervised"
        spec = ModelSpec(name, "open_clip", architecture, paradigm=paradigm, **blank)
        return load_open_clip(spec, tag=tag or None, weights=weights, image_size=image_size, seed=seed)
    raise ArgumentError(_unknown(name))


def _is_timm_checkpoint(name: str) -> bool:
    """Tell whether a name is a folder with a model in timm's layout. Raises `ArgumentError` for any other path."""
    path = Path(name)
    if path.is_file():
        raise ArgumentError(
            f"{name} is a file, which does not say its architecture; give --model NAME --weights {name}"
        )
    if not path.is_dir():
        return False
    try:
        config = json.loads((path / "config.json").read_text())
    except FileNotFoundError:
        raise ArgumentError(
            f"{name} holds no config.json; a checkpoint is a folder with config.json and weights"
        ) from None
    except (ValueError, OSError) as error:
        raise ArgumentError(f"{name}/config.json cannot be read ({error}); it must be JSON") from error
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise ArgumentError(f"{name}/config.json names no architecture; a checkpoint's config names timm's")
    return True


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, (*ORGANISMS, *ALIASES), n=3, cutoff=0.5)
    return f"got model {name!r}; allowed is {NAMES_HELP}" + (f"; did you mean {' or '.join(near)}?" if near else "")
