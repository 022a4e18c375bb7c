"""How are many results kept? ``results/1``: one Parquet row a solve, infeasible ones included.

Policies stand in a row as two lists of bits in the order of the layers named in the metadata, so
that ten thousand of them are a few hundred kilobytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from solvers.certificate import SolveStatus
from solvers.columns import lists, numbers, texts
from solvers.decode import Fields
from solvers.errors import FormatError
from solvers.limits import Limit
from solvers.parquet import read_table, write_table
from solvers.result import SolveResult
from solvers.tables import LayerBits

RESULTS_SCHEMA = "results/1"
COLUMNS = (
    "label", "alpha", "limits", "status", "policy_id", "objective", "bound", "uses", "solver",
    "wall_s", "cpu_s", "weight_bits", "act_bits", "reason",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultRow:
    """One solve among many.

    Attributes:
        label: device or limit it was solved for.
        alpha: weight of the weight indicators.
        limits: its limits as text, joined by a space.
        status: how it ended.
        policy_id: empty without a policy.
        objective: of the policy.
        bound: proven lower bound.
        uses: integer use of each limit, in their order.
        solver: backend that answered.
        wall_s: wall seconds of this solve.
        cpu_s: CPU seconds of this solve.
        bits: bits of each layer in execution order; empty without a policy.
        reason: why nothing fits; empty otherwise.
    """

    label: str
    alpha: float
    limits: str
    status: SolveStatus
    policy_id: str
    objective: float | None
    bound: float | None
    uses: tuple[int, ...]
    solver: str
    wall_s: float
    cpu_s: float
    bits: tuple[LayerBits, ...]
    reason: str = ""


def row_of(
    result: SolveResult, *, label: str, alpha: float, limits: Sequence[Limit], reason: str = ""
) -> ResultRow:
    """One solve as a row; ``reason`` says why there is no policy."""
    policy = result.policy
    return ResultRow(
        label=label,
        alpha=alpha,
        limits=" ".join(limit.text for limit in limits),
        status=result.status,
        policy_id="" if policy is None else policy.policy_id,
        objective=result.objective,
        bound=result.bound,
        uses=tuple(use.use for use in result.uses),
        solver=result.solver,
        wall_s=result.wall_s,
        cpu_s=result.cpu_s,
        bits=() if policy is None else tuple(bits for _, bits in policy.layers),
        reason="" if policy is not None else reason,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """Many solves on one network."""

    model: str
    fingerprint: str
    accounting: str
    layers: tuple[str, ...]
    rows: tuple[ResultRow, ...]


def save_results(path: Path | str, results: Results) -> None:
    """Write ``results/1``, atomically."""
    rows = results.rows
    # Devices that end at one policy share its tuple of bits: each is spelt out once.
    widths: dict[int, tuple[list[int], list[int]]] = {}
    for row in rows:
        if id(row.bits) not in widths:
            weight_bits = [b.weight_bits for b in row.bits]
            widths[id(row.bits)] = (weight_bits, [b.act_bits for b in row.bits])
    columns: dict[str, Any] = {
        "label": texts([r.label for r in rows]),
        "alpha": numbers([r.alpha for r in rows], pa.float64()),
        "limits": texts([r.limits for r in rows]),
        "status": texts([r.status.value for r in rows]),
        "policy_id": texts([r.policy_id for r in rows]),
        "objective": numbers([r.objective for r in rows], pa.float64()),
        "bound": numbers([r.bound for r in rows], pa.float64()),
        "uses": lists([r.uses for r in rows], pa.int64()),
        "solver": texts([r.solver for r in rows]),
        "wall_s": numbers([r.wall_s for r in rows], pa.float64()),
        "cpu_s": numbers([r.cpu_s for r in rows], pa.float64()),
        "weight_bits": lists([widths[id(r.bits)][0] for r in rows], pa.int8()),
        "act_bits": lists([widths[id(r.bits)][1] for r in rows], pa.int8()),
        "reason": texts([r.reason for r in rows]),
    }
    write_table(path, RESULTS_SCHEMA, results_facts(results), columns)


def results_facts(results: Results) -> dict[str, Any]:
    """The part of ``results/1`` that is not a column."""
    return {
        "model": results.model,
        "fingerprint": results.fingerprint,
        "accounting": results.accounting,
        "layers": list(results.layers),
    }


def load_results(path: Path | str) -> Results:
    """Read ``results/1``.

    Raises:
        FormatError: the file is not one.
    """
    facts, columns = read_table(path, RESULTS_SCHEMA, COLUMNS)
    about = Fields.of(facts, str(path))
    layers = tuple(str(name) for name in about.listed("layers"))
    rows: list[ResultRow] = []
    for i in range(len(columns["label"])):
        row = {name: columns[name][i] for name in COLUMNS}
        weight_bits, act_bits = row.pop("weight_bits") or [], row.pop("act_bits") or []
        if len(weight_bits) != len(act_bits) or len(weight_bits) not in (0, len(layers)):
            raise FormatError(f"{path}: row {i}: weight_bits and act_bits do not match the layers")
        try:
            row["status"] = SolveStatus(row["status"])
        except ValueError:
            raise FormatError(f"{path}: row {i}: status {row['status']!r} is unknown") from None
        pairs = zip(weight_bits, act_bits, strict=True)
        row["bits"] = tuple(LayerBits(weight_bits=w, act_bits=a) for w, a in pairs)
        row["uses"] = tuple(row["uses"] or ())
        rows.append(ResultRow(**row))
    return Results(
        model=about.text("model"),
        fingerprint=about.text("fingerprint"),
        accounting=about.text("accounting"),
        layers=layers,
        rows=tuple(rows),
    )


def merge_results(parts: Sequence[Results]) -> Results:
    """Several chunks of one sweep as one.

    Raises:
        FormatError: they are of different networks or accountings.
    """
    first = parts[0]
    for part in parts[1:]:
        if (part.fingerprint, part.accounting) != (first.fingerprint, first.accounting):
            raise FormatError(
                f"results of {part.model!r} ({part.accounting}) do not belong with those of "
                f"{first.model!r} ({first.accounting})"
            )
    return Results(
        model=first.model,
        fingerprint=first.fingerprint,
        accounting=first.accounting,
        layers=first.layers,
        rows=tuple(row for part in parts for row in part.rows),
    )
