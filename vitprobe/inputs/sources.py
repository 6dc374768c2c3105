"""Say what the INPUT arguments of a command mean: files, folders, globs, lists of paths, Parquet files, tar shards."""

import fnmatch
import glob
import os
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from vitprobe.errors import ArgumentError, InputError
from vitprobe.inputs.archives import list_parquet, list_tar
from vitprobe.inputs.images import SUFFIXES, Decoded, Item, decode, os_reason, safe_name, why_not_readable

READABLE = "image files, folders, globs, Parquet files, tar shards or - (paths on stdin)"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".zip", ".7z", ".rar")
MAX_BRACES = 100_000
"""How many paths one argument with braces may stand for."""


@dataclass(frozen=True, slots=True)
class FileItem:
    """Point at one image file."""

    path: str

    @property
    def name(self) -> str:
        """Return the path, printable."""
        return safe_name(self.path)

    def read(self) -> Decoded:
        """Return the image; InputError with a short reason where it cannot be read."""
        return decode(Path(self.path))


@dataclass(frozen=True)
class Source:
    """Hold what was asked for: images that are there to be read, and what could not even be listed."""

    name: str
    """Short, printable, for titles."""
    items: Sequence[Item]
    """In the order of the arguments; in a folder, by path."""
    skipped: tuple[tuple[str, str], ...] = ()
    """(name, reason) of what was found unreadable while listing."""

    def __len__(self) -> int:
        """Return the number of images listed."""
        return len(self.items)


def open_inputs(
    inputs: Sequence[str],
    *,
    limit: int | None = None,
    seed: int = 0,
    stdin: TextIO | None = None,
    extra: Mapping[str, Callable[[], Sequence[Item]]] = {},
) -> Source:
    """Return the images that `inputs` stand for, listed and not read; each file is taken once.

    An input is a name in `extra` (it wins over a folder of that name), `-` (paths on `stdin`, one a line, or ended by
    NUL), a file, a folder (searched for images, Parquet files and tar shards, in order of path, hidden ones left out),
    or a pattern with braces, `*` or `**` that the shell did not expand. `limit` keeps a random subset of at most that
    many, drawn by `seed`, in the original order. Raises ArgumentError for a limit below 1, InputError where no image is
    found; what is missing among inputs that exist is named in `skipped`.
    """
    if limit is not None and limit < 1:
        raise ArgumentError(f"limit of {limit} images; give 1 or more")
    if not inputs:
        raise InputError(f"no input; give {_readable(extra)}")
    listing = _Listing(stdin=sys.stdin if stdin is None else stdin, extra=extra)
    for text in dict.fromkeys(inputs):
        listing.guarded(listing.add_input, text)
    items: Sequence[Item] = listing.items
    if not items:
        raise InputError(f"no image to read{_named(listing.skipped)}; give {_readable(extra)}")
    if limit is not None and limit < len(items):
        items = [items[i] for i in sorted(random.Random(seed).sample(range(len(items)), limit))]
    return Source(name=_title(inputs), items=items, skipped=tuple(listing.skipped))


@dataclass
class _Listing:
    """Collect items while the inputs are gone through."""

    stdin: TextIO | None
    extra: Mapping[str, Callable[[], Sequence[Item]]]
    items: list[Item] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    """Paths of the files taken, with the links among their folders resolved."""
    real_folders: dict[str, str] = field(default_factory=dict)
    """Folder as named -> the folder itself."""

    def guarded(self, add: Callable[[str], None], text: str) -> None:
        """Run `add`; what it refuses goes to `skipped`."""
        try:
            add(text)
        except InputError as error:
            self.skipped.append((safe_name(text) or "''", str(error)))

    def add_input(self, text: str) -> None:
        if text in self.extra:
            self.items.extend(self.extra[text]())
        elif text == "-":
            for line in _lines(self.stdin):
                self.guarded(self.add_path, line)
        elif os.path.lexists(text):
            self.add_path(text)
        else:
            for path in _braces(text):
                if glob.has_magic(path) and not os.path.lexists(path):
                    self.add_matches(path)
                else:
                    self.guarded(self.add_path, path)

    def add_matches(self, pattern: str) -> None:
        found = _matches(pattern, self.skipped)
        if not found:
            self.skipped.append((safe_name(pattern), "matches no file"))
        for path in found:
            self.guarded(self.add_path, path)

    def add_path(self, path: str) -> None:
        if os.path.isdir(path):
            self.add_folder(path)
            return
        reason = why_not_readable(path)
        if reason is not None:
            raise InputError(reason)
        self.add_file(path)

    def add_folder(self, folder: str) -> None:
        num_skipped = len(self.skipped)
        names = [path for path in _walk(folder, self.skipped) if _is_known(path)]
        for path in sorted(names):
            self.guarded(self.add_path, path)
        if not names and len(self.skipped) == num_skipped:
            raise InputError("no image, Parquet file or tar shard in this folder or below it")

    def add_file(self, path: str) -> None:
        folder, name = os.path.split(path)
        if folder not in self.real_folders:
            self.real_folders[folder] = os.path.realpath(folder)
        key = os.path.join(self.real_folders[folder], name)
        if key in self.seen:
            return
        self.seen.add(key)
        lower = path.lower()
        if lower.endswith(COMPRESSED):
            raise InputError("a compressed archive; unpack it first, to a folder or a plain .tar")
        if lower.endswith(".parquet"):
            self.items.extend(list_parquet(path))
        elif lower.endswith(".tar"):
            items, stopped = list_tar(path)
            self.items.extend(items)
            if stopped is not None:
                raise InputError(stopped)
            if not items:
                raise InputError("no image in this tar file")
        else:
            self.items.append(FileItem(path))


def _is_known(path: str) -> bool:
    name = os.path.basename(path).lower()
    if name == "metadata.parquet":  # describes the images of a folder in the layout of the Hugging Face hub
        return False
    suffix = os.path.splitext(name)[1]
    return suffix in SUFFIXES or suffix in (".parquet", ".tar")


def _walk(folder: str, skipped: list[tuple[str, str]]) -> Iterator[str]:
    """Yield every entry below `folder` that is not hidden and not a folder; each real folder is gone through once."""
    waiting, visited = [folder], set()
    while waiting:
        here = waiting.pop()
        try:
            status = os.stat(here)
            if (status.st_dev, status.st_ino) in visited:  # reached again through a link
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(here) as entries:
                listed = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            skipped.append((safe_name(here), os_reason(error, here)))
            continue
        for entry in listed:
            if not _is_folder(entry):
                yield os.path.join(here, entry.name)
        # Links last, so that a folder is named by its own path where it has one.
        folders = sorted((e for e in listed if _is_folder(e)), key=lambda e: (e.is_symlink(), e.name), reverse=True)
        waiting.extend(os.path.join(here, entry.name) for entry in folders)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _matches(pattern: str, skipped: list[tuple[str, str]]) -> list[str]:
    """Return what a glob stands for, sorted: folders and known suffixes, or everything where there are none."""
    parts = pattern.split("/")
    if "**" in parts:
        at = parts.index("**")
        roots = [root for root in glob.glob("/".join(parts[:at]) or "/") if os.path.isdir(root)] if at else ["."]
        found = []
        for root in roots:
            start = "" if root == "." and at == 0 else root.rstrip("/") + "/"
            below = (path[len(root.rstrip("/")) + 1 :] for path in _walk(root, skipped))
            found += [start + path for path in below if _fits(path.split("/"), parts[at:])]
    else:
        found = glob.glob(pattern)
    known = [path for path in found if _is_known(path) or os.path.isdir(path)]
    return sorted(known or found)


def _fits(path: list[str], pattern: list[str]) -> bool:
    """Return whether the parts of a path, or of a folder that it lies in, fit the parts of a glob with `**`."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return any(_fits(path[start:], pattern[1:]) for start in range(len(path)))
    return bool(path) and fnmatch.fnmatchcase(path[0], pattern[0]) and _fits(path[1:], pattern[1:])


def _braces(text: str) -> list[str]:
    """Return the paths that `{a,b}` and `{000..009}` stand for, as the shell and WebDataset expand them."""
    found = re.search(r"\{(\d+\.\.\d+|[^{}]*,[^{}]*)\}", text)
    if found is None:
        return [text]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if span is None:
        words = found[1].split(",")
    else:
        first, last = int(span[1]), int(span[2])
        if abs(last - first) >= MAX_BRACES:
            raise InputError(f"braces for {abs(last - first) + 1:,} paths; at most {MAX_BRACES:,}")
        width = len(span[1]) if span[1].startswith("0") else 0
        step = 1 if last >= first else -1
        words = [f"{number:0{width}d}" for number in range(first, last + step, step)]
    head, tail = text[: found.start()], _braces(text[found.end() :])
    if len(words) * len(tail) > MAX_BRACES:
        raise InputError(f"braces for {len(words) * len(tail):,} paths; at most {MAX_BRACES:,}")
    return [head + word + rest for word in words for rest in tail]


def _lines(stdin: TextIO | None) -> list[str]:
    """Return the paths listed on `stdin`, undecodable bytes kept; NUL ends a path where there is one."""
    if stdin is None:
        raise InputError("there is no stdin to read a list from")
    binary = getattr(stdin, "buffer", None)
    text = stdin.read() if binary is None else os.fsdecode(binary.read())
    lines = text.split("\0") if "\0" in text else [line.removesuffix("\r") for line in text.split("\n")]
    return [line for line in lines if line]


def _named(skipped: Sequence[tuple[str, str]]) -> str:
    named = "; ".join(f"{name}: {reason}" for name, reason in skipped[:3])
    more = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    return f": {named}{more}" if named else ""


def _readable(extra: Mapping[str, object]) -> str:
    return READABLE + (f", or a name: {', '.join(sorted(extra))}" if extra else "")


def _title(inputs: Sequence[str]) -> str:
    first = "stdin" if inputs[0] == "-" else os.path.basename(os.path.abspath(inputs[0])) or inputs[0]
    more = len(dict.fromkeys(inputs)) - 1
    return safe_name(first) + (f" and {more} more" if more else "")
