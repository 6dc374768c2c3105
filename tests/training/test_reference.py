"""The reference ViT trained: with registers, like timm's step for step, stopped and gone on, opened by timm."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from vitprobe.backbones import load
from vitprobe.backbones.reference import ReferenceViT
from vitprobe.backbones.reference_names import timm_state
from vitprobe.backbones.timm_vit import TimmViT
from vitprobe.errors import ArgumentError, Stopped
from vitprobe.probes.norms import measure_norms
from vitprobe.training import checkpoint
from vitprobe.training.build import Built
from vitprobe.training.engine import Engine
from vitprobe.training.groups import parameter_groups
from vitprobe.training.loop import Progress
from vitprobe.training.step import Stepper
from vitprobe.training.variants import Variant

SIZES = {"depth": 2, "width": 32, "num_heads": 2, "patch_size": 4}
ASKED: dict[str, Any] = {"arch": "reference-vit-ti", "image_size": (32, 32), "arch_args": SIZES}
TIMM = {"depth": 2, "embed_dim": 32, "num_heads": 2, "patch_size": 4}
CASES: dict[str, dict[str, Any]] = {
    "supervised": {"drop_path": 0.3, "dropout": 0.2, "ema": 0.9, "layer_scale": 0.1, "layer_decay": 0.9},
    "text": {"objective": "text"},
    "self-distillation": {"objective": "self-distillation"},
}


def interrupt_at(step: int) -> Callable[[Progress], None]:
    def on_progress(progress: Progress) -> None:
        if progress.step == step:
            signal.raise_signal(signal.SIGTERM)

    return on_progress


@pytest.mark.parametrize("case", CASES)
def test_a_stopped_run_goes_on_to_the_last_bit(
    case: str, tmp_path: Path, make_config: Callable, run_small: Callable
) -> None:
    config = make_config(**ASKED, **CASES[case])
    run_small(config, tmp_path / "whole")
    with pytest.raises(Stopped):
        run_small(config, tmp_path / "parts", on_progress=interrupt_at(2))
    run_small(config, tmp_path / "parts")
    whole, parts = (checkpoint.read(tmp_path / name) for name in ("whole", "parts"))
    assert whole.step == parts.step == 6 and whole.objective.keys() == parts.objective.keys()
    assert all(torch.equal(whole.objective[key], parts.objective[key]) for key in whole.objective)
    assert "tower.registers" in whole.objective
    files = [(tmp_path / name / "last" / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]


def groups_of(built: Built, config: Any) -> list[tuple[float, float, int]]:
    """How many numbers take which decay and rate."""
    groups = parameter_groups(built.backbone, built.objective.heads(), config)
    return sorted((g["weight_decay"], g["lr_scale"], sum(p.numel() for p in g["params"])) for g in groups)


def step_of(built: Built, config: Any) -> tuple[float, Tensor]:
    """The loss of one step, and the weights after it in one long row, by timm's names."""
    stepper = Stepper.make(config, built, Engine.open(config))
    built.objective.train()
    loss = float(stepper.take(built.stream.batches(0, 1), 0)["loss"])
    module = built.backbone.module
    state = timm_state(module) if isinstance(built.backbone, ReferenceViT) else module.state_dict()
    return loss, torch.cat([state[key].flatten() for key in sorted(state)])


@pytest.mark.parametrize("rates", [{}, {"drop_path": 0.5, "dropout": 0.1}])
def test_a_step_is_timms(rates: dict[str, float], make_config: Callable, make_built: Callable) -> None:
    """The same images, registers and decay: the same loss, and after AdamW, clipped, the same weights."""
    own = make_config(**ASKED, **rates, layer_scale=0.1, layer_decay=0.8)
    theirs = make_config(
        arch="vit_tiny_patch16_224", image_size=(32, 32), arch_args=TIMM, layer_scale=0.1, layer_decay=0.8, **rates
    )
    ours, twin = make_built(own, Variant(2)), make_built(theirs, Variant(2))
    assert type(ours.backbone) is ReferenceViT and type(twin.backbone) is TimmViT
    twin.backbone.module.load_state_dict(timm_state(ours.backbone.module))
    assert groups_of(ours, own) == groups_of(twin, theirs)
    before = torch.cat([t.flatten() for _, t in sorted(timm_state(ours.backbone.module).items())])
    (loss, after), (expected, weights) = step_of(ours, own), step_of(twin, theirs)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert (after - before).abs().max() > 1e-5
    assert (after - weights).abs().max() < 0.02 * (after - before).abs().max()


def test_what_is_saved_opens_as_timms_and_is_measured(
    tmp_path: Path, make_config: Callable, make_built: Callable, run_small: Callable
) -> None:
    config = make_config(**ASKED, steps=2, eval_every=2)
    run_small(config, tmp_path)
    folder, images = tmp_path / "last", torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    module = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert module.reg_token.shape == (1, 2, 32)
    built = make_built(config)
    built.objective.load_state_dict(checkpoint.read(tmp_path).objective)
    own = built.objective.eval().variant()
    with torch.no_grad():
        assert torch.equal(module(images), own(images))
    again = load(str(folder))
    assert type(again) is TimmViT and torch.equal(again.tokens(images), own.tokens(images))
    norms = [measure_norms(one, built.held_out.reader) for one in (own, again)]
    assert np.array_equal(norms[0].counts, norms[1].counts) and np.array_equal(norms[0].maxima, norms[1].maxima)
    assert norms[0].num_images == norms[1].num_images == 12
    assert "reference-vit-ti, a ViT of 2 blocks, width 32 with 2 register tokens" in (folder / "README.md").read_text()


def test_a_loaded_one_is_trained_with_the_rates_asked_for(make_config: Callable, make_built: Callable) -> None:
    asked = {"model": "reference-vit-ti", "weights": "random", "image_size": (32, 32)}
    built = make_built(make_config(**asked, drop_path=0.22, dropout=0.1), Variant(1))
    assert [block.drop_path.rate for block in built.backbone.module.blocks] == pytest.approx(
        [0.02 * i for i in range(12)]
    )
    assert {part.p for part in built.backbone.module.modules() if isinstance(part, torch.nn.Dropout)} == {0.1}
    retrofit = make_built(make_config(**asked, objective="retrofit"), Variant(1))
    assert retrofit.objective.variant().layout().num_registers == 1
    with pytest.raises(ArgumentError, match="has its parts already; --arch-arg"):
        make_built(make_config(**asked, layer_scale=0.1), Variant(1))
