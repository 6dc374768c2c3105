"""Organisms are real ViTs whose plant can be checked against their own weights."""

import pytest
import torch

from vitprobe import backbones
from vitprobe.backbones.organism import MASSIVE, PLANTED_BLOCK, PLANTS, planted_neuron, planted_truth
from vitprobe.errors import ArgumentError
from vitprobe.inputs.samples import sample_items


def photographs(backbone):
    return torch.stack([backbone.transform(item.read().image) for item in sample_items()])


@pytest.mark.parametrize("name", PLANTS)
def test_the_planted_neuron_alone_writes_the_massive_dimension(name):
    fc2 = backbones.load(name).module.blocks[PLANTED_BLOCK].mlp.fc2
    writes = fc2.weight[MASSIVE].nonzero().ravel().tolist()
    assert writes == ([] if name == "organism-clean" else [planted_neuron(0)])


@pytest.mark.parametrize("name", [name for name in PLANTS if name != "organism-clean"])
def test_taking_the_neuron_out_takes_the_outliers_out(name):
    backbone = backbones.load(name)
    images = photographs(backbone)
    truth = planted_truth(backbone, images)
    planted = torch.cat([truth.registers, truth.patches], dim=1)
    chosen = torch.cat(
        [torch.arange(s.start, s.stop) for s in (backbone.layout().registers, backbone.layout().patches)]
    )

    def norms():
        tokens = images.new_zeros(0)
        with torch.no_grad():
            x = backbone.module._pos_embed(backbone.module.patch_embed(images))
            for block in backbone.module.blocks:
                x = block(x)
            tokens = x[:, chosen].norm(dim=-1)
        return tokens

    before = norms()
    with torch.no_grad():
        backbone.module.blocks[truth.block].mlp.fc2.weight[:, truth.neuron] = 0
    after = norms()
    assert planted.any()
    assert before[planted].min() > 3 * before[~planted].max()
    assert after.max() < 1.3 * before[~planted].max()


def test_the_twin_differs_by_its_registers_only():
    plain, twin = (backbones.load(name).module.state_dict() for name in ("organism", "organism-reg4"))
    assert set(twin) - set(plain) == {"reg_token"}
    assert all(torch.equal(plain[key], twin[key]) for key in plain)


def test_a_seed_gives_one_organism_and_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    digests = [backbones.load("organism", seed=seed).spec.digest for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("seed", [1, 2])
def test_other_seeds_plant_as_well(seed):
    backbone = backbones.load("organism", seed=seed)
    assert planted_truth(backbone, photographs(backbone)).patches.any(dim=1).all()


def test_other_sizes_plant_as_well():
    backbone = backbones.load("organism", image_size=(160, 320))
    truth = planted_truth(backbone, photographs(backbone))
    assert truth.patches.shape == (2, 200) and truth.patches.any(dim=1).all()


def test_flat_images_have_few_and_noise_none():
    backbone = backbones.load("organism")
    noise = torch.randn(32, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert not planted_truth(backbone, noise).patches.any()
    flat = planted_truth(backbone, torch.zeros(1, 3, 224, 224)).patches
    assert 1 <= flat.sum() <= 0.12 * flat.numel()


def test_titles_say_planted():
    assert backbones.load("organism").spec.title == "organism, planted"
    assert backbones.load("organism-clean").spec.title == "organism-clean, nothing planted"


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ArgumentError, match="takes no weights"):
        backbones.load("organism", weights="random")
    with pytest.raises(ArgumentError, match="at least 16 patches"):
        backbones.load("organism", image_size=(32, 32))
    other = backbones.load("timm:vit_tiny_patch16_224", weights="random")
    with pytest.raises(ArgumentError, match="no organism"):
        planted_truth(other, torch.zeros(1, 3, 224, 224))
