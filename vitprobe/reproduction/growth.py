"""Figure 4 b of Darcet et al. (arXiv 2309.16588): token norms by training step, of the checkpoints that a run kept."""

import json
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from vitprobe.errors import ArgumentError
from vitprobe.plots.growth import Kept, draw_growth
from vitprobe.reproduction.base import Drawn, Found, Item, Measurement, Setting
from vitprobe.reproduction.norms import outlier_row, pack, tail_row, unpack
from vitprobe.training.checkpoint import ABOUT


def checkpoints(run: Path) -> list[str]:
    """Name the checkpoints that a run of ``train-registers`` kept, and the last, variant by variant, by step.

    Raises `ArgumentError` where there is no such run, or it has kept none (``--keep`` keeps them).
    """
    variants = sorted({path.parent for path in run.glob("reg*/step-*")}, key=lambda path: (len(path.name), path.name))
    if not variants:
        raise ArgumentError(f"{run} holds no kept checkpoints of train-registers; train with --keep 10")
    found: list[str] = []
    for variant in variants:
        steps = {step_of(path): path for path in (*variant.glob("last"), *variant.glob("step-*"))}
        found += [str(steps[step]) for step in sorted(steps)]
    return found


def step_of(checkpoint: Path) -> int:
    """Return the training step of a checkpoint's folder. Raises `ArgumentError` for another folder."""
    try:
        return int(json.loads((checkpoint / ABOUT).read_text())["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArgumentError(
            f"{checkpoint} is no checkpoint of train-registers ({error}); give --run its run"
        ) from error


@dataclass(frozen=True)
class ByStep(Measurement):
    """Set the norms of one checkpoint beside its step."""

    setting: Setting

    def found(self) -> Found:
        """Return the norms of the checkpoint, its step and its variant."""
        stats, folder = self.setting.norms, Path(self.setting.model)
        rows = [outlier_row(stats), tail_row(stats)]
        return pack(stats, rows, step=step_of(folder), variant=folder.parent.name)


def draw(drawn: Drawn) -> dict[str, Figure]:
    """Draw the spread of norms over the training, a panel a variant."""
    return {"growth": draw_growth([Kept(f.summary["variant"], f.summary["step"], unpack(f)) for _, f in drawn])}


ITEMS = {"fig4b": Item(lambda setting, options: ByStep(setting), draw)}
