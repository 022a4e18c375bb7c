"""What does MLflow get to see besides records? Names it takes, and one line a method; pure.

The child runs of a run are its records, dozens of them, and MLflow's pages chart ten at first. So
every method gets one run of its own with the same metric keys as all others: filtered by
``mpq.kind = 'method'``, search cost is one chart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from orchestrator.records import (
    EVAL_TOP1,
    SEARCH_DEVICE_S,
    SEARCH_EVALUATIONS,
    SEARCH_HVPS,
    SEARCH_IMAGES,
    SEARCH_PASSES,
    SEARCH_WALL_S,
    SOLVE_WALL_S,
    RunRecord,
)
from orchestrator.report.costs import fixed_and_marginal, search_parts
from orchestrator.results import results_of

# Of a method: what its search costs for one budget, what is paid once, what every device pays.
SEARCH_ONCE_S, SEARCH_EACH_S = "search/once_s", "search/every_device_s"
_SEARCH = (SEARCH_DEVICE_S, SEARCH_WALL_S, SEARCH_IMAGES, SEARCH_PASSES, SEARCH_HVPS,
           SEARCH_EVALUATIONS)  # fmt: skip


def method_metrics(run: str, records: Sequence[RunRecord]) -> dict[str, dict[str, float]]:
    """Method -> metrics by the common keys; the search keys are there for all, 0 where free."""
    results = results_of(run, records)
    parts = search_parts(records)
    found: dict[str, dict[str, float]] = {}
    for method in dict.fromkeys(row.method for row in results.rows):
        rows = [r for r in records if r.phase == "solve" and r.method == method]
        metrics = {key: _mean([r.metrics.get(key, 0.0) for r in rows]) for key in _SEARCH}
        metrics[SOLVE_WALL_S] = _mean([r.metrics.get(SOLVE_WALL_S, 0.0) for r in rows])
        once, each = fixed_and_marginal([p for p in parts if p.method == method])
        metrics |= {SEARCH_ONCE_S: once, SEARCH_EACH_S: each}
        top1 = [row.top1 for row in results.rows if row.method == method and row.top1 is not None]
        if top1:
            metrics[EVAL_TOP1] = max(top1)
        for row in results.rows:
            if row.method == method and row.top1 is not None:
                metrics.setdefault(f"{EVAL_TOP1} at {row.limits_text}", row.top1)
        found[method] = metrics
    return found


def named(key: str) -> str:
    """A name MLflow takes; it refuses the whole batch for one odd character."""
    return re.sub(r"[^\w\-./ ]", "_", key, flags=re.ASCII)[:250]


def milliseconds(time_utc: str) -> int:
    """A time stamp of the journal as MLflow counts; 0 without one."""
    return round(datetime.fromisoformat(time_utc).timestamp() * 1000) if time_utc else 0


def flat(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Every leaf of a tree as dotted key and text."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from flat(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value if isinstance(value, str) else json.dumps(value)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
