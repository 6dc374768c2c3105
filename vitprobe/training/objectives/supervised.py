"""Train with labels, as DeiT-III does (arXiv 2204.07118), or as the original ViT; scenes have several tasks at once."""

import copy

import torch
from timm.data.mixup import Mixup, mixup_target
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F

from vitprobe.backbones.base import Backbone
from vitprobe.backbones.trunk import Trunk
from vitprobe.errors import ArgumentError
from vitprobe.inputs.scene_stream import TASKS
from vitprobe.inputs.scenes import SceneConfig
from vitprobe.inputs.stream import TrainBatch
from vitprobe.training.config import TrainConfig
from vitprobe.training.held_out import HeldOut
from vitprobe.training.objectives.base import Objective, Sums, copy_of, follow

DENSE_WEIGHT = 2.0
"""Weight of a dense task against one of whole images; each is a mean over its own terms."""


class Averaged(Objective):
    """Keep an average of the tower's weights where it is asked for; it is then what is measured and saved."""

    def __init__(self, backbone: Trunk, config: TrainConfig) -> None:
        super().__init__(backbone, config)
        self.averaged = copy_of(backbone) if config.ema else backbone
        if config.ema:
            self.average = self.averaged.module

    def variant(self) -> Trunk:
        return self.averaged

    def momentum(self, step: int) -> float:
        """Return the average's decay: timm's warm-up of it, in which the first steps count more."""
        return min(self.config.ema, (1 + step) / (10 + step))

    def after_step(self, step: int) -> None:
        if self.config.ema:
            follow(self.average, self.tower, self.momentum(step))


class Supervised(Averaged):
    """Classify pictures by their labels, with the tower's own head."""

    measure = "accuracy"

    def __init__(self, backbone: Trunk, config: TrainConfig, classes: tuple[str, ...]) -> None:
        if len(classes) < 2:
            raise ArgumentError(f"got {len(classes)} class; supervised training needs images of two classes or more")
        backbone.reset_head(len(classes), seed=config.seed, zero=config.zero_head)
        super().__init__(backbone, config)
        self.names = classes
        mixes = config.mixup > 0 or config.cutmix > 0
        given = {"mixup_alpha": config.mixup, "cutmix_alpha": config.cutmix, "label_smoothing": config.smoothing}
        self.mix = Mixup(**given, num_classes=len(classes)) if mixes else None
        if config.loss == "bce":
            # what is mixed counts as both classes, as in DeiT-III's code, unless it is smoothed too
            both = 0.0 if mixes and not config.smoothing else None
            self.loss = BinaryCrossEntropy(0.0 if mixes else config.smoothing, target_threshold=both)
        elif mixes:
            self.loss = SoftTargetCrossEntropy()
        else:
            self.loss = LabelSmoothingCrossEntropy(config.smoothing) if config.smoothing else nn.CrossEntropyLoss()

    def heads(self) -> list[nn.Module]:
        return []  # the head is the tower's own

    def classes(self) -> tuple[str, ...]:
        return self.names

    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        images, labels = batch.views[0], batch.labels
        if self.mix is not None and len(images) % 2 == 0:  # timm mixes pairs
            images, labels = self.mix(images.clone(), labels)
        elif self.mix is not None:
            labels = mixup_target(labels, len(self.names), smoothing=self.config.smoothing)
        return {"loss": self.loss(self.backbone(images).float(), labels)}

    def held_out(self, held: HeldOut, device: torch.device) -> Sums:
        right, number = 0, 0
        for batch in held.reader:
            labels = torch.from_numpy(held.labels[list(batch.indices)])
            found = self.variant()(batch.images.to(device)).argmax(1).cpu()
            right, number = right + int((found == labels).sum()), number + len(labels)
        return {"accuracy": (right, number)}


class SceneTasks(Averaged):
    """Learn several things of generated scenes at once, some of them for every patch."""

    def __init__(self, backbone: Trunk, config: TrainConfig, scenes: SceneConfig) -> None:
        if unknown := sorted(set(config.tasks) - set(TASKS)) or (["none"] if not config.tasks else []):
            raise ArgumentError(f"got task {unknown[0]}; scenes have {', '.join(TASKS)}")
        dense = [name for name in config.tasks if TASKS[name].is_dense]
        if dense and not isinstance(backbone, Backbone):
            kept = ", ".join(name for name in TASKS if not TASKS[name].is_dense)
            raise ArgumentError(f"{backbone.spec.name} has no patch tokens to learn {dense[0]} of; it has {kept}")
        backbone.reset_head(0)
        super().__init__(backbone, config)
        has_error_only = all(TASKS[name].kind == "dense regression" for name in config.tasks)
        self.measure = "knn" if has_error_only else "accuracy"  # an error is no measure that should rise
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.tasks = nn.ModuleDict({name: self._head(name, scenes) for name in config.tasks})
        if config.ema:
            self.average_tasks = copy.deepcopy(self.tasks).requires_grad_(False)

    def _head(self, name: str, scenes: SceneConfig) -> nn.Module:
        linear = nn.Linear(self.backbone.width, TASKS[name].num_outputs(scenes))
        nn.init.trunc_normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
        return nn.Sequential(nn.LayerNorm(self.backbone.width), linear) if TASKS[name].is_dense else linear

    def after_step(self, step: int) -> None:
        super().after_step(step)
        if self.config.ema:
            follow(self.average_tasks, self.tasks, self.momentum(step))

    def answers(self, images: Tensor, *, averaged: bool = False) -> dict[str, Tensor]:
        """Compute the outputs of every task, of what is trained or of its average: (B, K) of an image, (B, P, K)."""
        is_average = averaged and bool(self.config.ema)
        backbone, heads = (self.averaged, self.average_tasks) if is_average else (self.backbone, self.tasks)
        if not isinstance(backbone, Backbone):  # a convolutional network: all tasks are of the whole image
            pooled = backbone.features(images)  # (B, D)
            return {name: head(pooled).float() for name, head in heads.items()}
        layout = backbone.layout(tuple(images.shape[-2:]))
        tokens = backbone.tokens(images)
        pooled, patches = backbone.pool(tokens, layout), tokens[:, layout.patches]
        return {name: head(patches if TASKS[name].is_dense else pooled).float() for name, head in heads.items()}

    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        terms = {}
        for name, found in self.answers(batch.views[0]).items():
            each = _loss(name, found, batch.truth[name])
            if TASKS[name].is_dense and self.config.dense_on_objects:
                on = batch.truth["patch_object"].to(each.dtype)  # (B, P)
                each = (each * on).sum(1) / on.sum(1).clamp_min(1)  # by image, so that micro-batches add up
            terms[name] = each.mean()
        weights = {name: DENSE_WEIGHT if TASKS[name].is_dense else 1.0 for name in terms}
        return {"loss": sum(weights[name] * term for name, term in terms.items()), **terms}

    def held_out(self, held: HeldOut, device: torch.device) -> Sums:
        sums: dict[str, list[float]] = {name: [0.0, 0] for name in self.tasks}
        for batch in held.reader:
            chosen = torch.tensor(batch.indices)
            for name, found in self.answers(batch.images.to(device), averaged=True).items():
                sums[name][0] += float(_right(name, found.cpu(), held.truth[name][chosen]).sum())
                sums[name][1] += len(chosen)
        named = {f"{name}_{'error' if TASKS[name].kind == 'dense regression' else 'accuracy'}": name for name in sums}
        found = {label: (sums[name][0], sums[name][1]) for label, name in named.items()}
        good = [value for label, value in found.items() if label.endswith("accuracy")]
        total = sum(right for right, _ in good)
        return {"accuracy": (total, sum(number for _, number in good)), **found} if good else found


def _loss(name: str, found: Tensor, truth: Tensor) -> Tensor:
    """Compute the loss of each image, (B,), or of each patch, (B, P)."""
    kind = TASKS[name].kind
    if kind == "multi-label":
        return F.binary_cross_entropy_with_logits(found, truth.to(found.dtype), reduction="none").mean(-1)
    if kind == "dense regression":
        return F.smooth_l1_loss(found.squeeze(-1), truth.to(found.dtype), reduction="none")
    return F.cross_entropy(found.movedim(-1, 1), truth, reduction="none")


def _right(name: str, found: Tensor, truth: Tensor) -> Tensor:
    """Compute how right each image's answer is, (B,): a share in [0, 1]; of a regression, the mean absolute error."""
    kind = TASKS[name].kind
    if kind == "multi-label":
        return ((found > 0) == (truth > 0.5)).float().mean(-1)
    if kind == "dense regression":
        return (found.squeeze(-1) - truth).abs().mean(-1)
    same = (found.argmax(-1) == truth).float()
    return same if same.ndim == 1 else same.mean(-1)
