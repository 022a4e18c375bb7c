"""How do the results of several runs stand side by side, and may they be compared at all?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from orchestrator.compare.inputs import ComparedRun, ReadRuns, load_policies, pinned_layers
from orchestrator.compare.policies import Stability, distance, stability, stability_row
from orchestrator.config import config_differences
from orchestrator.figures.cost import seconds_text
from orchestrator.records import alpha_text
from orchestrator.report.cells_text import COLUMNS, result_cells
from orchestrator.report.costs import amortised, search_parts
from orchestrator.results import ResultRow, skipped_text
from solvers.tables import LayerBits

# Sections that may differ without making results another thing.
_FREE = ("name", "runs_dir", "cluster", "tracking")
_NONE = "-"
_DEVICES = (1, 10, 100, 1000, 10_000)
_MAX_LAYERS = 6
DISTANCE = ("W differ", "A differ", "layers that differ")

# What is wrong with comparing runs that disagree in it.
_WHY: Mapping[str, str] = {
    "network": "accuracies and costs are of different networks",
    "data": "accuracies are of different images",
    "skipped images": "training saw different images",
    "seed": "differences may be chance",
    "accounting": "BitOps and sizes are counted differently",
    "device": "seconds are of different devices",
    "workers and threads": "seconds and rounding differ",
    "processor": "seconds are of different machines",
    "torch": "numbers of different versions",
    "rehearsal": "a rehearsal's figures mean nothing",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Several runs in one table.

    Attributes:
        columns: of the table.
        rows: one line for every row of every run.
        costs: run, method, phase, once or every device, seconds; then per device.
        stability: how much the answers to one question differ between the runs.
        warnings: why accuracies or costs may not be comparable, and what could not be read.
        differences: run -> keys that differ from the first run.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    costs: tuple[tuple[str, ...], ...]
    stability: tuple[Stability, ...]
    warnings: tuple[str, ...]
    differences: dict[str, tuple[str, ...]]


COST_COLUMNS = ("run", "method", "phase", "paid", "device time", "per device of 1", "of 10",
                "of 100", "of 1,000", "of 10,000")  # fmt: skip
STABLE_QUESTION = ("method", "alpha", "limits")


def compare(read: ReadRuns) -> Comparison:
    """Put runs side by side, the first being what the others are held against.

    Policy distances are to the first run's row of the same method, alpha and limits; within the
    first run, to uniform bits at the same limits.
    """
    runs = read.runs
    policies = {name: policy.bits_by_name() for name, policy in load_policies(runs).items()}
    pinned = pinned_layers(runs)
    first = {question(row): row for row in runs[0].results.rows} if runs else {}
    rows: list[tuple[str, ...]] = []
    for run in runs:
        shown = run.results.shown
        cells = result_cells(run.results, shown)
        offset = len(cells) - len(shown)
        for index, line in enumerate(cells):
            apart = ("", "", "")
            if index >= offset:
                row = shown[index - offset]
                other = _counterpart(row, first, own=run is runs[0])
                apart = _apart(row, other, policies, pinned)
            rows.append((run.label, *line, *apart))
    return Comparison(
        columns=("run", *COLUMNS, *DISTANCE),
        rows=tuple(rows),
        costs=tuple(line for run in runs for line in _cost_rows(run)),
        stability=_stability(runs, policies, pinned) if len(runs) > 1 else (),
        warnings=(*_unread(read), *_warnings(runs)),
        differences={run.label: _differences(runs[0].config, run.config) for run in runs[1:]},
    )


def as_values(read: ReadRuns, found: Comparison) -> dict[str, Any]:
    """A comparison as numbers for scripts."""
    names = [f.name for f in fields(ResultRow) if f.name != "trained"]
    return {
        "schema": "comparison/1",
        "runs": [
            {
                "label": run.label,
                "run": run.results.run,
                "facts": run.facts,
                "full_precision_top1": run.results.full_precision_top1,
                "rows": [{name: getattr(row, name) for name in names} for row in run.results.shown],
                "search": [
                    {"method": p.method, "phase": p.part, "seconds": p.device_s,
                     "per_device": p.per_device, **p.meters}
                    for p in search_parts(run.records)
                ],
                "lacks": list(run.lacks),
            }
            for run in read.runs
        ],
        "stability": [
            {"method": s.question[0], "alpha": s.question[1], "limits": s.question[2],
             "runs": s.num_runs, "distinct": s.num_distinct, "mean_changed": s.mean_changed,
             "max_changed": s.max_changed, "widths": s.num_widths, "layers": list(s.unstable)}
            for s in found.stability
        ],
        "unread": dict(read.unread),
        "warnings": list(found.warnings),
        "differences": {label: list(lines) for label, lines in found.differences.items()},
    }  # fmt: skip


def stability_rows(found: Comparison) -> list[tuple[str, ...]]:
    """Lines of ``STABLE_QUESTION`` and ``STABILITY_COLUMNS``."""
    return [(*s.question, *stability_row(s)) for s in found.stability]


def question(row: ResultRow) -> tuple[str, str, str]:
    """What a row answers: method, alpha, limits."""
    return row.method, _NONE if row.alpha is None else alpha_text(row.alpha), row.limits_text


def _stability(
    runs: Sequence[ComparedRun], policies: Mapping[str, Mapping[str, LayerBits]],
    pinned: frozenset[str],
) -> tuple[Stability, ...]:  # fmt: skip
    asked: dict[tuple[str, ...], list[Mapping[str, LayerBits]]] = {}
    for run in runs:
        for row in run.results.rows:
            own = asked.setdefault(question(row), [])
            if row.policy_id in policies:
                own.append(policies[row.policy_id or ""])
    found = (stability(key, own, pinned) for key, own in asked.items() if len(own) > 1)
    return tuple(each for each in found if each is not None)


def _counterpart(
    row: ResultRow, first: Mapping[tuple[str, str, str], ResultRow], *, own: bool
) -> ResultRow | None:
    """The first run's row to hold a row against; in the first run itself, uniform bits."""
    if not own:
        return first.get(question(row))
    return None if row.method == "uniform" else first.get(("uniform", _NONE, row.limits_text))


def _apart(
    row: ResultRow,
    other: ResultRow | None,
    policies: Mapping[str, Mapping[str, LayerBits]],
    pinned: frozenset[str],
) -> tuple[str, str, str]:
    first = policies.get(row.policy_id or "")
    second = None if other is None else policies.get(other.policy_id or "")
    found = None if first is None or second is None else distance(first, second, pinned)
    if found is None:
        return _NONE, _NONE, _NONE
    named = ", ".join(found.layers[:_MAX_LAYERS])
    more = len(found.layers) - _MAX_LAYERS
    told = f"{named} and {more} more" if more > 0 else named
    return str(found.num_weight), str(found.num_act), told or "none"


def _cost_rows(run: ComparedRun) -> list[tuple[str, ...]]:
    parts = search_parts(run.records)
    lines = []
    for part in parts:
        own = [p for p in parts if p.method == part.method]
        # Once a method: what one more device costs is of all its phases.
        shared = [seconds_text(amortised(own, z)) for z in _DEVICES] if part is own[0] else [""] * 5
        paid = "every device" if part.per_device else "once"
        lines.append(
            (run.label, part.method, part.part, paid, seconds_text(part.device_s), *shared)
        )
    return lines


def _unread(read: ReadRuns) -> list[str]:
    lines = [f"{label} is left out: {why}" for label, why in read.unread.items()]
    return lines + [f"{run.label}: {lack}" for run in read.runs for lack in run.lacks]


def _warnings(runs: Sequence[ComparedRun]) -> list[str]:
    """One line a fact and group of runs: 500 runs of 500 seeds are one line, not 499."""
    if not runs:
        return []
    first, lines = runs[0], []
    for name, own in first.facts.items():
        others: dict[str, list[str]] = {}
        for run in runs[1:]:
            if run.facts[name] != own:
                others.setdefault(run.facts[name], []).append(run.label)
        why = _WHY[name]
        if len(others) == 1 or (others and len(runs) <= 3):
            lines += [
                f"{_listed(labels)} differs from {first.label} in {name}: {value} against {own}; "
                f"{why}"
                for value, labels in others.items()
            ]
        elif others:
            changed = [label for labels in others.values() for label in labels]
            lines.append(
                f"{len(changed)} of {len(runs)} runs differ from {first.label} in {name} "
                f"({len(others) + 1} values): {why}"
            )
    rehearsed = [run.label for run in runs if run.facts["rehearsal"] == "yes"]
    if rehearsed:
        lines.append(f"{_listed(rehearsed)}: rehearsal, figures mean nothing")
    lines += [f"{run.label}: {skipped_text(run.results)}" for run in runs if run.results.skipped]
    unfinished = [run.label for run in runs if not run.finished]
    if unfinished:
        lines.append(f"{_listed(unfinished)}: not finished")
    if all(run.facts["seed"] == first.facts["seed"] for run in runs):
        lines.append(f"all results are of seed {first.facts['seed']}: no interval is claimed")
    return lines


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(labels[:3]) + (f" and {len(labels) - 3} more" if len(labels) > 3 else "")


def _differences(first: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, ...]:
    """Keys that differ; sections that are equal are not looked into."""
    differing = [
        key for key in {**first, **other} if key not in _FREE and first.get(key) != other.get(key)
    ]
    return config_differences(
        {key: first[key] for key in differing if key in first},
        {key: other[key] for key in differing if key in other},
    )
