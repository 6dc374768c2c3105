"""What happened during a training: one line of JSON a record, and TensorBoard where it is asked for."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from vitprobe.errors import ArgumentError, OutputError
from vitprobe.training.checkpoint import write_text

FILE = "metrics.jsonl"


class Metrics:
    """Append records to ``metrics.jsonl``; after a resume, records past the checkpoint are dropped."""

    def __init__(self, folder: Path, *, start: int, tensorboard: bool) -> None:
        """Open the file with the records up to step ``start`` in it. Raises `OutputError`, `ArgumentError`."""
        self.path = folder / FILE
        kept = [record for record in read(folder) if record["step"] <= start and start > 0]
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file: TextIO = self.path.open("a", encoding="utf-8")
        self._board = writer()(str(folder / "tensorboard"), purge_step=start + 1) if tensorboard else None

    def add(self, step: int, **values: Any) -> None:
        """Write one record; what is not finite becomes null."""
        try:
            self._file.write(json.dumps({"step": step} | _plain(values), allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(f"cannot write {self.path} ({error.strerror}); is the disk full?") from error
        if self._board is not None:
            for name, value in _scalars(values):
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def read(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a run in order; a line that a killed process left unfinished is left out."""
    try:
        lines = (folder / FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            yield record


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.7g}") if abs(value) != float("inf") and value == value else None
    return value


def _scalars(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield prefix + name, value


def writer() -> Any:
    """Return what writes TensorBoard's files, given a folder. Raises `ArgumentError` where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ArgumentError(
            "--tensorboard needs the package tensorboard; install it, or leave the option out"
        ) from error
    return SummaryWriter
