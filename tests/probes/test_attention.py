"""Attention maps against the libraries' own unfused attention, and against what is known of organisms."""

import numpy as np
import pytest
import torch

from vitprobe import backbones
from vitprobe.errors import ArgumentError, InputError
from vitprobe.inputs.loading import ImageBatch, ImageLoader
from vitprobe.inputs.samples import sample_items
from vitprobe.probes.attention import Query, measure_attention, roll_out
from vitprobe.probes.outliers import OutlierRule
from vitprobe.tokens import TokenLayout

RULE = OutlierRule.parse("mad:10")


def photographs(backbone):
    return list(ImageLoader(sample_items(), backbone.transform, batch_size=2, workers=0))


def unfused_patterns(backbone, images):
    """Every block's pattern as the library itself computes it without fused attention: list of (B, H, T, T)."""
    found = []
    if backbone.spec.library == "timm":
        for block in backbone.module.blocks:
            block.attn.fused_attn = False
        handles = [
            block.attn.attn_drop.register_forward_hook(lambda _, __, out: found.append(out))
            for block in backbone.module.blocks
        ]
    else:

        def slow(module, args, kwargs):
            x = args[0]
            found.append(torch.nn.MultiheadAttention.forward(module, x, x, x, average_attn_weights=False)[1])

        handles = [
            block.attn.register_forward_pre_hook(slow, with_kwargs=True)
            for block in backbone.module.transformer.resblocks
        ]
    with torch.no_grad():
        backbone(images)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", ["deit3-s16", "openclip-b32", "dinov2-reg-s14"])
def test_attention_of_every_head_and_block_is_the_librarys_own(name):
    size = None if name == "openclip-b32" else (224, 224)
    backbone = backbones.load(name, weights="random", image_size=size)
    batches = photographs(backbone)
    found = measure_attention(backbone, batches, blocks=range(backbone.num_blocks), head="all", rule=RULE)
    patterns = unfused_patterns(backbone, batches[0].images)
    layout = backbone.layout()
    assert found.maps.shape == (2, backbone.num_blocks, backbone.num_heads, *layout.grid)
    cls = layout.cls.start
    for block, pattern in enumerate(patterns):
        maps = layout.to_grid(pattern[:, :, cls], dim=2).numpy()
        np.testing.assert_allclose(found.maps[:, block], maps, atol=1e-6, rtol=1e-4)
        prefix = pattern[:, :, cls, list(layout.prefix)].numpy()
        np.testing.assert_allclose(found.prefix_mass[:, block], prefix, atol=1e-6, rtol=1e-4)
    np.testing.assert_allclose(found.maps.sum((-2, -1)) + found.prefix_mass.sum(-1), 1, atol=1e-5)


@pytest.fixture(scope="module")
def organism():
    backbone = backbones.load("organism")
    return backbone, photographs(backbone)


def test_queries_select_their_rows(organism):
    backbone = backbones.load("organism-reg4")
    batches = photographs(backbone)
    layout, last = backbone.layout(), backbone.num_blocks - 1
    pattern = unfused_like(backbone, batches[0].images)[last]  # (B, H, T, T)
    wanted = {
        "cls": [0],
        "registers": [1, 2, 3, 4],
        "register:2": [3],
        "3,5": [layout.patch_position(3, 5)],
        "mean": list(range(5, 201)),
    }
    for query, positions in wanted.items():
        maps = measure_attention(backbone, batches, query=query, rule=RULE).maps[:, 0, 0]
        expected = layout.to_grid(pattern[:, :, positions].mean(dim=(1, 2)))
        np.testing.assert_allclose(maps, expected.numpy(), atol=1e-6, rtol=1e-4)


def unfused_like(backbone, images):
    found = []
    handles = []
    for block in backbone.module.blocks:
        block.attn.fused_attn = False
        handles.append(block.attn.attn_drop.register_forward_hook(lambda _, __, out: found.append(out)))
    with torch.no_grad():
        backbone(images)
    for handle, block in zip(handles, backbone.module.blocks, strict=True):
        handle.remove()
        block.attn.fused_attn = True
    return found


def test_one_head_and_their_mean(organism):
    backbone, batches = organism
    every = measure_attention(backbone, batches, head="all", rule=RULE).maps
    one = measure_attention(backbone, batches, head=2, rule=RULE).maps
    mean = measure_attention(backbone, batches, head="mean", rule=RULE).maps
    np.testing.assert_array_equal(one[:, :, 0], every[:, :, 2])
    np.testing.assert_allclose(mean[:, :, 0], every.mean(axis=2), rtol=1e-5)


def test_planted_outliers_draw_the_attention(organism):
    """Positive control: heads of the last blocks attend to planted tokens. Negative: the clean twin's do not."""
    from vitprobe.backbones.organism import planted_truth

    backbone, batches = organism
    found = measure_attention(backbone, batches, rule=RULE)
    truth = planted_truth(backbone, batches[0].images).patches.reshape(2, 14, 14).numpy()
    np.testing.assert_array_equal(found.outliers, truth)
    assert found.summary["outlier_share"][0][0] > 10 * truth.mean()
    clean = backbones.load("organism-clean")
    maps = measure_attention(clean, photographs(clean), rule=RULE).maps[:, 0, 0]
    assert maps[truth].mean() < 2 * maps.mean()


def test_entropy_is_that_of_the_rows(organism):
    backbone, batches = organism
    found = measure_attention(backbone, batches, head="all", blocks=[6, 7], rule=RULE)
    rows = np.concatenate([found.maps.reshape(2, 2, 4, -1), found.prefix_mass], axis=-1).astype(float)
    entropy = -(rows * np.log2(np.maximum(rows, 1e-30))).sum(axis=-1).mean(axis=0)
    np.testing.assert_allclose(found.summary["entropy_bits"], entropy, rtol=1e-4)


def test_rollout_agrees_with_a_product_of_matrices(organism):
    backbone, batches = organism
    found = measure_attention(backbone, batches, rollout=True, rule=RULE)
    product = torch.eye(197, dtype=torch.float64).expand(2, 197, 197)
    for pattern in unfused_like(backbone, batches[0].images):
        mixed = 0.5 * pattern.double().mean(dim=1) + 0.5 * torch.eye(197)
        product = (mixed / mixed.sum(dim=-1, keepdim=True)) @ product
    expected = backbone.layout().to_grid(product[:, 0])
    np.testing.assert_allclose(found.rollout, expected.numpy(), atol=1e-6)


def test_rollout_keeps_the_images_of_a_batch_apart():
    patterns = [torch.rand(3, 5, 5).softmax(dim=-1) for _ in range(4)]
    whole = roll_out(patterns, [0])
    alone = torch.cat([roll_out([p[i : i + 1] for p in patterns], [0]) for i in range(3)])
    assert whole.allclose(alone) and whole.sum(dim=-1).allclose(torch.ones(3))


def test_rollout_of_no_attention_stays_at_the_query():
    eye = torch.eye(6).expand(1, 6, 6)
    assert roll_out([eye, eye], [2])[0].tolist() == [0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("has_cls", "registers", "name", "positions"),
    [(True, 2, "CLS", (0,)), (False, 2, "mean of 2 registers", (0, 1)), (False, 0, "mean of all patches", range(6))],
)
def test_the_default_query_is_what_the_model_has(has_cls, registers, name, positions):
    layout = TokenLayout.prefix_first(has_cls=has_cls, num_registers=registers, grid=(2, 3))
    assert Query.parse(None, layout) == Query(name, tuple(positions))


@pytest.mark.parametrize("text", ["cls", "registers", "register:0", "2,0", "0,3", "nobody", "-1,0", ""])
def test_tokens_that_are_not_there_are_refused(text):
    layout = TokenLayout.prefix_first(has_cls=False, num_registers=0, grid=(2, 3))
    with pytest.raises(ArgumentError) as error:
        Query.parse(text, layout)
    assert "\n" not in str(error.value)


def test_what_cannot_be_measured_is_refused(organism):
    backbone, batches = organism
    with pytest.raises(ArgumentError, match="heads 0 to 3"):
        measure_attention(backbone, batches, head=4, rule=RULE)
    with pytest.raises(ArgumentError, match="blocks 0 to 7"):
        measure_attention(backbone, batches, blocks=[8], rule=RULE)
    with pytest.raises(InputError):
        measure_attention(backbone, [], rule=RULE)


def test_images_come_back_as_the_model_saw_them(organism):
    backbone, batches = organism
    found = measure_attention(backbone, batches, rule=RULE)
    picture = sample_items()[0].read().image
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.resize((224, 224), box=(left, top, left + side, top + side))
    assert np.corrcoef(found.images[0].ravel(), np.asarray(square).ravel())[0, 1] > 0.95
    assert np.corrcoef(found.images[1].ravel(), np.asarray(square).ravel())[0, 1] < 0.5
    assert isinstance(batches[0], ImageBatch) and found.names.tolist() == list(batches[0].names)
