"""The body of ``vitprobe finetune``: resolve, fine-tune to each set, measure, echo."""

import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitprobe.cli import echo, parse, parse_train
from vitprobe.cli.echo_finetune import finetuned, planned
from vitprobe.cli.finetune_result import read_set, write_set, write_sets
from vitprobe.cli.run_finetune_set import Work
from vitprobe.cli.run_folder import new_folder, refuse_used, same_images, stored_options
from vitprobe.cli.session import alone, slug, unique
from vitprobe.errors import ExitCode, Stopped
from vitprobe.inputs.real_labels import read_real
from vitprobe.inputs.vtab import is_vtab, tasks_in
from vitprobe.probes.shards import Shards
from vitprobe.training.build import build
from vitprobe.training.dry import plan
from vitprobe.training.engine import Engine
from vitprobe.training.finetune import FinetuneConfig, Job, Sizes, open_job, resolve_finetune, with_size
from vitprobe.training.groups import parameter_groups

COMMAND = "finetune"
FLAGS = ("control", "frozen")
"""Options that are on unless they are turned off."""


def run(
    asked: Mapping[str, Any],
    *,
    out: Path | None,
    resume: Path | None,
    dry_run: bool,
    formats: tuple[str, ...],
    as_json: bool,
) -> int:
    """Run ``finetune``; returns the exit code. Raises a `VitprobeError` where nothing could be done."""
    formats = parse.formats(formats)
    if resume is None:
        config = resolve_finetune(options(asked))
        if not dry_run:
            refuse_used(out)
    else:
        config = FinetuneConfig.from_dict(stored_options(COMMAND, asked, resume, out, flags=FLAGS))
    alone(COMMAND, config.base.device)
    engine = Engine.open(config.base)
    config, sizes = with_size(config)
    jobs = [open_job(config, text, sizes.chosen) for text in config.data]
    _check(jobs, engine)
    if dry_run:
        planned([_planned(job) for job in jobs], config.as_dict() | {"sizes": sizes.as_dict()}, as_json=as_json)
        return ExitCode.DONE
    images = " ".join(replace(job.watched(), held=job.data.test).digest() for job in jobs)
    if resume is not None:
        directory = same_images(COMMAND, resume, images)
    else:
        directory = new_folder(COMMAND, config.base.model, out, config.as_dict(), images)
    try:
        summary = _all(jobs, sizes, directory, engine, formats)
    except Stopped as stopped:
        raise Stopped(f"{stopped}; go on with --resume {directory}", stopped.number) from stopped
    except (KeyboardInterrupt, SystemExit) as interrupt:  # between two trainings, where checkpoints are written already
        number = signal.SIGTERM if isinstance(interrupt, SystemExit) else signal.SIGINT
        raise Stopped(f"interrupted; go on with --resume {directory}", number) from interrupt
    finetuned(summary, directory, as_json=as_json)
    echo.not_read(summary["skipped"])
    return ExitCode.PARTIAL if summary["skipped"] else ExitCode.DONE


def options(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Bring the options of the command to the names and types of the configs; ``vtab:ROOT`` stands for all its tasks.

    Raises `ArgumentError` and `InputError` as `parse_train.options` and `tasks_in` do.
    """
    given = parse_train.options(asked)
    if "data" in given:
        given["data"] = tuple(one for text in given["data"] for one in _tasks(text))
    if given.get("real") and os.path.exists(given["real"]):
        given["real"] = os.path.abspath(given["real"])
    return given


def _tasks(text: str) -> tuple[str, ...]:
    """Return the tasks that a folder of them holds, as inputs; any other input is itself."""
    root = text.removeprefix("vtab:")
    is_folder = is_vtab(text) and os.path.isdir(os.path.expanduser(root)) and not _is_task(root)
    return tuple(f"vtab:{os.path.join(root, name)}" for name in tasks_in(text)) if is_folder else (text,)


def _is_task(folder: str) -> bool:
    return any(name.endswith(".txt") for name in os.listdir(os.path.expanduser(folder)))


def _check(jobs: list[Job], engine: Engine) -> None:
    """Refuse what cannot be trained or measured before anything is written; every variant is built once."""
    shards = Shards.alone(str(engine.device))
    for job in jobs:
        if job.config.real:
            names = [item.name for item in job.data.test.items]
            read_real(None if job.config.real == "timm" else job.config.real, names, classes=job.data.classes)
    for variant in jobs[0].config.variants:
        built = build(jobs[0].training(variant, jobs[0].plan.rates[0]), variant, jobs[0].watched(), shards)
        parameter_groups(built.backbone, built.objective.heads(), built.objective.config)


def _planned(job: Job) -> dict[str, Any]:
    config, shards = job.config, Shards.alone("cpu")
    number = len(config.variants) * (1 + (len(job.plan.rates) if len(job.plan.rates) > 1 else 0))
    rate = job.plan.rates[0]
    return {
        "plan": [plan(job.training(one, rate), one, job.watched(), shards) for one in config.variants],
        "set": job.data.name,
        "held_out": job.data.held_out,
        "num_train": len(job.data.train),
        "num_held_out": len(job.data.test),
        "num_classes": len(job.data.classes),
        "steps": job.plan.steps,
        "batch_size": config.base.batch_size,
        "rates": job.plan.rates,
        "trainings": number,
        "image_size": config.base.image_size,
        "augment": job.plan.augment,
        "recipe": config.recipe,
        "departures": job.plan.departures,
    }


def _all(jobs: list[Job], sizes: Sizes, directory: Path, engine: Engine, formats: tuple[str, ...]) -> dict[str, Any]:
    """Fine-tune to every set; one that has its result already is not measured again."""
    device, dtype = str(engine.device), "float32" if engine.autocast is None else "bfloat16"
    folders = unique([slug(job.data.name) for job in jobs]) if len(jobs) > 1 else [""]
    summaries = []
    for job, name in zip(jobs, folders, strict=True):
        folder = directory / name
        summary = read_set(folder)
        if summary is None:
            summary = write_set(folder, Work(job, folder, engine).run(), sizes, formats, device, dtype)
        summaries.append(summary)
    if len(jobs) == 1:
        return summaries[0]
    named = [{**summary, "folder": name} for summary, name in zip(summaries, folders, strict=True)]
    return write_sets(directory, named, formats)
