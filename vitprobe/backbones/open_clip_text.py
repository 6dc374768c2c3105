"""Text towers of OpenCLIP: only training with captions builds one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitprobe.backbones.base import ModelSpec
from vitprobe.backbones.open_clip_files import find_model
from vitprobe.backbones.weights import load_into, read_state_dict
from vitprobe.backbones.zoo import HUB, LOCAL
from vitprobe.errors import ArgumentError, WeightsError

LOGIT_SCALE = 2.6592600369327783
"""ln(1 / 0.07), where CLIP's temperature begins (Radford et al., arXiv 2103.00020, section 2.5)."""


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
