"""Results on disk: a directory that is there whole or not at all, and says where every number came from."""

import errno
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from vitprobe import __version__
from vitprobe.errors import ArgumentError, InputError, OutputError

_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
FIGURE = "figure"
"""What ``files`` says of a file that can be drawn again."""
PACKAGES = ("torch", "timm", "open_clip_torch", "numpy")


@dataclass(frozen=True)
class Provenance:
    """Say where a result came from."""

    model: Mapping[str, Any]
    """The `ModelSpec`: library, architecture, weights and their digest, image size, registers."""
    inputs: Mapping[str, Any]
    """``name``, ``num_images``, ``digest`` (sha256 over the images' own) and ``notes`` (what was done to some)."""
    seed: int
    device: str
    dtype: str
    command: tuple[str, ...] = field(default_factory=lambda: ("vitprobe", *sys.argv[1:]))
    versions: Mapping[str, str] = field(default_factory=lambda: versions())
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


@dataclass(frozen=True)
class StoredResult:
    """Hold a result as it is on disk. ``summary`` may be a list where several models were compared."""

    schema: str
    provenance: Mapping[str, Any]
    settings: Mapping[str, Any]
    summary: Any
    arrays: Mapping[str, np.ndarray]
    files: Mapping[str, str] = field(default_factory=dict)


def versions() -> dict[str, str]:
    """Return the versions of vitprobe, Python and the libraries that decide numbers."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"vitprobe": __version__, "python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


@contextmanager
def result_directory(path: Path) -> Iterator[Path]:
    """Give a directory to write into that takes its place at ``path`` only when the block ends well.

    Replaces an older result of that name. Raises `ArgumentError` where ``path`` is something else, or cannot be made.
    """
    check_free(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise ArgumentError(
            f"cannot write to {path.parent} ({error.strerror}); give --out a folder that can be"
        ) from error
    try:
        aside.chmod(0o755)
        yield aside
        _take_place(aside, path)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
            raise OutputError(f"cannot write {path} ({error.strerror}); nothing was left there") from error
        raise


def check_free(path: Path) -> None:
    """Raise `ArgumentError` where a result cannot take its place at ``path`` without destroying something else."""
    if not path.exists():
        return
    resolved = path.resolve()
    if resolved == Path.cwd() or resolved in Path.cwd().parents:
        raise ArgumentError(f"{path} is no result of vitprobe but the folder you are in; give --out a new folder")
    if path.is_dir() and (not any(path.iterdir()) or _is_result(path)):
        return
    raise ArgumentError(f"{path} exists and is no result of vitprobe alone; give --out a new or empty folder")


def _is_result(path: Path) -> bool:
    """Tell whether a folder holds a result, and nothing that vitprobe has not written."""
    try:
        body = json.loads((path / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not isinstance(body, dict) or not str(body.get("schema", "")).startswith("vitprobe."):
        return False
    own = {"result.json", *body.get("files", {})}
    found = [one for one in path.rglob("*") if one.is_file()]
    return all(one.relative_to(path).as_posix() in own or one.suffix in (".png", ".svg", ".pdf") for one in found)


def _take_place(aside: Path, path: Path) -> None:
    if not path.exists():
        os.replace(aside, path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    os.replace(path, old / "result")
    try:
        os.replace(aside, path)
    except OSError:
        os.replace(old / "result", path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def save(directory: Path, result: StoredResult) -> None:
    """Write ``arrays.npz``, and ``result.json`` that lists every file, into a directory given by `result_directory`."""
    if result.arrays:
        np.savez_compressed(directory / "arrays.npz", **result.arrays)
    files = {path.relative_to(directory).as_posix(): "" for path in sorted(directory.rglob("*")) if path.is_file()}
    files = {name: result.files.get(name, _describe(name)) for name in files}
    body = {
        "schema": result.schema,
        "provenance": dict(result.provenance),
        "settings": dict(result.settings),
        "summary": result.summary,
        "files": files,
    }
    (directory / "result.json").write_text(to_json(body) + "\n", encoding="utf-8")


def load(directory: Path) -> StoredResult:
    """Read a result directory back. Raises `InputError` where there is none, or it is not whole."""
    try:
        body = json.loads((directory / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{directory} holds no result of vitprobe ({error}); give a folder with result.json"
        ) from error
    keys = {"schema", "provenance", "settings", "summary", "files"}
    if not isinstance(body, dict) or not keys <= body.keys():
        raise InputError(f"{directory}/result.json is no result of vitprobe; it must hold {', '.join(sorted(keys))}")
    needed = [name for name, what in body["files"].items() if what != FIGURE]
    missing = [name for name in needed if not (directory / name).is_file()]
    if missing:
        raise InputError(f"the result in {directory} is not whole: {missing[0]} is missing; measure again")
    arrays = {}
    if "arrays.npz" in body["files"]:
        try:
            with (directory / "arrays.npz").open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = dict(stored)
        except (BadZipFile, ValueError, OSError, EOFError) as error:
            raise InputError(f"{directory}/arrays.npz is damaged ({error}); measure again") from error
    return StoredResult(body["schema"], body["provenance"], body["settings"], body["summary"], arrays, body["files"])


def provenance_dict(provenance: Provenance) -> dict[str, Any]:
    """Return provenance as JSON can hold it."""
    return asdict(provenance)


def to_json(value: Any) -> str:
    """Write JSON that every reader takes: numbers of numpy as numbers, no NaN or Infinity (null instead)."""
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def _describe(name: str) -> str:
    known = {
        "arrays.npz": "the result's arrays, named as its fields",
        "table.md": "the numbers as a table, published ones beside",
        "tokens.parquet": "one row a token: image, block, kind, row, col, norm, outlier",
    }
    return known.get(Path(name).name, "result" if name.endswith("result.json") else FIGURE)
