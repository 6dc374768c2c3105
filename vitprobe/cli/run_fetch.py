"""The body of ``vitprobe fetch``: each alias by itself, into the client's cache or into a folder of its own."""

import difflib
import json
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from vitprobe.backbones import hub
from vitprobe.backbones.zoo import ALIASES, ORGANISMS, REFERENCES, SHIPPED, ZooEntry
from vitprobe.errors import ArgumentError, ExitCode, OutputError, Stopped, VitprobeError, WeightsError

RECORD = "source.json"


def run(aliases: Sequence[str], to: Path | None) -> int:
    """Fetch each alias, whatever becomes of the others; returns the exit code."""
    names, failed = list(dict.fromkeys(aliases)), 0
    for alias in names:
        try:
            typer.echo(f"{alias}: {_fetch(alias, to)}")
        except VitprobeError as error:
            typer.echo(f"vitprobe: {alias}: {error}", err=True)
            failed += 1
        except (KeyboardInterrupt, SystemExit) as interrupt:
            number = signal.SIGTERM if isinstance(interrupt, SystemExit) else signal.SIGINT
            raise Stopped(f"{alias}: interrupted; what came is kept, fetch again to go on", number) from interrupt
    if not failed:
        return ExitCode.DONE
    return ExitCode.NOTHING if failed == len(names) else ExitCode.PARTIAL


def _fetch(alias: str, to: Path | None) -> str:
    if alias in ORGANISMS:
        return "planted from a seed, nothing to fetch"
    if alias in SHIPPED:
        return "comes with vitprobe, nothing to fetch"
    if alias in REFERENCES:
        return "has random weights or those of a file, nothing to fetch"
    if alias not in ALIASES:
        near = " or ".join(difflib.get_close_matches(alias, ALIASES, n=3, cutoff=0.5))
        hint = f"; did you mean {near}?" if near else ""
        raise ArgumentError(f"is no alias; 'vitprobe models' lists what is allowed{hint}")
    entry = ALIASES[alias]
    path, is_new = fetch_to_cache(*hub.hub_location(entry)) if to is None else fetch_to_folder(entry, to / entry.alias)
    done = f"{'fetched' if is_new else 'is here already, whole'}: {path} ({path.stat().st_size / 1e6:.1f} MB)"
    return done if to is None else f"{done}; use it with --model {entry.alias} --weights {path}"


def fetch_to_cache(repo: str, filenames: Sequence[str]) -> tuple[Path, bool]:
    """Return a whole file in the client's cache, and whether it was fetched; a damaged one is fetched again.

    The bytes are laid down under the name that the client gives them (``blobs/ETAG``); it then adds its own links.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    if cached := _whole_in_cache(repo, filenames):
        return cached, False
    remote = hub.ask(repo, filenames)
    if damaged := hub.cached_file(repo, [remote.filename]):
        hub.forget(damaged)
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    hub.download(remote, folder / "blobs" / remote.etag)
    return hub.fetch_by_client(repo, remote.filename), True


def _whole_in_cache(repo: str, filenames: Sequence[str]) -> Path | None:
    cached = hub.cached_file(repo, filenames)
    return cached if cached and not hub.fault(cached, sha256=hub.stated_sha256(cached)) else None


def fetch_to_folder(entry: ZooEntry, folder: Path) -> tuple[Path, bool]:
    """Return a whole file in ``folder`` and whether it is new there: copied out of the cache, or fetched past it.

    Fetched past the cache, it takes its room once. Its ``source.json`` is written last: a file without one is measured
    against the hub's before it is taken, and never overwritten where it differs.
    """
    repo, filenames = hub.hub_location(entry)
    record = _read_record(folder)
    name = record.get("file")
    if name in filenames and (folder / name).is_file():
        stated = {"size": record.get("size"), "sha256": record.get("sha256")}
        if record.get("alias") == entry.alias and all(stated.values()) and not hub.fault(folder / name, **stated):
            return folder / name, False
    try:
        remote = _copy_from_cache(repo, filenames, folder) or hub.ask(repo, filenames)
        target = folder / remote.filename
        if not record and target.is_file() and (wrong := hub.fault(target, size=remote.size, sha256=remote.sha256)):
            raise WeightsError(
                f"{target} is another file than the hub's ({wrong}); move it away or choose another --to"
            )
        hub.download(remote, target)
        _write_record(entry, remote, target)
    except OSError as error:
        raise OutputError(f"cannot write to {folder} ({error.strerror or error}); choose another --to") from error
    return target, True


def _copy_from_cache(repo: str, filenames: Sequence[str], folder: Path) -> hub.Remote | None:
    """Copy a whole file of the cache into a folder that has none; returns what the hub stated about it."""
    cached = _whole_in_cache(repo, filenames)
    if cached is None:
        return None
    target = folder / cached.name
    sha256 = hub.stated_sha256(cached) or hub.digest(cached)
    if not target.exists() or _read_record(folder):
        folder.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.copy.part")
        shutil.copyfile(cached, part)
        os.replace(part, target)
    return hub.Remote(repo, cached.name, cached.parent.name, sha256, cached.stat().st_size)


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _write_record(entry: ZooEntry, remote: hub.Remote, target: Path) -> None:
    record = {
        "alias": entry.alias,
        "repo": remote.repo,
        "file": remote.filename,
        "revision": remote.commit,
        "etag": remote.etag,
        "sha256": remote.sha256 or hub.digest(target),
        "size": target.stat().st_size,
        "library": entry.library,
        "architecture": entry.architecture,
        "tag": entry.tag,
        "licence": entry.licence,
        "source": entry.source,
    }
    part = target.with_name(f"{RECORD}.part")
    part.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(part, target.with_name(RECORD))
