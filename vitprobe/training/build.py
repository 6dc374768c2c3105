"""From options to what is trained: the backbone with its registers, the objective around it, its data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from timm.layers import DropPath
from torch import Tensor, nn

from vitprobe import backbones
from vitprobe.backbones.conv_net import ConvNet, create_conv, is_conv, load_conv
from vitprobe.backbones.create import create
from vitprobe.backbones.open_clip_text import create_text, load_text
from vitprobe.backbones.open_clip_vit import OpenClipViT
from vitprobe.backbones.reference import ReferenceViT
from vitprobe.backbones.trunk import Trunk
from vitprobe.backbones.zoo import REFERENCES
from vitprobe.errors import ArgumentError
from vitprobe.inputs.scene_stream import SceneStream
from vitprobe.inputs.stream import ItemStream
from vitprobe.probes.shards import Shards
from vitprobe.registers.insert import insert
from vitprobe.training.config import TrainConfig
from vitprobe.training.data import Data, open_held_out, open_stream
from vitprobe.training.groups import freeze_all_but
from vitprobe.training.held_out import HeldOut
from vitprobe.training.objectives.base import Objective, copy_of
from vitprobe.training.objectives.retrofit import Retrofit
from vitprobe.training.objectives.self_distillation import SelfDistillation
from vitprobe.training.objectives.supervised import SceneTasks, Supervised
from vitprobe.training.objectives.text import Text
from vitprobe.training.variants import Variant


@dataclass(frozen=True)
class Built:
    """Hold one variant, ready to be trained."""

    variant: Variant
    backbone: Trunk
    objective: Objective
    stream: ItemStream | SceneStream
    held_out: HeldOut
    spare: Objective | None = None
    """The same again, to be measured and saved from where the parameters themselves are in shards."""

    def whole(self, state: Mapping[str, Tensor]) -> Objective:
        """Return the objective with whole parameters; ``state`` is its own, gathered."""
        if self.spare is None:
            return self.objective
        self.spare.load_state_dict(dict(state))
        return self.spare


def make_backbone(config: TrainConfig) -> Trunk:
    """Load or create the model, still without registers. Raises a `VitprobeError` for what cannot be trained so.

    Every variant of a call starts from the same: registers are put in afterwards, and change no other weight.
    """
    if is_conv(config.model or config.arch):
        return _make_conv(config)
    if config.model is None:
        if config.objective == "retrofit":
            raise ArgumentError("retrofit needs a pretrained --model; a model from scratch has nothing to teach")
        size, overrides = config.image_size, _overrides(config)
        backbone = create(config.arch, image_size=size, seed=config.seed, overrides=overrides)
    else:
        backbone = _load(config)
    keeps_own = config.zero_head and not any(config.num_registers)  # fine-tuned as it is
    if (number := backbone.spec.num_registers) and not keeps_own:
        name = config.model or config.arch
        raise ArgumentError(f"{name} has {number} registers already; give a model without any")
    return backbone


def _make_conv(config: TrainConfig) -> ConvNet:
    """Load or create a convolutional network, which only `supervised` trains and whose dropout timm does not place."""
    name, size = config.model or config.arch, config.image_size
    if config.objective != "supervised":
        raise ArgumentError(f"{name} is a convolutional network; it is trained by --objective supervised alone")
    if config.dropout or (config.model and (config.drop_path or config.arch_args or config.layer_scale)):
        given = "--dropout" if config.dropout else "--drop-path, --arch-arg and --layer-scale with --model"
        raise ArgumentError(f"{name} is a convolutional network; {given} has no place in it: leave it out")
    if config.model:
        return load_conv(name, weights=config.weights, image_size=size, seed=config.seed)
    rates = {"drop_path_rate": config.drop_path, "ls_init_value": config.layer_scale}
    given = {key: value for key, value in rates.items() if value} | dict(config.arch_args)
    return create_conv(name, image_size=size, seed=config.seed, overrides=given)


def patch_of(backbone: Trunk) -> tuple[int, int]:
    """Return the size in pixels, (height, width), of what one of the network's last vectors stands for."""
    return backbone.stride if isinstance(backbone, ConvNet) else tuple(backbone.patch_size)


def _load(config: TrainConfig) -> Trunk:
    if config.arch_args or config.layer_scale is not None:
        raise ArgumentError(f"{config.model} has its parts already; --arch-arg and --layer-scale go with --arch")
    size, seed = config.image_size, config.seed
    backbone = backbones.load(config.model, weights=config.weights, image_size=size, seed=seed, device="cpu")
    _regularise(backbone, config)
    return backbone


def sizes(config: TrainConfig) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the sizes of the model's images and patches, (height, width) in pixels each; refuses it early."""
    backbone = make_backbone(config)
    return tuple(backbone.spec.image_size), patch_of(backbone)


def _overrides(config: TrainConfig) -> Mapping[str, Any]:
    if config.arch in REFERENCES:
        given: dict[str, Any] = {
            "drop_path": config.drop_path,
            "dropout": config.dropout,
            "layer_scale": config.layer_scale,
        }
    else:
        given = {
            "drop_path_rate": config.drop_path,
            "proj_drop_rate": config.dropout,
            "pos_drop_rate": config.dropout,
            "init_values": config.layer_scale,
        }
    return {name: value for name, value in given.items() if value} | dict(config.arch_args)


def _regularise(backbone: Trunk, config: TrainConfig) -> None:
    """Set stochastic depth, rising linearly over the blocks, and dropout in a model that was loaded."""
    if not (config.drop_path or config.dropout):
        return
    if isinstance(backbone, ReferenceViT):
        backbone.set_rates(drop_path=config.drop_path, dropout=config.dropout)
        return
    if isinstance(backbone, OpenClipViT):
        raise ArgumentError("open_clip's own tower has no place for --drop-path and --dropout; leave them out")
    for index in range(backbone.num_blocks):
        block = backbone.block(index)
        rate = config.drop_path * index / max(1, backbone.num_blocks - 1)
        block.drop_path1, block.drop_path2 = (DropPath(rate) if rate else nn.Identity() for _ in range(2))
    for name, part in backbone.module.named_modules():
        if isinstance(part, nn.Dropout) and not name.endswith(("attn_drop", "head_drop")):
            part.p = config.dropout


def build(config: TrainConfig, variant: Variant, data: Data, shards: Shards) -> Built:
    """Build one variant: the backbone with its registers, the objective, the stream and the held-out images."""
    plain = make_backbone(config)
    teacher = copy_of(plain) if config.objective == "retrofit" else None
    size, patch = tuple(plain.spec.image_size), patch_of(plain)
    backbone = insert(plain, variant.num_registers, seed=config.seed, std=config.register_std)
    backbone.spec = replace(backbone.spec, paradigm=PARADIGMS.get(config.objective, plain.spec.paradigm))
    own = list(backbone.module.parameters())
    objective = _objective(config, variant, backbone, data, teacher)
    freeze_all_but(backbone, config.trainable, drawn=_without(backbone.module.parameters(), own))
    objective.train()
    stream = open_stream(config, data, backbone.transform, size, patch[0], shards)
    held = open_held_out(config, data, backbone.transform, shards)
    spare = (
        build(replace(config, shard=False), variant, data, shards).objective
        if config.shard and shards.world > 1
        else None
    )
    return Built(variant, backbone, objective, stream, held, spare)


def _without(parameters: Iterable[nn.Parameter], known: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    seen = {id(parameter) for parameter in known}
    return [parameter for parameter in parameters if id(parameter) not in seen]


PARADIGMS = {"supervised": "supervised", "text": "text-supervised", "self-distillation": "self-supervised"}


def _objective(config: TrainConfig, variant: Variant, backbone: Trunk, data: Data, teacher: Trunk | None) -> Objective:
    if config.objective == "retrofit":
        return Retrofit(backbone, config, teacher, denoise=bool(variant.denoise))
    if config.objective == "self-distillation":
        return SelfDistillation(backbone, config)
    if config.objective == "text":
        if isinstance(backbone, OpenClipViT):
            own = load_text(backbone.spec, weights=config.weights, seed=config.seed)
            return Text(backbone, config, own, fresh=False)
        size = {name: config.option(f"text_{name}") for name in ("width", "layers", "heads")}
        length = config.option("context_length")
        text = create_text(config.option("embed_dim"), **size, context_length=length, seed=config.seed)
        return Text(backbone, config, text, fresh=True)
    if data.scenes is not None:
        return SceneTasks(backbone, config, data.scenes)
    return Supervised(backbone, config, data.classes)
