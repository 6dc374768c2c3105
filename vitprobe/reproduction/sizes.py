"""Figure 4 c of Darcet et al. (arXiv 2309.16588): token norms by size of the model."""

import re
from dataclasses import dataclass

from matplotlib.figure import Figure

from vitprobe.backbones.zoo import ALIASES
from vitprobe.plots.sizes import Sized, draw_sizes
from vitprobe.reproduction.base import Drawn, Found, Item, Measurement, Row, Setting
from vitprobe.reproduction.norms import outlier_row, pack, tail_row, unpack


@dataclass(frozen=True)
class BySize(Measurement):
    """Set the norms of a model beside its parameters."""

    setting: Setting

    def found(self) -> Found:
        """Return the norms, and the parameters of the tower in millions."""
        stats = self.setting.norms
        params = sum(p.numel() for p in self.setting.backbone.module.parameters()) / 1e6
        rows = [Row("parameters", params, "millions", stats.summary["num_images"]), outlier_row(stats), tail_row(stats)]
        return pack(stats, rows, params=params, family=family_of(self.setting.model))


def family_of(model: str) -> str:
    """Return what models of several sizes have in common: ``dinov2-reg`` of ``dinov2-reg-s14``, else the name."""
    if model in ALIASES:
        return ALIASES[model].family
    return re.sub(r"_(tiny|small|base|large|huge|giant|so150m|medium)(?=_|$)", "", model)


def draw(drawn: Drawn) -> dict[str, Figure]:
    """Draw outliers and tails over the number of parameters."""
    models = [Sized(t, f.summary["family"], f.summary["params"], unpack(f)) for t, f in drawn]
    return {"sizes": draw_sizes(models)}


ITEMS = {"fig4c": Item(lambda setting, options: BySize(setting), draw)}
