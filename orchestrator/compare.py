"""How do the results of several runs stand side by side, and may they be compared at all?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from orchestrator import events
from orchestrator.config import config_differences
from orchestrator.journal import read_journal
from orchestrator.results import ResultRow, Results, results_of
from orchestrator.runs import last_event, newest_records
from orchestrator.store import RunStore
from orchestrator.tables_text import COLUMNS, result_cells
from orchestrator.yaml_source import read_yaml

# Sections that may differ without making results another thing.
_FREE = ("name", "runs_dir", "cluster", "tracking")


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedRun:
    """One run of a comparison.

    Attributes:
        label: what to call it: its name, or its path where names are not distinct.
        results: its table.
        facts: what must agree for a fair comparison, by name.
        config: its resolved configuration.
    """

    label: str
    results: Results
    facts: dict[str, str]
    config: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Several runs in one table.

    Attributes:
        columns: of the table.
        rows: one line for every row of every run.
        warnings: why accuracies or costs may not be comparable.
        differences: run -> keys that differ from the first run.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    warnings: tuple[str, ...]
    differences: dict[str, tuple[str, ...]]


def read_runs(stores: Sequence[RunStore]) -> list[ComparedRun]:
    """Runs as a comparison needs them.

    Raises:
        StoreError: a journal cannot be read.
    """
    names = [store.name for store in stores]
    return [
        _read(store, store.name if names.count(store.name) == 1 else str(store.root))
        for store in stores
    ]


def _read(store: RunStore, label: str) -> ComparedRun:
    view = read_journal(store.journal_path)
    records = newest_records(view)
    config = read_yaml(store.config_path).tree if store.config_path.is_file() else {}
    started = last_event(view, events.RUN_STARTED)
    versions = started.data.get("versions", {}) if started else {}
    results = results_of(store.name, records)
    facts = {
        "network": _fact(records, "costs", "fingerprint"),
        "data": _fact(records, "pretrain", "data_fingerprint"),
        "seed": str(config.get("seed", "unknown")),
        "accounting": str(config.get("accounting", "unknown")),
        "device": results.device,
        "torch": str(versions.get("torch", "unknown")),
    }
    return ComparedRun(label=label, results=results, facts=facts, config=config)


def compare(runs: Sequence[ComparedRun]) -> Comparison:
    """Put runs side by side, the first being what the others are held against."""
    first = runs[0]
    warnings = []
    for run in runs[1:]:
        for name, value in run.facts.items():
            if value != first.facts[name]:
                warnings.append(
                    f"{run.label} differs from {first.label} in {name}: "
                    f"{value} against {first.facts[name]}"
                )
    if all(run.facts["seed"] == first.facts["seed"] for run in runs):
        warnings.append(f"all results are of seed {first.facts['seed']}: no interval is claimed")
    rows = [
        (run.label, *cells)
        for run in runs
        for cells in result_cells(run.results, run.results.shown)
    ]
    return Comparison(
        columns=("run", *COLUMNS),
        rows=tuple(rows),
        warnings=tuple(warnings),
        differences={
            run.label: config_differences(_fixed(first.config), _fixed(run.config))
            for run in runs[1:]
        },
    )


def as_values(runs: Sequence[ComparedRun], found: Comparison) -> dict[str, Any]:
    """A comparison as numbers for scripts."""
    names = [f.name for f in fields(ResultRow) if f.name != "trained"]
    return {
        "runs": [
            {
                "label": run.label,
                "run": run.results.run,
                "facts": run.facts,
                "full_precision_top1": run.results.full_precision_top1,
                "rows": [{name: getattr(row, name) for name in names} for row in run.results.shown],
            }
            for run in runs
        ],
        "warnings": list(found.warnings),
        "differences": {label: list(lines) for label, lines in found.differences.items()},
    }


def _fixed(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _FREE}


def _fact(records: Sequence[Any], phase: str, name: str) -> str:
    found = next((r.facts.get(name) for r in records if r.phase == phase), None)
    return "unknown" if found is None else str(found)
