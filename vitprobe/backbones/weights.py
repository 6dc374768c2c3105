"""Where weights come from: the hub's cache, the hub, a local file. Never a pickle that runs code."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from vitprobe.backbones import hub
from vitprobe.backbones.hub import short
from vitprobe.errors import WeightsError

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def check_weights(weights: str) -> None:
    """Raise `WeightsError` unless ``weights`` is ``hub``, ``random`` or a file that exists."""
    if weights not in ("hub", "random") and not Path(weights).is_file():
        raise WeightsError(f"got weights {weights!r}; allowed are hub, random, or a file that exists")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a ``.safetensors`` file, or of a ``.pt``, ``.pth``, ``.bin`` file with ``weights_only=True``.

    The common wrappings (``state_dict``, ``model``, ``module.`` in front of every name) are taken off. Raises
    `WeightsError` for a missing, damaged or foreign file, and for a pickle that holds more than tensors.
    """
    if not path.is_file():
        raise WeightsError(f"no weights at {path}; give a file that ends in {', '.join(SUFFIXES)}")
    if path.suffix not in SUFFIXES:
        raise WeightsError(f"cannot read weights from {path.name}; a weights file ends in {', '.join(SUFFIXES)}")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state.get(key), dict):
            state = state[key]
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"{path.name} holds no tensors; it is no weights file")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def weights_in(folder: Path) -> Path:
    """Return the weights file of a checkpoint's folder. Raises `WeightsError` where there is none."""
    named = [folder / "model.safetensors", folder / "pytorch_model.bin"]
    found = [path for path in (*named, *sorted(folder.iterdir())) if path.is_file() and path.suffix in SUFFIXES]
    if not found:
        raise WeightsError(f"{folder} holds no weights; beside config.json belongs {named[0].name} or {named[1].name}")
    return found[0]


def _read_safetensors(path: Path) -> dict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path.name} is no whole safetensors file ({short(error)}); fetch it again") from error


def _read_pickle(path: Path) -> dict:
    from pickle import UnpicklingError

    try:
        with warnings.catch_warnings():  # about pickle protocols that other programs write
            warnings.simplefilter("ignore", UserWarning)
            state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise WeightsError(
            f"{path.name} holds more than tensors, or is damaged, and is not loaded: a pickle can run code; "
            "save its state dict as .safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise WeightsError(f"{path.name} is no whole PyTorch file ({short(error)}); fetch it again") from error
    if not isinstance(state, dict):
        raise WeightsError(f"{path.name} holds a {type(state).__name__}; a weights file holds a dictionary of tensors")
    return state


def hub_file(repo: str, filenames: Sequence[str], *, model: str) -> Path:
    """Return the local path of the first of ``filenames`` that the hub's repository has: from the cache, or fetched.

    Uses the Hugging Face client and its cache (``HF_HOME``, ``HF_ENDPOINT``, ``HF_HUB_OFFLINE`` are honoured). Raises
    `WeightsError`, naming the file, how to fetch it elsewhere and how to point here, where it cannot be had.
    """
    from huggingface_hub import constants

    cached = hub.cached_file(repo, filenames)
    damage = hub.fault(cached) if cached else ""
    if cached and not damage:
        return cached
    reason = hub.silence()
    where = f"is damaged ({damage}) in" if damage and reason else "is not in"
    if cached and not reason:
        hub.forget(cached)
    for filename in () if reason else filenames:
        try:
            return hub.fetch_by_client(repo, filename)
        except hub.NoSuchFileError:
            reason = f"{repo} has none of {', '.join(filenames)}"
        except WeightsError as error:
            reason = str(error)
            break
    raise WeightsError(
        f"no weights for {model}: {reason}, and {repo}/{filenames[0]} {where} the cache ({constants.HF_HUB_CACHE}). "
        f"On a machine with network: {_elsewhere(repo, filenames[0])}"
    )


def _elsewhere(repo: str, filename: str) -> str:
    """Say how to fetch a file elsewhere and how to point here; a model named by its repository needs all of it."""
    if filename.endswith(".json"):
        return f"'hf download {repo} --local-dir model'; bring the folder here and give '--model model'."
    return (
        f"'hf download {repo} {filename} --local-dir weights'; bring the file here and add "
        f"'--weights weights/{filename}'. For a dry run: '--weights random'."
    )


def load_into(module: nn.Module, state: dict[str, Tensor], *, file: str, model: str) -> None:
    """Load a state dict that must fit exactly. Raises `WeightsError` naming what does not fit."""
    own = module.state_dict()
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    shapes = [name for name in own if name in state and own[name].shape != state[name].shape]
    if missing or unknown or shapes:
        first = shapes[0] if shapes else None
        detail = [f"{first} is {tuple(state[first].shape)}, not {tuple(own[first].shape)}"] if first else []
        detail += [f"{len(missing)} tensors missing ({missing[0]} ...)"] if missing else []
        detail += [f"{len(unknown)} unknown ({unknown[0]} ...)"] if unknown else []
        raise WeightsError(f"{file} does not fit {model}: {'; '.join(detail)}; is it the file of another model?")
    module.load_state_dict(state)
