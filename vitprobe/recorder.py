"""Record, or edit, what passes through a backbone: the only file that registers hooks on a model."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vitprobe.backbones.base import Backbone, pattern_rows
from vitprobe.errors import RecordingError

BLOCK_KINDS = (
    "resid_pre", "resid_post", "attention_input", "queries", "keys", "values",
    "attention_rows", "pattern", "received_attention", "neurons",
)  # fmt: skip
MODEL_KINDS = ("patch_embed", "final_norm")
EDITABLE = ("patch_embed", "final_norm", "resid_pre", "resid_post", "attention_input", "queries", "keys", "neurons")


@dataclass(frozen=True)
class Site:
    """Name a tensor inside a backbone, and what to keep of it.

    ========================  ===================================================================  ==============
    kind                      tensor                                                               shape
    ========================  ===================================================================  ==============
    ``patch_embed``           patch embedding, before positions                                    (B, P, D)
    ``resid_pre``             residual stream before a block                                       (B, T, D)
    ``resid_post``            residual stream after a block                                        (B, T, D)
    ``attention_input``       what attention of a block reads                                      (B, T, D)
    ``queries``, ``keys``     as attention uses them, after any norm of their own                  (B, H, T, d)
    ``values``                                                                                     (B, H, T, d)
    ``attention_rows``        rows of the pattern for ``queries``, float32                         (B, H, Q, T)
    ``pattern``               the whole pattern, float32                                           (B, H, T, T)
    ``received_attention``    mean over ``queries`` (all) of what each token receives, float32     (B, H, T)
    ``neurons``               input of the MLP's second linear layer                               (B, T, N)
    ``final_norm``            tokens after the final norm                                          (B, T, D)
    ========================  ===================================================================  ==============
    """

    kind: str
    block: int | None = None
    queries: tuple[int, ...] = ()
    """Token positions whose rows are asked for, or averaged in ``received_attention`` (empty: all of them)."""
    reduce: Callable[[Tensor], Any] | None = None
    """Applied inside the hook: only what it returns is kept."""
    edit: Callable[[Tensor], Tensor] | None = None
    """Returns the replacement, of the same shape; it runs first, so what is kept is the replacement."""
    keep: bool = True
    """False for a site that only edits."""

    def at(self, blocks: Sequence[int]) -> list["Site"]:
        """Return this site once for every block of ``blocks``."""
        return [replace(self, block=index) for index in blocks]


def token_norms(x: Tensor) -> Tensor:
    """Compute L2 norms over the last axis in float32, whatever the input's type: (..., D) -> (...).

    float16 overflows to inf at a few thousand and bfloat16 is off by 2e-3, so the sum is never taken in them.
    """
    return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)


class Recorder:
    """Record sites of a backbone while it runs, as a context manager.

        sites = Site("resid_post", reduce=token_norms).at(range(backbone.num_blocks))
        with Recorder(backbone, sites) as recorder:
            backbone(images)
            norms = recorder.take()  # {site: (B, T)}

    All sites are resolved before any hook is installed; every hook goes when the block ends, however it ends.
    Recording changes no bit of the model's output and turns no fused attention off; only a site with ``edit`` changes
    anything. Raises `RecordingError` for a site that the model does not have, one that did not fire, and a second
    forward pass before the first was taken.
    """

    def __init__(self, backbone: Backbone, sites: Sequence[Site]) -> None:
        self.backbone = backbone
        self.sites = tuple(dict.fromkeys(sites))
        self._kept: dict[Site, Any] = {}
        self._stack: ExitStack | None = None
        self._hooks: list[tuple[nn.Module, str, Callable]] = []
        for site in sorted(self.sites, key=lambda s: s.edit is None):  # edits first, so that others see their work
            self._hooks += self._resolve(site)

    def __enter__(self) -> "Recorder":
        if self._stack is not None:  # a second set of hooks would outlive the first
            raise RecordingError("this recorder is already entered; use a second Recorder inside it")
        self._kept = {}
        with ExitStack() as stack:
            for module, when, hook in self._hooks:
                handle = (
                    module.register_forward_pre_hook(hook, with_kwargs=True)
                    if when == "before"
                    else module.register_forward_hook(hook)
                )
                stack.callback(handle.remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._kept = {}
        stack, self._stack = self._stack, None
        stack.close()

    def take(self) -> dict[Site, Any]:
        """Return what the last forward pass has left, and forget it. Raises where a site did not fire."""
        silent = [site for site in self.sites if site.keep and site not in self._kept]
        if silent:
            names = ", ".join(f"{s.kind} of block {s.block}" if s.block is not None else s.kind for s in silent[:3])
            raise RecordingError(
                f"{len(silent)} of {len(self.sites)} sites did not fire ({names}); run the backbone between "
                "entering the recorder and take(), and run all of it"
            )
        kept, self._kept = self._kept, {}
        return kept

    def _keep(self, site: Site, value: Tensor) -> None:
        if not site.keep:
            return
        if site in self._kept:
            raise RecordingError(f"{site.kind} was recorded twice; call take() after each forward pass")
        value = value.detach()
        self._kept[site] = site.reduce(value) if site.reduce is not None else value

    def _visit(self, site: Site, value: Tensor) -> Tensor | None:
        """Edit, then keep; return the replacement, or None where nothing changes."""
        if site.edit is None:
            self._keep(site, value)
            return None
        replacement = site.edit(value)
        if not isinstance(replacement, Tensor) or replacement.shape != value.shape:
            got = tuple(replacement.shape) if isinstance(replacement, Tensor) else type(replacement).__name__
            raise RecordingError(f"the edit of {site.kind} returned {got}; it must return {tuple(value.shape)}")
        self._keep(site, replacement)
        return replacement

    def _resolve(self, site: Site) -> list[tuple[nn.Module, str, Callable]]:
        """Find the modules of a site, and what to do there; raises before anything is installed."""
        kind, backbone = site.kind, self.backbone
        if kind not in BLOCK_KINDS + MODEL_KINDS:
            raise RecordingError(f"got site {kind!r}; sites are {', '.join(BLOCK_KINDS + MODEL_KINDS)}")
        if site.edit is not None and kind not in EDITABLE:
            raise RecordingError(f"{kind} cannot be edited; {', '.join(EDITABLE)} can")
        if (site.block is None) != (kind in MODEL_KINDS):
            need = "takes no block" if kind in MODEL_KINDS else "needs a block"
            raise RecordingError(f"site {kind} {need}; got block={site.block}")
        if kind == "patch_embed":
            return [(backbone.patch_embedding, "after", self._patch_embed(site))]
        if kind == "final_norm":
            if backbone.final_norm is None:
                raise RecordingError(f"{backbone.spec.name} has no norm that all its tokens pass after the last block")
            return [(backbone.final_norm, "after", self._output(site))]
        index = backbone.check_block(site.block)
        if kind == "resid_post":
            return [(backbone.block(index), "after", self._output(site))]
        before = {
            "resid_pre": backbone.block,
            "attention_input": backbone.attention,
            "neurons": backbone.second_linear,
        }
        if kind in before:
            return [(before[kind](index), "before", self._input(site))]
        return self._resolve_attention(site, index)

    def _resolve_attention(self, site: Site, index: int) -> list[tuple[nn.Module, str, Callable]]:
        backbone = self.backbone
        if site.kind == "attention_rows" and not site.queries:
            raise RecordingError("site attention_rows needs queries, the positions of the asking tokens")
        off = [query for query in site.queries if not 0 <= query < self._num_tokens]
        if off:
            raise RecordingError(f"got query {off[0]}; tokens are 0 to {self._num_tokens - 1}")
        shown = backbone.query_key_modules(index)
        if site.kind in ("queries", "keys") and shown is not None:
            return [(shown[site.kind == "keys"], "after", self._output(site))]
        if site.edit is not None:
            raise RecordingError(f"{backbone.spec.name} does not show its {site.kind}, so they cannot be edited")
        if site.kind in ("queries", "keys", "values"):
            part = ("queries", "keys", "values").index(site.kind)

            def from_input(_: nn.Module, args: tuple, kwargs: dict) -> None:
                context = self._context(kwargs)
                self._keep(site, backbone.query_key_value(index, _first(args, kwargs), **context)[part])

            return [(backbone.attention(index), "before", from_input)]
        return self._rows(site, index, shown)

    def _rows(
        self, site: Site, index: int, shown: tuple[nn.Module, nn.Module] | None
    ) -> list[tuple[nn.Module, str, Callable]]:
        """Compute rows from the model's own queries and keys where it shows them, else from attention's input."""
        held: dict[str, Tensor] = {}

        def hold_queries(_: nn.Module, __: tuple, output: Tensor) -> None:
            held["q"] = output

        def at_keys(_: nn.Module, __: tuple, output: Tensor) -> None:
            q = held.pop("q")
            self._keep(site, _reduce_rows(site, q.shape[2], lambda queries: pattern_rows(q, output, queries)))

        def at_input(_: nn.Module, args: tuple, kwargs: dict) -> None:
            x, context = _first(args, kwargs).detach(), self._context(kwargs)

            def rows(queries: Sequence[int]) -> Tensor:
                return self.backbone.attention_rows(index, x, queries, **context)

            self._keep(site, _reduce_rows(site, x.shape[1], rows))

        if shown is None:
            return [(self.backbone.attention(index), "before", at_input)]
        return [(shown[0], "after", hold_queries), (shown[1], "after", at_keys)]

    def _context(self, kwargs: dict) -> dict[str, Any]:
        """Take what the backbone's rows depend on beside attention's input out of the model's own call."""
        return {name: kwargs.get(name) for name in self.backbone.attention_context}

    @property
    def _num_tokens(self) -> int:
        return self.backbone.layout().num_tokens

    def _patch_embed(self, site: Site) -> Callable:
        def hook(_: nn.Module, __: tuple, output: Tensor) -> Tensor | None:
            replacement = self._visit(site, self.backbone.patch_tokens(output))
            return None if replacement is None else self.backbone.patch_output(replacement, output)

        return hook

    def _output(self, site: Site) -> Callable:
        return lambda _, __, output: self._visit(site, output)

    def _input(self, site: Site) -> Callable:
        def hook(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            replacement = self._visit(site, _first(args, kwargs))
            return None if replacement is None else _with_first(args, kwargs, replacement)

        return hook


CHUNK = 128
"""Queries handled at a time for received attention: bounds its memory to B x H x 128 x T numbers."""


def _reduce_rows(site: Site, num_tokens: int, rows: Callable[[Sequence[int]], Tensor]) -> Tensor:
    if site.kind == "attention_rows":
        return rows(site.queries)
    if site.kind == "pattern":
        return rows(range(num_tokens))
    queries = site.queries or range(num_tokens)
    total = torch.zeros(())
    for start in range(0, len(queries), CHUNK):
        part = rows(queries[start : start + CHUNK]).sum(dim=2)  # (B, H, T)
        total = part if start == 0 else total + part
    return total / len(queries)


def _first(args: tuple, kwargs: dict) -> Tensor:
    """Return the first argument of a call, however it was passed."""
    return args[0] if args else next(iter(kwargs.values()))


def _with_first(args: tuple, kwargs: dict, value: Tensor) -> tuple[tuple, dict]:
    """Replace a call's first argument everywhere that the same tensor was passed (query, key and value alike)."""
    old = _first(args, kwargs)
    return tuple(value if a is old else a for a in args), {k: value if v is old else v for k, v in kwargs.items()}
