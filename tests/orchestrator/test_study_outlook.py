"""What `mpq study --plan` says: the forecasts of its runs, added up; nothing is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import run_command
from orchestrator.errors import ExitCode
from orchestrator.figures.cost import seconds_text
from orchestrator.forecast.now import forecast
from orchestrator.forecast.rate import Rate
from orchestrator.study.config import expand, load_study
from orchestrator.study.outlook import outlook_lines, study_forecast
from orchestrator.yaml_source import dump_yaml

BASE: dict[str, Any] = {
    "schema": "experiment/1", "name": "base", "data": {"name": "digits"},
    "model": {"name": "cifar_resnet8", "options": {"in_channels": 1}},
    "train": {"epochs": 1, "warmup_epochs": 0},
}  # fmt: skip


def _file(folder: Path, budget: str = "3x3", **settings: Any) -> Path:
    (folder / "base.yaml").write_text(dump_yaml(BASE))
    path = folder / "s.yaml"
    path.write_text(dump_yaml({
        "schema": "study/1", "name": "s", "base": "base.yaml", "seeds": [0, 3],
        "methods": ["uniform", "random"], "budgets": [{"bitops_level": budget}],
        "settings": settings, "runs_dir": str(folder / "runs"),
    }))  # fmt: skip
    return path


def test_hours_are_those_of_all_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _file(tmp_path, cluster={"images_per_second": 100, "num_workers": 2})
    assert run_command(["study", str(path), "--plan"]) == ExitCode.DONE
    said = capsys.readouterr().out
    study = load_study(path)
    loaded = expand(study)[0][1]
    one = forecast(loaded.config, Rate(images_per_second=100.0, source="x"))
    num = len(one["steps"])
    assert "study s: 2 runs of 2 method-budget pairs" in said
    for seed in (0, 3):
        assert f"seed {seed}: {tmp_path}/runs/s-s{seed}: {num} of {num} steps to do" in said
    assert "at most 2 policies to train" in said
    assert "feasible    bitops_level=3x3" in said
    device, wall = (seconds_text(2 * 3600 * one["time"][key]) for key in ("device_h", "wall_h"))
    assert device != wall
    assert f"time: {device} of device time, {wall} on the clock" in said
    assert "at 100 images a second" in said
    assert not (tmp_path / "runs").exists()


def test_what_is_done_is_not_counted_and_a_drift_is_named(tmp_path: Path) -> None:
    path = _file(tmp_path)
    study = load_study(path)
    found = study_forecast(expand(study))
    num = len(found[0]["steps"])
    found[0]["steps"][0]["state"] = "cached"
    found[3]["drift"] = ["train.lr: 0.04 -> 0.5"]
    lines = outlook_lines(study, found)
    assert f"s-s0: {num - 1} of {num} steps to do" in lines[1]
    assert lines[3].strip() == "refused: it was made with another configuration:"
    assert lines[4].strip() == "train.lr: 0.04 -> 0.5"
    assert "set cluster.images_per_second" in lines[-1]


def test_a_budget_out_of_reach_is_found_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["study", str(_file(tmp_path, "1x1")), "--plan"]) == ExitCode.INCOMPLETE
    assert "infeasible  bitops_level=1x1" in capsys.readouterr().out
