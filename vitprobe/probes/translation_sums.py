"""The sums over places that a shifted map is set beside a base map by, an image at a time, and what chance would give.

All are sums of squared distances between feature vectors. Chance is the mean over every vector that could have been
drawn from the other images, which sums of vectors and of their squares give exactly: nothing is drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vitprobe.probes.shifts import Overlap

TARGETS = {
    "moved": (Overlap.moved, Overlap.moved_mask),
    "nearest": (Overlap.nearest, Overlap.nearest),
    "unmoved": (Overlap.stayed, Overlap.stayed),
}
"""What of the base map a shifted map is set beside: how its features are taken, and which of them count."""
COMPARED = (*TARGETS, "place", "image")
"""The same image where its content has gone, interpolated; the same at the nearest place; the same image at the same
place; other images at the same place; the same image at all its other places."""
FOLLOWED = ("content", "place", "both", "neither", "chance", "popular", "beyond_chance", "content_over_place")
"""Of the outliers of a shifted map: the share whose content alone was an outlier on the base map, whose place alone,
both, neither; the share that outliers strewn over the image would give; the share of other images that have an outlier
at that place; then the differences that are decided by: content (with both) less chance, and content less place."""
Sums = dict[str, tuple[Tensor, Tensor]]
"""By name what is divided and by what, (B,) float64 each."""


@dataclass
class Population:
    """Sum vectors and their squares, to know the mean squared distance of any vector from all of them."""

    total: Tensor
    """(D,), or (B, D) of each image, float64."""
    squares: Tensor
    """() or (B,) float64."""
    number: Tensor
    """() or (B,) float64."""

    @classmethod
    def of(cls, vectors: Tensor, mask: Tensor) -> "Population":
        """Sum those of each image that a mask names: (B, D, n) and (B, n) bool."""
        kept = vectors.double() * mask.unsqueeze(1)  # (B, D, n)
        return cls(kept.sum(dim=2), kept.square().sum(dim=(1, 2)), mask.sum(dim=1).double())

    def all_images(self) -> "Population":
        """Return the sums of all images of a batch together."""
        return Population(self.total.sum(dim=0), self.squares.sum(), self.number.sum())

    def plus(self, other: "Population") -> "Population":
        """Return the sums of both."""
        return Population(self.total + other.total, self.squares + other.squares, self.number + other.number)

    def without(self, own: "Population") -> "Population":
        """Take each image's own sums off those of all: what is left is of the other images."""
        return Population(self.total - own.total, self.squares - own.squares, self.number - own.number)

    def distances(self, vectors: Tensor) -> Tensor:
        """Return the mean squared distance of vectors from those of each image's population: (B, D, n) -> (B, n).

        It is nan where the population is empty.
        """
        mean, square = self.total / self.number.unsqueeze(1), self.squares / self.number  # (B, D), (B,)
        crossed = torch.einsum("bdn,bd->bn", vectors, mean.to(vectors.dtype)).double()
        return _squares(vectors) + square.unsqueeze(1) - 2 * crossed


@dataclass
class Places:
    """Sum the vectors of each place over images, and their squares."""

    total: Tensor
    """(D, rows, cols) float64"""
    squares: Tensor
    """(rows, cols) float64"""
    number: Tensor
    """(rows, cols) float64"""

    @classmethod
    def of(cls, maps: Tensor, keep: Tensor) -> "Places":
        """Sum what a mask (B, rows, cols) names of maps (B, D, rows, cols)."""
        kept = maps.double() * keep.unsqueeze(1)
        return cls(kept.sum(dim=0), kept.square().sum(dim=(0, 1)), keep.sum(dim=0).double())

    def plus(self, other: "Places") -> "Places":
        """Return the sums of both."""
        return Places(self.total + other.total, self.squares + other.squares, self.number + other.number)

    def distances(self, vectors: Tensor, own: Tensor, valid: Tensor, overlap: Overlap) -> Tensor:
        """Return the mean squared distance of vectors (B, D, n) from those of other images at their place: (B, n).

        ``own`` (B, D, n) are the image's own among the summed, where ``valid`` (B, n). It is nan without any other.
        """
        total, squares, number = (overlap.stayed(part) for part in (self.total, self.squares, self.number))
        left = number - valid.double()  # (B, n)
        square = (squares - valid * _squares(own)) / left
        crossed = torch.einsum("bdn,dn->bn", vectors, total.to(vectors.dtype)).double()
        crossed = crossed - valid * (vectors * own).sum(dim=1).double()
        return _squares(vectors) + square - 2 * crossed / left


@dataclass
class Reference:
    """Hold what the base maps of all images are like: the populations that chance draws from, and their centre.

    Distances do not depend on the origin; one amid the vectors keeps them from being small differences of large sums.
    """

    origin: Tensor
    """(D, 1, 1) taken off every map first."""
    overlaps: Sequence[Overlap]
    populations: dict[tuple[str, int], Population] = field(default_factory=dict)
    """By the name of a target and the number of a shift."""
    places: Places | None = None

    def add(self, maps: Tensor, keep: Tensor) -> None:
        """Take in base maps (B, D, rows, cols) and which of their places count (B, rows, cols)."""
        maps = maps - self.origin
        for i, overlap in enumerate(self.overlaps):
            for name, (take, take_mask) in TARGETS.items():
                new = Population.of(take(overlap, maps), take_mask(overlap, keep)).all_images()
                old = self.populations.get((name, i))
                self.populations[name, i] = new if old is None else old.plus(new)
        here = Places.of(maps, keep)
        self.places = here if self.places is None else self.places.plus(here)

    @property
    def mean(self) -> Tensor:
        """The mean of all places that count, from the origin: (D, 1)."""
        return (self.places.total.sum(dim=(1, 2)) / self.places.number.sum()).unsqueeze(1)

    def compare(self, i: int, maps: Tensor, base: Tensor, keep: tuple[Tensor, Tensor]) -> tuple[Sums, Tensor]:
        """Set maps of shift ``i`` beside base maps, (B, D, rows, cols) each; ``keep``: which places of each count.

        Returns the sums by names of `COMPARED`, and of ``cosine_`` and a target's; and by distance from the border
        what ``moved`` sums to, (K, 2) float64.
        """
        overlap, maps, base = self.overlaps[i], maps - self.origin, base - self.origin
        seen, kept = overlap.stayed(maps), overlap.stayed(keep[0])  # (B, D, n), (B, n)
        mean, found, rings = self.mean.to(maps.dtype), {}, None
        for name, (take, take_mask) in TARGETS.items():
            target, valid = take(overlap, base), take_mask(overlap, keep[1])
            own = Population.of(target, valid)
            chance = self.populations[name, i].without(own).distances(seen)  # (B, n)
            distance = _squares(seen - target)
            found[name] = _summed(distance, chance, kept & valid)
            cosine = cosine_similarity(seen - mean, target - mean, dim=1).double()  # (B, n)
            found[f"cosine_{name}"] = _summed(cosine, torch.ones_like(cosine), kept & valid)
            if name == "moved":
                rings = _by_ring(distance, chance, kept & valid, overlap)
            if name == "nearest":
                others = _other_places(seen, target, valid, own)
                found["image"] = _summed(others, chance, kept)
            if name == "unmoved":
                found["place"] = _summed(self.places.distances(seen, target, valid, overlap), chance, kept)
        return found, rings


def _squares(vectors: Tensor) -> Tensor:
    return vectors.square().sum(dim=1).double()  # (B, n)


def _summed(part: Tensor, whole: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over the places that a mask names and at which both are known: (B, n) each -> (B,) twice."""
    mask = mask & part.isfinite() & whole.isfinite()
    return tuple(torch.where(mask, values, 0.0).sum(dim=1) for values in (part, whole))


def _by_ring(part: Tensor, whole: Tensor, mask: Tensor, overlap: Overlap) -> Tensor:
    """Sum over images by distance from the border: (B, n) each -> (K, 2)."""
    mask, rings = mask & whole.isfinite(), overlap.rings.to(part.device)
    sums = torch.zeros(overlap.num_rings, 2, dtype=torch.float64, device=part.device)
    values = torch.stack([torch.where(mask, v, 0.0).sum(dim=0) for v in (part, whole)], dim=1)  # (n, 2)
    return sums.index_add(0, rings, values)


def _other_places(seen: Tensor, target: Tensor, valid: Tensor, own: Population) -> Tensor:
    """Return the mean squared distance from the image's own other places: (B, D, n) twice -> (B, n); nan without."""
    left = own.number.unsqueeze(1) - valid.double()  # (B, n)
    square = (own.squares.unsqueeze(1) - valid * _squares(target)) / left
    crossed = torch.einsum("bdn,bd->bn", seen, own.total.to(seen.dtype)).double()
    crossed = crossed - valid * (seen * target).sum(dim=1).double()
    return torch.where(left > 0, _squares(seen) + square - 2 * crossed / left, torch.nan)


def followed(overlap: Overlap, outliers: Tensor, base: Tensor, counts: Tensor, num_images: int) -> Sums:
    """Tell where the outliers of shifted maps were on the base maps, both (B, rows, cols) bool.

    ``counts`` (rows, cols): how many of all ``num_images`` images have an outlier there on the base map. Returns sums
    by the names of `FOLLOWED`. Where content has gone less than half a place, its nearest place is its own: nothing is
    told, and all sums are 0.
    """
    here = overlap.stayed(outliers) & overlap.is_elsewhere  # (B, n)
    content, place = overlap.nearest(base), overlap.stayed(base)
    chance = content.double().mean(dim=1, keepdim=True).expand(content.shape)  # (B, n)
    popular = (overlap.stayed(counts) - place.double()) / max(num_images - 1, 1)
    values = {
        "content": content & ~place,
        "place": place & ~content,
        "both": content & place,
        "neither": ~(content | place),
        "chance": chance,
        "popular": popular,
        "beyond_chance": content.double() - chance,
        "content_over_place": content.double() - place.double(),
    }
    number = here.sum(dim=1).double()
    return {name: ((here * value).sum(dim=1).double(), number) for name, value in values.items()}
