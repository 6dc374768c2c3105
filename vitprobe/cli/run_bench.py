"""The body of ``vitprobe bench``."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from vitprobe import backbones
from vitprobe.backbones.base import Backbone
from vitprobe.backbones.zoo import EMBEDDED
from vitprobe.cli import echo, parse
from vitprobe.errors import ExitCode
from vitprobe.inputs.loading import ImageLoader
from vitprobe.inputs.sources import open_inputs
from vitprobe.probes.bench import bare, bench, compile_blocks, end_to_end
from vitprobe.results import versions


@dataclass(frozen=True)
class BenchOptions:
    """Hold the options of one call, as they were given."""

    models: tuple[str, ...]
    weights: tuple[str, ...]
    image_size: str | None
    batch_size: int
    rounds: int
    device: str
    dtype: str
    compile: bool
    data: str | None
    limit: int | None
    workers: int | None
    seed: int
    json: bool
    against: str | None = None
    """Another model, whose bare forward or whose loop by hand is set beside."""


def run(asked: BenchOptions) -> ExitCode:
    """Run ``bench``. Raises a `VitprobeError` where nothing could be done."""
    size, device, autocast = parse.image_size(asked.image_size), parse.device(asked.device), parse.autocast(asked.dtype)
    parse.at_least("batch size", asked.batch_size, 1)
    source = open_inputs([asked.data], limit=asked.limit, seed=asked.seed) if asked.data else None
    tables, skipped = [], list(source.skipped) if source is not None else []
    for name, given in zip(asked.models, parse.one_each(asked.weights, asked.models), strict=True):
        model = backbones.load(name, weights=given, image_size=size, seed=asked.seed, device=device)
        if asked.compile:
            compile_blocks(model)
        table = _table(asked, model, device, autocast)
        if source is not None:
            loader = ImageLoader(source.items, model.transform, batch_size=asked.batch_size, workers=asked.workers)
            images = _images(model, asked.batch_size, device)
            table["rows"].append(asdict(end_to_end(model, loader, images, autocast=autocast)))
            skipped += [one for one in loader.skipped if one not in skipped]
        tables.append(table)
    echo.not_read([{"name": name, "reason": reason} for name, reason in skipped])
    echo.bench(tables, as_json=asked.json)
    return ExitCode.PARTIAL if skipped else ExitCode.DONE


def _table(asked: BenchOptions, model: Backbone, device: str, autocast: torch.dtype | None) -> dict[str, Any]:
    images = _images(model, asked.batch_size, device)
    with echo.progress(model.spec.title, asked.rounds) as advance:
        ways = None
        if asked.against is not None:
            other = beside(asked, model.spec.image_size, device)
            if asked.compile:
                compile_blocks(other)
            ways = {f"bare forward of {asked.against}": bare(other)}
        rows = bench(model, images, rounds=asked.rounds, autocast=autocast, ways=ways, on_round=lambda: advance(1))
    return setting(asked, model, device) | {"rows": [asdict(row) for row in rows]}


def beside(asked: BenchOptions, image_size: tuple[int, int], device: str) -> Backbone:
    """Load the model of ``--against``, with random weights where it has none of its own, at the other's image size."""
    weights = "hub" if asked.against in EMBEDDED else "random"
    return backbones.load(asked.against, weights=weights, image_size=image_size, seed=asked.seed, device=device)


def setting(asked: BenchOptions, model: Backbone, device: str) -> dict[str, Any]:
    """Say what was timed, where and with which versions."""
    return {
        "model": model.spec.name,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "dtype": asked.dtype,
        "compile": asked.compile,
        "batch": asked.batch_size,
        "image_size": list(model.spec.image_size),
        "tokens": model.layout().num_tokens,
        "rounds": asked.rounds,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def _images(model: Backbone, number: int, device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(number, 3, *model.spec.image_size, generator=generator).to(device)
