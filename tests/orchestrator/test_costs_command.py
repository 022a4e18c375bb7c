"""Options of ``mpq costs`` that no table could hold, or that a saved table would ignore."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.networks import resnet18
from orchestrator.cli import run_command
from orchestrator.commands import costs as costs_command
from orchestrator.errors import ExitCode
from solvers.storage import load_costs, save_costs

DIGITS = "9" * 5000


@pytest.fixture
def table(tmp_path: Path) -> str:
    save_costs(tmp_path / "c.parquet", resnet18())
    return str(tmp_path / "c.parquet")


@pytest.mark.parametrize(
    "option",
    [("--input", "3x1x1"), ("--input", "3x224x224"), ("--num-classes", "7"),
     ("--num-classes", "1000"), ("--pin", "fc=8x8"), ("--group", "fc")],
)  # fmt: skip
def test_what_is_part_of_a_saved_table_cannot_be_given_beside_it(table, capsys, option):
    assert run_command(["costs", table, *option]) == ExitCode.BAD_INPUT
    assert "part of a saved table" in capsys.readouterr().err
    assert run_command(["costs", table]) == ExitCode.DONE


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        (("--pin", "fc=99x8"), "not a pin"), (("--pin", "fc=8x33"), "not a pin"),
        (("--pin", "fc=0x8"), "not a pin"), (("--pin", f"fc={DIGITS}x8"), "not a pin"),
        (("--pin", f"fc=8x{DIGITS}"), "not a pin"), (("--pin", "8x8"), "not a pin"),
        (("--input", f"3x{DIGITS}x3"), "not an image"), (("--input", "3x0x3"), "not an image"),
        (("--input", "3x100000x3"), "not an image"), (("--input", "3x32"), "not an image"),
    ],
)  # fmt: skip
def test_sizes_and_widths_that_are_none_are_refused_before_anything_is_traced(
    capsys, monkeypatch, option, complaint
):
    monkeypatch.setattr(costs_command, "_traced", lambda *_: pytest.fail("traced"))
    assert run_command(["costs", "resnet18", *option]) == ExitCode.BAD_INPUT
    told = capsys.readouterr().err
    assert complaint in told
    assert len(told) < 300


def test_a_pin_at_the_widest_gives_a_table_that_reads_back(tmp_path, monkeypatch, capsys):
    network = resnet18()
    seen = []

    def traced(model, shape, num_classes, pins, groups):
        seen.append((shape, pins))
        return network

    monkeypatch.setattr(costs_command, "_traced", traced)
    out = tmp_path / "c.parquet"
    asked = ["costs", "resnet18", "--pin", "fc=32x1", "--input", "3x99999x1", "--out", str(out)]
    assert run_command(asked) == ExitCode.DONE
    assert seen == [((3, 99_999, 1), (("fc", 32, 1),))]
    assert load_costs(out) == network
