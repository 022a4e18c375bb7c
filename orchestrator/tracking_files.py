"""Which files of a run does MLflow get, and when again? What people look at, once it changed."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.leftovers import sha256_of
from orchestrator.yaml_source import dump_yaml

_MAX_BYTES = 8 << 20
_SUFFIXES = (".json", ".png", ".svg", ".md", ".html", ".csv", ".parquet", ".yaml")
_OF_A_RUN = ("report.md", "report.html", "runs.parquet", "figures/*", "policies/*")
_CONFIG = "config.yaml"


def fit_to_show(path: Path) -> bool:
    """Whether people would look at it in a browser: neither weights nor anything large."""
    return path.suffix in _SUFFIXES and path.stat().st_size <= _MAX_BYTES


def log_run_files(
    client: Any, run_id: str, root: Path, sent: dict[str, str], config: Mapping[str, Any]
) -> None:
    """Report, tables, figures, policies and configuration of a run, when they are new or changed.

    Args:
        client: of MLflow.
        run_id: of the MLflow run that gets them.
        root: folder of the run.
        sent: file below the run folder -> hash of what MLflow has; brought up to date.
        config: the configuration without secrets, in place of the file that may hold some.
    """
    if _CONFIG not in sent:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / _CONFIG
            path.write_text(dump_yaml(config))
            client.log_artifact(run_id, str(path))
        sent[_CONFIG] = "redacted"
    log_files(client, run_id, root, _OF_A_RUN, sent)


def log_files(
    client: Any, run_id: str, root: Path, patterns: Sequence[str], sent: dict[str, str]
) -> None:
    """Every file below ``root`` that one of the patterns names, unless ``sent`` has it as it is."""
    for path in sorted({path for pattern in patterns for path in root.glob(pattern)}):
        if path.is_file() and fit_to_show(path):
            # Resolved, so that a link which leads out of the folder is an error and no upload.
            relative, digest = path.resolve().relative_to(root.resolve()), sha256_of(path)
            if sent.get(relative.as_posix()) != digest:
                folder = relative.parent.as_posix()
                client.log_artifact(run_id, str(path), None if folder == "." else folder)
                sent[relative.as_posix()] = digest
