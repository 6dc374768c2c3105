"""What is trained, with which decay and at which rate: against the roles of the parameters, read off the modules."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from vitprobe.errors import ArgumentError
from vitprobe.registers.insert import insert
from vitprobe.training.config import TRAINABLE, TrainConfig
from vitprobe.training.groups import freeze_all_but, parameter_groups
from vitprobe.training.schedule import make_optimizer
from vitprobe.training.variants import Variant

TOWERS = [
    ("timm-cls", 3),
    ("timm-layer-scale", 2),
    ("timm-reg4", 0),
    ("timm-no-cls", 2),
    ("timm-map-pool", 0),
    ("timm-pre-norm", 1),
    ("timm-qk-norm", 2),
    ("timm-eva-split", 2),
    ("timm-eva-mixed", 2),
    ("clip", 4),
    ("clip-layer-scale", 2),
    ("clip-attention-pool", 0),
]
TOKENS = ("cls_token", "reg_token", "pos_embed", "class_embedding", "positional_embedding")


def tower(name: str, number: int, make_tiny: Callable) -> object:
    return insert(make_tiny(name), number)


def undecayed(module: nn.Module) -> set[str]:
    """Names of tokens, positions, LayerScale, biases and all that belongs to a norm, by what holds them."""
    found = set()
    for place, part in module.named_modules():
        kind = type(part).__name__
        for name, _ in part.named_parameters(recurse=False):
            own = "Norm" in kind or "Rotary" in kind or kind == "LayerScale" or name.startswith("gamma_")
            if own or name in TOKENS or name.endswith("bias"):
                found.add(f"{place}.{name}".lstrip("."))
    return found


def depth(name: str, num_blocks: int) -> int:
    """BEiT's numbering (arXiv 2106.08254, its code): what is before block 0 is 0, the norm and head stand on top."""
    block = re.match(r"(?:transformer\.res)?blocks\.(\d+)\.", name)
    if block:
        return int(block[1]) + 1
    first = ("patch_embed", "conv1", "cls_token", "class_emb", "reg_token", "pos", "rope", "norm_pre", "ln_pre")
    return 0 if name.startswith(first) else num_blocks + 1


@pytest.mark.parametrize(("name", "number"), TOWERS)
def test_every_parameter_has_its_decay_and_its_rate(
    name: str, number: int, make_tiny: Callable, make_config: Callable
) -> None:
    backbone = tower(name, number, make_tiny)
    names = {id(p): n for n, p in backbone.module.named_parameters()}
    groups = parameter_groups(backbone, [], make_config(weight_decay=0.3, layer_decay=0.7))
    placed = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(placed) == sorted(names.values())
    free = undecayed(backbone.module)
    assert 0 < len(free) < len(placed)
    for group in groups:
        for n in (names[id(p)] for p in group["params"]):
            assert group["weight_decay"] == (0.0 if n in free else 0.3), n
            expected = 0.7 ** (backbone.num_blocks + 1 - depth(n, backbone.num_blocks))
            assert group["lr_scale"] == pytest.approx(expected), n


def test_layer_scale_stands_apart_so_that_lamb_does_not_starve_it(make_tiny: Callable, make_config: Callable) -> None:
    """LAMB's trust ratio is for what decays only: LayerScale of 1e-4 moves by the rate, not by a share of itself."""
    backbone = tower("timm-layer-scale", 2, make_tiny)
    config = make_config(optimizer="lamb", lr=0.01, weight_decay=0.02)
    groups = parameter_groups(backbone, [], config)
    scales = {id(p) for n, p in backbone.module.named_parameters() if n.endswith("gamma")}
    apart = [group for group in groups if {id(p) for p in group["params"]} & scales]
    assert [{id(p) for p in group["params"]} for group in apart] == [scales]
    optimizer = make_optimizer(groups, config)
    before = {n: p.detach().clone() for n, p in backbone.module.named_parameters()}
    with torch.no_grad():
        for n, p in backbone.module.named_parameters():
            p.copy_(torch.full_like(p, 1e-4) if n.endswith("gamma") else p)
            p.grad = torch.ones_like(p)
    optimizer.step()
    moved = {
        n: float((p.detach() - before[n]).abs().mean())
        for n, p in backbone.module.named_parameters()
        if not n.endswith("gamma")
    }
    gammas = [p for n, p in backbone.module.named_parameters() if n.endswith("gamma")]
    assert all(torch.allclose(p, torch.full_like(p, 1e-4 - 0.01), atol=1e-5) for p in gammas)
    weight = before["blocks.0.attn.qkv.weight"]
    ratio = weight.norm() / (1 + 0.02 * weight).norm()  # Adam's first update is 1, and decay is added (LAMB)
    assert moved["blocks.0.attn.qkv.weight"] == pytest.approx(0.01 * float(ratio), rel=0.05)


@pytest.mark.parametrize(
    ("objective", "number", "asked"),
    [
        ("supervised", 2, {}),
        ("text", 2, {}),
        ("self-distillation", 2, {}),
        ("retrofit", 2, {}),
        ("supervised", 0, {"ema": 0.9, "layer_decay": 0.8}),
    ],
)
def test_all_that_an_objective_trains_is_in_one_group(
    objective: str, number: int, asked: dict, make_config: Callable, make_built: Callable
) -> None:
    config = make_config(objective=objective, weight_decay=0.3, **asked)
    built = make_built(config, Variant(number))
    groups = parameter_groups(built.backbone, built.objective.heads(), config)
    placed = [id(p) for group in groups for p in group["params"]]
    trained = {id(p): n for n, p in built.objective.named_parameters() if p.requires_grad}
    assert len(placed) == len(set(placed))
    assert set(placed) == set(trained)
    for group in groups:
        for n, p in ((trained[id(p)], p) for p in group["params"]):
            if not n.startswith("tower."):
                assert group["lr_scale"] == 1.0
                bare = p.ndim <= 1 or n.endswith("positional_embedding")
                assert group["weight_decay"] == (0.0 if bare else 0.3), n
    kept = [n for n, p in built.objective.named_parameters() if not p.requires_grad]
    assert all(n.startswith(("teacher", "average", "tower")) for n in kept)


KINDS = {
    "timm-layer-scale": {
        "registers": r"reg_token",
        "cls": r"cls_token",
        "positions": r"pos_embed",
        "patch_embedding": r"patch_embed\.proj\.(weight|bias)",
        "last_block": r"blocks\.2\..*",
        "final_norm": r"norm\.(weight|bias)",
        "head": r"head\.(weight|bias)",
    },
    "clip": {
        "registers": r"reg_token",
        "cls": r"class_embedding",
        "positions": r"positional_embedding",
        "patch_embedding": r"conv1\.weight",
        "last_block": r"transformer\.resblocks\.1\..*",
        "final_norm": r"ln_post\.(weight|bias)",
        "head": r"proj",
    },
}


@pytest.mark.parametrize("kinds", [(kind,) for kind in TRAINABLE] + [("registers", "last_block"), ("cls", "all")])
@pytest.mark.parametrize("name", KINDS)
def test_only_the_asked_for_kinds_are_trained(name: str, kinds: tuple[str, ...], make_tiny: Callable) -> None:
    backbone = tower(name, 2, make_tiny)
    freeze_all_but(backbone, kinds)
    trained = {n for n, p in backbone.module.named_parameters() if p.requires_grad}
    wanted = [".*"] if "all" in kinds else [KINDS[name][kind] for kind in kinds]
    assert trained == {
        n for n, _ in backbone.module.named_parameters() if any(re.fullmatch(pattern, n) for pattern in wanted)
    }
    assert trained


def test_a_kind_that_the_model_has_not_is_refused(make_tiny: Callable) -> None:
    with pytest.raises(ArgumentError, match="timm-no-cls has no cls to train") as caught:
        freeze_all_but(make_tiny("timm-no-cls"), ["cls"])
    assert "\n" not in str(caught.value)


def test_registers_alone_leave_a_control_without_them_as_it_is(
    make_tiny: Callable, make_config: Callable, make_built: Callable
) -> None:
    backbone = make_tiny("timm-cls")
    freeze_all_but(backbone, ["registers"])
    with pytest.raises(ArgumentError, match=r"nothing is left to train of timm-cls with 0 registers; .*--no-control"):
        parameter_groups(backbone, [], TrainConfig())
    config = make_config(trainable=("registers",))
    built = make_built(config, Variant(0))
    groups = parameter_groups(built.backbone, built.objective.heads(), config)
    trained = {id(p) for group in groups for p in group["params"]}
    assert trained == {id(p) for p in built.objective.tasks.parameters()}


@pytest.mark.parametrize("objective", ["supervised", "text", "self-distillation", "retrofit"])
def test_heads_are_trained_whatever_is_frozen(objective: str, make_config: Callable, make_built: Callable) -> None:
    """Also a head that the objective has just drawn for the tower: frozen, it would stay noise."""
    built = make_built(make_config(objective=objective, trainable=("registers", "final_norm")))
    trained = {n for n, p in built.objective.named_parameters() if p.requires_grad}
    inside = {n.removeprefix("tower.") for n in trained if n.startswith("tower.")}
    drawn = {"text": {"head.weight", "head.bias"}}.get(objective, set())
    assert inside == {"reg_token", "norm.weight", "norm.bias"} | drawn
    heads = {n.split(".")[0] for n in trained} - {"tower"}
    expected = {
        "supervised": {"tasks"},
        "text": {"text_tower", "logit_scale"},
        "self-distillation": {"cls_head", "patch_head", "mask_token"},
        "retrofit": set(),
    }
    assert heads == expected[objective]
