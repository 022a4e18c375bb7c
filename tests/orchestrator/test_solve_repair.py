"""What ``mpq solve`` says about the repair rule: what it did, or nothing where that is unknown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.cli import run_command
from orchestrator.errors import ExitCode
from solvers.certificate import SolveStatus
from solvers.result import SolveResult
from solvers.storage import save_costs, save_importance
from solvers.tables import CostTable, Importance, ImportanceTable, LayerSpec

# The weights' indicators rise from 2 to 4 bits in both layers.
VALUES = {("weight", 2): 0.1, ("weight", 4): 0.5, ("act", 2): 0.5, ("act", 4): 0.1}


@pytest.fixture
def tables(tmp_path: Path) -> list[str]:
    costs = CostTable(
        model="m", input_shape=(3, 8, 8),
        layers=tuple(
            LayerSpec(name=name, kind="conv", num_macs=1000, num_macs_unfloored=1000,
                      num_weights=1000, num_biases=0, num_inputs=10, num_outputs=10)
            for name in ("a", "b")
        ),
    )  # fmt: skip
    rows = tuple(
        Importance(layer=n, tensor=t, bits=b, value=v) for n in "ab" for (t, b), v in VALUES.items()
    )
    save_costs(tmp_path / "c.parquet", costs)
    save_importance(
        tmp_path / "i.parquet",
        ImportanceTable(model="m", fingerprint="", method="x", seed=0, data_fingerprint="",
                        rows=rows),
    )  # fmt: skip
    return ["solve", "--costs", str(tmp_path / "c.parquet"), "--importance",
            str(tmp_path / "i.parquet"), "--alpha", "1"]  # fmt: skip


@pytest.mark.parametrize("rule", ["isotonic", "keep", "erase"])
def test_where_nothing_fits_no_comparison_is_claimed(tables, capsys, rule):
    asked = [*tables, "--limit", "bitops=1", "--repair", rule]
    assert run_command(asked) == ExitCode.INCOMPLETE
    text = capsys.readouterr().out
    assert "changes the bits" not in text
    assert ("the rule forbids 2 candidates" in text) == (rule == "erase")
    assert run_command([*asked, "--json"]) == ExitCode.INCOMPLETE
    assert json.loads(capsys.readouterr().out)["layers_changed_by_repair"] is None


def test_where_the_answer_without_the_rule_is_not_known_no_comparison_is_claimed(
    tables, capsys, monkeypatch
):
    from solvers import solve as module

    solved = module.solve

    def in_time(request):
        if request.repair != "keep":
            return solved(request)
        return SolveResult(
            status=SolveStatus.NO_SOLUTION_IN_TIME, solver="x", solver_version="", wall_s=0, cpu_s=0
        )

    monkeypatch.setattr(module, "solve", in_time)
    asked = [*tables, "--limit", "bitops=20000"]
    assert run_command(asked) == ExitCode.DONE
    assert "changes the bits" not in capsys.readouterr().out
    assert run_command([*asked, "--json"]) == ExitCode.DONE
    assert json.loads(capsys.readouterr().out)["layers_changed_by_repair"] is None


def test_a_comparison_that_was_made_is_told(tables, capsys):
    asked = [*tables, "--limit", "bitops=1M", "--repair", "erase"]
    assert run_command(asked) == ExitCode.DONE
    text = capsys.readouterr().out
    assert "the rule changes the bits of a, b" in text
    assert "forbids" not in text
    assert run_command([*asked, "--json"]) == ExitCode.DONE
    assert json.loads(capsys.readouterr().out)["layers_changed_by_repair"] == ["a", "b"]
    # The rule keep changes nothing by its definition, and that is known.
    assert run_command([*tables, "--limit", "bitops=1M", "--repair", "keep"]) == ExitCode.DONE
    assert "the rule changes the bits of no layer" in capsys.readouterr().out


@pytest.mark.parametrize("out", [".", ""])
def test_an_out_that_names_no_file_is_told_as_a_folder(tables, capsys, out):
    asked = [*tables, "--limit", "bitops=1M", "--out", out]
    assert run_command(asked) == ExitCode.RESOURCES
    assert "storage refused: Is a directory" in capsys.readouterr().err
