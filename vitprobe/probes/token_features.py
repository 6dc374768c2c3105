"""Draw single tokens of each kind, one an image and draw, into files on disk: what linear probes are trained on."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitprobe import results
from vitprobe.backbones.base import Backbone
from vitprobe.errors import ArgumentError, InputError
from vitprobe.probes.batch import Batch
from vitprobe.recorder import Recorder, Site, token_norms
from vitprobe.tokens import TokenLayout

PATCH_KINDS = ("normal", "outlier")
POINTS = ("resid_post", "final_norm")
SCHEMA = "vitprobe.tokens/1"
Cutoff = float | Mapping[int, float | None] | None
"""One norm, one for each block whose norms are looked at, or None where the rule found none."""


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
    """Tokens drawn of each image, one after the other; 1 for CLS and registers, of which an image has one."""
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

    def of_draw(self, draw: int) -> "TokenSet":
        """Return one token an image, those of one draw, still on disk; of CLS and registers all, whatever the draw."""
        if draw < 0 or (self.kind in PATCH_KINDS and draw >= self.num_draws):
            raise ArgumentError(f"got draw {draw}; {self.kind} tokens have draws 0 to {self.num_draws - 1}")
        return replace(self._rows(slice(draw if self.num_draws > 1 else 0, None, self.num_draws)), num_draws=1)

    def of_images(self, images: np.ndarray) -> "TokenSet":
        """Return the tokens of some images, by their positions in the source; features are copied into memory."""
        return self._rows(np.flatnonzero(np.isin(self.images, images)))

    def _rows(self, rows: slice | np.ndarray) -> "TokenSet":
        return replace(self, **{n: getattr(self, n)[rows] for n in ("features", "images", "positions", "draws")})


@dataclass(frozen=True)
class _Plan:
    """Say what is drawn, checked against the model."""

    kinds: tuple[str, ...]
    blocks: tuple[int, ...]
    point: str
    num_draws: int
    seed: int
    paired: bool
    autocast: torch.dtype | None
    judged: Mapping[int, int] = field(default_factory=dict)
    """Block whose norms tell outliers from normal patches, by block of the features."""
    cutoffs: Mapping[int, float] = field(default_factory=dict)
    """By judged block; inf where no patch is an outlier."""


def draw_tokens(
    backbone: Backbone,
    batches: Iterable[Batch],
    *,
    rule_cutoff: Cutoff,
    folder: Path,
    kinds: Sequence[str] = ("normal", "outlier", "cls"),
    blocks: Sequence[int] | None = None,
    num_draws: int = 1,
    seed: int = 0,
    point: str = "resid_post",
    norm_block: int | None = None,
    paired: bool = False,
    autocast: torch.dtype | None = None,
) -> dict[tuple[str, int], TokenSet]:
    """Draw, of each image, ``num_draws`` random patches of each kind, its CLS and registers, by (kind, block).

    The protocol of table 1 of Darcet et al. (arXiv 2309.16588): one random patch of the class an image, spread over
    draws. A patch is an ``outlier`` if its token norm (L2 of ``resid_post``, float32, before the final norm) is at or
    over ``rule_cutoff``, else ``normal``. The cutoff is one number, one for each block, or None where the rule found
    none. Norms are those of the block of the features (by default the last), or of ``norm_block``: in DINOv2-L they
    fall in the last block. ``point`` says where the features of all kinds are taken; ``final_norm`` goes with the last
    block alone. Draws are independent, and depend on (seed, position of the image, draw) alone. ``paired`` keeps only
    images with both an outlier and a normal patch, so that all sets of a block have the same images.

    One forward pass serves everything. ``folder`` becomes a result directory, there whole or not at all, that
    `open_tokens` reads; an older result gives way. In memory are one batch, the streams of its ``blocks``, and 32 bytes
    a token. Raises `ArgumentError` for what the model does not have, images of another size, or norms that are not
    finite; `InputError` without any image; `OutputError` where the disk is full.
    """
    last = backbone.num_blocks - 1
    blocks = (last,) if blocks is None else tuple(backbone.check_block(block) for block in blocks)
    plan = _Plan(tuple(kinds), blocks, point, num_draws, seed, paired, autocast)
    plan = _judged(_checked(plan, backbone), backbone, rule_cutoff, norm_block)
    layout, num_images = backbone.layout(), 0
    with results.result_directory(Path(folder)) as aside, ExitStack() as stack:
        files = {}
        for key in product(plan.kinds, plan.blocks):
            files[key] = _FeatureFile(aside / f"{_name(*key)}.npy", backbone.width)
            stack.callback(files[key].close)
        for batch in batches:
            norms, streams = _read(backbone, batch, plan)
            for block in plan.blocks:
                judged = plan.judged[block]
                chosen = _choose(norms[judged][:, layout.patches], plan.cutoffs[judged], batch.indices, plan)
                for kind in plan.kinds:
                    rows, tokens = _rows(kind, chosen, layout, plan)
                    found = streams[block][rows[:, 0], tokens]  # (n, D)
                    rows[:, 0] = np.array(batch.indices)[rows[:, 0]]
                    files[kind, block].add(found.float().cpu().numpy(), rows)
            num_images += len(batch.images)
        if not num_images:
            raise InputError("no image could be read; no token was drawn")
        tables = {_name(*key): file.finish() for key, file in files.items()}
        results.save(aside, _stored(backbone, plan, tables, num_images))
    return open_tokens(Path(folder))


def open_tokens(folder: Path) -> dict[tuple[str, int], TokenSet]:
    """Open what `draw_tokens` has written, by (kind, block). Raises `InputError` where it is not there or not whole."""
    stored = results.load(folder)
    if stored.schema != SCHEMA:
        raise InputError(f"{folder} holds {stored.schema}, not {SCHEMA}; give a folder that draw_tokens has written")
    settings, found = stored.settings, {}
    for kind, block in product(settings["kinds"], settings["blocks"]):
        name = _name(kind, block)
        table, path = stored.arrays[name], folder / f"{name}.npy"  # (N, 4)
        try:  # a map of nothing cannot be made
            features = np.load(path, mmap_mode="r" if len(table) else None, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise InputError(f"{path} is damaged ({error}); draw the tokens again") from error
        found[kind, block] = TokenSet(
            kind=kind,
            block=block,
            point=settings["point"],
            cutoff=settings["cutoffs"][str(block)],
            grid=tuple(settings["grid"]),
            num_draws=settings["num_draws"] if kind in PATCH_KINDS else 1,
            features=features,
            images=table[:, 0],
            positions=table[:, 1:3],
            draws=table[:, 3],
            num_images=settings["num_images"],
            num_without=settings["num_images"] - len(np.unique(table[:, 0])),
        )
    return found


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
    if plan.num_draws < 1 or plan.seed < 0:
        raise ArgumentError(f"got {plan.num_draws} draws, seed {plan.seed}; give 1 draw or more and a seed from 0 on")
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


def _read(backbone: Backbone, batch: Batch, plan: _Plan) -> tuple[dict[int, np.ndarray], dict[int, Tensor]]:
    """Run one batch: norms (B, T) of the judged blocks, and streams (B, T, D) at the point of the features."""
    size, want = tuple(batch.images.shape[-2:]), tuple(backbone.spec.image_size)
    if size != want:
        got, made = ("{} x {} px".format(*side) for side in (size, want))
        raise ArgumentError(f"got images of {got}; {backbone.spec.name} was loaded for {made}")
    device = next(backbone.module.parameters()).device
    norm_sites = {b: Site("resid_post", b, reduce=token_norms) for b in plan.cutoffs}
    sites = {b: Site(plan.point, b if plan.point == "resid_post" else None) for b in plan.blocks}
    with (
        torch.inference_mode(),
        torch.autocast(device.type, dtype=plan.autocast, enabled=plan.autocast is not None),
        Recorder(backbone, [*norm_sites.values(), *sites.values()]) as recorder,
    ):
        backbone(batch.images.to(device, non_blocking=True))
        taken = recorder.take()
    norms = {b: taken[site].cpu().numpy() for b, site in norm_sites.items()}
    if bad := sum(int((~np.isfinite(n)).sum()) for n in norms.values()):
        raise ArgumentError(f"{bad} token norms are not finite; try float32, or check the weights")
    return norms, {b: taken[site] for b, site in sites.items()}


def _choose(norms: np.ndarray, cutoff: float, indices: Sequence[int], plan: _Plan) -> dict[str, np.ndarray]:
    """Draw patches of each kind, (B, num_draws), by norms (B, P); -1 where there is none, or, if paired, not both."""
    over = norms >= cutoff  # (B, P)
    chosen = {kind: np.full((len(norms), plan.num_draws), -1) for kind in PATCH_KINDS}
    for i, index in enumerate(indices):
        shares = np.random.default_rng((plan.seed, index)).random((plan.num_draws, len(PATCH_KINDS)))
        for k, (kind, mask) in enumerate(zip(PATCH_KINDS, (~over[i], over[i]), strict=True)):
            candidates = np.flatnonzero(mask)
            if len(candidates) and not (plan.paired and len(candidates) == len(mask)):
                chosen[kind][i] = candidates[(shares[:, k] * len(candidates)).astype(int)]
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


class _FeatureFile:
    """Append rows to a .npy file whose number of rows is known only at its end."""

    def __init__(self, path: Path, width: int) -> None:
        self._file, self._width, self._tables = path.open("wb"), width, [np.zeros((0, 4), np.int64)]
        self._start = self._head(0)

    def _head(self, rows: int) -> int:
        self._file.seek(0)
        head = {"descr": "<f4", "fortran_order": False, "shape": (rows, self._width)}
        np.lib.format.write_array_header_1_0(self._file, head)  # it leaves room for the first axis to grow
        return self._file.tell()

    def add(self, features: np.ndarray, table: np.ndarray) -> None:
        """Write features (n, D); keep what they are of, (n, 4) image, row, col, draw."""
        self._file.write(np.ascontiguousarray(features, dtype="<f4").data)
        self._tables.append(table.astype(np.int64))

    def finish(self) -> np.ndarray:
        """Put the number of rows into the head, close, and return what all rows are of, (N, 4)."""
        table = np.concatenate(self._tables)
        assert self._head(len(table)) == self._start, "the head has outgrown its room"
        self.close()
        return table

    def close(self) -> None:
        self._file.close()


def _stored(backbone: Backbone, plan: _Plan, tables: dict[str, np.ndarray], num_images: int) -> results.StoredResult:
    device, dtype = next(backbone.module.parameters()).device, plan.autocast or torch.float32
    model, inputs = asdict(backbone.spec), {"num_images": num_images}
    made = results.Provenance(model, inputs, plan.seed, str(device), str(dtype).removeprefix("torch."))
    settings = {name: getattr(plan, name) for name in ("kinds", "blocks", "point", "num_draws", "paired")}
    settings |= {"norm_blocks": plan.judged, "cutoffs": {b: plan.cutoffs[judged] for b, judged in plan.judged.items()}}
    return results.StoredResult(
        SCHEMA,
        results.provenance_dict(made),
        settings | {"grid": backbone.layout().grid, "num_images": num_images},
        summary={name: len(table) for name, table in tables.items()},
        arrays=tables,  # (N, 4) image, row, col, draw
        files={f"{name}.npy": "features of drawn tokens, (N, D) float32" for name in tables},
    )


def _name(kind: str, block: int) -> str:
    return f"{kind.replace(':', '')}.block{block}"
