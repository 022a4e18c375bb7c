"""How does a table get into MLflow, whole and once? By ``log_table``, replaced when it changes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.report.cells_text import COLUMNS, result_cells
from orchestrator.results import Results

FILE = "results_table.json"


def log_results(client: Any, run_id: str, columns: Mapping[str, list[str]]) -> None:
    """Log a table, or put a newer one in its place: ``log_table`` adds rows to what is there."""
    if any(each.path == FILE for each in client.list_artifacts(run_id)):
        client.log_text(run_id, table_json(columns), FILE)
    else:
        client.log_table(run_id, dict(columns), FILE)


def results_table(results: Results) -> dict[str, list[str]]:
    """The result table by column, as MLflow's ``log_table`` takes it."""
    return by_column(COLUMNS, result_cells(results, results.shown))


def by_column(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """A table by column."""
    return {name: [row[index] for row in rows] for index, name in enumerate(columns)}


def table_json(columns: Mapping[str, Sequence[str]]) -> str:
    """The same table as ``log_table`` writes it, to put a newer one in its place."""
    names = list(columns)
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return json.dumps({"columns": names, "data": rows})
