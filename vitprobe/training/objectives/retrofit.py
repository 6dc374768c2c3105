"""Give a pretrained backbone registers without labels, after PH-Reg (NeurIPS 2025): it learns its own cleaned features.

A frozen copy sees shifted and flipped views of an image; its patch features, moved back and averaged, are the target.
Where an artifact does not move with the image, the average has less of it, spread over more patches; one that follows
the content moves too, and stays. With ``denoise`` off, the target is the frozen copy's plain features: the control that
tells distillation and denoising apart.
"""

import random

import torch
from torch import Tensor
from torch.nn import functional as F

from vitprobe.backbones.base import Backbone
from vitprobe.inputs.stream import TrainBatch
from vitprobe.training.config import TrainConfig
from vitprobe.training.held_out import HeldOut
from vitprobe.training.objectives.base import Objective, Sums

View = tuple[int, int, bool]
"""Shift in patches (down, right), and whether the image is flipped left to right after it."""
CANDIDATES = 100
"""Random shifts, from which those farthest from each other are taken (PH-Reg's code)."""


class Retrofit(Objective):
    """Teach a student with registers the features that a frozen teacher without them gives, averaged over views."""

    measure = "agreement"

    def __init__(self, backbone: Backbone, config: TrainConfig, teacher: Backbone, *, denoise: bool) -> None:
        """``teacher``: the same model before registers were put in. ``denoise``: whether its features are averaged."""
        super().__init__(backbone, config)
        self.frozen, self.denoise = teacher, denoise
        teacher.module.eval().requires_grad_(False)
        self.teacher = teacher.module

    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        images = batch.views[0]
        views = self._draw() if self.denoise else [(0, 0, False)]
        with torch.no_grad():
            target = denoised(self.frozen, images, views).flatten(1, 2)  # (B, P, D)
        layout = self.backbone.layout(tuple(images.shape[-2:]))
        found = self.backbone.tokens(images)[:, layout.patches].float()  # (B, P, D)
        terms = {"cosine": 1 - F.cosine_similarity(found, target, dim=-1).mean(), "mse": F.mse_loss(found, target)}
        return {"loss": terms["cosine"] + self.config.option("mse") * terms["mse"], **terms}

    def _draw(self) -> list[View]:
        rows, cols = self.frozen.layout().grid
        share, number = self.config.option("shift"), self.config.option("num_views")
        return spread_views(number, (round(share * rows), round(share * cols)), random)

    def held_out(self, held: HeldOut, device: torch.device) -> Sums:
        """Sum the cosine between the student's patches and the denoised teacher's, whatever it learns from."""
        drawn = random.Random(self.config.seed)
        rows, cols = self.frozen.layout().grid
        share = self.config.option("shift")
        views = spread_views(self.config.option("num_views"), (round(share * rows), round(share * cols)), drawn)
        total, number = 0.0, 0
        for batch in held.reader:
            images = batch.images.to(device)
            target = denoised(self.frozen, images, views).flatten(1, 2)
            layout = self.backbone.layout(tuple(images.shape[-2:]))
            found = self.backbone.tokens(images)[:, layout.patches].float()
            total += float(F.cosine_similarity(found, target, dim=-1).mean(1).sum())
            number += len(images)
        return {"agreement": (total, number)}


def spread_views(number: int, most: tuple[int, int], draw: random.Random) -> list[View]:
    """Draw views: the image itself, then shifts of at most ``most`` patches (down, right) far from each other.

    Among `CANDIDATES` random shifts the one farthest from all taken so far comes next; each is flipped at random.
    """
    candidates = [(draw.randint(-most[0], most[0]), draw.randint(-most[1], most[1])) for _ in range(CANDIDATES)]
    taken = [(0, 0)]
    while len(taken) < number:
        far = max(candidates, key=lambda c: min((c[0] - t[0]) ** 2 + (c[1] - t[1]) ** 2 for t in taken))
        taken.append(far)
    return [(down, right, i > 0 and draw.random() < 0.5) for i, (down, right) in enumerate(taken)]


def denoised(backbone: Backbone, images: Tensor, views: list[View]) -> Tensor:
    """Average patch features over views, each moved back to its place: (B, 3, H, W) -> (B, rows, cols, D) float32.

    What a shift brings in from outside is grey (0 after normalisation) and is not counted. Every patch is seen at least
    once where the first view is the image itself.
    """
    layout = backbone.layout(tuple(images.shape[-2:]))
    total, seen = 0.0, images.new_zeros(layout.grid, dtype=torch.float32)
    for down, right, flip in views:
        moved = shift(images, down * backbone.patch_size[0], right * backbone.patch_size[1], dims=(2, 3))
        moved = moved.flip(3) if flip else moved
        features = layout.to_grid(backbone.tokens(moved)).float()  # (B, rows, cols, D)
        features = features.flip(2) if flip else features
        total = total + shift(features, -down, -right, dims=(1, 2))
        seen += shift(torch.ones_like(seen), -down, -right, dims=(0, 1)) if (down or right) else 1.0
    return total / seen[:, :, None].clamp_min(1)


def shift(x: Tensor, down: int, right: int, *, dims: tuple[int, int]) -> Tensor:
    """Move a picture along two axes by whole steps; what comes in is 0, what goes out is lost."""
    for dim, by in zip(dims, (down, right), strict=True):
        size = x.shape[dim]
        by = max(-size, min(size, by))
        kept = x.narrow(dim, max(0, -by), size - abs(by))
        empty = torch.zeros_like(x.narrow(dim, 0, abs(by)))
        x = torch.cat([empty, kept] if by > 0 else [kept, empty], dim=dim)
    return x
