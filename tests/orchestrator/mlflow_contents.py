"""Everything that MLflow holds of an experiment, in a form that two stores can be compared by."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from orchestrator.config_schema import TrackingConfig
from orchestrator.journal import read_journal
from orchestrator.store import RunStore
from orchestrator.tracking import Mirror


def contents(uri: str, experiment: str) -> list[dict[str, Any]]:
    """Run by run: tags, parameters, metrics with their history, status, times, artifacts."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    there = client.get_experiment_by_name(experiment)
    assert there is not None
    found = []
    for run in client.search_runs([there.experiment_id], max_results=1000):
        points = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
        history = {
            key: [(m.value, m.timestamp, m.step) for m in found] for key, found in points.items()
        }
        tags = {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.user")}
        found.append(
            {
                "id": run.info.run_id, "tags": tags, "params": run.data.params,
                "history": history, "status": run.info.status, "start": run.info.start_time,
                "end": run.info.end_time,
                "artifacts": sorted(f.path for f in client.list_artifacts(run.info.run_id)),
            }
        )  # fmt: skip
    return sorted(found, key=lambda each: str(each["tags"]["mpq.record"]))


def without_ids(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same with identities in place of MLflow's run ids, which every store makes anew."""
    names = {each["id"]: each["tags"]["mpq.record"] for each in found}
    return [
        {
            **{key: value for key, value in each.items() if key != "id"},
            "tags": {key: names.get(value, value) for key, value in each["tags"].items()},
        }
        for each in found
    ]


def undisturbed(
    store: RunStore, config: dict[str, Any], folder: Path, database: Path | None = None
) -> list[dict[str, Any]]:
    """What a mirror makes of the same journal in one go, in a new store below ``folder``.

    ``database`` is an empty store to begin with; making one takes seconds.
    """
    copy = RunStore(folder, store.name)
    shutil.copytree(store.root, copy.root, ignore=shutil.ignore_patterns("mirror.*"))
    if database is not None:
        shutil.copy(database, folder / "mlflow.db")
    mirror = Mirror(copy, TrackingConfig(experiment=store.name), config)
    assert mirror.sync(read_journal(copy.journal_path)).error == ""
    return without_ids(contents(mirror.uri, store.name))
