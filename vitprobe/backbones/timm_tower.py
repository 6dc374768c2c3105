"""What timm's vision transformers share: the names of their modules and the order of their tokens."""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vitprobe.backbones.base import Backbone, ModelSpec, Transform, check_image_size, mask_patches
from vitprobe.errors import ArgumentError
from vitprobe.tokens import TokenLayout

ALLOWED = (
    "allowed are timm's plain ViTs (VisionTransformer of Block and Attention, Eva of EvaBlock), open_clip's, "
    "and the aliases"
)


class TimmTower(Backbone):
    """Adapt a ViT of timm; tokens are CLS, registers, patches. Subclasses say what they refuse, and their attention."""

    parameter_patterns: ClassVar[dict[str, str]] = {
        "registers": "reg_token",
        "cls": "cls_token",
        "positions": r"pos_embed|rope\..*",
        "patch_embedding": r"patch_embed\..*",
        "final_norm": r"(fc_)?norm\..*",
        "head": r"(head|attn_pool)\..*",
        "layer_scale": r"blocks\.\d+\.(ls\d\.gamma|gamma_\d)",
        "block": r"blocks\.(\d+)\..*",
    }

    def __init__(self, module: nn.Module, spec: ModelSpec, transform: Transform) -> None:
        self.refuse(module, spec.name)
        self.module, self.spec, self.transform = module, spec, transform
        self.num_blocks = len(module.blocks)
        self.num_heads = module.blocks[0].attn.num_heads
        self.width = module.embed_dim
        rows, cols = module.patch_embed.grid_size
        self.patch_size = (spec.image_size[0] // rows, spec.image_size[1] // cols)
        self.final_norm = None if isinstance(module.norm, nn.Identity) else module.norm
        self.check_attention()

    @staticmethod
    @abstractmethod
    def refuse(module: nn.Module, name: str) -> None:
        """Raise `ArgumentError`, by name, for a model whose tokens or blocks this adapter cannot state."""

    def layout(self, image_size: tuple[int, int] | None = None) -> TokenLayout:
        height, width = check_image_size(image_size or self.spec.image_size, self.patch_size)
        return TokenLayout.prefix_first(
            has_cls=self.module.cls_token is not None,
            num_registers=num_registers(self.module),
            grid=(height // self.patch_size[0], width // self.patch_size[1]),
        )

    @property
    def patch_embedding(self) -> nn.Module:
        return self.module.patch_embed

    def patch_tokens(self, output: Tensor) -> Tensor:
        return output.flatten(1, -2)

    def patch_output(self, tokens: Tensor, like: Tensor) -> Tensor:
        return tokens.reshape(like.shape)

    def block(self, index: int) -> nn.Module:
        return self.module.blocks[self.check_block(index)]

    def attention(self, index: int) -> nn.Module:
        return self.block(index).attn

    def second_linear(self, index: int) -> nn.Module:
        return self.block(index).mlp.fc2

    def project_heads(self, index: int, heads: Tensor, x: Tensor) -> Tensor:
        attn = self.attention(index)
        out = heads.transpose(1, 2).flatten(2)  # (B, T, H*d)
        norm, gate = getattr(attn, "norm", None), getattr(attn, "gate", None)  # both are newer than timm 1.0.20
        out = out if norm is None else norm(out)
        out = out if gate is None else out * gate(x).sigmoid()
        return attn.proj(out)

    def tokens(self, images: Tensor, *, masked: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        from timm.models import checkpoint

        module, grid = self.module, self.layout(tuple(images.shape[-2:])).grid
        if module.training and getattr(module.patch_drop, "prob", 0):
            raise ArgumentError(f"{self.spec.name} drops patches while it trains; build it without patch_drop_rate")
        x = mask_patches(self._embed(images, grid), masked, mask_token)  # (B, P, D)
        x = module.norm_pre(self._add_prefix(x, grid))  # (B, T, D)
        for block, context in zip(module.blocks, self.contexts(grid), strict=True):
            x = checkpoint(block, x, **context) if module.grad_checkpointing else block(x, **context)
        return module.norm(x)

    def contexts(self, grid: tuple[int, int]) -> list[dict[str, Any]]:
        """What each block's call takes beside its tokens, for a grid of patches."""
        return [{}] * self.num_blocks

    def _embed(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Embed the patches of images of any size, (B, P, D), through the module's own parts."""
        from timm.layers import HybridEmbed, PatchEmbed

        embed = self.module.patch_embed
        if grid == tuple(embed.grid_size) or not embed.strict_img_size or type(embed) is HybridEmbed:
            return self.patch_tokens(embed(images))
        if type(embed) is not PatchEmbed:
            size, got = ("{} x {} px".format(*side) for side in (self.spec.image_size, images.shape[-2:]))
            raise ArgumentError(f"{self.spec.name} embeds patches by a {type(embed).__name__}: give {size}, not {got}")
        return self.patch_tokens(embed.norm(embed.proj(images).permute(0, 2, 3, 1)))  # (B, rows, cols, D) before

    def _add_prefix(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Add positions, CLS and registers, in the order of timm's ``_pos_embed``: (B, P, D) -> (B, T, D)."""
        from timm.layers import resample_abs_pos_embed

        module, table = self.module, self.module.pos_embed
        if table is not None:
            num_prefix = 0 if module.no_embed_class else module.num_prefix_tokens
            old = list(module.patch_embed.grid_size)
            table = resample_abs_pos_embed(table, new_size=list(grid), old_size=old, num_prefix_tokens=num_prefix)
        if table is not None and module.no_embed_class:
            x = x + table  # (B, P, D)
        prefix = [token for token in (module.cls_token, module.reg_token) if token is not None]
        x = torch.cat([*(token.expand(len(x), -1, -1) for token in prefix), x], dim=1) if prefix else x  # (B, T, D)
        if table is not None and not module.no_embed_class:
            x = x + table  # (B, T, D)
        return module.pos_drop(x)

    def pool(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        check_num_tokens(tokens, layout)
        if not self.module.global_pool:
            raise ArgumentError(f"{self.spec.name} does not pool its tokens; build it with global_pool token or avg")
        return self.module.forward_head(tokens, pre_logits=True)

    def features(self, images: Tensor) -> Tensor:
        return self.pool(self.tokens(images), self.layout(tuple(images.shape[-2:])))

    def replace_head(self, num_classes: int, generator: torch.Generator) -> None:
        module, like = self.module, next(self.module.blocks.parameters())
        with torch.random.fork_rng(devices=[like.device] if like.is_cuda else []):
            module.reset_classifier(num_classes)
        if num_classes:
            module.head.to(like)  # timm 1.0.20 leaves it on the CPU
            weight = torch.empty(module.head.weight.shape)
            nn.init.trunc_normal_(weight, std=0.02, generator=generator)  # as timm fills its ViTs' linear layers
            with torch.no_grad():
                module.head.weight.copy_(weight)
                module.head.bias.zero_()

    @torch.no_grad()
    def add_registers(self, values: Tensor) -> None:
        """Put registers, (R, D), after CLS; positions that covered CLS are folded into it, so that none has its own.

        The stream before block 0 stays, to the bit, what it was at CLS and patches. Where timm's head pools by reading
        all tokens (``Eva`` with map pooling), it reads the registers as it reads CLS.
        """
        module = self.module
        if module.pos_embed is not None and not module.no_embed_class and module.cls_token is not None:
            first, patches = module.pos_embed.split([1, module.pos_embed.shape[1] - 1], dim=1)
            module.cls_token.add_(first)
            module.pos_embed = nn.Parameter(patches.contiguous(), requires_grad=module.pos_embed.requires_grad)
        module.no_embed_class = True
        module.reg_token = nn.Parameter(values.to(next(module.blocks.parameters())).unsqueeze(0))  # (1, R, D)
        module.num_reg_tokens = len(values)  # VisionTransformer's; an Eva says it by the parameter alone
        module.num_prefix_tokens += len(values)
        for part in (module.patch_drop, *(block.attn for block in module.blocks)):
            if hasattr(part, "num_prefix_tokens"):  # Eva's attention turns all tokens beyond them
                part.num_prefix_tokens = module.num_prefix_tokens


def check_num_tokens(tokens: Tensor, layout: TokenLayout) -> None:
    """Raise `ArgumentError` where tokens, (B, T, D), are not those of the layout."""
    if tokens.shape[1] != layout.num_tokens:
        raise ArgumentError(f"got {tokens.shape[1]} tokens for a layout of {layout.num_tokens}; give their own layout")


def num_registers(module: nn.Module) -> int:
    """Count the registers of a tower; timm's ``Eva`` says it by its parameter alone."""
    token = getattr(module, "reg_token", None)
    return 0 if token is None else token.shape[1]
