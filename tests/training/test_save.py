"""Variants on disk: timm and open_clip open them where there is no vitprobe, vitprobe opens them, the card is true."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from vitprobe import __version__
from vitprobe.backbones import load
from vitprobe.training.build import Built
from vitprobe.training.save import save_variant
from vitprobe.training.variants import Variant

CLIP = "a model of open_clip"
CASES: dict[str, dict[str, Any]] = {
    "supervised": {"tasks": ("count",)},
    "averaged": {"ema": 0.9, "arch_args": {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2.0}},
    "text": {"objective": "text"},
    "text of open_clip": {"objective": "text", "model": CLIP},
    "tasks of open_clip": {"model": CLIP, "tasks": ("count",)},
    "self-distillation": {"objective": "self-distillation"},
    "self-distillation of open_clip": {"objective": "self-distillation", "model": CLIP},
    "retrofit": {"objective": "retrofit"},
}
OPENED = """
import sys
sys.modules["vitprobe"] = None  # importing it raises
try:
    import vitprobe
except ImportError:
    pass
else:
    raise SystemExit("there is a vitprobe")
import timm, torch
for folder in sys.argv[1:]:
    model = timm.create_model(f"local-dir:{folder}/last", pretrained=True).eval()
    with torch.no_grad():
        torch.save(model(torch.load(f"{folder}/images.pt")), f"{folder}/outputs.pt")
"""


@dataclass(frozen=True)
class Saved:
    """A variant and the folder that holds it."""

    built: Built
    folder: Path
    images: Tensor

    @property
    def last(self) -> Path:
        return self.folder / "last"

    @torch.no_grad()
    def outputs(self) -> Tensor:
        """What the measured backbone gives."""
        return self.built.objective.eval().variant()(self.images)


def whole_clip(folder: Path) -> str:
    """Write a tiny model of open_clip into a folder."""
    model_cfg = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 48, "head_width": 12, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    model = open_clip.CLIP(**model_cfg, quick_gelu=True)
    folder.mkdir()
    state = {name: t.contiguous() for name, t in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7], "interpolation": "bilinear"}
    body = {"model_cfg": model_cfg | {"quick_gelu": True}, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(body))
    return str(folder)


@pytest.fixture(scope="module")
def saved(
    tmp_path_factory: pytest.TempPathFactory, make_config: Callable, make_built: Callable, stir: Callable
) -> dict[tuple[str, int], Saved]:
    """Every case with 0 and with 2 registers, its measured backbone stirred, saved, and opened in a bare process."""
    root, found = tmp_path_factory.mktemp("saved"), {}
    clip = whole_clip(root / "clip")
    for number in (0, 2):
        for case, asked in CASES.items():
            asked = {**asked, **({"model": clip} if asked.get("model") else {})}
            built = make_built(make_config(**asked, seed=3), Variant(number))
            measured = built.objective.variant().module
            if case == "retrofit":
                for parameter in measured.parameters():  # an organism's weights are written down
                    parameter.data *= 1.01
            else:
                stir(measured, seed=number)
            folder = root / f"{case} {number}"
            (folder / "last").mkdir(parents=True)
            save_variant(built, built.objective, folder / "last", 4)
            size = built.backbone.spec.image_size
            images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(number))
            torch.save(images, folder / "images.pt")
            found[case, number] = Saved(built, folder, images)
    folders = [str(one.folder) for one in found.values()]
    done = subprocess.run([sys.executable, "-c", OPENED, *folders], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    return found


EVERY = [(case, number) for case in CASES for number in (0, 2)]


@pytest.mark.parametrize(("case", "number"), EVERY)
def test_timm_opens_it_where_there_is_no_vitprobe(case: str, number: int, saved: dict[tuple[str, int], Saved]) -> None:
    one = saved[case, number]
    own, got = one.outputs(), torch.load(one.folder / "outputs.pt")
    assert own.std() > 0
    assert own.shape == got.shape
    assert torch.allclose(got, own, rtol=1e-4, atol=1e-4 * float(own.abs().max()))
    if "open_clip" not in case:
        assert torch.equal(got, own)


@pytest.mark.parametrize(("case", "number"), EVERY)
def test_vitprobe_opens_it_with_its_registers(case: str, number: int, saved: dict[tuple[str, int], Saved]) -> None:
    one = saved[case, number]
    again, measured = load(str(one.last)), one.built.objective.variant()
    assert (again.spec.num_registers, again.layout().num_registers) == (number, number)
    assert again.layout() == measured.layout()
    assert again.transform.mean == measured.transform.mean
    with torch.no_grad():
        own, got = one.outputs(), again(one.images)
        assert torch.allclose(got, own, rtol=1e-4, atol=1e-4 * float(own.abs().max()))
        own, got = measured.features(one.images), again.features(one.images)
    own, got = (F.normalize(x, dim=-1) for x in (own, got[:, : own.shape[1]]))
    if "text" not in case:  # of a CLIP tower, features are its embedding; of timm's, what its head reads
        assert torch.allclose(got, own, atol=1e-4)


@torch.no_grad()
def test_open_clip_opens_a_model_of_its_own(saved: dict[tuple[str, int], Saved]) -> None:
    """Without registers the whole model comes back: image and text features, temperature, preprocessing."""
    one = saved["text of open_clip", 0]
    made = one.built.objective
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{one.last}")
    model.eval()
    assert torch.equal(model.encode_image(one.images), one.outputs())
    tokens = open_clip.get_tokenizer(f"local-dir:{one.last}")(["a red square", "two discs on a plain background"])
    assert torch.equal(tokens, made.text.tokenize(("a red square", "two discs on a plain background")))
    assert torch.equal(model.encode_text(tokens), made.text_tower(tokens))
    assert torch.equal(model.logit_scale, made.logit_scale.squeeze())
    normalise = preprocess.transforms[-1]
    assert (tuple(normalise.mean), tuple(normalise.std)) == ((0.5, 0.4, 0.3), (0.5, 0.6, 0.7))
    assert not (saved["text of open_clip", 2].last / "open_clip_config.json").exists()


@pytest.mark.parametrize(("case", "number"), [("text", 0), ("text", 2), ("text of open_clip", 2)])
@torch.no_grad()
def test_the_text_tower_lies_beside(case: str, number: int, saved: dict[tuple[str, int], Saved]) -> None:
    one = saved[case, number]
    made, state = one.built.objective, load_file(one.last / "text.safetensors")
    body = json.loads((one.last / "text_config.json").read_text())
    assert body["quick_gelu"] == ("open_clip" in case)
    tower = open_clip.model._build_text_tower(body["embed_dim"], body["text_cfg"], quick_gelu=body["quick_gelu"])
    scale = state.pop("logit_scale")
    assert torch.equal(scale, made.logit_scale.squeeze())
    missing, extra = tower.load_state_dict(state, strict=False)
    assert (list(extra), set(missing) - {"attn_mask"}) == ([], set())
    tokens = made.text.tokenize(("a red square",))
    assert torch.equal(tower.eval()(tokens), made.text_tower(tokens))


@pytest.mark.parametrize(("case", "number"), EVERY)
def test_the_card_says_how_it_was_made(case: str, number: int, saved: dict[tuple[str, int], Saved]) -> None:
    one = saved[case, number]
    card, config = (one.last / "README.md").read_text(), one.built.objective.config
    title, *rest = card.splitlines()
    text = "\n".join(rest)
    assert title.startswith("# ") and f"with {number} register tokens" in title
    assert f"`vitprobe train-registers` {__version__}: objective {config.objective}, 4 of 6 steps of" in text
    assert f"of {config.batch_size} images, data scenes, seed 3" in text
    start = {"retrofit": "from the weights planted (seed 3) of organism"}.get(case, "from scratch (scenes-tiny)")
    assert ("from the weights pretrained of" if "open_clip" in case else start) in text
    assert "timm.create_model('local-dir:FOLDER', pretrained=True)" in text
    assert ("text.safetensors" in text) == case.startswith("text")
    assert ("`open_clip.create_model('local-dir:...')` opens the whole model" in text) == (
        (case, number) == ("text of open_clip", 0)
    )
    assert ("open_clip has no slot for registers; this timm tower holds them" in text) == (
        (case, number) == ("text of open_clip", 2)
    )


def test_names_of_classes_are_kept(tmp_path: Path, make_config: Callable, make_built: Callable, stir: Callable) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(np.full((20, 20, 3), 40 * i, np.uint8)).save(tmp_path / "pictures" / name / f"{i}.png")
    built = make_built(make_config(data=(str(tmp_path / "pictures"),)), Variant(1))
    (tmp_path / "out").mkdir()
    save_variant(built, built.objective, tmp_path / "out", 1)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["label_names"], config["num_classes"]) == (["cat", "dog"], 2)
