"""Is this run folder the run that the configuration asks for?

A run is made with one configuration. Resources, tracking and the place of the run may change
between attempts; anything that decides a result may not, unless a fork makes it another run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.config import config_differences, config_tree, dump_config
from orchestrator.config_schema import ExperimentConfig
from orchestrator.errors import DriftError
from orchestrator.store import RunStore
from orchestrator.yaml_source import read_yaml
from solvers.atomic import write_atomically
from trainers.phases import EXECUTION_OPTIONS

# Sections that say how and where, not what.
FREE = ("cluster", "tracking", "runs_dir", "reports")


def refuse_drift(store: RunStore, config: ExperimentConfig) -> None:
    """Compare with the stored configuration, or store this one in a new run.

    Raises:
        DriftError: a key that decides results differs; the message lists them.
    """
    found = differences(store, config)
    if found:
        raise DriftError(
            f"run {config.name!r} was made with another configuration:\n    "
            + "\n    ".join(found),
            str(store.config_path),
            "results of two configurations must not stand under one name",
            "undo the change, or add --fork NEW_NAME to run it under another name",
        )
    write_atomically(store.config_path, dump_config(config))


def differences(store: RunStore, config: ExperimentConfig) -> tuple[str, ...]:
    """Keys that decide results and differ from the stored configuration, if there is one."""
    if not store.config_path.is_file():
        return ()
    stored = read_yaml(store.config_path).tree
    return config_differences(what_decides(stored), what_decides(config_tree(config)))


def what_decides(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a ``config_tree`` that may not change between attempts."""
    fixed = {key: value for key, value in tree.items() if key not in FREE}
    data = fixed.get("data")
    if isinstance(data, Mapping) and isinstance(data.get("options"), Mapping):
        options = {k: v for k, v in data["options"].items() if k not in EXECUTION_OPTIONS}
        fixed["data"] = {**data, "options": options}
    return fixed
