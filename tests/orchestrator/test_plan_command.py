from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import run_command
from orchestrator.config import load_config
from orchestrator.drift import refuse_drift
from orchestrator.forecast.now import forecast
from orchestrator.records import RunRecord, State
from orchestrator.store import RunStore

TEXT = """schema: experiment/1
name: planned
model: {name: cifar_resnet8, options: {in_channels: 1}}
data: {name: digits}
search:
  alphas: [1.0, 2.0]
  limits: [{bitops_level: 3x3}, {bitops_level: 1x1}]
controls: [uniform]
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(f"{TEXT}runs_dir: {tmp_path}/runs\n")
    return path


def _forecast(path: Path, *overrides: str) -> dict[str, Any]:
    return forecast(load_config(path, overrides).config)


def test_plan_tells_every_step_and_limit_and_touches_nothing(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["plan", str(config_file), "--json"]) == 3  # one limit is out of reach
    found = json.loads(capsys.readouterr().out)
    assert {step["state"] for step in found["steps"]} == {"run"}
    assert {"costs", "pretrain", "indicators", "sweep", "train"} <= {
        step["name"] for step in found["steps"]
    }
    feasible, infeasible = found["limits"]
    assert feasible["problem"] == ""
    assert "smallest reachable" in infeasible["problem"]
    assert infeasible["smallest"]["bitops_level"] > infeasible["bounds"]["bitops_level"]
    assert found["network"]["searched"] == found["network"]["layers"] - 2
    assert [p.name for p in config_file.parent.iterdir()] == ["x.yaml"]


def test_plan_in_words(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reachable = "search.limits=[{bitops_level: 3x3}]"
    assert run_command(["plan", str(config_file), "--set", reachable]) == 0
    shown = capsys.readouterr().out
    assert "run      indicators" in shown
    assert "feasible    bitops_level=3x3" in shown
    assert "infeasible" not in shown


def _finished_costs(config_file: Path, run: str) -> Path:
    """The step ``costs`` as a run of this name left it; its output."""
    first = next(step for step in _forecast(config_file)["steps"] if step["name"] == "costs")
    store = RunStore(config_file.parent / "runs", run)
    output = store.step_dir("costs") / "costs.parquet"
    output.parent.mkdir(parents=True)
    output.write_bytes(b"table")
    record = RunRecord(
        run=run, step="costs", key=first["key"], phase="costs", method="any",
        state=State.DONE, outputs={"costs": "steps/costs/costs.parquet"},
    )  # fmt: skip
    store.finish_step("costs", record)
    return output


def test_a_verified_step_is_cached_until_its_output_changes(config_file: Path) -> None:
    output = _finished_costs(config_file, "planned")
    states = {step["name"]: step["state"] for step in _forecast(config_file)["steps"]}
    assert (states["costs"], states["pretrain"]) == ("cached", "run")
    output.write_bytes(b"tablf")
    (changed,) = [s for s in _forecast(config_file)["steps"] if s["name"] == "costs"]
    assert changed["state"] == "run"
    assert "another content" in changed["reason"]


def test_a_step_that_another_run_gives_is_told_as_reused(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = _finished_costs(config_file, "earlier")
    (config_file.parent / "runs" / "earlier" / "journal.jsonl").touch()
    ask = ["plan", str(config_file), "--json", "--reuse"]
    assert run_command([*ask, "earlier"]) == 3  # one limit is out of reach
    told = {step["name"]: step for step in json.loads(capsys.readouterr().out)["steps"]}
    assert (told["costs"]["state"], told["pretrain"]["state"]) == ("reused", "run")
    assert told["costs"]["reason"] == "done in earlier, outputs verified"
    output.write_bytes(b"tablf")
    assert run_command([*ask, "earlier"]) == 3
    told = {step["name"]: step for step in json.loads(capsys.readouterr().out)["steps"]}
    assert told["costs"]["state"] == "run"
    assert run_command([*ask, "never"]) == 2
    assert "never" in capsys.readouterr().err


def test_a_changed_configuration_blocks_and_is_told_key_by_key(config_file: Path) -> None:
    loaded = load_config(config_file)
    store = RunStore(loaded.config.runs_dir, loaded.config.name)
    store.root.mkdir(parents=True)
    refuse_drift(store, loaded.config)
    assert _forecast(config_file)["drift"] == []
    assert _forecast(config_file, "cluster.num_workers=2", "tracking.enabled=false")["drift"] == []
    found = _forecast(config_file, "train.lr=0.5")
    assert found["drift"] == ["train.lr: 0.04 -> 0.5"]
    assert {step["state"] for step in found["steps"]} == {"blocked"}


def test_names_that_do_not_exist_are_refused_with_near_ones(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--set", "model.name=cifar_resnet9", "--set", "data.name=digit"]
    assert run_command(["plan", str(config_file), *arguments]) == 2
    shown = capsys.readouterr().err
    assert "cifar_resnet8" in shown
    assert "did you mean digits?" in shown
