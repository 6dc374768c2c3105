"""A finite set of generated scenes, drawn once and held in memory, so that many epochs of it cost no drawing."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from vitprobe.inputs.images import Decoded
from vitprobe.inputs.labels import Labelled
from vitprobe.inputs.scene_stream import scene_set
from vitprobe.inputs.scenes import SceneConfig, generate

CHUNK = 256
"""Scenes that are drawn at once."""


@dataclass(frozen=True, eq=False)
class DrawnScene:
    """Hold one scene's pixels, (H, W, 3) uint8; it reads as the `SceneItem` of its name does."""

    name: str
    pixels: np.ndarray

    def read(self) -> Decoded:
        """Return the image and the digest of its size and pixels."""
        digest = hashlib.sha256(f"{self.pixels.shape}".encode() + self.pixels.tobytes()).hexdigest()
        return Decoded(image=Image.fromarray(self.pixels), notes=(), digest=digest)


def drawn_scenes(num: int, *, config: SceneConfig, seed: int, first: int) -> Labelled:
    """Return what `scene_set` lists, drawn: H x W x 3 bytes of memory a scene; labels are the majority colour.

    Raises ArgumentError unless num >= 1.
    """
    listed = scene_set(num, config=config, seed=seed, first=first)
    items: list[DrawnScene] = []
    for start in range(0, num, CHUNK):
        some = listed.items[start : start + CHUNK]
        images = generate(len(some), config=config, seed=seed, start=first + start).images  # (B, 3, H, W)
        pixels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()  # (B, H, W, 3)
        items += [DrawnScene(item.name, one.copy()) for item, one in zip(some, pixels, strict=True)]
    return replace(listed, items=tuple(items))
