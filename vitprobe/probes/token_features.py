"""Draw single tokens of each kind, a few an image, into files on disk: what linear probes are trained on."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitprobe import results
from vitprobe.backbones.base import Backbone
from vitprobe.errors import ArgumentError, InputError
from vitprobe.probes.batch import Batch
from vitprobe.probes.feature_file import FeatureFile
from vitprobe.probes.passes import run_pass
from vitprobe.probes.token_sets import PATCH_KINDS, POINTS, SCHEMA, TokenSet, file_stem, open_tokens
from vitprobe.recorder import Site, token_norms
from vitprobe.tokens import TokenLayout

UNITS = ("model", "unit")
"""Of pixels: as the model reads them, normalised; or in [0, 1]."""
_SETTINGS = ("kinds", "blocks", "point", "num_draws", "split", "paired", "replacement", "pixels")
Cutoff = float | Mapping[int, float | None] | None
"""One norm, one for each block whose norms are looked at, or None where the rule found none."""


@dataclass(frozen=True)
class _Plan:
    """Say what is drawn, checked against the model."""

    kinds: tuple[str, ...]
    blocks: tuple[int, ...]
    point: str
    num_draws: int
    seed: int
    split: int
    paired: bool
    replacement: bool
    pixels: str | None
    autocast: torch.dtype | None
    judged: Mapping[int, int] = field(default_factory=dict)
    """Block whose norms tell outliers from normal patches, by block of the features."""
    cutoffs: Mapping[int, float] = field(default_factory=dict)
    """By judged block; inf where no patch is an outlier."""


class TokenReader:
    """Draw, of each image that passes, random patches of each kind, its CLS and registers, into files on disk.

    A patch is an ``outlier`` if its token norm (L2 of ``resid_post``, float32, before the final norm) is at or over the
    cutoff, else ``normal``. No token of an image is drawn twice, so that all draws may be trained on together; what is
    drawn first does not depend on how much is drawn after it. With ``replacement`` draws are independent, as table 1
    of Darcet et al. (arXiv 2309.16588) has them: one random patch an image, a probe for each draw. Either way they
    depend on (seed, split, position of the image) and on which patches are outliers.
    The folder is a result directory, there whole or not at all, that `open_tokens` reads; an older result gives way.
    In memory are 32 bytes a token; no file is open between batches. Left as a context manager, closed, or forgotten
    before it was finished, the reader leaves nothing.
    """

    def __init__(
        self,
        backbone: Backbone,
        folder: Path,
        *,
        rule_cutoff: Cutoff,
        kinds: Sequence[str] = ("normal", "outlier", "cls"),
        blocks: Sequence[int] | None = None,
        num_draws: int = 1,
        seed: int = 0,
        split: int = 0,
        point: str = "resid_post",
        norm_block: int | None = None,
        paired: bool = False,
        replacement: bool = False,
        pixels: str | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        """Prepare to draw ``num_draws`` patches of each kind, and the prefix tokens named, at each of ``blocks``.

        ``rule_cutoff`` is one number, one for each block, or None where the rule found none. Norms are those of the
        block of the features (by default the last), or of ``norm_block``: in DINOv2-L they fall in the last block.
        ``point`` says where the features of all kinds are taken; ``final_norm`` goes with the last block alone.
        ``split`` must differ between images to train and to test on: else both are drawn at the same places, image by
        image. ``paired`` keeps only images with both an outlier and a normal patch, so that all sets of a block have
        the same images, and draws as many outliers as normal patches of each. An image with fewer than ``num_draws``
        gives what it has; with ``replacement``, it gives some again. ``pixels`` writes the pixels of drawn patches
        beside their features: ``model``, as the model reads them, or ``unit``, in [0, 1]. ``autocast`` is only stored:
        the precision is that of the pass. Raises `ArgumentError` for what the model does not have, or a folder that is
        something else.
        """
        last = backbone.num_blocks - 1
        blocks = (last,) if blocks is None else tuple(backbone.check_block(block) for block in blocks)
        plan = _Plan(tuple(kinds), blocks, point, num_draws, seed, split, paired, replacement, pixels, autocast)
        self._plan = plan = _judged(_checked(plan, backbone), backbone, rule_cutoff, norm_block)
        self._backbone, self._layout, self._folder = backbone, backbone.layout(), Path(folder)
        self._norms = {b: Site("resid_post", b, reduce=token_norms) for b in plan.cutoffs}
        self._streams = {b: Site(point, b if point == "resid_post" else None) for b in plan.blocks}
        self.sites: Sequence[Site] = tuple(dict.fromkeys((*self._norms.values(), *self._streams.values())))
        self._tables: dict[tuple[str, int], list[np.ndarray]] = {
            key: [np.zeros((0, 4), np.int64)] for key in product(plan.kinds, plan.blocks)
        }
        self._files: dict[str, FeatureFile] = {}
        self._num_images = 0
        self._found: dict[tuple[str, int], TokenSet] | None = None
        with ExitStack() as stack:
            self._aside = stack.enter_context(results.result_directory(self._folder))
            for key in self._tables:
                self._files[file_stem(*key)] = FeatureFile(self._aside / f"{file_stem(*key)}.npy", backbone.width)
                if pixels is not None and key[0] in PATCH_KINDS:
                    name, size = f"{file_stem(*key)}.pixels", 3 * backbone.patch_size[0] * backbone.patch_size[1]
                    self._files[name] = FeatureFile(self._aside / f"{name}.npy", size)
            self._stack = stack.pop_all()

    def __enter__(self) -> "TokenReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, batch: Batch, taken: Mapping[Site, Any], output: Tensor) -> None:
        """Draw the tokens of a batch and write them; what is refused ends the reader, and leaves nothing.

        Raises `ArgumentError` for norms or features that are not finite, `OutputError` where the disk is full.
        """
        with ExitStack() as undo:
            undo.callback(self.close)
            self._draw(batch, taken)
            undo.pop_all()

    def _draw(self, batch: Batch, taken: Mapping[Site, Any]) -> None:
        plan, layout = self._plan, self._layout
        norms = {b: taken[site].cpu().numpy() for b, site in self._norms.items()}  # (B, T) each
        if bad := sum(int((~np.isfinite(n)).sum()) for n in norms.values()):
            raise ArgumentError(f"{bad} token norms are not finite; try float32, or check the weights")
        cells = None
        if plan.pixels is not None:
            images = batch.images if plan.pixels == "model" else self._backbone.transform.pixels(batch.images)
            cells = patchify(images.float(), self._backbone.patch_size)  # (B, P, 3 * h * w)
        for block in plan.blocks:
            judged, stream = plan.judged[block], taken[self._streams[block]]  # (B, T, D)
            chosen = _choose(norms[judged][:, layout.patches], plan.cutoffs[judged], batch.indices, plan)
            for kind in plan.kinds:
                rows, tokens = _rows(kind, chosen, layout, plan)
                name, images = file_stem(kind, block), rows[:, 0].copy()
                self._files[name].add(stream[images, tokens].float().cpu().numpy())  # (n, D)
                if f"{name}.pixels" in self._files:
                    patches = rows[:, 1:3] @ (layout.grid[1], 1)
                    self._files[f"{name}.pixels"].add(cells[images, patches].cpu().numpy())
                rows[:, 0] = np.array(batch.indices)[images]
                self._tables[kind, block].append(rows.astype(np.int64))
        self._num_images += len(batch.images)

    def finish(self) -> dict[tuple[str, int], TokenSet]:
        """Put the folder in its place, and return what was drawn, by (kind, block); asked again, the same.

        Raises `InputError` without any image, `OutputError` where the disk is full; then nothing is left.
        """
        if self._found is None:
            with self._stack:
                if not self._num_images:
                    raise InputError("no image could be read; no token was drawn")
                for file in self._files.values():
                    file.finish()
                tables = {file_stem(*key): np.concatenate(parts) for key, parts in self._tables.items()}
                results.save(self._aside, _stored(self._backbone, self._plan, tables, self._num_images))
            self._found = open_tokens(self._folder)
        return self._found

    def close(self) -> None:
        """Take away what was written, unless it was finished."""
        with suppress(_Abandoned), self._stack:
            raise _Abandoned


class _Abandoned(Exception):
    """Ends the writing of a folder that nobody wants any more."""


def draw_tokens(
    backbone: Backbone, batches: Iterable[Batch], *, folder: Path, autocast: torch.dtype | None = None, **options: Any
) -> dict[tuple[str, int], TokenSet]:
    """Draw tokens as `TokenReader` does, from one pass over batches, by (kind, block); ``options`` are the reader's.

    Raises `ArgumentError` for what the model does not have, images of another size, or numbers that are not finite;
    `InputError` without any image; `OutputError` where the disk is full.
    """
    with TokenReader(backbone, folder, autocast=autocast, **options) as reader:
        run_pass(backbone, batches, [reader], autocast=autocast)
        return reader.finish()


def patchify(pixels: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Cut images into patches, row by row: (B, C, H, W) -> (B, P, C * h * w).

    The numbers of a patch are in the order of a convolution's kernel (channel, row, column), so that a patch embedding
    is a product with its flattened kernel. Raises `ArgumentError` where patches do not tile the image.
    """
    height, width = patch_size
    if pixels.ndim != 4 or min(patch_size) < 1 or pixels.shape[2] % height or pixels.shape[3] % width:
        raise ArgumentError(
            f"got images {tuple(pixels.shape)}; (B, C, H, W) of whole {height} x {width} patches is needed"
        )
    cells = pixels.unflatten(3, (-1, width)).unflatten(2, (-1, height))  # (B, C, rows, h, cols, w)
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, P, C * h * w)


def _checked(plan: _Plan, backbone: Backbone) -> _Plan:
    """Return the plan if the model has what it asks for. Raises `ArgumentError` otherwise."""
    layout, name, blocks = backbone.layout(), backbone.spec.name, plan.blocks
    allowed = [*PATCH_KINDS, *(["cls"] if layout.cls else []), *(f"register:{k}" for k in range(layout.num_registers))]
    if wrong := [kind for kind in plan.kinds if kind not in allowed]:
        raise ArgumentError(f"got kind {wrong[0]!r}; {name} has {', '.join(allowed)}")
    if not plan.kinds or not blocks or len({*plan.kinds}) < len(plan.kinds) or len({*blocks}) < len(blocks):
        raise ArgumentError(f"got kinds {plan.kinds} at blocks {blocks}; give one or more of both, each once")
    if plan.point not in POINTS:
        raise ArgumentError(f"got point {plan.point!r}; allowed are {' and '.join(POINTS)}")
    if plan.point == "final_norm" and backbone.final_norm is None:
        raise ArgumentError(f"{name} has no norm that all its tokens pass after the last block; give resid_post")
    if plan.point == "final_norm" and blocks != (backbone.num_blocks - 1,):
        raise ArgumentError(f"got final_norm of blocks {blocks}; it follows block {backbone.num_blocks - 1} alone")
    if plan.pixels not in (None, *UNITS):
        raise ArgumentError(f"got pixels in unit {plan.pixels!r}; allowed are {', '.join(UNITS)}, or None for none")
    if plan.num_draws < 1 or plan.seed < 0 or plan.split < 0:
        got = f"{plan.num_draws} draws, seed {plan.seed}, split {plan.split}"
        raise ArgumentError(f"got {got}; give 1 draw or more, a split and a seed from 0 on")
    return plan


def _judged(plan: _Plan, backbone: Backbone, cutoff: Cutoff, norm_block: int | None) -> _Plan:
    """Fill in which block's norms judge patches, and from which norm on."""
    judged = {b: b if norm_block is None else backbone.check_block(norm_block) for b in plan.blocks}
    given = cutoff if isinstance(cutoff, Mapping) else dict.fromkeys(judged.values(), cutoff)
    if missing := sorted(set(judged.values()) - set(given)):
        raise ArgumentError(f"got cutoffs for blocks {sorted(given)}; block {missing[0]} needs one too, or None")
    cutoffs = {b: float("inf") if given[b] is None else float(given[b]) for b in judged.values()}
    if bad := [c for c in cutoffs.values() if not c > 0]:
        raise ArgumentError(f"got a cutoff of {bad[0]:g}; give a norm over 0, or None where the rule found none")
    return replace(plan, judged=judged, cutoffs=cutoffs)


def _choose(norms: np.ndarray, cutoff: float, indices: Sequence[int], plan: _Plan) -> dict[str, np.ndarray]:
    """Draw patches of each kind, (B, num_draws), by norms (B, P); -1 where there are no more, or, paired, not both."""
    over = norms >= cutoff  # (B, P)
    chosen = {kind: np.full((len(norms), plan.num_draws), -1) for kind in PATCH_KINDS}
    for i, index in enumerate(indices):
        rng = np.random.default_rng((plan.seed, index, plan.split))
        found = {"normal": np.flatnonzero(~over[i]), "outlier": np.flatnonzero(over[i])}
        fewest = min(map(len, found.values()))
        if plan.paired and not fewest:
            continue
        if plan.replacement:
            shares = rng.random((plan.num_draws, len(PATCH_KINDS)))
            for share, (kind, patches) in zip(shares.T, found.items(), strict=True):
                if len(patches):
                    chosen[kind][i] = patches[(share * len(patches)).astype(int)]
            continue
        order = rng.permutation(over.shape[1])  # (P,)
        for kind, patches in found.items():
            number = min(plan.num_draws, fewest if plan.paired else len(patches))
            chosen[kind][i, :number] = order[np.isin(order, patches)][:number]
    return chosen


def _rows(kind: str, chosen: dict[str, np.ndarray], layout: TokenLayout, plan: _Plan) -> tuple[np.ndarray, np.ndarray]:
    """List the tokens of one kind: (n, 4) number in the batch, row, col, draw; and (n,) positions among all tokens."""
    if kind in PATCH_KINDS:
        image, draw = np.nonzero(chosen[kind] >= 0)
        patch = chosen[kind][image, draw]
        row, col = np.divmod(patch, layout.grid[1])
        return np.c_[image, row, col, draw], np.array(layout.positions("patches"))[patch]
    image = np.flatnonzero((chosen["outlier"][:, 0] >= 0) | (not plan.paired))
    name, _, number = kind.partition(":")
    token = layout.positions("registers")[int(number)] if name == "register" else layout.positions("cls")[0]
    none = np.full_like(image, -1)
    return np.c_[image, none, none, np.zeros_like(image)], np.full_like(image, token)


def _stored(backbone: Backbone, plan: _Plan, tables: dict[str, np.ndarray], num_images: int) -> results.StoredResult:
    device, dtype = next(backbone.module.parameters()).device, plan.autocast or torch.float32
    model, inputs = asdict(backbone.spec), {"num_images": num_images}
    made = results.Provenance(model, inputs, plan.seed, str(device), str(dtype).removeprefix("torch."))
    settings = {name: getattr(plan, name) for name in _SETTINGS}
    settings |= {"norm_blocks": plan.judged, "cutoffs": {b: plan.cutoffs[judged] for b, judged in plan.judged.items()}}
    return results.StoredResult(
        SCHEMA,
        results.provenance_dict(made),
        settings | {"grid": backbone.layout().grid, "num_images": num_images},
        summary={name: len(table) for name, table in tables.items()},
        arrays=tables,  # (N, 4) image, row, col, draw
        files={
            **{f"{name}.npy": "features of drawn tokens, (N, D) float32" for name in tables},
            **{f"{name}.pixels.npy": "pixels of their patches, (N, 3 * h * w) float32" for name in tables},
        },
    )
