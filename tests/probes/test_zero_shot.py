"""Zero-shot classification against open_clip's own, with planted embeddings, and at chance with random towers."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from open_clip.zero_shot_classifier import build_zero_shot_classifier
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor, nn

from vitprobe import backbones
from vitprobe.backbones.open_clip_text import TextTower, fill_prompts, find_text
from vitprobe.errors import ArgumentError, InputError
from vitprobe.probes.passes import run_pass
from vitprobe.probes.zero_shot import ZeroShotReader, describe

sys.path.append(str(Path(__file__).parents[1] / "backbones"))  # tests are no package
from made_clip import made_clip

NAMES = ("tench", "red car", "tabby cat", "cross", "disc")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return made_clip(tmp_path_factory.mktemp("clip") / "whole")


def batches(number, *, size=7, side=32):
    coarse = 2 * torch.randn(number, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    images = nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    for start in range(0, number, size):
        part = tuple(range(start, min(start + size, number)))
        yield SimpleNamespace(names=tuple(map(str, part)), indices=part, images=images[list(part)])


@pytest.mark.parametrize("prompts", ["single", "openai80"])
def test_it_is_open_clips_own_computation(clip, prompts):
    """Another model of the library's own, its classifier and its logits, on random towers and images."""
    own = open_clip.create_model(f"local-dir:{clip}").eval()
    templates = OPENAI_IMAGENET_TEMPLATES if prompts == "openai80" else ["a photo of a {}"]
    weights = build_zero_shot_classifier(own, open_clip.get_tokenizer(f"local-dir:{clip}"), NAMES, templates)
    backbone = backbones.load(str(clip))
    told: list[int] = []
    described = describe(find_text(backbone.spec), fill_prompts(NAMES, prompts), told.append)
    assert sum(told) == len(NAMES) * len(templates)
    assert described.numpy() == pytest.approx(weights.T.numpy(), abs=1e-5)
    reader = ZeroShotReader({"class": described})
    run_pass(backbone, batches(60), [reader])
    with torch.no_grad():
        logits = own.encode_image(torch.cat([one.images for one in batches(60)]), normalize=True) @ weights
    assert reader.predicted["class"] == logits.argmax(1).tolist() and len(set(reader.predicted["class"])) > 1
    labels = np.arange(60) % len(NAMES)
    result = reader.result("class", labels)
    assert result.accuracy == pytest.approx((logits.argmax(1).numpy() == labels).mean())
    assert result.interval[0] < 1 / len(NAMES) < result.interval[1]  # random towers know nothing
    assert result.guess == result.most_frequent == 1 / len(NAMES)


class Planted(nn.Module):
    """A text tower that gives what it is told of each text."""

    def __init__(self, known: dict[str, list[float]], tokenize) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(1))
        self.known = {tuple(tokenize((text,))[0].tolist()): torch.tensor(vector) for text, vector in known.items()}

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.stack([self.known[tuple(row)] for row in tokens.tolist()])


def planted(known: dict[str, list[float]]) -> TextTower:
    text = TextTower(None, {"context_length": 12}, 3, 2.66)
    return TextTower(Planted(known, text.tokenize), text.config, 3, 2.66)


def test_a_description_is_the_mean_of_directions():
    """A long embedding weighs no more than a short one."""
    text = planted({"a cat": [9.0, 0, 0], "the cat": [0, 0.1, 0], "a dog": [0, 0, -2.0]})
    found = describe(text, [("a cat", "the cat"), ("a dog",)])
    half = 2**-0.5
    assert found.numpy() == pytest.approx(np.array([[half, half, 0], [0, 0, -1]]), abs=1e-6)
    for wrong in ([], [("a cat",), ()]):
        with pytest.raises(ArgumentError, match="one or more"):
            describe(text, wrong)


def test_planted_embeddings_are_classified_and_unknown_images_left_out():
    descriptions = {"class": torch.eye(3), "other": torch.eye(3)[[1, 2]]}
    reader = ZeroShotReader(descriptions)
    pointing = [0, 1, 2, 2, 1, 0, 0, 1]
    for part in ((5, 3, 0), (1, 2), (7, 6, 4)):
        output = 4 * torch.eye(3)[[pointing[i] for i in part]] + 0.1
        reader.update(SimpleNamespace(indices=part), {}, output)
    result = reader.result("class", np.array([0, 1, 2, 1, 1, 0, -1, -1]))
    assert result.accuracy == 5 / 6 and result.num_images == 6 and result.most_frequent == 3 / 6
    assert result.shares == pytest.approx([2 / 6, 2 / 6, 2 / 6])
    assert reader.result("other", np.full(8, 1)).num_images == 8
    with pytest.raises(InputError, match="no image has a class of the task class"):
        reader.result("class", np.full(8, -1))
    with pytest.raises(ArgumentError, match="the text tower 3 numbers"):
        reader.update(SimpleNamespace(indices=(8,)), {}, torch.zeros(1, 5))
