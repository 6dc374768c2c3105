"""The result of ``vitprobe train-registers``: the comparison of its variants, on disk beside their checkpoints."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitprobe import results
from vitprobe.errors import InputError, OutputError
from vitprobe.probes.comparison import VariantResult, from_arrays, to_arrays, to_rows

SCHEMA = "vitprobe.train-registers/1"
ASIDE = ".comparison"
"""The folder in which a comparison is put together."""
RESULT = "result.json"


def write_comparison(
    directory: Path,
    found: Sequence[VariantResult],
    provenance: Mapping[str, Any],
    settings: Mapping[str, Any],
    summary: Mapping[str, Any],
    formats: tuple[str, ...],
) -> dict[str, Any]:
    """Write figures, arrays and ``result.json`` into the folder of a training; see `write_beside`.

    Returns the summary as it was stored: ``summary`` with the rows of `to_rows` as ``variants``. Raises `OutputError`
    where the folder cannot be written to.
    """
    whole = {**summary, "variants": to_rows(found)}
    stored = results.StoredResult(SCHEMA, provenance, settings, whole, to_arrays(found))
    write_beside(directory, stored, lambda aside: draw(found, aside, formats))
    return whole


def write_beside(directory: Path, stored: results.StoredResult, write: Callable[[Path], object]) -> None:
    """Put a result into the folder of a training, which holds its variants' folders too.

    Everything is written aside, other files by ``write``; only then an older result goes and each file is moved to its
    place, ``result.json`` last: where it is, all it speaks of is whole. Raises `OutputError` where the folder cannot be
    written to.
    """
    older = _older(directory, stored.schema)
    with _aside(directory) as aside:
        write(aside)
        results.save(aside, stored)
        names = sorted({path.name for path in aside.iterdir()} - {RESULT})
        for name in (RESULT, *older):
            (directory / name).unlink(missing_ok=True)
        for name in (*names, RESULT):
            os.replace(aside / name, directory / name)


@contextmanager
def _aside(directory: Path) -> Iterator[Path]:
    aside = directory / ASIDE
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        yield aside
    except OSError as error:
        raise OutputError(
            f"cannot write the comparison into {directory} ({error.strerror or error}); the checkpoints are whole: "
            f"make room and run again with --resume {directory}"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _older(directory: Path, schema: str) -> list[str]:
    """Name the files of an older result that are there."""
    try:
        stored = results.load(directory)
    except InputError:
        return []
    return [name for name in stored.files if stored.schema == schema and Path(name).name == name]


def draw(found: Sequence[VariantResult], folder: Path, formats: tuple[str, ...]) -> list[Path]:
    """Draw every figure of a comparison into a folder; returns their paths."""
    if not formats:
        return []
    from vitprobe.plots import write
    from vitprobe.plots.training import figures

    drawn = figures(found).items()
    return [path for name, figure in drawn for path in write(figure(found), folder / name, formats)]


def read_back(stored: results.StoredResult) -> list[VariantResult]:
    """Return what was compared from what is stored of it. Raises `InputError` where it is not whole."""
    rows = stored.summary.get("variants") if isinstance(stored.summary, Mapping) else None
    if not rows:
        raise InputError(f"the stored comparison ({stored.schema}) names no variants; train again, or resume")
    return from_arrays(rows, stored.arrays)
