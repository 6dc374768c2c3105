"""Open the tasks of VTAB-1k with their labels, and summarise accuracies by its groups.

The benchmark is that of Zhai et al. (arXiv 1910.04867); how a task must lie on disk is said in `vtab_lists`.
"""

from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any

from vitprobe.errors import ArgumentError
from vitprobe.inputs.labels import Labelled, open_labelled
from vitprobe.inputs.vtab_lists import (
    BY_NAME,
    GROUPS,
    SPLITS,
    TASKS,
    Task,
    is_vtab,
    tasks_in,
    vtab_parts,
    vtab_title,
    with_split,
)

__all__ = (
    "GROUPS",
    "SPLITS",
    "TASKS",
    "Task",
    "is_vtab",
    "open_vtab",
    "scores",
    "tasks_in",
    "vtab_parts",
    "with_split",
)

DEFAULTS = {"train": "train800val200", "test": "test"}
"""The list that is opened where an input names none, by what it is for."""


def open_vtab(text: str, split: str) -> Labelled:
    """Return the images of `vtab:ROOT/TASK[:SPLIT]` with their labels, listed; no image is read.

    SPLIT is of `SPLITS`; where the text names none, `split` says which it is: ``train`` is train800val200, ``test`` is
    test. All lists of a task number its classes alike, ``0`` to K - 1. Raises ArgumentError for another `split`,
    InputError as `list_vtab` does.
    """
    if split not in DEFAULTS:
        raise ArgumentError(f"got split {split!r}; allowed are {', '.join(DEFAULTS)}")
    chosen = with_split(text, DEFAULTS[split])
    return replace(open_labelled([chosen], need="labels"), name=vtab_title(chosen))


def scores(accuracies: Mapping[str, float]) -> dict[str, Any]:
    """Return VTAB's summary of accuracies (0 to 1) by task.

    ``groups`` holds for each of `GROUPS` the ``mean`` over its tasks that were given (None without any), their
    ``num_tasks``, and how many it has, ``of``. ``vtab`` is the benchmark's score, the mean over the 19 tasks (Zhai et
    al., arXiv 1910.04867): it weighs a group by its number of tasks. ``mean_of_groups`` weighs the three groups alike,
    as much work on parameter-efficient tuning does: another number, not to be set beside the first. Both are None
    unless all tasks were given; ``absent`` then says in one line what is missing. Raises ArgumentError for a task that
    is not in `TASKS`, or an accuracy that is not from 0 to 1.
    """
    for name, value in accuracies.items():
        if name not in BY_NAME:
            raise ArgumentError(f"got an accuracy of {name!r}; tasks of VTAB-1k are {', '.join(BY_NAME)}")
        if not 0 <= value <= 1:
            raise ArgumentError(f"got accuracy {value:g} of {name}; it is a share, from 0 to 1")
    groups: dict[str, dict[str, Any]] = {}
    for group in GROUPS:
        names = [task.name for task in TASKS if task.group == group]
        given = [float(accuracies[name]) for name in names if name in accuracies]
        groups[group] = {"mean": fmean(given) if given else None, "num_tasks": len(given), "of": len(names)}
    missing = [task.name for task in TASKS if task.name not in accuracies]
    found: dict[str, Any] = {
        "tasks": {task.name: float(accuracies[task.name]) for task in TASKS if task.name in accuracies},
        "groups": groups,
        "vtab": None if missing else fmean(float(accuracies[task.name]) for task in TASKS),
        "mean_of_groups": None if missing else fmean(group["mean"] for group in groups.values()),
    }
    if missing:
        found["absent"] = f"VTAB's score is the mean of {len(TASKS)} tasks; missing: {', '.join(missing)}"
    return found
