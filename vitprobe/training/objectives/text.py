"""Train with captions, as OpenCLIP does: an image and its caption agree, other captions of the batch do not."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from open_clip.loss import ClipLoss
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from vitprobe.backbones.base import Backbone
from vitprobe.backbones.export import export_open_clip
from vitprobe.backbones.open_clip_text import TextTower, refuse_other_text
from vitprobe.backbones.open_clip_vit import OpenClipViT
from vitprobe.errors import InputError
from vitprobe.inputs.labels import class_captions
from vitprobe.inputs.scene_shapes import BACKGROUNDS
from vitprobe.inputs.stream import TrainBatch
from vitprobe.training.config import TrainConfig
from vitprobe.training.held_out import HeldOut
from vitprobe.training.objectives.base import Objective, Sums

MAX_SCALE = 4.605170185988092
"""ln 100, above which CLIP's logit scale is cut (Radford et al., arXiv 2103.00020, section 2.5)."""
FEW_TEXTS = 64
"""Texts that are embedded at a time in evaluation."""
SCENE_PROMPT = "shapes on a {} background"


class Text(Objective):
    """Pull an image's embedding and its caption's together; negatives are the micro-batch's, of all processes."""

    def __init__(self, backbone: Backbone, config: TrainConfig, text: TextTower, *, fresh: bool) -> None:
        refuse_other_text(backbone.spec.name, text)
        if fresh:  # no projection into the text tower's space yet
            backbone.reset_head(text.embed_dim, seed=config.seed)
        super().__init__(backbone, config)
        self.text, self.text_tower = text, text.module
        self.logit_scale = nn.Parameter(torch.tensor([text.logit_scale]))  # (1,): FSDP shards no scalars
        self.has_labels = False

    @property
    def measure(self) -> str:
        """Zero-shot accuracy where classes have names, else how often a caption is found again."""
        return "zero_shot_accuracy" if self.has_labels else "retrieval"

    def heads(self) -> list[nn.Module]:
        scale = nn.Module()
        scale.logit_scale = self.logit_scale
        return [self.text_tower, scale]

    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        images = F.normalize(self.backbone(batch.views[0]).float(), dim=-1)
        tokens = self.text.tokenize(batch.captions).to(images.device)
        captions = F.normalize(self.text_tower(tokens).float(), dim=-1)
        world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        loss = ClipLoss(gather_with_grad=True, rank=rank, world_size=world)
        scale = self.logit_scale.clamp(max=MAX_SCALE).exp()
        return {"loss": loss(images, captions, scale), "logit_scale": scale.detach().squeeze()}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        self.logit_scale.clamp_(0, MAX_SCALE)

    def held_out(self, held: HeldOut, device: torch.device) -> Sums:
        """Sum zero-shot hits, and how often an image's own caption is nearest among all different held-out captions."""
        prompts, truth = _zero_shot(held)
        self.has_labels = truth is not None
        weights = self._embed(prompts, device) if prompts else None
        texts = list(dict.fromkeys(held.captions or ()))
        candidates = self._embed(texts, device) if texts else None
        right, found, number = 0, 0, 0
        for batch in held.reader:
            images = F.normalize(self.backbone(batch.images.to(device)).float(), dim=-1)
            chosen = list(batch.indices)
            if weights is not None:
                right += int(((images @ weights.T).argmax(1).cpu() == truth[chosen]).sum())
            if candidates is not None:
                nearest = (images @ candidates.T).argmax(1).tolist()
                found += sum(texts[near] == held.captions[i] for near, i in zip(nearest, chosen, strict=True))
            number += len(chosen)
        sums = {"zero_shot_accuracy": (right, number)} if weights is not None else {}
        return sums | ({"retrieval": (found, number)} if candidates is not None else {})

    def _embed(self, texts: Sequence[str], device: torch.device) -> Tensor:
        """Embed texts, a few at a time: (N, embed_dim), of length 1."""
        parts = [tuple(texts[i : i + FEW_TEXTS]) for i in range(0, len(texts), FEW_TEXTS)]
        found = [self.text_tower(self.text.tokenize(part).to(device)).float() for part in parts]
        return F.normalize(torch.cat(found), dim=-1)

    def export_beside(self, folder: Path) -> tuple[str, ...]:
        state = {name: t.detach().float().cpu().contiguous() for name, t in self.text_tower.state_dict().items()}
        state = {name: t for name, t in state.items() if name != "attn_mask"}
        scale = self.logit_scale.detach().float().cpu().squeeze()
        save_file({**state, "logit_scale": scale}, folder / "text.safetensors")
        body = {
            "embed_dim": self.text.embed_dim,
            "quick_gelu": self.text.quick_gelu,
            "text_cfg": dict(self.text.config),
        }
        (folder / "text_config.json").write_text(json.dumps(body, indent=2) + "\n")
        lines = ["`text.safetensors` and `text_config.json` hold the text tower, in open_clip's names."]
        if isinstance(self.backbone, OpenClipViT) and self.text.model_cfg is not None:
            if self.backbone.layout().num_registers:
                return (*lines, "open_clip has no slot for registers; this timm tower holds them.")
            whole = {f"text.{name}": t for name, t in state.items()} | {"logit_scale": scale}
            model_cfg, preprocess = dict(self.text.model_cfg), dict(self.text.preprocess or {})
            export_open_clip(self.backbone, whole, model_cfg, preprocess, folder)
            return (*lines, "`open_clip.create_model('local-dir:...')` opens the whole model.")
        return (*lines, "open_clip's own tower is not used; this is a timm tower with a projection as its head.")


def _zero_shot(held: HeldOut) -> tuple[tuple[str, ...], Tensor | None]:
    """Return what is said of each class, and the truth (N,); nothing where there are no classes."""
    if "background" in held.truth:
        return tuple(SCENE_PROMPT.format(name) for name in BACKGROUNDS), held.truth["background"]
    if held.labels is None or len(held.class_names) < 2:
        return (), None
    try:
        return class_captions(held.class_names), torch.from_numpy(held.labels)
    except InputError:  # classes that are numbers only
        return (), None
