"""Text towers of OpenCLIP, for training with captions and zero-shot classification; and what is said of classes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitprobe.backbones.base import ModelSpec
from vitprobe.backbones.open_clip_files import CONFIG, find_model
from vitprobe.backbones.weights import SUFFIXES, load_into, read_state_dict
from vitprobe.backbones.zoo import ALIASES, HUB, LOCAL, read_config
from vitprobe.errors import ArgumentError, WeightsError

LOGIT_SCALE = 2.6592600369327783
"""ln(1 / 0.07), where CLIP's temperature begins (Radford et al., arXiv 2103.00020, section 2.5)."""
TEXT_FILES = ("text_config.json", "text.safetensors")
"""What training with captions leaves beside a checkpoint."""
PROMPTS = ("single", "openai80")
"""``a photo of a {}``, or the 80 that OpenAI wrote for ImageNet (arXiv 2103.00020, section 3.1.4)."""


@dataclass(frozen=True)
class TextTower:
    """Hold a text tower with what belongs to it."""

    module: nn.Module
    """Token numbers (B, context length) -> (B, embed_dim)."""
    config: Mapping[str, Any]
    """``text_cfg`` as open_clip takes it."""
    embed_dim: int
    logit_scale: float
    """Natural logarithm of the scale of the logits."""
    model_cfg: Mapping[str, Any] | None = None
    """The whole model's config, where the tower came with one."""
    preprocess: Mapping[str, Any] | None = None

    @property
    def quick_gelu(self) -> bool:
        """Whether the tower uses OpenAI's faster GELU."""
        return any(bool((said or {}).get("quick_gelu")) for said in (self.model_cfg, self.preprocess))

    def tokenize(self, captions: tuple[str, ...]) -> Tensor:
        """Return open_clip's token numbers of captions, (B, context length) int64; long captions are cut."""
        return _tokenizer(int(self.config.get("context_length", 77)))(list(captions))


_TOKENIZERS: dict[int, Any] = {}


def _tokenizer(context_length: int) -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    if context_length not in _TOKENIZERS:
        _TOKENIZERS[context_length] = SimpleTokenizer(context_length=context_length)
    return _TOKENIZERS[context_length]


def create_text(
    embed_dim: int, *, width: int, layers: int, heads: int, context_length: int = 77, seed: int = 0
) -> TextTower:
    """Build open_clip's text transformer, random. Raises `ArgumentError` where the heads do not divide its width."""
    if width % heads:
        raise ArgumentError(f"got a text tower of width {width} and {heads} heads; the heads must divide the width")
    config = {"context_length": context_length, "vocab_size": 49408, "width": width, "heads": heads, "layers": layers}
    return TextTower(_build(embed_dim, config, quick_gelu=False, seed=seed), config, embed_dim, LOGIT_SCALE)


def load_text(spec: ModelSpec, *, weights: str, seed: int = 0) -> TextTower:
    """Load the text tower that belongs to an open_clip vision tower; ``weights`` as in `vitprobe.backbones.load`.

    Raises `ArgumentError` for a text tower of another library, `WeightsError` where the file holds none.
    """
    tag = None if weights != "hub" or spec.architecture.startswith((HUB, LOCAL)) else spec.weights
    model = find_model(spec, tag=tag, weights=weights)
    text = dict(model.config.get("text_cfg") or {})
    if not text or text.get("hf_model_name"):
        raise ArgumentError(f"the text tower of {spec.name} is not open_clip's own; train it with another objective")
    width = int(model.config["embed_dim"])
    module = _build(width, text, quick_gelu=model.quick_gelu, seed=seed)
    scale = LOGIT_SCALE
    if model.weights is not None:
        state = read_state_dict(model.weights)
        own = text_state(state)
        if not own:
            raise WeightsError(f"{model.weights.name} holds no text tower; captions need the whole model's file")
        load_into(module, own, file=model.weights.name, model=f"the text tower of {spec.name}")
        scale = float(state.get("logit_scale", torch.tensor(scale)))
    return TextTower(module, text, width, scale, model.config, model.preprocess)


def read_text(folder: Path) -> TextTower:
    """Read the text tower that training with captions has left beside a checkpoint.

    Raises `ArgumentError` where its config is none, `WeightsError` where its file is not there or does not fit.
    """
    config = read_config(folder / TEXT_FILES[0], label=str(folder), kind="text_cfg")
    text, width = config["text_cfg"], config.get("embed_dim")
    if text.get("hf_model_name"):
        raise ArgumentError(f"{folder}/{TEXT_FILES[0]} names a text tower of others; allowed is open_clip's own")
    state = read_state_dict(folder / TEXT_FILES[1])
    scale = float(state.pop("logit_scale", torch.tensor(LOGIT_SCALE)))
    try:
        module = _build(width, text, quick_gelu=bool(config.get("quick_gelu")), seed=0)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        detail = " ".join(str(error).split())[:160]
        raise ArgumentError(
            f"open_clip cannot build the text tower of {folder} ({detail}); is its config whole?"
        ) from error
    load_into(module, state, file=TEXT_FILES[1], model=f"the text tower of {folder}")
    return TextTower(module, text, width, scale, {"quick_gelu": bool(config.get("quick_gelu"))})


def find_text(spec: ModelSpec, *, given: str = "") -> TextTower:
    """Find the text tower that belongs to a vision tower, in evaluation mode.

    It lies beside a checkpoint that was trained with captions, or comes with a model of open_clip: random where the
    vision tower is. ``given`` says where it is instead: a folder with such files; a model of open_clip, for one that
    was retrofitted from it; or the file of the whole model, for one whose weights came from a file. Raises
    `ArgumentError` where there is none, or it reads other tokens than open_clip's own, `WeightsError` for the weights.
    """
    folder = Path((given or spec.architecture).removeprefix(LOCAL))
    is_folder = bool(given) or spec.architecture.startswith(LOCAL)
    if is_folder and (folder / TEXT_FILES[0]).is_file():
        text = read_text(folder)
    else:
        whole, weights = _whole_model(spec, given)
        text = load_text(whole, weights=weights)
    refuse_other_text(spec.name, text)
    text.module.eval()
    return text


def _whole_model(spec: ModelSpec, given: str) -> tuple[ModelSpec, str]:
    """Say which model of open_clip holds the text tower, and its weights as `load_text` takes them."""
    if given in ALIASES and ALIASES[given].library == "open_clip":
        return replace(spec, name=given, architecture=ALIASES[given].architecture, weights=ALIASES[given].tag), "hub"
    library, _, name = given.partition(":")
    if given and (Path(given) / CONFIG).is_file():
        return replace(spec, name=given, architecture=f"{LOCAL}{given}"), "hub"
    if library == "open_clip":
        architecture, _, tag = (name, "", "") if name.startswith((HUB, LOCAL)) else name.partition("/")
        return replace(spec, name=given, architecture=architecture, weights=tag), "hub"
    if spec.library != "open_clip" or (given and not Path(given).is_file()):
        what = f"no text tower is at {given!r}" if given else f"{spec.name} has no text tower"
        raise ArgumentError(
            f"{what}; models of open_clip have one, and folders of train-registers --objective text; text=WHERE names "
            "such a model or folder for another, or a file of the whole model"
        )
    if not given and spec.weights.endswith(SUFFIXES):
        raise ArgumentError(f"{spec.name} was loaded from {spec.weights}; say where its text tower is: text=FILE")
    return spec, given or ("random" if spec.weights.startswith("random") else "hub")


def refuse_other_text(name: str, text: TextTower) -> None:
    """Raise `ArgumentError` for a text tower that reads other tokens than open_clip's own, or gives more than one."""
    if tokenizer := text.config.get("hf_tokenizer_name"):
        raise ArgumentError(
            f"the text tower of {name} reads tokens of {tokenizer}; allowed are those of open_clip's own"
        )
    if text.config.get("output_tokens"):
        raise ArgumentError(f"the text tower of {name} is CoCa's, which gives tokens too; allowed is CLIP's")


def fill_prompts(names: Sequence[str], prompts: str) -> tuple[tuple[str, ...], ...]:
    """Say each of `PROMPTS` of each class: (C, n) texts. Raises `ArgumentError` for other prompts."""
    if prompts not in PROMPTS:
        raise ArgumentError(f"got prompts {prompts!r}; allowed are {', '.join(PROMPTS)}")
    if prompts == "single":
        return tuple((f"a photo of a {name}",) for name in names)
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    return tuple(tuple(template(name) for template in OPENAI_IMAGENET_TEMPLATES) for name in names)


def imagenet_names(classes: Sequence[str]) -> tuple[str, ...] | None:
    """Return open_clip's names of ImageNet-1k's classes, in the order of their WordNet numbers in ``classes``.

    A class is called by its number, ``n01440764``, or ``n01440764_tench``; None where one is no class of ImageNet-1k.
    """
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
    from timm.data import ImageNetInfo

    places = {number: at for at, number in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    numbers = [found[0] if (found := re.match(r"n\d{8}(?![0-9])", name)) else None for name in classes]
    if not numbers or any(number not in places for number in numbers):
        return None
    return tuple(IMAGENET_CLASSNAMES[places[number]] for number in numbers)


def text_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the text tower's tensors out of a whole model's state dict, of either of open_clip's two layouts."""
    inside = {name.removeprefix("text."): t for name, t in state.items() if name.startswith("text.")}
    if inside:
        return inside
    other = ("visual.", "logit_scale", "logit_bias", "attn_mask")
    is_whole = "token_embedding.weight" in state
    return {name: t for name, t in state.items() if not name.startswith(other)} if is_whole else {}


def _build(embed_dim: int, config: Mapping[str, Any], *, quick_gelu: bool, seed: int) -> nn.Module:
    from open_clip.model import _build_text_tower

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _build_text_tower(embed_dim, dict(config), quick_gelu=quick_gelu)
