"""How does the sweep of a plan become the rows of the table, and which policies are trained?"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.cluster import OnDemandCluster
from orchestrator.made_controls import made_controls
from orchestrator.outcomes import candidate_record, sweep_record
from orchestrator.phase_step import begin, finished_record, lost_step
from orchestrator.plan import Plan, Step
from orchestrator.policies import (
    Candidate,
    failed_candidates,
    solved_candidates,
)
from orchestrator.relaunch import GroupLostError
from orchestrator.session import Session
from orchestrator.solve_tasks import SweepTables, solve_cells
from orchestrator.sweep import SweepOutcome, cell_chunks
from orchestrator.watched_sweep import watched_sweep
from solvers.controls import reversed_importance
from solvers.layer_statistics import load_statistics
from solvers.storage import ResultRow, load_importance, load_policy, load_results, save_policy
from solvers.tables import CostTable, ImportanceTable
from solvers.transforms import transform


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportanceFile:
    """Importance that cells are solved with.

    Attributes:
        path: the table's file.
        search: what learning it cost, by the common metric keys.
        steps: the steps that this was spent in.
        transform: how its values are read before they are solved.
        statistics: file that some transforms need.
    """

    path: Path
    search: Mapping[str, float] = field(default_factory=dict)
    steps: tuple[str, ...] = ()
    transform: str = "raw"
    statistics: Path | None = None

    def read(self, costs: CostTable) -> ImportanceTable:
        """The table as the solver is given it."""
        found = load_importance(self.path)
        if self.transform == "raw":
            return found
        known = load_statistics(self.statistics) if self.statistics else ()
        return transform(found, costs, self.transform, known)


def sweep_step(
    session: Session,
    plan: Plan,
    step: Step,
    tables: Mapping[str, ImportanceFile],
    cluster: OnDemandCluster,
    failed: Mapping[str, str] | None = None,
) -> tuple[Candidate, ...]:
    """Solve every feasible cell and make the controls; every row gets a record.

    Args:
        session: this attempt.
        plan: the run.
        step: the sweep.
        tables: importance by the method whose cells are solved with it.
        cluster: where the solves run.
        failed: why a method of the cells has no importance. The sweep is then not finished: the
            next attempt asks again.

    Raises:
        StepFailedError: a trial failed for good; the record says so.
        ResourceError: memory or disk ran out, or the cluster is gone.
        InterruptedRunError: a signal asked to stop; what was answered is kept.
    """
    folder = session.store.step_dir(step.name)
    failed = failed or {}
    done = None if failed else finished_record(session, step)
    if done is None:
        began = time.perf_counter()
        begin(session, step)
        try:
            outcome = _solve(session, plan, step, tables, cluster)
        except GroupLostError as error:
            raise lost_step(session, step, step.action, error, began) from error
        candidates = _candidates(session, plan, step, outcome.rows if outcome else {}, tables)
        for candidate in candidates:
            path = folder / "policies" / f"{_id(candidate)}.json"
            if candidate.policy is not None and not path.exists():
                save_policy(path, candidate.policy)
        outputs = {}
        # MetaMix alone, without controls, leaves its policies with its bit selections.
        if any(candidate.policy is not None for candidate in candidates):
            outputs["policies"] = folder / "policies"
        if outcome:
            outputs["answers"] = folder / "answers"
        record = session.stamped(
            sweep_record(
                session.config.name,
                step,
                outputs={role: session.store.relative(path) for role, path in outputs.items()},
                facts=_facts(outcome, candidates),
                wall_s=time.perf_counter() - began,
                solve_wall_s=outcome.solve_wall_s if outcome else 0.0,
                solve_cpu_s=outcome.solve_cpu_s if outcome else 0.0,
            )
        )
        if not failed:
            session.store.finish_step(step.name, record)
            session.keep(record)
        session.say(f"{step.name}: {record.facts['solves']} solves, "
                    f"{record.facts['distinct_policies']} distinct policies")  # fmt: skip
    else:
        rows = {
            row.label: row
            for path in sorted((folder / "answers").glob("*.parquet"))
            for row in load_results(path).rows
        }
        candidates = _candidates(session, plan, step, rows, tables)
    candidates += failed_candidates(plan.cells, failed)
    keep_rows(session, step, candidates)
    session.stop_if_asked()  # asked while the last chunk was solved
    return candidates


def keep_rows(session: Session, step: Step, candidates: tuple[Candidate, ...]) -> None:
    """One record per row, with one flush; rows that are there already change nothing."""
    folder = session.store.step_dir("sweep") / "policies"
    session.journal.append_all(
        session.stamped(
            candidate_record(
                session.config.name,
                step,
                candidate,
                seed=session.config.seed,
                policy_file=session.store.relative(folder / f"{_id(candidate)}.json"),
            )
        )
        for candidate in candidates
    )


def _solve(
    session: Session,
    plan: Plan,
    step: Step,
    tables: Mapping[str, ImportanceFile],
    cluster: OnDemandCluster,
) -> SweepOutcome | None:
    importance = {method: table.read(plan.costs) for method, table in tables.items()}
    if "limpq" in importance:
        importance["reversed"] = reversed_importance(importance["limpq"])
    cells = [cell for cell in plan.cells if cell.method in importance]
    if not cells:
        return None
    sweep = SweepTables(
        costs=plan.costs,
        choices=plan.choices,
        importance=importance,
        search=session.config.search,
        accounting=session.config.accounting,
    )
    session.say(f"{step.name}: {step.about}")
    chunks = cell_chunks(cells, session.config.search.limits_per_trial, step.key)
    outcome = watched_sweep(session, step.name, step.key, chunks, solve_cells, sweep, cluster)
    session.ledger.add("solve", min(outcome.solve_wall_s, outcome.wall_s))
    session.ledger.add("Ray Tune", max(0.0, outcome.wall_s - outcome.solve_wall_s))
    return outcome


def _candidates(
    session: Session,
    plan: Plan,
    step: Step,
    rows: dict[str, ResultRow],
    tables: Mapping[str, ImportanceFile],
) -> tuple[Candidate, ...]:
    folder = session.store.step_dir(step.name) / "policies"
    ids = {row.policy_id for row in rows.values() if row.policy_id}
    policies = {policy_id: load_policy(folder / f"{policy_id}.json") for policy_id in ids}
    by_method = dict(tables)
    if "limpq" in by_method:
        by_method["reversed"] = by_method["limpq"]
    search = {method: table.search for method, table in by_method.items()}
    facts = {method: _behind(table) for method, table in by_method.items()}
    solved = solved_candidates(plan.cells, rows, policies, search, facts)
    return (*solved, *made_controls(session.config, plan))


def _behind(table: ImportanceFile) -> dict[str, Any]:
    """What a row says about its importance."""
    told = {} if table.transform == "raw" else {"transform": table.transform}
    return {"search_steps": list(table.steps), **told}


def _facts(
    outcome: SweepOutcome | None, candidates: tuple[Candidate, ...]
) -> dict[str, int | float]:
    return {
        "solves": len(outcome.rows) if outcome else 0,
        "trials": outcome.num_trials if outcome else 0,
        "trials_reused": outcome.num_reused if outcome else 0,
        "distinct_policies": len({_id(c) for c in candidates if c.policy is not None}),
        "tune_wall_s": outcome.wall_s if outcome else 0.0,
    }


def _id(candidate: Candidate) -> str:
    return "" if candidate.policy is None else candidate.policy.policy_id
