from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from orchestrator.cli import run_command
from orchestrator.errors import ConfigError, UserError
from orchestrator.literature import (
    LiteratureRow,
    dataset_of,
    load_literature,
    rows_for,
    rows_named,
    shipped_rows,
)

HEAD = """schema: literature/1
paper: LIMPQ
source: LIMPQ Table 9
model: resnet18
dataset: imagenet
reported: true
rows:
"""
ROW = "  - {id: a, method: X, weight_bits: 3MP, top1: 70.0, top1_fp: 71.0, drop: 1.0}\n"


def table(folder: Path, text: str, name: str = "t.yaml") -> Path:
    (folder / name).write_text(text)
    return folder


def test_every_printed_row_is_there() -> None:
    assert Counter(row.source for row in shipped_rows()) == {
        "LIMPQ Table 2": 19,
        "LIMPQ Table 3": 11,
        "LIMPQ Table 4": 7,
        "LIMPQ Table 5": 9,
        "LIMPQ Table 6": 3,
        "LIMPQ Section 3.5": 1,
        "LIMPQ Section 4.2": 3,
        "MetaMix Table 2": 16,
        "MetaMix Table 3": 6,
        "MetaMix Table 4": 15,
        "MetaMix Table 5": 4,
        "MetaMix Figure 5 (a)": 6,
        "MetaMix Figure 5 (b)": 5,
        "MetaMix Figure 5 (c)": 5,
        "MetaMix Figure 7": 2,
    }


@pytest.mark.parametrize(
    ("row_id", "printed"),
    [
        ("limpq-t2-ours-23.07g-fp70.5", {"top1": 69.7, "top1_fp": 70.5, "bitops_g": 23.07}),
        ("limpq-t3-ours", {"top1": 76.9, "drop": 0.6, "compression": 12.2, "size_mb": 7.97}),
        ("limpq-t6-ours-r-9.68g", {"top1": 65.25, "top5": 86.15, "bitops_g": 9.68}),
        ("limpq-t5-ours-1.79mb", {"top1": 71.57, "act_bits": "32", "size_mb": 1.79}),
        ("metamix-t2-ours", {"top1": 72.6, "act_bits": "3.98", "weight_bits": "4"}),
        ("metamix-t5-ours", {"search_gpu_h": 13.4, "search_epochs": 2, "retrain_epochs": 88}),
        ("metamix-f5b-ours-3.29g", {"top1": 73.09, "bitops_g": 3.29}),
    ],
)
def test_figures_as_printed(row_id: str, printed: dict[str, object]) -> None:
    (row,) = rows_named([row_id])
    assert {name: getattr(row, name) for name in printed} == printed
    assert row.own
    assert row.to_json()["reported"] is True


def test_every_row_says_something_and_mixed_rows_stay_apart() -> None:
    for row in shipped_rows():
        told = (row.top1, row.search_gpu_h, row.solve_s)
        assert any(value is not None for value in told) or row.note, row.id
        assert row.paper.lower() == row.id.partition("-")[0]


def test_rows_of_a_network_on_a_data_set() -> None:
    rows = rows_for("resnet18", "imagenet")
    assert {row.paper for row in rows} == {"LIMPQ", "MetaMix"}
    assert {row.model for row in rows} == {"resnet18"}
    assert rows_for("resnet18", "digits") == ()
    assert rows_for("x", "y", [LiteratureRow(id="a", method="m", model="x", dataset="y")])


def test_a_folder_of_a_thousand_classes_is_what_the_papers_are_about() -> None:
    assert dataset_of("imagefolder", 1000) == "imagenet"
    assert dataset_of("imagefolder", 10) == "imagefolder"
    assert dataset_of("digits", 1000) == "digits"


def test_an_unknown_id_is_refused_with_near_ones() -> None:
    with pytest.raises(UserError, match="did you mean"):
        rows_named(["limpq-t3-our"])


def test_a_sound_file_loads(tmp_path: Path) -> None:
    (row,) = load_literature(table(tmp_path, HEAD + ROW))
    assert (row.id, row.model, row.source, row.top1) == ("a", "resnet18", "LIMPQ Table 9", 70.0)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("drop: 1.0", "drop: 2.0", "drop 1.00 = top1_fp - top1"),
        ("top1: 70.0", "top1: '70.0'", "number"),
        ("top1: 70.0", "top1: 170.0", "100"),
        ("reported: true", "reported: false", "reported"),
        ("3MP", "three", "weight_bits such as"),
        ("method: X", "method: X, accuracy: 3", "accuracy"),
        ("method: X", "method: X, model: other", "model is the table's to say"),
        ("literature/1", "literature/2", "literature/1"),
        ("paper: LIMPQ", "paper: LIMPO", "MetaMix"),
    ],
)
def test_a_damaged_file_is_told_with_its_line(
    tmp_path: Path, old: str, new: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=r"t\.yaml:\d+: ") as caught:
        load_literature(table(tmp_path, (HEAD + ROW).replace(old, new)))
    assert told in str(caught.value)


def test_an_id_stands_once_over_all_files(tmp_path: Path) -> None:
    table(tmp_path, HEAD + ROW)
    table(tmp_path, HEAD + ROW, "u.yaml")
    with pytest.raises(ConfigError, match="every id once"):
        load_literature(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no literature tables"):
        load_literature(tmp_path)


def test_the_command_prints_reported_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["literature", "--model", "resnet50"]) == 0
    shown = capsys.readouterr().out
    assert "LIMPQ Table 3: resnet50 on imagenet, as reported" in shown
    assert "search 1000 GPU-hours" in shown
    assert "resnet18" not in shown
    assert run_command(["literature", "--paper", "MetaMix", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 59
    assert all(row["reported"] for row in rows)
