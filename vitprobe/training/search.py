"""Judge finished trainings by the criterion of emergence, as a search over recipes needs it."""

import json
from pathlib import Path
from typing import Any

from vitprobe.backbones import load
from vitprobe.errors import ArgumentError
from vitprobe.inputs.scenes import NAMED
from vitprobe.probes.emergence import judge_all, nearest, read_scenes, removed

NUM_SCENES = 2000
"""Held-out scenes that a model is judged by."""


def judge_run(folder: Path, *, num: int = NUM_SCENES) -> list[dict[str, Any]]:
    """Judge every variant of a finished ``train-registers``; returns a row each, as JSON can hold it.

    A row has ``num_registers``, held-out ``measures``, the ``verdict`` of ``norms`` with its line for each block
    (``norms``) and, where it was trained on scenes, ``blocks``: the criterion at every block on ``num`` held-out scenes
    of the same kind, with the ``answers`` of the block that meets most of it. Where that is all of it, a variant with
    registers has ``removed``: what they did to that block of the control. Nothing is known of what pictures show, so of
    models trained on them the criterion says nothing. Raises `ArgumentError` for a folder without a result.
    """
    options, result = (_read(folder / name) for name in ("run.json", "result.json"))
    options = options["options"]
    rows, data, control = [], options["data"][0], None
    for found in result["summary"]["variants"]:
        row = {key: found[key] for key in ("num_registers", "measures", "verdict")}
        row |= {"norms": [_brief(line) for line in found["norms"]["blocks"]], "steps": options["steps"]}
        row |= {key: result["provenance"][key] for key in ("device", "dtype", "versions")}
        if data in NAMED:
            reading = read_scenes(load(str(folder / found["name"] / "last")), config=NAMED[data], num=num)
            blocks = judge_all(reading)
            best, accuracy = nearest(blocks), found["measures"].get("accuracy")
            row |= {"blocks": [one.as_dict() for one in blocks], "answers": best.answers}
            row["register_received"] = reading.register_received.round(4).tolist()
            if not found["num_registers"]:
                control = {"block": best.block, "control_accuracy": accuracy} if best.emerged else None
            elif control is not None:
                row["removed"] = removed(reading, accuracy=accuracy, **control)
        rows.append(row)
    return rows


def judge_kept(folder: Path, variant: str = "reg0", *, num: int = 500) -> list[tuple[int, list[dict[str, Any]]]]:
    """Judge the checkpoints that ``--keep`` left of one variant trained on scenes: (step, its blocks), in order.

    Raises `ArgumentError` where there are none, or the run is not on scenes.
    """
    found = {int(path.name.partition("-")[2]): path for path in (folder / variant).glob("step-*")}
    data = _read(folder / "run.json")["options"]["data"][0] if found else ""
    if data not in NAMED:
        raise ArgumentError(f"{folder / variant} holds no checkpoints of a training on scenes; train with --keep")
    readings = ((step, read_scenes(load(str(found[step])), config=NAMED[data], num=num)) for step in sorted(found))
    return [(step, [one.as_dict() for one in judge_all(reading)]) for step, reading in readings]


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{path.parent} holds no finished training ({error}); give its --out folder") from error


def _brief(line: dict[str, Any]) -> dict[str, Any]:
    return {key: line[key] for key in ("block", "norm", "outlier_fraction", "verdict") if key in line}
