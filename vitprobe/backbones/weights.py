"""Where weights come from: the hub's cache, the hub, a local file. Never a pickle that runs code."""

import os
import socket
import warnings
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from vitprobe.errors import WeightsError

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


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
        raise WeightsError(f"{path.name} is no whole safetensors file ({_short(error)}); fetch it again") from error


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
        raise WeightsError(f"{path.name} is no whole PyTorch file ({_short(error)}); fetch it again") from error
    if not isinstance(state, dict):
        raise WeightsError(f"{path.name} holds a {type(state).__name__}; a weights file holds a dictionary of tensors")
    return state


def hub_file(repo: str, filenames: Sequence[str], *, model: str) -> Path:
    """Return the local path of the first of ``filenames`` that the hub's repository has: from the cache, or fetched.

    Uses the Hugging Face client and its cache (``HF_HOME``, ``HF_ENDPOINT``, ``HF_HUB_OFFLINE`` are honoured). Raises
    `WeightsError`, naming the file, how to fetch it elsewhere and how to point here, where it cannot be had.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    for filename in filenames:
        try:
            return Path(hf_hub_download(repo, filename, local_files_only=True))
        except LocalEntryNotFoundError:
            continue
    reason = (
        "the hub is switched off (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else _hub_silence(constants.ENDPOINT)
    )
    for filename in () if reason else filenames:
        try:
            return Path(hf_hub_download(repo, filename))
        except LocalEntryNotFoundError as error:  # the hub does not answer, after the client's own retries
            reason = _short(error)
            break
        except EntryNotFoundError:
            reason = f"{repo} has none of {', '.join(filenames)}"
        except (*HfHubHTTPError.__bases__, OSError, ValueError) as error:  # the bases: a connection that breaks off
            reason = _short(error)
            break
    raise WeightsError(_how_to_fetch(model, repo, filenames[0], reason, constants.HF_HUB_CACHE))


def _how_to_fetch(model: str, repo: str, filename: str, reason: str, cache: str) -> str:
    return (
        f"no weights for {model}: {reason}, and {repo}/{filename} is not in the cache ({cache}). On a machine with "
        f"network: 'hf download {repo} {filename} --local-dir weights'; bring the file here and add "
        f"'--weights weights/{filename}'. For a dry run: '--weights random'."
    )


def _hub_silence(endpoint: str, timeout: float = 5.0) -> str:
    """Say why the hub cannot be reached, or "" where it can: one quick look, since the client retries for 45 s."""
    parts = urlsplit(endpoint)
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY")):
        return ""
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or endpoint, port), timeout=timeout).close()
    except OSError as error:
        return f"the hub ({endpoint}) does not answer ({_short(error)})"
    return ""


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


def _short(error: BaseException) -> str:
    """Return the first line of an error's message, bounded."""
    return (str(error).strip().split("\n")[0] or type(error).__name__)[:200]
