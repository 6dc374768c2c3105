"""Whole models of open_clip, written from a tower and a text tower: open_clip opens them, and so does vitprobe."""

from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from torch import Tensor, nn

from vitprobe.backbones import load
from vitprobe.backbones.base import ModelSpec
from vitprobe.backbones.export import export_open_clip
from vitprobe.backbones.open_clip_vit import OpenClipViT, open_clip_transform
from vitprobe.errors import ArgumentError
from vitprobe.registers.insert import insert


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def whole_clip(size: tuple[int, int], **config: object) -> tuple[nn.Module, OpenClipViT, dict]:
    """A tiny whole model of open_clip, an adapter for its tower, and its config."""
    model_cfg = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 48, "head_width": 12, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 100, "width": 16, "heads": 2, "layers": 1},
        **config,
    }
    kwargs = {key: value for key, value in model_cfg.items() if key != "custom_text"}
    kwargs["vision_cfg"] = {**model_cfg["vision_cfg"], "image_size": size}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = (CustomTextCLIP if "custom_text" in model_cfg else CLIP)(**kwargs).eval()
    spec = ModelSpec("clip", "open_clip", "tiny", "random (seed 0)", "", size, 0)
    return model, OpenClipViT(model.visual, spec, open_clip_transform({}, size)), model_cfg


@pytest.mark.parametrize("size", [(32, 32), (16, 64)])  # of 4 x 4 patches and of 2 x 8, which is as many
@pytest.mark.parametrize("config", [{}, {"custom_text": True}, {"quick_gelu": True}])
@torch.no_grad()
def test_a_whole_model_of_open_clip(config: dict, size: tuple[int, int], tmp_path: Path) -> None:
    model, tower, model_cfg = whole_clip(size, **config)
    text = {k: v for k, v in model.state_dict().items() if not k.startswith("visual.")}
    other = {k if k == "logit_scale" else f"text.{k.removeprefix('text.')}": v for k, v in text.items()}
    old = model.state_dict() | {"visual.proj": torch.zeros(48, 16)}  # of before the tower was trained
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7], "url": "not of open_clip's config"}
    images, captions = noise(2, 3, *size), torch.arange(1, 9).view(1, 8)
    said = {key: value for key, value in model_cfg.items() if key != "quick_gelu"}
    for state in (text, other, old):  # with and without the prefix
        export_open_clip(tower, state, said, preprocess, tmp_path)
        again = open_clip.create_model(f"local-dir:{tmp_path}").eval()
        assert torch.equal(again.encode_image(images), model.encode_image(images))
        assert torch.equal(again.encode_text(captions), model.encode_text(captions))
        assert torch.equal(again.logit_scale, model.logit_scale)
    assert said["vision_cfg"]["image_size"] == 32  # what was given is left alone
    loaded = load(str(tmp_path))
    assert loaded.spec.library == "open_clip" and loaded.transform.mean == (0.5, 0.4, 0.3)
    assert torch.equal(loaded(images), tower(images))


def test_a_whole_model_that_open_clip_cannot_hold(tmp_path: Path) -> None:
    model, tower, model_cfg = whole_clip((32, 32))
    state = dict(model.state_dict())
    with pytest.raises(ArgumentError, match=r"0 tensors of text for clip; .* embed_dim, 16, and a logit_scale"):
        export_open_clip(tower, {}, model_cfg, {}, tmp_path)
    with pytest.raises(ArgumentError, match=r"a projection to 16 .* open_clip needs one to embed_dim, 24"):
        export_open_clip(tower, state, {**model_cfg, "embed_dim": 24}, {}, tmp_path)
    tower.reset_head(0)
    with pytest.raises(ArgumentError, match="a projection to None"):
        export_open_clip(tower, state, model_cfg, {}, tmp_path)
    with pytest.raises(ArgumentError, match="cannot hold the registers of clip; export the tower, which timm can hold"):
        export_open_clip(insert(tower, 4), state, model_cfg, {}, tmp_path)
    assert list(tmp_path.iterdir()) == []
