"""A vision transformer, written to be read.

Dosovitskiy et al., "An image is worth 16x16 words", arXiv 2010.11929: sections, equations and tables below are theirs.
What later papers added stands beside it, off by default: registers, LayerScale, drop path, norms of queries and keys.

Shapes: B images, P patches, T tokens (CLS, then registers, then patches), D width, H heads, d = D / H, N neurons.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitprobe.backbones.base import check_image_size
from vitprobe.backbones.positions import resize_table
from vitprobe.tokens import TokenLayout

EPS = 1e-6  # added to the variance in every LayerNorm, as in the paper's own code


@dataclass(frozen=True)
class ViTConfig:
    """Hold all that a `VisionTransformer` is built from; sizes are those of table 1."""

    width: int
    num_heads: int
    depth: int = 12
    image_size: tuple[int, int] = (224, 224)
    """(height, width) in pixels; the grid of learned positions is made for it."""
    patch_size: tuple[int, int] = (16, 16)
    mlp_ratio: float = 4.0
    num_classes: int = 1000
    """Outputs of the head; 0 for no head."""
    has_cls: bool = True
    cls_has_position: bool = True
    """Whether CLS has a learned position, as in equation 1, or patches alone have (timm's ``no_embed_class``)."""
    num_registers: int = 0
    """Learned tokens without a position (Darcet et al., arXiv 2309.16588, section 2.2)."""
    pooling: str = "cls"
    """What the head reads after the final norm: ``cls``, or the ``mean`` of the patches (appendix D.3)."""
    layer_scale: float = 0.0
    """Where LayerScale begins; 0 for none."""
    drop_path: float = 0.0
    """Rate of the last block; it rises linearly from 0 at the first."""
    dropout: float = 0.0
    """Rate after positions and after every linear layer but qkv (appendix B.1)."""
    has_qk_norm: bool = False
    """Whether queries and keys pass a norm of their own (Dehghani et al., arXiv 2302.05442, section 2)."""


class PatchEmbedding(nn.Module):
    """Multiply each flattened patch by one matrix (E of equation 1): a convolution that steps by its own size."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, config.width, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.projection(images).flatten(2).transpose(1, 2)  # (B, D, rows, cols) -> (B, P, D), row by row


class SelfAttention(nn.Module):
    """Let every token read from all tokens of its own image, in H heads at once (appendix A)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.num_heads, dim = config.num_heads, config.width // config.num_heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.query_norm = nn.LayerNorm(dim, eps=EPS) if config.has_qk_norm else nn.Identity()
        self.key_norm = nn.LayerNorm(dim, eps=EPS) if config.has_qk_norm else nn.Identity()
        self.output = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def split_heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project tokens, (B, T, D), to queries, keys and values, (B, H, T, d) each."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, T, 3, H, d)
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, T, d) each

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split_heads(x)
        heads = F.scaled_dot_product_attention(self.query_norm(q), self.key_norm(k), v)  # softmax(q k' / sqrt(d)) v
        return self.dropout(self.output(heads.transpose(1, 2).flatten(2)))  # heads side by side: (B, T, D)


class MLP(nn.Module):
    """Work on each token by itself: two linear layers with a GELU between them (section 3.1)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.expand = nn.Linear(config.width, int(config.width * config.mlp_ratio))
        self.contract = nn.Linear(self.expand.out_features, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        neurons = self.dropout(F.gelu(self.expand(x)))  # (B, T, N)
        return self.dropout(self.contract(neurons))  # (B, T, D)


class LayerScale(nn.Module):
    """Multiply what a branch writes by a learned number a dimension (Touvron et al., arXiv 2103.17239, section 2)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((config.width,), float(config.layer_scale)))

    def forward(self, branch: Tensor) -> Tensor:
        return branch * self.gain


class DropPath(nn.Module):
    """Leave a branch out for some images of a training batch, scale it up for the rest (Huang et al., 1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return branch
        keep = 1 - self.rate
        return branch * branch.new_empty(len(branch), 1, 1).bernoulli_(keep).div_(keep)  # one draw an image


class TransformerBlock(nn.Module):
    """Add to the residual stream what attention, then the MLP, read off it (equations 2 and 3).

    Pre-norm: a branch reads the stream through a norm, but the stream itself is never normed, so that a token can grow
    from block to block. High-norm outliers live there; a norm on the stream (post-norm) would hide them.
    """

    def __init__(self, config: ViTConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, eps=EPS)
        self.attention = SelfAttention(config)
        self.attention_scale = LayerScale(config) if config.layer_scale else nn.Identity()
        self.mlp_norm = nn.LayerNorm(config.width, eps=EPS)
        self.mlp = MLP(config)
        self.mlp_scale = LayerScale(config) if config.layer_scale else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, stream: Tensor) -> Tensor:
        stream = stream + self.drop_path(self.attention_scale(self.attention(self.attention_norm(stream))))  # (B, T, D)
        return stream + self.drop_path(self.mlp_scale(self.mlp(self.mlp_norm(stream))))  # (B, T, D)


class VisionTransformer(nn.Module):
    """Classify images: embed patches, run the blocks, norm, pool, one linear layer (section 3.1, figure 1).

    Linear layers and positions begin as normal draws of spread 0.02, as in DeiT (arXiv 2012.12877), not Glorot's.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config, width, registers = config, config.width, config.num_registers
        self.grid = tuple(side // patch for side, patch in zip(config.image_size, config.patch_size, strict=True))
        num_positions = self.grid[0] * self.grid[1] + int(config.has_cls and config.cls_has_position)
        self.patch_embedding = PatchEmbedding(config)
        self.cls = nn.Parameter(1e-6 * torch.randn(1, 1, width)) if config.has_cls else None
        self.registers = nn.Parameter(1e-6 * torch.randn(1, registers, width)) if registers else None
        self.positions = nn.Parameter(0.02 * torch.randn(1, num_positions, width))
        self.dropout = nn.Dropout(config.dropout)
        rates = [config.drop_path * index / max(1, config.depth - 1) for index in range(config.depth)]
        self.blocks = nn.ModuleList(TransformerBlock(config, rate) for rate in rates)
        self.final_norm = nn.LayerNorm(width, eps=EPS)
        self.head = nn.Linear(width, config.num_classes) if config.num_classes else nn.Identity()
        for linear in (part for part in self.modules() if isinstance(part, nn.Linear)):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def layout(self, image_size: tuple[int, int]) -> TokenLayout:
        """Return which tokens are CLS, registers and patches. Raises `ArgumentError` for a size off the patch grid."""
        (height, width), config = check_image_size(image_size, self.config.patch_size), self.config
        grid = (height // config.patch_size[0], width // config.patch_size[1])
        return TokenLayout.prefix_first(has_cls=config.has_cls, num_registers=config.num_registers, grid=grid)

    def embed(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Add positions, and put CLS and registers in front (equation 1): (B, P, D) -> (B, T, D)."""
        num_prefix = self.positions.shape[1] - self.grid[0] * self.grid[1]  # 1 where CLS has a position, else 0
        table = resize_table(self.positions, self.grid, grid, num_prefix=num_prefix)  # in 2-D (section 3.2)
        first, positions = table.split([num_prefix, patches.shape[1]], dim=1)  # (1, 0 or 1, D) and (1, P, D)
        cls = self.cls + first if num_prefix else self.cls  # (1, 1, D)
        prefix = [token.expand(len(patches), -1, -1) for token in (cls, self.registers) if token is not None]
        return self.dropout(torch.cat([*prefix, patches + positions], dim=1))

    def encode(self, stream: Tensor) -> Tensor:
        """Run the blocks, and norm what leaves the last: (B, T, D) -> (B, T, D)."""
        for block in self.blocks:
            stream = block(stream)
        return self.final_norm(stream)

    def pool(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        """Pool normed tokens to what the head reads (equation 4): (B, T, D) -> (B, D)."""
        return tokens[:, layout.cls].squeeze(1) if self.config.pooling == "cls" else tokens[:, layout.patches].mean(1)

    def forward(self, images: Tensor) -> Tensor:
        layout = self.layout(images.shape[-2:])
        tokens = self.encode(self.embed(self.patch_embedding(images), layout.grid))  # (B, T, D)
        return self.head(self.pool(tokens, layout))  # (B, C)
