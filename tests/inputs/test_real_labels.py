"""ReaL labels: found by the number of the image, numbered as classes stand; other files and names are refused."""

import json
from pathlib import Path

import pytest
from timm.data import ImageNetInfo
from timm.data.real_labels import RealLabelsImagenet

from vitprobe.errors import InputError
from vitprobe.inputs.real_labels import NUM_CLASSES, NUM_IMAGES, read_real

WNIDS = tuple(sorted(ImageNetInfo("imagenet-1k").label_names()))
NAMES = [f"val/ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, NUM_IMAGES + 1)]


def write(path: Path, lists: object) -> Path:
    path.write_text(json.dumps(lists))
    return path


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """A file whose image i has the classes i and 2 i (mod 1,000), and every fifth image none."""
    lists = [[] if i % 5 == 0 else sorted({i % 1000, 2 * i % 1000}) for i in range(NUM_IMAGES)]
    return write(tmp_path / "real.json", lists)


def test_images_are_found_by_the_number_in_their_name(real: Path) -> None:
    names = [
        "ILSVRC2012_val_00000002.JPEG",
        "/data/ILSVRC2012_val_00000009/n01440764/ILSVRC2012_val_00000004.JPEG",
        "val.tar#n01440764/ILSVRC2012_val_00000600_n01440764.JPEG",
        "ILSVRC2012_val_00000001.JPEG",
        "ILSVRC2012_val_00050000",
    ]
    assert read_real(real, names) == ({1, 2}, {3, 6}, {599, 198}, None, {999, 998})
    assert read_real(real, []) == ()


def test_timms_copy_is_the_published_file() -> None:
    """Its counts are those of the file; each of timm's own sets is found for each image, in whatever order."""
    found = read_real(None, NAMES)
    assert len(found) == 50_000 and sum(one is not None for one in found) == 46_837
    theirs = RealLabelsImagenet([Path(name).name for name in NAMES]).real_labels
    for at in (0, 1, 2, 292, 49_999):
        assert (found[at] or set()) == set(theirs[Path(NAMES[at]).name])
    assert read_real(None, NAMES[::-1]) == found[::-1]


def test_sets_are_positions_in_the_classes(real: Path) -> None:
    name = ["ILSVRC2012_val_00000003.JPEG"]  # classes 2 and 4 in the order of WordNet ids
    assert read_real(real, name, classes=WNIDS) == read_real(real, name) == ({2, 4},)
    assert read_real(real, name, classes=WNIDS[::-1]) == ({997, 995},)
    spoken = [f"{wnid}_word" for wnid in WNIDS[1:] + WNIDS[:1]]
    assert read_real(real, name, classes=spoken) == ({1, 3},)


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        (WNIDS[:10], "^10 classes; ReaL labels are of ImageNet's 1,000: give"),
        ((*WNIDS[:-1], "n99999999"), "^class 'n99999999' is none of ImageNet's 1,000 WordNet ids"),
        ((*WNIDS[:-1], "toilet tissue"), "^class 'toilet tissue' is none of"),
        ((*WNIDS[:-1], WNIDS[0] + "_again"), "named twice"),
        (tuple(map(str, range(NUM_CLASSES))), "^class '0' is none of .* n01440764 or n01440764_tench"),
    ],
)
def test_other_classes_are_refused(real: Path, classes: tuple[str, ...], says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        read_real(real, NAMES[:2], classes=classes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    ["tench.JPEG", "ILSVRC2012_val_00000000.JPEG", "ILSVRC2012_val_00050001.JPEG", "ILSVRC2012_val_000000012.JPEG",
     "ILSVRC2012_val_00000001/a.png", "ILSVRC2012_test_00000001.JPEG"],
)  # fmt: skip
def test_a_name_without_a_number_is_refused(real: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"no number of ImageNet's validation images .* up to 50,000$") as error:
        read_real(real, [NAMES[0], name])
    assert str(error.value).startswith(name)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("[[1], [2", "not JSON; give real.json of github.com/google-research/reassessed-imagenet"),
        ("[" * 100_000, "not JSON"),
        ("{}", "no list, where a list of 50,000 lists"),
        ("[[1], [2]]", "a list of 2, where"),
        (json.dumps([[1]] * 49_999 + [[1000]]), "what it says of image 50,000 is no list of classes from 0 to 999"),
        (json.dumps([[1], 5] + [[1]] * 49_998), "what it says of image 2 is"),
        (json.dumps([[True]] * 50_000), "what it says of image 1 is"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, body: str, says: str) -> None:
    (tmp_path / "real.json").write_text(body)
    with pytest.raises(InputError, match=rf"real\.json: {says}") as error:
        read_real(tmp_path / "real.json", NAMES[:1])
    assert "\n" not in str(error.value)


def test_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"real\.json: no such file"):
        read_real(tmp_path / "real.json", NAMES[:1])
