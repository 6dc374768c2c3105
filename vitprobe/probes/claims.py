"""Claims on outlier tokens, each tested by a difference within images: what Darcet et al. say, on any cutoff.

arXiv 2603.25803 ("Do All ViTs Need Registers?") takes as outliers the patches over a model's 98th percentile of norms,
whatever the shape of their distribution, and finds that the claims do not hold of every model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vitprobe.errors import ArgumentError
from vitprobe.probes.by_image import FEWEST, METHOD, Estimate
from vitprobe.probes.histogram import EDGES, NUM_BINS, NormHistogram
from vitprobe.probes.norm_stats import PATCHES, NormStats
from vitprobe.probes.outliers import OutlierRule

CLAIMS = {
    "neighbours": "outliers resemble their neighbours at the patch embedding",
    "position": "outliers tell less of their position",
    "distance": "the position read from outliers is farther off",
    "pixels": "outliers tell less of their pixels",
    "classes": "outliers tell more of their image's class",
}
"""By name: those of section 2.1 of Darcet et al. (arXiv 2309.16588), figure 5 and table 1."""
UNITS = {
    "neighbours": "cosine",
    "position": "share",
    "distance": "patches",
    "pixels": "L2 of a patch",
    "classes": "share",
}
SIGNS = {"neighbours": 1, "position": -1, "distance": 1, "pixels": 1, "classes": 1}
"""1 where a claim says that outliers have more of it than the other patches, -1 where it says less."""
ANSWERS = {"yes": "holds", "no": "does not hold", "not clear": "not clear"}


@dataclass(frozen=True)
class Tested:
    """Hold one claim with its answer."""

    name: str
    """Of `CLAIMS`."""
    part: str
    """The task of labels, for ``classes``; else empty."""
    difference: Estimate
    """Outliers less the other patches, within images."""
    answer: str
    """``holds``, ``does not hold``, ``not clear``, or ``not tested: ...`` and why."""

    @property
    def label(self) -> str:
        """Name and part."""
        return f"{self.name}, {self.part}" if self.part else self.name

    @property
    def text(self) -> str:
        """The claim in words."""
        return f"{CLAIMS[self.name]} ({self.part})" if self.part else CLAIMS[self.name]

    def as_dict(self) -> dict[str, Any]:
        """Return the answer as JSON can hold it."""
        own = {"name": self.name, "part": self.part, "text": self.text, "unit": UNITS[self.name]}
        return {**own, "sign": SIGNS[self.name], **self.difference.as_dict(), "answer": self.answer}


def judge_claim(name: str, difference: Estimate, *, part: str = "") -> Tested:
    """Answer a claim by the difference outliers less others: it holds where the whole interval is on its side.

    It does not where the whole interval is on the other side, and is not clear where 0 is inside, or fewer than
    `vitprobe.probes.by_image.FEWEST` images have both kinds.
    """
    low_high = difference.interval
    flipped = None if low_high is None else (-low_high[1], -low_high[0])
    value = None if difference.value is None else -difference.value
    oriented = difference if SIGNS[name] > 0 else replace(difference, value=value, interval=flipped)
    return Tested(name, part, difference, ANSWERS[oriented.exceeds(0)])


def not_tested(name: str, reason: str, *, part: str = "") -> Tested:
    """Return a claim that could not be tested, with the reason."""
    return Tested(name, part, Estimate(None, None, 0), f"not tested: {reason}")


def overall(tested: Sequence[Tested]) -> str:
    """Put the answers of one claim on several tasks into one: ``holds`` where all do, else how many do."""
    answers = [one.answer for one in tested]
    if len(set(answers)) == 1:
        return answers[0]
    holds = sum(answer == ANSWERS["yes"] for answer in answers)
    return f"holds on {holds} of {len(answers)} tasks"


def cutoff_at(stats: NormStats, block: int, rule: OutlierRule) -> float | None:
    """Return a rule's cutoff for the patch norms of a block that statistics hold; None where it finds none.

    Raises `ArgumentError` for a block that they do not hold.
    """
    if not 0 <= block < len(stats.counts):
        raise ArgumentError(f"got block {block}; the norms are those of {len(stats.counts)} points")
    counts = np.zeros(NUM_BINS, np.int64)
    first = int(np.searchsorted(EDGES, stats.edges[0]))
    used = stats.counts[block, PATCHES]
    counts[first : first + len(used)] = used
    return rule.cutoff(NormHistogram(counts))


INTERVAL = f"{METHOD}; a claim is clear where it leaves 0 out and {FEWEST} images or more have both kinds"
