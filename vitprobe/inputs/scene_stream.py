"""Stream generated scenes to train on, with the truth of each, and list scenes that are held out from training."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from vitprobe.errors import ArgumentError
from vitprobe.inputs.labels import Labelled
from vitprobe.inputs.reading import Views
from vitprobe.inputs.scene_shapes import BACKGROUNDS, COLOURS, KINDS, tally
from vitprobe.inputs.scenes import COLOUR_NAMES, MIXED, SceneConfig, SceneItem, Scenes, generate
from vitprobe.inputs.seeding import generators_kept, rank_rows, seed_generators
from vitprobe.inputs.stream import TrainBatch
from vitprobe.inputs.workers import next_of, start_reading

FIRST_HELD_OUT = 10**9
"""Number of the first held-out scene; no training gets that far."""
LEAST_COVERAGE = 0.02
"""Share of a patch that objects must cover for the patch to hold an object."""
MOST_MATES = 5
"""Largest number of other objects of the same colour that `patch_mates` tells apart."""
_CHUNK = 64
"""Scenes that are generated at once where only their truth is kept."""
_PAIRS = len(KINDS) * len(COLOURS)


@dataclass(frozen=True)
class SceneTask:
    """Say what kind of answer a task asks for, and how many outputs that takes."""

    kind: Literal["classes", "multi-label", "dense classes", "dense regression"]
    """One class an image, several yes-or-no answers an image, one class a patch, one number a patch."""
    num_outputs: Callable[[SceneConfig], int]

    @property
    def is_dense(self) -> bool:
        """Whether there is an answer for each patch."""
        return self.kind.startswith("dense")


TASKS: Mapping[str, SceneTask] = {
    "count": SceneTask("classes", lambda config: config.max_shapes),
    "majority": SceneTask("classes", lambda _config: len(COLOURS)),
    "same": SceneTask("classes", lambda _config: 2),
    "background": SceneTask("classes", lambda _config: len(BACKGROUNDS)),
    "presence": SceneTask("multi-label", lambda _config: _PAIRS),
    "patch_class": SceneTask("dense classes", lambda _config: _PAIRS + 1),
    "patch_mates": SceneTask("dense classes", lambda _config: MOST_MATES + 1),
    "patch_depth": SceneTask("dense regression", lambda _config: 1),
}
"""What can be learnt of a scene; the truth of each is in `TrainBatch.truth` and in `scene_truth`, by the same name."""


def image_truth(scenes: Scenes) -> dict[str, Tensor]:
    """Return the truth of whole images: (B,) int64 `count` - 1, `majority`, `same` and `background`, and `presence`.

    `presence` is (B, kinds x colours) float32, 1 where an object of kind k and colour c is at k x colours + c.
    """
    pairs = tally(scenes.kinds, scenes.colours).flatten(1)  # (B, kinds x colours)
    return {
        "count": scenes.count - 1,
        "majority": scenes.majority,
        "same": scenes.same.long(),
        "background": scenes.background,
        "presence": (pairs > 0).float(),
    }


def patch_truth(scenes: Scenes, patch: int) -> dict[str, Tensor]:
    """Return the truth of patches, row by row, for patches of `patch` pixels a side.

    `patch_class` (B, P) int64: 0 where objects cover less than 2 %, else 1 + kind x colours + colour of the object that
    covers most; `patch_mates` (B, P) int64: how many other objects have that object's colour, 5 for 5 or more, 0 where
    there is none; `patch_depth` (B, P) float32: mean depth; `patch_object` (B, P) bool: whether objects cover 2 % or
    more; `patch_coverage` (B, rows, cols) float32. Raises ArgumentError unless `patch` divides height and width.
    """
    height, width = scenes.masks.shape[2:]
    if patch < 1 or height % patch or width % patch:
        raise ArgumentError(f"patch {patch} on {height} x {width} pixels: give a side that divides height and width")
    wide_enough = torch.uint8 if patch**2 < 256 else torch.int32  # many times faster in the narrow type
    covered = _sums(scenes.masks.view(torch.uint8), patch, wide_enough)  # (B, K, rows, cols) pixels; disjoint
    coverage = covered.sum(1, dtype=wide_enough).float() / patch**2  # (B, rows, cols)
    on = (coverage >= LEAST_COVERAGE).flatten(1)  # (B, P)
    pairs = scenes.kinds * len(COLOURS) + scenes.colours  # (B, K)
    covers_most = covered.flatten(2).argmax(1)  # (B, P)
    alike = (scenes.colours[:, :, None] == scenes.colours[:, None]) & scenes.present[:, None]  # (B, K, K)
    mates = (alike.sum(2) - 1).clamp(0, MOST_MATES)  # (B, K)
    depth = _sums(scenes.depth, patch, torch.float32) / patch**2  # (B, rows, cols)
    return {
        "patch_class": torch.where(on, pairs.gather(1, covers_most) + 1, 0),
        "patch_mates": torch.where(on, mates.gather(1, covers_most), 0),
        "patch_depth": depth.flatten(1),
        "patch_object": on,
        "patch_coverage": coverage,
    }


def _sums(values: Tensor, patch: int, dtype: torch.dtype) -> Tensor:
    """Add (..., H, W) up over patches, in one order whatever the batch, so that the bits do not depend on it."""
    *lead, height, width = values.shape
    lines = values.reshape(*lead, height // patch, patch, width)
    total = lines[..., 0, :].to(dtype)  # (..., rows, W)
    for line in range(1, patch):
        total = total + lines[..., line, :]
    columns = total.reshape(*lead, height // patch, width // patch, patch)
    total = columns[..., 0]  # (..., rows, cols)
    for column in range(1, patch):
        total = total + columns[..., column]
    return total


class SceneStream:
    """Stream batches of scenes; batch `b` of global size G holds scenes `b * G` to `(b + 1) * G - 1` of the seed."""

    def __init__(
        self,
        *,
        config: SceneConfig,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        transform: Callable[[Image.Image], Views] | None = None,
        patch: int,
        workers: int = 0,
    ) -> None:
        """Prepare to generate scenes of `config.size`, normalised, with the truth of patches of `patch` pixels.

        With `transform`, from a PIL image to one tensor (3, H, W) or a tuple of them, the views are what it gives,
        seeded by position as in `ItemStream`, and there is no truth of patches. `workers` processes make a batch each.
        Raises ArgumentError for values that are not allowed.
        """
        self.rows = rank_rows(batch_size, seed=seed, rank=rank, world=world, workers=workers)
        self.skipped: list[tuple[str, str]] = []
        """Empty: a scene can always be drawn."""
        self.workers = workers
        self._batch_size = batch_size
        if transform is None:
            patch_truth(generate(1, config=config, seed=seed), patch)  # refuses a patch that does not divide the size
        self._drawing = _Drawing(config, self.rows, batch_size, seed, (mean, std), transform, patch)

    def batches(self, start: int, stop: int) -> Iterator[TrainBatch]:
        """Return an iterator over this process's part of batches `start` to `stop - 1`; labels are the majority colour.

        Raises ArgumentError for batches that reach the held-out scenes.
        """
        if not 0 <= start <= stop or stop * self._batch_size > FIRST_HELD_OUT:
            most = FIRST_HELD_OUT // self._batch_size
            raise ArgumentError(f"batches {start} to {stop}; give 0 <= start <= stop <= {most:,}")
        return self._batches(start, stop)

    def _batches(self, first: int, stop: int) -> Iterator[TrainBatch]:
        if not self.workers:  # not through arrays of numpy
            for batch in range(first, stop):
                with generators_kept() if self._drawing.transform is not None else nullcontext():
                    made = self._drawing.batch(batch)
                yield made
            return
        numbers = ([batch] for batch in range(first, stop))
        made = start_reading(self._drawing, numbers, collate=_only, workers=self.workers)
        try:
            while (batch := next_of(made)) is not None:
                yield _from_arrays(batch)
        finally:
            del made  # ends the workers


@dataclass(frozen=True)
class _Drawing(Dataset["_Arrays"]):
    """Make the batch of a number; this is what worker processes run."""

    config: SceneConfig
    rows: range
    batch_size: int
    seed: int
    numbers: tuple[tuple[float, float, float], tuple[float, float, float]]
    """Mean and deviation of the channels."""
    transform: Callable[[Image.Image], Views] | None
    patch: int

    def __getitem__(self, number: int) -> "_Arrays":
        return _to_arrays(self.batch(number))

    def batch(self, number: int) -> TrainBatch:
        first = number * self.batch_size + self.rows[0]
        scenes = generate(len(self.rows), config=self.config, seed=self.seed, start=first)
        pixels = (scenes.images * 255).round_()  # (B, 3, H, W), the 8 bits that `SceneItem` gives
        truth = image_truth(scenes)
        if self.transform is None:
            mean, std = (torch.tensor(number).reshape(3, 1, 1) for number in self.numbers)
            views: tuple[Tensor, ...] = (pixels.div_(255).sub_(mean).div_(std),)
            truth |= patch_truth(scenes, self.patch)
            del truth["patch_coverage"]
        else:
            views = self._transformed(pixels.byte().permute(0, 2, 3, 1).contiguous().numpy(), first)
        indices = torch.arange(first, first + len(self.rows))
        return TrainBatch(views, indices, scenes.majority, tuple(scenes.captions), truth)

    def _transformed(self, pixels: np.ndarray, first: int) -> tuple[Tensor, ...]:
        """Run the transform over images (B, H, W, 3) uint8, each seeded by its position."""
        made = []
        for position, image in enumerate(pixels, first):
            seed_generators(self.seed, position)
            views = self.transform(Image.fromarray(image))
            made.append((views,) if isinstance(views, Tensor) else views)
        return tuple(torch.stack(views) for views in zip(*made, strict=True))


@dataclass(frozen=True)
class _Arrays:
    """Carry a batch through a pipe: the shared memory that tensors go through is often too small in a container."""

    views: tuple[np.ndarray, ...]
    indices: np.ndarray
    labels: np.ndarray
    captions: tuple[str, ...]
    truth: dict[str, np.ndarray]


def _to_arrays(batch: TrainBatch) -> _Arrays:
    truth = {name: value.numpy() for name, value in batch.truth.items()}
    views = tuple(view.numpy() for view in batch.views)
    return _Arrays(views, batch.indices.numpy(), batch.labels.numpy(), batch.captions, truth)


def _from_arrays(made: _Arrays) -> TrainBatch:
    truth = {name: torch.from_numpy(value) for name, value in made.truth.items()}
    views = tuple(torch.from_numpy(view) for view in made.views)
    return TrainBatch(views, torch.from_numpy(made.indices), torch.from_numpy(made.labels), made.captions, truth)


def _only(made: list[_Arrays]) -> _Arrays:
    return made[0]


def scene_set(num: int, *, config: SceneConfig = MIXED, seed: int, first: int = FIRST_HELD_OUT) -> Labelled:
    """Return scenes `first` to `first + num - 1` of a seed: labels are the majority colour, captions say all there is.

    With the default `first`, training never sees them. Raises ArgumentError unless num >= 1.
    """
    labels, captions = [], []
    small = replace(config, size=(32, 32)) if config.size[0] == config.size[1] else config  # the same, drawn faster
    for start in range(first, first + num, _CHUNK):
        scenes = generate(min(_CHUNK, first + num - start), config=small, seed=seed, start=start)
        labels.append(scenes.majority)
        captions += scenes.captions
    if not labels:
        raise ArgumentError(f"{num} scenes; give 1 or more")
    return Labelled(
        name="scenes",
        items=tuple(SceneItem(seed=seed, index=index, config=config) for index in range(first, first + num)),
        labels=torch.cat(labels).numpy(),
        classes=COLOUR_NAMES,
        captions=captions,
        skipped=(),
    )


def scene_truth(items: Sequence[SceneItem], patch: int | None = None) -> dict[str, Tensor]:
    """Return the truth of N scenes by task, in their order; with `patch`, in pixels, that of their patches too.

    See `image_truth` and `patch_truth`; scenes of one seed that follow each other are generated together. Raises
    ArgumentError where there is none, or where `patch` does not divide their height and width.
    """
    if not items:
        raise ArgumentError("no scene to tell the truth of; give one or more")
    parts = []
    numbered = enumerate(items)
    for (config, seed, _), run in groupby(numbered, key=lambda at: (at[1].config, at[1].seed, at[1].index - at[0])):
        run = list(run)
        for start in range(0, len(run), _CHUNK):
            some = run[start : start + _CHUNK]
            scenes = generate(len(some), config=config, seed=seed, start=some[0][1].index)
            parts.append(image_truth(scenes) | (patch_truth(scenes, patch) if patch is not None else {}))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
