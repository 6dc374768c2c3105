"""Read what archives say of their images: a column of a Parquet file, the members beside an image in a tar shard.

Like `images`, this file is shared ground inside `vitprobe.inputs`.
"""

import json
import tarfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vitprobe.errors import InputError
from vitprobe.inputs.archives import is_image, one_line, sample_key, tar_members
from vitprobe.inputs.images import os_reason, safe_name

LABEL_NAMES = ("label", "labels", "class", "cls", "fine_label")
"""Columns, and keys of a `.json` member, that are taken to hold the label where none is named."""
CAPTION_NAMES = ("caption", "captions", "text", "texts", "sentence", "sentences", "alt_text")
"""The same for captions; the case of the letters does not matter."""
LABEL_MEMBERS = ("cls", "cls.txt")
"""Endings of the members of a WebDataset sample that hold the label; they win over `.json`."""
CAPTION_MEMBERS = ("txt", "caption")
"""The same for the caption."""
MAX_TEXT_BYTES = 2**20
"""Bytes of the largest member beside an image that is read."""

Label = int | str


def parquet_labels(path: str, name: str | None) -> tuple[list[Label | None], tuple[str, ...]]:
    """Return the label of each row, None where there is none, and the names of all classes if the file holds them.

    The column is `name`, else the only one named as in LABEL_NAMES; whole numbers or strings. Where the schema says
    which names the numbers stand for (a `ClassLabel` of Hugging Face's `datasets`), labels are those names, and -1 is
    no label. Raises InputError where there is no such column, where two could be meant, or where it holds other things.
    """
    values, column, schema = _column(path, name, LABEL_NAMES, _is_label, "labels")
    names = _class_names(schema, column)
    if not names or not any(isinstance(value, int) for value in values):
        return [_label(value) for value in values], ()
    low, high = min(v for v in values if v is not None), max(v for v in values if v is not None)
    if low < -1 or high >= len(names):
        raise InputError(
            f"{safe_name(path)}: column {column!r} holds {low if low < -1 else high}, "
            f"but its schema names {len(names)} classes"
        )
    return [None if value is None or value < 0 else names[value] for value in values], names


def parquet_captions(path: str, name: str | None) -> list[str | None]:
    """Return the caption of each row, None where there is none; of a list of captions, the first.

    The column is `name`, else the only one named as in CAPTION_NAMES. Raises InputError as `parquet_labels` does.
    """
    values, _, _ = _column(path, name, CAPTION_NAMES, _is_caption, "captions")
    return [_caption(value) for value in values]


def tar_labels(path: str, name: str | None) -> dict[int, Label | None]:
    """Return the labels in a WebDataset shard, by where the bytes of the image begin.

    With `name`, a label is in the member with that ending or under that key of the `.json` member, else in the members
    LABEL_MEMBERS or under the keys LABEL_NAMES. Raises InputError where the file cannot be opened.
    """
    return _tar_values(path, (name,) if name else LABEL_MEMBERS, (name,) if name else LABEL_NAMES, _written_label)


def tar_captions(path: str, name: str | None) -> dict[int, str | None]:
    """Return the captions in a WebDataset shard, by where the bytes of the image begin; see `tar_labels`."""
    return _tar_values(path, (name,) if name else CAPTION_MEMBERS, (name,) if name else CAPTION_NAMES, _caption)


def _column(
    path: str, name: str | None, usual: Iterable[str], suits: Callable[[Any], bool], what: str
) -> tuple[list[Any], str, Any]:
    """Return the values of the column that is meant, its name and the schema; it is read once, as a whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    shown = safe_name(path)
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            schema = file.schema_arrow
            listed = one_line(", ".join(f"{field.name} ({field.type})" for field in schema), 300)
            if name is None:
                found = [field.name for field in schema if field.name.lower() in usual and suits(field.type)]
            else:
                found = [name] if name in schema.names else []
            if not found:
                sought = ", ".join(usual) if name is None else name
                raise InputError(f"{shown}: no column of {what} among {listed}; looked for {sought}; say which it is")
            if len(found) > 1:
                raise InputError(f"{shown}: columns {' and '.join(found)} may both hold the {what}; say which it is")
            if not suits(schema.field(found[0]).type):
                raise InputError(f"{shown}: column {name!r} cannot hold {what} ({listed}); say which does")
            table = file.read(columns=found, use_threads=False)  # threads do not survive the fork of a worker
            return table.column(found[0]).to_pylist(), found[0], schema
    except OSError as error:
        reason = os_reason(error, path) if error.errno else f"damaged: {one_line(error)}"
        raise InputError(f"{shown}: {reason}") from None
    except pa.ArrowException as error:
        raise InputError(f"{shown}: its column of {what} cannot be read: {one_line(error)}") from None


def _is_label(kind: Any) -> bool:
    from pyarrow import types

    return types.is_integer(kind) or types.is_boolean(kind) or _is_text(kind)


def _is_caption(kind: Any) -> bool:
    from pyarrow import types

    return _is_text(kind.value_type if types.is_list(kind) or types.is_large_list(kind) else kind)


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind)


def _class_names(schema: Any, column: str) -> tuple[str, ...]:
    """Return what the metadata of Hugging Face's `datasets` call the classes of a column; empty where they do not."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        names = feature["names"] if feature["_type"] == "ClassLabel" else []
    except (KeyError, TypeError, ValueError):  # no such metadata, or of another make
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def _tar_values(
    path: str, endings: Iterable[str], keys: Iterable[str], read: Callable[[Any], Any]
) -> dict[int, Any | None]:
    endings = [ending.lower() for ending in endings]
    return {start: _value(texts, endings, keys, read) for start, texts in _tar_texts(path, {*endings, "json"}).items()}


def _value(texts: Mapping[str, bytes], endings: Iterable[str], keys: Iterable[str], read: Callable[[Any], Any]) -> Any:
    for ending in endings:
        if ending in texts and ending != "json":
            return read(texts[ending].decode("utf-8", "replace"))
    try:
        told = json.loads(texts.get("json", b"{}"))
    except ValueError:
        return None
    told = {key.lower(): value for key, value in told.items()} if isinstance(told, dict) else {}
    return next((read(told[key.lower()]) for key in keys if key.lower() in told), None)


def _tar_texts(path: str, endings: set[str]) -> dict[int, dict[str, bytes]]:
    """Return the members beside each image by ending; samples are told apart as `list_tar` does, up to any damage."""
    found: dict[int, dict[str, bytes]] = {}
    key, texts, has_image = "", {}, False
    try:
        with open(path, "rb") as file:
            for member in tar_members(path):
                member_key, ending = sample_key(member.name)
                if member_key != key:
                    key, texts, has_image = member_key, {}, False
                if is_image(ending) and not has_image:
                    found[member.offset_data] = texts  # filled below, by members before and after the image
                    has_image = True
                elif ending in endings and member.size <= MAX_TEXT_BYTES:
                    file.seek(member.offset_data)
                    texts[ending] = file.read(member.size)
    except OSError as error:
        raise InputError(f"{safe_name(path)}: {os_reason(error, path)}") from None
    except (tarfile.TarError, ValueError, EOFError):  # the listing has said so
        pass
    return found


def _label(value: Any) -> Label | None:
    """Return a label as it stands, without blanks around it; None where there is none to be had."""
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, bool):
        return str(value)
    return value if isinstance(value, int) else None


def _written_label(value: Any) -> Label | None:
    """Return a label that may be a number written out."""
    label = _label(value)
    return int(label) if isinstance(label, str) and label.isdecimal() else label


def _caption(value: Any) -> str | None:
    if isinstance(value, list):
        value = next((one for one in value if isinstance(one, str) and one.strip()), None)
    return " ".join(value.split()) or None if isinstance(value, str) else None
