"""Which numbers of a run do the pages rest on? Written as one small file of JSON a run.

    python docs/evidence/collect.py RUN_FOLDER...      writes docs/evidence/results/NAME.json

A run is read through the reader of ``mpq report``; checkpoints and weights stay where they are.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from orchestrator import events  # noqa: E402
from orchestrator.compare.proxies import predicted_objective  # noqa: E402
from orchestrator.journal import read_journal  # noqa: E402
from orchestrator.records import State  # noqa: E402
from orchestrator.report.costs import search_parts  # noqa: E402
from orchestrator.report.inputs import RunInputs, read_inputs  # noqa: E402
from orchestrator.store import RunStore  # noqa: E402
from solvers.layer_statistics import load_statistics  # noqa: E402
from solvers.parquet import read_table  # noqa: E402
from solvers.tables import ImportanceTable  # noqa: E402
from solvers.transforms import TRANSFORMS, transform  # noqa: E402
from trainers import sensitivity  # noqa: E402
from trainers.metamix.tables import DRIFT_COLUMNS, DRIFT_SCHEMA  # noqa: E402
from trainers.results import load_result  # noqa: E402

RESULTS = Path(__file__).parent / "results"
SCHEMA = "evidence/1"
DIGITS = 6
ALPHAS = (0.5, 1.0, 2.0)


def main(folders: list[str]) -> None:
    """Write a file for each run."""
    for folder in folders:
        path = Path(folder).resolve()
        store = RunStore(path.parent, path.name)
        run = read_inputs(store, read_journal(store.journal_path))
        found = {**_facts(run), **_results(run), **_evidence(run)}
        target = RESULTS / f"{store.name}.json"
        # A line a key: short files, and a change shows where it is.
        lines = (
            f"{json.dumps(key)}: {json.dumps(_rounded(value))}" for key, value in found.items()
        )
        target.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        print(f"{target.relative_to(ROOT)}: {len(found['rows'])} rows; lacks {list(run.lacks)}")


def _facts(run: RunInputs) -> dict[str, Any]:
    started = [entry for entry in run.view.entries if entry.kind == events.RUN_STARTED]
    hours = sum(r.wall_s for r in run.records) / 3600
    return {
        "schema": SCHEMA,
        "run": run.store.name,
        "seed": run.config.get("seed"),
        "commit": _commit(run, started),
        "began_utc": started[0].time_utc,
        "machine": started[-1].data.get("machine"),
        "versions": started[-1].data.get("versions"),
        "config": run.config,
        "steps_hours": hours,
        "full_precision_top1": run.results.full_precision_top1,
    }


def _commit(run: RunInputs, started: list[Any]) -> str:
    """Of the code that worked last; of older runs, that of the checkout they lie in."""
    told = started[-1].data.get("git_commit", "")
    if told:
        return str(told[:7])
    head = subprocess.run(["git", "-C", str(run.store.root), "rev-parse", "--short", "HEAD"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    return head.stdout.strip()


def _results(run: RunInputs) -> dict[str, Any]:
    shown = ("method", "alpha", "policy_id", "status", "reason", "mean_weight_bits",
             "mean_act_bits", "bitops_g", "top1", "search_device_s")  # fmt: skip
    shown_ids = {r.policy_id for r in run.results.rows}
    bits = {name: p.bits_by_name() for name, p in run.policies.items() if name in shown_ids}
    tables = _tables(run)
    predictions = {
        label: {
            f"{alpha:g}": {n: predicted_objective(table, own, alpha) for n, own in bits.items()}
            for alpha in ALPHAS
        }
        for label, table in tables.items()
    }
    # Looks between epochs stay with the training; the record has its end alone.
    trained = [r for r in run.records if r.phase == "train" and "result" in r.outputs]
    found = {r.policy_id: load_result(run.store.root / r.outputs["result"]) for r in trained}
    curves = {
        name: {look: value for look, value in result.metrics.items() if "_epoch_" in look}
        for name, result in found.items()
        if result is not None
    }
    return {
        "rows": [
            {"limits": row.limits_text, **{name: getattr(row, name) for name in shown}}
            for row in run.results.rows
        ],
        "policies": {
            name: {layer: f"{b.weight_bits}/{b.act_bits}" for layer, b in own.items()}
            for name, own in bits.items()
        },
        "importance": {
            label: [[row.layer, row.tensor, row.bits, row.value] for row in table.rows]
            for label, table in tables.items()
        },
        "predictions": predictions,
        "curves": curves,
        "search": [
            {
                "method": p.method,
                "phase": p.part,
                "seconds": p.device_s,
                "per_device": p.per_device,
                **p.meters,
            }
            for p in search_parts(run.records)
        ],
    }


def _tables(run: RunInputs) -> dict[str, ImportanceTable]:
    """Every importance table of the run, and the learned one under each transform."""
    found = {each.label: each.table for each in run.importance}
    learned = next((r for r in run.records if "statistics" in r.outputs), None)
    if learned is not None and run.costs is not None and "limpq, learned" in found:
        statistics = load_statistics(run.store.root / learned.outputs["statistics"])
        for name in TRANSFORMS:
            if name != "raw":
                raw = found["limpq, learned"]
                found[f"limpq, {name}"] = transform(raw, run.costs, name, statistics)
    return found


def _evidence(run: RunInputs) -> dict[str, Any]:
    """The steps of section ``evidence``: metrics and the whole table of each."""
    found: dict[str, dict[str, Any]] = {"sensitivity": {}, "drift": {}}
    kinds = {
        "sensitivity": (sensitivity.SCHEMA, sensitivity.COLUMNS),
        "drift": (DRIFT_SCHEMA, DRIFT_COLUMNS),
    }
    for record in run.records:
        for kind, layout in kinds.items():
            if kind in record.outputs and record.state is State.DONE:
                _, columns = read_table(run.store.root / record.outputs[kind], *layout)
                found[kind][record.step] = {"metrics": record.metrics, "cells": columns}
    return found


def _rounded(value: Any) -> Any:
    """Six significant digits: what a table shows has four at most, and files stay small."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value


if __name__ == "__main__":
    main(sys.argv[1:])
