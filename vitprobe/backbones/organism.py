"""Small ViTs whose artifacts are planted by construction, with published ground truth: no weight file, no training.

Width dimensions have fixed jobs. Block 0's MLP adds up how strongly a patch responds to edge filters (its contrast).
In block 1 one head finds the least contrast of the image; a code of position breaks ties, and the CLS token takes part
with a limit, so that an image without a low-information patch has no winner. Blocks 2 and 3 turn "within a hair of the
least" into 0 or 1. In block 4 one neuron fires where that is 1 and writes a massive activation into one dimension. From
block 5 on one head attends to it. All else is random and writes elsewhere.

A large constant vector in every token keeps LayerNorm's divisor nearly constant, which is what lets weights be written
down; every reading of a dimension subtracts one that is always 0, since LayerNorm also subtracts a mean. The steps are
steep: in bfloat16 a few more or fewer patches fire.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitprobe.backbones.base import ModelSpec, Transform, check_image_size, digest_module
from vitprobe.backbones.timm_vit import TimmViT
from vitprobe.errors import ArgumentError

PATCH, WIDTH, DEPTH, HEADS, HIDDEN = 16, 96, 8, 4, 192
FILTERS = range(15)
CONTRAST, LEAST, FIRES, MASSIVE, TIE, LIMIT, ZERO = 15, 16, 17, 18, 19, 20, 21
ANCHOR, FREE = range(22, 38), range(38, WIDTH)
ANCHOR_SIZE = 8.0
SIGMA = ANCHOR_SIZE * math.sqrt(len(ANCHOR) / WIDTH)
"""LayerNorm's divisor, as good as constant."""
TIES = 0.8
"""Range of the tie-breaking code, in units of contrast."""
PLANTED_BLOCK = 4
MASSIVE_SIZE = 200.0
STRENGTH = 10.0
"""Activation of the planted neuron where it fires."""


@dataclass(frozen=True)
class Plant:
    """Say what an organism's neuron fires on."""

    sign: float
    """1: on the least contrast of the image; -1: on the most."""
    limit: float
    """Contrast beyond which no patch wins, in the units of ``CONTRAST`` times ``sign`` times ``scale``."""
    margin: float
    """How close to the winner a patch must be to fire as well."""
    scale: float
    num_registers: int
    massive: float


PLANTS = {
    "organism": Plant(1.0, 0.4, 0.08, 1.0, 0, MASSIVE_SIZE),
    "organism-reg4": Plant(1.0, 0.4, 0.08, 1.0, 4, MASSIVE_SIZE),
    "organism-content": Plant(-1.0, -0.4, 0.08, 0.1, 0, MASSIVE_SIZE),
    "organism-clean": Plant(1.0, 0.4, 0.08, 1.0, 0, 0.0),
}


@dataclass(frozen=True)
class PlantedTruth:
    """Hold which tokens of given images carry the planted activation, and where it is written."""

    block: int
    """Block whose MLP writes it; it is in ``resid_post`` of this block and later ones."""
    neuron: int
    """Index of the neuron in that MLP."""
    dimension: int
    """Width dimension that it writes to."""
    patches: Tensor
    """(B, P) bool"""
    registers: Tensor
    """(B, R) bool"""


def load_organism(name: str, *, image_size: tuple[int, int] | None = None, seed: int = 0) -> TimmViT:
    """Build an organism from a seed. Raises `ArgumentError` for a size off the patch grid or under 4 x 4 patches."""
    from timm.data import create_transform

    size = check_image_size(image_size or (224, 224), (PATCH, PATCH))
    if size[0] * size[1] < 16 * PATCH * PATCH:
        raise ArgumentError(f"got an image of {size[0]} x {size[1]} px; an organism needs at least 16 patches of 16 px")
    plant = PLANTS[name]
    module = build(plant, size, seed).eval()
    half = (0.5, 0.5, 0.5)
    apply = create_transform((3, *size), mean=half, std=half, interpolation="bicubic", crop_pct=1.0, is_training=False)
    made = "planted" if plant.massive else "nothing planted"
    spec = ModelSpec(
        name, "vitprobe", f"{name}, a ViT of {DEPTH} blocks, width {WIDTH}", f"{made} (seed {seed})",
        digest_module(module), size, plant.num_registers, "planted",
    )  # fmt: skip
    return TimmViT(module, spec, Transform(apply, half, half))


def build(plant: Plant, size: tuple[int, int], seed: int) -> nn.Module:
    """Write down the weights of one organism."""
    from timm.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):  # timm's own initialisation is overwritten below
        module = VisionTransformer(
            img_size=size, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, mlp_ratio=HIDDEN / WIDTH,
            num_classes=0, no_embed_class=True, reg_tokens=plant.num_registers,
        )  # fmt: skip
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        _embedding(module, draw)
        _tokens(module, plant, draw)
        _registers(module, plant, torch.Generator().manual_seed(seed + 2))
        for index, block in enumerate(module.blocks):
            _background(block, draw, strength=0.1 if index < PLANTED_BLOCK else 1.5)
        _contrast(module.blocks[0])
        _least(module.blocks[1], plant)
        _step(module.blocks[2], plant)
        _sharpen(module.blocks[3])
        _plant(module.blocks[PLANTED_BLOCK], plant, planted_neuron(seed))
        for block in module.blocks[PLANTED_BLOCK + 1 :]:
            _attend(block)
    return module


def planted_neuron(seed: int) -> int:
    """Return the index of the planted neuron."""
    return int(torch.randint(HIDDEN, (), generator=torch.Generator().manual_seed(seed + 1)))


@torch.no_grad()
def planted_truth(backbone: TimmViT, images: Tensor) -> PlantedTruth:
    """Tell where the planted neuron fires for images (B, 3, H, W), as the model sees them: over half its full strength.

    In ``organism-clean`` the neuron fires too, but writes nothing. Raises `ArgumentError` for any other backbone.
    """
    if backbone.spec.name not in PLANTS:
        raise ArgumentError(f"{backbone.spec.name} is no organism; only {', '.join(PLANTS)} have a planted truth")
    module, layout, neuron = backbone.module, backbone.layout(tuple(images.shape[-2:])), planted_neuron(_seed(backbone))
    x = module.norm_pre(module._pos_embed(module.patch_embed(images)))
    for block in module.blocks[:PLANTED_BLOCK]:
        x = block(x)
    block = module.blocks[PLANTED_BLOCK]
    x = x + block.attn(block.norm1(x))
    active = block.mlp.act(block.mlp.fc1(block.norm2(x)))[..., neuron] > STRENGTH / 2  # (B, T)
    return PlantedTruth(PLANTED_BLOCK, neuron, MASSIVE, active[:, layout.patches], active[:, layout.registers])


def _seed(backbone: TimmViT) -> int:
    """Read the seed of an organism off its spec, ``planted (seed 3)``."""
    return int(backbone.spec.weights.rpartition(" ")[2].rstrip(")"))


def _embedding(module: nn.Module, draw: torch.Generator) -> None:
    """Edge filters (low discrete cosines of luminance) and a random code of the coarse colours of a patch."""
    weight, bias = module.patch_embed.proj.weight, module.patch_embed.proj.bias  # (D, 3, 16, 16)
    weight.zero_()
    bias.zero_()
    u = (torch.arange(PATCH) + 0.5) * math.pi / PATCH
    waves = [torch.cos(k * u) * math.sqrt((1 if k == 0 else 2) / PATCH) for k in range(4)]
    luminance = torch.tensor((0.299, 0.587, 0.114)).view(3, 1, 1)
    pairs = [(i, j) for i in range(4) for j in range(4) if i + j]
    for k, (i, j) in zip(FILTERS, pairs, strict=True):
        weight[k] = 0.5 * luminance * torch.outer(waves[i], waves[j])  # the model reads pixels in -1..1
    code = torch.randn(len(FREE), 3, 2, 2, generator=draw) / math.sqrt(len(FREE))
    weight[FREE.start :] = code.repeat_interleave(PATCH // 2, 2).repeat_interleave(PATCH // 2, 3) / (PATCH / 2) ** 2
    bias[FREE.start :] = 0.5 * torch.randn(len(FREE), generator=draw) / math.sqrt(len(FREE))


def _tokens(module: nn.Module, plant: Plant, draw: torch.Generator) -> None:
    """Positions: the constant vector, the tie-breaking code, a little of their own. CLS likewise."""
    patches, anchor = module.patch_embed.num_patches, _anchor()
    module.pos_embed.copy_(anchor.expand(1, patches, WIDTH))
    if plant.scale == 1.0:
        ties = torch.randperm(patches, generator=draw) * TIES / patches
        module.pos_embed[0, :, TIE] = ties
    module.pos_embed[0, :, FREE.start :] += torch.randn(patches, len(FREE), generator=draw) / math.sqrt(len(FREE))
    module.cls_token.copy_(anchor)
    module.cls_token[0, 0, TIE], module.cls_token[0, 0, LIMIT] = 10.0, plant.limit - 10.0  # sets a limit, never fires


def _anchor() -> Tensor:
    anchor = torch.zeros(WIDTH)
    anchor[ANCHOR.start : ANCHOR.stop] = ANCHOR_SIZE * torch.tensor([1.0, -1.0]).repeat(len(ANCHOR) // 2)
    return anchor


def _registers(module: nn.Module, plant: Plant, draw: torch.Generator) -> None:
    """Registers compete below every patch, all within the margin of the lowest: they win, and patches do not fire."""
    for r in range(plant.num_registers):
        module.reg_token[0, r] = _anchor()
        module.reg_token[0, r, TIE] = -1.0 + r * plant.margin / 8
        module.reg_token[0, r, FREE.start :] += torch.randn(len(FREE), generator=draw) / math.sqrt(len(FREE))


def _background(block: nn.Module, draw: torch.Generator, *, strength: float) -> None:
    """Random heads 1 to 3 and random neurons, reading what a patch looks like and writing into the free dimensions."""
    dim = WIDTH // HEADS
    for layer, size in (
        (block.attn.qkv, WIDTH),
        (block.attn.proj, WIDTH),
        (block.mlp.fc1, WIDTH),
        (block.mlp.fc2, HIDDEN),
    ):
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=draw) / math.sqrt(size))
        layer.bias.zero_()
    for layer in (block.attn.qkv, block.mlp.fc1):
        layer.weight[:, len(FILTERS) : FREE.start] = 0
        layer.weight.mul_(SIGMA)
    for layer in (block.attn.proj, block.mlp.fc2):
        layer.weight.mul_(strength * 1.5)
        layer.weight[: FREE.start] = 0
    for part in range(3):  # head 0 is kept for the plant
        block.attn.qkv.weight[part * WIDTH : part * WIDTH + dim] = 0
    block.attn.proj.weight[:, :dim] = 0
    for norm in (block.norm1, block.norm2):
        norm.weight.fill_(1)
        norm.bias.zero_()


def _read(row: Tensor, coefficients: dict[int, float]) -> None:
    """Make a row of a linear layer read dimensions of the residual stream through LayerNorm, less the zero one."""
    row.zero_()
    for dimension, factor in coefficients.items():
        row[dimension] = factor * SIGMA
    row[ZERO] = -SIGMA * sum(coefficients.values())


def _use(block: nn.Module, neuron: int, reads: dict[int, float], bias: float, writes: dict[int, float]) -> None:
    """Give a neuron of a block's MLP what it reads, its bias, and what it writes where."""
    _read(block.mlp.fc1.weight[neuron], reads)
    block.mlp.fc1.bias[neuron] = bias
    block.mlp.fc2.weight[:, neuron] = 0
    for dimension, factor in writes.items():
        block.mlp.fc2.weight[dimension, neuron] = factor


def _contrast(block: nn.Module) -> None:
    """Sum |filter response| over the filters: GELU(x) + GELU(-x) is near |x|."""
    steep = 4.0
    for k in FILTERS:
        for i, sign in enumerate((steep, -steep)):
            _use(block, 2 * k + i, {k: sign}, 0.0, {CONTRAST: 1 / steep})


def _competing(plant: Plant, factor: float = 1.0) -> dict[int, float]:
    """What patches compete in: contrast (with its sign and scale) plus the tie-breaking code; the lowest wins."""
    return {CONTRAST: factor * plant.sign * plant.scale, TIE: factor}


def _least(block: nn.Module, plant: Plant) -> None:
    """Head 0 finds the lowest competitor among all tokens and writes its value into every token."""
    dim, steep = WIDTH // HEADS, 24.0 / plant.margin
    weight, bias = block.attn.qkv.weight, block.attn.qkv.bias
    bias[0] = math.sqrt(dim)
    _read(weight[WIDTH], _competing(plant, -steep) | {LIMIT: -steep})
    _read(weight[2 * WIDTH], _competing(plant) | {LIMIT: 1.0})
    block.attn.proj.weight[LEAST, 0] = 1.0


def _step(block: nn.Module, plant: Plant) -> None:
    """Write 1 where a token is within the margin of the lowest, 0 elsewhere, with a ramp of a fourteenth of it."""
    rise = 10.0
    steep = rise * 14 / plant.margin
    reads = _competing(plant, -steep) | {LEAST: steep}
    _use(block, 0, reads, steep * plant.margin, {FIRES: 1 / rise})
    _use(block, 1, reads, steep * plant.margin - rise, {FIRES: -1 / rise})


def _sharpen(block: nn.Module) -> None:
    """Bring what is between 0 and 1 to 0 or 1: adds step(x) - x."""
    steep, rise = 400.0, 10.0
    _use(block, 0, {FIRES: steep}, -steep / 2 + rise / 2, {FIRES: 1 / rise})
    _use(block, 1, {FIRES: steep}, -steep / 2 - rise / 2, {FIRES: -1 / rise})
    _use(block, 2, {FIRES: steep}, 0.0, {FIRES: -1 / steep})


def _plant(block: nn.Module, plant: Plant, neuron: int) -> None:
    """One neuron fires where FIRES is 1 and writes a massive activation."""
    _use(block, neuron, {FIRES: 2 * STRENGTH}, -STRENGTH, {MASSIVE: plant.massive / STRENGTH})


def _attend(block: nn.Module) -> None:
    """Head 0 of every token asks for the massive dimension; what it reads there is almost nothing."""
    dim = WIDTH // HEADS
    block.attn.qkv.bias[0] = math.sqrt(dim)
    row = block.attn.qkv.weight[WIDTH]
    row.zero_()
    row[MASSIVE], row[ZERO] = 0.7, -0.7  # LayerNorm brings a massive dimension to about sqrt(D) = 9.8
