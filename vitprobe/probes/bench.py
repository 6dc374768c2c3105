"""What recording costs: ratios to the bare forward pass, in one run on one machine."""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitprobe.backbones.base import Backbone
from vitprobe.probes.batch import Batch
from vitprobe.probes.norms import measure_norms
from vitprobe.recorder import Recorder, Site, token_norms

Run = Callable[[Tensor], Tensor | None]
"""One way to run a backbone on images; returns its output, or None where another model computes it."""


@dataclass(frozen=True)
class Row:
    """Hold what one way costs."""

    way: str
    ratio: float
    """Median over rounds of its time over the bare forward's in the same round."""
    quartiles: tuple[float, float]
    peak_mb: float | None
    """Most memory that the pass holds at a time beyond what was there before, in MB (10**6 bytes)."""
    equal_bits: bool | None
    """Whether the model's output equals the bare forward's to the last bit; None for another library's model."""
    images_per_s: float


def bench(
    backbone: Backbone,
    images: Tensor,
    *,
    rounds: int = 7,
    autocast: torch.dtype | None = None,
    ways: dict[str, Run] | None = None,
    on_round: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Time ways of recording against the bare forward, interleaved in one process.

    Each round runs every way once, the order turning by one from round to round; a ratio is taken inside its round, so
    that a machine that slows down slows all. The bare forward stands in the table a second time, as the noise floor.
    """
    device = images.device
    ways = {"bare forward": backbone, "bare forward again": backbone, **(ways or ways_of(backbone))}
    names, times = list(ways), {name: [] for name in ways}
    with torch.inference_mode(), torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        bare = backbone(images)
        equal = {name: _equal(run(images), bare) for name, run in ways.items()}  # warms every way up
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                times[name].append(_time(ways[name], images))
            on_round()
        peaks = {name: peak_memory(lambda run=run: run(images), device) for name, run in ways.items()}
    return [_row(name, times, equal[name], peaks[name], len(images)) for name in names]


def _row(name: str, times: dict[str, list[float]], equal: bool | None, peak: float | None, number: int) -> Row:
    ratios = [own / bare for own, bare in zip(times[name], times["bare forward"], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    speed = number / statistics.median(times[name])
    return Row(name, statistics.median(ratios), (low, high), peak, equal, speed)


def _equal(output: Tensor | None, bare: Tensor) -> bool | None:
    return None if output is None else torch.equal(output, bare)


def _time(run: Run, images: Tensor) -> float:
    _wait(images.device)
    start = time.perf_counter()
    run(images)
    _wait(images.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ways_of(backbone: Backbone) -> dict[str, Run]:
    """Return the ways that are compared: the recorder's, and those in common use."""
    blocks, layout = range(backbone.num_blocks), backbone.layout()
    norms = Site("resid_post", reduce=token_norms).at(blocks)
    asking = layout.prefix or layout.positions("patches")[:1]
    rows = Site("attention_rows", queries=tuple(asking)).at(blocks)
    ways: dict[str, Run] = {
        "norms of all blocks": _recorded(backbone, norms),
        "norms + CLS and register rows": _recorded(backbone, [*norms, *rows]),
        "full patterns of all blocks": _recorded(backbone, Site("pattern").at(blocks)),
    }
    if hasattr(backbone.module, "forward_intermediates"):
        ways["forward_intermediates"] = _intermediates(backbone)
    if all(_can_unfuse(backbone.attention(index)) for index in blocks):
        ways["fused attention off, all kept"] = _unfused(backbone)
    if (other := _hugging_face(backbone)) is not None:
        ways["Hugging Face output_attentions"] = other
    return ways


def bare(backbone: Backbone) -> Run:
    """Return a way that runs another backbone, whose output is not compared."""

    def run(images: Tensor) -> None:
        backbone(images)

    return run


def _recorded(backbone: Backbone, sites: Sequence[Site]) -> Run:
    def run(images: Tensor) -> Tensor:
        with Recorder(backbone, sites) as recorder:
            output = backbone(images)
            recorder.take()
        return output

    return run


def _intermediates(backbone: Backbone) -> Run:
    """Run the library's own way to get the stream after every block; its output is another, not compared."""

    def run(images: Tensor) -> None:
        backbone.module.forward_intermediates(images)

    return run


def _unfused(backbone: Backbone) -> Run:
    """Run as tutorials do: fused attention switched off and every pattern kept."""

    def run(images: Tensor) -> Tensor:
        with attention_kept(backbone):
            return backbone(images)

    return run


def _can_unfuse(attn: nn.Module) -> bool:
    return isinstance(attn, nn.MultiheadAttention) or hasattr(attn, "fused_attn")


@contextmanager
def attention_kept(backbone: Backbone) -> Iterator[list[Tensor]]:
    """Switch fused attention off for a while and keep every block's pattern, the way that is in common use."""
    kept: list[Tensor] = []
    undo: list[Callable[[], None]] = []
    for index in range(backbone.num_blocks):
        attn = backbone.attention(index)
        if isinstance(attn, nn.MultiheadAttention):
            undo.append(_keep_weights(attn, kept))
        else:
            old = attn.fused_attn, attn.attn_drop
            attn.fused_attn, attn.attn_drop = False, _Keeper(attn.attn_drop, kept)

            def restore(attn: nn.Module = attn, old: tuple = old) -> None:
                attn.fused_attn, attn.attn_drop = old

            undo.append(restore)
    try:
        yield kept
    finally:
        for restore in undo:
            restore()


class _Keeper(nn.Module):
    """Pass a pattern on through its dropout, and keep it."""

    def __init__(self, dropout: nn.Module, kept: list[Tensor]) -> None:
        super().__init__()
        self.dropout, self.kept = dropout, kept

    def forward(self, pattern: Tensor) -> Tensor:
        self.kept.append(pattern)
        return self.dropout(pattern)


def _keep_weights(attn: nn.MultiheadAttention, kept: list[Tensor]) -> Callable[[], None]:
    plain = attn.forward

    def forward(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        output, weights = plain(*args, **kwargs | {"need_weights": True, "average_attn_weights": False})
        kept.append(weights)
        return output, None

    attn.forward = forward
    return lambda: delattr(attn, "forward")


def _hugging_face(backbone: Backbone) -> Run | None:
    """Return Hugging Face's DINOv2 of the same size with ``output_attentions``, where transformers is installed."""
    if "dinov2" not in backbone.spec.architecture:
        return None
    try:
        from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel
    except ImportError:
        return None
    registers = backbone.layout().num_registers
    make, config = (Dinov2WithRegistersModel, Dinov2WithRegistersConfig) if registers else (Dinov2Model, Dinov2Config)
    sizes = {"hidden_size": backbone.width, "num_hidden_layers": backbone.num_blocks}
    sizes |= {"use_swiglu_ffn": "giant" in backbone.spec.architecture}
    sizes |= {"num_attention_heads": backbone.num_heads, "patch_size": backbone.patch_size[0]}
    extra = {"num_register_tokens": registers} if registers else {}
    made = config(**sizes, **extra, image_size=backbone.spec.image_size[0], attn_implementation="eager")
    model = make(made).eval().to(next(backbone.module.parameters()).device)

    def run(images: Tensor) -> None:
        model(images, output_attentions=True)

    return run


def peak_memory(run: Callable[[], Any], device: torch.device) -> float | None:
    """Measure the most memory that a call holds at a time beyond what was there before, in MB."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    if device.type != "cpu":
        return None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 1e6


def compile_blocks(backbone: Backbone) -> None:
    """Compile every block by itself, hooks staying outside: the robust way to record a compiled model."""
    for index in range(backbone.num_blocks):
        backbone.block(index).compile()


def end_to_end(backbone: Backbone, batches: Iterable[Batch], images: Tensor, *, autocast: torch.dtype | None) -> Row:
    """Time ``norms`` from files to result against the bare forward on as many images in memory (ratio of times)."""
    start = time.perf_counter()
    number = measure_norms(backbone, batches, autocast=autocast).num_images
    whole = time.perf_counter() - start
    half = torch.autocast(images.device.type, dtype=autocast) if autocast is not None else nullcontext()
    with torch.inference_mode(), half:
        backbone(images)
        bare = statistics.median(_time(backbone, images) for _ in range(5)) * number / len(images)
    return Row("norms, from files to result", whole / bare, (whole / bare,) * 2, None, None, number / whole)
