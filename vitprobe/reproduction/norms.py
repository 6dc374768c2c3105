"""Figures 3, 4 a, 7, 10 and 15 of Darcet et al. (arXiv 2309.16588): token norms, by block, by kind, over the grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from vitprobe.backbones.zoo import ALIASES
from vitprobe.plots import norm_maps, norms, strips
from vitprobe.probes.norm_stats import KINDS, NormStats
from vitprobe.reproduction.base import Drawn, Found, Item, Measurement, Row, Setting

INTERVAL = "95 % over images, Poisson bootstrap"


@dataclass(frozen=True)
class NormsFound(Measurement):
    """Give out what the pass over the test images has found of their norms; reads nothing itself."""

    setting: Setting
    options: None
    rows: Any
    """Makes the rows of a table from the statistics."""

    def found(self) -> Found:
        """Return the statistics whole, and the item's rows."""
        return pack(self.setting.norms, self.rows(self.setting.norms))


def pack(stats: NormStats, rows: Sequence[Row], **more: Any) -> Found:
    """Put statistics of norms into what an item found; example images, which its figures do not show, are left out."""
    arrays = {k: v[:0] if k.startswith("example_") else v for k, v in stats.arrays().items()}
    return Found(tuple(rows), {"norms": stats.summary, "interval": INTERVAL, **more}, arrays)


def unpack(found: Found) -> NormStats:
    """Undo `pack`: statistics of norms, for their displays."""
    names = NormStats.__dataclass_fields__
    arrays = {name: value for name, value in found.arrays.items() if name in names}
    return NormStats(summary=dict(found.summary["norms"]), **arrays)


def outlier_row(stats: NormStats, what: str = "patches over the cutoff", key: str = "") -> Row:
    """Return the share of outliers at the summary's point."""
    summary = stats.summary
    low, high = summary["outlier_fraction_ci"]
    interval = None if low == high else (low, high)  # of none found, resampling says nothing
    return Row(what, summary["outlier_fraction"], "share", summary["num_images"], interval, key=key)


def tail_row(stats: NormStats) -> Row:
    """Return how far the upper tail is from the middle."""
    norm = stats.summary["norm"]
    return Row("99th percentile of norms", norm["p99"] / norm["median"], "medians", stats.summary["num_images"])


def _histogram_rows(stats: NormStats) -> list[Row]:
    number = stats.summary["num_images"]
    norm = [Row(f"{key} norm", stats.summary["norm"][key], "L2", number) for key in ("median", "max")]
    return [outlier_row(stats, key="outlier_share"), *norm, tail_row(stats)]


def _block_rows(stats: NormStats) -> list[Row]:
    onset = stats.summary["onset_block"]
    number = stats.summary["num_images"]
    first = Row("block from which on outliers stay", onset, "from 0", number)
    return [first, Row("number of blocks", len(stats.summary["blocks"]), "", number), outlier_row(stats)]


def _kind_rows(stats: NormStats) -> list[Row]:
    at, number = list(stats.levels).index(0.5), stats.summary["num_images"]
    medians = stats.quantiles[stats.point, :, at]
    rows = [
        Row(f"median norm of {kind}", float(m), "L2", number) for kind, m in zip(KINDS, medians, strict=True) if m == m
    ]
    return [*rows, outlier_row(stats)]


def _place_rows(stats: NormStats) -> list[Row]:
    evidence, number = stats.summary["evidence"], stats.summary["num_images"]
    most = float(stats.outlier_frequency.max())
    rim = stats.outlier_frequency.copy()
    rim[1:-1, 1:-1] = 0
    whole, rows, cols = stats.outlier_frequency.sum(), *stats.outlier_frequency.shape
    places = 2 * (rows + cols) - 4 if min(rows, cols) > 1 else rows * cols
    found = [Row("images with an outlier at the commonest place", most, "share", number)]
    if whole:
        found.append(Row("outliers at the rim of the grid", float(rim.sum() / whole), "share", number))
        found.append(Row("places at the rim of the grid", places / (rows * cols), "share", number))
        top = evidence["top_positions_share"]
        found.append(Row("outliers at the commonest 1 % of places", top, "share", number))
        even = evidence["top_positions_if_uniform"]
        found.append(Row("the same, were they spread evenly", even, "share", number))
    return found


def _draw(stem: str, figure: Any) -> Any:
    def draw(drawn: Drawn) -> dict[str, Figure]:
        return {stem: figure([(title, unpack(found)) for title, found in drawn])}

    return draw


def both_resizes(model: str) -> Sequence[Mapping[str, Any]]:
    """Return how a model is loaded for figures 10 and 11: DINOv2 without registers with both resizes of positions.

    The public code resizes without antialiasing where there are no registers; the paper traces the stripes to it.
    """
    entry = ALIASES.get(model)
    is_official = entry is not None and entry.family == "dinov2"
    return ({"pos_embed": "timm"}, {"pos_embed": "official"}) if is_official else ({},)


def _item(stem: str, figure: Any, rows: Any, **more: Any) -> Item:
    return Item(lambda setting, options: NormsFound(setting, options, rows), _draw(stem, figure), **more)


ITEMS = {
    "fig3": _item("histogram", norms.draw_histograms, _histogram_rows),
    "fig4a": _item("blocks", norms.draw_blocks, _block_rows),
    "fig7": _item("strips", strips.draw_strips, lambda stats: [outlier_row(stats), tail_row(stats)]),
    "fig10": _item("frequency", norm_maps.draw_frequency, _place_rows, variants=both_resizes),
    "fig15": _item("kinds", norms.draw_kinds, _kind_rows),
}
