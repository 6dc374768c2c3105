"""A tiny model of open_clip, both towers random, in a folder, as open_clip opens it."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

PREPROCESS = {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7]}


def made_clip(folder: Path, *, seed: int = 0, quick_gelu: bool = False, **text: Any) -> Path:
    """Write weights and config; weights are redrawn so that embeddings of images and of texts differ."""
    model_cfg = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 48, "head_width": 12, "patch_size": 8},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2, **text},
        **({"quick_gelu": True} if quick_gelu else {}),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.CLIP(**model_cfg)
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            size = 0.5 if "embedding" in name else 1.5 / parameter[0].numel() ** 0.5
            parameter.data.copy_(size * torch.randn(parameter.shape, generator=draw))
    folder.mkdir(parents=True)
    state = {name: t.contiguous() for name, t in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": PREPROCESS}))
    return folder


def left_beside(folder: Path, model: torch.nn.Module, config: dict[str, Any], *, quick_gelu: bool = False) -> None:
    """Write the text tower of a model as training with captions leaves it beside a checkpoint."""
    state = {n: t.contiguous() for n, t in model.state_dict().items() if not n.startswith("visual.")}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t for n, t in state.items() if n != "attn_mask"}, folder / "text.safetensors")
    body = {"embed_dim": config["embed_dim"], "quick_gelu": quick_gelu, "text_cfg": config["text_cfg"]}
    (folder / "text_config.json").write_text(json.dumps(body))
