"""Say what outlier tokens are: artifacts, content, or nothing at all."""

from dataclasses import dataclass

from vitprobe.probes.evidence import Evidence
from vitprobe.probes.outliers import MIN_RATIO, Bimodality

VERDICTS = ("none", "artifacts", "content outliers", "unclear")
LOW, HIGH = 0.35, 0.65
"""A mean rank within the image below LOW, or above HIGH, is a clear preference; 0.5 is none."""
MIN_OUTLIERS, MIN_IMAGES = 10, 3
"""With fewer outliers, or in fewer images, where they lie is not judged."""


@dataclass(frozen=True)
class Verdict:
    """Hold the answer and the sentences that it rests on."""

    answer: str
    reasons: tuple[str, ...]


def judge(modes: Bimodality, evidence: Evidence) -> Verdict:
    """Judge the patch tokens of one block.

    ``none``: the norms have one mode (`find_two_modes`), whatever a fixed cutoff says, and no token lies beyond a gap
    of more than a factor of 2. Otherwise, of the tokens over the rule's cutoff:

    ``artifacts``: they lie on low-information patches. Within their image their mean rank in pixel contrast is at most
    0.35, that in neighbour cosine at the patch embedding is over 0.5 (Darcet et al., arXiv 2309.16588, section 2.1; no
    more is asked, since on a plain background most patches are as even as they), neither 95 % interval over
    images holds 0.5, and the gap survives when the image's mean token is subtracted (centred norms of outliers at least
    twice the others').

    ``content outliers``: they lie elsewhere. Neither sign points to low information, and at least one points
    clearly the other way (contrast rank at least 0.65, or cosine rank at most 0.35, interval clear of 0.5). Small
    models exist whose top tokens pass every norm, share, sink and massive-dimension test and are foreground objects.

    ``unclear``: anything else: signs that disagree, no preference, too few outliers or images to call a mode or to
    judge it, a gap that goes with the mean token, a rule that finds none of the tokens of the upper mode.
    """
    if not modes.bimodal and modes.beyond_gap:
        few = f"{modes.beyond_gap} tokens lie beyond a gap of more than a factor of 2"
        return Verdict("unclear", (f"{few}, too few to call a second mode: measure more images",))
    if not modes.bimodal:
        return Verdict("none", ("the norms have one mode: no artifact tokens",))
    if evidence.num_outliers < MIN_OUTLIERS or evidence.num_images_with_outliers < MIN_IMAGES:
        few = f"{evidence.num_outliers} outliers in {evidence.num_images_with_outliers} images"
        return Verdict(
            "unclear", (f"two modes, but {few}: at least {MIN_OUTLIERS} in {MIN_IMAGES} are needed to judge",)
        )
    contrast, cosine = evidence.pixel_contrast, evidence.neighbour_cosine
    reasons = [
        f"within its image an outlier's pixel contrast ranks {contrast.rank:.2f} (0 lowest, 0.5 chance)",
        f"its cosine with its neighbours at the patch embedding ranks {cosine.rank:.2f} (1 highest, 0.5 chance)",
    ]
    low_contrast = contrast.rank <= LOW and _clear(contrast.rank_ci)
    even = cosine.rank > 0.5 and _clear(cosine.rank_ci)
    high_contrast = contrast.rank >= HIGH and _clear(contrast.rank_ci)
    low_cosine = cosine.rank <= LOW and _clear(cosine.rank_ci)
    survives = (evidence.centred_ratio or 0) >= MIN_RATIO
    if low_contrast and even:
        reasons.append(f"without the mean token the ratio of norms is {evidence.centred_ratio or 0:.1f}")
        return Verdict("artifacts" if survives else "unclear", tuple(reasons))
    elsewhere = not low_contrast and not even and (high_contrast or low_cosine)
    reasons.append("not on low-information patches" if elsewhere else "the signs do not agree on where outliers lie")
    return Verdict("content outliers" if elsewhere else "unclear", tuple(reasons))


def _clear(interval: tuple[float | None, float | None]) -> bool:
    """Tell whether an interval leaves out 0.5."""
    low, high = interval
    return low is not None and high is not None and not low <= 0.5 <= high
