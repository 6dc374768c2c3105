"""Run a backbone once over images for any number of readers: what every probe is made of."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from vitprobe.backbones.base import Backbone
from vitprobe.errors import ArgumentError, InputError
from vitprobe.probes.batch import Batch
from vitprobe.recorder import Recorder, Site


class Reader(Protocol):
    """Gather numbers from batches as they pass; several readers share one forward pass.

    Sites that two readers name alike (the same kind, block, queries and ``reduce``) are recorded once.
    """

    sites: Sequence[Site]
    """What is recorded for it; may be empty, where the images or the model's output are enough."""

    def update(self, batch: Batch, taken: Mapping[Site, Any], output: Tensor) -> None:
        """Take in one batch: what its sites kept, on the model's device, and the model's own output (B, ...)."""


def run_pass(
    backbone: Backbone,
    batches: Iterable[Batch],
    readers: Sequence[Reader],
    *,
    autocast: torch.dtype | None = None,
    on_batch: Callable[[Batch], None] | None = None,
) -> int:
    """Run a backbone once over batches of images, and give every reader what it asked for; returns how many images.

    A reader named twice is given a batch once. ``on_batch`` is called when all readers have taken a batch in. Raises
    `ArgumentError` for images of another size than the backbone was loaded for, `InputError` without any image.
    """
    each = list({id(reader): reader for reader in readers}.values())
    sites = list(dict.fromkeys(site for reader in each for site in reader.sites))
    device, number = next(backbone.module.parameters()).device, 0
    for batch in batches:
        check_size(backbone, batch)
        with (
            torch.inference_mode(),
            torch.autocast(device.type, dtype=autocast, enabled=autocast is not None),
            Recorder(backbone, sites) as recorder,
        ):
            output = backbone(batch.images.to(device, non_blocking=True))
            taken = recorder.take()
        for reader in each:
            reader.update(batch, {site: taken[site] for site in reader.sites}, output)
        number += len(batch.images)
        if on_batch is not None:
            on_batch(batch)
    if not number:
        raise InputError("no image could be read; nothing was measured")
    return number


def check_size(backbone: Backbone, batch: Batch) -> None:
    """Raise `ArgumentError` for images of another size than a backbone was loaded for."""
    size, want = tuple(batch.images.shape[-2:]), tuple(backbone.spec.image_size)
    if size != want:
        got, made = ("{} x {} px".format(*side) for side in (size, want))
        raise ArgumentError(f"got images of {got}; {backbone.spec.name} was loaded for {made}")
