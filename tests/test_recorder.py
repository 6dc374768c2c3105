"""The recorder: what it installs it takes away, what it cannot show it says, and its edits land where they should."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vitprobe.backbones.base import Backbone
from vitprobe.errors import RecordingError, VitprobeError
from vitprobe.recorder import Recorder, Site, token_norms


@pytest.fixture(params=["timm-reg4", "clip", "reference-reg4"])
def backbone(request: pytest.FixtureRequest, make_tiny: Callable) -> Backbone:
    return make_tiny(request.param)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(3))


def count_hooks(backbone: Backbone) -> int:
    return sum(
        len(hooks)
        for module in backbone.module.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    )


@torch.no_grad()
def record(backbone: Backbone, images: Tensor, *sites: Site) -> list[Tensor]:
    """Run once and return what the sites that keep something kept, in their order."""
    with Recorder(backbone, sites) as recorder:
        backbone(images)
        kept = recorder.take()
    return [kept[site] for site in sites if site.keep]


def scale_token(token: int, factor: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x.index_copy(1, torch.tensor([token]), factor * x.narrow(1, token, 1))


def test_hooks_go_at_the_end(backbone: Backbone, images: Tensor) -> None:
    recorder = Recorder(backbone, [Site("resid_post", 0), Site("attention_rows", 1, (0,)), Site("patch_embed")])
    assert count_hooks(backbone) == 0  # nothing is installed before the block begins
    with recorder:
        assert count_hooks(backbone) >= 3
        backbone(images)
        recorder.take()
    assert count_hooks(backbone) == 0


def test_hooks_go_after_an_exception(backbone: Backbone, images: Tensor) -> None:
    def fail(_: Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Recorder(backbone, [Site("resid_post", 0, reduce=fail)]):
        backbone(images)
    assert count_hooks(backbone) == 0


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Site("resid_mid", 0), "got site 'resid_mid'; sites are resid_pre, resid_post"),
        (Site("resid_post"), "resid_post needs a block; got block=None"),
        (Site("patch_embed", 0), "patch_embed takes no block; got block=0"),
        (Site("resid_post", -1), "got block -1; .* has blocks 0 to 1"),
        (Site("resid_post", 2), "got block 2; .* has blocks 0 to 1"),
        (Site("attention_rows", 0), "needs queries"),
        (Site("attention_rows", 0, (0, 99)), "got query 99; tokens are 0 to"),
        (Site("attention_rows", 0, (-1, 0)), "got query -1; tokens are 0 to"),
        (Site("pattern", 0, edit=torch.clone), "pattern cannot be edited"),
        (Site("values", 0, edit=torch.clone), "values cannot be edited"),
    ],
)
def test_bad_sites_are_named_and_nothing_is_installed(backbone: Backbone, bad: Site, message: str) -> None:
    with pytest.raises(VitprobeError, match=message) as caught:
        Recorder(backbone, [Site("resid_post", 0), bad, Site("resid_pre", 1)])
    assert "\n" not in str(caught.value)
    assert count_hooks(backbone) == 0


@pytest.mark.parametrize("kind", ["queries", "keys"])
def test_open_clip_does_not_let_queries_and_keys_be_edited(open_clip_tiny: Backbone, kind: str) -> None:
    with pytest.raises(RecordingError, match=f"does not show its {kind}"):
        Recorder(open_clip_tiny, [Site(kind, 0, edit=torch.clone)])


def test_the_last_token_may_be_asked_and_the_next_not(backbone: Backbone) -> None:
    last = backbone.layout().num_tokens - 1
    Recorder(backbone, [Site("attention_rows", 0, (last,))])
    with pytest.raises(RecordingError, match=f"got query {last + 1}; tokens are 0 to {last}"):
        Recorder(backbone, [Site("attention_rows", 0, (last + 1,))])


def test_silent_sites_raise(backbone: Backbone, images: Tensor) -> None:
    """Before any forward pass, and where only a part of the model has run."""
    with Recorder(backbone, [Site("resid_pre", 0), Site("resid_post", 1)]) as recorder:
        with pytest.raises(RecordingError, match=r"2 of 2 sites did not fire \(resid_pre of block 0, resid_post"):
            recorder.take()
        backbone.block(0)(torch.zeros(1, 9, backbone.width))
        with pytest.raises(RecordingError, match=r"1 of 2 sites did not fire \(resid_post of block 1\)"):
            recorder.take()


def test_two_forward_passes_without_take_raise(backbone: Backbone, images: Tensor) -> None:
    with Recorder(backbone, [Site("resid_post", 0)]):
        backbone(images)
        with pytest.raises(RecordingError, match=r"recorded twice; call take\(\)"):
            backbone(images)


def test_takes_as_often_as_the_model_runs(backbone: Backbone, images: Tensor) -> None:
    """Also after the block has ended and begun again; every batch is its own."""
    site = Site("resid_post", 1, reduce=token_norms)
    recorder, taken = Recorder(backbone, [site]), []
    for _ in range(2):
        with recorder, torch.no_grad():
            for scale in (1, 2):
                backbone(images * scale)
                taken.append(recorder.take()[site])
    assert torch.equal(taken[0], taken[2])
    assert torch.equal(taken[1], taken[3])
    assert not torch.equal(taken[0], taken[1])


def test_what_was_not_taken_does_not_reach_the_next_block(backbone: Backbone, images: Tensor) -> None:
    alive = []
    recorder = Recorder(backbone, [Site("resid_post", 0, reduce=lambda x: alive.append(weakref.ref(x)) or x)])
    with recorder:
        backbone(images)
    gc.collect()
    assert alive[0]() is None
    with recorder, pytest.raises(RecordingError, match="did not fire"):
        recorder.take()


def test_entering_twice_is_refused(backbone: Backbone, images: Tensor) -> None:
    """A second set of hooks would have outlived the first."""
    recorder = Recorder(backbone, [Site("resid_post", 0)])
    with recorder:
        with pytest.raises(RecordingError, match="already entered"):
            recorder.__enter__()
        backbone(images)
        assert len(recorder.take()) == 1
    assert count_hooks(backbone) == 0


def test_two_recorders_at_once(backbone: Backbone, images: Tensor) -> None:
    """Each sees the model's one pass once, also where one computes with modules that the other watches."""
    sites = [Site(kind, 0) for kind in ("queries", "keys", "values", "pattern", "received_attention")]
    with Recorder(backbone, sites) as outer, Recorder(backbone, sites) as inner, torch.no_grad():
        backbone(images)
        first, second = outer.take(), inner.take()
    assert all(torch.equal(first[site], second[site]) for site in sites)


def test_nothing_is_held_after_take(backbone: Backbone, images: Tensor) -> None:
    """The model's own tensors are freed although sites reduced them, and what was kept is freed once it is taken."""
    alive = []
    kinds = [("resid_post", 0), ("neurons", 1), ("values", 0), ("patch_embed", None), ("pattern", 1)]
    sites = [Site(kind, block, reduce=token_norms) for kind, block in kinds]
    for module in backbone.module.modules():
        if not isinstance(module, nn.MultiheadAttention | type(backbone.module)):
            module.register_forward_hook(lambda _, __, out: alive.append(weakref.ref(out)))
    with Recorder(backbone, sites) as recorder, torch.no_grad():
        backbone(images)
        gc.collect()
        assert len(alive) > 10
        assert not any(reference() is not None for reference in alive)
        kept = [weakref.ref(value) for value in recorder.take().values()]
        gc.collect()
        assert not any(reference() is not None for reference in kept)


def test_a_scaled_token_is_found_and_later_blocks_see_it(backbone: Backbone, images: Tensor) -> None:
    """The positive control of the project: one patch x50 after block 0."""
    token = backbone.layout().patch_position(2, 3)
    norms = [Site("resid_post", index, reduce=token_norms) for index in (0, 1)]
    edit = Site("resid_post", 0, edit=scale_token(token, 50), keep=False)
    before, after = record(backbone, images, *norms), record(backbone, images, edit, *norms)
    assert torch.allclose(after[0][:, token], 50 * before[0][:, token])
    others = [index for index in range(backbone.layout().num_tokens) if index != token]
    assert torch.equal(after[0][:, others], before[0][:, others])
    assert (after[0].argmax(dim=1) == token).all()
    assert (after[1].argmax(dim=1) == token).all()
    assert (after[1][:, token] > 10 * before[1][:, token]).all()


def test_a_blocks_input_is_the_output_of_the_one_before(backbone: Backbone, images: Tensor) -> None:
    edit, end = scale_token(5, 3), Site("resid_post", 1)
    (one,) = record(backbone, images, Site("resid_post", 0, edit=edit, keep=False), end)
    (other,) = record(backbone, images, Site("resid_pre", 1, edit=edit, keep=False), end)
    (plain,) = record(backbone, images, end)
    assert torch.equal(one, other)
    assert not torch.equal(one, plain)


def test_edits_run_before_recordings(backbone: Backbone, images: Tensor) -> None:
    """Whatever their order in the list, and also where the recording is derived: rows from edited attention input."""
    sites = [Site(kind, 1) for kind in ("attention_input", "pattern", "values")]
    seen, pattern, values, own = record(backbone, images, *sites, Site("attention_input", 1, edit=torch.zeros_like))
    assert not seen.any() and not own.any()
    assert (pattern - 1 / backbone.layout().num_tokens).abs().max() < 1e-6  # all tokens alike: uniform attention
    assert (values - values[:, :, :1]).abs().max() < 1e-6


def test_a_site_that_keeps_nothing_is_not_taken(backbone: Backbone, images: Tensor) -> None:
    sites = [Site("resid_post", 0, edit=torch.clone, keep=False), Site("resid_post", 1)]
    with Recorder(backbone, sites) as recorder:
        backbone(images)
        backbone.block(0)(torch.zeros(1, 9, backbone.width))  # an edit alone may run any number of times
        assert list(recorder.take()) == [sites[1]]


def test_zeroing_a_neuron_is_zeroing_its_weights(backbone: Backbone, images: Tensor) -> None:
    with torch.no_grad():
        plain = backbone(images)
        zero = Site("neurons", 0, edit=lambda x: x.index_fill(2, torch.tensor([7]), 0), keep=False)
        with Recorder(backbone, [zero]):
            edited = backbone(images)
        backbone.second_linear(0).weight[:, 7] = 0
        assert torch.allclose(edited, backbone(images), atol=1e-5)
    assert (edited - plain).abs().max() > 1e-3


def test_attention_reads_the_edited_input_in_all_three_roles(backbone: Backbone, images: Tensor) -> None:
    """open_clip passes one tensor as query, key and value: the block must see a wholly other input."""
    other = torch.randn(2, backbone.layout().num_tokens, backbone.width, generator=torch.Generator().manual_seed(4))
    (plain,) = record(backbone, images, Site("resid_pre", 0))
    block, mlp = backbone.block(0), backbone.block(0).mlp
    edit = Site("attention_input", 0, edit=lambda _: other, keep=False)
    (got,) = record(backbone, images, edit, Site("resid_post", 0))
    with torch.no_grad():
        middle = plain + backbone.run_attention(0, other)
        norm = next(getattr(block, name) for name in ("norm2", "ln_2", "mlp_norm") if hasattr(block, name))
        expected = middle + mlp(norm(middle))
    assert torch.allclose(got, expected, atol=1e-4)


def test_edited_queries_move_the_rows(timm_tiny: Backbone, images: Tensor) -> None:
    """Zero queries attend to everything alike, in the rows and in the model."""
    zero = Site("queries", 0, edit=torch.zeros_like, keep=False)
    sites = [Site(kind, 0) for kind in ("resid_pre", "pattern", "values", "resid_post")]
    pre, pattern, values, post = record(timm_tiny, images, *sites, zero)
    assert (pattern - 1 / timm_tiny.layout().num_tokens).abs().max() < 1e-7
    block = timm_tiny.block(0)
    with torch.no_grad():
        mean = values.mean(dim=2, keepdim=True).expand_as(values).transpose(1, 2).flatten(2)  # (B, T, D)
        middle = pre + block.attn.proj(mean)
        assert torch.allclose(post, middle + block.mlp(block.norm2(middle)), atol=1e-4)


def test_patch_embed_is_edited_in_row_major_order(backbone: Backbone, images: Tensor) -> None:
    """Swapping two patches in the embedding is swapping them in the image."""
    one, other = 2, 9  # (0, 2) and (1, 1) on a grid of 8 columns
    swapped = images.clone()
    swapped[:, :, 0:8, 16:24], swapped[:, :, 8:16, 8:16] = images[:, :, 8:16, 8:16], images[:, :, 0:8, 16:24]

    order = list(range(48))
    order[one], order[other] = other, one
    with torch.no_grad():
        with Recorder(backbone, [Site("patch_embed", edit=lambda x: x[:, order], keep=False)]):
            edited = backbone(images)
        assert torch.allclose(edited, backbone(swapped), atol=1e-5)
        assert not torch.allclose(edited, backbone(images), atol=1e-3)


@pytest.mark.parametrize("edit", [lambda x: x[:, :2], lambda x: x.sum(), lambda x: None, lambda x: x.unsqueeze(0)])
@pytest.mark.parametrize("kind", ["resid_post", "attention_input", "patch_embed"])
def test_an_edit_of_another_shape_raises(backbone: Backbone, images: Tensor, kind: str, edit: Callable) -> None:
    site = Site(kind, None if kind == "patch_embed" else 0, edit=edit, keep=False)
    with pytest.raises(RecordingError, match=f"the edit of {kind} returned .*; it must return \\(2, "):
        record(backbone, images, site)
    assert count_hooks(backbone) == 0


def test_gradients_pass_through_an_edit_and_not_into_what_is_kept(backbone: Backbone, images: Tensor) -> None:
    push = nn.Parameter(torch.zeros(backbone.width))
    with Recorder(backbone, [Site("resid_post", 0, edit=lambda x: x + push)]) as recorder:
        backbone(images).square().sum().backward()
        (kept,) = recorder.take().values()
    assert not kept.requires_grad
    assert push.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_are_float32_whatever_comes(dtype: torch.dtype) -> None:
    """A stream of values around 3000 overflows float16, and bfloat16 sums are off by 2e-3."""
    x = (3000 + 50 * torch.randn(2, 5, 384, generator=torch.Generator().manual_seed(5))).to(dtype)
    norms = token_norms(x)
    assert norms.dtype == torch.float32
    assert norms.shape == (2, 5)
    expected = x.double().square().sum(dim=-1).sqrt()
    assert ((norms - expected).abs() / expected).max() < 1e-5
