"""Captions: the contrastive loss by hand, planted embeddings that are told apart, towers of open_clip kept whole."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from vitprobe.backbones.open_clip_vit import OpenClipViT
from vitprobe.errors import ArgumentError, WeightsError
from vitprobe.inputs.labels import Labelled
from vitprobe.training.held_out import HeldOut
from vitprobe.training.metrics import read
from vitprobe.training.objectives.text import MAX_SCALE
from vitprobe.training.variants import Variant

CPU = torch.device("cpu")


def contrastive(images: Tensor, texts: Tensor, scale: float) -> float:
    """Radford et al. (arXiv 2103.00020, figure 3): the mean of the cross-entropies of rows and columns."""
    x, y = (v.detach().double().numpy() for v in (images, texts))
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    logits = scale * x @ y.T
    rows = -(np.diag(logits) - np.log(np.exp(logits).sum(1))).mean()
    columns = -(np.diag(logits) - np.log(np.exp(logits).sum(0))).mean()
    return float((rows + columns) / 2)


@pytest.mark.parametrize("log_scale", [0.5, 2.66, 9.0])
def test_the_loss_is_contrastive(log_scale: float, make_config: Callable, make_built: Callable, stir: Callable) -> None:
    built = make_built(make_config(objective="text"))
    made, batch = built.objective, next(built.stream.batches(0, 1))
    stir(made.tower)
    made.logit_scale.data.fill_(log_scale)
    with torch.no_grad():
        images, texts = made.backbone(batch.views[0]), made.text_tower(made.text.tokenize(batch.captions))
        terms = made(batch)
    scale = min(np.exp(log_scale), 100)
    assert images.shape == texts.shape == (8, 16)
    assert terms["loss"].item() == pytest.approx(contrastive(images, texts, scale), rel=1e-4)
    assert terms["logit_scale"].item() == pytest.approx(scale, rel=1e-5)
    made.after_step(1)
    assert made.logit_scale.item() == pytest.approx(min(log_scale, np.log(100)), rel=1e-6)
    made.logit_scale.data.fill_(-1.0)
    made.after_step(2)
    assert made.logit_scale.item() == 0
    assert pytest.approx(np.log(100)) == MAX_SCALE


def test_the_tokenizer_is_open_clips(make_config: Callable, make_built: Callable) -> None:
    extra = {"text_width": 16, "text_layers": 1, "text_heads": 2, "embed_dim": 16}
    captions = ("two red squares", "a " * 100)
    for length in (77, 12):
        made = make_built(make_config(objective="text", extra=extra | {"context_length": length})).objective
        own = open_clip.tokenizer.SimpleTokenizer(context_length=length)(list(captions))
        assert torch.equal(made.text.tokenize(captions), own)
        assert made.text_tower(own).shape == (2, 16)


class Planted(nn.Module):
    """A text tower that knows its captions by heart."""

    def __init__(self, tokenize: Callable, known: dict[str, Tensor]) -> None:
        super().__init__()
        self.known = {tuple(tokenize((text,))[0].tolist()): vector for text, vector in known.items()}

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.stack([self.known[tuple(row)] for row in tokens.tolist()])


def planted_held_out(labels: np.ndarray, classes: tuple[str, ...], captions: list[str] | None) -> HeldOut:
    images = Labelled("planted", range(len(labels)), labels, classes, captions, ())
    numbers = torch.arange(len(labels), dtype=torch.float32).view(-1, 1)

    class Reader(SimpleNamespace):
        def __iter__(self):
            for rows in torch.arange(len(labels)).split(4):
                yield SimpleNamespace(images=numbers[rows], indices=tuple(rows.tolist()))

    reader = Reader(images=images)
    return HeldOut(reader, reader)


def test_zero_shot_accuracy_of_planted_embeddings(make_config: Callable, make_built: Callable) -> None:
    """Images point where their class's caption does, but three of eight, which point at another's."""
    made = make_built(make_config(objective="text")).objective
    classes, labels = ("tabby_cat", "n02110185", "red car"), np.array([0, 1, 2, 2, 1, 0, 0, 1])
    prompts = ("a photo of a tabby cat", "a photo of a Siberian husky", "a photo of a red car")
    axes = torch.eye(4)
    captions = [prompts[label] for label in labels]
    made.text_tower = Planted(made.text.tokenize, dict(zip(prompts, axes, strict=False)))
    shown = labels.copy()
    shown[[0, 3, 7]] = (shown[[0, 3, 7]] + 1) % 3
    made.backbone = lambda numbers: 5 * axes[shown[numbers.long().flatten()]] + 0.1
    found = made.held_out(planted_held_out(labels, classes, captions), CPU)
    assert found["zero_shot_accuracy"] == (5, 8)
    assert made.measure == "zero_shot_accuracy"
    made.backbone = lambda numbers: 5 * axes[labels[numbers.long().flatten()]] + 0.1
    perfect = made.held_out(planted_held_out(labels, classes, captions), CPU)
    assert perfect == {"zero_shot_accuracy": (8, 8), "retrieval": (8, 8)}


def test_classes_that_are_numbers_ask_for_no_zero_shot_accuracy(make_config: Callable, make_built: Callable) -> None:
    """Captions of their own beside labels without names: nothing can be said of a class 7."""
    made = make_built(make_config(objective="text")).objective
    made.text_tower = Planted(made.text.tokenize, {"a": torch.eye(2)[0], "b": torch.eye(2)[1]})
    labels = np.array([0, 1, 1])
    made.backbone = lambda numbers: torch.eye(2)[labels[numbers.long().flatten()]]
    held = planted_held_out(labels, ("3", "7"), ["a", "b", "b"])
    assert made.held_out(held, CPU) == {"retrieval": (3, 3)}
    assert made.measure == "retrieval"


def test_captions_are_found_again(make_config: Callable, make_built: Callable) -> None:
    """Among those of a batch of four; a caption that is said twice counts as found by either image."""
    made = make_built(make_config(objective="text")).objective
    captions = ["a", "b", "c", "d", "e", "e", "f", "g"]
    known = dict(zip("abcdefg", torch.eye(7), strict=True))
    made.text_tower = Planted(made.text.tokenize, known)
    shown = ["a", "c", "c", "d", "e", "e", "f", "f"]
    made.backbone = lambda numbers: torch.stack([known[shown[int(n)]] for n in numbers])
    held = planted_held_out(np.zeros(8, np.int64), (), captions)
    assert made.held_out(held, CPU) == {"retrieval": (6, 8)}
    assert made.measure == "retrieval"


def test_learning_raises_zero_shot_accuracy(
    two_classes: Path, tmp_path: Path, make_config: Callable, run_small: Callable
) -> None:
    asked = {"data": (str(two_classes),), "caption": "class", "steps": 40, "eval_every": 40, "lr": 3e-3}
    look = run_small(make_config(objective="text", **asked), tmp_path)
    accuracy = [record["held_out"]["zero_shot_accuracy"] for record in read(tmp_path) if "held_out" in record]
    assert accuracy[0] < 0.8 < 0.95 < accuracy[-1] == look.summary["zero_shot_accuracy"]


def whole_model(folder: Path, **text: object) -> Path:
    """A tiny model of open_clip in a folder, as open_clip opens it."""
    model_cfg = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 48, "head_width": 12, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1, **text},
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**model_cfg)
    model.logit_scale.data.fill_(3.25)
    folder.mkdir()
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    body = {"model_cfg": model_cfg, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7]}}
    (folder / "open_clip_config.json").write_text(json.dumps(body))
    return folder


@pytest.mark.parametrize("number", [0, 3])
@torch.no_grad()
def test_a_model_of_open_clip_is_taken_whole(
    number: int, tmp_path: Path, make_config: Callable, make_built: Callable
) -> None:
    """Its own projection, its text tower with its weights, its temperature: R = 0 begins as the model is."""
    folder = whole_model(tmp_path / "clip")
    made = make_built(make_config(objective="text", model=str(folder)), Variant(number)).objective.eval()
    own = open_clip.create_model(f"local-dir:{folder}").eval()
    assert type(made.backbone) is OpenClipViT
    assert made.backbone.layout().num_registers == number
    assert torch.equal(made.tower.proj, own.visual.proj)
    assert made.logit_scale.item() == 3.25
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(["a red square", "two discs"])
    assert torch.equal(made.text.tokenize(("a red square", "two discs")), tokens)
    assert torch.equal(F.normalize(made.text_tower(tokens), dim=-1), own.encode_text(tokens, normalize=True))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found, kept = made.backbone(images), own.encode_image(images)
    assert torch.equal(found, kept) == (number == 0)
    assert torch.allclose(found, kept, atol=0.3)


def test_text_towers_that_read_other_tokens_are_refused(
    tmp_path: Path, make_config: Callable, make_built: Callable
) -> None:
    for name, text, said in (
        ("clipa", {"hf_tokenizer_name": "bert-base-uncased"}, "reads tokens of bert-base-uncased"),
        ("coca", {"output_tokens": True}, "is CoCa's"),
    ):
        folder = whole_model(tmp_path / name, **text)
        with pytest.raises(ArgumentError, match=said) as caught:
            make_built(make_config(objective="text", model=str(folder)))
        assert "\n" not in str(caught.value)


def test_a_file_without_a_text_tower_is_refused(tmp_path: Path, make_config: Callable, make_built: Callable) -> None:
    folder = whole_model(tmp_path / "clip")
    visual = open_clip.create_model(f"local-dir:{folder}").visual.state_dict()
    save_file({f"visual.{name}": t.contiguous() for name, t in visual.items()}, tmp_path / "visual.safetensors")
    config = make_config(objective="text", model=str(folder), weights=str(tmp_path / "visual.safetensors"))
    with pytest.raises(WeightsError, match=r"visual\.safetensors holds no text tower"):
        make_built(config)
