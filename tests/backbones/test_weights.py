"""Weights: files of every kind give back the library's own model, and bad ones are named in one line, unrun."""

import json
import os
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from open_clip.model import CLIP, resize_pos_embed
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from vitprobe.backbones import load
from vitprobe.backbones.base import digest_module
from vitprobe.backbones.weights import read_state_dict
from vitprobe.errors import ArgumentError, VitprobeError, WeightsError

TINY = "timm:vit_tiny_patch16_224"
OWN_NAMES = {TINY: "vit_tiny_patch16_224", "deit3-s16": "deit3_small_patch16_224"}
OWN_NAMES["dinov2-s14"] = "vit_small_patch14_dinov2"


@cache
def own_model(name: str) -> nn.Module:
    """The true architecture with random weights, built by its own library; whole CLIP for open_clip."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        if name in OWN_NAMES:
            module = timm.create_model(OWN_NAMES[name])
            module.pos_embed.data = torch.randn(module.pos_embed.shape)
        else:
            config = open_clip.get_model_config("ViT-B-32")
            module = CLIP(**{key: config[key] for key in ("embed_dim", "vision_cfg")}, text_cfg=TEXT)
    return module.eval()


TEXT = {"context_length": 8, "vocab_size": 100, "width": 16, "heads": 2, "layers": 1}


def images(*size: int) -> Tensor:
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(8))


def save(state: dict[str, Tensor], path: Path) -> str:
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        torch.save(state, path)
    return str(path)


@torch.no_grad()
def outputs(module: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return module(x)


def refusal(name: str, weights: object, error: type[VitprobeError] = WeightsError) -> str:
    """The one line that says why the weights are not loaded."""
    with pytest.raises(error) as caught:
        load(name, weights=str(weights))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save(own_model(TINY).state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        (TINY, ".safetensors"),
        (TINY, ".pt"),
        (TINY, ".pth"),
        (TINY, ".bin"),
        ("deit3-s16", ".pth"),
        ("dinov2-s14", ".pt"),
    ],
)
def test_timm_file_gives_the_librarys_outputs(name: str, suffix: str, tmp_path: Path) -> None:
    own = own_model(name)
    backbone = load(name, weights=save(own.state_dict(), tmp_path / f"w{suffix}"))
    x = images(*backbone.spec.image_size)
    assert torch.equal(outputs(backbone, x), outputs(own, x))
    assert backbone.spec.weights == f"w{suffix}"
    assert backbone.spec.digest == digest_module(own)


@pytest.mark.parametrize("part", ["whole", "tower", "wrapped"])
def test_open_clip_file_gives_the_librarys_outputs(part: str, tmp_path: Path) -> None:
    """A whole CLIP, its visual tower alone, and a training checkpoint of a wrapped model."""
    own = own_model("openclip-b32")
    state = own.visual.state_dict() if part == "tower" else own.state_dict()
    if part == "wrapped":
        state = {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}
    path = save(state, tmp_path / ("w.pt" if part == "wrapped" else "w.safetensors"))
    x = images(224, 224)
    assert torch.equal(outputs(load("openclip-b32", weights=path), x), outputs(own.visual, x))


@pytest.mark.parametrize("size", [(96, 160), (448, 112)])
def test_timm_positions_are_resized_in_2d(size: tuple[int, int], tiny_file: Path) -> None:
    """Also on a grid of 28 x 7, which has as many patches as 14 x 14."""
    backbone, own = load(TINY, weights=str(tiny_file), image_size=size), own_model(TINY)
    grid = (size[0] // 16, size[1] // 16)
    table = resample_abs_pos_embed(own.pos_embed.detach(), new_size=grid, old_size=(14, 14), num_prefix_tokens=1)
    assert torch.equal(backbone.module.pos_embed, table)
    other = timm.create_model("vit_tiny_patch16_224", img_size=size).eval()
    other.load_state_dict(own.state_dict() | {"pos_embed": table})
    assert torch.equal(outputs(backbone, images(*size)), outputs(other, images(*size)))


def test_dinov2_at_224_is_resized_from_518(tmp_path: Path) -> None:
    own = own_model("dinov2-s14")
    path = save(own.state_dict(), tmp_path / "w.pt")
    backbone = load("dinov2-s14", weights=path, image_size=(224, 112))
    table = resample_abs_pos_embed(own.pos_embed.detach(), new_size=(16, 8), old_size=(37, 37), num_prefix_tokens=1)
    assert torch.equal(backbone.module.pos_embed, table)


@pytest.mark.parametrize("size", [(256, 128), (224, 448), (32, 1568)])
def test_open_clip_positions_are_resized_in_2d(size: tuple[int, int], tmp_path: Path) -> None:
    """As open_clip does, and on 1 x 49, where open_clip itself would take the 7 x 7 table as it is, by hand."""
    own = own_model("openclip-b32")
    backbone = load("openclip-b32", weights=save(own.state_dict(), tmp_path / "w.pt"), image_size=size)
    grid = (size[0] // 32, size[1] // 32)
    state = {"visual.positional_embedding": own.visual.positional_embedding.detach()}
    holder = nn.Module()
    holder.visual = nn.Module()
    holder.visual.grid_size = grid
    resize_pos_embed(state, holder)
    table = state["visual.positional_embedding"]
    if grid == (1, 49):
        square = own.visual.positional_embedding.detach().narrow(0, 1, 49).T.reshape(1, -1, 7, 7)
        patches = nn.functional.interpolate(square, size=grid, mode="bicubic", antialias=True)[0].flatten(1).T
        table = torch.cat([own.visual.positional_embedding.detach().narrow(0, 0, 1), patches])
    assert torch.allclose(backbone.module.positional_embedding, table, atol=1e-6)
    assert torch.isfinite(outputs(backbone, images(*size))).all()


def test_wrappings_are_taken_off(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.ones(2), "b": torch.zeros(1)}
    wrapped = {f"module.{name}": tensor for name, tensor in tensors.items()}
    for key in ("state_dict", "model", "model_state_dict"):
        got = read_state_dict(Path(save({"epoch": 1, key: wrapped}, tmp_path / "w.pth")))
        assert got.keys() == tensors.keys()
        assert all(torch.equal(got[name], tensors[name]) for name in tensors)


def test_files_of_other_models_are_refused(tiny_file: Path, tmp_path: Path) -> None:
    clip = save(own_model("openclip-b32").visual.state_dict(), tmp_path / "clip.pt")
    missing = save({k: v for k, v in own_model(TINY).state_dict().items() if "norm1" not in k}, tmp_path / "less.pt")
    more = save(own_model(TINY).state_dict() | {"new": torch.ones(1)}, tmp_path / "more.pt")
    for name, path in (("deit3-s16", tiny_file), ("deit3-s16", clip), (TINY, missing), (TINY, more)):
        assert f"does not fit {name}" in refusal(name, path)
    assert "does not fit openclip-b32: 152 tensors missing" in refusal("openclip-b32", tiny_file)
    clip_and = save(own_model("openclip-b32").visual.state_dict() | {"new": torch.ones(1)}, tmp_path / "and.pt")
    assert "does not fit openclip-b32: 1 unknown (new ...)" in refusal("openclip-b32", clip_and)
    assert "class_embedding is (768,), not (384,)" in refusal("open_clip:ViT-S-16", clip)


def test_another_patch_size_is_not_resized_in_silence(tmp_path: Path) -> None:
    """timm would resample the kernels of 32 px to 16 px and load the wrong model without a word."""
    path = save(timm.create_model("vit_small_patch32_224").state_dict(), tmp_path / "w.safetensors")
    assert "has patches of 32 x 32 px" in refusal("timm:vit_small_patch16_224", path)


def test_damaged_files_are_refused(tiny_file: Path, tmp_path: Path) -> None:
    whole = {".safetensors": tiny_file.read_bytes()}
    for suffix, new in ((".pth", True), (".bin", False)):
        torch.save(own_model(TINY).state_dict(), tmp_path / "x", _use_new_zipfile_serialization=new)
        whole[suffix] = (tmp_path / "x").read_bytes()
    for suffix, content in whole.items():
        for what, part in (("cut", content[: len(content) // 2]), ("empty", b""), ("text", b"Not weights, a letter.")):
            path = tmp_path / f"{what}{suffix}"
            path.write_bytes(part)
            message = refusal(TINY, path)
            assert path.name in message
            assert "fetch it again" in message or "holds more than tensors, or is damaged" in message


def test_missing_files_and_other_suffixes_are_refused(tiny_file: Path, tmp_path: Path) -> None:
    assert "allowed are hub, random, or a file that exists" in refusal(TINY, tmp_path / "none.safetensors")
    assert "allowed are hub, random, or a file that exists" in refusal(TINY, tmp_path)
    npz = tmp_path / "w.npz"
    npz.write_bytes(tiny_file.read_bytes())
    assert "a weights file ends in .safetensors, .pt, .pth, .bin" in refusal(TINY, npz)
    for content, said in ((torch.ones(2), "holds a Tensor"), ({"a": 1}, "holds no tensors")):
        torch.save(content, tmp_path / "w.pt")
        assert said in refusal(TINY, tmp_path / "w.pt")
    folder = refusal(str(tiny_file), "hub", ArgumentError)
    assert "is a file, which does not say its architecture; give --model NAME --weights" in folder


class Attack:
    """Unpickled with trust, makes the folder whose path it was given."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("way", ["zip", "plain", "whole module", "folder"])
def test_a_pickle_runs_no_code(way: str, tmp_path: Path) -> None:
    trap = tmp_path / "trapped"
    content = {"state_dict": Attack(trap)} | own_model(TINY).state_dict()
    name, path = TINY, tmp_path / "pytorch_model.bin"
    if way == "plain":
        path.write_bytes(pickle.dumps({"state_dict": Attack(trap)}))
    else:
        torch.save(own_model(TINY) if way == "whole module" else content, path)
    if way == "folder":
        (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224"}))
        name = str(tmp_path)
    message = refusal(name, "hub" if way == "folder" else path)
    assert "a pickle can run code; save its state dict as .safetensors" in message
    assert not trap.exists()
    if way == "zip":  # the trap itself works
        torch.load(path, weights_only=False)
        assert trap.is_dir()


def checkpoint(folder: Path, state: dict[str, Tensor] | bytes, **config: object) -> str:
    """A folder in timm's layout, written by hand."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224"} | config))
    if isinstance(state, bytes):
        (folder / "model.safetensors").write_bytes(state)
    else:
        save(state, folder / "model.safetensors")
    return str(folder)


def test_a_checkpoint_folder_loads(tmp_path: Path) -> None:
    """A variant with registers on a grid that is not square, written by timm itself, also at another size."""
    arguments = {"img_size": (96, 160), "reg_tokens": 4, "no_embed_class": True}
    own = timm.create_model("vit_tiny_patch16_224", **arguments).eval()
    timm.models.save_for_hf(own, str(tmp_path), model_args=arguments)
    backbone = load(str(tmp_path))
    assert (backbone.spec.num_registers, backbone.spec.image_size) == (4, (96, 160))
    assert torch.equal(outputs(backbone, images(96, 160)), outputs(own, images(96, 160)))
    turned = load(str(tmp_path), image_size=(160, 96)).module.pos_embed
    table = resample_abs_pos_embed(own.pos_embed.detach(), new_size=(10, 6), old_size=(6, 10), num_prefix_tokens=0)
    assert torch.equal(turned, table)


def test_a_checkpoint_written_by_hand_loads(tmp_path: Path) -> None:
    own = own_model(TINY)
    backbone = load(checkpoint(tmp_path / "c", own.state_dict()))
    assert torch.equal(outputs(backbone, images(224, 224)), outputs(own, images(224, 224)))


def test_bad_checkpoint_folders_are_refused(tiny_file: Path, tmp_path: Path) -> None:
    state, cut = own_model(TINY).state_dict(), tiny_file.read_bytes()[:5000]
    assert "holds no config.json" in refusal(str(tmp_path), "hub", ArgumentError)
    assert "timm cannot build" in refusal(checkpoint(tmp_path / "a", state, architecture="none"), "hub", ArgumentError)
    assert "names no architecture" in refusal(checkpoint(tmp_path / "b", state, architecture=3), "hub", ArgumentError)
    odd = checkpoint(tmp_path / "c", state, model_args={"no_such": 1}, pretrained_cfg={})
    assert "unexpected keyword argument 'no_such'" in refusal(odd, "hub", ArgumentError)
    assert "no whole safetensors file" in refusal(checkpoint(tmp_path / "d", cut), "hub")
    assert "does not fit" in refusal(checkpoint(tmp_path / "e", state, architecture="vit_small_patch16_224"), "hub")
    (tmp_path / "e" / "model.safetensors").unlink()
    assert "holds no weights; beside config.json belongs model.safetensors" in refusal(str(tmp_path / "e"), "hub")
    (tmp_path / "e" / "config.json").write_text("{")
    assert "config.json cannot be read" in refusal(str(tmp_path / "e"), "hub", ArgumentError)


@pytest.mark.parametrize("name", [TINY, "openclip-b32"])
def test_random_weights_follow_their_seed_alone(name: str) -> None:
    state = torch.get_rng_state()
    one, other, third = (load(name, weights="random", image_size=(32, 64), seed=seed).spec for seed in (1, 2, 1))
    torch.rand(3)
    assert one.digest == third.digest != other.digest
    assert load(name, weights="random", image_size=(32, 64), seed=1).spec.digest == one.digest
    assert one.weights == "random (seed 1)"
    torch.set_rng_state(state)
    load(name, weights="random", image_size=(32, 64))
    assert torch.equal(torch.get_rng_state(), state)


def test_loading_a_file_draws_no_random_number(tiny_file: Path) -> None:
    state = torch.get_rng_state()
    load(TINY, weights=str(tiny_file))
    assert torch.equal(torch.get_rng_state(), state)
