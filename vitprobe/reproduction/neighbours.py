"""Figure 5 a of Darcet et al. (arXiv 2309.16588): outliers are patches that resemble their neighbours."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from vitprobe.plots.neighbours import draw_neighbours
from vitprobe.probes.neighbours import BANDWIDTH, HIGH, NeighbourCosines, NeighbourReader
from vitprobe.probes.passes import Reader
from vitprobe.reproduction.base import Drawn, Found, Item, Measurement, Row, Setting


@dataclass(frozen=True)
class NeighbourOptions:
    """Hold what figure 5 a leaves open."""

    bandwidth: float = BANDWIDTH
    """Of the density's Gaussian kernel, in units of cosine."""


@dataclass(frozen=True)
class Neighbours(Measurement):
    """Read the cosines of the test images' patches with their neighbours."""

    setting: Setting
    options: NeighbourOptions
    reader: NeighbourReader

    def test_readers(self) -> Sequence[Reader]:
        """Return the reader of the cosines."""
        return (self.reader,)

    def found(self) -> Found:
        """Return means by kind, their difference, and the answer to the paper's claim."""
        setting = self.setting
        result = self.reader.result()
        summary = {**result.summary, "block": setting.block, "rule": str(setting.rule), "cutoff": setting.cutoff}
        lines = {
            "outliers": ("mean cosine, outliers", "cosine"),
            "others": ("mean cosine, other patches", "cosine"),
            "difference": ("difference within an image", "cosine"),
            "over_high": (f"outliers over the {HIGH:.0%} quantile of the others ({1 - HIGH:.0%} if alike)", "share"),
        }
        rows = []
        for name, (what, unit) in lines.items():
            one = summary[name]
            rows.append(Row(what, one["value"], unit, one["num_images"], one["interval"]))
        return Found(tuple(rows), summary, result.arrays())


def measure(setting: Setting, options: NeighbourOptions) -> Neighbours:
    """Prepare to read; outliers are those after the setting's block. Raises what `NeighbourReader` does."""
    reader = NeighbourReader(
        setting.backbone,
        block=setting.block,
        cutoff=setting.cutoff,
        bandwidth=options.bandwidth,
        seed=setting.seed,
    )
    return Neighbours(setting, options, reader)


def draw(drawn: Drawn) -> dict[str, Figure]:
    """Draw the densities of all models."""
    return {"neighbours": draw_neighbours([(title, unpack(found)) for title, found in drawn])}


def unpack(found: Found) -> NeighbourCosines:
    """Return the cosines from what was found."""
    return NeighbourCosines(summary=dict(found.summary), **found.arrays)


ITEMS = {"fig5a": Item(measure, draw, NeighbourOptions)}
