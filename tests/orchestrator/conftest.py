"""Values that several tests of this room share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new MLflow database: making its schema takes seconds, copying it does not."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").get_experiment_by_name("none")
    return path


@pytest.fixture
def runs_dir(tmp_path: Path, mlflow_template: Path) -> Path:
    """An empty folder of runs whose MLflow database has its schema already."""
    folder = tmp_path / "the runs"
    folder.mkdir()
    shutil.copy(mlflow_template, folder / "mlflow.db")
    return folder
