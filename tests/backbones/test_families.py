"""Families beside the zoo, with random weights: what each family's tokens are, and names as the libraries take them."""

import json
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from huggingface_hub import constants
from open_clip.model import CLIP
from safetensors.torch import save_file
from timm.models.eva import Eva
from torch import Tensor, nn

from vitprobe.backbones import load
from vitprobe.backbones.base import Backbone
from vitprobe.backbones.timm_eva import TimmEva, refuse_if_not_plain_eva
from vitprobe.backbones.timm_vit import TimmViT, adapter_for
from vitprobe.errors import ArgumentError, RecordingError, WeightsError
from vitprobe.recorder import Recorder, Site

EVA_TINY = "timm:eva02_tiny_patch14_224"
OPEN_CLIP_CONFIG = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 48, "head_width": 12, "patch_size": 8},
        "text_cfg": {"context_length": 4, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7], "interpolation": "bicubic"},
}


def images(*size: int) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def refusal(name: str, error: type[Exception] = ArgumentError, **kwargs: object) -> str:
    """The one line that refuses to load ``name``."""
    with pytest.raises(error) as caught:
        load(name, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def record(backbone: Backbone, x: Tensor, *sites: Site) -> list[Tensor]:
    with Recorder(backbone, sites) as recorder, torch.no_grad():
        backbone(x)
        got = recorder.take()
    return [got[site] for site in sites]


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "adapter", "has_cls", "num_registers", "has_final_norm"),
    [
        ("timm:vit_small_patch16_dinov3", TimmEva, True, 4, True),
        (EVA_TINY, TimmEva, True, 0, False),
        ("timm:vit_medium_patch16_rope_reg1_gap_256", TimmEva, False, 1, False),
        ("timm:vit_pe_core_tiny_patch16_384", TimmEva, True, 0, True),
        ("timm:vit_small_patch16_rope_mixed_224", TimmEva, True, 0, True),
        pytest.param("timm:vit_small_patch16_224.dino", TimmViT, True, 0, True, marks=SLOW),
        pytest.param("timm:vit_betwixt_patch16_rope_reg4_gap_256", TimmEva, False, 4, False, marks=SLOW),
        pytest.param("timm:vit_base_patch16_sapiens2", TimmEva, True, 8, True, marks=SLOW),
        pytest.param("timm:vit_base_patch16_siglip_224.v2_webli", TimmViT, False, 0, True, marks=SLOW),
        pytest.param("timm:vit_base_patch16_224.mae", TimmViT, True, 0, True, marks=SLOW),
    ],
)
def test_tokens_of_a_family(name: str, adapter: type, has_cls: bool, num_registers: int, has_final_norm: bool) -> None:
    side = 4 * (14 if name == EVA_TINY else 16)
    backbone = load(name, weights="random", image_size=(side, 2 * side))
    layout = backbone.layout()
    assert type(backbone) is adapter
    assert (layout.cls is not None, layout.num_registers) == (has_cls, num_registers)
    assert backbone.spec.num_registers == num_registers
    assert layout.grid == (4, 8)
    assert (backbone.final_norm is not None) == has_final_norm
    (stream,) = record(backbone, images(side, 2 * side), Site("resid_post", backbone.num_blocks - 1))
    assert stream.shape == (2, layout.num_tokens, backbone.width)


@pytest.mark.parametrize("name", ["timm:vit_small_patch16_dinov3", EVA_TINY])
def test_another_size_is_the_librarys_own(name: str) -> None:
    """timm's own model, told the size when it is made, and DINOv3's at the size of the images it is given."""
    patch = 14 if name == EVA_TINY else 16
    size = (4 * patch, 6 * patch)
    backbone = load(name, weights="random", image_size=size, seed=3)
    own = timm.create_model(name.removeprefix("timm:"), **({} if patch == 16 else {"img_size": size})).eval()
    own.load_state_dict(backbone.module.state_dict())
    with torch.no_grad():
        assert torch.equal(backbone(images(*size)), own(images(*size)))


def test_rows_follow_the_rope_of_the_call(make_tiny: Callable[..., Backbone]) -> None:
    """A dynamic Eva makes new positions for other images: rows times values are still the module's own output."""
    backbone, outputs = make_tiny("timm-eva"), []
    hook = backbone.attention(1).register_forward_hook(lambda _, __, output: outputs.append(output))
    sites = [Site(kind, 1) for kind in ("attention_input", "pattern", "values")]
    x, pattern, values = record(backbone, images(32, 40), *sites)
    hook.remove()
    assert pattern.shape[-1] == 5 + 4 * 5
    with torch.no_grad():
        assert torch.allclose(backbone.project_heads(1, pattern @ values, x), outputs[0], atol=1e-5)
        without = backbone.attention_rows(1, x, range(25), rope=None)
    assert (without - pattern).abs().max() > 0.05  # without positions, other rows


def test_the_check_sees_a_wrong_rope(make_tiny: Callable[..., Backbone], monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = make_tiny("timm-eva")
    backbone.check_attention()
    monkeypatch.setattr("vitprobe.backbones.timm_eva._turn", lambda attn, heads, rope: heads)
    with pytest.raises(RecordingError, match="recomputed, differs from the model's own"):
        backbone.check_attention()


def test_queries_after_the_rope_cannot_be_edited(make_tiny: Callable[..., Backbone]) -> None:
    with pytest.raises(RecordingError, match="does not show its queries, so they cannot be edited"):
        Recorder(make_tiny("timm-eva"), [Site("queries", 0, edit=torch.zeros_like)])


def test_other_evas_are_refused_by_name(make_tiny: Callable[..., Backbone]) -> None:
    reason = "is built of EvaBlockPostNorm, no plain EvaBlock; allowed are timm's plain ViTs"
    assert reason in refusal("timm:eva02_enormous_patch14_clip_224", weights="random")
    assert "is a NaFlexVit, no plain ViT" in refusal("timm:naflexvit_base_patch16_gap", weights="random")

    class OtherAttention(nn.Identity):
        num_prefix_tokens = 5

    module = make_tiny("timm-eva").module
    own, module.blocks[1].attn = module.blocks[1].attn, OtherAttention()
    with pytest.raises(ArgumentError, match="x has blocks of OtherAttention and Mlp, not of EvaAttention or Attention"):
        adapter_for(module, "x")
    module.blocks[1].attn, own.num_prefix_tokens = own, 1
    with pytest.raises(ArgumentError, match="x turns all but 1 tokens by rotary positions, but has 5 prefix tokens"):
        adapter_for(module, "x")
    own.num_prefix_tokens = module.num_prefix_tokens = 6
    module.blocks[0].attn.num_prefix_tokens = 6
    with pytest.raises(ArgumentError, match="x has prefix tokens that are neither CLS nor registers"):
        adapter_for(module, "x")
    with pytest.raises(ArgumentError, match="x is a Odd, no plain ViT"):
        refuse_if_not_plain_eva(type("Odd", (Eva,), {}).__new__(type("Odd", (Eva,), {})), "x")


@pytest.mark.parametrize("name", ["ViT-B-32/openai", "ViT-B-32-quickgelu/openai"])
def test_openais_weights_have_quick_gelu(name: str) -> None:
    """The same numbers under GELU give other neurons: the activation is part of the model."""
    openai = load(f"open_clip:{name}", weights="random", image_size=(64, 64))
    gelu = load("open_clip:ViT-B-32/laion2b_s34b_b79k", weights="random", image_size=(64, 64))
    assert openai.spec.digest == gelu.spec.digest
    assert {type(block.mlp.gelu) for block in openai.module.transformer.resblocks} == {open_clip.transformer.QuickGELU}
    assert {type(block.mlp.gelu) for block in gelu.module.transformer.resblocks} == {nn.GELU}
    x, before = images(64, 64), []
    hook = openai.block(0).mlp.c_fc.register_forward_hook(lambda _, __, output: before.append(output))
    (neurons,), (others,) = (record(backbone, x, Site("neurons", 0)) for backbone in (openai, gelu))
    hook.remove()
    assert torch.allclose(neurons, before[0] * torch.sigmoid(1.702 * before[0]), atol=1e-5)
    assert (neurons - others).abs().max() > 1e-2


def put_in_cache(cache: Path, repo: str, files: dict[str, object]) -> None:
    """Lay files out as the hub's client does: a snapshot of a commit, and a reference to it."""
    folder, commit = cache / f"models--{repo.replace('/', '--')}", "c" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    write(folder / "snapshots" / commit, files)


def write(folder: Path, files: dict[str, object]) -> Path:
    """Write JSON files and weights into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if name.endswith(".json"):
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
        elif name.endswith(".safetensors"):
            save_file({key: tensor.contiguous() for key, tensor in content.items()}, folder / name)
        else:
            torch.save(content, folder / name)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of a hub that is switched off."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.fixture(scope="module")
def own_timm() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return timm.create_model("vit_tiny_patch16_224", img_size=(64, 96), reg_tokens=2).eval()


TIMM_CONFIG = {
    "architecture": "vit_tiny_patch16_224",
    "model_args": {"img_size": [64, 96], "reg_tokens": 2},
    "pretrained_cfg": {"num_classes": 1000},
}


@pytest.fixture(scope="module")
def own_clip() -> CLIP:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        config = OPEN_CLIP_CONFIG["model_cfg"]
        return CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"]).eval()


@pytest.mark.parametrize("name", ["timm:hf-hub:org/vit", "hf-hub:org/vit"])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_timm_repository_loads_from_the_cache(name: str, file: str, cache: Path, own_timm: nn.Module) -> None:
    put_in_cache(cache, "org/vit", {"config.json": TIMM_CONFIG, file: own_timm.state_dict()})
    backbone = load(name)
    assert (backbone.spec.name, backbone.spec.architecture) == (name, "hf-hub:org/vit")
    assert (backbone.spec.num_registers, backbone.spec.image_size) == (2, (64, 96))
    with torch.no_grad():
        assert torch.equal(backbone(images(64, 96)), own_timm(images(64, 96)))
    assert load(name, weights="random", image_size=(32, 32)).layout().grid == (2, 2)


@pytest.mark.parametrize("prefix", ["timm:local-dir:", "local-dir:", ""])
def test_a_timm_folder_loads(prefix: str, tmp_path: Path, own_timm: nn.Module) -> None:
    """Also where open_clip's config lies beside timm's, as in some repositories."""
    files = {"config.json": TIMM_CONFIG, "open_clip_config.json": OPEN_CLIP_CONFIG}
    folder = write(tmp_path / "m", files | {"model.safetensors": own_timm.state_dict()})
    with torch.no_grad():
        assert torch.equal(load(f"{prefix}{folder}")(images(64, 96)), own_timm(images(64, 96)))


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_an_open_clip_repository_loads_from_the_cache(file: str, cache: Path, own_clip: CLIP) -> None:
    put_in_cache(cache, "org/clip", {"open_clip_config.json": OPEN_CLIP_CONFIG, file: own_clip.state_dict()})
    backbone = load("open_clip:hf-hub:org/clip")
    assert backbone.spec.architecture == "hf-hub:org/clip"
    assert backbone.spec.weights == "pretrained"
    assert backbone.transform.mean == (0.5, 0.4, 0.3)
    with torch.no_grad():
        assert torch.equal(backbone(images(32, 32)), own_clip.visual(images(32, 32)))


@pytest.mark.parametrize("prefix", ["open_clip:local-dir:", "local-dir:", ""])
def test_an_open_clip_folder_loads_as_open_clip_loads_it(prefix: str, tmp_path: Path, own_clip: CLIP) -> None:
    """Also where transformers' config and weights lie beside open_clip's, as in LAION's repositories."""
    files = {"open_clip_config.json": OPEN_CLIP_CONFIG, "open_clip_model.safetensors": own_clip.state_dict()}
    others = {"config.json": {"architectures": ["CLIPModel"]}, "model.safetensors": {"other": torch.zeros(2)}}
    folder = write(tmp_path / "m", files | others)
    own = open_clip.create_model(f"local-dir:{folder}").eval()
    backbone = load(f"{prefix}{folder}")
    with torch.no_grad():
        assert torch.equal(backbone(images(32, 32)), own.visual(images(32, 32)))
    assert load(f"{prefix}{folder}", image_size=(16, 48)).layout().grid == (2, 6)


def test_a_repositorys_quick_gelu_is_taken(tmp_path: Path) -> None:
    config = OPEN_CLIP_CONFIG | {"model_cfg": OPEN_CLIP_CONFIG["model_cfg"] | {"quick_gelu": True}}
    folder = write(tmp_path / "m", {"open_clip_config.json": config})
    assert type(load(str(folder), weights="random").block(0).mlp.gelu).__name__ == "QuickGELU"


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("hf-hub:org/vit", "config.json"),
        ("timm:hf-hub:org/vit", "config.json"),
        ("open_clip:hf-hub:org/vit", "open_clip_config.json"),
    ],
)
def test_a_repository_that_cannot_be_had_is_said(name: str, file: str, cache: Path) -> None:
    message = refusal(name, WeightsError)
    for part in (f"no weights for {name}", "switched off (HF_HUB_OFFLINE)", f"org/vit/{file}", str(cache)):
        assert part in message


def test_a_repository_without_weights_is_said(cache: Path) -> None:
    put_in_cache(cache, "org/vit", {"config.json": TIMM_CONFIG})
    assert "org/vit/model.safetensors" in refusal("hf-hub:org/vit", WeightsError)
    put_in_cache(cache, "org/clip", {"open_clip_config.json": OPEN_CLIP_CONFIG})
    assert "org/clip/open_clip_model.safetensors" in refusal("open_clip:hf-hub:org/clip", WeightsError)


@pytest.mark.parametrize("name", ["hf-hub:org", "timm:hf-hub:org/vit@v1", "open_clip:hf-hub:/x", "hf-hub:a/b/c"])
def test_names_that_are_no_repository_are_refused(name: str) -> None:
    assert "allowed is hf-hub:ORG/NAME, without a revision" in refusal(name, weights="random")


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    empty, clip = write(tmp_path / "a", {}), write(tmp_path / "b", {"open_clip_config.json": OPEN_CLIP_CONFIG})
    assert "which is no folder" in refusal(f"local-dir:{tmp_path / 'none'}")
    assert "holds no config.json" in refusal(f"timm:local-dir:{empty}")
    assert "holds no config.json" in refusal(f"timm:local-dir:{clip}")
    assert "holds no open_clip_config.json" in refusal(f"open_clip:local-dir:{empty}")
    assert "holds no weights; beside open_clip_config.json belongs open_clip_model." in refusal(str(clip), WeightsError)
    for index, (config, said) in enumerate(
        [
            ("{", "open_clip_config.json cannot be read"),
            ({"model_cfg": 3}, "names no model_cfg"),
            ({"model_cfg": {}}, "has no vision_cfg and embed_dim"),
            ({"model_cfg": {"embed_dim": 8, "vision_cfg": {"no_such": 1}}}, "open_clip cannot build the tower"),
            ({"model_cfg": {"embed_dim": 8, "vision_cfg": {"timm_model_name": "x"}}}, "is built by timm"),
            ({"model_cfg": {"embed_dim": 8, "vision_cfg": {"layers": [1, 2]}}}, "is a ResNet"),
        ]
    ):
        folder = write(tmp_path / f"c{index}", {"open_clip_config.json": config})
        assert said in refusal(str(folder), weights="random")
