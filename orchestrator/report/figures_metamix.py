"""Which of MetaMix's figures does a run get? From its selections and its evidence.

The numbers of the figures in the paper stand in their texts, so that a reader finds the pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from orchestrator.figures import metamix as draw
from orchestrator.records import EVIDENCE, RunRecord, State
from orchestrator.store import RunStore
from solvers.errors import SolversError
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

# Text -> file stem, figure, and the columns of its data.
Drawn = dict[str, tuple[str, Figure, draw.Rows]]


def metamix_figures(store: RunStore, records: Sequence[RunRecord], lacks: list[str]) -> Drawn:
    """What can be drawn from the tables that are there.

    Args:
        store: the run.
        records: the newest of every key.
        lacks: gets a clause for every record whose tables are missing or damaged.
    """
    done = [record for record in records if record.state is State.DONE]
    costs = _costs(store, done, lacks)
    traces = _traces(store, done, lacks)
    drawn: Drawn = {}
    for record in done:
        try:
            if record.phase == "bit_selection":
                drawn |= _selection(store, record, costs, traces)
            elif record.phase == EVIDENCE:
                drawn |= _evidence(store, record)
        except (SolversError, OSError, ValueError, KeyError) as error:
            lacks.append(f"{record.step} cannot be drawn: {str(error).splitlines()[0]}")
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
            own = [i for i, found in enumerate(history["tensor"]) if found == tensor]
            data = {name: [values[i] for i in own] for name, values in history.items()}
            figure = draw.alpha_paths(history, tensor)
            drawn[text] = (f"alphas-{tensor}-{record.step}", figure, data)
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
        data = {"layer": list(bits), "activation bits": list(bits.values())}
        data |= {what: [values.get(name) for name in bits] for what, values in lines.items()}
        figure = draw.selected_bits(bits, depthwise, lines)
        drawn[text] = (f"selected-{record.step}", figure, data)
    return drawn


def _evidence(store: RunStore, record: RunRecord) -> Drawn:
    drawn = Drawn()
    rows = _table(store, record, "drift")
    if rows:
        figure = draw.norm_drift(rows, record.facts["layer"])
        text = "BatchNorm statistics under random bits (MetaMix, Figure 2)"
        drawn[text] = ("norm-drift", figure, rows)
    rows = _table(store, record, "distributions")
    if rows:
        how, number = record.facts["training"], "1" if record.facts["training"] == "single" else "6"
        for layer in record.facts["layers"]:
            text = f"Input of {layer} over bits, {how} (MetaMix, Figure {number}), {record.step}"
            stem = f"{record.step.removeprefix('evidence-')}-{layer}"
            own = [i for i, name in enumerate(rows["layer"]) if name == layer]
            data = {name: [values[i] for i in own] for name, values in rows.items()}
            drawn[text] = (stem, draw.input_distributions(rows, layer), data)
    rows = _table(store, record, "hessian")
    if rows:
        text = "Average Hessian trace by layer, full precision"
        drawn[text] = ("hessian", draw.hessian_traces(rows), rows)
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


def _traces(store: RunStore, records: Sequence[RunRecord], lacks: list[str]) -> draw.Rows | None:
    """Hessian traces; None, noted, where they cannot be read."""
    try:
        return next((t for r in records if (t := _table(store, r, "hessian"))), None)
    except (SolversError, OSError, ValueError) as error:
        lacks.append(f"hessian traces cannot be read: {str(error).splitlines()[0]}")
        return None


def _costs(store: RunStore, records: Sequence[RunRecord], lacks: list[str]) -> CostTable | None:
    try:
        found = (_path(store, record, "costs") for record in records if record.phase == "costs")
        return next((load_costs(path) for path in found if path is not None), None)
    except (SolversError, OSError, ValueError) as error:
        lacks.append(f"the cost table cannot be read: {str(error).splitlines()[0]}")
        return None


def _path(store: RunStore, record: RunRecord, role: str) -> Path | None:
    """An output of a record; None when it has none.

    Raises:
        FileNotFoundError: it has one, and it is gone.
    """
    if role not in record.outputs:
        return None
    path = store.root / record.outputs[role]
    if not path.is_file():
        raise FileNotFoundError(f"{record.outputs[role]} is missing")
    return path
