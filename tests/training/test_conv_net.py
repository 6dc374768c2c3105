"""A convolutional network goes through the very loop that transformers do; a hybrid is one of them."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitprobe.backbones import load
from vitprobe.backbones.conv_net import ConvNet, load_conv
from vitprobe.errors import ArgumentError, Stopped
from vitprobe.probes.shards import Shards
from vitprobe.training import checkpoint
from vitprobe.training.build import make_backbone, sizes
from vitprobe.training.config import TrainConfig
from vitprobe.training.engine import Engine
from vitprobe.training.evaluation import NOT_JUDGED, evaluate
from vitprobe.training.groups import parameter_groups
from vitprobe.training.loop import Progress
from vitprobe.training.metrics import read
from vitprobe.training.variants import Variant

NONE = Variant(0)
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet": {"arch": "scenes-resnet", "arch_args": {"channels": (8, 8, 16, 16)}},
    "averaged": {"arch": "scenes-resnet", "arch_args": {"channels": (8, 8, 16, 16)}, "ema": 0.9, "drop_path": 0.2},
    "convnext": {
        "arch": "convnext_atto",
        "arch_args": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "patch_size": 2},
        "image_size": (32, 32),
        "layer_decay": 0.8,
    },
    "hybrid": {"arch": "scenes-hybrid", "arch_args": {"depth": 2, "embed_dim": 32}},
}


@pytest.fixture
def config(make_config: Callable) -> Callable[..., TrainConfig]:
    """The options of a small training of a network on what whole scenes show."""

    def made(name: str, **asked: Any) -> TrainConfig:
        return make_config(**{**NETWORKS[name], "tasks": ("majority", "presence"), **asked})

    return made


def stop_at(step: int) -> Callable[[Progress], None]:
    def on_progress(progress: Progress) -> None:
        if progress.step == step:
            signal.raise_signal(signal.SIGTERM)

    return on_progress


@pytest.mark.parametrize("name", NETWORKS)
def test_a_stopped_run_goes_on_to_the_last_bit(
    name: str, tmp_path: Path, config: Callable, run_small: Callable
) -> None:
    """Running means of norms included: they are in the checkpoint."""
    asked = config(name)
    run_small(asked, tmp_path / "whole", NONE)
    with pytest.raises(Stopped, match="the last checkpoint, of step 3"):
        run_small(asked, tmp_path / "parts", NONE, on_progress=stop_at(2))
    look = run_small(asked, tmp_path / "parts", NONE)
    whole, parts = (checkpoint.read(tmp_path / one) for one in ("whole", "parts"))
    assert whole.step == parts.step == 6
    assert [key for key, value in whole.objective.items() if not torch.equal(value, parts.objective[key])] == []
    folder = tmp_path / "whole" / "last"
    opened = (load if name == "hybrid" else load_conv)(str(folder))
    if name == "resnet":
        assert any("running_mean" in key for key in whole.objective)
        text = (folder / "README.md").read_text()
        assert "register" not in text.partition("\n")[0] and "vitprobe norms" not in text
    assert opened.spec.image_size == (32, 32)
    assert (look.summary["verdict"] == NOT_JUDGED) == (name != "hybrid") == (look.norms is None)
    last = [record for record in read(tmp_path / "whole") if "held_out" in record][-1]["held_out"]
    assert last["norm"]["max"] >= last["norm"]["p99"] >= last["norm"]["median"] > 0
    assert {"accuracy", "knn"} <= last.keys()


def pictures(folder: Path, *, told_apart: bool) -> str:
    """Pictures of two classes, red and green; or of two classes that are of both colours alike."""
    generator = np.random.default_rng(0)
    for index in range(60):
        colour = index % 2 if told_apart else (index // 2) % 2
        pixels = generator.integers(0, 128, (32, 32, 3))
        pixels[..., colour] += 120
        path = folder / f"class{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return str(folder)


@pytest.mark.parametrize("told_apart", [True, False])
def test_labelled_pictures_are_learnt(
    told_apart: bool, tmp_path: Path, make_config: Callable, run_small: Callable
) -> None:
    data = (pictures(tmp_path / "pictures", told_apart=told_apart),)
    asked = make_config(**NETWORKS["resnet"], data=data, steps=24, eval_every=24, lr=1e-2, batch_size=16)
    look = run_small(asked, tmp_path / "run", NONE)
    first = next(record["held_out"] for record in read(tmp_path / "run") if "held_out" in record)
    assert first["accuracy"] <= 0.75
    assert (look.summary["accuracy"] == 1.0) == told_apart
    assert json.loads((tmp_path / "run" / "last" / "config.json").read_text())["label_names"] == ["class0", "class1"]


@torch.no_grad()
def test_norms_are_those_of_the_last_map(config: Callable, make_built: Callable) -> None:
    """Held against every vector's norm, computed here."""
    asked = config("resnet")
    built = make_built(asked, NONE)
    look = evaluate(built.objective, built.held_out, Engine.open(asked), Shards.alone("cpu"))
    module = built.backbone.module.eval()
    images = torch.cat([batch.images for batch in built.held_out.reader])
    norms = module.forward_features(images).double().pow(2).sum(1).sqrt().flatten().numpy()  # 12 images x 16 vectors
    assert norms.shape == (12 * 16,)
    expected = {"median": np.quantile(norms, 0.5), "p99": np.quantile(norms, 0.99), "max": norms.max()}
    assert look.summary["norm"] == pytest.approx(expected, rel=1e-5)
    assert look.summary["outlier_fraction"] is None and look.norms is None


def test_what_decays_and_how_deep(config: Callable, make_built: Callable) -> None:
    asked = config("convnext")
    built = make_built(asked, NONE)
    groups = parameter_groups(built.backbone, built.objective.heads(), asked)
    trained = {id(p) for group in groups for p in group["params"]}
    assert {id(p) for p in built.backbone.module.parameters()} <= trained
    conv = built.backbone
    last, first = (
        next(dict(conv.module.named_parameters())[name] for name in conv.parameter_names(kind))
        for kind in ("block:3", "patch_embedding")
    )
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert (scales[id(last)], scales[id(first)]) == pytest.approx((0.8, 0.8**5))
    assert all(group["weight_decay"] == 0 for group in groups for p in group["params"] if p.ndim <= 1)


def test_stages_can_be_compiled_and_found(config: Callable) -> None:
    conv = make_backbone(config("resnet"))
    assert isinstance(conv, ConvNet) and sizes(config("resnet")) == ((32, 32), (8, 8))
    assert [conv.block(i) is getattr(conv.module, f"layer{i + 1}") for i in range(4)] == [True] * 4
    with pytest.raises(ArgumentError, match="has blocks 0 to 3"):
        conv.block(4)


def test_what_has_no_place_in_it_is_refused(config: Callable, make_built: Callable) -> None:
    with pytest.raises(ArgumentError, match="is a convolutional network, which has no tokens to put registers beside"):
        make_built(config("resnet"), Variant(4))
    for asked, why in [
        ({"tasks": ("majority", "patch_class")}, "no patch tokens to learn patch_class of; it has count, majority"),
        ({"dropout": 0.1}, "--dropout has no place in it"),
        ({"layer_scale": 0.1}, "takes no ls_init_value"),
        ({"objective": "text"}, "trained by --objective supervised alone"),
        ({"trainable": ("registers", "positions")}, "has no registers or positions to train"),
    ]:
        with pytest.raises(ArgumentError, match=why):
            make_built(config("resnet", **asked), NONE)


def test_a_hybrid_with_registers_is_trained_and_opened_again(
    tmp_path: Path, config: Callable, run_small: Callable
) -> None:
    run_small(config("hybrid"), tmp_path, Variant(2))
    opened, saved = load(str(tmp_path / "last")), checkpoint.read(tmp_path)
    assert opened.layout().num_registers == 2 and opened.layout().grid == (8, 8)
    stem = {key: value for key, value in saved.objective.items() if key.startswith("tower.patch_embed.backbone.")}
    state = opened.module.state_dict()
    assert stem and all(torch.equal(value, state[key.removeprefix("tower.")]) for key, value in stem.items())
