"""The hub's files: where they are, what the cache holds, how they are fetched and checked. Imports nothing heavy.

Loading a model lets the client fetch (`fetch_by_client`); the command ``fetch`` goes on where it was interrupted
(`download`), which the client no longer does. Neither asks a silent hub for minutes, or takes a file for whole unseen.
"""

import hashlib
import json
import logging
import os
import re
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vitprobe.backbones.zoo import ZooEntry
from vitprobe.errors import WeightsError

CLIP_REPOSITORIES = {
    "openclip-b32": "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
    "openclip-b16": "laion/CLIP-ViT-B-16-laion2B-s34B-b88K",
    "openclip-l14": "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
    "openclip-h14": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
}
"""Stated here since open_clip's own table comes with PyTorch; tests hold the two together."""
SHA256 = re.compile(r"[0-9a-f]{64}")
PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY")
TRIES = {"HEAD": 1, "GET": 2}
"""How often the client may ask for the same bytes in vain."""


def hub_location(entry: ZooEntry) -> tuple[str, tuple[str, ...]]:
    """Return the hub's repository of an entry of the zoo and the names its weights may have, the best first."""
    if entry.library == "timm":
        return f"timm/{entry.architecture}.{entry.tag}", ("model.safetensors", "pytorch_model.bin")
    return CLIP_REPOSITORIES[entry.alias], ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@dataclass(frozen=True)
class Remote:
    """Hold what the hub states about a file."""

    repo: str
    filename: str
    commit: str
    etag: str
    size: int | None

    @property
    def sha256(self) -> str | None:
        """The digest of a large file, which is its etag."""
        return self.etag if SHA256.fullmatch(self.etag) else None


class NoSuchFileError(WeightsError):
    """The repository is there, and has no file of that name."""


class _NoAnswer(Exception):
    """The client was about to ask for the same once more."""


def cached_file(repo: str, filenames: Sequence[str]) -> Path | None:
    """Return the first of ``filenames`` that the client's cache holds, or None; asks no network."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    for filename in filenames:
        try:
            return Path(hf_hub_download(repo, filename, local_files_only=True))
        except (LocalEntryNotFoundError, OSError):  # OSError: a cache that cannot be read
            continue
    return None


def stated_sha256(path: Path) -> str | None:
    """Return the SHA-256 that the hub stated for a file of the cache: the name that the client stores it under."""
    name = path.resolve().name
    return name if SHA256.fullmatch(name) else None


def fault(path: Path, *, size: int | None = None, sha256: str | None = None) -> str:
    """Say what is wrong with a weights file, "" where nothing is: its length, its header, its digest."""
    if size is not None and path.stat().st_size != size:
        return f"{path.stat().st_size} bytes, not {size}"
    if path.suffix == ".safetensors" and (wrong := header_fault(path)):
        return wrong
    if sha256 is not None and (got := digest(path)) != sha256:
        return f"its sha256 is {got[:12]}..., the hub states {sha256[:12]}..."
    return ""


def digest(path: Path) -> str:
    """Return a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def header_fault(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            return "no whole safetensors header"
        try:
            header = json.loads(file.read(length))
            end = max((one["data_offsets"][1] for name, one in header.items() if name != "__metadata__"), default=0)
        except (ValueError, AttributeError, TypeError, KeyError, IndexError):
            return "no safetensors header"
    return "" if 8 + length + end == size else f"{size} bytes, but its tensors end at {8 + length + end}"


def forget(path: Path) -> None:
    """Delete a file from the cache, so that the client fetches it again."""
    blob = path.resolve()
    path.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)


def fetch_by_client(repo: str, filename: str) -> Path:
    """Let the client fetch a file into its cache. Raises `WeightsError`; a damaged one is deleted again."""
    from huggingface_hub import hf_hub_download

    with _client(repo):
        path = Path(hf_hub_download(repo, filename))
    if damage := fault(path, sha256=stated_sha256(path)):
        forget(path)
        raise WeightsError(f"{filename} came damaged ({damage}) and was deleted, so try again")
    return path


def ask(repo: str, filenames: Sequence[str]) -> Remote:
    """Ask the hub for the first of ``filenames`` that it has. Raises `WeightsError` where there is none, or no hub."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    if reason := silence():
        raise WeightsError(reason)
    for filename in filenames:
        try:
            with _client(repo):
                stated = get_hf_file_metadata(hf_hub_url(repo, filename), timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except NoSuchFileError:
            continue
        if not stated.commit_hash or not stated.etag:
            raise WeightsError(f"{constants.ENDPOINT} answers, but not as the hub does: is HF_ENDPOINT right?")
        return Remote(repo, filename, stated.commit_hash, stated.etag, stated.size)
    raise WeightsError(f"{repo} has none of {', '.join(filenames)}")


def download(remote: Remote, target: Path) -> None:
    """Fetch a file to ``target``, whole or not at all.

    An interrupted fetch leaves ``*.part`` beside it, from where the next call goes on. What came is measured against
    the size and the SHA-256 that the hub states and against its own header; the ``*.part`` of a damaged one is deleted.
    """
    from huggingface_hub.utils import WeakFileLock

    part = target.with_name(f"{target.name[:40]}.{remote.etag[:16]}.part")
    lock = part.with_suffix(".lock")
    with _client(remote.repo):
        target.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if not (target.is_file() and not fault(target, size=remote.size, sha256=remote.sha256)):
                _fill(remote, part)
                os.replace(part, target)
        lock.unlink(missing_ok=True)


def _fill(remote: Remote, part: Path) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    have = part.stat().st_size if part.exists() else 0
    if remote.size is not None and have > remote.size:
        part.unlink()
        have = 0
    if have != remote.size:
        url = hf_hub_url(remote.repo, remote.filename, revision=remote.commit)
        try:
            with _client(remote.repo), part.open("ab") as file:
                http_get(url, file, resume_size=have, headers=build_hf_headers(), expected_size=remote.size)
        except WeightsError as error:
            came = part.stat().st_size if part.exists() else 0
            if not came:
                part.unlink(missing_ok=True)
                raise
            raise WeightsError(f"{error}; {came / 1e6:.1f} MB came and are kept: fetch again to go on") from error
    is_safetensors = remote.filename.endswith(".safetensors")
    damage = fault(part, size=remote.size, sha256=remote.sha256) or (header_fault(part) if is_safetensors else "")
    if damage:
        part.unlink()
        raise WeightsError(f"{remote.filename} came damaged ({damage}) and was deleted, so fetch it again")


@contextmanager
def _client(repo: str) -> Iterator[None]:
    """Run the client silently and with bounded patience; its errors come out as one line in a `WeightsError`."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of every retry
    try:
        with _bounded():
            yield
    except LocalEntryNotFoundError as error:  # the hub does not answer
        raise WeightsError(_reason(error.__cause__ or error, repo)) from error
    except EntryNotFoundError as error:
        raise NoSuchFileError(f"{repo} has no such file") from error
    except (_NoAnswer, *HfHubHTTPError.__bases__, OSError, ValueError) as error:  # bases: a connection that breaks off
        raise WeightsError(_reason(error, repo)) from error
    finally:
        logger.setLevel(level)


@contextmanager
def _bounded() -> Iterator[None]:
    """Stop the client from asking in vain for the same bytes, which it does for up to six minutes.

    Clients older than 1.0 have no such hooks and ask once.
    """
    from huggingface_hub.utils import get_session

    session = get_session()
    if not hasattr(session, "event_hooks"):
        yield
        return
    hooks, asked, said = dict(session.event_hooks), Counter(), {}

    def before(request: Any) -> None:
        key = (request.method, str(request.url), request.headers.get("range"))
        asked[key] += 1
        if asked[key] > TRIES.get(request.method, 6):
            raise _NoAnswer(said.get(str(request.url), ""))

    def after(response: Any) -> None:
        if response.status_code >= 400:
            said[str(response.request.url)] = str(response.status_code)

    session.event_hooks = {"request": [*hooks["request"], before], "response": [*hooks["response"], after]}
    try:
        yield
    finally:
        session.event_hooks = hooks


def _reason(error: BaseException, repo: str) -> str:
    """Say in one line what the client's error means and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    hub = f"the hub ({constants.ENDPOINT})"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, _NoAnswer) and str(error):
        status = int(str(error))
    if isinstance(error, GatedRepoError):
        return f"{repo} is gated; accept its terms at {constants.ENDPOINT}/{repo}, then log in with 'hf auth login'"
    if isinstance(error, RepositoryNotFoundError):
        return f"{hub} has no repository {repo}, or it is private; if so, log in with 'hf auth login'"
    if status in (401, 403):
        return f"{hub} refuses access to {repo} ({status}); check the token ('hf auth whoami')"
    if status is not None:
        return f"{hub} fails (HTTP {status}); try again later"
    if isinstance(error, _NoAnswer) or "Timeout" in type(error).__name__:
        seconds = max(constants.HF_HUB_ETAG_TIMEOUT, constants.HF_HUB_DOWNLOAD_TIMEOUT)
        return f"{hub} does not answer within {seconds:g} s, or breaks off"
    if isinstance(error, OSError) and error.errno and error.filename:
        return f"cannot write {error.filename} ({error.strerror})"
    return short(error)


def silence(timeout: float = 5.0) -> str:
    """Say why the hub cannot be asked, or "" where it can: one quick look, since the client retries for 45 s."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "the hub is switched off (HF_HUB_OFFLINE)"
    if any(os.environ.get(name) for name in PROXIES):
        return ""
    parts = urlsplit(constants.ENDPOINT)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or constants.ENDPOINT, port), timeout=timeout).close()
    except OSError as error:
        return f"the hub ({constants.ENDPOINT}) does not answer ({short(error)})"
    return ""


def short(error: BaseException) -> str:
    """Return the first line of an error's message, bounded."""
    return (str(error).strip().split("\n")[0] or type(error).__name__)[:200]
