"""What every adapter promises, held against the library's own code and against arithmetic done here."""

from collections.abc import Callable
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass

import pytest
import torch
from timm.layers import HybridEmbed, apply_rot_embed_cat
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitprobe import recorder as recorder_module
from vitprobe.backbones.base import Backbone
from vitprobe.backbones.reference_names import timm_args, timm_state
from vitprobe.errors import RecordingError
from vitprobe.recorder import BLOCK_KINDS, EDITABLE, MODEL_KINDS, Recorder, Site, token_norms


def blocks_of(backbone: Backbone) -> nn.ModuleList:
    """The blocks, found without the adapter."""
    module = backbone.module
    return module.blocks if hasattr(module, "blocks") else module.transformer.resblocks


def attention_of(block: nn.Module) -> nn.Module:
    """The attention of a block, found without the adapter."""
    return block.attn if hasattr(block, "attn") else block.attention


def is_hybrid(backbone: Backbone) -> bool:
    """Whether the patches are cut out of a ResNet's map."""
    return type(backbone.patch_embedding) is HybridEmbed


@dataclass(frozen=True)
class Run:
    """One forward pass with everything recorded, and what plain hooks of this test saw."""

    backbone: Backbone
    images: Tensor
    got: dict[Site, Tensor]
    attention_outputs: list[Tensor]
    mlp_outputs: list[Tensor]

    def at(self, kind: str, block: int | None = None) -> Tensor:
        return next(v for site, v in self.got.items() if (site.kind, site.block, site.reduce) == (kind, block, None))


def all_sites(backbone: Backbone) -> list[Site]:
    """Every kind of site, in every block; attention rows for the first, a middle and the last token."""
    last = backbone.layout().num_tokens - 1
    sites = [Site("patch_embed"), *([Site("final_norm")] if backbone.final_norm is not None else [])]
    kinds = [Site(kind) for kind in BLOCK_KINDS if kind != "attention_rows"]
    kinds += [Site("resid_post", reduce=token_norms), Site("attention_rows", queries=(0, last // 2, last))]
    return sites + [site for kind in kinds for site in kind.at(range(backbone.num_blocks))]


@pytest.fixture(scope="module")
def run(any_backbone: Backbone) -> Run:
    backbone = any_backbone
    attention_outputs, mlp_outputs = [], []
    size = backbone.spec.image_size
    images = torch.randn(2 if max(size) < 100 else 1, 3, *size, generator=torch.Generator().manual_seed(1))
    with ExitStack() as stack, torch.no_grad():
        for block in blocks_of(backbone):
            for module, seen in ((attention_of(block), attention_outputs), (block.mlp, mlp_outputs)):
                hook = lambda _, __, out, seen=seen: seen.append(out[0] if isinstance(out, tuple) else out)  # noqa: E731
                stack.callback(module.register_forward_hook(hook).remove)
        with Recorder(backbone, all_sites(backbone)) as recorder:
            backbone(images)
            got = recorder.take()
    return Run(backbone, images, got, attention_outputs, mlp_outputs)


def error(got: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest expected number."""
    assert got.shape == expected.shape
    return ((got.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


def own_projection(attn: nn.Module) -> tuple[list[Tensor], list[Tensor | None]]:
    """The raw weights and biases of queries, keys and values, in float64, however the library keeps them."""
    if getattr(attn, "q_proj", None) is not None:  # timm's Eva, split
        layers = (attn.q_proj, attn.k_proj, attn.v_proj)
        return [p.weight.double() for p in layers], [None if p.bias is None else p.bias.double() for p in layers]
    weight, bias = (
        (attn.qkv.weight, attn.qkv.bias) if hasattr(attn, "qkv") else (attn.in_proj_weight, attn.in_proj_bias)
    )
    if getattr(attn, "q_bias", None) is not None:  # timm's Eva, fused: keys have no bias
        bias = torch.cat([attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias])
    return list(weight.double().chunk(3)), [None] * 3 if bias is None else list(bias.double().chunk(3))


def own_rope(backbone: Backbone, index: int) -> Tensor | None:
    """The rotary positions of a block in float64, (..., P, 2d), from the library's own module for the whole grid."""
    rope = getattr(backbone.module, "rope", None)
    if rope is None:
        return None
    table = rope.get_embed(shape=backbone.layout().grid)
    return (table[index] if backbone.module.rope_mixed else table).double()


def own_heads(run: Run, index: int) -> tuple[Tensor, ...]:
    """Attention's pattern, queries, keys and values in float64, from the raw weights and what the module read."""
    attn = attention_of(blocks_of(run.backbone)[index])
    norms = ("query_norm", "key_norm", "") if hasattr(attn, "query_norm") else ("q_norm", "k_norm", "")
    x = run.at("attention_input", index).double()
    heads = []
    for weight, bias, norm in zip(*own_projection(attn), norms, strict=True):
        y = x @ weight.T + (0 if bias is None else bias)
        num_heads = attn.num_heads if norm == "q_norm" else getattr(attn, "num_kv_heads", attn.num_heads)
        y = torch.stack(y.split(y.shape[-1] // num_heads, dim=-1), dim=1)  # (B, H, T, d)
        y = torch.stack([y[:, head * num_heads // attn.num_heads] for head in range(attn.num_heads)], dim=1)
        own = getattr(attn, norm, None)
        if isinstance(own, nn.LayerNorm):
            centred = y - y.mean(dim=-1, keepdim=True)
            y = centred / (centred.square().mean(dim=-1, keepdim=True) + own.eps).sqrt()
            y = y * own.weight.double() + own.bias.double()
        rope = own_rope(run.backbone, index)
        if rope is not None and norm:
            where = run.backbone.layout().patches
            y[:, :, where] = apply_rot_embed_cat(y[:, :, where], rope, half=attn.rotate_half)
        heads.append(y)
    q, k, v = heads
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5
    scores = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    return scores / scores.sum(dim=-1, keepdim=True), q, k, v


def in_timm(module: nn.Module) -> nn.Module:
    """timm's ViT with the weights of the reference ViT."""
    config = module.config
    with torch.random.fork_rng(devices=[]):
        theirs = VisionTransformer(config.image_size, config.patch_size, **timm_args(config)).eval()
    theirs.load_state_dict(timm_state(module))
    return theirs


def library_stream(run: Run) -> list[Tensor]:
    """resid_post of every block as the library itself returns it, prefix tokens put back in front."""
    with torch.no_grad():
        if run.backbone.spec.library != "open_clip":
            module = run.backbone.module if run.backbone.spec.library == "timm" else in_timm(run.backbone.module)
            prefix = module.num_prefix_tokens > 0  # without any, Eva trips over its own empty hands
            pairs = module.forward_intermediates(
                run.images, norm=False, return_prefix_tokens=prefix, output_fmt="NLC", intermediates_only=True
            )
            return [torch.cat(pair[::-1], dim=1) if isinstance(pair, tuple) else pair for pair in pairs]
        out = run.backbone.module.forward_intermediates(
            run.images, output_fmt="NLC", output_extra_tokens=True, intermediates_only=True
        )
    pairs = zip(out["image_intermediates_prefix"], out["image_intermediates"], strict=True)
    return [torch.cat(pair, dim=1) for pair in pairs]


def test_layout_tiles_the_tokens(run: Run) -> None:
    layout = run.backbone.layout()
    covered = sorted(position for kind in layout.kinds for position in layout.positions(kind))
    assert covered == list(range(run.at("resid_pre", 0).shape[1]))
    side, patch = run.backbone.spec.image_size, run.backbone.patch_size
    assert layout.grid == (side[0] // patch[0], side[1] // patch[1])
    assert layout.num_registers == run.backbone.spec.num_registers


def test_stream_is_the_librarys_own(run: Run) -> None:
    expected = library_stream(run)
    assert len(expected) == run.backbone.num_blocks == len(blocks_of(run.backbone))
    for index, stream in enumerate(expected):
        assert torch.equal(run.at("resid_post", index), stream)
        assert stream.shape[-1] == run.backbone.width


def test_stream_passes_from_block_to_block(run: Run) -> None:
    for index in range(run.backbone.num_blocks - 1):
        assert torch.equal(run.at("resid_post", index), run.at("resid_pre", index + 1))


def test_positions_are_where_the_layout_says(run: Run) -> None:
    """Another pixel, CLS token or register changes the stream before block 0 at its own position and nowhere else.

    In a hybrid another pixel changes its own position most: its ResNet looks around, and its norms see the whole image.
    """
    backbone, layout = run.backbone, run.backbone.layout()
    before = run.at("resid_pre", 0)

    def moved(images: Tensor) -> list[int]:
        with Recorder(backbone, [Site("resid_pre", 0)]) as recorder, torch.no_grad():
            backbone(images)
            (after,) = recorder.take().values()
        far = (after - before).abs().amax(dim=-1).amax(dim=0)  # (T,)
        if is_hybrid(backbone) and not torch.equal(images, run.images):
            return [int(far.argmax())]
        return far.nonzero().flatten().tolist()

    (height, width), (rows, cols) = backbone.patch_size, layout.grid
    for row, col in ((0, cols - 1), (rows - 1, 1)):
        images = run.images.clone()
        rows_of = slice(row * height, (row + 1) * height if is_hybrid(backbone) else row * height + 1)
        images[:, :, rows_of, col * width : (col + 1) * width] += 1
        assert moved(images) == [layout.patch_position(row, col)]
    for kind, names in {
        "cls": ("cls_token", "class_embedding", "cls"),
        "registers": ("reg_token", "registers"),
    }.items():
        tokens = [getattr(backbone.module, name, None) for name in names]
        for token in (t for t in tokens if t is not None):
            kept = token.data.clone()
            token.data += 1 + torch.randn(token.shape, generator=torch.Generator().manual_seed(2))
            where = moved(run.images)
            token.data.copy_(kept)
            assert where == list(layout.positions(kind)) != []


def test_patch_embedding_is_a_matrix_product(run: Run) -> None:
    """Patches cut out by hand, row by row, times the convolution's weights; of a hybrid, out of its ResNet's map."""
    module, (rows, cols) = run.backbone.module, run.backbone.layout().grid
    conv, maps = next(part for part in module.modules() if isinstance(part, nn.Conv2d)), run.images
    if is_hybrid(run.backbone):
        conv, maps = module.patch_embed.proj, module.patch_embed.backbone(run.images).detach()
    height, width = conv.kernel_size
    cut = [
        maps[:, :, r * height : (r + 1) * height, c * width : (c + 1) * width].flatten(1)
        for r in range(rows)
        for c in range(cols)
    ]
    expected = torch.stack(cut, dim=1).double() @ conv.weight.double().flatten(1).T  # (B, P, D)
    expected = expected if conv.bias is None else expected + conv.bias.double()
    assert error(run.at("patch_embed"), expected) < 1e-5


def test_rows_are_a_softmax(run: Run) -> None:
    for index in range(run.backbone.num_blocks):
        for kind in ("pattern", "attention_rows"):
            rows = run.at(kind, index)
            assert rows.dtype == torch.float32
            assert (rows.sum(dim=-1) - 1).abs().max() < 1e-5
    for index in sorted({0, run.backbone.num_blocks // 2, run.backbone.num_blocks - 1}):  # float64 is dear
        expected, *heads = own_heads(run, index)
        for kind, own in zip(("queries", "keys", "values"), heads, strict=True):
            assert error(run.at(kind, index), own) < 1e-5
        assert expected.std() > 0.2 / expected.shape[-1]  # uniform rows would hide a mistake
        queries = next(site.queries for site in run.got if site.kind == "attention_rows")
        assert error(run.at("pattern", index), expected) < 2e-5
        assert error(run.at("attention_rows", index), expected[:, :, list(queries)]) < 2e-5


def test_rows_times_values_are_attentions_output(run: Run) -> None:
    for index in range(run.backbone.num_blocks):
        heads = run.at("pattern", index) @ run.at("values", index)  # (B, H, T, d)
        with torch.no_grad():
            out = run.backbone.project_heads(index, heads, run.at("attention_input", index))
        assert error(out, run.attention_outputs[index]) < 2e-5


def test_received_attention_is_the_mean_over_queries(run: Run) -> None:
    for index in range(run.backbone.num_blocks):
        assert error(run.at("received_attention", index), run.at("pattern", index).double().mean(dim=2)) < 1e-5


def test_received_attention_in_chunks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven queries at a time, so that the last chunk is a rest; the tiny models would fit into one chunk."""
    monkeypatch.setattr(recorder_module, "CHUNK", 7)
    with Recorder(run.backbone, [Site("received_attention", 0)]) as recorder, torch.no_grad():
        run.backbone(run.images)
        (received,) = recorder.take().values()
    assert error(received, run.at("pattern", 0).double().mean(dim=2)) < 1e-5


def test_neurons_through_the_second_layer_are_the_mlps_output(run: Run) -> None:
    for index in range(run.backbone.num_blocks):
        linear = run.backbone.second_linear(index)
        out = run.at("neurons", index).double() @ linear.weight.double().T + linear.bias.double()
        assert error(out, run.mlp_outputs[index]) < 1e-5


def test_final_norm_is_what_all_tokens_pass(run: Run) -> None:
    module, backbone = run.backbone.module, run.backbone
    last = run.at("resid_post", backbone.num_blocks - 1)
    norm = next(getattr(module, name) for name in ("norm", "ln_post", "final_norm") if hasattr(module, name))
    if norm is backbone.final_norm:
        expected = nn.functional.layer_norm(last, (backbone.width,), norm.weight, norm.bias, norm.eps)
        assert error(run.at("final_norm"), expected) < 1e-5
    else:  # only a pooled vector passes a norm
        assert isinstance(norm, nn.Identity) or module.final_ln_after_pool or module.attn_pool is not None
        with pytest.raises(RecordingError, match="no norm that all its tokens pass"):
            Recorder(backbone, [Site("final_norm")])


@pytest.mark.parametrize("mode", ["no_grad", "inference", "gradients", "bf16 autocast"])
def test_recording_changes_no_bit(run: Run, mode: str) -> None:
    backbone = run.backbone
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(mode == "inference"))
        stack.enter_context(torch.set_grad_enabled(mode == "gradients"))
        if mode == "bf16 autocast":
            stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        bare = backbone(run.images)
        with Recorder(backbone, all_sites(backbone)) as recorder:
            recorded = backbone(run.images)
            got = recorder.take()
    assert torch.equal(bare, recorded)
    assert not any(value.requires_grad for value in got.values())
    check_norms(got, backbone)


def check_norms(got: dict[Site, Tensor], backbone: Backbone) -> None:
    for index in range(backbone.num_blocks):
        norms = got[Site("resid_post", index, reduce=token_norms)]
        assert norms.dtype == torch.float32
        assert error(norms, got[Site("resid_post", index)].double().square().sum(dim=-1).sqrt()) < 1e-5


def test_bfloat16_weights_leave_float32_norms_and_rows(run: Run) -> None:
    backbone = deepcopy(run.backbone)
    backbone.module.bfloat16()
    with Recorder(backbone, all_sites(backbone)) as recorder, torch.no_grad():
        backbone(run.images.bfloat16())
        got = recorder.take()
    check_norms(got, backbone)
    assert next(v for s, v in got.items() if s.kind == "resid_post").dtype == torch.bfloat16
    for site in (s for s in got if s.kind in ("attention_rows", "pattern", "received_attention")):
        assert got[site].dtype == torch.float32
        assert (got[site].sum(dim=-1) - 1).abs().max() < 1e-4


def test_edits_that_change_nothing_change_no_bit(run: Run) -> None:
    """A copy in place of every tensor that can be edited."""
    backbone = run.backbone
    missing = {"final_norm"} if backbone.final_norm is None else set()
    missing |= {"queries", "keys"} if backbone.query_key_modules(1) is None else set()
    edits = {kind: None if kind in MODEL_KINDS else 1 for kind in EDITABLE if kind not in missing}
    sites = [Site(kind, block, edit=torch.clone, keep=False) for kind, block in edits.items()]
    with torch.no_grad():
        bare = backbone(run.images)
        with Recorder(backbone, sites):
            assert torch.equal(bare, backbone(run.images))


def test_fused_attention_stays_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own fused kernel runs once a block, recorded or not."""
    calls = []
    for owner, name in ((torch, "_native_multi_head_attention"), (nn.functional, "scaled_dot_product_attention")):
        own = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, _own=own, _name=name, **k: calls.append(_name) or _own(*a, **k))
    with torch.no_grad():
        run.backbone(run.images)
        bare = calls.copy()
        calls.clear()
        with Recorder(run.backbone, all_sites(run.backbone)):
            run.backbone(run.images)
    assert calls == bare
    assert len(calls) >= run.backbone.num_blocks
    assert run.backbone.spec.name != "clip" or set(calls) == {"_native_multi_head_attention"}


def test_attention_with_a_hidden_norm_is_refused(make_tiny: Callable) -> None:
    """open_clip's own attention may norm queries and keys where no weight shows it: the self-check sees it."""
    with pytest.raises(RecordingError, match="recomputed, differs from the model's own"):
        make_tiny("clip-hidden-norm")
