"""Tasks of VTAB-1k, laid out as the copies in use are: lists, labels, what is missing, and the benchmark's means."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitprobe.errors import ArgumentError, InputError
from vitprobe.inputs.labels import open_labelled
from vitprobe.inputs.vtab import SPLITS, TASKS, is_vtab, open_vtab, scores, tasks_in, vtab_parts

GIVEN = {"train800": 8, "val200": 2, "train800val200": 10, "test": 5}
"""Images in each list of a made task."""


def lay_out(root: Path, task: str, num_classes: int) -> Path:
    """Write a task as it is distributed, smaller: images of which the red tells the class."""
    folder = root / task
    for split, count in GIVEN.items():
        part = "test" if split == "test" else "train800val200"
        rows = range(8, 10) if split == "val200" else range(count)
        (folder / "images" / part).mkdir(parents=True, exist_ok=True)
        lines = []
        for at in rows:
            label = (3 * at + (part == "test")) % num_classes
            name = f"images/{part}/{at:06d}.png"
            Image.new("RGB", (4, 3), (label, at, 0)).save(folder / name)
            lines.append(f"{name} {label}\n")
        (folder / f"{split}.txt").write_text("".join(lines))
    return folder


def test_each_list_is_its_images_and_labels(tmp_path: Path) -> None:
    lay_out(tmp_path, "dtd", 47)
    for split, count in GIVEN.items():
        found = open_labelled([f"vtab:{tmp_path}/dtd:{split}"], need="labels")
        assert len(found) == count and found.labels.dtype == np.int64 and not found.skipped
        assert found.classes == tuple(map(str, range(47)))  # also those without an image here
        pixels = [item.read().image.getpixel((0, 0)) for item in found.items]
        assert [red for red, _, _ in pixels] == found.labels.tolist()
    train, held = (open_labelled([f"vtab:{tmp_path}/dtd:{split}"], need="nothing") for split in ("train800", "val200"))
    whole = open_labelled([f"vtab:{tmp_path}/dtd"], need="nothing")
    assert {i.path for i in whole.items} == {i.path for i in train.items} | {i.path for i in held.items}


def test_what_is_opened_where_no_split_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, "kitti", 4)
    text = f"vtab:{tmp_path}/kitti"
    assert [len(open_vtab(text, split)) for split in ("train", "test")] == [10, 5]
    assert [len(open_vtab(f"{text}:val200", split)) for split in ("train", "test")] == [2, 2]
    assert (
        open_vtab(text, "test").name == "kitti, test" and open_vtab(f"{text}:train800", "train").name[-8:] == "train800"
    )
    assert vtab_parts(text) == vtab_parts(f"{text}:test") == (f"{text}:train800val200", f"{text}:test")
    assert vtab_parts(f"{text}:val200") == (f"{text}:train800", f"{text}:val200")
    with pytest.raises(ArgumentError, match="got split 'val'; allowed are train, test"):
        open_vtab(text, "val")
    monkeypatch.chdir(tmp_path)
    assert len(open_vtab("vtab:kitti", "test")) == len(open_vtab("vtab:./kitti/", "test")) == 5
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(open_vtab("vtab:~/kitti:test", "train")) == 5


def test_tasks_of_a_folder_are_listed_in_the_papers_order(tmp_path: Path) -> None:
    for task in ("smallnorb_ele", "cifar", "eurosat"):
        lay_out(tmp_path, task, 2)
    (tmp_path / "svhn").mkdir()  # empty: no task
    (tmp_path / "cifar10").mkdir()
    assert tasks_in(tmp_path) == tasks_in(f"vtab:{tmp_path}") == ("cifar", "eurosat", "smallnorb_ele")
    for text in (f"vtab:{tmp_path}", f"vtab:{tmp_path}:test"):
        with pytest.raises(
            InputError, match=r"no task of VTAB-1k; give vtab:ROOT/TASK .* cifar, eurosat, smallnorb_ele"
        ):
            open_vtab(text, "train")
    with pytest.raises(
        InputError, match=r"no task of VTAB-1k in that folder; ROOT/TASK must hold images and the lists"
    ):
        tasks_in(tmp_path / "svhn")


def test_is_vtab() -> None:
    assert is_vtab("vtab:x/dtd") and not is_vtab("vtab") and not is_vtab("photos/vtab:x")


def test_what_is_missing_says_how_it_must_lie(tmp_path: Path) -> None:
    folder = lay_out(tmp_path, "dmlab", 6)
    text = f"vtab:{folder}"
    cases = [
        ("vtab:", "no folder; give vtab:ROOT/TASK or vtab:ROOT/TASK:SPLIT"),
        (f"{text}:val", "no split 'val'; dmlab has train800val200, train800, val200, test"),
        (f"{text}:", "no split ''"),
        (f"vtab:{tmp_path}/cifar100", "'cifar100' is no task of VTAB-1k; .* of cifar, caltech101"),
        (
            f"vtab:{tmp_path}/svhn:test",
            r"no file .*svhn/test.txt; .*svhn must hold images .* class from 0 to 9 \(nothing is fetched\)",
        ),
    ]
    for wrong, says in cases:
        with pytest.raises(InputError, match=says) as error:
            open_labelled([wrong], need="labels")
        assert "\n" not in str(error.value)
    (folder / "images/test/000003.png").unlink()
    with pytest.raises(InputError, match=r"test\.txt: 1 of its 5 images are not there, such as .*/000003\.png"):
        open_vtab(text, "test")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("images/train800val200/000000.png 6", "is no path and class; dmlab has classes 0 to 5"),
        ("images/train800val200/000000.png", "is no path and class"),
        ("images/train800val200/000000.png -1", "is no path and class"),
        ("images/train800val200/000000.png 1.0", "is no path and class"),
        ("5", "is no path and class"),
        ("../../secret.png 1", "leads out of"),
    ],
)
def test_other_lines_are_refused(tmp_path: Path, line: str, says: str) -> None:
    folder = lay_out(tmp_path, "dmlab", 6)
    (folder / "test.txt").write_text(f"images/test/000000.png 1\n{line}\n")
    with pytest.raises(InputError, match=says) as error:
        open_vtab(f"vtab:{folder}", "test")
    assert "test.txt" in str(error.value) and "\n" not in str(error.value)


def test_blanks_are_no_harm_and_no_lines_are_said(tmp_path: Path) -> None:
    folder = lay_out(tmp_path, "dmlab", 6)
    (folder / "images/test/000000.png").rename(folder / "images/test/a b.png")
    (folder / "test.txt").write_text("\n images/test/a b.png\t1 \r\n/images/test/000001.png 4\n")
    assert open_vtab(f"vtab:{folder}", "test").labels.tolist() == [1, 4]
    (folder / "test.txt").write_text("\n")
    with pytest.raises(InputError, match="it names no image"):
        open_vtab(f"vtab:{folder}", "test")


def test_the_table_is_that_of_the_paper() -> None:
    groups = [task.group for task in TASKS]
    assert len({task.name for task in TASKS}) == 19
    assert [groups.count(group) for group in ("natural", "specialized", "structured")] == [7, 4, 8]
    known = {"cifar": 100, "caltech101": 102, "sun397": 397, "resisc45": 45, "smallnorb_azi": 18, "smallnorb_ele": 9}
    assert known.items() <= {task.name: task.num_classes for task in TASKS}.items()
    assert set(SPLITS) == set(GIVEN)


def test_scores_weigh_tasks_or_groups() -> None:
    given = {task.name: (at + 1) / 20 for at, task in enumerate(TASKS)}
    found = scores(given)
    natural, specialized, structured = sum(range(1, 8)) / 140, sum(range(8, 12)) / 80, sum(range(12, 20)) / 160
    means = [found["groups"][group]["mean"] for group in ("natural", "specialized", "structured")]
    assert means == pytest.approx([natural, specialized, structured])
    assert found["vtab"] == pytest.approx(sum(range(1, 20)) / 380) and "absent" not in found
    assert found["mean_of_groups"] == pytest.approx((natural + specialized + structured) / 3)
    assert found["vtab"] != pytest.approx(found["mean_of_groups"], abs=0.005)  # two numbers that are not to be mixed up


def test_scores_of_some_tasks_are_no_score_of_the_benchmark() -> None:
    found = scores({"dtd": 0.5, "svhn": 0.7, "eurosat": 0.9})
    assert found["groups"]["natural"] == {"mean": pytest.approx(0.6), "num_tasks": 2, "of": 7}
    assert found["groups"]["structured"] == {"mean": None, "num_tasks": 0, "of": 8}
    assert found["vtab"] is None and found["mean_of_groups"] is None and found["tasks"]["svhn"] == 0.7
    assert found["absent"].startswith("VTAB's score is the mean of 19 tasks; missing: cifar, caltech101")
    for wrong, says in (({"cifar10": 0.5}, "accuracy of 'cifar10'"), ({"dtd": 71.3}, "a share, from 0 to 1")):
        with pytest.raises(ArgumentError, match=says):
            scores(wrong)
