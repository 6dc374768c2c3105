"""Measure the items of ``vitprobe reproduce``, set by set and model by model."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitprobe import backbones, results
from vitprobe.backbones.base import Backbone
from vitprobe.cli import echo, parse
from vitprobe.cli.reproduce_result import SCHEMA, Part
from vitprobe.cli.session import slug
from vitprobe.errors import InputError
from vitprobe.inputs.loading import ImageLoader
from vitprobe.inputs.truths import TruthSource, open_truths
from vitprobe.probes.outliers import OutlierRule
from vitprobe.reproduction.base import Found, Setting
from vitprobe.reproduction.growth import checkpoints
from vitprobe.reproduction.run import Task, lacks, measure
from vitprobe.reproduction.sweep import variants_of
from vitprobe.reproduction.table import Entry
from vitprobe.reproduction.trusted import TrustedLoader, cached

PLAIN = "nothing"
"""In place of images for items that need none."""
NO_MODEL = {"table2-zero-shot": "a model with a text tower: --model openclip, or a folder of --objective text"}


@dataclass(frozen=True)
class Options:
    """Hold the options as they were given."""

    items: tuple[str, ...]
    models: tuple[str, ...]
    weights: tuple[str, ...]
    image_size: str | None
    pos_embed: str
    data: tuple[str, ...]
    limit: int | None
    run: Path | None
    seed: int
    rule: str
    block: str
    choices: tuple[str, ...]
    features: bool
    batch_size: int
    workers: int | None
    device: str
    dtype: str
    out: Path | None
    formats: tuple[str, ...]
    json: bool


class Work:
    """Go through sets of images and models, and gather what each item found."""

    def __init__(self, options: Options, tasks: Sequence[Task], folder: Path) -> None:
        """Open all sets of images, and models where several are asked for: what is wrong ends a run before it starts.

        Raises what `open_truths` and `backbones.load` raise.
        """
        self.options, self.tasks, self.run, self.folder = options, tasks, options.run, folder
        self.parts: dict[str, list[Part]] = {}
        self.left_out: dict[str, list[str]] = {}
        """Why an item was not measured, on some set or of some model."""
        self.skipped: list[dict[str, str]] = []
        self.done: set[tuple[str, str]] = set()
        """(item, model) of items that need no images, which are measured once."""
        self.untrained: dict[str, str] = {}
        """Why a set has no images to train on."""
        wants = any(set(task.entry.needs) - {"run"} for task in tasks)
        self.sources = {data: self._open(data) if wants else (None, None) for data in options.data}
        self._try_models()

    def _try_models(self) -> None:
        """Load each model once where another, or a training, comes before it. Raises what `backbones.load` does."""
        looks = any(task.entry.needs and "run" not in task.entry.needs for task in self.tasks)
        trains = self.run is None and any("run" in task.entry.needs for task in self.tasks)
        models = self.options.models
        weights = parse.one_each(self.options.weights, models) if models else []
        if looks and (len(models) > 1 or trains):
            for model, own in zip(models, weights, strict=True):
                parse.blocks(self.options.block, self._load(model, {"weights": own}).num_blocks, several=False)

    def measure(self, data: str) -> None:
        """Measure all items on one set of images."""
        train, test = self.sources[data]
        for (model, weights), tasks in self._by_model().items():
            keyed: dict[str, list[Task]] = {}
            for task in tasks:
                if reason := lacks(task.entry, train, test):
                    has_none = "training" in task.entry.needs and data in self.untrained
                    said = self.untrained[data] if has_none else f"{data} lacks what it needs: it {reason}"
                    self._leave_out(task.entry.name, said)
                    continue
                for keywords in task.item.variants(model):
                    keyed.setdefault(repr(dict(keywords)), []).append(task)
            for key, own in keyed.items():
                keywords = next(k for k in own[0].item.variants(model) if repr(dict(k)) == key)
                self._measure_model(model, {"weights": weights, **keywords}, own, data, train, test)

    def _open(self, data: str) -> tuple[TruthSource | None, TruthSource]:
        """Open the images; a set without splits of its own is split only where an item trains on part of it."""
        limit, seed = self.options.limit, self.options.seed
        needs_training = any("training" in task.entry.needs for task in self.tasks)
        test = open_truths(data, split="test" if needs_training else "whole", limit=limit, seed=seed)
        train = None
        if needs_training:
            try:
                train = cached(open_truths(data, split="train", limit=limit, seed=seed))
            except InputError as error:  # a set to test on alone
                self.untrained[data] = str(error)
        return train, cached(test)

    def _by_model(self) -> dict[tuple[str, str], list[Task]]:
        """Return the items by model and weights, in the order in which they are first named."""
        found: dict[tuple[str, str], list[Task]] = {}
        for task in self.tasks:
            for model in self._models(task.entry):
                found.setdefault(model, []).append(task)
        return found

    def _models(self, entry: Entry) -> Sequence[tuple[str, str]]:
        if entry.name in ("fig4b", "fig8"):
            return [(name, "hub") for name in (checkpoints if entry.name == "fig4b" else variants_of)(self.run)]
        if self.options.models:
            weights = parse.one_each(self.options.weights, self.options.models)
            return list(zip(self.options.models, weights, strict=True))
        if not entry.models:
            self._leave_out(entry.name, f"needs {NO_MODEL[entry.name]}")
        return [(name, "hub") for name in entry.models]

    def _leave_out(self, item: str, reason: str) -> None:
        known = self.left_out.setdefault(item, [])
        known += [reason] * (reason not in known)

    def _measure_model(
        self,
        model: str,
        keywords: Mapping[str, Any],
        tasks: Sequence[Task],
        data: str,
        train: TruthSource | None,
        test: TruthSource | None,
    ) -> None:
        bare = [task for task in tasks if not set(task.entry.needs) - {"run"}]
        looked = [task for task in tasks if task not in bare]
        for own, sources in ((bare, (None, None)), (looked, (train, test))):
            own = [task for task in own if (task.entry.name, model) not in self.done]
            if not own:
                continue
            backbone = self._load(model, keywords) if sources[1] is not None else None
            self._measure_items(model, keywords, backbone, own, data, *sources)

    def _load(self, model: str, keywords: Mapping[str, Any]) -> Backbone:
        options = self.options
        given = {"image_size": parse.image_size(options.image_size), "pos_embed": options.pos_embed}
        return backbones.load(model, seed=options.seed, **given | dict(keywords))

    def _measure_items(
        self,
        model: str,
        keywords: Mapping[str, Any],
        backbone: Backbone | None,
        tasks: Sequence[Task],
        data: str,
        train: TruthSource | None,
        test: TruthSource | None,
    ) -> None:
        options = self.options
        device = parse.device(options.device)
        ways = _ways(keywords)
        name = "-".join(map(slug, (_short(model), *ways, *([data] if len(options.data) > 1 else []))))
        setting = Setting(
            model=model,
            backbone=backbone,
            train=train,
            test=test,
            rule=OutlierRule.parse(options.rule),
            block=0 if backbone is None else parse.blocks(options.block, backbone.num_blocks, several=False)[-1],
            norms=None,
            seed=options.seed,
            autocast=parse.autocast(options.dtype),
            folder=self.folder / name,
            run=self.run,
        )
        loaders = self._loaders(backbone, {need for task in tasks for need in task.entry.needs}, train, test)
        if backbone is not None:
            backbone.module.to(device)
        try:
            found = measure(
                tasks, setting, loaders, progress=lambda title, n: echo.progress(self._told({"": title})[""], n)
            )
        finally:
            if backbone is not None:
                backbone.module.to("cpu")
        for task in tasks:
            outcome = found[task.entry.name]
            if isinstance(outcome, str):
                self._leave_out(task.entry.name, f"{model}: {outcome}")
                continue
            if backbone is None:
                self.done.add((task.entry.name, model))
            self._keep(task, outcome, setting, loaders, name, keywords, data, device)

    def _loaders(
        self, backbone: Backbone | None, needs: set[str], train: TruthSource | None, test: TruthSource | None
    ) -> dict[str, TrustedLoader]:
        if backbone is None:
            return {}
        size, workers = self.options.batch_size, self.options.workers
        return {
            split: TrustedLoader(
                ImageLoader(source.items, backbone.transform, batch_size=size, workers=workers), source, needs
            )
            for split, source in (("train", train), ("test", test))
            if source is not None
        }

    def _keep(
        self,
        task: Task,
        found: Found,
        setting: Setting,
        loaders: Mapping[str, TrustedLoader],
        name: str,
        keywords: Mapping[str, Any],
        data: str,
        device: str,
    ) -> None:
        """Put together what is stored of one item, model and set of images."""
        backbone, options = setting.backbone, self.options
        sources = {"train": setting.train, "test": setting.test}
        used = {split: loader for split, loader in loaders.items() if split == "test" or "training" in task.entry.needs}
        skipped = [
            {"name": where, "reason": why}
            for split, loader in used.items()
            for where, why in (*sources[split].skipped, *loader.skipped)
        ]
        self.skipped += [one for one in skipped if one not in self.skipped]
        inputs = {
            split: {"name": sources[split].name, "num_images": loader.num_read, "digest": loader.digest()}
            for split, loader in used.items()
        }
        provenance = results.Provenance(
            model=self._told(asdict(backbone.spec) if backbone is not None else {"name": setting.model}),
            inputs={"name": data if used else PLAIN, **inputs},
            seed=options.seed,
            device=device,
            dtype=options.dtype,
        )
        title = backbone.spec.title if backbone is not None else setting.model
        title = _short(title) + "".join(f", {way}" for way in _ways(keywords) if way not in title)
        title += f", {setting.test.name}" if len(options.data) > 1 and setting.test is not None else ""
        settings = {"item": task.entry.name, "options": {} if task.options is None else asdict(task.options)}
        settings |= {"rule": options.rule, "block": setting.block, "limit": options.limit}
        summary = {**self._told({"model": setting.model}), "title": title, **found.as_summary(), "skipped": skipped}
        stored = results.StoredResult(SCHEMA, results.provenance_dict(provenance), settings, summary, found.arrays)
        self.parts.setdefault(task.entry.name, []).append(Part(title, name, found, stored))

    def _told(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is said of a model, with the folder of a run trained here as it lies inside the result."""
        if self.run is None or self.options.run is not None:
            return dict(said)
        return {k: v.replace(str(self.run), self.run.name) if isinstance(v, str) else v for k, v in said.items()}


def _ways(keywords: Mapping[str, Any]) -> list[str]:
    """Name what sets a model apart from the same one loaded otherwise: a file of weights, a way of resizing."""
    return [Path(value).name for value in keywords.values() if value not in ("hub", "random")]


def _short(name: str) -> str:
    """Return the last parts of a checkpoint's path, which tell it from others; other names as they are."""
    parts = Path(name).parts
    return "/".join(parts[-2:]) if len(parts) > 2 else name
