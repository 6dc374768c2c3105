"""The claims of Darcet et al. (arXiv 2309.16588) on outliers, over a percentile of norms as arXiv 2603.25803 cuts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from vitprobe.errors import ArgumentError
from vitprobe.plots.claims import draw_claims
from vitprobe.probes.claims import CLAIMS, INTERVAL, UNITS, Tested, cutoff_at, judge_claim, not_tested, overall
from vitprobe.probes.linear import ALPHA_GRID
from vitprobe.probes.local_probes import QUANTITIES, difference, probe_pairs
from vitprobe.probes.neighbours import NeighbourReader
from vitprobe.probes.outliers import OutlierRule
from vitprobe.probes.passes import Reader
from vitprobe.probes.token_classes import classify_tokens
from vitprobe.probes.token_features import UNITS as PIXEL_UNITS
from vitprobe.probes.token_means import paired_difference
from vitprobe.probes.token_sets import PATCH_KINDS, TokenSet, too_few
from vitprobe.reproduction.base import Drawn, Found, Item, Measurement, Row, Setting
from vitprobe.reproduction.token_draws import (
    TokenDraws,
    TokenOptions,
    counted,
    described,
    fit_options,
    gathered,
    numbers,
    shared_tasks,
    told,
)

TRAINED = (
    "intervals are over test images, of probes as they were trained: on made-up tokens without any difference 7 % of "
    "the answers on position and pixels were that a claim holds, where 2.5 % are meant; look at several seeds"
)
CONTRAST = (
    "errors of pixels are larger where patches of a kind differ more from each other, whatever their tokens tell; "
    "fig5b sets what the mean patch reaches beside them"
)
Sets = Mapping[str, tuple[TokenSet, TokenSet]]


@dataclass(frozen=True)
class ClaimOptions(TokenOptions):
    """Hold what is left open of the claims; kinds are always read of the same images, each by its own probe."""

    num_draws: int = 4
    """Most tokens of each kind that are drawn of an image, none twice; as many of one kind as of the other. All are
    trained and tested on, one an image and draw where the class is read."""
    cut: str = "p98"
    """Rule that tells outliers here, whatever ``--rule`` says: the 98th percentile of the model's norms."""
    alpha_grid: tuple[float, ...] = ALPHA_GRID
    """Strengths of the L2 term of the pixel probe."""
    unit: str = "model"
    """Of pixels: ``model``, as the model reads them, normalised; ``unit``, from 0 to 1."""
    tasks: tuple[str, ...] = ()
    """Tasks of labels that are read; all where none is named."""

    def __post_init__(self) -> None:
        super().__post_init__()
        OutlierRule.parse(str(self.cut))
        if self.unit not in PIXEL_UNITS or self.paired is not True:
            raise ArgumentError(
                f"got unit {self.unit!r}, paired {self.paired}; allowed are {', '.join(PIXEL_UNITS)}, and true"
            )
        object.__setattr__(self, "alpha_grid", numbers(self.alpha_grid, "alpha_grid"))
        object.__setattr__(self, "tasks", (self.tasks,) if isinstance(self.tasks, str) else tuple(self.tasks))


class Claims(Measurement):
    """Draw patches over the percentile and others of both splits, and set them side by side, claim by claim."""

    def __init__(self, setting: Setting, options: ClaimOptions) -> None:
        """Prepare to read. Raises what the readers do, and `ArgumentError` where the rule finds no cutoff."""
        self.setting, self.options = setting, options
        self.tasks = shared_tasks(setting, options.tasks)
        self.cutoff = cutoff_at(setting.norms, setting.block, OutlierRule.parse(str(options.cut)))
        if self.cutoff is None:
            raise ArgumentError(f"rule {options.cut} finds no outliers; give a percentile, such as cut=p98")
        made = {"cutoff": self.cutoff, "kinds": PATCH_KINDS, "paired": True, "pixels": options.unit}
        self.draws = TokenDraws(setting, options, **made)
        self.neighbours = NeighbourReader(setting.backbone, block=setting.block, cutoff=self.cutoff, seed=setting.seed)

    def train_readers(self) -> Sequence[Reader]:
        """Return what draws patches of the training images."""
        return (self.draws.train,)

    def test_readers(self) -> Sequence[Reader]:
        """Return what draws patches of the test images, and what reads their cosines with their neighbours."""
        return (self.draws.test, self.neighbours)

    def found(self) -> Found:
        """Return the difference that each claim is about, with the answers."""
        setting, options, sets, notes = self.setting, self.options, self.draws.sets(), []
        cosines = self.neighbours.accumulator.means.estimate("difference")
        tested = [judge_claim("neighbours", cosines)]
        reason = next(filter(None, (too_few(*sets[kind]) for kind in ("outlier", "normal"))), "")
        tested += self._local(sets, reason, notes) + [self._classes(task, sets, reason, notes) for task in self.tasks]
        answers = {name: overall([one for one in tested if one.name == name]) for name in CLAIMS}
        rows = [_row(one) for one in tested]
        share = setting.norms.outlier_fractions[setting.block] if setting.cutoff is not None else 0.0
        seen = f"rule {setting.rule} calls {share:.2%} of patches outliers" if share else f"rule {setting.rule}: none"
        summary = {
            **described(self.draws, setting, options, self.cutoff),
            "cut": str(options.cut),
            "rule": str(setting.rule),
            "share_by_rule": float(share),
            "interval": INTERVAL,
            "unit": options.unit,
            "alpha_grid": list(options.alpha_grid),
            "images": counted(sets),
            "claims": CLAIMS,
            "answers": answers,
            "tested": [one.as_dict() for one in tested],
            "notes": [
                f"outliers: norms over {options.cut} of block {setting.block}; {seen}",
                *told(self.cutoff, f"the {options.cut} cutoff of the test images' norms"),
                CONTRAST,
                TRAINED,
                *gathered(notes),
            ],
        }
        return Found(tuple(rows), summary)

    def _local(self, sets: Sets, reason: str, notes: list[tuple[str, str]]) -> list[Tested]:
        """Test the claims on position and pixels."""
        if reason:
            return [not_tested(name, reason) for name in QUANTITIES]
        fitted = fit_options(self.setting, self.options)
        pairs = [(kind, kind) for kind in PATCH_KINDS]
        try:
            found = probe_pairs(sets, pairs, alpha_grid=self.options.alpha_grid, **fitted)
        except ArgumentError as error:  # few tokens, and no place of a test token is a training one's
            return [not_tested(name, str(error)) for name in QUANTITIES]
        for (kind, _), (position, pixels) in found.items():
            notes += [(f"position, {kind} patch", note) for note in position.fit.notes]
            notes += [(f"pixels, {kind} patch", note) for note in pixels.fit.notes]
        normal, outlier = (found[pair] for pair in pairs)
        return [judge_claim(name, difference(name, outlier, normal, seed=self.setting.seed)) for name in QUANTITIES]

    def _classes(self, task: str, sets: Sets, reason: str, notes: list[tuple[str, str]]) -> Tested:
        """Test the claim on the class of the image, for one task."""
        if reason:
            return not_tested("classes", reason, part=task)
        labels = [getattr(self.setting, split).labels[task] for split in ("train", "test")]
        fitted = fit_options(self.setting, self.options)
        try:
            found = {kind: classify_tokens(*sets[kind], *labels, **fitted) for kind in PATCH_KINDS}
        except ArgumentError as error:  # a task of one class, say; the others stand
            return not_tested("classes", str(error), part=task)
        notes += [(f"{task}, {kind} patch", note) for kind, one in found.items() for note in one.notes]
        apart = paired_difference(found["outlier"].hits, found["normal"].hits, seed=self.setting.seed)
        return judge_claim("classes", apart, part=task)


def _row(one: Tested) -> Row:
    what = f"{one.label}: outliers less others"
    return Row(what, one.difference.value, UNITS[one.name], one.difference.num_images, one.difference.interval)


def draw(drawn: Drawn) -> dict[str, Figure]:
    """Draw a panel for each claim: the difference of every model, and the side on which the claim holds."""
    return {"claims": draw_claims([(title, found.summary) for title, found in drawn])}


ITEMS = {"claims98": Item(Claims, draw, ClaimOptions)}
