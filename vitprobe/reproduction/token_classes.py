"""Tables 1, 4 and 6 of Darcet et al. (arXiv 2309.16588): the class of an image, read from one token of it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vitprobe.errors import ArgumentError
from vitprobe.plots.kinds import KindPanel, Mark, draw_kinds
from vitprobe.probes.by_image import METHOD
from vitprobe.probes.passes import Reader
from vitprobe.probes.token_classes import KindAccuracy, classify_tokens
from vitprobe.probes.token_means import paired_difference
from vitprobe.probes.token_sets import TokenSet, random_like, too_few
from vitprobe.reproduction.base import Drawn, Found, Item, Measurement, Row, Setting
from vitprobe.reproduction.token_draws import (
    TokenDraws,
    TokenOptions,
    counted,
    described,
    fit_options,
    gathered,
    pairing,
    shared_tasks,
    told,
)

LABELS = {"normal": "normal patch", "outlier": "outlier patch", "cls": "CLS", "random": "random features (control)"}
REGISTERS = "registers, mean of {}"
INTERVAL = "accuracies: Wilson's 95 %, for test images drawn at random, of the mean over draws; +- is over draws"
DATA = {
    "airc": ("aircraft|fgvcaircraft", (100, 102)),
    "cf10": ("cifar10", (10,)),
    "cf100": ("cifar100", (100,)),
    "cub": ("cub|cub2002011|cub200", (200,)),
    "cal101": ("caltech101", (101, 102)),
    "cars": ("cars|stanfordcars", (196,)),
    "dtd": ("dtd|describabletextures", (47,)),
    "flow": ("flowers|flowers102|oxfordflowers|oxfordflowers102", (102,)),
    "food": ("food|food101", (101,)),
    "in1k": ("imagenet|imagenet1k|ilsvrc2012", (1000,)),
    "p205": ("places205", (205,)),
    "pets": ("pets|oxfordpets|oxfordiiitpet", (37,)),
    "sun": ("sun|sun397", (397,)),
}
"""How a data set of table 6 may be called, and how many classes it then has.

VOC is left out: its images show objects of several classes, of which the class here is that of the largest box. The
paper does not say how it makes one class, or many, of them, so that its numbers may be of another task.
"""


@dataclass(frozen=True)
class ClassOptions(TokenOptions):
    """Hold what table 1 leaves open."""

    registers: int = 4
    """At most so many registers are read, the first ones, each by a probe of its own."""
    tasks: tuple[str, ...] = ()
    """Tasks of labels that are read; all where none is named."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.registers) is not int or self.registers < 0:
            raise ArgumentError(f"got {self.registers!r} registers; give a whole number from 0 on")
        object.__setattr__(self, "tasks", (self.tasks,) if isinstance(self.tasks, str) else tuple(self.tasks))


class TokenClasses(Measurement):
    """Draw tokens of both splits, and read the classes of each task from each kind."""

    def __init__(self, setting: Setting, options: ClassOptions) -> None:
        """Prepare to draw. Raises what `TokenReader` does, and `ArgumentError` where no task is shared."""
        self.setting, self.options, layout = setting, options, setting.backbone.layout()
        self.tasks = shared_tasks(setting, options.tasks)
        registers = [f"register:{k}" for k in range(min(layout.num_registers, options.registers))]
        kinds = ["normal", "outlier", *(["cls"] if layout.cls else []), *registers]
        is_paired, self.said = pairing(setting, options)
        made = {"cutoff": setting.cutoff, "kinds": kinds, "paired": is_paired, "replacement": True}
        self.draws = TokenDraws(setting, options, **made)

    def train_readers(self) -> Sequence[Reader]:
        """Return what draws tokens of the training images."""
        return (self.draws.train,)

    def test_readers(self) -> Sequence[Reader]:
        """Return what draws tokens of the test images."""
        return (self.draws.test,)

    def found(self) -> Found:
        """Return a row for each task and kind, the difference of outliers and normal patches, and controls.

        Raises `ArgumentError` where no kind of token has images enough.
        """
        sets, rows, scores, notes = self.draws.sets(), [], [], []
        for task in self.tasks:
            own = {kind: self._classify(task, kind, *pair, notes) for kind, pair in sets.items()}
            rest, one = next(iter(sets.values()))
            if not too_few(rest, one):
                seed = self.setting.seed
                control = [random_like(part.of_draw(0), seed=seed + i) for i, part in enumerate((rest, one))]
                own["random"] = self._classify(task, "random", *control, notes)
            scores += [_score(task, kind, one) for kind, one in own.items() if one is not None]
            rows += self._rows(task, own)
        if not scores:
            raise ArgumentError(f"nothing can be read: {'; '.join(gathered(notes))}")
        fitted = fit_options(self.setting, self.options)["solver"]
        summary = {
            **described(self.draws, self.setting, self.options, self.setting.cutoff),
            "rule": str(self.setting.rule),
            "interval": INTERVAL,
            "interval_of_differences": METHOD,
            "solver": fitted,
            "images": counted(sets),
            "scores": scores,
            "notes": [
                f"tokens at {self.draws.point} of block {self.setting.block}; {self.said}",
                *told(self.setting.cutoff),
                *gathered(notes),
            ],
        }
        return Found(tuple(rows), summary)

    def _classify(
        self, task: str, kind: str, train: TokenSet, test: TokenSet, notes: list[tuple[str, str]]
    ) -> KindAccuracy | None:
        """Read one task from one kind; None where too few images have a token of it."""
        where = f"{task}, {LABELS.get(kind, kind.replace(':', ' '))}"
        if reason := too_few(train, test):
            known = kind == "outlier" and self.setting.cutoff is None
            notes.append((where, f"no outliers by rule {self.setting.rule}" if known else reason))
            return None
        labels = [np.asarray(getattr(self.setting, split).labels[task]) for split in ("train", "test")]
        known, wanted = (np.unique(y[x.images][y[x.images] >= 0]) for y, x in zip(labels, (train, test), strict=True))
        if len(known) < 2 or not np.isin(wanted, known).any():
            one_class = "all training images are of one class, or none has any"
            notes.append((where, one_class if len(known) < 2 else "no class of the test images is a training one"))
            return None
        found = classify_tokens(train, test, *labels, **fit_options(self.setting, self.options))
        notes += [(where, note) for note in found.notes if kind != "random"]  # noise has no best C
        return found

    def _rows(self, task: str, own: dict[str, KindAccuracy | None]) -> list[Row]:
        key = self._key(task)
        rows = [_row(task, LABELS[kind], own[kind], key and f"{key}.{kind}") for kind in ("normal", "outlier")]
        if own["normal"] and own["outlier"]:
            apart = paired_difference(own["outlier"].hits, own["normal"].hits, seed=self.setting.seed)
            what = f"{task}, outlier less normal patch, within images"
            rows.append(Row(what, apart.value, "share", apart.num_images, apart.interval))
        if "cls" in own:
            rows.append(_row(task, LABELS["cls"], own["cls"], key and f"{key}.cls"))
        registers = [one for kind, one in own.items() if kind.startswith("register") and one is not None]
        if registers:
            single = len(registers) == 1
            rows.append(_row(task, "register 0", registers[0], key and single and f"{key}.register"))
        if len(registers) > 1:
            mean, what = fmean(one.accuracy for one in registers), f"{task}, {REGISTERS.format(len(registers))}"
            rows.append(Row(what, mean, "share", registers[0].num_test, key=f"{key}.register" if key else ""))
        chances = [one for one in own.values() if one is not None]
        if own.get("random"):
            rows.append(_row(task, LABELS["random"], own["random"]))
        if chances:
            rows.append(Row(f"{task}, most frequent class", chances[0].chance, "share", chances[0].num_test))
        return rows

    def _key(self, task: str) -> str:
        test = self.setting.test
        return dataset_key(test.name, len(test.classes.get(task, ()))) if task == "class" else ""


def _row(task: str, what: str, one: KindAccuracy | None, key: str | bool = "") -> Row:
    if one is None:
        return Row(f"{task}, {what}", None, "share", 0, key=key or "")
    return Row(f"{task}, {what}", one.accuracy, "share", one.num_test, one.interval, one.spread, key or "")


def _score(task: str, kind: str, one: KindAccuracy) -> dict[str, Any]:
    kept = {name: getattr(one, name) for name in ("accuracy", "interval", "spread", "chance", "num_train", "num_test")}
    return {"task": task, "kind": kind, **kept, "c": [fit.c for fit in one.draws]}


def dataset_key(name: str, num_classes: int) -> str:
    """Return how table 6 calls a set of images, from its name, such as ``CIFAR10, test``; empty for no such set.

    ``num_classes`` must be that of the set, so that a part of it, or another of a like name, is not taken for it. VOC
    has no key: see `DATA`.
    """
    plain = re.sub(r"[^a-z0-9]", "", name.partition(",")[0].lower())
    matches = (key for key, (names, sizes) in DATA.items() if plain in names.split("|") and num_classes in sizes)
    return next(matches, "")


def draw(drawn: Drawn) -> dict[str, Figure]:
    """Draw a panel for each task: every model's accuracy by kind of token, beside what is reached without looking."""
    panels: dict[str, KindPanel] = {}
    for title, found in drawn:
        for task in dict.fromkeys(score["task"] for score in found.summary["scores"]):
            own = [score for score in found.summary["scores"] if score["task"] == task]
            marks = [Mark(_look(one["kind"]), one["accuracy"], _ends(one["interval"])) for one in own]
            marks.append(Mark("chance", own[0]["chance"]))
            name = task if task != "class" else found.summary["data"]["test"]
            panel = panels.setdefault(name, KindPanel(f"class of the image: {name}", "test accuracy", []))
            panel.rows.append((title, marks))
    return {"token_classes": draw_kinds(list(panels.values()), note="bars: Wilson's 95 % interval over test images")}


def _ends(interval: Sequence[float] | None) -> tuple[float, float] | None:
    return None if interval is None else (interval[0], interval[1])


def _look(kind: str) -> str:
    return "register" if kind.startswith("register") else kind


def measure(setting: Setting, options: ClassOptions) -> TokenClasses:
    """Prepare to read. Raises what `TokenClasses` does."""
    return TokenClasses(setting, options)


ITEMS = {"table1": Item(measure, draw, ClassOptions)}
