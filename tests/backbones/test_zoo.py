"""The zoo's table against the installed libraries, and every refusal by name."""

import pytest
import torch

from vitprobe.backbones import load
from vitprobe.backbones.base import digest_module
from vitprobe.backbones.zoo import ALIASES, EMBEDDED, REFERENCES, SHORT_NAMES, ZOO, ZooEntry
from vitprobe.errors import ArgumentError

SIZES = {
    "deit3": ("s16", "b16", "l16", "h14"),
    "openclip": ("b32", "b16", "l14", "h14"),
    "dinov2": ("s14", "b14", "l14", "g14"),
    "dinov2-reg": ("s14", "b14", "l14", "g14"),
}
entries = pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.alias)


def refusal(name: str, **kwargs: object) -> str:
    """The one line that refuses to load ``name``."""
    with pytest.raises(ArgumentError) as caught:
        load(name, weights="random", **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_promised_alias_exists() -> None:
    promised = {f"{family}-{size}" for family, sizes in SIZES.items() for size in sizes}
    assert {entry.alias for entry in ZOO} == promised
    assert len(ZOO) == len(promised)
    assert set(ALIASES) == promised | set(SHORT_NAMES)
    assert set(REFERENCES) == {"reference-vit-ti", "reference-vit-s", "reference-vit-b"}
    assert not set(ALIASES) & set(EMBEDDED) and not set(REFERENCES) & {*ALIASES, *EMBEDDED}


def test_short_names() -> None:
    short = {"deit3": "deit3-b16", "openclip": "openclip-b16", "dinov2": "dinov2-l14", "dinov2-reg": "dinov2-reg-l14"}
    assert {name: ALIASES[name].alias for name in SHORT_NAMES} == short


@entries
def test_entry_tells_the_truth(entry: ZooEntry) -> None:
    """Registry, patch, image size, registers and parameters of the model that the library builds."""
    paradigms = {"deit3": "supervised", "openclip": "text-supervised"}
    assert entry.paradigm == paradigms.get(entry.family, "self-supervised")
    assert entry.licence and "arXiv" in entry.source
    with torch.device("meta"):
        if entry.library == "timm":
            import timm

            assert f"{entry.architecture}.{entry.tag}" in timm.list_pretrained(f"{entry.architecture}.*")
            tower = timm.create_model(f"{entry.architecture}.{entry.tag}", num_classes=0)
            patch, size, registers = tower.patch_embed.patch_size, tower.patch_embed.img_size, tower.num_reg_tokens
            assert tower.pretrained_cfg["input_size"][1:] == size
        else:
            import open_clip
            from open_clip.model import _build_vision_tower

            assert entry.library == "open_clip"
            assert entry.tag in open_clip.list_pretrained_tags_by_model(entry.architecture)
            config = open_clip.get_model_config(entry.architecture)
            tower = _build_vision_tower(config["embed_dim"], config["vision_cfg"])
            patch, size, registers = tower.patch_size, tower.image_size, 0
    assert (entry.patch, entry.patch) == tuple(patch)
    assert (entry.image_size, entry.image_size) == tuple(size)
    assert entry.num_registers == registers == (4 if entry.family == "dinov2-reg" else 0)
    assert entry.params == round(sum(p.numel() for p in tower.parameters()) / 1e6, 1)  # without timm's classifier


@pytest.mark.parametrize("alias", ["deit3-s16", "dinov2-reg-s14", "openclip-b32"])
def test_an_alias_loads_what_its_entry_says(alias: str) -> None:
    entry = ALIASES[alias]
    spec = load(alias, weights="random", image_size=(2 * entry.patch, 3 * entry.patch)).spec
    assert (spec.name, spec.library, spec.paradigm) == (alias, entry.library, entry.paradigm)
    assert spec.architecture.startswith(entry.architecture)
    assert spec.image_size == (2 * entry.patch, 3 * entry.patch)
    assert spec.num_registers == entry.num_registers
    assert spec.weights == "random (seed 0)"
    assert spec.title == f"{alias}, random"


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("ViT-B-32", "GELU"),
        ("ViT-B-32/laion2b_s34b_b79k", "GELU"),
        ("ViT-B-32/openai", "QuickGELU"),
        ("ViT-B-32-quickgelu", "QuickGELU"),
    ],
)
def test_open_clip_towers_have_the_activation_of_their_weights(name: str, activation: str) -> None:
    """OpenAI's weights need QuickGELU, whichever architecture they are asked for with."""
    backbone = load(f"open_clip:{name}", weights="random", image_size=(32, 32))
    assert type(backbone.block(0).mlp.gelu).__name__ == activation


def test_default_size_is_the_one_the_weights_were_made_for() -> None:
    assert load("dinov2-s14", weights="random").spec.image_size == (518, 518)
    assert load("timm:vit_tiny_patch16_384", weights="random").spec.image_size == (384, 384)
    assert load("openclip-b32", weights="random").spec.image_size == (224, 224)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("timm:deit_small_distilled_patch16_224", "has a distillation token, which is neither CLS nor register"),
        ("timm:beit_base_patch16_224", "is a Beit, no plain ViT"),
        ("timm:swin_tiny_patch4_window7_224", "is a SwinTransformer, no plain ViT"),
        ("timm:resnet18", "is a ResNet, no plain ViT"),
        ("timm:eva02_enormous_patch14_clip_224", "is built of EvaBlockPostNorm, no plain EvaBlock"),
        ("timm:vit_small_patch16_18x2_224", "is built of ParallelThingsBlock, no plain Block"),
        ("timm:vit_base_patch16_xp_224", "is built of ParallelScalingBlock, no plain Block"),
        ("open_clip:RN50", "is a ResNet; open_clip's ViTs are allowed"),
        ("open_clip:ViT-B-16-SigLIP", "is built by timm; ask for it as timm:vit_base_patch16_siglip_224"),
    ],
)
def test_models_that_are_no_plain_vit_are_refused_by_name(name: str, reason: str) -> None:
    message = refusal(name)
    assert reason in message
    assert name in message


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("dinov2-x14", "did you mean dinov2-s14 or"),
        ("dino", "did you mean dinov2"),
        ("reference-vit-t", "did you mean reference-vit-ti or reference-vit-"),
        ("openclip-b23", "did you mean openclip-b32 or"),
        ("no such model at all", "allowed is an alias (organism, "),
        ("timm:vit_medium_patch16_gap_241", "near it: vit_medium_patch16_gap_240"),
        ("timm:nothing_of_the_kind", "near it: vit_base_patch16_224"),
        ("timm:vit_tiny_patch16_224.mistyped", "its tags: augreg_in21k, augreg_in21k_ft_in1k"),
        ("open_clip:ViT-B-33", "near it: ViT-B-16"),
        ("open_clip:ViT-B-32/mistyped", "tags: openai, laion400m_e31"),
    ],
)
def test_unknown_names_get_a_hint(name: str, hint: str) -> None:
    assert hint in refusal(name)


def test_a_tag_is_needed_for_weights_from_the_hub() -> None:
    with pytest.raises(ArgumentError, match="needs a tag, open_clip:ViT-B-32/TAG; tags: openai, "):
        load("open_clip:ViT-B-32", weights="hub")


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("deit3-s16", (224, 230), "an image width of 230 px; it must be a multiple of the patch, 16 px: 224 or 240"),
        ("dinov2-s14", (225, 224), "an image height of 225 px; it must be a multiple of the patch, 14 px: 224 or 238"),
        ("openclip-b32", (16, 64), "an image height of 16 px; it must be a multiple of the patch, 32 px: 32 or 64"),
        ("openclip-b32", (64, 0), "an image width of 0 px; it must be a multiple of the patch, 32 px: 32 or 64"),
        ("openclip-b32", (-32, 64), "an image height of -32 px; it must be a multiple of the patch, 32 px: 32 or 64"),
    ],
)
def test_sizes_off_the_patch_grid_name_the_nearest_two(name: str, size: tuple[int, int], said: str) -> None:
    assert said in refusal(name, image_size=size)


def test_layout_of_a_size_off_the_grid_is_refused(timm_tiny: object) -> None:
    assert timm_tiny.layout((16, 40)).grid == (2, 5)
    with pytest.raises(ArgumentError, match="44 px; it must be a multiple of the patch, 8 px: 40 or 48"):
        timm_tiny.layout((16, 44))


def test_a_digest_sees_names_types_shapes_and_bytes() -> None:
    def digest(**tensors: torch.Tensor) -> str:
        module = torch.nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return digest_module(module)

    one = torch.arange(4.0)
    digests = [
        digest(a=one, b=one + 1),
        digest(a=one + 1, b=one),
        digest(a=one, c=one + 1),
        digest(a=one, b=one + 1 + 1e-6),
        digest(a=one.view(2, 2), b=one + 1),
        digest(a=one.view(torch.int32), b=one + 1),
        digest(a=torch.zeros(0), b=one + 1),
    ]
    assert len(set(digests)) == len(digests)
    assert digest(b=one + 1, a=one) == digests[0]  # the order of registration does not matter
    assert digest(a=one.view(2, 2).T, b=one + 1) == digest(a=one.view(2, 2).T.contiguous(), b=one + 1)
