"""What a training would take, without training: ``--dry-run``."""

from dataclasses import asdict, replace
from typing import Any

from vitprobe.probes.shards import Shards
from vitprobe.training.build import build
from vitprobe.training.config import TrainConfig
from vitprobe.training.data import Data
from vitprobe.training.groups import parameter_groups
from vitprobe.training.plan import plan_step
from vitprobe.training.variants import Variant

FEW = 4
"""Images in the batch that is tried."""
SLOTS = {"adamw": 2, "lamb": 2, "sgd": 1}
"""Numbers that an optimiser keeps for each parameter."""


def plan(config: TrainConfig, variant: Variant, data: Data, shards: Shards) -> dict[str, Any]:
    """Try one step of a variant on a few images, on the CPU, and say what the whole would take of one process.

    The plan counts parameters and FLOPs exactly and estimates memory; nothing is trained and nothing written.
    """
    small = replace(config, batch_size=FEW, accumulation=1, workers=0)
    built = build(small, variant, data, Shards.alone())
    objective = built.objective
    objective.before_step(0)
    batch = next(built.stream.batches(0, 1))
    found = plan_step(
        lambda: objective(batch)["loss"],
        objective,
        batch_size=FEW,
        optimizer_slots=SLOTS[config.optimizer],
        precision=config.precision,
        ema=False,  # an average is among the objective's own parameters
        scale_to=config.batch_size // config.accumulation // shards.world,
    )
    groups = parameter_groups(built.backbone, objective.heads(), config)
    decayed = sum(p.numel() for group in groups if group["weight_decay"] for p in group["params"])
    return {"variant": variant.name, "title": variant.title, **asdict(found), "decayed_parameters": decayed}
