"""What every objective is: a module whose forward turns a batch into loss terms, and whose variant can be measured."""

import copy
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor, nn

from vitprobe.backbones.trunk import Trunk
from vitprobe.inputs.stream import TrainBatch
from vitprobe.training.config import TrainConfig
from vitprobe.training.held_out import HeldOut

Sums = dict[str, tuple[float, float]]
"""Held-out measures as (sum, number of images), so that those of several processes add up."""


FOLLOWERS = ("teacher", "average", "average_tasks")
"""Names of modules that are not trained but follow, or stay as they were."""


class Objective(nn.Module, ABC):
    """Hold all that is trained, and all that goes with it, so that one state dict holds it too.

    Subclasses are final. ``forward`` is what DDP and FSDP wrap: it takes a batch and returns scalar terms, of which
    ``loss`` is minimised.
    """

    measure: str
    """The held-out measure that training should raise."""

    def __init__(self, backbone: Trunk, config: TrainConfig) -> None:
        super().__init__()
        self.backbone, self.config = backbone, config
        self.tower = backbone.module

    def train(self, mode: bool = True) -> "Objective":
        """Set training mode; teachers and averages never leave evaluation mode."""
        super().train(mode)
        for name, part in self.named_children():
            if name in FOLLOWERS:
                part.eval()
        return self

    @abstractmethod
    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Compute the loss and its terms, each a scalar, of one micro-batch."""

    @abstractmethod
    def held_out(self, held: HeldOut, device: torch.device) -> Sums:
        """Sum the objective's own measures over the held-out images that this process reads; `measure` is among them.

        Runs in evaluation mode, without gradients and under the run's autocast.
        """

    def variant(self) -> Trunk:
        """Return the backbone that is measured and saved: the one that is trained, unless it is averaged."""
        return self.backbone

    def heads(self) -> list[nn.Module]:
        """Return the trained modules beside the tower."""
        return [child for name, child in self.named_children() if name not in ("tower", *FOLLOWERS)]

    def before_step(self, step: int) -> None:
        """Set what depends on the number of steps done."""

    def before_update(self, step: int) -> None:
        """Change gradients once they are whole and before they are clipped."""

    def after_step(self, step: int) -> None:
        """Follow an update: averages of weights. ``step`` counts from 1."""

    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes of the tower's own head; empty where it has none."""
        return ()

    def export_beside(self, folder: Path) -> tuple[str, ...]:
        """Write what only this objective has into a checkpoint's folder; returns lines for its card."""
        return ()


def copy_of(backbone: Trunk) -> Trunk:
    """Copy a backbone as it is, and freeze the copy: a teacher, or an average of weights."""
    module = copy.deepcopy(backbone.module).eval().requires_grad_(False)
    return backbone.rewrap(module, backbone.spec)


@torch.no_grad()
def follow(average: nn.Module, source: nn.Module, momentum: float) -> None:
    """Move the parameters of ``average`` towards those of ``source`` by 1 - momentum, and copy the buffers."""
    slow, fast = list(average.parameters()), [p.detach() for p in source.parameters()]
    torch._foreach_lerp_(slow, fast, 1 - momentum)
    for kept, new in zip(average.buffers(), source.buffers(), strict=True):
        kept.copy_(new)
