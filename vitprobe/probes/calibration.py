"""Is the instrument right? Detectors and recorder against planted truth, noise, and a plant in a user's own model."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitprobe.backbones.base import Backbone
from vitprobe.backbones.organism import PlantedTruth
from vitprobe.errors import RecordingError
from vitprobe.probes.batch import Batch
from vitprobe.probes.histogram import NormHistogram
from vitprobe.probes.norms import measure_norms
from vitprobe.probes.outliers import DEFAULT_RULES, OutlierRule, find_two_modes
from vitprobe.recorder import Recorder, Site, token_norms

EXPECTED = {
    "organism": "artifacts",
    "organism-reg4": "none",
    "organism-content": "content outliers",
    "organism-clean": "none",
}
"""Verdicts that follow from what was planted."""
AUTO = OutlierRule("auto")
PLANT_RATIO = 10.0
"""A token planted in a user's model is scaled to this many times the median patch norm of its block."""
NOISE_DRAWS = 200
"""Sets of unimodal norms in which the bimodality test must find nothing."""


@dataclass(frozen=True)
class Detection:
    """Hold what one rule found of planted tokens."""

    subject: str
    rule: str
    cutoff: float | None
    planted: int
    found: int
    precision: float | None
    """Share of the tokens found that are planted; None where none was found."""
    recall: float | None
    """Share of the planted tokens that were found; None where none is planted."""
    false_alarms: float
    """Share of the other tokens that were found."""


@dataclass(frozen=True)
class Check:
    """Hold one statement that must be true of a sound instrument."""

    subject: str
    what: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Calibration:
    """Hold all that was tried."""

    detections: tuple[Detection, ...]
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def summary(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return {
            "passed": self.passed,
            "num_checks": len(self.checks),
            "failed": [asdict(check) for check in self.checks if not check.passed],
            "checks": [asdict(check) for check in self.checks],
            "detections": [asdict(detection) for detection in self.detections],
        }

    def __add__(self, other: "Calibration") -> "Calibration":
        return Calibration(self.detections + other.detections, self.checks + other.checks)


def detect(subject: str, norms: np.ndarray, planted: np.ndarray) -> tuple[Detection, ...]:
    """Apply every rule to norms (N, P) of which ``planted`` (N, P) are known to be outliers."""
    return tuple(_detect(subject, norms, planted, rule) for rule in DEFAULT_RULES)


def _detect(subject: str, norms: np.ndarray, planted: np.ndarray, rule: OutlierRule) -> Detection:
    cutoff = rule.cutoff(NormHistogram.of(norms))
    found = norms >= (np.inf if cutoff is None else cutoff)
    hits, number = int((found & planted).sum()), int(planted.sum())
    return Detection(
        subject=subject,
        rule=str(rule),
        cutoff=cutoff,
        planted=number,
        found=int(found.sum()),
        precision=hits / int(found.sum()) if found.any() else None,
        recall=hits / number if number else None,
        false_alarms=float((found & ~planted).sum() / max((~planted).sum(), 1)),
    )


def exact(subject: str, detection: Detection) -> Check:
    """State that a rule found all planted tokens and no other."""
    clean = detection.false_alarms == 0 and (detection.recall in (None, 1.0))
    detail = f"{detection.found} found, {detection.planted} planted, false alarms {detection.false_alarms:.2%}"
    return Check(subject, f"rule {detection.rule} finds the planted tokens and no other", clean, detail)


def calibrate_organism(
    backbone: Backbone, batches: Iterable[Batch], truth: Callable[[Backbone, Tensor], PlantedTruth]
) -> Calibration:
    """Compare what is found in an organism with what was planted in it: tokens, verdict, onset, dimension."""
    name, batches = backbone.spec.name, list(batches)
    images = torch.cat([batch.images for batch in batches])
    planted = truth(backbone, images)
    mask = planted.patches.numpy() & (EXPECTED[name] != "none")
    norms = block_norms(backbone, batches)[-1]
    detections = detect(name, norms, mask)
    summary = measure_norms(backbone, batches).result(AUTO, point=backbone.num_blocks - 1).summary
    checks = [exact(name, detections[0])]
    wanted, verdict = EXPECTED[name], summary["verdict"]
    checks.append(Check(name, f"the verdict is {wanted}", verdict == wanted, f"found {verdict}"))
    if mask.any():
        onset, dims = summary["onset_block"], summary["evidence"]["massive_dims"]
        checks.append(
            Check(name, f"outliers set in at block {planted.block}", onset == planted.block, f"found block {onset}")
        )
        right = bool(dims) and dims[0] == (planted.dimension, 1.0)
        checks.append(Check(name, f"their massive dimension is {planted.dimension}", right, f"found {dims[:1]}"))
    return Calibration(detections, (*checks, *check_recorder(backbone, images[:2])))


def calibrate_noise(backbone: Backbone, *, num_images: int = 16, seed: int = 0) -> Calibration:
    """Check that nothing is found in images of pure noise, at any block."""
    size = backbone.spec.image_size
    images = torch.randn(num_images, 3, *size, generator=torch.Generator().manual_seed(seed))
    names = tuple(f"noise{i}" for i in range(num_images))
    batch = _Images(names, tuple(range(num_images)), images)
    accumulator = measure_norms(backbone, [batch], blocks=range(backbone.num_blocks))
    verdicts = [accumulator.result(AUTO, point=p).summary["verdict"] for p in range(backbone.num_blocks)]
    loud = [str(block) for block, verdict in enumerate(verdicts) if verdict != "none"]
    subject = f"{backbone.spec.title}, noise images"
    detail = f"outliers at block {', '.join(loud)}" if loud else f"none at blocks 0 to {backbone.num_blocks - 1}"
    return Calibration((), (Check(subject, "nothing is found in pure noise", not loud, detail),))


def calibrate_bimodality(*, draws: int = NOISE_DRAWS, seed: int = 0) -> Calibration:
    """Count false alarms of the bimodality test on unimodal norms, and misses on bimodal ones, of known shares."""
    rng = np.random.default_rng(seed)
    kinds: dict[str, Callable[[], np.ndarray]] = {
        "log-normal": lambda: rng.lognormal(3, 0.5, 2000),
        "exponential": lambda: rng.exponential(10, 2000) + 0.1,
        "norms of Gaussian tokens": lambda: np.sqrt(rng.chisquare(384, 2000)),
    }
    checks = []
    for kind, draw in kinds.items():
        alarms = sum(find_two_modes(NormHistogram.of(draw())).bimodal for _ in range(draws))
        checks.append(Check(kind, "one mode is not called two", alarms == 0, f"{alarms} false alarms in {draws} draws"))
    missed = 0
    for _ in range(draws):
        both = np.concatenate([rng.normal(50, 12, 1950).clip(5), rng.normal(300, 60, 50).clip(150)])
        missed += not find_two_modes(NormHistogram.of(both)).bimodal
    checks.append(Check("2.5 % of tokens at 6 x the rest", "two modes are found", missed == 0, f"{missed} missed"))
    return Calibration((), tuple(checks))


def calibrate_model(backbone: Backbone, batches: Iterable[Batch], *, seed: int = 0) -> Calibration:
    """Plant an outlier in a model: scale the stream of one random patch of each image in the middle block.

    What the model has of its own, measured without the plant, counts as true. Every rule is tried at that block.
    """
    batches, block = list(batches), backbone.num_blocks // 2
    layout, rng = backbone.layout(), np.random.default_rng(seed)
    before = block_norms(backbone, batches)[block]  # (N, P)
    chosen = rng.integers(0, layout.num_patches, len(before))
    size = PLANT_RATIO * float(np.median(before))
    positions = torch.as_tensor(chosen) + layout.patches.start
    norms = block_norms(backbone, batches, plant=(block, positions, size))
    planted = np.zeros_like(before, dtype=bool)
    planted[np.arange(len(before)), chosen] = True
    own = find_two_modes(NormHistogram.of(before)).cutoff
    truth = planted | (before >= (np.inf if own is None else own))
    subject = f"{backbone.spec.title}, one token of each image x {PLANT_RATIO:g} at block {block}"
    detections = detect(subject, norms[block], truth)
    images = torch.cat([batch.images for batch in batches])[:2]
    return Calibration(detections, (exact(subject, detections[0]), *check_recorder(backbone, images)))


def check_recorder(backbone: Backbone, images: Tensor) -> tuple[Check, ...]:
    """Check the recorder on a model: outputs unchanged to the last bit, rows that add up to 1, attention reproduced."""
    subject, blocks = backbone.spec.title, range(backbone.num_blocks)
    device = next(backbone.module.parameters()).device
    images = images.to(device)
    rows = Site("attention_rows", queries=(0,)).at(blocks)
    with torch.inference_mode():
        bare = backbone(images)
        with Recorder(backbone, [*Site("resid_post", reduce=token_norms).at(blocks), *rows]) as recorder:
            equal = torch.equal(backbone(images), bare)
            taken = recorder.take()
    sums = max(float((taken[site].sum(dim=-1) - 1).abs().max()) for site in rows)
    try:
        backbone.check_attention()
        error = ""
    except RecordingError as problem:
        error = str(problem)
    return (
        Check(subject, "recording changes no bit of the output", equal, "equal" if equal else "differs"),
        Check(subject, "attention rows add up to 1", sums < 1e-5, f"largest error {sums:.1e}"),
        Check(subject, "rows times values, projected, are the model's own attention", not error, error or "agree"),
    )


def block_norms(
    backbone: Backbone, batches: Iterable[Batch], *, plant: tuple[int, Tensor, float] | None = None
) -> np.ndarray:
    """Compute patch norms of every block, (L, N, P); ``plant``: (block, token position of each image, its norm)."""
    layout, found, start = backbone.layout(), [], 0
    device = next(backbone.module.parameters()).device
    sites = Site("resid_post", reduce=token_norms).at(range(backbone.num_blocks))
    for batch in batches:
        number = len(batch.images)
        extra = []
        if plant is not None:
            block, positions, size = plant
            extra = [Site("resid_post", block, edit=_scale(positions[start : start + number], size), keep=False)]
        with torch.inference_mode(), Recorder(backbone, [*sites, *extra]) as recorder:
            backbone(batch.images.to(device))
            taken = recorder.take()
        found.append(torch.stack([taken[site] for site in sites])[:, :, layout.patches].cpu().numpy())
        start += number
    return np.concatenate(found, axis=1)


def _scale(positions: Tensor, size: float) -> Callable[[Tensor], Tensor]:
    """Return an edit that scales one token of each image to a norm."""

    def edit(x: Tensor) -> Tensor:
        x, each = x.clone(), torch.arange(len(positions))
        tokens = x[each, positions]
        x[each, positions] = tokens * (size / token_norms(tokens)).unsqueeze(-1).to(x.dtype)
        return x

    return edit


@dataclass(frozen=True)
class _Images:
    names: tuple[str, ...]
    indices: tuple[int, ...]
    images: Tensor
