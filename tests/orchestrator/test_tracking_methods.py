"""What MLflow gets besides records: methods with equal keys, tables put there once."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from orchestrator.config_schema import TrackingConfig
from orchestrator.journal import read_journal
from orchestrator.runs import newest_records
from orchestrator.tracking import Mirror, mirror_study
from orchestrator.tracking_tables import by_column, table_json
from orchestrator.tracking_values import method_metrics
from orchestrator.yaml_source import read_yaml
from tests.orchestrator.run_folders import write_run


def test_every_method_has_the_same_search_keys(tmp_path: Path) -> None:
    store = write_run(tmp_path, "r")
    metrics = method_metrics("r", newest_records(read_journal(store.journal_path)))
    keys = {frozenset(k for k in own if k.startswith(("search/", "solve/")))
            for own in metrics.values()}  # fmt: skip
    assert set(metrics) == {"limpq", "uniform", "random"}
    assert len(keys) == 1
    assert metrics["limpq"]["search/device_s"] == 30.0
    assert metrics["limpq"]["search/once_s"] == 30.0
    assert metrics["limpq"]["search/every_device_s"] == pytest.approx(0.01)
    assert metrics["uniform"]["search/device_s"] == 0.0
    assert metrics["limpq"]["eval/top1 at bitops=1G"] == 90.0


def test_methods_and_the_table_are_mirrored_once(runs_dir: Path) -> None:
    from mlflow import MlflowClient

    store = write_run(runs_dir, "r")
    config = read_yaml(store.config_path).tree
    for _ in range(2):
        outcome = Mirror(store, TrackingConfig(), config).sync(read_journal(store.journal_path))
        assert outcome.error == ""
    client = MlflowClient(tracking_uri=f"sqlite:///{runs_dir}/mlflow.db")
    experiment = client.get_experiment_by_name("r")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], max_results=500)
    methods = [r for r in found if r.data.tags["mpq.kind"] == "method"]
    assert sorted(r.data.tags["mpq.method"] for r in methods) == ["limpq", "random", "uniform"]
    assert all("mlflow.parentRunId" not in r.data.tags for r in methods)
    (parent,) = [r for r in found if r.data.tags["mpq.kind"] == "run"]
    table = json.loads(
        Path(client.download_artifacts(parent.info.run_id, "results_table.json")).read_text()
    )
    assert len(table["data"]) == 7
    assert "mlflow.loggedArtifacts" in parent.data.tags


def test_a_study_is_one_run_with_its_newest_table(runs_dir: Path) -> None:
    from mlflow import MlflowClient

    store = write_run(runs_dir, "s")
    (store.root / "results.csv").write_text("a,b\n")
    tracking = TrackingConfig(experiment="study")
    for rows in ([("x", "1")], [("x", "1"), ("y", "2")]):
        assert mirror_study(store, tracking, "s", by_column(("a", "b"), rows)) == ""
    client = MlflowClient(tracking_uri=f"sqlite:///{runs_dir}/mlflow.db")
    experiment = client.get_experiment_by_name("study")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.tags["mpq.kind"] == "study"
    path = client.download_artifacts(run.info.run_id, "results_table.json")
    assert json.loads(Path(path).read_text())["data"] == [["x", "1"], ["y", "2"]]
    off = TrackingConfig(**{**asdict(tracking), "enabled": False})
    assert mirror_study(store, off, "s", {}) == ""
    gone = TrackingConfig(uri="http://127.0.0.1:9")
    assert mirror_study(store, gone, "s", {"a": []}) != ""


def test_tables_are_written_as_mlflow_writes_them() -> None:
    assert json.loads(table_json({"a": ["1"], "b": ["2"]})) == {
        "columns": ["a", "b"], "data": [["1", "2"]],
    }  # fmt: skip
