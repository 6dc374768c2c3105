"""What timm's vision transformers share: the names of their modules and the order of their tokens."""

from abc import abstractmethod

from torch import Tensor, nn

from vitprobe.backbones.base import Backbone, ModelSpec, Transform, check_image_size
from vitprobe.tokens import TokenLayout

ALLOWED = (
    "allowed are timm's plain ViTs (VisionTransformer of Block and Attention, Eva of EvaBlock), open_clip's, "
    "and the aliases"
)


class TimmTower(Backbone):
    """Adapt a ViT of timm; tokens are CLS, registers, patches. Subclasses say what they refuse, and their attention."""

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


def num_registers(module: nn.Module) -> int:
    """Count the registers of timm's ViTs; an ``Eva`` says it by its parameter alone."""
    token = getattr(module, "reg_token", None)
    return 0 if token is None else token.shape[1]
