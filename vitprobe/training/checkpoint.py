"""Checkpoints: a folder that is there whole or not at all, and that timm opens without vitprobe."""

import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from vitprobe.errors import InputError, OutputError, VitprobeError, WeightsError
from vitprobe.results import to_json

LAST, WRITING, PREVIOUS = "last", ".writing", ".previous"
STATE, ABOUT = "training.pt", "checkpoint.json"
SCHEMA = "vitprobe.checkpoint/1"


@dataclass(frozen=True)
class Saved:
    """Hold what a run goes on from."""

    step: int
    objective: dict[str, torch.Tensor]
    optimizer: dict[str, Any]


def recover(folder: Path) -> None:
    """Bring back the last checkpoint where a process ended between the two moves that replace it."""
    last, previous = folder / LAST, folder / PREVIOUS
    if not last.exists() and previous.exists():
        os.replace(previous, last)
    for left in (previous, folder / WRITING):
        if left.exists():
            shutil.rmtree(left)


@contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """Give a folder to write a checkpoint into; when the block ends well, it is the new ``last``.

    At every moment ``last``, or a folder that `recover` brings back as ``last``, is whole. Raises `OutputError` where
    the disk is full or cannot be written to; the checkpoint before is intact then.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        recover(folder)
        aside = folder / WRITING
        aside.mkdir()
        yield aside
        for path in aside.iterdir():
            _sync(path)
        last, previous = folder / LAST, folder / PREVIOUS
        if last.exists():
            os.replace(last, previous)
        os.replace(aside, last)
        _sync(folder)
        shutil.rmtree(previous, ignore_errors=True)
    except (OSError, RuntimeError, OutputError) as error:  # torch says RuntimeError of a full disk
        shutil.rmtree(folder / WRITING, ignore_errors=True)
        cause = error.__cause__ or error
        reason = getattr(cause, "strerror", None) or " ".join(str(cause).split())[:160]
        raise OutputError(f"cannot write a checkpoint to {folder} ({reason}); {intact(folder)}") from error
    except VitprobeError:
        shutil.rmtree(folder / WRITING, ignore_errors=True)
        raise


def intact(folder: Path) -> str:
    """Say where the last whole checkpoint is."""
    step = step_of(folder)
    if step is None:
        return "there is no checkpoint yet"
    return f"the last checkpoint, of step {step}, is whole in {folder / LAST}"


def write_state(folder: Path, *, step: int, objective: dict[str, Any], optimizer: dict[str, Any], about: Any) -> None:
    """Write what a run goes on from beside the model."""
    buffer = io.BytesIO()
    torch.save({"step": step, "objective": objective, "optimizer": optimizer}, buffer)
    (folder / STATE).write_bytes(buffer.getbuffer())
    (folder / ABOUT).write_text(to_json({"schema": SCHEMA, "step": step, **about}) + "\n", encoding="utf-8")


def keep(folder: Path, step: int) -> None:
    """Keep the last checkpoint as ``step-<n>``: the model without the training state, linked rather than copied."""
    aside, kept = folder / WRITING, folder / f"step-{step}"
    if kept.exists():
        return
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for path in (folder / LAST).iterdir():
        if path.name != STATE:
            _link(path, aside / path.name)
    os.replace(aside, kept)


def step_of(folder: Path) -> int | None:
    """Return the step of the last whole checkpoint; None where there is none."""
    try:
        return int(json.loads((folder / LAST / ABOUT).read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read(folder: Path) -> Saved | None:
    """Read the last whole checkpoint; None where there is none. Nothing in it is run as code.

    Raises `WeightsError` where it is damaged.
    """
    path = folder / LAST / STATE
    if not path.exists():
        return None
    try:
        body = torch.load(path, map_location="cpu", weights_only=True)
        return Saved(int(body["step"]), body["objective"], body["optimizer"])
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, EOFError, UnpicklingError) as e:
        reason = " ".join(str(e).split())[:160]
        raise WeightsError(f"{path} cannot be read ({reason}); remove {folder} to train this variant again") from e


def read_run(directory: Path, command: str = "train-registers") -> dict[str, Any]:
    """Read what a run of a command began with: ``options``, and a digest of its ``images``.

    Raises `InputError` where it is none, or of another command.
    """
    path = directory / "run.json"
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body.get("schema", options_schema(command)) != options_schema(command):
            raise ValueError(f"it is {body['schema']}")
        return {"images": body.get("images"), "options": dict(body["options"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{directory} holds no run of {command} ({error}); give the folder of --out") from error


def options_schema(command: str) -> str:
    """Return the schema of a command's ``run.json``."""
    return f"vitprobe.{command}.options/1"


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all. Raises `OutputError` where it cannot be written."""
    aside = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        raise OutputError(f"cannot write {path} ({error.strerror}); give --out a folder that can be") from error


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
