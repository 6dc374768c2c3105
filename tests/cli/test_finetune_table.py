"""The table of ``finetune`` on terminals: no word is broken at 80 columns, one line a variant where there is room."""

import re

import pytest
from rich.console import Console

from vitprobe.cli import echo_finetune
from vitprobe.cli.finetune_table import notes

INTERVAL = [0.108, 0.244]


def shares(*keys):
    return {key: {"accuracy": 0.2, "interval": INTERVAL} for key in keys}


def variant(title, difference=None):
    ece = {"value": 0.108, "interval": INTERVAL, "calibrated_most": 0.107}
    return {
        "title": title, "lr": 0.003, "accuracy": 0.133, "accuracy_interval": INTERVAL, "difference": difference,
        "reliability": {"ece": ece, "nll": 2.273}, "frozen": shares("knn", "linear"), "real": None, "tried": [],
        "norms": {"outlier_fraction": 0.19, "verdict": "artifacts"},
    }  # fmt: skip


def one_set(name):
    difference = {"value": -0.1, "interval": [-0.245, 0.122], "num_differ": 40}
    return {
        "model": "scenes-content", "set": name, "num_watched": 30, "before": variant("-"), "num_train": 100,
        "variants": [variant("no registers"), variant("16 registers, smoothing 0.1", difference)], "num_held_out": 50,
        "held_out": "its test images", "num_classes": 10, "chance": 0.1, "chance_interval": INTERVAL, "rates": [0.003],
        "sizes": {"from": [32, 32], "to": [32, 32], "tokens_to": 64, "tokens_from": 64}, "development": None,
        "steps": 6, "batch_size": 8, "augment": "none", "recipe": "small", "departures": [],
    }  # fmt: skip


def said(summary, width, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(echo_finetune, "stdout", lambda: Console(width=width))
    echo_finetune.finetuned(summary, tmp_path, as_json=False)
    return capsys.readouterr().out


@pytest.mark.parametrize("names", [("cifar10-train",), ("diabetic_retinopathy", "scenes")])
def test_no_word_is_broken_at_80_columns(names, monkeypatch, capsys, tmp_path):
    sets = [one_set(name) for name in names]
    found = said({"sets": sets} if len(sets) > 1 else sets[0], 80, monkeypatch, capsys, tmp_path)
    table = [line for line in found.splitlines() if line[:1] in "┃│┏├└┡"]
    assert table and max(map(len, table)) <= 80
    words = set(re.findall(r"[^\s┃│]+", "\n".join(table)))
    whole = {"registers,", "smoothing", "0.1", "calibrated,", "accuracy", "artifacts", "-10.0", "(-24.5", "+12.2)"}
    assert whole <= words and "…" not in found
    assert ("diabetic_" in words and "retinopathy" in words) == (len(names) > 1)
    assert ("fine-tuning of scenes-content to cifar10-train" in found) == (len(names) == 1)


def test_a_wide_terminal_has_a_line_for_each_variant(monkeypatch, capsys, tmp_path):
    found = said(one_set("cifar10-train"), 140, monkeypatch, capsys, tmp_path)
    row = next(line for line in found.splitlines() if "16 registers, smoothing 0.1" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "16 registers, smoothing 0.1", "0.003", "13.3 % (10.8 to 24.4)", "-10.0 (-24.5 to +12.2)",
        "10.8 % (10.8 to 24.4)", "10.7 %", "2.273",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("number", "interval", "cell"),
    [(0, None, "right on the same images"), (4, None, "-10.0 (4 images differ)")],
)
def test_intervals_of_too_few_images_are_not_told(number, interval, cell, monkeypatch, capsys, tmp_path):
    summary = one_set("cifar10-train")
    summary["variants"][1]["difference"] |= {"num_differ": number, "interval": interval}
    summary["variants"][1]["reliability"] |= {"too_few": True}
    found = said(summary, 140, monkeypatch, capsys, tmp_path)
    row = next(line for line in found.splitlines() if "16 registers, smoothing 0.1" in line)
    cells = [part.strip() for part in row.strip("│").split("│")]
    assert cells[3] == cell and cells[4] == "10.8 %"


def test_a_column_without_any_number_is_left_out(monkeypatch, capsys, tmp_path):
    alone = one_set("cifar10-train")
    alone["variants"] = [variant("no registers") | {"frozen": None}]
    alone["before"] = variant("-") | {"frozen": None}
    found = said(alone, 140, monkeypatch, capsys, tmp_path)
    assert "against" not in found and "k-NN" not in found and "accuracy" in found and "verdict" in found
    assert "against the first" in said(one_set("cifar10-train"), 140, monkeypatch, capsys, tmp_path)


@pytest.mark.parametrize(("lr", "is_said"), [(0.01, True), (0.03, False), (0.1, True)])
def test_a_rate_at_the_end_of_those_tried_is_said(lr, is_said):
    summary = one_set("pets")
    tried = [{"lr": rate, "accuracy": 0.2, "interval": INTERVAL} for rate in (0.01, 0.03, 0.1)]
    summary["variants"] = [variant("no registers") | {"lr": lr, "tried": tried}]
    assert any("end of those tried" in note for note in notes(summary)) == is_said
