"""Single tokens that were drawn of images, one kind at one block: what a linear probe is trained on, and its file."""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from vitprobe import results
from vitprobe.errors import ArgumentError, InputError

PATCH_KINDS = ("normal", "outlier")
POINTS = ("resid_post", "final_norm")
SCHEMA = "vitprobe.tokens/1"
FEWEST_TRAIN, FEWEST_TEST = 30, 10
"""Images with a token of a kind, to train and to test on, below which no probe of that kind is trained."""
CONTROLS = 20_000
"""Most tokens of `random_like`, which are held in memory."""


@dataclass(frozen=True)
class TokenSet:
    """Hold N drawn tokens of one kind at one block, in the order of their images; features stay on disk."""

    kind: str
    """``normal``, ``outlier``, ``cls`` or ``register:K``."""
    block: int
    point: str
    """Where features were taken: ``resid_post`` of the block, or ``final_norm``, after the norm that follows it."""
    cutoff: float | None
    """Norm from which on a patch was called an outlier; None where the rule had found none."""
    grid: tuple[int, int]
    """(rows, cols) of the patch grid."""
    num_draws: int
    """Most tokens drawn of an image, one after the other: fewer where it had no more to draw, or, of paired sets, as
    many of the other kind. 1 for CLS and registers, of which an image has one."""
    features: np.ndarray
    """(N, D) float32, a memory map."""
    images: np.ndarray
    """(N,) position of the image in its source."""
    positions: np.ndarray
    """(N, 2) row and column of the patch; -1 for CLS and registers."""
    draws: np.ndarray
    """(N,) number of the draw, from 0."""
    num_images: int
    """Images looked at."""
    num_without: int
    """Images that have no row here: they had no such token, or, of paired sets, no outlier or no normal patch."""
    pixels: np.ndarray | None = None
    """(N, 3 * h * w) float32, a memory map: the patch's pixels; None where they were not read, or there is no patch."""

    def of_draw(self, draw: int) -> "TokenSet":
        """Return one token an image, those of one draw; of CLS and registers all, whatever the draw.

        Of an image with fewer tokens than draws they come again, in their order: of 2 the first in draws 0, 2, 4.
        Features stay on disk where all images have as many tokens as there are draws, else they are copied into memory.
        Raises `ArgumentError` for a draw that no image has.
        """
        if draw < 0 or (self.kind in PATCH_KINDS and draw >= self.num_draws):
            raise ArgumentError(f"got draw {draw}; {self.kind} tokens have draws 0 to {self.num_draws - 1}")
        if self.num_draws == 1:
            return self.rows(slice(None))
        _, starts, counts = np.unique(
            self.images, return_index=True, return_counts=True
        )  # an image's rows are together
        if (counts == self.num_draws).all():
            return replace(self.rows(slice(draw, None, self.num_draws)), num_draws=1)
        return replace(self.rows(np.sort(starts + draw % counts)), num_draws=1)

    def of_images(self, images: np.ndarray) -> "TokenSet":
        """Return the tokens of some images, by their positions in the source; features are copied into memory."""
        return self.rows(np.flatnonzero(np.isin(self.images, images)))

    def rows(self, rows: slice | np.ndarray) -> "TokenSet":
        """Return some rows; features stay on disk where the rows are a slice."""
        names = ("features", "images", "positions", "draws", *(("pixels",) if self.pixels is not None else ()))
        return replace(self, **{name: getattr(self, name)[rows] for name in names})


def too_few(train: TokenSet, test: TokenSet) -> str:
    """Say why no probe is trained on these sets, of one kind, and tested; empty where there are images enough."""
    for what, one, least in (("training", train, FEWEST_TRAIN), ("test", test, FEWEST_TEST)):
        if (number := one.num_images - one.num_without) < least:
            return f"{number} of {one.num_images} {what} images have {one.kind} tokens to compare; {least} are needed"
    return ""


def random_like(tokens: TokenSet, *, seed: int, most: int = CONTROLS) -> TokenSet:
    """Return the first ``most`` tokens with features of Gaussian noise, in memory: a control that knows nothing.

    The noise depends on the seed, and on nothing of the features.
    """
    part = tokens.rows(slice(most))
    noise = np.random.default_rng(seed).standard_normal(part.features.shape, np.float32)
    return replace(part, features=noise)


def open_tokens(folder: Path) -> dict[tuple[str, int], TokenSet]:
    """Open what `draw_tokens` has written, by (kind, block). Raises `InputError` where it is not there or not whole."""
    stored = results.load(folder)
    if stored.schema != SCHEMA:
        raise InputError(f"{folder} holds {stored.schema}, not {SCHEMA}; give a folder that draw_tokens has written")
    settings, found = stored.settings, {}
    for kind, block in product(settings["kinds"], settings["blocks"]):
        name = file_stem(kind, block)
        table = stored.arrays[name]  # (N, 4)
        has_pixels = settings.get("pixels") is not None and kind in PATCH_KINDS
        found[kind, block] = TokenSet(
            kind=kind,
            block=block,
            point=settings["point"],
            cutoff=settings["cutoffs"][str(block)],
            grid=tuple(settings["grid"]),
            num_draws=settings["num_draws"] if kind in PATCH_KINDS else 1,
            features=_open(folder / f"{name}.npy", len(table)),
            images=table[:, 0],
            positions=table[:, 1:3],
            draws=table[:, 3],
            num_images=settings["num_images"],
            num_without=settings["num_images"] - len(np.unique(table[:, 0])),
            pixels=_open(folder / f"{name}.pixels.npy", len(table)) if has_pixels else None,
        )
    return found


def _open(path: Path, rows: int) -> np.ndarray:
    try:  # a map of nothing cannot be made
        return np.load(path, mmap_mode="r" if rows else None, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is damaged ({error}); draw the tokens again") from error


def file_stem(kind: str, block: int) -> str:
    """Return how the files of one kind at one block begin: ``register0.block7``."""
    return f"{kind.replace(':', '')}.block{block}"
