"""Which figures does a run get? Chosen from its records; drawn by ``figures``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from orchestrator import figures
from orchestrator.records import RunRecord, State
from orchestrator.report_figures_metamix import metamix_figures
from orchestrator.results import ResultRow, Results
from orchestrator.store import RunStore
from solvers.storage import load_importance, load_policy

MAX_POLICIES_SHOWN = 8


def write_figures(
    store: RunStore, results: Results, records: Sequence[RunRecord]
) -> dict[str, Path]:
    """Draw what there is data for; returns alternative text -> PNG."""
    drawn = {
        "Bits of every layer, by policy": ("bits", _bits(store, results, records)),
        "Accuracy over BitOps": ("accuracy", _accuracy(results, records)),
        "Indicators by layer and bit-width": ("indicators", _indicators(store, results)),
        "Search cost by method": ("search_cost", _search_cost(results)),
        **metamix_figures(store, records),
    }
    return {
        text: figures.save_figure(figure, store.figures_dir, stem)[1]
        for text, (stem, figure) in drawn.items()
        if figure is not None
    }


def _bits(store: RunStore, results: Results, records: Sequence[RunRecord]) -> Figure | None:
    chosen: dict[str, ResultRow] = {}
    for row in sorted(results.rows, key=_showing_order):
        if row.policy_id is not None and row.trained is not None:
            chosen.setdefault(row.policy_id, row)
    policies = {}
    for row in list(chosen.values())[:MAX_POLICIES_SHOWN]:
        assert row.trained is not None
        path = store.root / row.trained.outputs.get("policy", "")
        if path.is_file():
            alpha = "" if row.alpha is None else f", alpha {row.alpha:g}"
            top1 = "" if row.top1 is None else f": {row.top1:.2f} %"
            label = f"{row.method}{alpha} at {row.limits_text} ({row.policy_id}){top1}"
            policies[label] = load_policy(path)
    if not policies:
        return None
    pinned = next((r.facts.get("pinned", ()) for r in records if r.phase == "costs"), ())
    return figures.bit_allocation(policies, frozenset(pinned))


def _showing_order(row: ResultRow) -> tuple[bool, bool, str, float]:
    """The method's own policies first, then uniform bits, cheapest first."""
    searched = row.method in ("limpq", "metamix")
    return not searched, row.method != "uniform", row.method, row.bitops_g or 0.0


def _accuracy(results: Results, records: Sequence[RunRecord]) -> Figure | None:
    points = [
        figures.AccuracyPoint(method=row.method, bitops_g=row.bitops_g, top1=row.top1)
        for row in results.rows
        if row.bitops_g is not None and row.top1 is not None
    ]
    if not points:
        return None
    infeasible = {
        bound / 1e9
        for record in records
        if record.phase == "solve" and record.state is State.INFEASIBLE
        for kind, bound in record.facts.get("bounds", {}).items()
        if record.facts.get("resources", {}).get(kind) == "bitops"
    }
    return figures.accuracy_over_bitops(points, sorted(infeasible), results.full_precision_top1)


def _indicators(store: RunStore, results: Results) -> Figure | None:
    tables = {}
    # A selection's step sizes are its meta-state's, trained on: one pair of maps a method.
    for record in (r for r in results.search if r.phase != "bit_selection"):
        for role, label in (("importance", "learned"), ("initial", "initial")):
            path = store.root / record.outputs.get(role, "")
            if path.is_file():
                tables[f"{record.method}, {label}"] = load_importance(path)
    return figures.indicator_heat_map(tables) if tables else None


def _search_cost(results: Results) -> Figure | None:
    costs = results.search_costs()
    if not any(value for parts in costs.values() for value in parts.values()):
        return None
    return figures.search_cost_bars(costs, f"seconds of {results.device}; solves: wall seconds")
