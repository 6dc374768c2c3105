"""What position embeddings know of the grid: how alike those of patches are, by their distance, row and column.

Dosovitskiy et al. (arXiv 2010.11929, section 4.5, figure 7, centre, and appendix D.4) show the cosine similarity of
each patch's position embedding with all others: nearer patches are more alike, and patches of one row or column. They
give no number; those below are set beside the same numbers with the positions shuffled (a Mantel test, Mantel 1967).
Shuffling takes all structure away. Embeddings that are smooth but the same in all directions vary more than shuffled
ones: of 10 random smooth tables (24 x 24, 768 channels) up to 3 had a row or column beyond p = 0.05, all by less than
0.005. So of rows and columns read the size, not the p-value alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitprobe.backbones.base import Backbone
from vitprobe.backbones.blank import blank, native_size
from vitprobe.backbones.trunk import MADE
from vitprobe.errors import ArgumentError, VitprobeError

NUM_SHUFFLES = 199
"""Shuffles of the positions: the smallest p-value is 1 / 200."""
MOST_POSITIONS = 576
"""Of a larger grid as many positions, drawn at random, make the numbers: pairs grow with the square."""
LINES = ("same row", "same column", "elsewhere")
"""Kinds of pairs of patches."""
INTERVAL = (2.5, 97.5)
"""Percentiles of the shuffled numbers."""


@dataclass(frozen=True)
class PositionResult:
    """Hold how alike position embeddings are; ``similarity`` is empty where ``summary`` says ``absent``."""

    summary: dict[str, Any]
    """``distance`` (rank correlation of similarity with nearness), ``row`` and ``column`` (how much more alike patches
    of one row or column are than others as far apart), each ``value``, ``shuffled_interval`` and ``p_value``, or
    ``absent``; the same under ``centred`` with the mean embedding taken off; what was done to the table."""
    similarity: np.ndarray
    """(rows, cols, rows, cols) cosine similarity of the position at the first two axes with that at the last two."""
    by_distance: np.ndarray
    """(3, n) mean similarity of pairs, by `LINES` and by distance, 1 to n patches (rounded); nan without pairs."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by the names of their fields."""
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}

    @classmethod
    def read(cls, arrays: Mapping[str, np.ndarray], summary: Mapping[str, Any]) -> "PositionResult":
        """Build a result back from its arrays and summary."""
        return cls(dict(summary), **arrays)


def measure_position_similarity(backbone: Backbone, *, seed: int = 0) -> PositionResult:
    """Compare the position embeddings of all patches of a backbone, as they are at its image size.

    Cosine similarity, not centred, as in the paper; CLS has no place in the grid and is left out, registers have no
    position. ``seed`` draws the shuffles. A model without a table of absolute positions gives ``absent``, and why.
    """
    table = patch_positions(backbone)
    rotary = getattr(backbone.module, "rope", None) is not None
    if table is None:
        what = "its positions are rotary: attention turns by them" if rotary else "it has no positions"
        return absent(f"{what}; no table of embeddings to compare")
    notes = _notes(backbone, table.num_prefix, rotary=rotary)
    return analyse_positions(table.patches, backbone.layout().grid, notes=notes, seed=seed)


def absent(why: str, **known: Any) -> PositionResult:
    """Return a result that says in one line why there is none."""
    return PositionResult({"absent": why, **known}, np.zeros((0, 0, 0, 0), np.float32), np.zeros((3, 0)))


@dataclass(frozen=True)
class PatchPositions:
    """Hold the table of absolute positions, without its prefix tokens."""

    patches: np.ndarray
    """(P, D)"""
    num_prefix: int
    """Rows of the table that belong to CLS or registers."""


def patch_positions(backbone: Backbone) -> PatchPositions | None:
    """Return a backbone's absolute positions of patches; None where it has none."""
    own = dict(backbone.module.named_parameters())
    named = [name for name in backbone.parameter_names("positions") if not name.startswith("rope.")]
    if not named:
        return None
    table = own[named[0]].detach().cpu().float()
    table = table.reshape(-1, table.shape[-1]).numpy()  # (P, 1 + P or T, D)
    layout = backbone.layout()
    cls = layout.positions("cls")
    for covered in ((), cls, layout.prefix):  # the table's rows are in the order of the tokens
        tokens = sorted((*covered, *layout.positions("patches")))
        if len(tokens) == len(table):
            rows = [i for i, token in enumerate(tokens) if token not in covered]
            return PatchPositions(table[rows], len(covered))
    raise ArgumentError(
        f"{backbone.spec.name} has {len(table)} positions for {layout.num_patches} patches and {len(layout.prefix)} "
        "other tokens; its table cannot be laid on the grid"
    )


def analyse_positions(
    table: np.ndarray, grid: tuple[int, int], *, notes: Mapping[str, Any] | None = None, seed: int = 0
) -> PositionResult:
    """Do what `measure_position_similarity` says with a table (P, D) of a grid; ``notes`` go into the summary."""
    table = table.astype(np.float64)
    summary: dict[str, Any] = {"grid": list(grid), "width": table.shape[1], **(notes or {})}
    if len(table) < 3 or not np.ptp(table, axis=0).any():
        why = "it has fewer than 3 patches" if len(table) < 3 else "its positions are all alike"
        return absent(f"{why}; there is nothing to compare", **summary)
    rng = np.random.default_rng(seed)
    chosen = np.arange(len(table))
    if len(table) > MOST_POSITIONS:
        chosen = np.sort(rng.choice(len(table), MOST_POSITIONS, replace=False))
    pairs = GridPairs.over(grid, chosen)
    shuffles = [rng.permutation(len(chosen)) for _ in range(NUM_SHUFFLES)]
    plain, centred = cosine(table), cosine(table - table.mean(axis=0))
    summary |= _numbers(plain[np.ix_(chosen, chosen)], pairs, shuffles)
    summary["centred"] = _numbers(centred[np.ix_(chosen, chosen)], pairs, shuffles)
    off = plain[~np.eye(len(plain), dtype=bool)]
    summary |= {
        "similarity_range": [float(off.min()), float(off.max())],
        "similarity_mean": float(off.mean()),
        "num_positions": len(chosen),
        "answer": _answer(summary["distance"]),
        "shuffles": f"{NUM_SHUFFLES} shuffles of the positions (seed {seed}); intervals are their middle 95 %",
    }
    kept = plain.reshape(*grid, *grid).astype(np.float32)
    return PositionResult(summary, kept, _by_distance(plain[np.ix_(chosen, chosen)], pairs))


def cosine(table: np.ndarray) -> np.ndarray:
    """Return the cosine similarity of all pairs of rows, (P, D) -> (P, P); 0 with a row of zeros."""
    unit = table / np.linalg.norm(table, axis=1, keepdims=True).clip(min=np.finfo(float).tiny)
    return unit @ unit.T


@dataclass(frozen=True)
class GridPairs:
    """Hold all unordered pairs of some positions of a grid, N of them."""

    first: np.ndarray
    """(N,) index of a position among those that were chosen."""
    second: np.ndarray
    distance: np.ndarray
    """(N,) Euclidean, in patches."""
    same_row: np.ndarray
    """(N,) bool"""
    same_col: np.ndarray

    @classmethod
    def over(cls, grid: tuple[int, int], chosen: np.ndarray) -> "GridPairs":
        """Pair positions of a grid, given by their numbers, row by row."""
        row, col = np.divmod(chosen, grid[1])
        first, second = np.triu_indices(len(chosen), 1)
        down, across = np.abs(row[first] - row[second]), np.abs(col[first] - col[second])
        return cls(first, second, np.hypot(down, across), down == 0, across == 0)


def line_weights(pairs: GridPairs, same: np.ndarray) -> np.ndarray | None:
    """Weigh pairs so that their similarities, (N,), add up to how much more alike pairs ``same`` (N,) line are.

    That is the mean over such pairs, less what other pairs show at the same distance. Others lie at no whole distance
    but a few, so the mean at each of their own distances is interpolated linearly (too high where similarity falls
    ever more slowly: the number errs towards 0); distances that they do not enclose, 1 patch and beyond their
    farthest, are left out. None where nothing is left to compare.
    """
    off = ~(pairs.same_row | pairs.same_col)
    if not off.any():
        return None
    squared = np.round(pairs.distance**2).astype(int)
    there, whose = np.unique(squared[off], return_inverse=True)
    knots, count = np.sqrt(there), np.bincount(whose)
    inside = same & (pairs.distance >= knots[0]) & (pairs.distance <= knots[-1])
    if not inside.any():
        return None
    share = 1 / inside.sum()
    upper = np.searchsorted(knots, pairs.distance[inside]).clip(1 if len(knots) > 1 else 0)
    lower = (upper - 1).clip(0)
    gap = np.where(upper > lower, knots[upper] - knots[lower], 1.0)
    part = (pairs.distance[inside] - knots[lower]) / gap  # of the upper knot
    at_knots = np.bincount(lower, 1 - part, len(knots)) + np.bincount(upper, part, len(knots))
    weights = np.where(inside, share, 0.0)
    weights[off] = -share * (at_knots / count)[whose]
    return weights


def _numbers(similar: np.ndarray, pairs: GridPairs, shuffles: list[np.ndarray]) -> dict[str, Any]:
    """Measure similarities (p, p) as they are, and with the positions shuffled."""
    from scipy.stats import rankdata

    rows, cols, side = pairs.first, pairs.second, len(similar)
    ranks = np.zeros_like(similar)
    ranks[rows, cols] = rankdata(similar[rows, cols])
    ranks += ranks.T
    near = rankdata(-pairs.distance)
    near -= near.mean()
    spread = np.std(ranks[rows, cols]) * np.std(near) * len(near)
    weights = {"distance": near / spread if spread > 0 else None}
    weights |= {"row": line_weights(pairs, pairs.same_row), "column": line_weights(pairs, pairs.same_col)}
    there = {name: weight for name, weight in weights.items() if weight is not None}

    def measure(order: np.ndarray) -> list[float]:
        at = order[rows] * side + order[cols]
        tables = {"ranks": ranks.ravel()[at], "similar": similar.ravel()[at]}
        return [weight @ tables["ranks" if name == "distance" else "similar"] for name, weight in there.items()]

    values = measure(np.arange(side))
    shuffled = np.array([measure(order) for order in shuffles])  # (S, n)
    found: dict[str, Any] = {
        name: {"absent": "the grid has no pairs of patches to compare it with"} for name in weights.keys() - there
    }
    for name, value, beside in zip(there, values, shuffled.T, strict=True):
        found[name] = {
            "value": float(value),
            "shuffled_interval": [float(end) for end in np.percentile(beside, INTERVAL)],
            "p_value": float((1 + (beside >= value).sum()) / (1 + len(beside))),
        }
    return found


def _by_distance(similar: np.ndarray, pairs: GridPairs) -> np.ndarray:
    """Return the mean similarity of pairs by `LINES` and rounded distance, (p, p) -> (3, n)."""
    values, bins = similar[pairs.first, pairs.second], np.round(pairs.distance).astype(int)
    found = []
    for mask in (pairs.same_row, pairs.same_col, ~(pairs.same_row | pairs.same_col)):
        count = np.bincount(bins[mask], minlength=bins.max() + 1)
        total = np.bincount(bins[mask], values[mask], bins.max() + 1)
        found.append(np.where(count > 0, total / count.clip(1), np.nan)[1:])
    return np.stack(found)


def _notes(backbone: Backbone, num_prefix: int, *, rotary: bool) -> dict[str, Any]:
    """Say what the table is: its size when it was made, what was left out, what else the model has."""
    size = list(backbone.spec.image_size)
    native = _native_size(backbone)
    notes: dict[str, Any] = {
        "image_size": size,
        "native_image_size": list(native) if native else None,
        "resized": None if native is None else list(native) != size,
        "prefix_rows_left_out": num_prefix,
        "has_rotary_positions_too": rotary,
    }
    if notes["resized"]:
        made = "{} x {} px".format(*native)
        notes["note"] = f"the table was made for {made} and resized ({backbone.spec.pos_embed}), which smooths it"
    elif native is None:
        notes["note"] = "it is not known for which image size the table was made"
    return notes


def _native_size(backbone: Backbone) -> tuple[int, int] | None:
    """Return the image size that the table was made for, by the architecture; None where that is not known."""
    spec, config = backbone.spec, getattr(backbone.module, "pretrained_cfg", None)
    if spec.weights.startswith(MADE):
        return spec.image_size
    if isinstance(config, Mapping) and config.get("input_size"):
        return tuple(config["input_size"][-2:])
    if spec.library == "vitprobe":  # a file of a reference ViT's, which does not say it
        return None
    try:
        return native_size(blank(spec.name))
    except VitprobeError:
        return None


def _answer(distance: Mapping[str, Any]) -> str:
    if "absent" in distance:
        return "cannot be told"
    low, high = distance["shuffled_interval"]
    if low <= distance["value"] <= high:
        return "as if shuffled"
    return "nearer are more alike" if distance["value"] > high else "nearer are less alike"
