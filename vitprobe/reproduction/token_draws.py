"""What items share that train probes on single tokens: which are drawn, of which images, and of how many.

Like `base`, this file is shared ground inside `vitprobe.reproduction`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vitprobe.errors import ArgumentError
from vitprobe.probes.feature_file import POINTS, feature_site
from vitprobe.probes.linear import C_GRID
from vitprobe.probes.token_features import TokenReader
from vitprobe.probes.token_sets import FEWEST_TEST, TokenSet
from vitprobe.reproduction.base import Setting

SOLVERS = ("auto", "sklearn", "torch")
TOLD = "outliers are told by {} (no labels are used), in training images too"
AGAIN = "independent of each other, so that a token may be drawn again; a probe is trained on each draw alone"
DISTINCT = "no token is drawn twice; an image gives {}, at most num_draws"


@dataclass(frozen=True)
class TokenOptions:
    """Hold what is left open wherever single tokens are probed."""

    num_draws: int = 3
    """Random tokens of each kind that are drawn of an image."""
    point: str = "auto"
    """Where features are taken: ``final_norm``, ``resid_post``, or ``auto``, after the final norm where the model has
    one and the block is its last. Darcet et al. do not say."""
    paired: bool = True
    """Whether all kinds are read of the same images, those that have both an outlier and a normal patch; else of all
    images that have the kind. Darcet et al. do not say."""
    solver: str = "auto"
    """``sklearn``, ``torch`` (the same objective, on the model's device), or ``auto``: torch on a GPU."""
    c_grid: tuple[float, ...] = C_GRID
    """Inverse strengths of the L2 term, of which the best is chosen on a fifth of the training images."""

    def __post_init__(self) -> None:
        for name, allowed in (("point", POINTS), ("solver", SOLVERS), ("paired", (True, False))):
            if getattr(self, name) not in allowed:
                raise ArgumentError(f"got {name} {getattr(self, name)!r}; allowed are {', '.join(map(str, allowed))}")
        if type(self.num_draws) is not int or self.num_draws < 1:
            raise ArgumentError(f"got {self.num_draws!r} draws; give a whole number from 1 on")
        object.__setattr__(self, "c_grid", numbers(self.c_grid, "c_grid"))


def numbers(given: Any, name: str) -> tuple[float, ...]:
    """Return one number, or several, as a tuple. Raises `ArgumentError` for anything else."""
    found = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given,)
    if not found or any(isinstance(one, bool) or not isinstance(one, int | float) for one in found):
        raise ArgumentError(f"got {name} {given!r}; give a number, or several with commas")
    return tuple(float(one) for one in found)


class TokenDraws:
    """Draw tokens of the training and of the test images of one model into an item's folder."""

    def __init__(
        self,
        setting: Setting,
        options: TokenOptions,
        *,
        cutoff: float | None,
        kinds: Sequence[str],
        paired: bool,
        pixels: str | None = None,
        replacement: bool = False,
    ) -> None:
        """Prepare to draw ``kinds`` at the setting's block; ``pixels`` and ``replacement`` as `TokenReader` has them.

        The splits are drawn apart: if training and test image i gave tokens of the same places, the test images would
        follow what is chance in the places of the training images. Raises what `TokenReader` does.
        """
        self.point = feature_site(setting.backbone, setting.block, options.point).kind
        self.paired, self.kinds, self.replacement = paired, tuple(kinds), replacement
        made = {
            "rule_cutoff": cutoff,
            "kinds": self.kinds,
            "blocks": (setting.block,),
            "num_draws": options.num_draws,
            "seed": setting.seed,
            "point": self.point,
            "paired": paired,
            "replacement": replacement,
            "pixels": pixels,
            "autocast": setting.autocast,
        }
        self.block = setting.block
        self.train, self.test = (
            TokenReader(setting.backbone, setting.folder / f"tokens-{name}", split=split, **made)
            for split, name in enumerate(("train", "test"))
        )

    def sets(self) -> dict[str, tuple[TokenSet, TokenSet]]:
        """Return tokens to train and to test on, by kind. Raises what `TokenReader.finish` does."""
        train, test = self.train.finish(), self.test.finish()
        return {kind: (train[kind, self.block], test[kind, self.block]) for kind in self.kinds}


def pairing(setting: Setting, options: TokenOptions) -> tuple[bool, str]:
    """Decide whether kinds are read of the same images, and say so; they are not where hardly any has an outlier."""
    if setting.cutoff is None:
        return False, f"rule {setting.rule} finds no outliers: the other kinds are read of all images"
    number = int(setting.norms.outliers_per_image[1:].sum())
    if number < FEWEST_TEST:
        return False, f"{number} test images have an outlier: the other kinds are read of all images"
    if not options.paired:
        return False, "each kind is read of all images that have it"
    return True, "all kinds are read of the same images, those with both an outlier and a normal patch"


def fit_options(setting: Setting, options: TokenOptions) -> dict[str, Any]:
    """Return what probes of classes are fitted with: grid of C, seed, solver, device."""
    device = next(setting.backbone.module.parameters()).device
    solver = ("torch" if device.type == "cuda" else "sklearn") if options.solver == "auto" else options.solver
    return {"grid": options.c_grid, "seed": setting.seed, "solver": solver, "device": device}


def described(draws: TokenDraws, setting: Setting, options: TokenOptions, cutoff: float | None) -> dict[str, Any]:
    """Return every choice that was made of which tokens are probed, as JSON can hold it."""
    number = "as many outliers as normal patches" if draws.paired else "as many of each kind as it has"
    return {
        "block": setting.block,
        "point": draws.point,
        "cutoff": cutoff,
        "num_draws": options.num_draws,
        "draws": AGAIN if draws.replacement else DISTINCT.format(number),
        "paired": draws.paired,
        "c_grid": list(options.c_grid),
        "c_is_chosen": "on a fifth of the training images",
        "solver": fit_options(setting, options)["solver"],
        "data": {"train": setting.train.name, "test": setting.test.name},
    }


def counted(sets: dict[str, tuple[TokenSet, TokenSet]]) -> dict[str, dict[str, int]]:
    """Return how many images have tokens of each kind, how many tokens were drawn, how many images were looked at."""
    return {
        kind: {
            "train_images": train.num_images - train.num_without,
            "test_images": test.num_images - test.num_without,
            "of_train": train.num_images,
            "of_test": test.num_images,
            "train_tokens": len(train.images),
            "test_tokens": len(test.images),
        }
        for kind, (train, test) in sets.items()
    }


def told(cutoff: float | None, which: str = "the cutoff of the test images' norms") -> list[str]:
    """Return a note on where the cutoff comes from; none where there is no cutoff."""
    return [] if cutoff is None else [TOLD.format(which)]


def gathered(said: Sequence[tuple[str, str]]) -> list[str]:
    """Put notes on many probes, (where, note), into one line a note, which names all probes that it is of."""
    places: dict[str, list[str]] = {}
    for where, note in said:
        places.setdefault(note, []).append(where)
    return [f"{note} ({'; '.join(dict.fromkeys(own))})" for note, own in places.items()]


def shared_tasks(setting: Setting, asked: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the tasks whose labels both splits have, or those of them that were asked for.

    Raises `ArgumentError` for none, or one that they do not share.
    """
    train, test = setting.train, setting.test
    found = tuple(task for task in test.labels if task in train.labels)
    if not found:
        raise ArgumentError(f"{train.name} and {test.name} share no labels; give parts of one set")
    if unknown := [task for task in asked if task not in found]:
        raise ArgumentError(f"got task {unknown[0]!r}; allowed are {', '.join(found)}")
    return tuple(asked) or found
