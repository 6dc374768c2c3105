"""Figure 5 b and table 5 of Darcet et al. (arXiv 2309.16588): what one token tells of its own patch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from vitprobe.errors import ArgumentError
from vitprobe.plots.local_probes import draw_local
from vitprobe.probes.by_image import METHOD, Estimate
from vitprobe.probes.linear import ALPHA_GRID
from vitprobe.probes.local_probes import Both, chance_of, difference, probe_pairs, scored
from vitprobe.probes.passes import Reader
from vitprobe.probes.token_features import UNITS
from vitprobe.probes.token_sets import PATCH_KINDS, TokenSet, random_like, too_few
from vitprobe.reproduction.base import Drawn, Found, Item, Measurement, Row, Setting
from vitprobe.reproduction.token_draws import (
    TokenDraws,
    TokenOptions,
    counted,
    described,
    fit_options,
    gathered,
    numbers,
    pairing,
    told,
)

TRAINED = ("own", "normal", "both")
QUANTITIES = {"position": ("right place", "share"), "distance": ("distance to the place", "patches"),
              "pixels": ("error of pixels", "L2 of a patch")}  # fmt: skip
"""What a row says, and its unit."""
LABELS = {"normal": "normal patch", "outlier": "outlier patch", "random": "random features (control)"}
BLIND = {"position": "most frequent place", "distance": "a place at random", "pixels": "mean patch"}
"""What knows the training tokens' places and pixels alone."""
OTHER = ("position", "pixels")
"""What table 5 says of patches that are no outliers."""
PUBLISHED_PATCH, PUBLISHED_GRIDS = (14, 14), ((37, 37), (16, 16))
"""Of DINOv2 in figure 5 b and table 5, at 518 or 224 px: the paper does not say at which."""
Pair = tuple[str, str]


@dataclass(frozen=True)
class LocalOptions(TokenOptions):
    """Hold what figure 5 b leaves open."""

    num_draws: int = 8
    """Most tokens of each kind that are drawn of an image, none twice; all are trained and tested on together. Where
    kinds are paired, an image gives as many of one as of the other."""
    trained_on: str = "both"
    """``own``: a probe for each kind; ``normal``: one, trained on normal patches; ``both``, side by side."""
    alpha_grid: tuple[float, ...] = ALPHA_GRID
    """Strengths of the L2 term of the pixel probe, of which the best is chosen on a fifth of the training images."""
    unit: str = "model"
    """Of pixels: ``model``, as the model reads them, normalised; ``unit``, from 0 to 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (("trained_on", TRAINED), ("unit", UNITS)):
            if getattr(self, name) not in allowed:
                raise ArgumentError(f"got {name} {getattr(self, name)!r}; allowed are {', '.join(allowed)}")
        object.__setattr__(self, "alpha_grid", numbers(self.alpha_grid, "alpha_grid"))


class LocalProbes(Measurement):
    """Draw patches of both splits with their pixels, and read position and pixels from each kind."""

    def __init__(self, setting: Setting, options: LocalOptions) -> None:
        """Prepare to draw. Raises what `TokenReader` does."""
        self.setting, self.options = setting, options
        is_paired, self.said = pairing(setting, options)
        made = {"cutoff": setting.cutoff, "kinds": PATCH_KINDS, "paired": is_paired, "pixels": options.unit}
        self.draws = TokenDraws(setting, options, **made)

    def train_readers(self) -> Sequence[Reader]:
        """Return what draws patches of the training images."""
        return (self.draws.train,)

    def test_readers(self) -> Sequence[Reader]:
        """Return what draws patches of the test images."""
        return (self.draws.test,)

    def found(self) -> Found:
        """Return a row for each quantity and kind, differences within images, and controls."""
        setting, options, sets = self.setting, self.options, self.draws.sets()
        notes = [f"tokens at {self.draws.point} of block {setting.block}; {self.said}", self._scale()]
        notes += told(setting.cutoff)
        if setting.cutoff is not None and not self.draws.paired:
            notes.append(
                "kinds may differ in the number of tokens, so that a probe of one learns from more than another"
            )
        reasons = {kind: self._reason(kind, *pair) for kind, pair in sets.items()}
        notes += [f"{LABELS[kind]}: {reason}" for kind, reason in reasons.items() if reason]
        if reasons["normal"]:
            raise ArgumentError(f"nothing can be read: {reasons['normal']}; give more images, or paired=false")
        try:
            found = self._probe(sets, has_outliers=not reasons["outlier"])
        except ArgumentError as error:  # few tokens, and no place of a test token is a training one's
            if reasons["outlier"]:
                raise
            notes.append(f"{LABELS['outlier']}: {error}")
            found = self._probe(sets, has_outliers=False)
        scores = {pair: scored(both, seed=setting.seed) for pair, both in found.items()}
        trained = "the probe of normal patches" if options.trained_on == "normal" else "a probe of their own"
        summary = {
            **described(self.draws, setting, options, setting.cutoff),
            "rule": str(setting.rule),
            "trained_on": options.trained_on,
            "outliers_are_read_by": trained,
            "interval": f"{METHOD}; where all are right or all wrong, Wilson's",
            "alpha_grid": list(options.alpha_grid),
            "unit": options.unit,
            "images": counted(sets),
            "scores": [_stored(pair, found[pair], own) for pair, own in scores.items()],
            "notes": [*notes, *gathered(_said(found))],
        }
        return Found(tuple(self._rows(found, scores)), summary)

    def _reason(self, kind: str, train: TokenSet, test: TokenSet) -> str:
        if kind == "outlier" and self.setting.cutoff is None:
            return f"no outliers by rule {self.setting.rule}"
        return too_few(train, test)

    def _scale(self) -> str:
        """Say what the numbers are of: among how many places one is told, and how many pixels an error is over."""
        (height, width), (rows, cols) = self.setting.backbone.patch_size, self.setting.backbone.layout().grid
        unit = {"model": "as the model reads them (unit model)", "unit": "from 0 to 1 (unit unit)"}[self.options.unit]
        places = f"positions: 1 of {rows * cols}, a grid of {rows} x {cols}"
        return f"{places}; pixels: {3 * height * width} numbers of a {height} x {width} patch, {unit}"

    def _probe(self, sets: Mapping[str, tuple[TokenSet, TokenSet]], *, has_outliers: bool) -> dict[Pair, Both]:
        seed, options = self.setting.seed, self.options
        noise = tuple(random_like(one, seed=seed + i) for i, one in enumerate(sets["normal"]))
        pairs = [("normal", "normal"), ("random", "random")]
        if has_outliers:
            own, other = ("outlier", "outlier"), ("normal", "outlier")
            pairs += {"own": [own], "normal": [other], "both": [own, other]}[options.trained_on]
        fitted = fit_options(self.setting, options)
        return probe_pairs({**sets, "random": noise}, pairs, alpha_grid=options.alpha_grid, **fitted)

    def _rows(self, found: Mapping[Pair, Both], scores: Mapping[Pair, dict[str, Estimate]]) -> list[Row]:
        main = ("normal", "outlier") if self.options.trained_on == "normal" else ("outlier", "outlier")
        backbone, rows = self.setting.backbone, []
        alike = comparable(backbone.patch_size, backbone.layout().grid, self.options.unit)
        for name, (what, unit) in QUANTITIES.items():
            one = scores["normal", "normal"][name]
            is_like = name in alike
            keys = {kind: f"{name}.{kind}" if is_like else "" for kind in ("normal", "outlier", "other")}
            rows.append(_row(f"{what}, {LABELS['normal']}", one, unit, keys["normal"]))
            if name in OTHER and is_like:
                rows.append(_row(f"{what}, patches that are no outliers (table 5)", one, unit, keys["other"]))
            rows.append(_row(f"{what}, {LABELS['outlier']}", scores.get(main, {}).get(name), unit, keys["outlier"]))
            if main in scores and ("normal", "outlier") in scores and main[0] == "outlier":
                by_normal = scores["normal", "outlier"][name]
                rows.append(_row(f"{what}, {LABELS['outlier']}, probe of normal patches", by_normal, unit))
            if main in found:
                apart = difference(name, found[main], found["normal", "normal"], seed=self.setting.seed)
                rows.append(_row(f"{what}, outlier less normal patch, within images", apart, unit))
            rows.append(_row(f"{what}, {LABELS['random']}", scores["random", "random"][name], unit))
            for pair in (("normal", "normal"), main):
                if pair in found:
                    blind, number = chance_of(found[pair])[name], scores[pair][name].num_images
                    rows.append(Row(f"{what}, {LABELS[pair[1]]}, {BLIND[name]}", blind, unit, number))
        return rows


def comparable(patch: tuple[int, int], grid: tuple[int, int], unit: str) -> tuple[str, ...]:
    """Return which of `QUANTITIES` may stand beside the published numbers, which are of DINOv2's patches of 14 x 14.

    Pixels must be in the model's unit, and the grid one that DINOv2 is used with; the paper states neither.
    """
    places = ("position", "distance") if tuple(grid) in PUBLISHED_GRIDS else ()
    return (*places, *(("pixels",) if unit == "model" else ())) if tuple(patch) == PUBLISHED_PATCH else ()


def _row(what: str, one: Estimate | None, unit: str, key: str = "") -> Row:
    if one is None:
        return Row(what, None, unit, 0, key=key)
    return Row(what, one.value, unit, one.num_images, one.interval, key=key)


def _stored(pair: Pair, both: Both, own: Mapping[str, Estimate]) -> dict[str, Any]:
    position, pixels = both
    return {
        "trained_on": pair[0],
        "tested_on": pair[1],
        **{name: estimate.as_dict() for name, estimate in own.items()},
        "chance": chance_of(both),
        "num_train": position.fit.num_train,
        "num_test": position.fit.num_test,
        "num_unseen": position.num_unseen,
        "c": position.fit.c,
        "alpha": pixels.fit.alpha,
    }


def _said(found: Mapping[Pair, Both]) -> list[tuple[str, str]]:
    """Return what the fits have warned of, each trained probe once; noise has no best strength."""
    each = {trained: both for (trained, _), both in found.items() if trained != "random"}
    names = ("position", "pixels")
    return [
        (f"{name}, {LABELS[trained]}", note)
        for trained, both in each.items()
        for name, one in zip(names, both, strict=True)
        for note in one.fit.notes
    ]


def draw(drawn: Drawn) -> dict[str, Figure]:
    """Draw position and pixels by kind of token, all models on the same axes."""
    return {"local_probes": draw_local([(title, found.summary) for title, found in drawn])}


ITEMS = {"fig5b": Item(LocalProbes, draw, LocalOptions)}
