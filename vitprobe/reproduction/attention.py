"""Figures 1 and 2 of Darcet et al. (arXiv 2309.16588): attention maps of several models on the same images."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from vitprobe.plots.attention import draw_maps
from vitprobe.probes.attention import AttentionMaps, AttentionReader
from vitprobe.probes.outliers import OutlierRule
from vitprobe.probes.passes import Reader
from vitprobe.reproduction.base import Drawn, Found, Item, Measurement, Row, Setting


@dataclass(frozen=True)
class MapsOptions:
    """Hold what figures 1 and 2 leave open."""

    num_shown: int = 6
    """Images, the first of the set."""
    query: str = ""
    """Whose attention; by default that of CLS, in a model without one of its registers, else the patches' mean."""


@dataclass(frozen=True)
class Maps(Measurement):
    """Read the attention maps of the first images."""

    setting: Setting
    options: MapsOptions
    reader: AttentionReader

    def test_readers(self) -> Sequence[Reader]:
        """Return the reader of the maps."""
        return (self.reader,)

    def found(self) -> Found:
        """Return the maps; outliers in them are those over the cutoff that all images gave."""
        cutoff = self.setting.cutoff
        none = 2 * self.setting.norms.summary["norm"]["max"]  # a rule needs a number; no norm is over this one
        maps = self.reader.result(OutlierRule("absolute", none if cutoff is None else cutoff))
        summary = {**maps.summary, "rule": str(self.setting.rule), "cutoff": cutoff}
        prefix, on_outliers, entropy = (
            float(sum(values := summary[key][-1]) / len(values))
            for key in ("prefix_share", "outlier_share", "entropy_bits")
        )
        number = summary["num_images"]
        rows = [
            Row("attention on CLS and registers", prefix, "share", number),
            Row("attention on outlier patches", on_outliers, "share", number),
            Row("patches that are outliers", summary["outlier_fraction"], "share", number),
            Row("entropy of a head's map", entropy, "bit", number),
        ]
        return Found(tuple(rows), {"maps": summary, "note": "of the images shown alone"}, maps.arrays())


def measure(setting: Setting, options: MapsOptions) -> Maps:
    """Prepare to read the maps after the setting's block."""
    reader = AttentionReader(
        setting.backbone, query=options.query or None, blocks=[setting.block], most=options.num_shown
    )
    return Maps(setting, options, reader)


def draw(drawn: Drawn) -> dict[str, Figure]:
    """Draw all models' maps on one scale, in multiples of the uniform share."""
    return {"maps": draw_maps([(title, unpack(found)) for title, found in drawn])}


def unpack(found: Found) -> AttentionMaps:
    """Return the maps from what was found."""
    return AttentionMaps(summary=dict(found.summary["maps"]), **found.arrays)


ITEMS = {"fig1": Item(measure, draw, MapsOptions)}
