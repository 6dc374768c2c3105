"""Variants as folders: plain timm opens them, without vitprobe, and gives the same outputs."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from open_clip.transformer import LayerNorm
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from vitprobe.backbones import export as export_module
from vitprobe.backbones import load
from vitprobe.backbones.base import Backbone, digest_module
from vitprobe.backbones.create import create
from vitprobe.backbones.export import export
from vitprobe.errors import ArgumentError, OutputError
from vitprobe.registers.insert import insert


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def variant(stir: Callable, make_tiny: Callable) -> Callable[..., Backbone]:
    """The function ``variant(name, num_registers, ...)``: a backbone whose every parameter matters."""

    def make(name: str, num_registers: int = 0, *, size: tuple[int, int] | None = None, **kwargs: object) -> Backbone:
        if name.startswith(("timm-", "clip")):
            backbone = make_tiny(name)
        elif ":" in name or name.startswith(("dinov2", "openclip", "deit3-", "organism")):
            backbone = load(name, weights="hub" if "organism" in name else "random", image_size=size, **kwargs)
        else:
            backbone = create(name, image_size=size, **kwargs)
        if name != "organism":
            stir(backbone.module)
        backbone = insert(backbone, num_registers)
        if num_registers:
            backbone.module.reg_token.data += noise(num_registers, backbone.width)
        backbone.spec = replace(backbone.spec, digest=digest_module(backbone.module))
        return backbone

    return make


SCRATCH = [
    ("scenes-tiny", 0, {"num_classes": 5}),
    ("scenes-tiny", 4, {}),
    ("scenes-small", 2, {"overrides": {"class_token": False, "global_pool": "avg", "depth": 2}}),
    ("scenes-tiny", 1, {"overrides": {"class_token": False, "global_pool": "map", "depth": 2, "drop_path_rate": 0.2}}),
    ("deit3_small_patch16_224", 4, {"size": (32, 64), "overrides": {"depth": 2}, "num_classes": 3}),
    ("vit_small_patch14_dinov2", 4, {"size": (42, 70), "overrides": {"depth": 2}}),
    ("vit_base_patch16_clip_quickgelu_224", 2, {"size": (32, 32), "overrides": {"depth": 2, "embed_dim": 96}}),
    ("eva02_tiny_patch14_224", 3, {"size": (42, 70), "overrides": {"depth": 2}, "num_classes": 2}),
    ("vit_small_patch16_rope_mixed_ape_224", 2, {"size": (32, 64), "overrides": {"depth": 2}}),
    ("vit_small_patch16_dinov3", 0, {"size": (32, 64), "overrides": {"depth": 2}}),
    ("vit_medium_patch16_rope_reg1_gap_256", 0, {"size": (32, 64), "overrides": {"depth": 2}}),
]
PLAIN = [
    ("timm-cls", 3),
    ("timm-no-cls", 0),
    ("timm-reg4", 0),
    ("timm-pre-norm", 2),
    ("timm-fc-norm", 2),
    ("timm-map-pool", 1),
]
PLAIN += [("timm-scale-norms", 2), ("timm-layer-scale", 2), ("timm-qk-norm", 0), ("organism", 0), ("organism", 2)]
TOWERS = [
    ("clip", 0),
    ("clip", 4),
    ("clip-quickgelu", 2),
    ("clip-odd-heads", 0),
    ("clip-average", 3),
    ("clip-layer-scale", 1),
]


@torch.no_grad()
def check(backbone: Backbone, folder: Path, *, tolerance: float = 0.0) -> nn.Module:
    """Export, open by timm and by vitprobe, compare: outputs, pooled features, layout, transform, weights."""
    export(backbone, folder)
    images = noise(2, 3, *backbone.spec.image_size)
    module = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    own = backbone(images)
    assert (module(images) - own).abs().max() <= tolerance * own.abs().max()
    again = load(str(folder))
    assert digest_module(again.module) == digest_module(module) == again.spec.digest
    assert torch.equal(again(images), module(images))
    assert again.layout() == backbone.layout()
    assert (again.spec.image_size, again.spec.num_registers) == (backbone.spec.image_size, backbone.spec.num_registers)
    pooled = backbone.pool(backbone.tokens(images), backbone.layout())
    assert (again.features(images) - pooled).abs().max() <= tolerance * pooled.abs().max()
    assert (again.transform.mean, again.transform.std) == (backbone.transform.mean, backbone.transform.std)
    return module


@pytest.mark.parametrize(("name", "number", "kwargs"), [*SCRATCH, *((*case, {}) for case in PLAIN)])
def test_a_tower_of_timm_comes_back_to_the_bit(
    name: str, number: int, kwargs: dict, variant: Callable, tmp_path: Path
) -> None:
    size = {"size": (64, 96)} if name == "organism" else {}
    backbone = variant(name, number, **kwargs, **size)
    check(backbone, tmp_path)
    assert load(str(tmp_path)).spec.digest == backbone.spec.digest
    args = json.loads((tmp_path / "config.json").read_text())["model_args"]
    assert not [key for key in args if key.endswith("rate")]


@pytest.mark.parametrize(("name", "number"), TOWERS)
def test_a_tower_of_open_clip_becomes_timms(name: str, number: int, variant: Callable, tmp_path: Path) -> None:
    backbone = variant(name, number)
    module = check(backbone, tmp_path, tolerance=1e-5)
    assert module.head.weight.shape == (16, 48) and not module.head.bias.any()
    backbone.reset_head(0)
    check(backbone, tmp_path, tolerance=1e-5)


def test_a_tower_of_open_clip_with_other_parts(variant: Callable, tmp_path: Path) -> None:
    """No norm before block 0, and the norm's other eps; one that timm's towers do not have is refused."""
    backbone = variant("clip", 2)
    backbone.module.ln_pre = nn.Identity()
    check(backbone, tmp_path, tolerance=1e-5)
    for eps in (1e-6, 1e-3):
        for part in backbone.module.modules():
            if isinstance(part, LayerNorm):
                part.eps = eps
        if eps == 1e-6:
            check(backbone, tmp_path, tolerance=1e-5)
    with pytest.raises(ArgumentError, match=r"no equal of the tower of clip \(eps 0.001 with gelu\)"):
        export(backbone, tmp_path)


OPENED = """
import json, sys, timm, torch
for folder in sys.argv[1:]:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        torch.save(model(torch.load(f"{folder}/images.pt")), f"{folder}/outputs.pt")
print(json.dumps([name for name in sys.modules if name.startswith("vitprobe")]))
"""


@torch.no_grad()
def test_a_process_without_vitprobe(variant: Callable, tmp_path: Path) -> None:
    cases = {"scenes": variant("scenes-tiny", 4, num_classes=3), "clip": variant("clip", 4)}
    cases["eva"] = variant("eva02_tiny_patch14_224", 2, size=(42, 70), overrides={"depth": 2})
    for name, backbone in cases.items():
        (tmp_path / name).mkdir()
        export(backbone, tmp_path / name)
        torch.save(noise(2, 3, *backbone.spec.image_size), tmp_path / name / "images.pt")
    folders = [str(tmp_path / name) for name in cases]
    done = subprocess.run([sys.executable, "-c", OPENED, *folders], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
    for name, backbone in cases.items():
        own, got = backbone(noise(2, 3, *backbone.spec.image_size)), torch.load(tmp_path / name / "outputs.pt")
        assert torch.equal(got, own) or (name == "clip" and torch.allclose(got, own, rtol=1e-5, atol=1e-5))


def test_what_the_folder_says(variant: Callable, tmp_path: Path) -> None:
    backbone = variant("scenes-tiny", 4, num_classes=2)
    export(backbone, tmp_path, classes=("cat", "dog"), card="# A card\n")
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert (tmp_path / "README.md").read_text() == "# A card\n"
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["architecture"], config["num_classes"], config["num_features"]) == ("vit_tiny_patch16_224", 2, 96)
    assert config["label_names"] == ["cat", "dog"]
    expected = {"reg_tokens": 4, "no_embed_class": True, "img_size": [32, 32], "patch_size": 4, "class_token": True}
    assert expected.items() <= config["model_args"].items()
    data = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "crop_pct": 1.0, "crop_mode": "squash"}
    assert data.items() <= config["pretrained_cfg"].items()
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True).pretrained_cfg["label_names"] == ["cat", "dog"]
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    export(backbone, tmp_path, classes=("cat", "dog"), card="# A card\n")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first


def test_an_export_can_be_exported_again(variant: Callable, tmp_path: Path) -> None:
    """At another size, with registers put in after loading; keywords that only the config holds are kept."""
    export(variant("scenes-tiny", 0, overrides={"mlp_ratio": 2.0, "depth": 2}), tmp_path)
    again = load(str(tmp_path), image_size=(48, 32))
    assert again.model_args["mlp_ratio"] == 2.0
    (tmp_path / "again").mkdir()
    module = check(insert(again, 2), tmp_path / "again")
    assert module.patch_embed.img_size == (48, 32) and module.reg_token.shape == (1, 2, 96)


@torch.no_grad()
def test_training_mode_and_half_precision(variant: Callable, tmp_path: Path) -> None:
    """What is trained is saved in evaluation's terms and float32, and left as it is."""
    backbone = variant("scenes-tiny", 2, overrides={"proj_drop_rate": 0.5, "depth": 2})
    own = backbone(noise(1, 3, 32, 32))
    backbone.module.train().bfloat16()
    export(backbone, tmp_path)
    assert backbone.module.training and backbone.module.cls_token.dtype == torch.bfloat16
    got = load(str(tmp_path))(noise(1, 3, 32, 32))
    assert got.dtype == torch.float32
    assert 0 < (got - own).abs().max() < 0.1 * own.abs().max()


def test_what_cannot_be_exported_is_said_in_one_line(
    variant: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = variant("scenes-tiny", 1, overrides={"depth": 1})
    broken.module.norm.weight.data[:] = torch.nan
    other = variant("scenes-tiny", 1, overrides={"depth": 1})
    other.module.blocks[0].norm1.eps = 0.1
    odd = variant("scenes-tiny", 0, overrides={"depth": 1})
    odd.model_args["norm_layer"] = nn.LayerNorm
    for backbone, kwargs, match in (
        (variant("clip-attention-pool"), {}, r"no equal of the tower of clip-attention-pool \(an attentional pooler\)"),
        (variant("clip-custom-block", 2), {}, "CustomResidualAttentionBlock"),
        (variant("timm-swiglu"), {}, "timm cannot build timm-swiglu again"),
        (variant("timm-eva"), {}, "timm-eva is an Eva that timm did not build by a name"),
        (variant("scenes-tiny", num_classes=3), {"classes": ("a", "b")}, "2 names of classes for a head of 3 outputs"),
        (broken, {}, "not finite"),
        (other, {}, "has other outputs"),
        (odd, {}, "cannot be written as JSON"),
    ):
        with pytest.raises(ArgumentError, match=match) as caught:
            export(backbone, tmp_path, **kwargs)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    tiny = variant("scenes-tiny", 0, overrides={"depth": 1})
    with pytest.raises(OutputError, match="which is no folder"):
        export(tiny, tmp_path / "none")
    monkeypatch.setattr(export_module, "save_file", lambda *_, **__: (_ for _ in ()).throw(OSError("No space left")))
    with pytest.raises(OutputError, match="No space left"):
        export(tiny, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "number", "size", "kwargs"),
    [
        ("deit3-s16", 4, (64, 96), {}),
        ("dinov2-s14", 4, (70, 98), {"pos_embed": "official"}),
        ("openclip-b32", 4, (96, 96), {}),
        ("open_clip:ViT-B-32/openai", 0, (96, 96), {}),
        ("timm:vit_base_patch16_siglip_224", 2, (64, 96), {}),
        ("timm:vit_pe_core_tiny_patch16_384", 2, (64, 96), {}),
    ],
)
@torch.no_grad()
def test_true_architectures(
    name: str, number: int, size: tuple[int, int], kwargs: dict, variant: Callable, tmp_path: Path
) -> None:
    backbone = variant(name, number, size=size, **kwargs)
    check(backbone, tmp_path, tolerance=1e-5 if "clip" in name else 0.0)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8))
    assert torch.allclose(load(str(tmp_path)).transform(image), backbone.transform(image), atol=1e-5)
