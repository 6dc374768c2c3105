"""Vision transformers of timm's ``Eva``: DINOv3, EVA-02, ViTs with rotary positions, Perception Encoder, ..."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from vitprobe.backbones.timm_tower import ALLOWED, TimmTower, num_registers
from vitprobe.errors import ArgumentError


class TimmEva(TimmTower):
    """Adapt timm's ``Eva`` of pre-norm ``EvaBlock``.

    Rotary positions turn queries and keys after their last module, so no module shows them as the product uses them:
    rows are computed from what attention reads and the ``rope`` that the model passes with it.
    """

    attention_context = ("rope",)

    @staticmethod
    def refuse(module: nn.Module, name: str) -> None:
        refuse_if_not_plain_eva(module, name)

    def query_key_modules(self, index: int) -> tuple[nn.Module, nn.Module] | None:
        return None

    def query_key_value(self, index: int, x: Tensor, **context: Any) -> tuple[Tensor, Tensor, Tensor]:
        attn = self.attention(index)
        parts = _project(attn, x)  # (B, T, H*d); fewer heads for keys and values where several share them
        dim = parts[0].shape[-1] // attn.num_heads
        q, k, v = (part.unflatten(-1, (-1, dim)).transpose(1, 2) for part in parts)  # (B, H, T, d)
        q, k = attn.q_norm.forward(q), attn.k_norm.forward(k)
        rope = context.get("rope")
        if rope is not None:
            q, k = (_turn(attn, part, rope).type_as(v) for part in (q, k))
        groups = q.shape[1] // k.shape[1]
        return q, k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)

    def attention_example(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        rope, grid = self.module.rope, self.module.patch_embed.grid_size
        table = None
        if rope is not None:
            table = rope.get_embed(shape=grid) if self.module.dynamic_img_size else rope.get_embed()
            table = table[index] if getattr(self.module, "rope_mixed", False) else table  # (..., P, 2d)
            picks = torch.linspace(0, table.shape[-2] - 1, 7, device=table.device).long()
            table = table.index_select(-2, picks)
        return self.random_tokens(self.module.num_prefix_tokens + 7), {"rope": table}

    def contexts(self, grid: tuple[int, int]) -> list[dict[str, Any]]:
        from timm.layers import RotaryEmbeddingCat

        rope = self.module.rope
        if rope is None:
            return [{"rope": None}] * self.num_blocks
        is_cached = not self.module.dynamic_img_size and hasattr(rope, "feat_shape")  # as the model asks for its table
        if is_cached and grid == tuple(self.module.patch_embed.grid_size):
            table = rope.get_embed()
        elif is_cached and type(rope) is RotaryEmbeddingCat:  # which gives its one table whatever it is asked for
            rope = copy.deepcopy(rope)
            rope.update_feat_shape(list(grid))
            table = rope.get_embed()
        else:
            table = rope.get_embed(shape=list(grid))
        is_mixed = getattr(self.module, "rope_mixed", False)  # a table a block
        return [{"rope": table[index] if is_mixed else table} for index in range(self.num_blocks)]


def _project(attn: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Project what attention reads to queries, keys and values, (B, T, H*d) each, through the module's own weights."""
    if attn.qkv is None:
        return attn.q_proj(x), attn.k_proj(x), attn.v_proj(x)
    if getattr(attn, "q_bias", None) is None:
        return attn.qkv(x).chunk(3, dim=-1)
    bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    return nn.functional.linear(x, attn.qkv.weight, bias).chunk(3, dim=-1)


def _turn(attn: nn.Module, heads: Tensor, rope: Tensor) -> Tensor:
    """Turn the patches of queries or keys, (B, H, T, d), by their rotary positions, as the module does."""
    from timm.layers import apply_rot_embed_cat

    prefix, patches = heads.split([attn.num_prefix_tokens, heads.shape[2] - attn.num_prefix_tokens], dim=2)
    return torch.cat([prefix, apply_rot_embed_cat(patches, rope, half=attn.rotate_half)], dim=2)  # (B, H, T, d)


def refuse_if_not_plain_eva(module: nn.Module, name: str) -> None:
    """Raise `ArgumentError`, by name, for an ``Eva`` whose tokens or blocks this adapter cannot state."""
    from timm.layers import AttentionRope
    from timm.models.eva import Eva, EvaAttention, EvaBlock

    if type(module) is not Eva:
        raise ArgumentError(f"{name} is a {type(module).__name__}, no plain ViT; {ALLOWED}")
    for block in module.blocks:
        if type(block) is not EvaBlock:
            raise ArgumentError(f"{name} is built of {type(block).__name__}, no plain EvaBlock; {ALLOWED}")
        if type(block.attn) not in (EvaAttention, AttentionRope) or not hasattr(block.mlp, "fc2"):
            parts = f"{type(block.attn).__name__} and {type(block.mlp).__name__}"
            raise ArgumentError(
                f"{name} has blocks of {parts}, not of EvaAttention or AttentionRope and an MLP with fc2; {ALLOWED}"
            )
        if block.attn.num_prefix_tokens != module.num_prefix_tokens:
            raise ArgumentError(
                f"{name} turns all but {block.attn.num_prefix_tokens} tokens by rotary positions, but has "
                f"{module.num_prefix_tokens} prefix tokens; {ALLOWED}"
            )
    if module.num_prefix_tokens != int(module.cls_token is not None) + num_registers(module):
        raise ArgumentError(f"{name} has prefix tokens that are neither CLS nor registers; {ALLOWED}")
