"""Sets of small pictures to fine-tune to, and a tiny model on disk to begin from."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vitprobe.backbones.create import create
from vitprobe.backbones.export import export

SIDE = 16
"""Pixels of a picture, and of the model's images."""


def write_pictures(folder: Path, number: int, *, seed: int, learnable: bool = True) -> Path:
    """Write pictures in two classes, a folder each: told apart by their colour, or by nothing."""
    draw = np.random.default_rng(seed)
    for channel, name in enumerate(("red", "green")):
        (folder / name).mkdir(parents=True)
        for i in range(number):
            pixels = draw.integers(0, 160, (SIDE, SIDE, 3), dtype=np.uint8)
            if learnable:
                pixels[..., channel] += 60
            Image.fromarray(pixels).save(folder / name / f"{seed}-{i:03}.png")
    return folder


def write_set(folder: Path, *, train: int = 40, test: int = 30, learnable: bool = True) -> Path:
    """Write a set with images to train on and to test on, so many of each class."""
    write_pictures(folder / "train", train, seed=1, learnable=learnable)
    write_pictures(folder / "test", test, seed=2, learnable=learnable)
    return folder


def write_task(folder: Path, classes: int, number: int) -> Path:
    """Write a task of VTAB-1k in its folder: grey pictures, the brighter the higher their class."""
    draw = np.random.default_rng(classes)
    folder.mkdir(parents=True)
    for split in ("train800val200", "test"):
        lines = []
        for i in range(number):
            label = i % classes
            pixels = draw.integers(0, 40, (SIDE, SIDE, 3)) + 200 * label // max(1, classes - 1)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{split}-{i}.png")
            lines.append(f"{split}-{i}.png {label}")
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return folder


def write_model(folder: Path, *, registers: int = 0) -> Path:
    """Write a ViT of 2 blocks with random weights as a checkpoint: 16 px, patches of 4 px, no CLS."""
    folder.mkdir(parents=True)
    shape = {"depth": 2, "embed_dim": 32, "num_heads": 2, "reg_tokens": registers}
    shape |= {"class_token": False, "global_pool": "avg"}  # a mean of random patches tells colours apart
    with torch.random.fork_rng(devices=[]):
        export(create("scenes-tiny", image_size=(SIDE, SIDE), overrides=shape), folder)
    return folder
