"""Weights from the hub: out of its cache without any network, and a hub that cannot be had is said at once."""

import socket
import socketserver
import threading
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor

from vitprobe.backbones import load
from vitprobe.backbones.weights import hub_file
from vitprobe.backbones.zoo import ALIASES
from vitprobe.errors import WeightsError


def refusal(name: str) -> str:
    """The one line that says why the hub's weights are not loaded."""
    with pytest.raises(WeightsError) as caught:
        load(name, weights="hub")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def closed_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a hub at a local port where nobody listens; returns the cache."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "hub"


@pytest.mark.parametrize(
    ("name", "repo", "file"),
    [
        ("deit3-s16", "timm/deit3_small_patch16_224.fb_in22k_ft_in1k", "model.safetensors"),
        ("dinov2-reg", "timm/vit_large_patch14_reg4_dinov2.lvd142m", "model.safetensors"),
        ("openclip-b32", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "open_clip_model.safetensors"),
    ],
)
def test_a_silent_hub_is_said_at_once(name: str, repo: str, file: str, closed_hub: Path) -> None:
    start = time.monotonic()
    message = refusal(name)
    assert time.monotonic() - start < 10  # the client alone retries for most of a minute
    for part in (f"no weights for {name}", f"{repo}/{file}", "does not answer", str(closed_hub), "--weights random"):
        assert part in message
    assert f"hf download {repo} {file}" in message


def test_a_hub_that_is_switched_off_is_not_asked(closed_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "the hub is switched off (HF_HUB_OFFLINE)" in refusal("deit3-s16")


def put_in_cache(cache: Path, repo: str, file: str, state: dict[str, Tensor]) -> None:
    """Lay a file out as the hub's client does: a snapshot of a commit, and a reference to it."""
    folder, commit = cache / f"models--{repo.replace('/', '--')}", "c" * 40
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    path = folder / "snapshots" / commit / file
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)


@pytest.mark.parametrize(
    ("name", "repo", "file"),
    [
        ("deit3-s16", "timm/deit3_small_patch16_224.fb_in22k_ft_in1k", "model.safetensors"),
        ("openclip-b32", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "open_clip_pytorch_model.bin"),
    ],
)
def test_a_cached_file_needs_no_network(name: str, repo: str, file: str, closed_hub: Path) -> None:
    """Also where the cache holds the second of the names that a repository may use."""
    made = load(name, weights="random", seed=5)
    put_in_cache(closed_hub, repo, file, made.module.state_dict())
    found = load(name)
    assert found.spec.weights == ALIASES[name].tag
    assert found.spec.digest == made.spec.digest
    assert found.spec.image_size == (224, 224)


def ask_at(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    template = f"http://127.0.0.1:{port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def test_a_hub_that_hangs_up_is_said(closed_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client lets the errors of its HTTP library through, which are no OSError."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        ask_at(server.server_address[1], monkeypatch)
        try:
            message = refusal("deit3-s16")
            assert message.startswith("no weights for deit3-s16: ") and "--weights random" in message
        finally:
            server.shutdown()


def test_the_hub_is_asked_for_one_name_after_the_other(closed_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository without the first name may have the second; the cache is looked into before anything is asked."""
    asked = []

    def download(repo: str, file: str, local_files_only: bool = False) -> str:
        asked.append((file, local_files_only))
        if local_files_only:
            raise LocalEntryNotFoundError("not here")
        if file == "a.safetensors":
            raise EntryNotFoundError("404")
        return f"/cache/{repo}/{file}"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with socket.create_server(("127.0.0.1", 0)) as server:
        ask_at(server.getsockname()[1], monkeypatch)
        assert hub_file("o/r", ["a.safetensors", "a.bin"], model="m") == Path("/cache/o/r/a.bin")
        assert asked == [("a.safetensors", True), ("a.bin", True), ("a.safetensors", False), ("a.bin", False)]
        with pytest.raises(WeightsError, match=r"o/r has none of a\.safetensors"):
            hub_file("o/r", ["a.safetensors"], model="m")
