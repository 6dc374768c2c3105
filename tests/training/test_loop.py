"""The loop: it learns, goes on to the last bit, keeps what is asked for, and stops with one line."""

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vitprobe.errors import Stopped, VitprobeError, WeightsError
from vitprobe.training import checkpoint
from vitprobe.training.loop import Progress
from vitprobe.training.metrics import read
from vitprobe.training.variants import Variant

CASES: dict[str, dict[str, Any]] = {
    "supervised": {},
    "everything random": {"drop_path": 0.3, "dropout": 0.2, "ema": 0.9, "accumulation": 2, "optimizer": "lamb"},
    "text": {"objective": "text"},
    "self-distillation": {"objective": "self-distillation"},
    "retrofit": {"objective": "retrofit"},
}


def state(folder: Path) -> checkpoint.Saved:
    saved = checkpoint.read(folder)
    assert saved is not None
    return saved


def tensors(value: Any, name: str = "") -> dict[str, torch.Tensor]:
    """All tensors of a nested state, by path."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return {key: t for k, v in items for key, t in tensors(v, f"{name}/{k}").items()}


def same(one: checkpoint.Saved, other: checkpoint.Saved) -> None:
    assert one.step == other.step
    for part in ("objective", "optimizer"):
        left, right = tensors(getattr(one, part)), tensors(getattr(other, part))
        assert left.keys() == right.keys()
        assert [name for name in left if not torch.equal(left[name], right[name])] == []


def records(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "images_per_s"} for record in read(folder)]


def interrupt_at(step: int) -> Callable[[Progress], None]:
    def on_progress(progress: Progress) -> None:
        if progress.step == step:
            signal.raise_signal(signal.SIGTERM)

    return on_progress


@pytest.mark.parametrize("case", CASES)
def test_a_stopped_run_goes_on_to_the_last_bit(
    case: str, tmp_path: Path, make_config: Callable, run_small: Callable
) -> None:
    config = make_config(**CASES[case])
    run_small(config, tmp_path / "whole")
    with pytest.raises(Stopped, match=r"stopped at step 3 of 6; the last checkpoint, of step 3") as stopped:
        run_small(config, tmp_path / "parts", on_progress=interrupt_at(2))
    assert stopped.value.number == signal.SIGTERM
    run_small(config, tmp_path / "parts")
    same(state(tmp_path / "whole"), state(tmp_path / "parts"))
    assert records(tmp_path / "whole") == records(tmp_path / "parts")
    weights = [(tmp_path / name / "last" / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]


def test_the_same_seed_gives_the_same_run_and_another_another(
    tmp_path: Path, make_config: Callable, run_small: Callable
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run_small(make_config(seed=seed, steps=2), tmp_path / name)
    same(state(tmp_path / "a"), state(tmp_path / "b"))
    with pytest.raises(AssertionError):
        same(state(tmp_path / "a"), state(tmp_path / "c"))


def test_a_loss_falls_and_the_outside_is_left_alone(tmp_path: Path, make_config: Callable, run_small: Callable) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    config = make_config(steps=150, eval_every=150, batch_size=16, lr=5e-3, tasks=("patch_class",))
    seen: list[Progress] = []
    look = run_small(config, tmp_path, on_progress=lambda p: seen.append(replace(p)))
    losses = [record["loss"] for record in read(tmp_path) if "loss" in record]
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    assert seen[-1].step == 150
    assert 0 <= look.summary["outlier_fraction"] <= 1
    assert signal.getsignal(signal.SIGTERM) is handler


def test_metrics_hold_what_the_figures_need(tmp_path: Path, make_config: Callable, run_small: Callable) -> None:
    run_small(make_config(), tmp_path)
    logged = [record for record in read(tmp_path) if "loss" in record]
    looked = [record for record in read(tmp_path) if "held_out" in record]
    assert [record["step"] for record in logged] == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in looked] == [0, 3, 6]
    assert {"lr", "images_per_s", "gradient_norm", "count", "patch_class"} <= logged[0].keys()
    found = looked[-1]["held_out"]
    assert len(found["outlier_fractions"]) == len(found["register_norms"]) == 2
    assert {"verdict", "knn", "accuracy", "norm", "outlier_fraction"} <= found.keys()


def test_kept_checkpoints_are_spread_over_the_training(
    tmp_path: Path, make_config: Callable, run_small: Callable
) -> None:
    run_small(make_config(keep=3, eval_every=6), tmp_path)
    kept = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert kept == ["last", "step-2", "step-4", "step-6"]
    last, sixth = (tmp_path / name / "model.safetensors" for name in ("last", "step-6"))
    assert last.read_bytes() == sixth.read_bytes() != (tmp_path / "step-2" / "model.safetensors").read_bytes()


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_last_checkpoint(
    tmp_path: Path, make_config: Callable, run_small: Callable
) -> None:
    config = make_config(lr=1e20, clip=0.0, warmup=3, steps=12, optimizer="sgd", momentum=0.0, log_every=2)
    with pytest.raises(VitprobeError, match=r"at step \d+; .*--lr") as caught:
        run_small(config, tmp_path)
    assert "\n" not in str(caught.value)
    step = checkpoint.step_of(tmp_path)
    assert ("no checkpoint yet" if step is None else f"of step {step}") in str(caught.value)
    if step is not None:
        assert all(bool(t.isfinite().all()) for t in state(tmp_path).objective.values() if t.is_floating_point())


def test_a_checkpoint_of_another_architecture_is_refused(
    tmp_path: Path, make_config: Callable, run_small: Callable
) -> None:
    run_small(make_config(steps=1), tmp_path)
    other = make_config(steps=1, arch_args={"depth": 3, "embed_dim": 32, "num_heads": 2})
    for config, variant in ((other, Variant(2)), (make_config(steps=1), Variant(4))):
        with pytest.raises(WeightsError, match="another architecture"):
            run_small(config, tmp_path, variant)


def test_a_finished_run_is_only_measured(tmp_path: Path, make_config: Callable, run_small: Callable) -> None:
    first = run_small(make_config(steps=3), tmp_path)
    weights = (tmp_path / "last" / "model.safetensors").stat().st_mtime_ns
    again = run_small(make_config(steps=3), tmp_path)
    assert json.dumps(first.summary) == json.dumps(again.summary)
    assert (tmp_path / "last" / "model.safetensors").stat().st_mtime_ns == weights
