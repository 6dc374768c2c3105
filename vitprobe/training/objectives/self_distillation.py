"""Train without labels, as DINOv2 does (arXiv 2304.07193, section 4): a student follows the average of its own weights.

Heads, losses and masks are lightly's; the schedules, the two networks with their registers and the gathering are here.
"""

import copy
import math
import warnings

import torch
import torch.distributed as dist
from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss
from lightly.models.modules import DINOv2ProjectionHead
from lightly.models.modules.center import Center
from lightly.models.utils import random_block_mask
from torch import Tensor, nn

from vitprobe.backbones.base import Backbone
from vitprobe.inputs.stream import TrainBatch
from vitprobe.training.config import TrainConfig
from vitprobe.training.held_out import HeldOut
from vitprobe.training.objectives.base import Objective, Sums, copy_of, follow

TEMPERATURE_WARMUP = 0.3
"""Share of the training over which the teacher's temperature rises: 30 of 100 epochs in DINOv2's configuration."""
BOTTLENECK = 256
"""Width of the projection heads before their last layer, as in DINOv2's code; ``head_width`` is that of the others."""


class SelfDistillation(Objective):
    """Make a student predict, from crops and masked patches, what its averaged self says of the whole."""

    measure = "knn"

    def __init__(self, backbone: Backbone, config: TrainConfig) -> None:
        if (side := config.option("local_size")) is not None:
            backbone.layout((side, side) if isinstance(side, int) else tuple(side))  # refuses what no patches fill
        backbone.reset_head(0)
        super().__init__(backbone, config)
        self.followed = copy_of(backbone)
        self.teacher = self.followed.module
        prototypes, width = config.option("num_prototypes"), config.option("head_width")
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # lightly's head uses an older weight norm of torch
            torch.manual_seed(config.seed)
            self.cls_head = DINOv2ProjectionHead(backbone.width, width, BOTTLENECK, prototypes)
            self.patch_head = DINOv2ProjectionHead(backbone.width, width, BOTTLENECK, prototypes)
            self.teacher_cls_head = DINOv2ProjectionHead(backbone.width, width, BOTTLENECK, prototypes)
            self.teacher_patch_head = DINOv2ProjectionHead(backbone.width, width, BOTTLENECK, prototypes)
            self.mask_token = nn.Parameter(torch.empty(backbone.width).normal_(std=0.02))
        for student, teacher in self._pairs():
            teacher.load_state_dict(copy.copy(student.state_dict()))
            teacher.requires_grad_(False)
        temperature = config.option("student_temperature")
        self.cls_loss = DINOLoss(prototypes, student_temp=temperature)
        self.patch_loss = IBOTPatchLoss(prototypes, student_temp=temperature)
        self.patch_loss.center = MaskedCenter((1, prototypes))
        self.koleo = KoLeoLoss()
        self.teacher_temperature = config.option("teacher_temperature")[0]

    def _pairs(self) -> tuple[tuple[nn.Module, nn.Module], ...]:
        return (self.cls_head, self.teacher_cls_head), (self.patch_head, self.teacher_patch_head)

    def variant(self) -> Backbone:
        return self.followed

    def heads(self) -> list[nn.Module]:
        token = nn.Module()
        token.mask_token = self.mask_token
        return [self.cls_head, self.patch_head, token]

    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        whole, local = torch.cat(batch.views[:2]), batch.views[2:]  # (2B, 3, H, W)
        layout = self.backbone.layout(tuple(whole.shape[-2:]))
        masks = self._masks(len(whole), layout.grid).to(whole.device)  # (2B, rows, cols)
        masked = masks.flatten(1)  # (2B, P)
        with torch.no_grad():
            tokens = self.followed.tokens(whole)
            taught = self.teacher_cls_head(self.followed.pool(tokens, layout)).float()
            taught_patches = self.teacher_patch_head(tokens[:, layout.patches][masked]).float()
        tokens = self.backbone.tokens(whole, masked=masked, mask_token=self.mask_token)
        pooled = self.backbone.pool(tokens, layout)
        said = list(self.cls_head(pooled).float().chunk(2))
        if local:
            crops = torch.cat(local)
            small = self.backbone.layout(tuple(crops.shape[-2:]))
            found = self.backbone.pool(self.backbone.tokens(crops), small)
            said += self.cls_head(found).float().chunk(len(local))
        said_patches = self.patch_head(tokens[:, layout.patches][masked]).float()
        temperature = self.teacher_temperature
        with torch.autocast(whole.device.type, enabled=False):  # sums over prototypes need float32's digits
            terms = {
                "cls": self.cls_loss(list(taught.chunk(2)), said, teacher_temp=temperature),
                "patch": self.patch_loss(taught_patches, said_patches, masks, teacher_temp=temperature),
                "koleo": sum(self.koleo(_gathered(half)) for half in pooled.float().chunk(2)),
            }
        loss = terms["cls"] + self.config.option("patch_weight") * terms["patch"]
        return {"loss": loss + self.config.option("koleo") * terms["koleo"], **terms}

    def _masks(self, number: int, grid: tuple[int, int]) -> Tensor:
        """Draw block masks, (number, rows, cols), of the whole micro-batch and take this process's share.

        Python's generator, which lightly draws from, is seeded alike in all processes.
        """
        world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        low, high = self.config.option("mask_ratio")
        patches = grid[0] * grid[1]
        low = max(low, 1.5 / patches)  # at least one patch of every image that is masked
        masks = random_block_mask(
            (number * world, *grid),
            batch_mask_ratio=self.config.option("masked_share"),
            min_image_mask_ratio=low,
            max_image_mask_ratio=max(high, low),
            min_num_masks_per_block=max(1, min(4, int(low * patches))),
        )
        images = masks.unflatten(0, (2, number * world // 2))  # the two whole views, one after the other
        share = number // 2
        return images[:, rank * share : (rank + 1) * share].flatten(0, 1)

    def before_step(self, step: int) -> None:
        low, high = self.config.option("teacher_temperature")
        done = min(1.0, step / max(1.0, TEMPERATURE_WARMUP * self.config.steps))
        self.teacher_temperature = low + (high - low) * done

    def before_update(self, step: int) -> None:
        if step < self.config.option("freeze_last_layer"):
            for head in (self.cls_head, self.patch_head):
                for parameter in head.last_layer.parameters():
                    parameter.grad = None

    def after_step(self, step: int) -> None:
        low, high = self.config.option("teacher_momentum")
        momentum = high - (high - low) * (1 + math.cos(math.pi * step / self.config.steps)) / 2
        follow(self.teacher, self.tower, momentum)
        for student, teacher in self._pairs():
            follow(teacher, student, momentum)

    def held_out(self, held: HeldOut, device: torch.device) -> Sums:
        return {}  # the k-NN accuracy, which every objective is measured by


class MaskedCenter(Center):
    """Centre what the teacher says of masked patches by the mean over all of them, in whichever process.

    lightly's own takes the mean of the processes' means, though they mask different numbers of patches, and is not a
    number where one masks none.
    """

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        total = torch.cat([x.sum(dim=0), x.new_tensor([len(x)])])  # (K + 1,)
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(total)
        if total[-1] > 0:
            mean = (total[:-1] / total[-1]).unsqueeze(0)  # (1, K)
            self.center = self.center * self.momentum + mean * (1 - self.momentum)


def _gathered(x: Tensor) -> Tensor:
    """Put the features of all processes together, (B, D) -> (B * world, D), with gradients to each."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return x
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(x.contiguous()))
