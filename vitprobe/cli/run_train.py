"""The body of ``vitprobe train-registers``: resolve, train each variant, compare, echo."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitprobe.backbones.conv_net import is_conv
from vitprobe.cli import echo, parse, parse_train
from vitprobe.cli.run_folder import new_folder, refuse_used, same_images, stored_options
from vitprobe.cli.run_train_compare import finish, look, trained_spec
from vitprobe.cli.train_progress import plans, training
from vitprobe.errors import ArgumentError, ExitCode, Stopped, VitprobeError
from vitprobe.probes.shards import Shards
from vitprobe.training.build import build, sizes
from vitprobe.training.config import TrainConfig
from vitprobe.training.data import Data, open_data
from vitprobe.training.engine import Engine
from vitprobe.training.groups import parameter_groups
from vitprobe.training.loop import train
from vitprobe.training.metrics import writer
from vitprobe.training.recipes import refuse_unread, resolve, with_steps
from vitprobe.training.variants import variants

COMMAND = "train-registers"


def run(
    asked: Mapping[str, Any],
    *,
    out: Path | None,
    resume: Path | None,
    dry_run: bool,
    formats: tuple[str, ...],
    as_json: bool,
) -> int:
    """Run ``train-registers``; returns the exit code. Raises a `VitprobeError` where nothing could be done."""
    formats = parse.formats(formats)
    given = parse_train.options(asked) if resume is None else {}
    config = _resumed(asked, resume, out) if resume is not None else resolve(given)
    refuse_unread(given, config)
    if not dry_run:
        refuse_used(out)
    engine = Engine.open(config)
    with Shards.open(str(engine.device)) as shards:
        if engine.world != shards.world:
            raise VitprobeError(f"{shards.world} processes were started and {engine.world} joined; try --device cpu")
        if is_conv(name := config.model or config.arch):
            raise ArgumentError(f"{name} is a convolutional network, without tokens: it takes no registers; give a ViT")
        size, patch = shards.first_here(lambda: sizes(config))
        data = shards.first_here(lambda: open_data(config, size, patch))
        if resume is None:
            number = None if data.train is None else len(data.train)
            config = with_steps(config, number, warmup_given="warmup" in given)
        _check(config, data, asked.get("num_held_out"), shards)
        if dry_run:
            from vitprobe.training.dry import plan

            if engine.is_main:
                found = [plan(config, one, data, shards) for one in variants(config)]
                plans(found, config.as_dict(), as_json=as_json)
            return ExitCode.DONE
        directory = shards.on_main(lambda: _directory(config, data, out, resume))
        try:
            return _train_all(config, data, directory, engine, shards, formats, as_json)
        except Stopped as stopped:
            raise Stopped(f"{stopped}; go on with --resume {directory}", stopped.number) from stopped


def _train_all(
    config: TrainConfig,
    data: Data,
    directory: Path,
    engine: Engine,
    shards: Shards,
    formats: tuple[str, ...],
    as_json: bool,
) -> int:
    found, specs, digests, missing = [], {}, [], list(data.skipped)
    for variant in variants(config):
        built = build(config, variant, data, shards)
        folder = directory / variant.name
        with training(variant.title, config.steps, shown=engine.is_main) as show:
            evaluation = train(config, built, folder, engine, shards, on_progress=show)
        reader = built.held_out.reader
        missing += [*built.stream.skipped, *reader.skipped, *built.held_out.bank.skipped]
        parts = shards.gather((missing, reader.digests))
        if parts is not None:
            missing = [one for part, _ in parts for one in part]
            digests = [digest for _, part in parts for digest in part]
            specs[variant.name] = trained_spec(built)
            found.append(look(built, evaluation, folder, engine.autocast))
        del built
        engine.accelerator.free_memory()  # it keeps what it has wrapped
    skipped = [{"name": name, "reason": why} for name, why in dict.fromkeys(map(tuple, missing))]
    if engine.is_main:
        told = {"skipped": skipped, "formats": formats, "as_json": as_json, "device": str(engine.device)}
        told["dtype"] = "float32" if engine.autocast is None else "bfloat16"
        finish(config, data, found, specs, digests, directory, **told)
        echo.not_read(skipped)
    return shards.on_main(lambda: ExitCode.PARTIAL if skipped else ExitCode.DONE)


def _resumed(asked: Mapping[str, Any], resume: Path, out: Path | None) -> TrainConfig:
    return TrainConfig.from_dict(stored_options(COMMAND, asked, resume, out, flags=("control",)))


def _check(config: TrainConfig, data: Data, num_held_out: int | None, shards: Shards) -> None:
    """Refuse what cannot be trained before anything is written; every variant is built once."""
    micro = config.batch_size // config.accumulation
    if micro % shards.world:
        raise ArgumentError(
            f"got micro-batches of {micro} images for {shards.world} processes; give a --batch-size they can share"
        )
    if num_held_out is not None and num_held_out > (found := len(data.held)):
        most = "there are" if config.held_out else "are held out, a fifth of all,"
        raise ArgumentError(f"got --num-held-out {num_held_out:,}; {found:,} images {most} at most; give fewer")
    if config.tensorboard:
        writer()
    for variant in variants(config):
        built = build(config, variant, data, shards)
        parameter_groups(built.backbone, built.objective.heads(), config)


def _directory(config: TrainConfig, data: Data, out: Path | None, resume: Path | None) -> Path:
    if resume is not None:
        return same_images(COMMAND, resume, data.digest())
    return new_folder(COMMAND, config.model or config.arch, out, config.as_dict(), data.digest())
