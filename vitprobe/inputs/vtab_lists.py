"""List the images of VTAB-1k: 19 tasks, each a folder with images and lists of them; nothing is fetched.

VTAB (Zhai et al., arXiv 1910.04867) takes 1,000 training images a task: 800 to train on while options are chosen on the
other 200, all 1,000 for the number that is reported, which is the top-1 accuracy on the task's whole test set. An input
is `vtab:ROOT/TASK` or `vtab:ROOT/TASK:SPLIT`. Names of tasks, folders and lists are not the paper's but those of the
copies in common use (SSF, NOAH, FacT and others on parameter-efficient tuning). Like `images`, this file is shared
ground inside `vitprobe.inputs`.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vitprobe.errors import InputError
from vitprobe.inputs.images import safe_name
from vitprobe.inputs.named_sets import KnownFile, NamedSet
from vitprobe.inputs.truth_files import below, lines

GROUPS = ("natural", "specialized", "structured")
"""The paper's groups of tasks, by its names."""
SPLITS = ("train800val200", "train800", "val200", "test")
"""Lists of images that a task's folder holds as SPLIT.txt; the first is what is trained on where none is named."""
GRAMMAR = "give vtab:ROOT/TASK or vtab:ROOT/TASK:SPLIT, such as vtab:vtab-1k/dtd:test"
PREFIX = "vtab:"


@dataclass(frozen=True)
class Task:
    """Hold what is known of one task before its folder is opened."""

    name: str
    """Of its folder."""
    group: str
    """Of `GROUPS`, by the paper."""
    num_classes: int
    """Labels in its lists are 0 to this less one."""


TASKS = (
    Task("cifar", "natural", 100),
    Task("caltech101", "natural", 102),
    Task("dtd", "natural", 47),
    Task("oxford_flowers102", "natural", 102),
    Task("oxford_iiit_pet", "natural", 37),
    Task("svhn", "natural", 10),
    Task("sun397", "natural", 397),
    Task("patch_camelyon", "specialized", 2),
    Task("eurosat", "specialized", 10),
    Task("resisc45", "specialized", 45),
    Task("diabetic_retinopathy", "specialized", 5),
    Task("clevr_count", "structured", 8),
    Task("clevr_dist", "structured", 6),
    Task("dmlab", "structured", 6),
    Task("kitti", "structured", 4),
    Task("dsprites_loc", "structured", 16),
    Task("dsprites_ori", "structured", 16),
    Task("smallnorb_azi", "structured", 18),
    Task("smallnorb_ele", "structured", 9),
)
"""The 19 tasks. `cifar` is CIFAR-100; Caltech-101 has a class of background beside its 101."""
BY_NAME: Mapping[str, Task] = {task.name: task for task in TASKS}


def is_vtab(text: str) -> bool:
    """Return whether an input is `vtab:...`."""
    return text.startswith(PREFIX)


def tasks_in(root: str | Path) -> tuple[str, ...]:
    """Return the names of the tasks whose folders lie in ROOT, in the order of `TASKS`; `vtab:ROOT` is taken as ROOT.

    A folder counts where it holds any of the lists. Raises InputError where there is none: how they must lie.
    """
    folder = Path(os.path.expanduser(str(root).removeprefix(PREFIX)))
    found = _tasks(folder)
    if not found:
        raise InputError(f"{safe_name(str(root))}: no task of VTAB-1k in that folder; {_need('ROOT/TASK')}")
    return found


def vtab_parts(text: str) -> tuple[str, str]:
    """Return the inputs that stand for a task's images to train on and to test on.

    Those are train800val200 and test (the paper's numbers to report); where the text names train800 or val200, they
    are these two (by which the paper chooses options). Raises InputError for no such input.
    """
    folder, _, split = _parse(text)
    pair = ("train800", "val200") if split in ("train800", "val200") else ("train800val200", "test")
    return f"{PREFIX}{folder}:{pair[0]}", f"{PREFIX}{folder}:{pair[1]}"


def vtab_title(text: str) -> str:
    """Return the name of a task and its split for figures, such as ``dtd, test``."""
    _, task, split = _parse(text)
    return f"{task.name}, {split or SPLITS[0]}"


def with_split(text: str, split: str) -> str:
    """Return the input that stands for this split of a task, where the text names none; else the text itself."""
    folder, _, own = _parse(text)
    return text if own else f"{PREFIX}{folder}:{split}"


def list_vtab(text: str) -> NamedSet:
    """Return the images of one list with their labels, in its order; no image is read.

    Classes are the numbers ``0`` to K - 1, all of them, also where a list of 1,000 images has none of some. Raises
    InputError where the task or split is not known, where the list or an image that it names is not there, and for a
    line that is not an image and a class.
    """
    folder, task, split = _parse(text)
    path = folder / f"{split or SPLITS[0]}.txt"
    if not path.is_file():
        raise InputError(f"{safe_name(text)}: no file {safe_name(str(path))}; {_need(safe_name(str(folder)), task)}")
    rows = [_row(line, path, folder, task) for line in lines(path)]
    if not rows:
        raise InputError(f"{safe_name(str(path))}: it names no image; {_need(safe_name(str(folder)), task)}")
    there = {parent: _names(parent) for parent in {image.parent for image, _ in rows}}
    missing = [image for image, _ in rows if image.name not in there[image.parent]]
    if missing:
        raise InputError(
            f"{safe_name(str(path))}: {len(missing):,} of its {len(rows):,} images are not there, such as "
            f"{safe_name(str(missing[0]))}; numbers of a part would not be of VTAB-1k; put the whole task there"
        )
    items = [KnownFile(str(image), str(label)) for image, label in rows]
    return NamedSet(items=items, classes=tuple(map(str, range(task.num_classes))))


def _parse(text: str) -> tuple[Path, Task, str | None]:
    """Return the folder of the task, the task, and the split if one is named."""
    rest = os.path.expanduser(text.removeprefix(PREFIX))
    if not rest.strip():
        raise InputError(f"{safe_name(text)}: no folder; {GRAMMAR}")
    found = None if os.path.exists(rest) else re.fullmatch(r"(.+):(\w*)", rest)
    folder, split = (Path(found[1]), found[2]) if found else (Path(rest), None)
    task = BY_NAME.get(folder.name)
    if task is None:
        inside = _tasks(folder)
        there = f"in {safe_name(str(folder))} there are {', '.join(inside)}" if inside else f"of {', '.join(BY_NAME)}"
        raise InputError(f"{safe_name(text)}: {safe_name(folder.name)!r} is no task of VTAB-1k; {GRAMMAR}; {there}")
    if split is not None and split not in SPLITS:
        raise InputError(f"{safe_name(text)}: no split {split!r}; {task.name} has {', '.join(SPLITS)}")
    return folder, task, split


def _tasks(folder: Path) -> tuple[str, ...]:
    names = (task.name for task in TASKS)
    return tuple(name for name in names if any((folder / name / f"{split}.txt").is_file() for split in SPLITS))


def _row(line: str, path: Path, folder: Path, task: Task) -> tuple[Path, int]:
    name, label = line.rsplit(maxsplit=1) if len(line.split(maxsplit=1)) == 2 else ("", "")
    if not re.fullmatch(r"[0-9]{1,9}", label) or int(label) >= task.num_classes:
        raise InputError(
            f"{safe_name(str(path))}: {safe_name(line)!r} is no path and class; {task.name} has classes 0 to "
            f"{task.num_classes - 1}"
        )
    return below(folder, name, path), int(label)


def _names(folder: Path) -> frozenset[str]:
    """Return what lies in a folder; nothing where it is not there."""
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()


def _need(folder: str, task: Task | None = None) -> str:
    """Say what a task's folder must hold."""
    last = "K - 1" if task is None else str(task.num_classes - 1)
    lists = ", ".join(f"{split}.txt" for split in SPLITS)
    return (
        f"{folder} must hold images and the lists {lists}, a line an image: its path from that folder, a blank, its "
        f"class from 0 to {last} (nothing is fetched)"
    )
