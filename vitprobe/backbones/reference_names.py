"""The reference ViT in timm's names: weights come by a map of names, and go back by the same."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vitprobe.backbones.positions import resize_table
from vitprobe.backbones.reference_vit import VisionTransformer, ViTConfig
from vitprobe.backbones.weights import load_into
from vitprobe.errors import WeightsError

MODEL = {
    "patch_embed.proj": "patch_embedding.projection", "cls_token": "cls", "reg_token": "registers",
    "pos_embed": "positions", "norm": "final_norm", "head": "head",
}  # fmt: skip
BLOCK = {
    "norm1": "attention_norm", "attn.qkv": "attention.qkv", "attn.q_norm": "attention.query_norm",
    "attn.k_norm": "attention.key_norm", "attn.proj": "attention.output", "ls1.gamma": "attention_scale.gain",
    "norm2": "mlp_norm", "mlp.fc1": "mlp.expand", "mlp.fc2": "mlp.contract", "ls2.gamma": "mlp_scale.gain",
}  # fmt: skip
"""timm's names of the parts of a model and of a block, and the reference's."""
SCALE = 1e-5
"""Stands for where LayerScale began, in a model whose weights are read: its values are among them."""


def load_timm_weights(
    module: VisionTransformer,
    state: Mapping[str, Tensor],
    *,
    file: str = "the state dict",
    model: str = "the reference ViT",
) -> None:
    """Load the state dict of a ``VisionTransformer`` of timm, by its names.

    Positions of another grid are resized in 2-D, from a square one. Positions that only timm's model has, of CLS or of
    registers, are added to their tokens, which enter block 0 as they did, to the bit. Raises `WeightsError`, calling
    the state ``file``, for parts that the reference does not have (a norm before block 0, a norm after the pool, gates)
    and for tensors that are missing, left over or of another shape.
    """
    load_into(module, fit_positions(module, from_timm(state, file=file), file=file), file=file, model=model)


def from_timm(state: Mapping[str, Tensor], *, file: str) -> dict[str, Tensor]:
    """Bring a state dict to the reference's names; one that has them already is returned as it is."""
    if "patch_embedding.projection.weight" in state:
        return dict(state)
    try:
        return {_renamed(name, MODEL, BLOCK): tensor for name, tensor in state.items()}
    except KeyError as error:
        raise WeightsError(
            f"{file} holds {error.args[0]}, for which the reference ViT has no place; allowed are weights of timm's "
            "ViTs that norm all tokens once, after the last block, and pool CLS or the mean"
        ) from error


def timm_state(module: VisionTransformer) -> dict[str, Tensor]:
    """Return the weights in timm's names. Beside registers, the position of CLS is added to CLS, as timm needs it."""
    state = module.state_dict()
    num_prefix = module.positions.shape[1] - math.prod(module.grid)
    if num_prefix and module.config.num_registers:
        first, state["positions"] = state["positions"].split([num_prefix, math.prod(module.grid)], dim=1)
        state["cls"] = state["cls"] + first
    model, block = ({own: theirs for theirs, own in table.items()} for table in (MODEL, BLOCK))
    return {_renamed(name, model, block): tensor for name, tensor in state.items()}


def timm_args(config: ViTConfig) -> dict[str, Any]:
    """Return the keywords by which a ``VisionTransformer`` of timm is the reference of ``config``, all but its size."""
    return {
        "embed_dim": config.width, "depth": config.depth, "num_heads": config.num_heads, "mlp_ratio": config.mlp_ratio,
        "num_classes": config.num_classes, "global_pool": {"cls": "token", "mean": "avg"}[config.pooling],
        "class_token": config.has_cls, "no_embed_class": not config.cls_has_position or config.num_registers > 0,
        "reg_tokens": config.num_registers, "fc_norm": False, "qk_norm": config.has_qk_norm, "dynamic_img_size": False,
        **({"init_values": config.layer_scale} if config.layer_scale else {}),
    }  # fmt: skip


def read_config_of(config: ViTConfig, state: Mapping[str, Tensor], *, file: str) -> ViTConfig:
    """Change what ``config`` says to what a state dict in the reference's names shows of itself.

    That is its classes, registers, LayerScale, norms of queries and keys, CLS and its position, and the image size that
    a square table of positions was made for. Without CLS the mean is pooled.
    """
    head, registers, has_cls = state.get("head.weight"), state.get("registers"), "cls" in state
    shown = replace(
        config,
        num_classes=0 if head is None else head.shape[0],
        num_registers=0 if registers is None else registers.shape[1],
        has_cls=has_cls,
        pooling=config.pooling if has_cls else "mean",
        has_qk_norm=any(".query_norm." in name for name in state),
        layer_scale=SCALE if any(name.endswith(".gain") for name in state) else 0.0,
    )
    if "positions" not in state:
        return shown  # which load_into will name
    num_prefix, grid = _split_of(state, (0, 0), file=file)
    size = (grid[0] * config.patch_size[0], grid[1] * config.patch_size[1])
    return replace(shown, cls_has_position=has_cls and num_prefix == 1, image_size=size)


def fit_positions(module: VisionTransformer, state: Mapping[str, Tensor], *, file: str) -> dict[str, Tensor]:
    """Bring the positions of a state dict, in the reference's names, to the module's grid and to the tokens it has."""
    state = dict(state)
    if "positions" not in state:
        return state
    num_prefix, grid = _split_of(state, module.grid, file=file)
    prefix, patches = state["positions"].split([num_prefix, math.prod(grid)], dim=1)
    patches = resize_table(patches, grid, module.grid, num_prefix=0)  # (1, P, D)
    has_place = module.positions.shape[1] > math.prod(module.grid)
    kept = [torch.zeros_like(patches.narrow(1, 0, 1))] if has_place else []  # where the state has no position of CLS
    for name in ("cls", "registers"):
        if name not in state or not prefix.shape[1]:
            continue
        number = state[name].shape[1]
        own, prefix = prefix.split([number, prefix.shape[1] - number], dim=1)
        if name == "cls" and has_place:
            kept = [own]
        else:
            state[name] = state[name] + own
    return state | {"positions": torch.cat([*kept, patches], dim=1)}


def _split_of(state: Mapping[str, Tensor], grid: tuple[int, int], *, file: str) -> tuple[int, tuple[int, int]]:
    """Tell how many prefix tokens a table of positions begins with, and its grid: ``grid`` if it fits, or a square."""
    table = state["positions"]
    tokens = [state[name].shape[1] for name in ("cls", "registers") if name in state]
    if table.ndim == 3:
        for num_prefix in (0, *tokens[:1], sum(tokens)):
            if 0 < table.shape[1] - num_prefix == math.prod(grid):
                return num_prefix, grid
        for num_prefix in (0, *tokens[:1], sum(tokens)):
            side = math.isqrt(max(0, table.shape[1] - num_prefix))
            if side and side * side == table.shape[1] - num_prefix:
                return num_prefix, (side, side)
    raise WeightsError(f"{file} holds positions of shape {tuple(table.shape)}, which are of no square grid of patches")


def _renamed(name: str, model: Mapping[str, str], block: Mapping[str, str]) -> str:
    """Give a parameter its other name. Raises `KeyError`, with the name, for a part that is in no table."""
    before, part, after = re.fullmatch(r"(blocks\.\d+\.)?(.*?)(\.weight|\.bias)?", name).groups(default="")
    table = block if before else model
    if part not in table:
        raise KeyError(name)
    return before + table[part] + after
