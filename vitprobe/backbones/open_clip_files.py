"""What open_clip's models say of themselves, in its tables, on the hub or in a folder, and where their weights are."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitprobe.backbones.base import ModelSpec
from vitprobe.backbones.weights import hub_file
from vitprobe.backbones.zoo import HUB, LOCAL, hub_repo, read_config
from vitprobe.errors import ArgumentError, WeightsError

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""The names of open_clip's files in a folder or on the hub."""


@dataclass(frozen=True)
class ModelFiles:
    """Hold what is known of a whole model, both towers, before any of it is built."""

    config: dict[str, Any]
    """``embed_dim``, ``vision_cfg``, ``text_cfg`` ..."""
    preprocess: dict[str, Any]
    weights: Path | None
    """The file that was found or given; None for random weights."""
    tag: str
    """What is said of the weights in a result; empty where they are random or a file's."""

    @property
    def quick_gelu(self) -> bool:
        """Whether the towers use OpenAI's faster GELU."""
        return bool(self.config.get("quick_gelu") or self.preprocess.get("quick_gelu"))


def find_model(spec: ModelSpec, *, tag: str | None, weights: str) -> ModelFiles:
    """Find the config of an open_clip model and the file of its weights, which is fetched where it must be.

    ``spec.architecture``: open_clip's name, ``hf-hub:ORG/NAME`` or ``local-dir:PATH``; those two hold one set of
    weights and take no tag. ``weights``: ``hub``, ``random`` or a path. Raises `ArgumentError` for what open_clip does
    not know or builds otherwise, `WeightsError` where the weights are not to be had.
    """
    if spec.architecture.startswith((HUB, LOCAL)):
        stored = _read_stored(spec)
        config, preprocess, tag = stored["model_cfg"], dict(stored.get("preprocess_cfg") or {}), "pretrained"
        refuse_other_towers(config, spec.name)
    else:
        config = _config(spec)
        preprocess = _preprocess(spec, tag, needed=weights == "hub")
    if weights == "random":
        return ModelFiles(config, preprocess, None, "")
    if weights == "hub":
        return ModelFiles(config, preprocess, _fetch(spec, preprocess), str(tag))
    return ModelFiles(config, preprocess, Path(weights), "")


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
