"""What a step of training takes, from one tried on a few images: parameters and FLOPs counted, memory estimated."""

import random
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from vitprobe.errors import ArgumentError

aten = torch.ops.aten
CPU_ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda out, q, k, v, *_, **__: sdpa_backward_flop_count(out, q, k, v)
    ),
}
"""The fused attention of the CPU, which the counter of older PyTorch passes over in silence."""


@dataclass(frozen=True)
class Plan:
    """Hold what a step takes. FLOPs count a multiplication and an addition as two; bytes are an estimate.

    The estimate leaves out what lives only for a moment (gradients of activations, workspaces of kernels, the
    allocator's slack), so a GPU needs more: it is for comparing variants and for choosing where to begin.
    """

    parameters: int
    """Numbers in all parameters of the module, those of a teacher or an average in it included."""
    trainable_parameters: int
    forward_flops: int
    """Per image: matrix products, convolutions and attention of all that the step runs, with gradients or without."""
    training_flops: int
    """Per image, forward and backward; fused attention computes its scores once more on the way back."""
    precision: str
    """``float32`` or ``bfloat16`` (autocast: parameters, gradients and optimiser state stay in float32)."""
    batch_size: int
    """Images in one process that the bytes are for."""
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    ema_bytes: int
    copy_bytes: int
    """Copies of parameters in the lower precision, which autocast keeps for the backward pass."""
    activation_bytes: int
    """What the forward pass keeps for the backward pass, taken as growing with the batch."""
    total_bytes: int
    """The sum of all these."""


def plan_step(
    step: Callable[[], Tensor],
    module: nn.Module,
    *,
    batch_size: int,
    optimizer_slots: int,
    precision: str,
    ema: bool,
    scale_to: int,
) -> Plan:
    """Try ``step``, which runs ``module`` forward on ``batch_size`` images and returns a loss, twice; plan a training.

    FLOPs are counted of the step and of its backward pass, and divided by its images. Memory is for ``scale_to``
    images: activations are the storages that autograd has saved when the loss is there, each once, without parameters,
    buffers and their copies, and scaled by the batch. ``optimizer_slots``: float32 numbers that the optimiser keeps for
    each trained parameter. ``ema``: whether an average of the trained parameters is kept outside the module.
    ``precision``: ``float32``, ``bfloat16``, or ``auto``, which is bfloat16 where there is a GPU. Gradients, buffers
    and random generators (Python's, numpy's, torch's) are left as they were. Raises `ArgumentError` for numbers below
    1, an unknown precision, or a loss that is no scalar or trains nothing.
    """
    if batch_size < 1 or scale_to < 1 or optimizer_slots < 0:
        raise ArgumentError(
            f"got {batch_size} images scaled to {scale_to}, {optimizer_slots} slots; give 1 or more images, 0 or more"
        )
    if precision == "auto":
        precision = "bfloat16" if torch.cuda.is_available() else "float32"
    if precision not in ("float32", "bfloat16"):
        raise ArgumentError(f"got precision {precision!r}; allowed are auto, float32 and bfloat16")
    device = next(module.parameters()).device.type
    autocast = torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")
    with _left_as_it_was(module):
        with _Kept(module) as kept, autocast:
            loss = step()
        if loss.numel() != 1 or not loss.requires_grad:
            raise ArgumentError(f"got a loss of shape {tuple(loss.shape)}; a scalar that trains a parameter is needed")
        activations, copies = kept.sizes()
        del loss
        forward, training = _flops(step, autocast)
    trained = [p for p in module.parameters() if p.requires_grad]
    numbers = sum(p.numel() for p in trained)
    sizes = {
        "parameter_bytes": sum(p.nbytes for p in module.parameters()),
        "gradient_bytes": sum(p.nbytes for p in trained),
        "optimizer_bytes": 4 * optimizer_slots * numbers,
        "ema_bytes": sum(p.nbytes for p in trained) if ema else 0,
        "copy_bytes": copies,
        "activation_bytes": round(activations / batch_size * scale_to),
    }
    return Plan(
        parameters=sum(p.numel() for p in module.parameters()),
        trainable_parameters=numbers,
        forward_flops=round(forward / batch_size),
        training_flops=round(training / batch_size),
        precision=precision,
        batch_size=scale_to,
        **sizes,
        total_bytes=sum(sizes.values()),
    )


def _flops(step: Callable[[], Tensor], autocast: torch.autocast) -> tuple[int, int]:
    """Count operations of a step's forward pass, and of both passes; the counter's hooks keep dead graphs alive."""
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        with autocast:
            loss = step()
        forward = counter.get_total_flops()
        loss.backward()
        return forward, counter.get_total_flops()


class _Saved:
    """Hold a tensor for as long as the graph that saved it lives."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class _Kept(TorchDispatchMode):
    """Watch what autograd saves inside, and which storages are parameters, buffers or copies of them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._own = {_storage(t): t for t in (*module.parameters(), *module.buffers())}
        self._copies: dict[int, Tensor] = {}  # held, so that no other storage takes their place in memory
        self._saved: weakref.WeakSet[_Saved] = weakref.WeakSet()
        self._hooks = saved_tensors_hooks(self._pack, lambda saved: saved.tensor)

    def _pack(self, tensor: Tensor) -> _Saved:
        saved = _Saved(tensor.detach())  # an output with its history would hold itself, and never go
        self._saved.add(saved)
        return saved

    def __enter__(self) -> "_Kept":
        self._hooks.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._hooks.__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is aten._to_copy.default and _storage(args[0]) in self._own:
            self._copies[_storage(found)] = found
        return found

    def sizes(self) -> tuple[int, int]:
        """Return the bytes of activations and those of copies of parameters that the graph keeps."""
        storages = {_storage(saved.tensor): saved.tensor.untyped_storage().nbytes() for saved in self._saved}
        copies = sum(size for key, size in storages.items() if key in self._copies and key not in self._own)
        every = sum(size for key, size in storages.items() if key not in self._own)
        return every - copies, copies


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@contextmanager
def _left_as_it_was(module: nn.Module) -> Iterator[None]:
    """Put gradients, buffers and random generators back at the end, and have no gradients inside."""
    gradients = [(p, p.grad) for p in module.parameters()]
    buffers = [(b, b.clone()) for b in module.buffers()]
    states = random.getstate(), np.random.get_state()
    try:
        for parameter, _ in gradients:
            parameter.grad = None
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        random.setstate(states[0])
        np.random.set_state(states[1])
