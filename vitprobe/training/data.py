"""What a training reads: images to learn from, held-out images, and the images whose features vote in k-NN."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from vitprobe.backbones.base import Transform
from vitprobe.errors import ArgumentError, InputError
from vitprobe.inputs.augment import (
    Augmentation,
    MultiCrop,
    multi_crop_transform,
    plain_transform,
    supervised_transform,
    text_transform,
)
from vitprobe.inputs.labels import Labelled, open_labelled
from vitprobe.inputs.scene_stream import FIRST_HELD_OUT, SceneStream, scene_set, scene_truth
from vitprobe.inputs.scenes import NAMED, SceneConfig
from vitprobe.inputs.stream import ItemStream
from vitprobe.probes.shards import Shards
from vitprobe.training.config import TrainConfig
from vitprobe.training.held_out import HeldOut, Reader

FIRST_BANK = 2 * FIRST_HELD_OUT
"""Number of the first scene that votes in k-NN; no training gets that far."""
HELD_OUT_SEED = 0
"""Held-out images are the same whatever the seed of the run, so that runs of several seeds can be compared."""
MOST_AT_ONCE = 64
"""Held-out images of a batch."""
NEEDS = {"supervised": "labels", "text": "captions", "self-distillation": "nothing", "retrofit": "nothing"}


@dataclass(frozen=True)
class Data:
    """Hold what was opened for one call; every variant is trained on the same."""

    held: Labelled
    bank: Labelled
    train: Labelled | None
    """Pictures to learn from; None for scenes, which are generated as they are needed."""
    scenes: SceneConfig | None = None
    truth: Mapping[str, Tensor] = field(default_factory=dict)
    """Of all held-out scenes, by task."""

    @property
    def name(self) -> str:
        """What the training data are called."""
        return self.train.name if self.train is not None else "scenes"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the labels."""
        return self.held.classes

    def digest(self) -> str:
        """Return a SHA-256 of the names of all images, by part: a resumed run must find the same."""
        sha = hashlib.sha256()
        for part in (self.train, self.held, self.bank):
            names = [] if part is None else [item.name for item in part.items]
            sha.update(f"{len(names)} ".encode() + "\0".join(names).encode("utf-8", "surrogatepass"))
        return sha.hexdigest()

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(name, reason) of what could not even be listed."""
        parts = [self.train, self.held] if self.train is not None else []
        return list(dict.fromkeys(one for part in parts for one in part.skipped))


def open_data(config: TrainConfig, size: tuple[int, int], patch: tuple[int, int]) -> Data:
    """Open what a run reads, for images of (height, width) and patches of that size in pixels.

    Held-out images are split off, always the same ones, where no source of their own is given. Raises `ArgumentError`
    and `InputError` in one line: no labels, one class, too few images, nothing to read.
    """
    if len(config.data) == 1 and config.data[0] in NAMED:
        return _open_scenes(config, size, patch)
    if any(name in NAMED for name in config.data):
        raise ArgumentError(f"got --data {', '.join(config.data)}; scenes cannot be mixed with pictures")
    if "-" in (*config.data, *config.held_out):
        raise ArgumentError("got -, a list on stdin, which a resumed run could not read again; give files or folders")
    train = _open(config, config.data, None)
    if config.held_out:
        held = _open(config, config.held_out, train.classes or None)
        if len(held) > config.num_held_out:
            held = held.sample(config.num_held_out, seed=HELD_OUT_SEED)
        refuse_overlap(train, held)
    else:
        train, held = _split(config, train)
    bank = train if len(train.items) <= config.num_bank else train.sample(config.num_bank, seed=HELD_OUT_SEED)
    return Data(held, bank, train)


def refuse_overlap(train: Labelled, held: Labelled) -> None:
    """Raise `ArgumentError` where an image is held out and trained on."""
    names = {item.name for item in train.items}
    if both := [item.name for item in held.items if item.name in names]:
        raise ArgumentError(f"{len(both)} held-out images are trained on too, {both[0]} first; give others")


def _open(config: TrainConfig, inputs: tuple[str, ...], classes: tuple[str, ...] | None) -> Labelled:
    """Open images with what the objective needs, and with labels, which k-NN is measured by, where there are any."""
    shared = {"limit": config.limit, "seed": config.seed}
    need = NEEDS[config.objective]
    told = {"label": config.label, "classes": classes}
    if need == "labels":
        return open_labelled(inputs, need=need, **told, **shared)
    found = open_labelled(inputs, caption=config.caption, need=need, **told, **shared)
    if found.labels is not None:
        return found
    try:
        labelled = open_labelled(inputs, need="labels", **told, **shared)
    except InputError:
        if config.label is not None:
            raise
        return found
    same = list(labelled.items) == list(found.items)
    return replace(found, labels=labelled.labels, classes=labelled.classes) if same else found


def _split(config: TrainConfig, images: Labelled) -> tuple[Labelled, Labelled]:
    """Hold images out: a share of each class where classes are learned, else any."""
    number = min(config.num_held_out, max(2, len(images) // 5))
    if NEEDS[config.objective] == "labels" or len(images) <= number:
        return images.split(number, seed=HELD_OUT_SEED)
    order = np.random.default_rng((HELD_OUT_SEED, len(images))).permutation(len(images))
    return images.take(np.sort(order[number:])), images.take(np.sort(order[:number]))


def _open_scenes(config: TrainConfig, size: tuple[int, int], patch: tuple[int, int]) -> Data:
    if config.held_out:
        raise ArgumentError("got --held-out with scenes, whose held-out images are generated; leave it out")
    if patch[0] != patch[1]:
        raise ArgumentError(f"got patches of {patch[0]} x {patch[1]} px; the truth of scenes needs square ones")
    scenes = replace(NAMED[config.data[0]], size=size)
    held = scene_set(config.num_held_out, config=scenes, seed=HELD_OUT_SEED, first=FIRST_HELD_OUT)
    bank = scene_set(config.num_bank, config=scenes, seed=HELD_OUT_SEED, first=FIRST_BANK)
    return Data(held, bank, None, scenes, scene_truth(held.items, patch=patch[0]))


def open_stream(
    config: TrainConfig, data: Data, transform: Transform, size: tuple[int, int], patch: int, shards: Shards
) -> ItemStream | SceneStream:
    """Make the stream of training batches: images of ``size``, normalised as the model's own transform does."""
    made = _augmentation(config, transform, size, patch)
    shared = {
        "batch_size": config.batch_size // config.accumulation,
        "seed": config.seed,
        "rank": shards.rank,
        "world": shards.world,
    }
    if data.scenes is None:
        return ItemStream(data.train, made, workers=config.workers, **shared)
    workers = config.workers
    if workers is None:  # a GPU would wait for scenes drawn between its steps
        workers = min(4, (os.cpu_count() or 1) // 2) if torch.cuda.is_available() and config.device != "cpu" else 0
    numbers = {"mean": transform.mean, "std": transform.std, "patch": patch, "workers": workers}
    crops = made if config.objective == "self-distillation" else None
    return SceneStream(config=data.scenes, transform=crops, **numbers, **shared)


def _augmentation(
    config: TrainConfig, transform: Transform, size: tuple[int, int], patch: int
) -> Augmentation | MultiCrop:
    numbers = {"mean": transform.mean, "std": transform.std}
    if config.objective == "supervised":
        return supervised_transform(config.augment, size, **numbers)
    if config.objective == "text":
        return text_transform(size, **numbers)
    if config.objective == "retrofit":
        return plain_transform(size, **numbers)
    local = config.option("local_size") or tuple(max(1, round(0.43 * side / patch)) * patch for side in size)
    local = (local, local) if isinstance(local, int) else tuple(local)
    crops = {name: config.option(name) for name in ("num_local", "global_scale", "local_scale")}
    return multi_crop_transform(size, local, **crops, **numbers)


def open_held_out(config: TrainConfig, data: Data, transform: Transform, shards: Shards) -> HeldOut:
    """Make the readers of held-out images and of the k-NN bank, each process with its share."""

    size = max(1, min(config.batch_size, MOST_AT_ONCE))

    def reader(images: Labelled) -> Reader:
        mine = shards.share(range(len(images)), chunk=size)  # whole batches, which then are those of a single process
        return Reader(images, transform, size, config.workers, mine)

    return HeldOut(reader(data.held), reader(data.bank), data.truth)
