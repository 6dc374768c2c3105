"""Figure 20 of Darcet et al. (arXiv 2309.16588): the first principal component of patch features."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from vitprobe.plots.components import draw_components
from vitprobe.probes.components import FITS, LIMIT, ComponentReader, Components
from vitprobe.probes.passes import Reader
from vitprobe.reproduction.base import Drawn, Found, Item, Measurement, Row, Setting


@dataclass(frozen=True)
class ComponentOptions:
    """Hold what figure 20 leaves open."""

    over: str = "images"
    """Whose patches the component is fitted to: all ``images``' together, or ``each`` image's apart."""
    point: str = "output"
    """``output``: after the final norm where all tokens pass one right after the block, else as the next;
    ``resid_post``; ``final_norm``."""
    num_shown: int = 8
    """Images that are drawn, the first of the set."""
    num_scored: int = 64
    """Images, the first of the set, by whose patches outliers are told from the rest; their features are in memory."""


WITH = {"all": "all patches", "without_outliers": "without outliers"}


@dataclass(frozen=True)
class FirstComponent(Measurement):
    """Read the features of the test images' patches."""

    setting: Setting
    reader: ComponentReader

    def test_readers(self) -> Sequence[Reader]:
        """Return the reader of the features."""
        return (self.reader,)

    def found(self) -> Found:
        """Return the variance in the component, with and without outliers, and how far those stand out in it."""
        result, setting = self.reader.result(), self.setting
        summary = {**result.summary, "rule": str(setting.rule), "cutoff": setting.cutoff}
        lines = {
            "variance": ("variance in the component", "share"),
            "auroc": ("outliers by its size", "AUROC"),
            "beyond": (f"outliers over {LIMIT:g} standard deviations", "share"),
        }
        rows = []
        for name, (what, unit) in lines.items():
            for fit in FITS:
                one = summary[name][fit]
                rows.append(Row(f"{what}, {WITH[fit]}", one["value"], unit, one["num_images"], one["interval"]))
        return Found(tuple(rows), summary, result.arrays())


def measure(setting: Setting, options: ComponentOptions) -> FirstComponent:
    """Prepare to read; outliers are those after the setting's block. Raises what `ComponentReader` does."""
    reader = ComponentReader(
        setting.backbone,
        block=setting.block,
        cutoff=setting.cutoff,
        over=options.over,
        point=options.point,
        num_shown=options.num_shown,
        num_scored=options.num_scored,
        seed=setting.seed,
    )
    return FirstComponent(setting, reader)


def draw(drawn: Drawn) -> dict[str, Figure]:
    """Draw the component of all models, and, where a model has outliers, once more fitted without them."""
    results = [(title, unpack(found)) for title, found in drawn]
    has_outliers = any(found.summary["num_outliers"] for _, found in results)
    stems = {"components": FITS[0]} | ({"components-without-outliers": FITS[1]} if has_outliers else {})
    return {stem: draw_components(results, fit=fit) for stem, fit in stems.items()}


def unpack(found: Found) -> Components:
    """Return the components from what was found."""
    return Components(summary=dict(found.summary), **found.arrays)


ITEMS = {"fig20": Item(measure, draw, ComponentOptions)}
