"""How do phases that do not need each other run side by side? As trials of Ray Tune.

Each trial launches a worker group of its own; as many run at once as the cluster has room for.
Where that is one, they run one after another without Tune. Every phase keeps its own step, record
and resume.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import solvers.errors
import trainers.errors
from orchestrator.cluster import OnDemandCluster, groups_at_once
from orchestrator.errors import (
    InterruptedRunError,
    LockedError,
    ResourceError,
    TerminatedRunError,
)
from orchestrator.launch import Launch
from orchestrator.phase_step import (
    begin,
    finished_record,
    keep_result,
    phase_step,
    result_of,
    run_phase,
)
from orchestrator.plan import Step
from orchestrator.records import RunRecord
from orchestrator.relaunch import GroupLostError, Restart, run_group
from orchestrator.restart_lines import RestartLines, add_restart
from orchestrator.retries import Decision
from orchestrator.session import Session
from orchestrator.trials import TrialsLostError, run_trials
from orchestrator.watch import keep_restart, watched
from trainers.errors import InterruptedPhaseError
from trainers.messages import STOP_FILE
from trainers.phases import PhaseResult, PhaseSpec
from trainers.results import load_result


def phase_steps(
    session: Session,
    work: Sequence[tuple[Step, PhaseSpec]],
    cluster: OnDemandCluster,
    *,
    phase: str,
    method: str,
) -> tuple[RunRecord, ...]:
    """Run several independent phases; their records in the order given.

    Raises:
        StepFailedError: one diverged or lost its workers; the others are recorded first.
        TrainersError: one refused its input.
    """
    if len(work) == 1:
        ((step, spec),) = work
        return (phase_step(session, step, spec, cluster, phase=phase, method=method),)
    records: dict[str, RunRecord] = {}
    results: dict[str, PhaseResult] = {}
    missing: list[tuple[Step, PhaseSpec]] = []
    for step, spec in work:
        done = finished_record(session, step)
        if done is not None:
            records[step.name] = done
            continue
        # A result under this key without a record: the driver was killed in between.
        result = load_result(begin(session, step) / "result.json")
        if result is None:
            missing.append((step, spec))
        else:
            results[step.name] = result
    at_once = groups_at_once(cluster.nodes, cluster.resources()) if missing else 0
    together = time.perf_counter()
    outcomes = _launch_all(session, missing, cluster, at_once) if at_once > 1 else {}
    failures: list[Exception] = []
    for step, spec in work:
        if step.name in records:
            continue
        began = together if step.name in outcomes else time.perf_counter()
        try:
            if step.name in outcomes:
                outcome = outcomes[step.name]
                results[step.name] = result_of(session, step, spec, outcome, began)
            elif step.name not in results:
                results[step.name] = run_phase(session, step, spec, cluster)
            records[step.name] = keep_result(
                session, step, results[step.name], phase=phase, method=method, began=began
            )
        except (
            InterruptedRunError, TerminatedRunError, InterruptedPhaseError, ResourceError,
            LockedError,
        ):  # fmt: skip
            raise  # what is left cannot run either
        except Exception as error:
            failures.append(error)
    if failures:
        raise failures[0]
    return tuple(records[step.name] for step, _ in work)


def _launch_all(
    session: Session,
    missing: Sequence[tuple[Step, PhaseSpec]],
    cluster: OnDemandCluster,
    concurrent: int,
) -> dict[str, Launch]:
    ask = cluster.resources()
    by_name = {step.name: (step, spec) for step, spec in missing}
    run_dir = session.store.root
    folders = {name: session.store.step_dir(name) for name in by_name}

    settings = session.config.cluster

    def work(name: str) -> Mapping[str, Any]:
        step, spec = by_name[name]
        folder = folders[name]
        try:
            done = run_group(
                spec,
                step=name,
                step_dir=folder,
                run_dir=run_dir,
                key=step.key,
                ask=ask,
                cluster=settings,
                tell=lambda restart: add_restart(folder, restart),
            )
        except GroupLostError as error:
            done = _without_times(error)
        return _told(done)

    restarts: list[Restart] = []

    def tell(names: Sequence[str], attempt: int, decision: Decision) -> None:
        session.store.before_write()  # their groups would supersede those of a new owner
        for name in names:
            again = Restart.after(decision, step=name, attempt=attempt, num_workers=ask.num_workers)
            restarts.append(again)

    heard = [RestartLines(name, folder) for name, folder in folders.items()]

    def hear() -> None:
        for lines in heard:
            for restart in lines.fresh():
                keep_restart(session, restart)

    session.say(f"{', '.join(by_name)}: {concurrent} at a time, {ask.num_workers} workers each")
    began = time.perf_counter()
    try:
        told = watched(
            session,
            list(by_name),
            lambda: run_trials(
                list(by_name),
                work,
                folder=run_dir / "ray",
                label="phases",
                concurrent=concurrent,
                tell=tell,
                stopped=(run_dir / STOP_FILE).exists,
                retries=settings.retries,
            ),
            hear,
            restarts=restarts,
            lost=cluster.lost,
        )
    except InterruptedPhaseError:
        session.stop_if_asked()
        raise
    except TrialsLostError as error:
        return {
            name: _heard(error.found[name]) if name in error.found else _without_times(error)
            for name in by_name
        }
    finally:
        hear()
    wall_s = time.perf_counter() - began
    worked_s = sum(t["worked_s"] for t in told.values()) / concurrent
    session.ledger.add("worker start and stop", max(0.0, wall_s - worked_s))
    return {name: _heard(t) for name, t in told.items()}


def _without_times(error: GroupLostError) -> Launch:
    """A launch of which nothing but its loss is known."""
    return Launch(wall_s=0.0, worked_s=0.0, error=error)


def _told(done: Launch) -> dict[str, Any]:
    """A launch as the plain values that a trial may report."""
    error = done.error
    return {
        "failure": str(error.failure) if isinstance(error, GroupLostError) else "",
        "wall_s": done.wall_s,
        "worked_s": done.worked_s,
        "error_type": "" if error is None else type(error).__name__,
        "error": "" if error is None else str(error),
    }


def _heard(told: Mapping[str, Any]) -> Launch:
    """The launch again, with an error of the room that raised it."""
    error: Exception | None = None
    if told["failure"]:
        error = GroupLostError(told["error"], told["failure"])
    elif told["error_type"]:
        name = told["error_type"]
        rooms = (trainers.errors, solvers.errors)
        kind = next((getattr(room, name) for room in rooms if hasattr(room, name)), RuntimeError)
        error = kind(told["error"])
    return Launch(wall_s=told["wall_s"], worked_s=told["worked_s"], error=error)
