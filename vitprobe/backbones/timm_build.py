"""How timm builds a network: by name, from the hub, a folder, a file or a seed; every failure is told in one line."""

import difflib
import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitprobe.backbones.trunk import ModelSpec, Transform
from vitprobe.backbones.weights import hub_file, read_state_dict, weights_in
from vitprobe.backbones.zoo import HUB, LOCAL, hub_repo, read_config
from vitprobe.errors import ArgumentError, WeightsError

RESERVED = {"img_size": "image_size", "num_classes": "num_classes", "in_chans": "three channels, always"}
"""Keywords of timm that have a place of their own."""
SCENES = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bilinear"}
"""How pictures come to a network made here for small ones: resized whole, whatever their sides, to -1 to 1."""


@dataclass(frozen=True)
class Preset:
    """Name a small architecture: timm's name, and what timm is told beside it."""

    architecture: str
    image_size: tuple[int, int]
    model_args: Mapping[str, Any]
    data: Mapping[str, Any] = field(default_factory=dict)
    """Of timm's config of the evaluation transform."""


def source_of(spec: ModelSpec) -> str:
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


def names_near(source: str, patterns: Sequence[str], by_default: Sequence[str]) -> str:
    """Name timm's models of the patterns that are spelt like one that it does not have."""
    import timm

    names = timm.list_models(list(patterns), exclude_filters=["vit_*relpos*"])
    return ", ".join(difflib.get_close_matches(source.split(".")[0], names, n=3) or by_default)


def build_blank(spec: ModelSpec, source: str, *, patterns: Sequence[str], by_default: Sequence[str]) -> nn.Module:
    """Build the model without memory, to learn what it is. Raises `ArgumentError` for a name that timm does not have.

    ``patterns``, ``by_default``: what a wrong name is compared with, and what is named where nothing is near it.
    """
    import timm
    from timm.models import is_model

    if not (source.startswith(LOCAL) or is_model(source.split(".")[0])):
        raise ArgumentError(f"timm has no model {source}; near it: {names_near(source, patterns, by_default)}")
    try:
        with torch.device("meta"):
            return timm.create_model(source, pretrained=False)
    except (RuntimeError, NotImplementedError, TypeError):  # an architecture that cannot be built on meta
        return _create_anyway(spec, source)


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


def build_drawn(source: str, *, seed: int, **args: Any) -> nn.Module:
    """Build the model with timm's own initialisation from a seed; the generators stay as they were."""
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model(source, pretrained=False, **args)


def build_new(
    arch: str, architecture: str, args: Mapping[str, Any], *, data: Mapping[str, Any], seed: int
) -> nn.Module:
    """Build an architecture to be trained, in evaluation mode. Raises `ArgumentError` where timm cannot.

    ``args``: timm's keywords; ``data``: what its config of the evaluation transform says otherwise.
    """
    import timm

    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the accelerators' too
            return timm.create_model(architecture, pretrained=False, pretrained_cfg_overlay=dict(data), **args).eval()
    except (TypeError, ValueError, AssertionError, RuntimeError, AttributeError, ZeroDivisionError) as error:
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        given = ", ".join(f"{name}={value}" for name, value in args.items())
        raise ArgumentError(f"timm cannot build {arch} with {given} ({detail})") from error


def check_keywords(arch: str, args: Mapping[str, Any], model: type[nn.Module]) -> None:
    """Raise `ArgumentError` for a keyword that timm's class does not take, or that is said elsewhere."""
    allowed = [name for name in inspect.signature(model).parameters if name not in ("device", "dtype", *RESERVED)]
    for name in args:
        if name in RESERVED:
            raise ArgumentError(f"got {name} for {arch} among timm's keywords; it is set elsewhere: {RESERVED[name]}")
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, n=3) or allowed[:3]
            raise ArgumentError(f"timm's {model.__name__} ({arch}) takes no {name}; near it: {', '.join(near)}")


def build_pretrained(
    spec: ModelSpec, source: str, cfg: Mapping[str, Any], *, weights: str, **args: Any
) -> tuple[nn.Module, dict[str, Tensor] | None, str]:
    """Build the model with its weights, ``hub`` or a file; returns it, the tensors read and their file's name.

    The tensors are None where timm alone fetched them, from an address. Raises `WeightsError`, in one line.
    """
    file = _find_weights(spec, source, cfg) if weights == "hub" else Path(weights)
    if file is None:
        name = f"timm's weights of {spec.name}"
        return _create(spec, source, name, **args), None, name
    state = read_state_dict(file)
    return _create(spec, source, file.name, pretrained_cfg_overlay={"state_dict": state}, **args), state, file.name


def _find_weights(spec: ModelSpec, source: str, cfg: Mapping[str, Any]) -> Path | None:
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


def made_by(cfg: Mapping[str, Any], *, weights: str, seed: int) -> str:
    """Say what the weights are: the pretrained tag, ``random`` and its seed, or a file's name."""
    return {"hub": cfg.get("tag") or "pretrained", "random": f"random (seed {seed})"}.get(weights, Path(weights).name)


def stored_args(spec: ModelSpec, source: str) -> dict[str, Any]:
    """Return what a checkpoint's config says of the architecture beside its name; nothing of a model of timm's own."""
    if not source.startswith(LOCAL):
        return {}
    config = read_config(Path(source.removeprefix(LOCAL)) / "config.json", label=spec.name, kind="architecture")
    return dict(config.get("model_args") or {})


def timm_transform(module: nn.Module, size: tuple[int, int]) -> Transform:
    """Build the model's own evaluation transform (resize, crop, normalisation of its pretrained config) at ``size``."""
    from timm.data import create_transform, resolve_model_data_config

    config = resolve_model_data_config(module) | {"input_size": (3, *size)}
    return Transform(create_transform(**config, is_training=False), tuple(config["mean"]), tuple(config["std"]))
