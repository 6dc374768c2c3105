"""What every measuring command does around its probe: open images and models, say where numbers came from, save."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from vitprobe import backbones, results
from vitprobe.backbones.base import Backbone, ModelSpec
from vitprobe.cli import parse
from vitprobe.errors import ArgumentError, ExitCode, InputError
from vitprobe.inputs.loading import ImageLoader
from vitprobe.inputs.sources import Source, open_inputs
from vitprobe.probes.shards import Shards


@dataclass(frozen=True)
class Options:
    """Hold the options that measuring commands share, as they were given."""

    inputs: tuple[str, ...]
    models: tuple[str, ...]
    weights: tuple[str, ...]
    image_size: str | None
    pos_embed: str
    limit: int | None
    seed: int
    batch_size: int
    workers: int | None
    device: str
    dtype: str
    out: Path | None
    formats: tuple[str, ...]
    json: bool


@dataclass(frozen=True)
class Part:
    """Hold what one model gave: its folder's name, the title of its panels, the probe's result, what is stored."""

    slug: str
    title: str
    result: Any
    stored: results.StoredResult


@dataclass(frozen=True)
class Session:
    """Hold what was opened for one call; everything that can be refused has been looked at."""

    command: str
    options: Options
    source: Source
    models: tuple[Backbone, ...]
    slugs: tuple[str, ...]
    out: Path
    formats: tuple[str, ...]
    device: str
    autocast: torch.dtype | None
    shards: Shards

    @classmethod
    def open(
        cls, command: str, options: Options, *, default: tuple[str, ...], shards: Shards | None = None
    ) -> "Session":
        """Open images and models. ``default``: the inputs of a call that names none. Raises a `VitprobeError`.

        ``shards``: the processes that share the images; a command that gives none refuses to run in several.
        """
        shards = alone(command, options.device) if shards is None else shards
        device, autocast = parse.device(shards.device), parse.autocast(options.dtype)
        formats, size = parse.formats(options.formats), parse.image_size(options.image_size)
        weights = parse.one_each(options.weights, options.models)

        def choose() -> tuple[Path, Source]:  # once: the clock, a list on stdin or a folder may differ the next moment
            plain = "+".join(slug(name) for name in options.models)[:100]
            out = options.out or Path("runs") / command / f"{plain}-{datetime.now():%Y%m%d-%H%M%S-%f}"
            results.check_free(out)
            extra = parse.generated(options.limit, options.seed, few=not options.inputs)
            return out, open_inputs(options.inputs or default, limit=options.limit, seed=options.seed, extra=extra)

        def load() -> tuple[Backbone, ...]:
            return tuple(
                backbones.load(name, weights=given, image_size=size, seed=options.seed, pos_embed=options.pos_embed)
                for name, given in zip(options.models, weights, strict=True)
            )

        out, source = shards.on_main(choose)
        models = shards.first_here(load)
        slugs = unique([slug(name) for name in options.models])
        return cls(command, options, source, models, slugs, out, formats, device, autocast, shards)

    def loader(self, model: Backbone) -> ImageLoader:
        """Read this process's share of the images through the model's own transform."""
        options, items = self.options, self.source.items
        mine = self.shards.share(range(len(items)), chunk=max(1, options.batch_size))
        return ImageLoader(items, model.transform, batch_size=options.batch_size, workers=options.workers, indices=mine)

    @contextmanager
    def directory(self) -> Iterator[Path]:
        """Give the directory that the result is written into; the main process makes it, and puts it in its place."""
        with ExitStack() as stack:
            yield self.shards.on_main(lambda: stack.enter_context(results.result_directory(self.out)))

    def folder(self, whole: Path, name: str) -> Path:
        """Return the folder of one model inside the result that is being written."""
        inner = whole / name if len(self.models) > 1 else whole
        inner.mkdir(exist_ok=True)
        return inner

    def stored(
        self,
        model: Backbone,
        loader: ImageLoader,
        *,
        settings: dict[str, Any],
        summary: dict[str, Any],
        arrays: dict[str, Any],
    ) -> results.StoredResult:
        """Put a model's result together with where it came from and what was skipped."""
        skipped = [{"name": name, "reason": why} for name, why in (*self.source.skipped, *loader.skipped)]
        inputs = {"name": self.source.name, "num_images": loader.num_read, "digest": loader.digest()}
        provenance = results.Provenance(
            model=asdict(model.spec),
            inputs=inputs | {"notes": dict(loader.notes)},
            seed=self.options.seed,
            device=parse.device(self.options.device),
            dtype=self.options.dtype,
        )
        shared = {
            name: getattr(self.options, name) for name in ("inputs", "image_size", "pos_embed", "limit", "batch_size")
        }
        shared |= {"processes": self.shards.world} if self.shards.world > 1 else {}
        return results.StoredResult(
            f"vitprobe.{self.command}/1",
            results.provenance_dict(provenance),
            shared | settings,
            {"model": model.spec.name, **summary, "skipped": skipped},
            arrays,
        )

    def save(self, whole: Path, parts: Sequence[Part]) -> None:
        """Write each model's result, and for several the comparison above them."""
        if len(parts) == 1:
            results.save(whole, parts[0].stored)
            return
        for part in parts:
            results.save(whole / part.slug, part.stored)
        first = parts[0].stored
        provenance = dict(first.provenance)
        for key in ("model", "inputs"):
            provenance[key] = [part.stored.provenance[key] for part in parts]
        summaries = [part.stored.summary for part in parts]
        results.save(whole, results.StoredResult(first.schema, provenance, first.settings, summaries, {}))


def alone(command: str, device: str) -> Shards:
    with Shards.open(device) as shards:
        if shards.world > 1:
            raise ArgumentError(f"{command} runs in one process; start it without torchrun or accelerate launch")
    return shards


def exit_code(parts: Sequence[Part]) -> ExitCode:
    """Return 1 where some inputs could not be read, else 0."""
    return ExitCode.PARTIAL if any(part.stored.summary["skipped"] for part in parts) else ExitCode.DONE


def load_parts(directory: Path) -> list[tuple[str, results.StoredResult]]:
    """Read a result back as (title, result) of each model. Raises `InputError` where it is not whole."""
    stored = results.load(directory)
    if not isinstance(stored.summary, list):
        return [(title_of(stored), stored)]
    folders = [directory / Path(name).parent for name in stored.files if name.endswith("/result.json")]
    parts = {one.name: results.load(one) for one in folders}
    order = unique([slug(summary["model"]) for summary in stored.summary])
    if set(order) != set(parts):
        raise InputError(f"the result in {directory} is not whole: it compares {', '.join(order)}; measure again")
    return [(title_of(parts[name]), parts[name]) for name in order]


def title_of(stored: results.StoredResult) -> str:
    """Return the title of a model's panels from what is stored of it."""
    spec = dict(stored.provenance["model"])
    return ModelSpec(**spec | {"image_size": tuple(spec["image_size"])}).title


def first_skipped(loader: ImageLoader) -> str:
    """Name the first of what could not be read, for a message."""
    return "".join(f"; {name}: {reason}" for name, reason in loader.skipped[:3])


def unique(names: Sequence[str]) -> tuple[str, ...]:
    """Number names that come again: a, b, a -> a, b, a-2."""
    found: list[str] = []
    for name in names:
        free, number = name, 1
        while free in found:
            number += 1
            free = f"{name}-{number}"
        found.append(free)
    return tuple(found)


def slug(name: str) -> str:
    """Return a model's name as a folder can be called."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.") or "model"


def known_schema(stored: results.StoredResult, known: Sequence[str], directory: Path) -> str:
    """Return the schema of a result. Raises `ArgumentError` for one that is not among those known."""
    if stored.schema not in known:
        raise ArgumentError(f"{directory} holds {stored.schema}; {', '.join(known)} can be drawn again")
    return stored.schema
