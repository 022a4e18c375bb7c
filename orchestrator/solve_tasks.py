"""How do many solves become few Ray tasks?

A solve takes 10 to 150 ms, and a task of its own would cost about 3 ms of CPU on top and run three
times slower in wall time (measured: 1,000 tasks of 10 ms took 53.7 s, 20 tasks of 50 took 17.0 s).
So a task does 25 to 100 of them, on one thread, and the tables travel once by reference.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.cells import Cell
from orchestrator.config_schema import SearchConfig
from solvers.accounting import accounting_named
from solvers.policy import Policy
from solvers.result import SolveRequest, SolveResult
from solvers.solve import solve
from solvers.storage import ResultRow
from solvers.tables import BitChoices, CostTable, ImportanceTable


@dataclass(frozen=True, kw_only=True, slots=True)
class Tables:
    """What every solve of a sweep reads.

    Attributes:
        costs: the network.
        choices: candidate bits.
        importance: importance table by method.
        search: repair rule, solver, time limit.
        accounting: its name.
    """

    costs: CostTable
    choices: BitChoices
    importance: Mapping[str, ImportanceTable]
    search: SearchConfig
    accounting: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Solved:
    """The answers of one batch and what they cost.

    Attributes:
        rows: one per cell, in order, labelled with the cell's name.
        policies: the distinct policies of the rows, with their certificates.
        wall_s: of the batch.
        cpu_s: of the batch, the solver's child processes included.
    """

    rows: tuple[ResultRow, ...]
    policies: tuple[Policy, ...]
    wall_s: float
    cpu_s: float


def solve_batch(tables: Tables, cells: Sequence[Cell]) -> Solved:
    """Solve cells one after another; the body of a task, and as good without Ray."""
    wall, cpu = time.perf_counter(), _cpu_s()
    rows: list[ResultRow] = []
    policies: dict[str, Policy] = {}
    for cell in cells:
        result = solve(request_of(cell, tables))
        rows.append(_row(cell, result))
        if result.policy is not None:
            policies.setdefault(result.policy.policy_id, result.policy)
    return Solved(
        rows=tuple(rows),
        policies=tuple(policies.values()),
        wall_s=time.perf_counter() - wall,
        cpu_s=_cpu_s() - cpu,
    )


def _row(cell: Cell, result: SolveResult) -> ResultRow:
    policy = result.policy
    return ResultRow(
        label=cell.name,
        alpha=cell.alpha,
        limits=" ".join(limit.text for limit in cell.limit_set.limits),
        status=result.status,
        policy_id="" if policy is None else policy.policy_id,
        objective=result.objective,
        bound=result.bound,
        uses=tuple(use.use for use in result.uses),
        solver=result.solver,
        wall_s=result.wall_s,
        cpu_s=result.cpu_s,
        bits=() if policy is None else tuple(bits for _, bits in policy.layers),
        reason="" if policy is not None else cell.limit_set.problem or result.status.value,
    )


def request_of(cell: Cell, tables: Tables) -> SolveRequest:
    """The question of one cell."""
    return SolveRequest(
        costs=tables.costs,
        importance=tables.importance[cell.method],
        choices=tables.choices,
        limits=cell.limit_set.limits,
        alpha=cell.alpha,
        accounting=accounting_named(tables.accounting),
        repair=tables.search.repair,
        solver=tables.search.solver,
        time_limit_s=tables.search.time_limit_s,
    )


def solve_on_cluster(tables_ref: object, cells: Sequence[Cell], per_task: int) -> Solved:
    """Solve cells in tasks of ``per_task`` on the connected cluster.

    Args:
        tables_ref: object reference to ``Tables``.
        cells: any number.
        per_task: solves in one task.
    """
    import ray

    # SPREAD also leaves the placement group of the Tune trial that asks, which has 0.01 CPU.
    task = ray.remote(num_cpus=1, max_retries=5, scheduling_strategy="SPREAD")(solve_batch)
    batches = [cells[i : i + per_task] for i in range(0, len(cells), per_task)]
    solved: list[Solved] = ray.get([task.remote(tables_ref, batch) for batch in batches])
    return Solved(
        rows=tuple(row for batch in solved for row in batch.rows),
        policies=tuple({p.policy_id: p for batch in solved for p in batch.policies}.values()),
        wall_s=sum(batch.wall_s for batch in solved),
        cpu_s=sum(batch.cpu_s for batch in solved),
    )


def _cpu_s() -> float:
    own, children = (
        resource.getrusage(resource.RUSAGE_SELF),
        resource.getrusage(resource.RUSAGE_CHILDREN),
    )
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
