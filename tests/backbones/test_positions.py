"""DINOv2's positions at another size, as its hub makes them, against the hub's own lines written out here."""

import math
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from vitprobe.backbones import load
from vitprobe.backbones.positions import official_table, set_official
from vitprobe.errors import ArgumentError, WeightsError

SMALL = "timm:vit_small_patch14_dinov2"


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def hub_positions(pos_embed: Tensor, rows: int, cols: int, offset: float = 0.1, antialias: bool = False) -> Tensor:
    """What ``interpolate_pos_encoding`` of facebookresearch/dinov2 does, line for line, for a grid of patches."""
    num_tokens = pos_embed.shape[1] - 1
    if rows * cols == num_tokens and rows == cols:
        return pos_embed
    side = int(math.sqrt(num_tokens))
    first, patches = pos_embed.float().split([1, num_tokens], dim=1)
    how = {"scale_factor": (float(rows + offset) / side, float(cols + offset) / side)} if offset else {}
    patches = nn.functional.interpolate(
        patches.reshape(1, side, side, -1).permute(0, 3, 1, 2),
        mode="bicubic",
        antialias=antialias,
        **(how or {"size": (rows, cols)}),
    )
    assert (rows, cols) == tuple(patches.shape[-2:])
    return torch.cat([first, patches.permute(0, 2, 3, 1).reshape(1, rows * cols, -1)], dim=1)


def smooth_table(width: int = 64) -> Tensor:
    """A table of low waves on the 37 x 37 grid with 15 % noise, (1, 1370, D)."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 37), torch.linspace(0, 1, 37), indexing="ij")
    waves = [
        torch.sin(math.pi * (a * y + b * x) + phase)
        for a, b, phase in zip(*(3 * noise(width, seed=seed) for seed in (1, 2, 3)), strict=True)
    ]
    smooth = torch.stack(waves, dim=-1).flatten(0, 1)  # (1369, D)
    table = smooth + 0.15 * smooth.std() * noise(*smooth.shape, seed=4)
    return torch.cat([noise(1, width, seed=5), table]).unsqueeze(0)


@pytest.mark.parametrize(
    "grid", [(16, 16), (24, 24), (32, 32), (37, 37), (38, 38), (74, 74), (16, 48), (1, 1369), (3, 5)]
)
def test_the_table_is_the_hubs(grid: tuple[int, int]) -> None:
    table = smooth_table()
    got = official_table(table, grid, num_prefix=1, file="f")
    assert torch.equal(got, hub_positions(table, *grid))
    assert torch.equal(got.narrow(1, 0, 1), table.narrow(1, 0, 1))
    assert torch.equal(got, table) == (grid == (37, 37))


@pytest.mark.parametrize(
    ("side", "expected"), [(224, 0.13), (336, 0.08), (448, 0.04), (518, 0.0), (532, 0.03), (1036, 0.02)]
)
def test_the_hub_differs_from_timm_by_this_much(side: int, expected: float, record_property: pytest.fixture) -> None:
    """Relative L2 of the two tables for a smooth table with 15 % noise; timm equals the hub's way with registers."""
    table, grid = smooth_table(), (side // 14, side // 14)
    timms = resample_abs_pos_embed(table, new_size=grid, old_size=(37, 37), num_prefix_tokens=1)
    official = official_table(table, grid, num_prefix=1, file="f")
    difference = ((official - timms).norm() / timms.norm()).item()
    record_property("relative L2", difference)
    assert difference == pytest.approx(expected, abs=0.03)
    assert (difference == 0) == (side == 518)
    assert torch.allclose(timms, hub_positions(table, *grid, offset=0.0, antialias=True), atol=1e-6)


def test_every_grid_comes_out_at_its_size() -> None:
    table = noise(1, 1 + 37 * 37, 2)
    for rows in (*range(1, 100), 148, 256):
        assert official_table(table, (rows, 3), num_prefix=1, file="f").shape == (1, 1 + rows * 3, 2)
        assert official_table(table.narrow(1, 1, 16), (2, rows), num_prefix=0, file="f").shape == (1, 2 * rows, 2)


def test_halves_are_resized_in_float32_and_odd_tables_refused() -> None:
    table = smooth_table().bfloat16()
    got = official_table(table, (16, 16), num_prefix=1, file="f")
    assert torch.equal(got, hub_positions(table, 16, 16).bfloat16())
    with pytest.raises(WeightsError, match=r"f has 12 positions, no square"):
        official_table(noise(1, 13, 2), (2, 2), num_prefix=1, file="f")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of DINOv2's small model at 518 px with a smooth table."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        state = timm.create_model("vit_small_patch14_dinov2").state_dict() | {"pos_embed": smooth_table(384)}
    path = tmp_path_factory.mktemp("dinov2") / "w.safetensors"
    save_file(state, path)
    return str(path)


@pytest.mark.parametrize("size", [(224, 224), (112, 336), (14, 19166)])
def test_a_model_loads_with_official_positions(size: tuple[int, int], file: str) -> None:
    timms, official = (load(SMALL, weights=file, image_size=size, pos_embed=way) for way in ("timm", "official"))
    grid = (size[0] // 14, size[1] // 14)
    expected = resample_abs_pos_embed(smooth_table(384), new_size=grid, old_size=(37, 37), num_prefix_tokens=1)
    assert torch.equal(timms.module.pos_embed, expected)
    assert torch.equal(official.module.pos_embed, hub_positions(smooth_table(384), *grid))
    assert (timms.spec.pos_embed, official.spec.pos_embed) == ("timm", "official")
    assert timms.spec.digest != official.spec.digest
    others = {name: tensor for name, tensor in timms.module.state_dict().items() if name != "pos_embed"}
    assert all(torch.equal(tensor, official.module.state_dict()[name]) for name, tensor in others.items())


def test_at_its_own_size_nothing_changes(file: str) -> None:
    timms, official = (load(SMALL, weights=file, pos_embed=way).spec for way in ("timm", "official"))
    assert timms.digest == official.digest


def test_random_weights_are_resized_from_their_own_size() -> None:
    native = load("dinov2-s14", weights="random", seed=2).module.pos_embed
    backbone = load("dinov2-s14", weights="random", seed=2, image_size=(56, 84), pos_embed="official")
    assert torch.equal(backbone.module.pos_embed, hub_positions(native.detach(), 4, 6))


@pytest.mark.parametrize(
    "name", ["dinov2-reg-s14", "deit3-s16", "openclip-b32", "organism", "timm:eva02_tiny_patch14_224"]
)
def test_other_models_have_no_official_positions(name: str) -> None:
    with pytest.raises(ArgumentError, match=f"got positions 'official' for {name}; they are allowed for DINOv2 with"):
        load(name, weights="hub" if name == "organism" else "random", pos_embed="official")


def test_a_variant_with_registers_has_none_either(tmp_path: Path) -> None:
    arguments = {"img_size": 28, "reg_tokens": 4, "no_embed_class": True}
    model = timm.create_model("vit_small_patch14_dinov2", **arguments)
    timm.models.save_for_hf(model, str(tmp_path), model_args=arguments)
    assert load(str(tmp_path)).spec.pos_embed == "timm"
    with pytest.raises(ArgumentError, match="allowed for DINOv2 without registers"):
        load(str(tmp_path), pos_embed="official")


def test_unknown_ways_are_refused() -> None:
    with pytest.raises(ArgumentError, match="got positions 'hub'; allowed are timm and official"):
        load("dinov2-s14", weights="random", pos_embed="hub")


@pytest.mark.parametrize("state", [{}, {"encoder.pos_embed": noise(1, 17, 8)}, {"pos_embed": noise(17, 8)}])
def test_a_file_without_a_table_is_refused(state: dict[str, Tensor]) -> None:
    """A table under a name that only timm's own filter knows, or of another shape, cannot be resized."""
    with pytest.raises(
        WeightsError, match=r"^w\.pt holds no pos_embed of 3 axes, so official positions cannot be made"
    ):
        set_official(nn.Identity(), state, file="w.pt")
