"""The reference ViT as a backbone: its adapter, and the models of it that have a name."""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vitprobe.backbones.base import Backbone, ModelSpec, Transform, check_image_size, digest_module, mask_patches
from vitprobe.backbones.reference_names import fit_positions, from_timm, read_config_of
from vitprobe.backbones.reference_vit import VisionTransformer, ViTConfig
from vitprobe.backbones.timm_tower import check_num_tokens
from vitprobe.backbones.weights import load_into, read_state_dict
from vitprobe.backbones.zoo import REFERENCES, read_config
from vitprobe.errors import ArgumentError, WeightsError
from vitprobe.tokens import TokenLayout

DATA = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center"}
"""How images come to the model, as to the ViTs of "How to train your ViT?" (arXiv 2106.10270), in timm's keywords."""
RESERVED = {"image_size": "--image-size", "num_classes": "the objective"}
"""Fields of `ViTConfig` that have a place of their own."""


class ReferenceViT(Backbone):
    """Adapt the reference ViT; tokens are CLS, registers, patches."""

    parameter_patterns: ClassVar[dict[str, str]] = {
        "registers": "registers",
        "cls": "cls",
        "positions": "positions",
        "patch_embedding": r"patch_embedding\..*",
        "final_norm": r"final_norm\..*",
        "head": r"head\..*",
        "layer_scale": r"blocks\.\d+\.\w+_scale\.gain",
        "block": r"blocks\.(\d+)\..*",
    }

    def __init__(self, module: VisionTransformer, spec: ModelSpec, transform: Transform) -> None:
        self.module, self.spec, self.transform = module, spec, transform
        self.num_blocks, self.num_heads = module.config.depth, module.config.num_heads
        self.width, self.patch_size = module.config.width, module.config.patch_size
        self.final_norm = module.final_norm
        self.check_attention()

    def layout(self, image_size: tuple[int, int] | None = None) -> TokenLayout:
        return self.module.layout(image_size or self.spec.image_size)

    @property
    def patch_embedding(self) -> nn.Module:
        return self.module.patch_embedding

    def patch_tokens(self, output: Tensor) -> Tensor:
        return output

    def patch_output(self, tokens: Tensor, like: Tensor) -> Tensor:
        return tokens

    def block(self, index: int) -> nn.Module:
        return self.module.blocks[self.check_block(index)]

    def attention(self, index: int) -> nn.Module:
        return self.block(index).attention

    def second_linear(self, index: int) -> nn.Module:
        return self.block(index).mlp.contract

    def query_key_modules(self, index: int) -> tuple[nn.Module, nn.Module] | None:
        return self.attention(index).query_norm, self.attention(index).key_norm

    def query_key_value(self, index: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attention = self.attention(index)
        q, k, v = attention.split_heads(x)
        return attention.query_norm.forward(q), attention.key_norm.forward(k), v  # no calls: hooks await the model's

    def project_heads(self, index: int, heads: Tensor, x: Tensor) -> Tensor:
        return self.attention(index).output(heads.transpose(1, 2).flatten(2))  # (B, T, D)

    def tokens(self, images: Tensor, *, masked: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        grid = self.layout(tuple(images.shape[-2:])).grid
        patches = mask_patches(self.module.patch_embedding(images), masked, mask_token)  # (B, P, D)
        return self.module.encode(self.module.embed(patches, grid))

    def pool(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        check_num_tokens(tokens, layout)
        return self.module.pool(tokens, layout)

    def features(self, images: Tensor) -> Tensor:
        return self.pool(self.tokens(images), self.layout(tuple(images.shape[-2:])))

    def replace_head(self, num_classes: int, generator: torch.Generator) -> None:
        module, head = self.module, nn.Identity()
        if num_classes:
            head = nn.utils.skip_init(nn.Linear, self.width, num_classes)
            head.weight.data.normal_(0, 0.02, generator=generator)
            nn.init.zeros_(head.bias)
        module.head = head.to(next(module.blocks.parameters())).train(module.training)
        module.config = replace(module.config, num_classes=num_classes)

    @torch.no_grad()
    def add_registers(self, values: Tensor) -> None:
        """Put registers, (R, D), after CLS. A position of CLS is added to CLS, as in timm's ViTs with registers.

        The stream before block 0 stays, to the bit, what it was at CLS and patches.
        """
        module, table = self.module, self.module.positions
        num_patches = math.prod(module.grid)
        if table.shape[1] > num_patches:
            first, patches = table.split([1, num_patches], dim=1)
            module.cls.add_(first)
            module.positions = nn.Parameter(patches.contiguous(), requires_grad=table.requires_grad)
        module.registers = nn.Parameter(values.to(table).unsqueeze(0))  # (1, R, D)
        module.config = replace(module.config, num_registers=len(values), cls_has_position=False)

    def set_rates(self, *, drop_path: float, dropout: float) -> None:
        """Set stochastic depth, rising linearly over the blocks, and dropout."""
        for index, block in enumerate(self.module.blocks):
            block.drop_path.rate = drop_path * index / max(1, self.num_blocks - 1)
        for part in self.module.modules():
            if isinstance(part, nn.Dropout):
                part.p = dropout
        self.module.config = replace(self.module.config, drop_path=drop_path, dropout=dropout)


def load_reference(name: str, *, weights: str, image_size: tuple[int, int] | None, seed: int) -> ReferenceViT:
    """Load a reference ViT of the zoo's table with random weights, or those of a file, at any image size.

    The file holds weights in the reference's own names or in those of timm's ViT of the same size; registers,
    LayerScale, classes and so on are as the file shows them. Images come to the model as `DATA` says, or, where a
    config of timm's lies beside the file, as that does. Raises `WeightsError` for ``hub`` and for a file that does not
    fit, `ArgumentError` for a size off the patch grid.
    """
    config, data, state = config_of(name), DATA, None
    if weights == "hub":
        raise WeightsError(
            f"{name} has no weights on the hub; give --weights random, or a file of its own weights or of timm's ViT"
        )
    if weights != "random":
        file, data = Path(weights), _data_beside(Path(weights))
        state = from_timm(read_state_dict(file), file=file.name)
        config = read_config_of(config, state, file=file.name)
    config = replace(config, image_size=check_image_size(image_size or config.image_size, config.patch_size))
    module = build(config, seed)
    if state is not None:
        load_into(module, fit_positions(module, state, file=file.name), file=file.name, model=name)
    return _wrap(name, module, f"random (seed {seed})" if state is None else file.name, data)


def create_reference(
    arch: str, *, image_size: tuple[int, int] | None, seed: int, num_classes: int, overrides: Mapping[str, Any]
) -> ReferenceViT:
    """Build a reference ViT of the zoo's table with random weights; ``overrides`` are fields of `ViTConfig`.

    Raises `ArgumentError`, in one line, for a field, a value or a size that does not fit.
    """
    config = check_config(arch, {"num_classes": num_classes, **_known(arch, overrides)})
    size = check_image_size(image_size or config.image_size, config.patch_size)
    backbone = _wrap(arch, build(replace(config, image_size=size), seed), f"random (seed {seed})", DATA)
    backbone.model_args |= dict(overrides)
    return backbone


def config_of(name: str) -> ViTConfig:
    """Return the config of a reference ViT that has a name."""
    size = REFERENCES[name]
    return ViTConfig(width=size.width, num_heads=size.num_heads, depth=size.depth)


def build(config: ViTConfig, seed: int) -> VisionTransformer:
    """Build a reference ViT with the weights of a seed, in evaluation mode; the global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return VisionTransformer(config).eval()


def _wrap(name: str, module: VisionTransformer, weights: str, data: Mapping[str, Any]) -> ReferenceViT:
    from timm.data import create_transform

    config = module.config
    architecture = f"{name}, a ViT of {config.depth} blocks, width {config.width}"
    digest, size = digest_module(module), config.image_size
    spec = ModelSpec(name, "vitprobe", architecture, weights, digest, size, config.num_registers)
    apply = create_transform((3, *size), is_training=False, **data)
    backbone = ReferenceViT(module, spec, Transform(apply, tuple(data["mean"]), tuple(data["std"])))
    backbone.model_args = {"data": dict(data)}
    return backbone


def _data_beside(file: Path) -> dict[str, Any]:
    """Read how images come to the model from timm's config beside a file of weights; `DATA` where there is none."""
    try:
        config = read_config(file.parent / "config.json", label=str(file.parent), kind="architecture")
    except ArgumentError:
        return dict(DATA)
    given = config.get("pretrained_cfg") or {}
    return {key: given.get(key, by_default) for key, by_default in DATA.items()}


def _known(arch: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    allowed = [field.name for field in fields(ViTConfig) if field.name not in RESERVED]
    for name in overrides:
        if name in RESERVED:
            raise ArgumentError(f"got {name} among the sizes of {arch}; it is set elsewhere: by {RESERVED[name]}")
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, n=3)
            hint = f"near it: {', '.join(near)}" if near else f"allowed are {', '.join(allowed)}"
            raise ArgumentError(f"{arch} takes no {name}; {hint}")
    return dict(overrides)


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and value >= least


def _number(within: Callable[[float], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and within(value)


_SWITCH = (lambda given: type(given) is bool, "true or false")
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("width", "num_heads", "depth"), (_whole(1), "a whole number from 1 on")),
    **dict.fromkeys(("num_registers", "num_classes"), (_whole(0), "a whole number from 0 on")),
    **dict.fromkeys(("drop_path", "dropout"), (_number(lambda rate: 0 <= rate < 1), "a rate from 0 to below 1")),
    **dict.fromkeys(("has_cls", "cls_has_position", "has_qk_norm"), _SWITCH),
    "mlp_ratio": (_number(lambda ratio: 0 < ratio < math.inf), "a number over 0"),
    "layer_scale": (_number(lambda start: 0 <= start < math.inf), "a number from 0 on"),
    "pooling": (lambda given: given in ("cls", "mean"), "cls or mean"),
}
"""What is allowed of each field, and in words."""


def check_config(arch: str, given: Mapping[str, Any]) -> ViTConfig:
    """Return the config of a name, changed by ``given``. Raises `ArgumentError` for values that do not fit."""
    for name, value in given.items():
        is_right, allowed = RULES.get(name, (lambda _: True, ""))
        if not is_right(value):
            raise ArgumentError(f"got {name} {value!r} for {arch}; give {allowed}")
    config = replace(config_of(arch), **given)
    if config.width % config.num_heads:
        near = ", ".join(str(n) for n in range(1, 33) if config.width % n == 0)
        raise ArgumentError(
            f"{arch} has width {config.width} and {config.num_heads} heads, which must divide it, as {near} do"
        )
    if int(config.width * config.mlp_ratio) < 1:
        raise ArgumentError(f"got mlp_ratio {config.mlp_ratio} for {arch}, which leaves its MLP no neuron; give 4")
    if config.pooling == "cls" and not config.has_cls:
        raise ArgumentError(f"{arch} without CLS has none to pool; give pooling=mean too")
    return config
