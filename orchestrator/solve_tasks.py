"""How do many solves become few Ray tasks?

A solve takes 10 to 150 ms, and a task of its own would cost about 3 ms of CPU on top and run three
times slower in wall time (measured: 1,000 tasks of 10 ms took 53.7 s, 20 tasks of 50 took 17.0 s).
So a task does 25 to 100 of them, on one thread, and the tables travel once by reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.cells import Cell
from orchestrator.cluster_config import ClusterConfig
from orchestrator.config_schema import SearchConfig
from orchestrator.retries import task_options
from solvers.accounting import accounting_named
from solvers.batch import Question, Tables, answer
from solvers.policy import Policy, make_policy
from solvers.result import SolveRequest
from solvers.result_files import Results, merge_results, row_of
from solvers.solve import solve
from solvers.tables import BitChoices, CostTable, ImportanceTable
from trainers.errors import InterruptedPhaseError


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepTables:
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
    """The answers of one batch.

    Attributes:
        results: one row per item, in order.
        policies: the distinct policies of the rows.
    """

    results: Results
    policies: tuple[Policy, ...]


# A task may take a minute; who asked to stop does not wait for it.
LOOK_EVERY_S = 1.0

# The body of a task: (tables, items) -> answers. As good without Ray.
Body = Callable[[SweepTables, Sequence[Any]], Solved]


def solve_cells(tables: SweepTables, cells: Sequence[Cell]) -> Solved:
    """Solve the cells of a run, each with a full certificate; rows bear the cells' names."""
    solved = [(cell, solve(request_of(cell, tables))) for cell in cells]
    policies = {r.policy.policy_id: r.policy for _, r in reversed(solved) if r.policy is not None}
    return Solved(
        results=Results(
            model=tables.costs.model,
            fingerprint=tables.costs.fingerprint,
            accounting=tables.accounting,
            layers=tables.costs.names,
            rows=tuple(
                row_of(
                    result,
                    label=cell.name,
                    alpha=cell.alpha,
                    limits=cell.limit_set.limits,
                    reason=cell.limit_set.problem or result.status.value,
                )
                for cell, result in solved
            ),
        ),
        policies=tuple(policies.values()),
    )


def answer_questions(tables: SweepTables, questions: Sequence[Question]) -> Solved:
    """Solve questions of devices, one by one; rows bear the questions' labels."""
    accounting = accounting_named(tables.accounting)
    results = answer(
        Tables(
            costs=tables.costs,
            importance=tables.importance["limpq"],
            choices=tables.choices,
            accounting=accounting,
            repair=tables.search.repair,
        ),
        questions,
        solver=tables.search.solver,
        time_limit_s=tables.search.time_limit_s,
    )
    distinct = {row.policy_id: row for row in results.rows if row.policy_id}
    policies = tuple(
        make_policy(
            tables.costs, dict(zip(results.layers, row.bits, strict=True)), "ilp", accounting
        )
        for row in distinct.values()
    )
    return Solved(results=results, policies=policies)


def request_of(cell: Cell, tables: SweepTables) -> SolveRequest:
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


def solve_on_cluster(
    body: Body,
    tables_ref: object,
    items: Sequence[Any],
    per_task: int,
    keep: Callable[[Sequence[Policy]], None],
    cluster: ClusterConfig | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Results:
    """Solve items in tasks of ``per_task`` on the connected cluster.

    Args:
        body: what a task does.
        tables_ref: object reference to ``SweepTables``.
        items: cells or questions.
        per_task: solves in one task.
        keep: gets the policies of each task when it ends, while the others still solve: writing
            two thousand files at the end would leave every core waiting for the disk.
        cluster: CPUs of a task, and how often one that lost its worker is started again; None =
            the defaults.
        stopped: whether the user wants to stop; asked while tasks are waited for.

    Returns:
        One row per item, in order.

    Raises:
        InterruptedPhaseError: the user wanted to stop; tasks that had not ended are cancelled.
    """
    import ray

    # SPREAD also leaves the placement group of the Tune trial that asks, which has 0.01 CPU.
    cluster = cluster or ClusterConfig()
    again = task_options(cluster.retries)
    spread = ray.remote(num_cpus=cluster.cpus_per_solve, scheduling_strategy="SPREAD", **again)
    task = spread(body)
    batches = [items[i : i + per_task] for i in range(0, len(items), per_task)]
    if stopped():
        raise InterruptedPhaseError("asked to stop before the first task of solves")
    refs = [task.remote(tables_ref, batch) for batch in batches]
    results: list[Results] = []
    # In the order asked, not of completion: which task certifies a policy must not be chance.
    while len(results) < len(refs):
        if stopped():
            for ref in refs[len(results) :]:
                ray.cancel(ref)
            raise InterruptedPhaseError(
                f"asked to stop with {len(results)} of {len(refs)} tasks of solves done"
            )
        ref = refs[len(results)]
        if ray.wait([ref], timeout=LOOK_EVERY_S)[0]:
            solved: Solved = ray.get(ref)
            keep(solved.policies)
            results.append(solved.results)
    return merge_results(results)
