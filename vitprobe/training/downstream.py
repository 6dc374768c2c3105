"""The sets of images that a model is fine-tuned to: what is trained on, and what it is tested on."""

import os
import re
from dataclasses import dataclass, replace

from vitprobe.errors import ArgumentError
from vitprobe.inputs.labels import Labelled, open_labelled
from vitprobe.inputs.named_sets import HELD_FOLDERS, TRAIN_FOLDERS, is_named, named_parts
from vitprobe.inputs.scene_stream import scene_set
from vitprobe.inputs.scenes import NAMED
from vitprobe.inputs.vtab import TASKS, is_vtab, vtab_parts
from vitprobe.inputs.vtab_lists import vtab_title
from vitprobe.training.data import HELD_OUT_SEED, refuse_overlap

SCENES = 2000
"""Scenes to train on where no number is given; half as many are held out."""
SHARE = 5
"""One image in so many is held out of a set that has no test images of its own."""
NAMES = {
    "cifar10": "cifar10",
    "cifar100": "cifar100",
    "oxfordiiitpet": "pets",
    "flowers102": "flowers",
    "imagenet": "imagenet",
}
"""Sets by the names that torchvision and timm have for them, as `finetune_recipes.PUBLISHED` calls them."""


@dataclass(frozen=True)
class Downstream:
    """Hold one set of images with classes."""

    text: str
    """As it was given."""
    name: str
    """Short, for titles and folders."""
    train: Labelled
    test: Labelled
    """Held out, with the classes of ``train``."""
    held_out: str
    """Where they come from, in words."""
    published: str | None = None
    """What `finetune_recipes.PUBLISHED` calls the set; None for one that is not there."""
    task: str | None = None
    """Its name in VTAB-1k."""
    is_whole: bool = True
    """Whether all of the set's own images are trained on, and all its own test images held out."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.train.classes

    @property
    def group(self) -> str | None:
        """VTAB's group of the task."""
        return next((one.group for one in TASKS if one.name == self.task), None)


@dataclass(frozen=True)
class Amounts:
    """Say how much of a set is read, and by which labels."""

    limit: int | None = None
    """Training images, a random subset; of scenes, how many are drawn."""
    num_held_out: int | None = None
    label: str | None = None
    """Parquet column or WebDataset key of the labels."""
    seed: int = 0


def open_downstream(text: str, held_out: tuple[str, ...], amounts: Amounts, size: tuple[int, int]) -> Downstream:
    """Open one set: its own training and test images where it has such, else those of ``held_out``, else a fifth.

    Named sets and VTAB's tasks have their own; a folder has them where it holds ``train`` beside ``test`` or ``val``.
    ``size``: (height, width) of scenes. Held-out images are all there are, or the same ``num_held_out`` whatever the
    seed, a share of each class. Raises `ArgumentError` and `InputError` in one line: no labels, one class, too few
    images, an image on both sides, another class among those held out.
    """
    if text == "-" or "-" in held_out:
        raise ArgumentError("got -, a list on stdin, which a resumed run could not read again; give files or folders")
    if text in NAMED:
        return _scenes(text, held_out, amounts, size)
    first, second = (text, None) if held_out else _parts(text)
    train = open_labelled([first], need="labels", label=amounts.label)
    inputs = held_out or ((second,) if second else ())
    if inputs:
        test = open_labelled(inputs, need="labels", label=amounts.label, classes=train.classes)
        refuse_overlap(train, test)
        told = f"--held-out {', '.join(map(_last, held_out))}" if held_out else f"its own test images, {test.name}"
    else:
        train, test = train.split(max(1, len(train) // SHARE), seed=HELD_OUT_SEED)
        told = "one in five of its images, split off, since it has no test images of its own"
    whole = bool(second) and not held_out
    few_train, few_test = _few(train, amounts.limit, amounts.seed), _few(test, amounts.num_held_out, HELD_OUT_SEED)
    whole &= len(few_train) == len(train) and len(few_test) == len(test)
    told += f"; {len(few_test):,} of these {len(test):,}" if len(few_test) < len(test) else ""
    task = vtab_title(first).partition(",")[0] if is_vtab(text) else None
    name = task or _name(text, train)
    published = "vtab" if task else _published(text, train.classes)
    return Downstream(text, name, few_train, few_test, told, published, task, whole)


def _parts(text: str) -> tuple[str, str | None]:
    """Return what stands for a set's own images to train on, and to test on, None where it has no such."""
    if is_vtab(text):
        return vtab_parts(text)
    if is_named(text):
        train, test = named_parts(text)
        return (train, test) if train and test else (text, None)
    for one in TRAIN_FOLDERS:
        for other in ("test", *HELD_FOLDERS):
            pair = os.path.join(text, one), os.path.join(text, other)
            if all(map(os.path.isdir, pair)):
                return pair
    return text, None


def _few(images: Labelled, number: int | None, seed: int) -> Labelled:
    return images if number is None or number >= len(images) else images.sample(number, seed=seed)


def _scenes(text: str, held_out: tuple[str, ...], amounts: Amounts, size: tuple[int, int]) -> Downstream:
    if held_out:
        raise ArgumentError("got --held-out with scenes, whose held-out images are generated; leave it out")
    config, number = replace(NAMED[text], size=size), amounts.limit or SCENES
    train = replace(scene_set(number, config=config, seed=amounts.seed, first=0), name=text)
    test = scene_set(amounts.num_held_out or max(2, number // 2), config=config, seed=HELD_OUT_SEED)
    told = f"{len(test):,} other scenes, by the colour that most of their objects have"
    return Downstream(text, text.replace(":", "-"), train, replace(test, name=text), told)


def _last(text: str) -> str:
    """Return the end of a path, which a table has room for; the whole of it is among the settings."""
    return os.path.basename(text.rstrip("/")) or text


def _name(text: str, images: Labelled) -> str:
    if is_named(text):
        return text.split(":")[1]
    folder, last = os.path.split(os.path.abspath(text))
    if os.path.isfile(text):  # train.parquet alone would say little
        return f"{os.path.basename(folder)}-{last.partition('.')[0]}".strip("-")
    return last or images.name


def _published(text: str, classes: tuple[str, ...]) -> str | None:
    if len(classes) == 1000 and all(re.match(r"n\d{8}", name) for name in classes):
        return "imagenet"
    if not is_named(text):
        return None
    return NAMES.get(text.split(":")[1].lower().removeprefix("torch/").replace("_", ""))
