"""The reference ViT and timm's names: weights come in block by block, go out, and what does not fit is named."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from vitprobe.backbones import load
from vitprobe.backbones.base import digest_module
from vitprobe.backbones.create import create
from vitprobe.backbones.export import export
from vitprobe.backbones.reference import build
from vitprobe.backbones.reference_names import from_timm, load_timm_weights, read_config_of, timm_state
from vitprobe.backbones.reference_vit import VisionTransformer, ViTConfig
from vitprobe.backbones.timm_vit import TimmViT
from vitprobe.errors import WeightsError
from vitprobe.recorder import Recorder, Site
from vitprobe.registers.insert import insert

TRUE = {
    "vit_tiny_patch16_224": ViTConfig(width=192, num_heads=3),
    "deit3_small_patch16_224": ViTConfig(width=384, num_heads=6),
    "vit_small_patch14_reg4_dinov2": ViTConfig(width=384, num_heads=6, patch_size=(14, 14)),
}
SLOW = {
    "vit_small_patch16_224": ViTConfig(width=384, num_heads=6),
    "vit_base_patch16_224": ViTConfig(width=768, num_heads=12),
    "deit3_base_patch16_224": ViTConfig(width=768, num_heads=12),
    "vit_base_patch16_384": ViTConfig(width=768, num_heads=12),
}
"""timm's architectures, and what of them their weights do not show."""


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def timm_model(name: str, stir: Callable, **kwargs: object) -> nn.Module:
    """A model of timm whose every parameter matters."""
    with torch.random.fork_rng(devices=[]):
        module = timm.create_model(name, **kwargs).eval()
    stir(module)
    return module


def reference_of(module: nn.Module, config: ViTConfig) -> VisionTransformer:
    """The reference ViT with the weights of a model of timm."""
    config = read_config_of(config, from_timm(module.state_dict(), file="timm's"), file="timm's")
    own = build(config, seed=0)
    load_timm_weights(own, module.state_dict())
    return own


def difference(got: Tensor, expected: Tensor) -> float:
    """The largest, relative to the largest expected number."""
    assert got.shape == expected.shape
    return ((got - expected).abs().max() / expected.abs().max()).item()


@torch.no_grad()
@pytest.mark.parametrize("name", [*TRUE, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_block_by_block_as_timm(name: str, stir: Callable) -> None:
    theirs = timm_model(name, stir, **({"img_size": 224} if "dinov2" in name else {}))
    own = reference_of(theirs, (TRUE | SLOW)[name])
    images = noise(1, 3, *theirs.patch_embed.img_size)
    stream = own.embed(own.patch_embedding(images), own.grid)  # (B, T, D)
    blocks: list[tuple[Tensor, Tensor]] = []
    for block in theirs.blocks:
        block.register_forward_hook(lambda _, inputs, output: blocks.append((inputs[0], output)))
    output = theirs(images)
    expected = theirs.forward_features(images)
    assert difference(stream, blocks[0][0]) < 1e-5
    assert len(own.blocks) == 12
    for block, (_, after) in zip(own.blocks, blocks[:12], strict=True):
        stream = block(stream)
        assert difference(stream, after) < 1e-5
    assert difference(own.final_norm(stream), expected) < 1e-5
    assert difference(own(images), output) < 1e-5
    back, state = timm_state(own), theirs.state_dict()
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)


@torch.no_grad()
def test_one_wrong_name_would_be_seen(stir: Callable) -> None:
    """A negative control: the two norms of one block, exchanged, or LayerScale of the two branches."""
    theirs = timm_model("deit3_small_patch16_224", stir, depth=2, img_size=64)
    own = reference_of(theirs, ViTConfig(width=384, num_heads=6, depth=2))
    images = noise(1, 3, 64, 64)
    assert difference(own(images), theirs(images)) < 1e-5
    for one, other in (("norm1", "norm2"), ("ls1", "ls2")):
        state = {}
        for key, tensor in theirs.state_dict().items():
            swap = {one: other, other: one}
            state[".".join(swap.get(part, part) if "blocks.1." in key else part for part in key.split("."))] = tensor
        load_timm_weights(own, state)
        assert difference(own(images), theirs(images)) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("is_covered", [True, False])
def test_positions_of_tokens_that_have_no_place_join_their_tokens(is_covered: bool, stir: Callable) -> None:
    """timm may give registers positions, or CLS none: the stream before block 0 is timm's to the bit all the same."""
    args = {"depth": 1, "img_size": 32, "reg_tokens": 2, "no_embed_class": not is_covered}
    theirs = timm_model("vit_tiny_patch16_224", stir, **args)
    images, seen = noise(2, 3, 32, 32), []
    theirs.blocks[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    output = theirs(images)
    for has_place in (True, False):
        config = ViTConfig(
            width=192, num_heads=3, depth=1, image_size=(32, 32), num_registers=2, cls_has_position=has_place
        )
        own = build(config, seed=0)
        load_timm_weights(own, theirs.state_dict())
        assert torch.equal(own.embed(own.patch_embedding(images), own.grid), seen[0])
        assert torch.equal(own(images), output)
    without = timm_model(
        "vit_tiny_patch16_224", stir, **args | {"class_token": False, "global_pool": "avg", "fc_norm": False}
    )
    own = reference_of(without, ViTConfig(width=192, num_heads=3, depth=1))
    assert own.config.pooling == "mean" and torch.equal(own(images), without(images))


@torch.no_grad()
def test_a_file_of_timm_and_one_of_its_own(stir: Callable, tmp_path: Path) -> None:
    """At the file's size, and at another: positions are resized as timm resizes them when it loads."""
    theirs = timm_model("vit_tiny_patch16_224", stir, num_classes=7, img_size=96, init_values=0.1)
    save_file(theirs.state_dict(), tmp_path / "timm.safetensors")
    backbone = load("reference-vit-ti", weights=str(tmp_path / "timm.safetensors"))
    assert (backbone.spec.image_size, backbone.spec.weights) == ((96, 96), "timm.safetensors")
    assert backbone.spec.title == "reference-vit-ti, timm.safetensors"
    assert torch.equal(backbone(noise(2, 3, 96, 96)), theirs(noise(2, 3, 96, 96)))
    save_file(backbone.module.state_dict(), tmp_path / "own.safetensors")
    torch.save({"state_dict": backbone.module.state_dict()}, tmp_path / "own.pt")
    for name in ("own.safetensors", "own.pt"):
        assert load("reference-vit-ti", weights=str(tmp_path / name)).spec.digest == backbone.spec.digest
    theirs.set_input_size((64, 128))
    for name in ("timm.safetensors", "own.safetensors"):
        other = load("reference-vit-ti", weights=str(tmp_path / name), image_size=(64, 128))
        assert other.module.grid == (4, 8)
        assert torch.equal(other(noise(2, 3, 64, 128)), theirs(noise(2, 3, 64, 128)))
    registers = insert(backbone, 3)
    save_file(registers.module.state_dict(), tmp_path / "reg.safetensors")
    again = load("reference-vit-ti", weights=str(tmp_path / "reg.safetensors"))
    assert again.spec.num_registers == 3 and again.spec.digest == registers.spec.digest


def test_images_come_as_the_config_beside_the_file_says(stir: Callable, tmp_path: Path) -> None:
    """DeiT's weights fit as well as those of the paper's own code, but want another mean and spread."""
    image = Image.radial_gradient("L").convert("RGB").rotate(30)
    plain = load("reference-vit-ti", weights="random").transform(image)
    for name, folder in (("deit_tiny_patch16_224", "deit"), ("vit_tiny_patch16_224", "vit")):
        (tmp_path / folder).mkdir()
        theirs = load(f"timm:{name}", weights="random")
        export(theirs, tmp_path / folder)
        backbone = load("reference-vit-ti", weights=str(tmp_path / folder / "model.safetensors"))
        assert torch.equal(backbone.transform(image), theirs.transform(image))
        assert backbone.transform.mean == theirs.transform.mean
        assert torch.equal(backbone.transform(image), plain) == (folder == "vit")
    (tmp_path / "deit" / "config.json").write_text('{"architectures": ["ViTModel"]}')
    bare = load("reference-vit-ti", weights=str(tmp_path / "deit" / "model.safetensors"))
    assert torch.equal(bare.transform(image), plain)


def test_what_does_not_fit_is_said_in_one_line(stir: Callable, tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match="reference-vit-s has no weights on the hub; give --weights random, or a file"
    ):
        load("reference-vit-s")
    short = {"depth": 2, "img_size": 32}
    cases = {
        "vit_tiny_patch16_224": (short, "does not fit reference-vit-ti: .*tensors missing"),
        "vit_small_patch16_224": ({"img_size": 32}, r"is \(1, 1, 384\), not \(1, 1, 192\)"),
        "vit_tiny_r_s16_p8_224": (short, r"holds patch_embed\.backbone\..*, for which"),
        "vit_base_patch16_clip_224": (short, r"holds norm_pre\.\w+, for which the reference ViT has no place"),
        "deit_tiny_patch16_224": ({**short, "global_pool": "avg"}, r"holds fc_norm\."),
        "deit_tiny_distilled_patch16_224": (short, "holds dist_token"),
        "vit_small_patch16_dinov3": (short, r"holds blocks\.\d\.gamma_"),
        "resnet18": ({}, r"holds (conv1|bn1|fc|layer1)"),
    }
    for name, (kwargs, match) in cases.items():
        with torch.random.fork_rng(devices=[]):
            save_file(timm.create_model(name, **kwargs).state_dict(), tmp_path / "model.safetensors")
        with pytest.raises(WeightsError, match=match) as caught:
            load("reference-vit-ti", weights=str(tmp_path / "model.safetensors"))
        assert "\n" not in str(caught.value) and "model.safetensors" in str(caught.value)
    state = timm_model("vit_tiny_patch16_224", stir, img_size=(32, 48)).state_dict()
    save_file(state, tmp_path / "wide.safetensors")
    with pytest.raises(WeightsError, match=r"positions of shape \(1, 7, 192\), which are of no square grid"):
        load("reference-vit-ti", weights=str(tmp_path / "wide.safetensors"))
    with pytest.raises(WeightsError, match=r"1 tensors missing \(positions \.\.\.\)"):
        load_timm_weights(
            build(ViTConfig(width=192, num_heads=3), 0), {k: v for k, v in state.items() if k != "pos_embed"}
        )


EXPORTED = {
    "plain": ({}, 0), "registers": ({"layer_scale": 0.1, "drop_path": 0.2}, 4),
    "mean": ({"pooling": "mean", "num_registers": 2, "has_qk_norm": True}, 0),
    "no-cls": ({"has_cls": False, "pooling": "mean", "patch_size": 8, "mlp_ratio": 2.7}, 3),
    "cls-position": ({"num_registers": 2, "width": 96, "num_heads": 2}, 0),
}  # fmt: skip
OPENED = """
import json, sys, timm, torch
for folder in sys.argv[1:]:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        torch.save(model(torch.load(f"{folder}/images.pt")), f"{folder}/outputs.pt")
print(json.dumps([name for name in sys.modules if name.startswith("vitprobe")]))
"""


@torch.no_grad()
def test_a_process_without_vitprobe_opens_what_is_exported(stir: Callable, tmp_path: Path) -> None:
    """timm's ViT, by timm's names; `vitprobe` opens the folder as timm's ViT too, and its file as the reference."""
    made = {}
    for name, (overrides, number) in EXPORTED.items():
        size = {"image_size": (48, 64), "num_classes": 3, "overrides": {"depth": 2} | overrides}
        backbone = create("reference-vit-ti", **size)
        stir(backbone.module)
        made[name] = insert(backbone, number)
        stir(backbone.module)
        (tmp_path / name).mkdir()
        export(made[name], tmp_path / name, classes=("a", "b", "c"))
        torch.save(noise(2, 3, 48, 64), tmp_path / name / "images.pt")
    folders = [str(tmp_path / name) for name in made]
    done = subprocess.run([sys.executable, "-c", OPENED, *folders], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, json.loads(done.stdout)) == (0, []), done.stderr
    for name, backbone in made.items():
        own = backbone(noise(2, 3, 48, 64))
        assert torch.equal(torch.load(tmp_path / name / "outputs.pt"), own), name
        again = load(str(tmp_path / name))
        assert type(again) is TimmViT and again.layout() == backbone.layout()
        assert torch.equal(again(noise(2, 3, 48, 64)), own)
        assert again.transform.mean == backbone.transform.mean
    whole = create("reference-vit-ti", image_size=(32, 32), num_classes=3)
    (tmp_path / "whole").mkdir()
    export(insert(whole, 4), tmp_path / "whole")
    again = load("reference-vit-ti", weights=str(tmp_path / "whole" / "model.safetensors"))
    assert digest_module(again.module) == digest_module(whole.module)
    with Recorder(again, [Site("resid_post", 11)]) as recorder:
        again(noise(1, 3, 32, 32))
        assert next(iter(recorder.take().values())).shape == (1, 9, 192)
