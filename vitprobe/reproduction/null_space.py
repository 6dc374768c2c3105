"""Figures 13 and 14 of Darcet et al. (arXiv 2309.16588): whether outliers lie in the null space of the values."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from vitprobe.plots.null_space import draw_null_space
from vitprobe.probes.null_space import EPS, NullSpace, NullSpaceReader
from vitprobe.probes.passes import Reader
from vitprobe.reproduction.base import Drawn, Found, Item, Measurement, Row, Setting


@dataclass(frozen=True)
class NullSpaceOptions:
    """Hold what figure 14 leaves open."""

    eps: float = EPS
    """A direction is null whose singular value is under this share of the largest."""


LINES = {
    "null_share": ("squared norm in the null space", "share"),
    "gain": ("gain of the value projection", "x its largest"),
    "value_norm": ("norm of the values", "L2"),
}
KINDS = {"outliers": "outliers", "others": "other patches"}


@dataclass(frozen=True)
class Values(Measurement):
    """Read what the value projection makes of the test images' patches."""

    setting: Setting
    reader: NullSpaceReader

    def test_readers(self) -> Sequence[Reader]:
        """Return the reader of what attention reads."""
        return (self.reader,)

    def found(self) -> Found:
        """Return means by kind beside those of random directions, differences, and the answers."""
        result, setting = self.reader.result(), self.setting
        summary = {**result.summary, "rule": str(setting.rule), "cutoff": setting.cutoff}
        rows = []
        for name, (what, unit) in LINES.items():
            for kind, label in KINDS.items():
                one = summary[name][kind]
                rows.append(Row(f"{what}, {label}", one["value"], unit, one["num_images"], one["interval"]))
            if (value := summary["random"].get(name)) is not None:
                rows.append(Row(f"{what}, random directions", value, unit, summary["num_images"]))
        for name, what in (("null_share", "squared norm in the null space"), ("gain", "gain")):
            one, unit = summary[name]["difference"], LINES[name][1]
            said = f"{what}, difference within an image"
            rows.append(Row(said, one["value"], unit, one["num_images"], one["interval"]))
        return Found(tuple(rows), summary, result.arrays())


def measure(setting: Setting, options: NullSpaceOptions) -> Values:
    """Prepare to read the setting's block. Raises what `NullSpaceReader` does."""
    reader = NullSpaceReader(
        setting.backbone, block=setting.block, cutoff=setting.cutoff, eps=options.eps, seed=setting.seed
    )
    return Values(setting, reader)


def draw(drawn: Drawn) -> dict[str, Figure]:
    """Draw the spectra of all models, and where their patches lie."""
    return {"null_space": draw_null_space([(title, unpack(found)) for title, found in drawn])}


def unpack(found: Found) -> NullSpace:
    """Return the null space from what was found."""
    return NullSpace(summary=dict(found.summary), **found.arrays)


ITEMS = {"fig13": Item(measure, draw, NullSpaceOptions)}
