"""The small trained models that come with vitprobe: whole, as their cards say, and no exhibit of artifacts."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import vitprobe
from vitprobe.backbones import load
from vitprobe.backbones.zoo import SHIPPED
from vitprobe.cli import app
from vitprobe.cli.parse import one_each
from vitprobe.errors import ArgumentError
from vitprobe.inputs.scenes import NAMED
from vitprobe.probes.emergence import judge_all, judge_block, read_scenes

FOLDER = Path(vitprobe.__file__).parent / "backbones" / "shipped"
MOST_BYTES = 12_000_000
shipped = pytest.mark.parametrize("name", SHIPPED)


def card(name: str) -> str:
    return (FOLDER / name / "README.md").read_text()


def test_every_folder_is_in_the_table_and_in_the_package() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(SHIPPED)
    patterns = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    packed = patterns["tool"]["setuptools"]["package-data"]["vitprobe"]
    files = {path for pattern in packed for path in Path(vitprobe.__file__).parent.glob(pattern)}
    assert files == {
        FOLDER / name / file for name in SHIPPED for file in ("README.md", "config.json", "model.safetensors")
    }


@shipped
def test_weights_are_those_of_the_file(name: str) -> None:
    """Built by plain timm from the folder, the outputs are the same."""
    backbone = load(name)
    state = load_file(FOLDER / name / "model.safetensors")
    assert (FOLDER / name / "model.safetensors").stat().st_size <= MOST_BYTES
    assert backbone.module.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in backbone.module.state_dict().items())
    plain = timm.create_model(f"local-dir:{FOLDER / name}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(backbone(images), plain(images))
    assert backbone.spec.num_registers == (4 if name.endswith("reg4") else 0)


@shipped
def test_what_is_told_of_it_names_no_machine(name: str) -> None:
    spec = load(name).spec
    assert (spec.library, spec.weights, spec.paradigm, spec.title) == ("vitprobe", "shipped", "supervised", name)
    assert spec.architecture == f"{name}, a ViT of 8 blocks, width 48, patch 4"
    for text in (card(name), (FOLDER / name / "config.json").read_text()):
        assert not re.search(r"/(root|home|work|tmp)/", text)


@shipped
def test_the_card_s_command_builds_this_model(name: str) -> None:
    """Its dry run plans as many parameters as the model has, with its task heads."""
    command = re.search(r"    vitprobe (train-registers .*?)\n\n", card(name), re.DOTALL)[1].replace("\\\n", " ")
    done = CliRunner().invoke(app, [*shlex.split(command), "--dry-run", "--json"])
    assert done.exit_code == 0, done.output
    plans = {row["variant"]: row for row in json.loads(done.stdout)["plan"]}
    backbone = load(name)
    heads = 48 * (4 + 6 + 2) + 4 + 6 + 2  # count, majority, same
    parameters = sum(p.numel() for p in backbone.module.parameters()) + heads
    assert plans[f"reg{backbone.spec.num_registers}"]["parameters"] == parameters
    assert f"`reg{backbone.spec.num_registers}`" in card(name)


@shipped
def test_its_outliers_are_objects_as_the_card_says(name: str) -> None:
    reading = read_scenes(load(name), config=NAMED["scenes:single"], num=500)
    found = judge_block(reading, 7)  # drawn at 32 px, where `norms` shrinks larger scenes: the noise differs a little
    said = re.search(r"\| ([\d.]+), ([\d.]+) \|", card(name))
    assert found.p99 == pytest.approx(float(said[1]), rel=0.05)
    assert found.largest == pytest.approx(float(said[2]), rel=0.05)
    assert found.share == pytest.approx(float(re.search(r"\| ([\d.]+) %", card(name))[1]) / 100, rel=0.05)
    assert found.background < 0.1
    assert found.background_base > 0.8
    assert not any(one.emerged for one in judge_all(reading))


@shipped
def test_norms_calls_it_content(name: str, tmp_path: Path) -> None:
    arguments = ["norms", "scenes:single", "--model", name, "--limit", "200", "--format", "none", "--json"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["verdict"] == "content outliers"


def test_it_takes_no_other_weights() -> None:
    with pytest.raises(ArgumentError, match="shipped with its weights"):
        load("scenes-content", weights="random")


def test_random_weights_are_for_the_others_of_a_comparison() -> None:
    assert one_each(["random"], ["scenes-content", "dinov2-s14", "organism"]) == ["hub", "random", "hub"]
    done = CliRunner().invoke(app, ["norms", "scenes", "--model", "scenes-content", "--weights", "random"])
    assert done.exit_code != 0
    assert isinstance(done.exception, ArgumentError) or "shipped with its weights" in done.output
