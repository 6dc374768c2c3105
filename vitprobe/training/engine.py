"""Where a step runs: one process or several, copies (DDP) or shards (FSDP2) of the parameters, in which precision."""

import contextlib
import hashlib
import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from vitprobe.backbones.trunk import Trunk
from vitprobe.inputs.scene_stream import TASKS
from vitprobe.training.config import TrainConfig
from vitprobe.training.objectives.base import Objective


@dataclass(frozen=True)
class Engine:
    """Run steps of an objective on what `accelerate` finds: the same command under ``torchrun`` or by itself."""

    accelerator: Accelerator
    autocast: torch.dtype | None
    shard: bool

    @classmethod
    def open(cls, config: TrainConfig) -> "Engine":
        """Join the processes of the launcher, if there is one, and choose device and precision.

        ``auto`` precision is bfloat16 on a GPU and float32 elsewhere.
        """
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        accelerator = Accelerator(  # which joins no processes on a machine without a GPU unless it is told "cpu"
            cpu=config.device == "cpu" or (several and not torch.cuda.is_available()),
            mixed_precision="no",  # autocast is this class's own, so that evaluation runs under it too
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=_leaves_unused(config))],
        )
        precision = config.precision
        if precision == "auto":
            precision = "bfloat16" if accelerator.device.type == "cuda" else "float32"
        autocast = torch.bfloat16 if precision == "bfloat16" else None
        return cls(accelerator, autocast, config.shard and accelerator.num_processes > 1)

    @property
    def device(self) -> torch.device:
        """This process's device."""
        return self.accelerator.device

    @property
    def world(self) -> int:
        """How many processes there are."""
        return self.accelerator.num_processes

    @property
    def rank(self) -> int:
        """Which of them this is."""
        return self.accelerator.process_index

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.accelerator.is_main_process

    def precise(self) -> contextlib.AbstractContextManager[None]:
        """Run what is inside in the run's precision."""
        return torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None)

    def wrap(self, objective: Objective) -> nn.Module:
        """Make an objective whose gradients are shared by the processes."""
        objective.to(self.device)
        if not self.shard:
            return self.accelerator.prepare_model(objective) if self.world > 1 else objective
        mesh = init_device_mesh(self.device.type, (self.world,))
        for backbone in _backbones(objective):
            for index in range(backbone.num_blocks):
                fully_shard(backbone.block(index), mesh=mesh, reshard_after_forward=False)
        return fully_shard(objective, mesh=mesh, reshard_after_forward=False)

    @contextlib.contextmanager
    def local(self, wrapped: nn.Module, last: bool) -> Iterator[None]:
        """Leave gradients in this process unless this is the last micro-batch of a step."""
        if isinstance(wrapped, FSDPModule):
            wrapped.set_requires_gradient_sync(last)
            yield
        elif last or self.world == 1:
            yield
        else:
            with wrapped.no_sync():
                yield

    def mean(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Average terms over the processes."""
        if self.world == 1:
            return dict(terms)
        stacked = self.accelerator.reduce(torch.stack([t.float() for t in terms.values()]), "mean")
        return dict(zip(terms, stacked.unbind(), strict=True))

    def wait(self) -> None:
        """Wait for all processes."""
        self.accelerator.wait_for_everyone()


def _leaves_unused(config: TrainConfig) -> bool:
    """Tell whether a step may leave trained parameters without a gradient: heads that wait, or a pool nobody reads."""
    is_dense = config.objective == "supervised" and all(TASKS[name].is_dense for name in config.tasks if name in TASKS)
    return is_dense or config.objective in ("self-distillation", "retrofit")


def _backbones(objective: Objective) -> list[Trunk]:
    found = [value for value in vars(objective).values() if isinstance(value, Trunk)]
    return list({id(one.module): one for one in found}.values())


def gathered(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict with every shard gathered, on the CPU; all processes take part."""
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().cpu()
        for name, value in state.items()
    }


def gathered_optimizer(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return an optimiser's state dict with every shard gathered, on the CPU."""

    def whole(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return (value.full_tensor() if isinstance(value, DTensor) else value).detach().cpu()

    moments = {index: {key: whole(v) for key, v in one.items()} for index, one in state["state"].items()}
    return {"state": moments, "param_groups": state["param_groups"]}


def scatter(state: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Cut the tensors of a state dict as this process's own are cut."""
    return {
        name: distribute_tensor(value, own[name].device_mesh, own[name].placements)
        if isinstance(own.get(name), DTensor)
        else value
        for name, value in state.items()
    }


def scatter_optimizer(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Cut an optimiser's moments as its parameters are cut."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {}
    for index, one in state["state"].items():
        p = parameters[index]
        moments[index] = {
            key: distribute_tensor(v, p.device_mesh, p.placements)
            if isinstance(p, DTensor) and isinstance(v, Tensor) and v.shape == p.shape
            else v
            for key, v in one.items()
        }
    return {"state": moments, "param_groups": state["param_groups"]}


def seed_step(seed: int, step: int, micro: int, rank: int) -> None:
    """Set all random generators for one micro-batch, so that a resumed run draws what an uninterrupted one does.

    Python's generator is the same in all processes (masks are drawn of the whole batch); those of numpy and torch
    differ (dropout, mixing).
    """
    digest = hashlib.sha256(f"vitprobe step {seed} {step} {micro}".encode()).digest()
    random.seed(int.from_bytes(digest[:8], "little"))
    digest = hashlib.sha256(digest + str(rank).encode()).digest()
    np.random.seed(int.from_bytes(digest[:4], "little"))
    torch.manual_seed(int.from_bytes(digest[4:12], "little") >> 1)
