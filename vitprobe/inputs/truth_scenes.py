"""Generated scenes with all their truths; a scene's boxes, mask and depth are drawn again when they are asked for.

Like `images`, this file is shared ground inside `vitprobe.inputs`.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial

import numpy as np
import torch

from vitprobe.errors import ArgumentError
from vitprobe.inputs.scene_shapes import BACKGROUNDS, KINDS
from vitprobe.inputs.scene_stream import FIRST_HELD_OUT, image_truth
from vitprobe.inputs.scenes import COLOUR_NAMES, NAMED, SceneConfig, SceneItem, Scenes, generate
from vitprobe.inputs.truth_base import Request, TruthSource

SIZE = (224, 224)
"""Height and width of the scenes in pixels."""
NUMBERS = {"train": 512, "test": 256}
"""Scenes to train on and to test on where no limit is given."""
TASKS = ("count", "majority", "background", "same")
MASK_CLASSES = ("background", *KINDS)
_CHUNK = 64
_SMALL = (32, 32)
"""Scenes have the same labels at any size with these sides' ratio; small ones are drawn faster."""


def open_scenes(request: Request) -> TruthSource:
    """Return scenes of the seed: from 0 on to train on, and those held out from every training to test on.

    Labels are ``count`` (number of objects - 1), ``majority`` (the most frequent colour), ``background``, and ``same``
    (whether two objects are identical but for their place); pixels have the kind of their object. Raises ArgumentError
    for a text that names no scenes.
    """
    config = NAMED.get(request.text)
    if config is None:
        raise ArgumentError(f"got {request.text!r}; allowed are {', '.join(NAMED)}")
    part = request.split if request.split in NUMBERS else "test"
    first, number = (0 if part == "train" else FIRST_HELD_OUT), request.limit or NUMBERS[part]
    config = replace(config, size=SIZE)
    items = tuple(SceneItem(request.seed, index, config) for index in range(first, first + number))
    labels, captions = _told(config, request.seed, first, number)
    return TruthSource(
        name=f"{request.text}, {part}",
        items=items,
        labels=labels,
        classes={
            "count": tuple(str(number) for number in range(1, config.max_shapes + 1)),
            "majority": COLOUR_NAMES,
            "background": BACKGROUNDS,
            "same": ("no two alike", "two alike"),
        },
        mask_classes=MASK_CLASSES,
        captions=captions,
        depth_unit="of the farthest",
        raw_boxes=partial(_boxes, items),
        raw_mask=partial(_mask, items),
        raw_depth=partial(_depth, items),
    )


def _told(config: SceneConfig, seed: int, first: int, number: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the labels, (N,) int64 by task, and captions of scenes `first` to `first + number - 1`."""
    parts, captions = [], []
    for start in range(first, first + number, _CHUNK):
        scenes = generate(
            min(_CHUNK, first + number - start), config=replace(config, size=_SMALL), seed=seed, start=start
        )
        parts.append(image_truth(scenes))
        captions += scenes.captions
    return {task: torch.cat([part[task] for part in parts]).numpy() for task in TASKS}, captions


@lru_cache(maxsize=8)  # boxes, mask and depth of one scene are asked for one after the other
def _drawn(item: SceneItem) -> Scenes:
    return generate(1, config=item.config, seed=item.seed, start=item.index)


def _boxes(items: Sequence[SceneItem], index: int) -> tuple[tuple[int, int], np.ndarray]:
    scenes = _drawn(items[index])
    return items[index].config.size, scenes.boxes[scenes.present].numpy().astype(np.float64)  # (G, 4)


def _mask(items: Sequence[SceneItem], index: int) -> np.ndarray:
    scenes = _drawn(items[index])
    kinds = (scenes.kinds + 1).clamp(0)[:, :, None, None]  # (1, K, 1, 1); masks are disjoint
    return (scenes.masks * kinds).sum(1)[0].numpy()  # (H, W)


def _depth(items: Sequence[SceneItem], index: int) -> np.ndarray:
    return _drawn(items[index]).depth[0].numpy().copy()  # (H, W)
