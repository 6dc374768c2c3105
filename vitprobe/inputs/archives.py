"""List and read the images inside Parquet files and WebDataset tar shards, without reading them to list them.

Like `images`, this file is shared ground inside `vitprobe.inputs`: `sources` lists archives through it.
"""

import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitprobe.errors import InputError
from vitprobe.inputs.images import MAX_BYTES, SUFFIXES, Decoded, decode, os_reason, safe_name

IMAGE_COLUMNS = ("image", "img")
"""Columns that are taken to hold the image, whatever other columns there are."""
PATH_COLUMNS = ("file_name", "filename", "image_path", "file_path", "filepath", "file", "path")
"""Columns of strings that are taken to hold paths where nothing else can be the image."""
MAX_KEPT_BYTES = 2**28
"""How much of Parquet files a process keeps in memory, so that rows can be read in any order."""


@dataclass(frozen=True, slots=True)
class ParquetItem:
    """Point at one row of a Parquet file."""

    path: str
    """The Parquet file."""
    column: str
    row: int
    """Row in the file, from 0."""
    group: int
    """Row group that holds the row."""
    offset: int
    """Row inside the group, from 0."""

    @property
    def name(self) -> str:
        """Return `file.parquet#row`."""
        return f"{safe_name(self.path)}#{self.row}"

    def read(self) -> Decoded:
        """Return the image; InputError with a short reason where it cannot be read."""
        cell = self._cell()
        if isinstance(cell, dict):
            cell = cell.get("path") if cell.get("bytes") is None else cell["bytes"]
        if cell is None:
            raise InputError("the row holds no image")
        if isinstance(cell, bytes):
            return decode(cell)
        try:
            return decode(Path(self.path).parent / cell)
        except InputError as error:
            raise InputError(f"{error} (the row names {safe_name(cell)!r})") from None

    def _cell(self) -> Any:
        import pyarrow as pa

        try:
            modified = os.stat(self.path).st_mtime_ns
            return _ROW_GROUPS.read(self.path, self.column, self.group, modified)[self.offset].as_py()
        except (OSError, pa.ArrowException, ValueError, IndexError) as error:
            if isinstance(error, OSError) and error.errno:  # Arrow raises OSErrors without a number for damage
                raise InputError(os_reason(error, self.path)) from None
            raise InputError(f"damaged row group: {one_line(error)}") from None


@dataclass(frozen=True, slots=True)
class TarItem:
    """Point at the bytes of one member of a tar file."""

    path: str
    """The tar file."""
    member: str
    offset: int
    """Where the member's bytes begin in the file."""
    size: int
    """How many bytes they are."""

    @property
    def name(self) -> str:
        """Return `shard.tar#member`."""
        return f"{safe_name(self.path)}#{safe_name(self.member)}"

    def read(self) -> Decoded:
        """Return the image; InputError with a short reason where it cannot be read."""
        if self.size > MAX_BYTES:
            raise InputError(f"{self.size:,} bytes; at most {MAX_BYTES:,} are read")
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise InputError(os_reason(error, self.path)) from None
        if len(data) < self.size:
            raise InputError("truncated: the tar file ends inside this member")
        return decode(data)


def list_parquet(path: str) -> list[ParquetItem]:
    """Return one item a row, in order, from the file's footer alone.

    The image is in the column `image` or `img`, else in the only column of structs with a field `bytes`, else in the
    only column of bytes, else in the only column of strings named as in PATH_COLUMNS. Raises InputError with a short
    reason where the file is damaged or the column is not clear.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            column = _image_column(file.schema_arrow)
            lengths = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    except OSError as error:
        raise InputError(os_reason(error, path) if error.errno else f"damaged: {one_line(error)}") from None
    except pa.ArrowException as error:
        raise InputError(f"not a Parquet file that can be read: {one_line(error)}") from None
    items: list[ParquetItem] = []
    for group, length in enumerate(lengths):
        first = len(items)
        items += [ParquetItem(path, column, first + offset, group, offset) for offset in range(length)]
    return items


def _image_column(schema: Any) -> str:
    kinds = {field.name: _column_kind(field.type) for field in schema}
    for name in IMAGE_COLUMNS:
        if kinds.get(name):
            return name
    for wanted in ("struct", "bytes", "path"):
        names = [name for name, kind in kinds.items() if kind == wanted]
        if wanted == "path":
            names = [name for name in names if name.lower() in PATH_COLUMNS]
        if len(names) == 1:
            return names[0]
        if names:
            raise InputError(f"columns {', '.join(names)} may all hold the image; name the right one 'image'")
    listed = ", ".join(f"{field.name} ({field.type})" for field in schema)
    raise InputError(one_line(f"no column of images among {listed}; put the files' bytes in a column 'image'", 400))


def _column_kind(kind: Any) -> str | None:
    """Return how a column could hold images: 'struct', 'bytes', 'path', or None."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return "struct" if index >= 0 and _column_kind(kind.field(index).type) == "bytes" else None
    if types.is_binary(kind) or types.is_large_binary(kind):
        return "bytes"
    return "path" if types.is_string(kind) or types.is_large_string(kind) else None


class _RowGroups:
    """Keep columns of the row groups that were read last, the newest whatever its size, up to a number of bytes."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._kept: dict[tuple[str, str, int, int], Any] = {}

    def read(self, path: str, column: str, group: int, modified: int) -> Any:
        """Return one column of one row group; no threads, which do not survive the fork of a worker process."""
        import pyarrow.parquet as pq

        key = (path, column, group, modified)
        if key in self._kept:
            self._kept[key] = self._kept.pop(key)  # at the end: the one that goes first stands first
            return self._kept[key]
        with pq.ParquetFile(path, pre_buffer=False) as file:
            values = file.read_row_group(group, columns=[column], use_threads=False).column(column)
        self._kept[key] = values
        while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > self._most_bytes:
            del self._kept[next(iter(self._kept))]
        return values


_ROW_GROUPS = _RowGroups(MAX_KEPT_BYTES)


def list_tar(path: str) -> tuple[list[TarItem], str | None]:
    """Return one item a sample of a WebDataset shard, in order, and why the listing stopped early, if it did.

    Neighbouring members whose names agree up to the first dot of the base name are one sample (`000.jpg`, `000.txt`,
    `000.seg.png`); its image is the first member with an image's suffix. Raises InputError with a short reason where
    nothing can be listed.
    """
    items: list[TarItem] = []
    key, has_image = "", False
    stopped = None
    try:
        for member in tar_members(path):
            member_key, ending = sample_key(member.name)
            if member_key != key:
                key, has_image = member_key, False
            if not has_image and is_image(ending):
                items.append(TarItem(path, member.name, member.offset_data, member.size))
                has_image = True
    except OSError as error:
        raise InputError(os_reason(error, path)) from None
    except (tarfile.TarError, ValueError, EOFError) as error:
        stopped = f"damaged after {len(items)} images: {one_line(error)}"
        if not items:
            raise InputError(f"not a tar file that can be read: {one_line(error)}") from None
    return items, stopped


def sample_key(member: str) -> tuple[str, str]:
    """Return the sample that a member belongs to and its ending, without a dot: `a/0.seg.png` -> `a/0`, `seg.png`."""
    folder, _, base = member.rpartition("/")
    stem, _, ending = base.partition(".")
    return f"{folder}/{stem}", ending.lower()


def is_image(ending: str) -> bool:
    """Return whether a member with this ending, as `sample_key` gives it, is an image by its name."""
    return f".{ending.rpartition('.')[2]}" in SUFFIXES


def tar_members(path: str) -> Iterator[tarfile.TarInfo]:
    """Yield the files in a tar file, hidden ones left out, from their headers.

    Raises InputError where it is empty, and what Python raises where it cannot be read or is damaged.
    """
    with open(path, "rb") as raw:
        if raw.seek(0, io.SEEK_END) == 0:
            raise InputError("empty file")
        raw.seek(0)
        with tarfile.open(fileobj=raw, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # tarfile keeps all that it has seen
                # Hidden: .DS_Store, and ._photo.jpg beside each photo in archives made on a Mac.
                if member.isreg() and not os.path.basename(member.name).startswith("."):
                    yield member
            raw.seek(tar.offset)
            if any(raw.read(tarfile.BLOCKSIZE)):  # tarfile takes a header that it cannot read for the end
                raise tarfile.ReadError(f"no readable header at byte {tar.offset:,}")


def one_line(error: Exception | str, limit: int = 160) -> str:
    """Return the text of an error on one line of at most `limit` characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
