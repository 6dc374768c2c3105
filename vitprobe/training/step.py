"""One optimiser step: micro-batches, gradients, clipping, update, averages. `loop` takes it, and `bench` times it."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitprobe.inputs.stream import TrainBatch
from vitprobe.training.build import Built
from vitprobe.training.config import TrainConfig
from vitprobe.training.engine import Engine, seed_step
from vitprobe.training.groups import parameter_groups
from vitprobe.training.schedule import make_optimizer, make_scheduler, set_decay


@dataclass(frozen=True)
class Stepper:
    """Hold what steps are taken with."""

    config: TrainConfig
    built: Built
    engine: Engine
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    parameters: list[nn.Parameter]

    @classmethod
    def make(cls, config: TrainConfig, built: Built, engine: Engine) -> "Stepper":
        """Wrap the objective for the processes and build its optimiser."""
        wrapped = engine.wrap(built.objective)
        optimizer = make_optimizer(parameter_groups(built.backbone, built.objective.heads(), config), config)
        return cls(config, built, engine, wrapped, optimizer, [p for g in optimizer.param_groups for p in g["params"]])

    def compile(self) -> None:
        """Compile the trained blocks, each by itself, so that a recorder can still look between them."""
        for index in range(self.built.backbone.num_blocks):
            self.built.backbone.block(index).compile()

    def steps(self, batches: Iterator[TrainBatch], start: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Take steps from ``start`` on; yields how many are done and the terms of the last, over all processes."""
        scheduler = make_scheduler(self.optimizer, self.config)
        for step in range(start, self.config.steps):
            scheduler.step_update(step)
            set_decay(self.optimizer, self.config, step)
            yield step + 1, self.take(batches, step)

    def take(self, batches: Iterator[TrainBatch], step: int) -> dict[str, Tensor]:
        """Take one step; returns the loss and its terms, averaged over micro-batches, and the gradient's norm."""
        objective, number = self.built.objective, self.config.accumulation
        objective.before_step(step)
        sums: dict[str, Tensor] = {}
        for micro in range(number):
            batch = next(batches).to(self.engine.device)
            seed_step(self.config.seed, step, micro, self.engine.rank)
            with self.engine.local(self.wrapped, micro == number - 1):
                with self.engine.precise():
                    terms = self.wrapped(batch)
                self.engine.accelerator.backward(terms["loss"] / number)
            for name, term in terms.items():
                share = term.detach() / number
                sums[name] = sums[name] + share if name in sums else share
        objective.before_update(step)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.clip or float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        objective.after_step(step + 1)
        return self.engine.mean(sums) | {"gradient_norm": norm.full_tensor() if hasattr(norm, "full_tensor") else norm}
