"""The folder of a training: a new one with the options in it, or the one that a resumed run goes on in."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from vitprobe import results
from vitprobe.cli.session import slug
from vitprobe.errors import ArgumentError
from vitprobe.training import checkpoint


def new_folder(command: str, model: str, out: Path | None, options: Mapping[str, Any], images: str) -> Path:
    """Make the folder of a run, with ``run.json`` in it: the options, and a digest of the images' names.

    Raises `ArgumentError` where something else is there.
    """
    directory = out or Path("runs") / command / f"{slug(model)[:80]}-{datetime.now():%Y%m%d-%H%M%S}"
    refuse_used(directory)
    body = {
        "schema": checkpoint.options_schema(command),
        "options": options,
        "images": images,
        "versions": results.versions(),
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    checkpoint.write_text(directory / "run.json", results.to_json(body) + "\n")
    return directory


def same_images(command: str, resume: Path, images: str) -> Path:
    """Return the folder of a resumed run. Raises `ArgumentError` where it finds other images than it began with."""
    if checkpoint.read_run(resume, command).get("images") != images:
        raise ArgumentError(f"the images of the run in {resume} have changed since it began; start another run")
    return resume


def refuse_used(directory: Path | None) -> None:
    """Raise `ArgumentError` for a folder that something lies in."""
    if directory is not None and directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        hint = f"--resume {directory}" if (directory / "run.json").exists() else "--out a new or empty folder"
        raise ArgumentError(f"{directory} exists and is not empty; give {hint}")


def stored_options(
    command: str, asked: Mapping[str, Any], resume: Path, out: Path | None, *, flags: tuple[str, ...]
) -> dict[str, Any]:
    """Return the options of the run in a folder. Raises `ArgumentError` where others are given beside ``--resume``.

    ``flags``: options that are on unless they are turned off.
    """
    given = [name for name, value in asked.items() if value not in (None, []) and not (name in flags and value is True)]
    if given or out is not None:
        first = (given or ["out"])[0]
        extra = f"--{'no-' if first in flags else ''}{first.replace('_', '-')}"
        raise ArgumentError(f"got {extra} with --resume, which goes on with the options stored in {resume}")
    return checkpoint.read_run(resume, command)["options"]
