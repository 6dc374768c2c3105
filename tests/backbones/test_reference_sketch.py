"""The ViT that circulates in tutorials, shown to be wrong by what the reference ViT does right.

The sketch feeds (B, P, D) to an ``nn.MultiheadAttention`` that expects (P, B, D), so that a patch attends to the same
patch of the other images; it has no positions and no CLS; and it norms the residual stream itself (post-norm), which
brings every token to the same norm and so hides any artifact.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vitprobe.backbones.reference import build
from vitprobe.backbones.reference_vit import ViTConfig

SIDE, PATCH, WIDTH, HEADS = 32, 8, 48, 4
Model = Callable[[Tensor], Tensor]


class SketchBlock(nn.Module):
    """A post-norm block whose attention may run along the wrong axis."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, x, x, need_weights=False)[0])
        return self.norm2(x + self.mlp(x))


class Sketch(nn.Module):
    """The tutorials' ViT: no CLS, no positions, the mean of all patches."""

    def __init__(self, *, batch_first: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.blocks = nn.Sequential(*(SketchBlock(batch_first=batch_first) for _ in range(2)))

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(self.embedding(images).flatten(2).transpose(1, 2)).mean(dim=1)  # (B, D)


@pytest.fixture(scope="module")
def right(stir: Callable) -> nn.Module:
    config = ViTConfig(
        width=WIDTH, num_heads=HEADS, depth=2, image_size=(SIDE, SIDE), patch_size=(PATCH, PATCH), num_classes=0
    )
    module = build(config, seed=0)
    stir(module)
    return module


@pytest.fixture(scope="module")
def sketch(stir: Callable) -> nn.Module:
    return drawn(Sketch(), stir)


def drawn(module: nn.Module, stir: Callable) -> nn.Module:
    stir(module.eval())
    return module


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def difference(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()


@torch.no_grad()
def others_matter(model: Model) -> float:
    """How much the output of image 0 changes with the other images of its batch."""
    images = noise(4, 3, SIDE, SIDE)
    others = torch.cat([images[:1], noise(3, 3, SIDE, SIDE, seed=2)])
    return max(difference(model(images)[0], model(others)[0]), difference(model(images)[0], model(images[:1])[0]))


@torch.no_grad()
def order_matters(model: Model) -> float:
    """How much the output changes where the patches of an image are permuted."""
    images, order = noise(2, 3, SIDE, SIDE), torch.randperm(16, generator=torch.Generator().manual_seed(3))
    patches = nn.functional.unfold(images, PATCH, stride=PATCH)  # (B, 3 * PATCH * PATCH, P)
    moved = nn.functional.fold(patches[..., order], (SIDE, SIDE), PATCH, stride=PATCH)  # (B, 3, SIDE, SIDE)
    return difference(model(images), model(moved))


@torch.no_grad()
def patches_matter(model: Model) -> float:
    """How much another pixel far away changes what a block makes of the first patch of the same image."""
    tokens = noise(2, 16, WIDTH)
    other = tokens.clone()
    other[:, 9] = noise(2, WIDTH, seed=2)
    return difference(model(tokens)[:, 0], model(other)[:, 0])


@torch.no_grad()
def planted_ratio(block: Model) -> float:
    """Norm of a token planted at 50 times the others' norm over their median, after a block."""
    tokens = noise(1, 17, WIDTH)
    tokens[:, 5] *= 50
    norms = torch.linalg.vector_norm(block(tokens), dim=-1)[0]  # (T,)
    others = torch.cat([norms[:5], norms[6:]])
    return (norms[5] / others.median()).item()


def test_an_image_does_not_depend_on_the_others_of_its_batch(right: nn.Module, sketch: nn.Module) -> None:
    assert others_matter(right) < 1e-5
    assert others_matter(sketch) > 0.1


def test_a_patch_reads_the_others_of_its_image(right: nn.Module, sketch: nn.Module) -> None:
    assert patches_matter(right.blocks[0]) > 0.1
    assert patches_matter(sketch.blocks[0]) == 0


def test_the_order_of_patches_matters(right: nn.Module, sketch: nn.Module, stir: Callable) -> None:
    assert order_matters(right) > 0.1
    assert order_matters(sketch) < 1e-5
    assert order_matters(drawn(Sketch(batch_first=True), stir)) < 1e-5  # mended attention alone does not see places


def test_a_planted_outlier_survives_a_block(right: nn.Module, sketch: nn.Module, stir: Callable) -> None:
    """The stream of a pre-norm block keeps it; a post-norm block levels it, whatever axis attention runs along."""
    assert planted_ratio(nn.Identity()) > 40
    for block in right.blocks:
        assert planted_ratio(block) > 8
    levelling = [*sketch.blocks, *drawn(Sketch(batch_first=True), stir).blocks]
    for block in levelling:
        assert planted_ratio(block) < 1.5


def test_at_the_weights_of_a_beginning() -> None:
    """With small weights, as training begins, 50 stays 50 in a pre-norm block."""
    config = ViTConfig(width=WIDTH, num_heads=HEADS, depth=1)
    assert planted_ratio(build(config, seed=0).blocks[0]) == pytest.approx(planted_ratio(nn.Identity()), rel=0.05)
    assert planted_ratio(Sketch(batch_first=True).eval().blocks[0]) < 1.5
