"""Which of MetaMix's figures does a run get? From its selections and its evidence.

The numbers of the figures in the paper stand in their texts, so that a reader finds the pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from orchestrator import figures_metamix as draw
from orchestrator.records import EVIDENCE, RunRecord, State
from orchestrator.store import RunStore
from solvers.parquet import read_table
from solvers.storage import load_costs, load_policy
from solvers.tables import CostTable
from trainers.metamix.tables import (
    DISTRIBUTIONS_COLUMNS,
    DISTRIBUTIONS_SCHEMA,
    DRIFT_COLUMNS,
    DRIFT_SCHEMA,
    HESSIAN_COLUMNS,
    HESSIAN_SCHEMA,
    HISTORY_COLUMNS,
    HISTORY_SCHEMA,
)

# Text -> file stem and figure.
Drawn = dict[str, tuple[str, Figure | None]]


def metamix_figures(store: RunStore, records: Sequence[RunRecord]) -> Drawn:
    """What can be drawn from the tables that are there."""
    done = [record for record in records if record.state is State.DONE]
    costs = _costs(store, done)
    evidence = [record for record in done if record.phase == EVIDENCE]
    traces = next((t for r in evidence if (t := _table(store, r, "hessian"))), None)
    drawn: Drawn = {}
    for record in done:
        if record.phase == "bit_selection":
            drawn |= _selection(store, record, costs, traces)
    for record in evidence:
        drawn |= _evidence(store, record)
    return drawn


def _selection(
    store: RunStore, record: RunRecord, costs: CostTable | None, traces: draw.Rows | None
) -> Drawn:
    """The paths of alpha, and the bits that came out (Figure 7)."""
    target, drawn = record.facts.get("target", record.step), Drawn()
    history = _table(store, record, "history")
    for tensor in ("act", "weight"):
        if history and tensor in history["tensor"]:
            what = "activation" if tensor == "act" else "weight"
            text = f"Probability of every {what} width over the search, {target}"
            drawn[text] = (f"alphas-{tensor}-{record.step}", draw.alpha_paths(history, tensor))
    policy = _path(store, record, "policy")
    if policy is not None and costs is not None:
        searched = costs.searched
        chosen = load_policy(policy)
        bits = {layer.name: chosen.bits_of(layer.name).act_bits for layer in searched}
        macs = {layer.name: float(layer.num_macs) for layer in searched}
        lines: dict[str, Mapping[str, float]] = {"MACs": macs}
        if traces is not None:
            trace = dict(zip(traces["layer"], traces["trace"], strict=True))
            lines["Hessian trace / MACs"] = {name: trace[name] / macs[name] for name in macs}
        depthwise = frozenset(layer.name for layer in searched if layer.kind == "depthwise")
        text = f"Selected activation bits by layer (MetaMix, Figure 7), {target}"
        drawn[text] = (f"selected-{record.step}", draw.selected_bits(bits, depthwise, lines))
    return drawn


def _evidence(store: RunStore, record: RunRecord) -> Drawn:
    drawn = Drawn()
    rows = _table(store, record, "drift")
    if rows:
        figure = draw.norm_drift(rows, record.facts["layer"])
        drawn["BatchNorm statistics under random bits (MetaMix, Figure 2)"] = ("norm-drift", figure)
    rows = _table(store, record, "distributions")
    if rows:
        how, number = record.facts["training"], "1" if record.facts["training"] == "single" else "6"
        for layer in record.facts["layers"]:
            text = f"Input of {layer} over bits, {how} (MetaMix, Figure {number}), {record.step}"
            stem = f"{record.step.removeprefix('evidence-')}-{layer}"
            drawn[text] = (stem, draw.input_distributions(rows, layer))
    rows = _table(store, record, "hessian")
    if rows:
        text = "Average Hessian trace by layer, full precision"
        drawn[text] = ("hessian", draw.hessian_traces(rows))
    return drawn


_TABLES = {
    "history": (HISTORY_SCHEMA, HISTORY_COLUMNS),
    "drift": (DRIFT_SCHEMA, DRIFT_COLUMNS),
    "distributions": (DISTRIBUTIONS_SCHEMA, DISTRIBUTIONS_COLUMNS),
    "hessian": (HESSIAN_SCHEMA, HESSIAN_COLUMNS),
}


def _table(store: RunStore, record: RunRecord, role: str) -> Mapping[str, Sequence[Any]] | None:
    """Columns of an output, None when the record or the folder has none."""
    path = _path(store, record, role)
    if path is None:
        return None
    schema, columns = _TABLES[role]
    return read_table(path, schema, columns)[1]


def _costs(store: RunStore, records: Sequence[RunRecord]) -> CostTable | None:
    found = (_path(store, record, "costs") for record in records if record.phase == "costs")
    return next((load_costs(path) for path in found if path is not None), None)


def _path(store: RunStore, record: RunRecord, role: str) -> Path | None:
    if role not in record.outputs:
        return None
    path = store.root / record.outputs[role]
    return path if path.is_file() else None
