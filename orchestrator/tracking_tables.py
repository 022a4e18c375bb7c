"""How does a table get into MLflow, whole and once? As ``log_table`` leaves it, replaced if new."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.report.cells_text import COLUMNS, result_cells
from orchestrator.results import Results

FILE = "results_table.json"
# What ``log_table`` leaves, so that ``load_table`` and the pages take the file for a table.
_TAG, _ENTRY = "mlflow.loggedArtifacts", {"path": FILE, "type": "table"}


def log_results(client: Any, run_id: str, columns: Mapping[str, list[str]]) -> None:
    """Log a table, or put a newer one in its place.

    Not by ``log_table``: it adds rows to what is there, and where a server died between its two
    calls, the file is there and the tag that makes it a table never comes.
    """
    client.log_text(run_id, table_json(columns), FILE)
    tagged = json.loads(client.get_run(run_id).data.tags.get(_TAG, "[]"))
    if _ENTRY not in tagged:
        client.set_tag(run_id, _TAG, json.dumps([*tagged, _ENTRY]))


def results_table(results: Results) -> dict[str, list[str]]:
    """The result table by column, as MLflow's ``log_table`` takes it."""
    return by_column(COLUMNS, result_cells(results, results.shown))


def by_column(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """A table by column."""
    return {name: [row[index] for row in rows] for index, name in enumerate(columns)}


def table_json(columns: Mapping[str, Sequence[str]]) -> str:
    """The same table as ``log_table`` writes it."""
    names = list(columns)
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return json.dumps({"columns": names, "data": rows})
