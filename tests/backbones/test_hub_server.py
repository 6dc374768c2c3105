"""The real client against a hub on this machine: true architectures and file layouts, and every way to fail."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from huggingface_hub import constants
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor, nn

from vitprobe.backbones import hub as client
from vitprobe.backbones import load
from vitprobe.backbones.zoo import ALIASES, ZOO, ZooEntry
from vitprobe.errors import WeightsError

sys.path.append(str(Path(__file__).parent))  # tests are no package
from hub_server import FakeHub, serving

FAMILIES = ["deit3-s16", "dinov2-s14", "openclip-b32"]
DEIT = client.hub_location(ALIASES["deit3-s16"])
TEXT = {"context_length": 8, "vocab_size": 100, "width": 16, "heads": 2, "layers": 1}


def own_model(alias: str) -> nn.Module:
    """The library's own model with random weights; a whole CLIP, with a small text tower, for open_clip."""
    entry = ALIASES[alias]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        if entry.library == "timm":
            return timm.create_model(entry.architecture).eval()
        config = open_clip.get_model_config(entry.architecture)
        return CLIP(**{key: config[key] for key in ("embed_dim", "vision_cfg")}, text_cfg=TEXT).eval()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[nn.Module, Path]]:
    """One model of each family, and its file in the layout of its library."""
    folder, made = tmp_path_factory.mktemp("served"), {}
    for alias in FAMILIES:
        model, path = own_model(alias), folder / f"{alias}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
        made[alias] = model, path
    return made


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serving(tmp_path / "hub", monkeypatch) as served:
        yield served


@pytest.fixture
def small(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """A hub whose only file, at the place of deit3-s16, is small: for ways to fail."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # the client writes whole chunks
    path = tmp_path / "small.safetensors"
    save_file({"a": torch.arange(40_000.0)}, path)
    hub.files[DEIT[0], DEIT[1][0]] = path
    return hub


def refusal() -> str:
    """The one line that says why deit3-s16 is not loaded."""
    with pytest.raises(WeightsError) as caught:
        load("deit3-s16")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("no weights for deit3-s16: ")
    return str(caught.value)


def assert_foreign() -> None:
    """The small file came whole, and is read: it fits no model."""
    with pytest.raises(WeightsError, match="does not fit deit3-s16"):
        load("deit3-s16")


def left_behind(cache: Path) -> list[Path]:
    """The files that could be taken for weights."""
    return [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size > 1000]


@torch.no_grad()
def outputs(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.alias)
def test_the_location_is_the_librarys_own(entry: ZooEntry) -> None:
    repo, names = client.hub_location(entry)
    if entry.library == "timm":
        stated = timm.get_pretrained_cfg(f"{entry.architecture}.{entry.tag}")
        assert (stated.hf_hub_id, stated.hf_hub_filename) == (repo, None)
    else:
        assert open_clip.get_pretrained_cfg(entry.architecture, entry.tag)["hf_hub"] == f"{repo}/"
    assert all(Path(name).suffix in (".safetensors", ".bin") for name in names)


@pytest.mark.parametrize("alias", FAMILIES)
def test_weights_come_from_the_hub_and_then_from_its_cache(
    alias: str, models: dict[str, tuple[nn.Module, Path]], hub: FakeHub, tmp_path: Path
) -> None:
    own, path = models[alias]
    repo, names = client.hub_location(ALIASES[alias])
    hub.files[repo, names[0]] = path
    backbone = load(alias)
    x = torch.randn(1, 3, *backbone.spec.image_size, generator=torch.Generator().manual_seed(8))
    assert torch.equal(outputs(backbone, x), outputs(getattr(own, "visual", own), x))
    assert hub.ranges() == [None]
    hub.asked.clear()
    assert load(alias).spec == backbone.spec
    assert hub.asked == []  # no network with the file in the cache


def test_the_second_name_is_taken_where_the_first_is_missing(small: FakeHub, tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    torch.save(own_model("deit3-s16").state_dict(), path)
    small.files = {(DEIT[0], DEIT[1][1]): path}
    assert load("deit3-s16").spec.weights == ALIASES["deit3-s16"].tag


def test_a_cut_connection_is_taken_up_again(small: FakeHub) -> None:
    small.cuts = [50_000]
    assert_foreign()
    assert small.ranges() == [None, "bytes=50000-"]


def test_a_download_goes_on_in_the_next_call(small: FakeHub, tmp_path: Path) -> None:
    remote, target = client.ask(*DEIT), tmp_path / "w" / "model.safetensors"
    small.cuts = [50_000, 0, 0, 0, 0]
    with pytest.raises(WeightsError, match=r"breaks off; 0\.1 MB came and are kept: fetch again to go on"):
        client.download(remote, target)
    assert not target.exists()
    small.cuts.clear()
    small.asked.clear()
    client.download(remote, target)
    assert small.ranges() == ["bytes=50000-"]
    assert target.read_bytes() == small.files[DEIT[0], DEIT[1][0]].read_bytes()
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_server_without_ranges_sends_everything_again(small: FakeHub, tmp_path: Path) -> None:
    remote, target = client.ask(*DEIT), tmp_path / "w" / "model.safetensors"
    small.cuts, small.plain = [50_000], True
    client.download(remote, target)
    assert target.read_bytes() == small.files[DEIT[0], DEIT[1][0]].read_bytes()


def test_a_wrong_byte_is_found(small: FakeHub, tmp_path: Path) -> None:
    """Its length and header are right: only the digest shows it."""
    small.corrupt = True
    assert "model.safetensors came damaged (its sha256 is " in refusal()
    assert left_behind(tmp_path / "hub") == []
    remote, target = client.ask(*DEIT), tmp_path / "w" / "model.safetensors"
    with pytest.raises(WeightsError, match="came damaged"):
        client.download(remote, target)
    assert not target.exists() and left_behind(tmp_path / "w") == []
    small.corrupt = False
    client.download(remote, target)
    assert client.digest(target) == remote.sha256


@pytest.mark.parametrize("how", ["cut short", "grown", "no header", "another's header"])
def test_a_damaged_file_in_the_cache_is_fetched_again(how: str, small: FakeHub) -> None:
    path = client.fetch_by_client(DEIT[0], DEIT[1][0])
    whole = path.read_bytes()
    odd = {"cut short": whole[:-9], "grown": whole + b"x", "no header": b"x" * 99, "another's header": whole[:8] * 9}
    path.resolve().write_bytes(odd[how])
    constants.HF_HUB_OFFLINE = True  # put back by the fixture
    assert "the hub is switched off" in (message := refusal()) and "model.safetensors is damaged (" in message
    constants.HF_HUB_OFFLINE = False
    assert_foreign()
    assert path.read_bytes() == whole


REFUSALS = {
    (404, "EntryNotFound"): "has none of model.safetensors, pytorch_model.bin",
    (404, "RepoNotFound"): "has no repository timm/deit3_small",
    (401, "RepoNotFound"): "or it is private; if so, log in with 'hf auth login'",
    (403, "GatedRepo"): "is gated; accept its terms at http://127.0.0.1",
    (401, "GatedRepo"): "is gated; accept its terms at http://127.0.0.1",
    (403, ""): "refuses access to timm/deit3_small_patch16_224.fb_in22k_ft_in1k (403)",
    (500, ""): "fails (HTTP 500); try again later",
    (503, ""): "fails (HTTP 503); try again later",
    (429, ""): "fails (HTTP 429); try again later",
}


@pytest.mark.parametrize("answer", REFUSALS, ids=str)
def test_a_refusal_is_said_at_once(answer: tuple[int, str], small: FakeHub, tmp_path: Path) -> None:
    small.refuse, start = answer, time.monotonic()
    assert REFUSALS[answer] in refusal()
    with pytest.raises(WeightsError) as caught:
        client.ask(*DEIT)
    assert REFUSALS[answer] in str(caught.value)
    assert time.monotonic() - start < 5
    assert left_behind(tmp_path) == [small.files[DEIT[0], DEIT[1][0]]]


def test_a_hub_that_takes_the_call_and_says_nothing_is_left(
    small: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client alone would ask again for six minutes."""
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.5)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    remote = client.ask(*DEIT)
    small.silent, start = True, time.monotonic()
    assert "does not answer within 0.5 s" in refusal()
    for call in (lambda: client.ask(*DEIT), lambda: client.download(remote, tmp_path / "w" / "m.safetensors")):
        with pytest.raises(WeightsError, match=r"does not answer within 0\.5 s"):
            call()
    assert time.monotonic() - start < 12
    assert left_behind(tmp_path) == [small.files[DEIT[0], DEIT[1][0]]]


def test_a_cache_that_cannot_be_written_is_said(small: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file stands where the cache should be, which even root cannot write into."""
    path = small.files[DEIT[0], DEIT[1][0]]
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(path))
    assert f"cannot write {path}" in refusal()
