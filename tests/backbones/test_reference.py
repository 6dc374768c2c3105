"""The reference ViT beside its twin, timm's ViT with the same weights: the same numbers at every door of a backbone."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import pytest
import timm
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitprobe.backbones import load
from vitprobe.backbones.base import Backbone, digest_module
from vitprobe.backbones.create import create
from vitprobe.backbones.reference import ReferenceViT
from vitprobe.backbones.reference_names import timm_args, timm_state
from vitprobe.backbones.timm_vit import TimmViT
from vitprobe.backbones.zoo import REFERENCES
from vitprobe.errors import ArgumentError
from vitprobe.recorder import Recorder, Site
from vitprobe.registers.insert import insert

NAMES = ("reference", "reference-no-cls", "reference-reg4", "reference-cls-position")
PLAIN = NAMES[:2]
"""Those without registers."""


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def twin_of(backbone: Backbone) -> TimmViT:
    """timm's ViT with the same weights, in timm's adapter."""
    config = backbone.module.config
    with torch.random.fork_rng(devices=[]):
        module = VisionTransformer(config.image_size, config.patch_size, **timm_args(config)).eval()
    module.load_state_dict(timm_state(backbone.module))
    return TimmViT(module, replace(backbone.spec, library="timm"), backbone.transform)


def stream(backbone: Backbone, images: Tensor, **kwargs: Tensor) -> Tensor:
    """The residual stream before block 0."""
    with Recorder(backbone, [Site("resid_pre", 0)]) as recorder, torch.no_grad():
        backbone.tokens(images, **kwargs)
        return next(iter(recorder.take().values()))


@pytest.mark.parametrize("mode", ["no_grad", "gradients", "bf16 autocast"])
@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_its_twins(name: str, mode: str, make_tiny: Callable) -> None:
    backbone = make_tiny(name)
    twin, images = twin_of(backbone), noise(2, 3, 48, 64)
    with torch.set_grad_enabled(mode != "no_grad"), torch.autocast("cpu", torch.bfloat16, enabled="bf16" in mode):
        assert torch.equal(backbone(images), twin(images))
        assert torch.equal(backbone.tokens(images), twin.tokens(images))
        assert torch.equal(backbone.features(images), twin.features(images))
    assert backbone.layout() == twin.layout()
    assert backbone(images).shape == (2, 5)


@torch.no_grad()
@pytest.mark.parametrize("size", [(24, 40), (64, 96), (8, 16)])
@pytest.mark.parametrize("name", NAMES)
def test_another_size_is_as_timm_resizes(name: str, size: tuple[int, int], make_tiny: Callable) -> None:
    backbone = make_tiny(name)
    twin, images = twin_of(backbone), noise(2, 3, *size)
    assert backbone.layout(size) == twin.layout(size)
    assert torch.equal(backbone.tokens(images), twin.tokens(images))
    assert torch.equal(backbone.features(images), twin.features(images))
    assert torch.equal(backbone(images), backbone.module.head(backbone.features(images)))
    assert torch.equal(backbone(noise(2, 3, 48, 64)), twin(noise(2, 3, 48, 64)))  # nothing was kept
    backbone.module.positions.data.copy_(backbone.module.positions.flip(1))
    assert not torch.allclose(backbone.tokens(images), twin.tokens(images), atol=1e-2)  # positions do matter


@pytest.mark.parametrize("name", NAMES[:3])
def test_gradients_are_its_twins(name: str, make_tiny: Callable) -> None:
    backbone = make_tiny(name)
    twin, images = twin_of(backbone), noise(2, 3, 48, 64)
    for one in (backbone, twin):
        one.module.train()
        nn.functional.cross_entropy(one(images), torch.tensor([1, 4])).backward()
    gradients = deepcopy(backbone.module)
    for held, parameter in zip(gradients.parameters(), backbone.module.parameters(), strict=True):
        held.data.copy_(parameter.grad)
    ours = timm_state(gradients)
    for key, parameter in twin.module.named_parameters():
        assert ours[key].abs().max() > 0 and torch.allclose(ours[key], parameter.grad, rtol=1e-4, atol=1e-6), key


def test_drop_path_and_dropout_draw_what_timm_draws() -> None:
    """The same seed leaves out the same branches; and a model that was loaded is given the same rates."""
    rates = {"drop_path": 0.5, "dropout": 0.2}
    small = {"depth": 3, "width": 48, "num_heads": 3, "layer_scale": 1}
    created = create("reference-vit-ti", image_size=(32, 32), overrides=small | rates)
    loaded = create("reference-vit-ti", image_size=(32, 32), overrides=small)
    assert loaded.spec.digest == created.spec.digest
    loaded.set_rates(**rates)
    assert loaded.module.config == created.module.config
    args = timm_args(created.module.config) | {"drop_path_rate": 0.5, "proj_drop_rate": 0.2, "pos_drop_rate": 0.2}
    module = VisionTransformer(32, 16, **args)
    module.load_state_dict(timm_state(created.module))
    outputs = []
    for one in (created.module, loaded.module, module):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            outputs.append(one.train()(noise(6, 3, 32, 32)))
    assert torch.equal(outputs[0], outputs[1]) and torch.allclose(outputs[0], outputs[2], atol=1e-6)
    assert not torch.allclose(outputs[0], created.module.eval()(noise(6, 3, 32, 32)), atol=1e-3)
    assert [block.drop_path.rate for block in created.module.blocks] == [0.0, 0.25, 0.5]


@torch.no_grad()
@pytest.mark.parametrize("name", PLAIN)
def test_registers_are_put_in_as_into_timms(name: str, make_tiny: Callable) -> None:
    """R = 0 changes nothing; with 3, CLS and patches enter block 0 as they did, and only the registers are new."""
    backbone, images = make_tiny(name), noise(2, 3, 48, 64)
    before, tokens, old = stream(backbone, images), backbone.tokens(images), backbone.layout()
    state = {key: p.clone() for key, p in backbone.module.named_parameters()}
    twin = twin_of(backbone)
    assert torch.equal(insert(backbone, 0).tokens(images), tokens)
    after, theirs = insert(backbone, 3), insert(twin, 3)
    layout, own = after.layout(), dict(after.module.named_parameters())
    assert type(after) is ReferenceViT and after.spec.digest == digest_module(after.module)
    assert (layout.num_registers, after.spec.num_registers) == (3, 3) and layout == theirs.layout()
    assert torch.equal(stream(after, images)[:, layout.patches], before[:, old.patches])
    if old.cls is not None:
        assert torch.equal(stream(after, images)[:, layout.cls], before[:, old.cls])
    assert set(own) - set(state) == {"registers"} == set(after.parameter_names("registers"))
    assert {key for key in state if state[key].shape != own[key].shape} == ({"positions"} if old.cls else set())
    assert torch.equal(after.tokens(images), theirs.tokens(images))
    assert torch.equal(after.tokens(noise(2, 3, 24, 40)), theirs.tokens(noise(2, 3, 24, 40)))
    assert digest_module(twin_of(after).module) == theirs.spec.digest
    with pytest.raises(ArgumentError, match="already has 3 registers"):
        insert(after, 1)


def test_gradients_reach_registers_and_masks(make_tiny: Callable) -> None:
    backbone = insert(make_tiny("reference"), 2)
    images, layout = noise(2, 3, 24, 40), backbone.layout((24, 40))
    masked, token = torch.zeros(2, layout.num_patches, dtype=torch.bool), nn.Parameter(noise(48))
    masked[0, 3] = masked[1, 7] = True
    got, plain = stream(backbone, images, masked=masked, mask_token=token), stream(backbone, images)
    where = torch.zeros(2, layout.num_tokens, dtype=torch.bool)
    where[:, layout.patches] = masked
    assert torch.equal(got[~where], plain[~where])
    assert torch.equal(got, stream(twin_of(backbone), images, masked=masked, mask_token=token))
    backbone.tokens(images, masked=masked, mask_token=token)[:, layout.patches].square().sum().backward()
    assert token.grad.abs().sum() > 0
    assert (backbone.module.registers.grad.abs().sum(dim=-1) > 0).all()
    with pytest.raises(ArgumentError, match=r"a mask takes masked, \(2, 15\) bool"):
        backbone.tokens(images, masked=masked)


@torch.no_grad()
def test_a_new_head_reads_the_pooled_tokens(make_tiny: Callable) -> None:
    for name in NAMES:
        backbone, twin, images = make_tiny(name), twin_of(make_tiny(name)), noise(2, 3, 48, 64)
        state = torch.get_rng_state()
        for one in (backbone, twin):
            one.reset_head(7, seed=3)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(backbone.features(images), twin.features(images))
        assert torch.equal(backbone(images), backbone.module.head(twin.features(images)))
        assert backbone.module.head.weight.shape == (7, 48) and 0.01 < backbone.module.head.weight.std() < 0.03
        assert not backbone.module.head.bias.any()
        same, other = make_tiny(name), make_tiny(name)
        same.reset_head(7, seed=3), other.reset_head(7, seed=4)
        assert same.spec.digest == backbone.spec.digest != other.spec.digest
        assert backbone.module.config.num_classes == 7 and backbone.spec.digest == digest_module(backbone.module)
        backbone.reset_head(0)
        assert torch.equal(backbone(images), twin.features(images))


def test_every_parameter_has_one_name_the_one_of_timm(make_tiny: Callable) -> None:
    for name in NAMES:
        backbone = make_tiny(name)
        twin, blocks = twin_of(backbone), [f"block:{index}" for index in range(backbone.num_blocks)]
        kinds = ["registers", "cls", "positions", "patch_embedding", *blocks, "final_norm", "head"]
        names = [one for kind in kinds for one in backbone.parameter_names(kind)]
        assert sorted(names) == sorted(key for key, _ in backbone.module.named_parameters())
        sizes = [[len(one.parameter_names(kind)) for kind in [*kinds, "layer_scale"]] for one in (backbone, twin)]
        assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    ("arch", "theirs"), [("ti", "tiny"), ("s", "small"), pytest.param("b", "base", marks=pytest.mark.slow)]
)
def test_sizes_are_timms(arch: str, theirs: str) -> None:
    """Parameters, heads, transform; the random one is not timm's random one, but of the same spread."""
    other = timm.create_model(f"vit_{theirs}_patch16_224")
    backbone = load(f"reference-vit-{arch}", weights="random", seed=1)
    assert {k: v.shape for k, v in timm_state(backbone.module).items()} == {
        k: v.shape for k, v in other.state_dict().items()
    }
    assert backbone.num_heads == other.blocks[0].attn.num_heads
    own = timm_state(backbone.module)
    for key, tensor in other.state_dict().items():
        if tensor.ndim > 1 and tensor.numel() > 10_000:  # medians: a draw of timm's may be 100 spreads off
            assert own[key].abs().median().item() == pytest.approx(tensor.abs().median().item(), rel=0.05), key
            assert own[key].abs().max() < 7 * 0.02
        elif tensor.ndim == 1 and key != "patch_embed.proj.bias":
            assert torch.equal(own[key], tensor), key
    assert REFERENCES[f"reference-vit-{arch}"].params == round(
        sum(p.numel() for name, p in backbone.module.named_parameters() if not name.startswith("head")) / 1e6, 1
    )
    spec = backbone.spec
    assert (spec.library, spec.weights, spec.title) == ("vitprobe", "random (seed 1)", f"reference-vit-{arch}, random")
    cfg = other.pretrained_cfg
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(other), is_training=False)
    image = Image.radial_gradient("L").convert("RGB").rotate(20)
    assert torch.equal(backbone.transform(image), transform(image))
    assert backbone.transform.mean == tuple(cfg["mean"])


def test_a_seed_gives_the_same_and_the_global_generator_stays() -> None:
    state = torch.get_rng_state()
    digests = [load("reference-vit-ti", weights="random", seed=seed).spec.digest for seed in (4, 4, 5)]
    assert torch.equal(torch.get_rng_state(), state)
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"overrides": {"embed_dim": 32}}, "takes no embed_dim; allowed are width, num_heads, depth"),
        ({"overrides": {"num_head": 3}}, "takes no num_head; near it: num_heads"),
        ({"overrides": {"image_size": 64}}, "set elsewhere: by --image-size"),
        ({"overrides": {"width": 190}}, "width 190 and 3 heads, which must divide it, as 1, 2, 5, 10, 19 do"),
        ({"overrides": {"depth": 0}}, "got depth 0 for reference-vit-ti; give a whole number from 1 on"),
        ({"overrides": {"depth": True}}, "got depth True"),
        ({"overrides": {"drop_path": 1.0}}, "give a rate from 0 to below 1"),
        ({"overrides": {"layer_scale": float("nan")}}, "give a number from 0 on"),
        ({"overrides": {"has_cls": 1}}, "got has_cls 1 .*; give true or false"),
        ({"overrides": {"has_cls": False}}, "without CLS has none to pool; give pooling=mean too"),
        ({"overrides": {"pooling": "max"}}, "got pooling 'max' .*; give cls or mean"),
        ({"overrides": {"mlp_ratio": 0.001}}, "leaves its MLP no neuron"),
        ({"overrides": {"patch_size": 0}}, "a patch of 0 px"),
        ({"overrides": {"patch_size": (16, 14)}}, "an image width of 64 px; it must be a multiple of the patch, 14 px"),
        ({"image_size": (224, 230)}, "an image width of 230 px; .*: 224 or 240"),
        ({"num_classes": -1}, "got num_classes -1"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(kwargs: dict, match: str) -> None:
    with pytest.raises(ArgumentError, match=match) as caught:
        create("reference-vit-ti", **{"image_size": (64, 64)} | kwargs)
    assert "\n" not in str(caught.value)


def test_images_off_the_grid_are_refused_by_the_module_itself(make_tiny: Callable) -> None:
    """A convolution would have dropped the last pixels without a word."""
    for run in (make_tiny("reference"), make_tiny("reference").tokens):
        with pytest.raises(ArgumentError, match="an image width of 60 px; it must be a multiple"):
            run(noise(1, 3, 48, 60))
