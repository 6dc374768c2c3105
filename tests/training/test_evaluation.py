"""A look at a variant during training: the norms of the command ``norms``, k-NN by hand, planted artifacts found."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vitprobe.inputs.loading import ImageLoader
from vitprobe.probes.norms import measure_norms
from vitprobe.probes.shards import Shards
from vitprobe.training.build import Built
from vitprobe.training.engine import Engine
from vitprobe.training.evaluation import RULE, Evaluation, evaluate
from vitprobe.training.metrics import read
from vitprobe.training.variants import Variant

ASKED = {
    "supervised": {},
    "text": {"objective": "text"},
    "self-distillation": {"objective": "self-distillation"},
    "retrofit": {"objective": "retrofit"},
    "averaged": {"ema": 0.9, "drop_path": 0.5, "dropout": 0.5},
}


def looked(built: Built, **kwargs: object) -> Evaluation:
    return evaluate(built.objective, built.held_out, Engine.open(built.objective.config), Shards.alone("cpu"), **kwargs)


def stirred(built: Built, stir: Callable) -> Built:
    """Let what is measured differ from what is trained."""
    stir(built.objective.variant().module, seed=7)
    return built


@pytest.mark.parametrize("case", ASKED)
def test_norms_are_those_of_the_command(case: str, make_config: Callable, make_built: Callable, stir: Callable) -> None:
    built = stirred(make_built(make_config(**ASKED[case])), stir)
    found = looked(built, blocks=range(built.backbone.num_blocks)).norms
    backbone = built.objective.variant()
    loader = ImageLoader(built.held_out.reader.images.items, backbone.transform, batch_size=5, workers=0)
    was_training = backbone.module.training
    backbone.module.eval()
    last = backbone.num_blocks - 1
    own = measure_norms(backbone, loader, blocks=range(last + 1)).result(RULE, point=last)
    backbone.module.train(was_training)
    assert found.summary == own.summary
    assert found.arrays().keys() == own.arrays().keys()
    for name, array in own.arrays().items():
        assert np.array_equal(found.arrays()[name], array, equal_nan=array.dtype.kind == "f"), name
    assert found.summary["num_images"] == len(built.held_out.reader.images)


def test_the_summary_is_of_the_last_block(make_config: Callable, make_built: Callable, stir: Callable) -> None:
    built = stirred(make_built(make_config(), Variant(3)), stir)
    found = looked(built)
    backbone = built.objective.eval().variant()
    images = torch.cat([batch.images for batch in built.held_out.reader])
    norms, x, layout = [], images, backbone.layout()
    with torch.no_grad():
        module = backbone.module
        x = module.norm_pre(module._pos_embed(module.patch_embed(images)))
        for block in module.blocks:
            x = block(x)
            norms.append(x.norm(dim=-1).numpy())  # (N, T)
    medians = [np.median(norm[:, layout.registers]) for norm in norms]
    assert found.summary["register_norms"] == pytest.approx(medians, rel=0.02)  # read off a fine histogram
    assert found.summary["norm"]["max"] == pytest.approx(norms[-1][:, layout.patches].max(), rel=1e-5)
    assert found.summary["outlier_fraction"] == found.summary["outlier_fractions"][-1]
    assert len(found.summary["outlier_fractions"]) == 2


@pytest.mark.parametrize("case", ["supervised", "text", "self-distillation"])
def test_k_nearest_neighbours_by_hand(case: str, make_config: Callable, make_built: Callable, stir: Callable) -> None:
    """DINO's rule (arXiv 2104.14294, appendix F): 20 neighbours by cosine, each votes with exp(cosine / 0.07)."""
    built = stirred(make_built(make_config(**ASKED[case], num_bank=60, num_held_out=30)), stir)
    found = looked(built).summary["knn"]
    backbone = built.objective.eval().variant()

    def features(reader: object) -> tuple[np.ndarray, np.ndarray]:
        items, labels = reader.images.items, reader.images.labels
        with torch.no_grad():
            got = [backbone.features(backbone.transform(item.read().image)[None])[0].double().numpy() for item in items]
        rows = np.stack(got)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True), labels

    (bank, known), (queries, truth) = features(built.held_out.bank), features(built.held_out.reader)
    right = 0
    for query, label in zip(queries, truth, strict=True):
        cosines = bank @ query
        votes = np.zeros(known.max() + 1)
        for at in np.argsort(-cosines)[:20]:
            votes[known[at]] += np.exp(cosines[at] / 0.07)
        right += votes.argmax() == label
    assert 0 < right < 30
    assert found == pytest.approx(right / 30)


@pytest.mark.parametrize(("case", "what"), [("averaged", "average"), ("self-distillation", "teacher")])
def test_the_average_is_what_is_measured(
    case: str, what: str, make_config: Callable, make_built: Callable, stir: Callable
) -> None:
    built = make_built(make_config(**ASKED[case]))
    before = looked(built)
    stir(built.objective.tower, seed=3)
    assert np.array_equal(looked(built).norms.quantiles, before.norms.quantiles)
    stir(getattr(built.objective, what), seed=3)
    assert not np.array_equal(looked(built).norms.quantiles, before.norms.quantiles)


def test_a_look_leaves_the_training_as_it_is(make_config: Callable, make_built: Callable) -> None:
    built = make_built(make_config(drop_path=0.5, dropout=0.5))
    made = built.objective
    modes = {name: part.training for name, part in made.named_modules()}
    state = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    random = torch.get_rng_state()
    once, again = looked(built), looked(built)
    assert once.summary == again.summary, "neither drop path nor dropout is at work"
    assert {name: part.training for name, part in made.named_modules()} == modes
    assert modes[""] and modes["tower.blocks.1"]
    assert all(torch.equal(tensor, state[name]) for name, tensor in made.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in made.parameters())


def test_a_failure_leaves_the_mode_as_it_was(
    make_config: Callable, make_built: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = make_built(make_config())
    monkeypatch.setattr(built.objective, "held_out", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        looked(built)
    assert built.objective.training


@pytest.mark.parametrize(
    ("name", "verdict", "low", "high"), [("organism", "artifacts", 0.005, 0.3), ("organism-clean", "none", 0.0, 0.0)]
)
def test_planted_artifacts_are_found_during_training(
    name: str, verdict: str, low: float, high: float, tmp_path: Path, make_config: Callable, run_small: Callable
) -> None:
    """A positive and a negative control, both read off the records that a training leaves."""
    asked = {"model": name, "image_size": (112, 112), "steps": 2, "eval_every": 1, "num_held_out": 24, "batch_size": 2}
    run_small(make_config(objective="retrofit", lr=1e-6, **asked), tmp_path, Variant(0, True))
    looks = [record["held_out"] for record in read(tmp_path) if "held_out" in record]
    assert len(looks) == 3
    for look in looks:
        assert look["verdict"] == verdict
        assert low <= look["outlier_fraction"] <= high
        assert look["outlier_fractions"][:4] == [0.0] * 4, "block 4 plants them"


def test_labels_that_the_bank_has_not_give_no_knn(make_config: Callable, make_built: Callable) -> None:
    built = make_built(make_config())
    images = built.held_out.reader.images
    built.held_out.reader.images = type(images)(**{**vars(images), "labels": images.labels + 100})
    assert "knn" not in looked(built).summary
