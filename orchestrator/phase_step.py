"""How is a training phase of the plan carried out, or found to be done already?

What a step leaves is written in a fixed order: outputs, the phase's ``result.json``, the step's
``record.json``, the journal. A kill between any two of them repeats work, never a record.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from orchestrator import events
from orchestrator.cluster import OnDemandCluster
from orchestrator.errors import ExitCode, ResourceError, UserError
from orchestrator.launch import Launch
from orchestrator.outcomes import failed_record, phase_record
from orchestrator.plan import Step
from orchestrator.records import RunRecord, State
from orchestrator.relaunch import GroupLostError, Restart, run_group
from orchestrator.retries import FailureClass
from orchestrator.reuse import KEY_FILE, take_over
from orchestrator.session import Session
from orchestrator.watch import watched
from solvers.atomic import write_atomically
from trainers.errors import CheckpointError, DivergedError, InterruptedPhaseError
from trainers.phases import PhaseResult, PhaseSpec
from trainers.results import load_result


class StepFailedError(UserError):
    """A step ended without a result; what depends on it cannot run."""

    exit_code = ExitCode.INCOMPLETE


def finished_record(session: Session, step: Step) -> RunRecord | None:
    """The verified record of a finished step, None when it must run.

    The record is put into the journal again: a kill may have come between the two.
    """
    verdict = session.store.finished(step.name, step.key)
    reason = "done before, outputs verified"
    if verdict.record is None:
        donor = take_over(session.store, session.donors, step.name, step.key)
        if donor:
            verdict = session.store.finished(step.name, step.key)
            reason = f"taken over from run {donor}, outputs verified"
        elif verdict.damaged:
            session.say(f"{step.name}: done again, because {verdict.reason}")
            session.store.before_write()
            # A result beside damaged outputs would be taken for the whole of them.
            shutil.rmtree(session.store.step_dir(step.name))
    if verdict.record is None:
        return None
    session.keep(verdict.record)
    session.journal.event(events.STEP_SKIPPED, {"step": step.name, "reason": reason})
    session.say(f"{step.name}: {reason}")
    return verdict.record


def begin(session: Session, step: Step) -> Path:
    """The step's folder, emptied of anything that belongs to another key."""
    session.stop_if_asked()
    session.store.before_write()
    folder = session.store.step_dir(step.name)
    marker = folder / KEY_FILE
    if folder.exists() and (not marker.is_file() or marker.read_text() != step.key):
        shutil.rmtree(folder)
    write_atomically(marker, step.key)
    session.journal.event(
        events.STEP_STARTED, {"step": step.name, "attempt": session.attempts(step)}
    )
    return folder


def run_phase(
    session: Session,
    step: Step,
    spec: PhaseSpec,
    cluster: OnDemandCluster,
    *,
    tick: Callable[[], None] | None = None,
) -> PhaseResult:
    """Run a phase on a worker group and return its result.

    Args:
        session: this attempt.
        step: what is run.
        spec: the phase.
        cluster: where the workers run.
        tick: called about once a second while the workers work.

    Raises:
        StepFailedError: it diverged, or workers were lost too often; the record says so.
        InterruptedRunError: a signal asked to stop.
        TrainersError: the phase refused its input.
    """
    folder = session.store.step_dir(step.name)
    ask = cluster.resources()
    began = time.perf_counter()
    session.say(f"{step.name}: {step.about}, on {ask.num_workers} workers")
    restarts: list[Restart] = []

    def tell(restart: Restart) -> None:
        # Workers of a run that was taken over end, superseded; starting them again would in turn
        # supersede those of its new owner.
        session.store.before_write()
        restarts.append(restart)

    try:
        outcome = watched(
            session,
            [step.name],
            lambda: run_group(
                spec,
                step=step.name,
                step_dir=folder,
                run_dir=session.store.root,
                key=step.key,
                ask=ask,
                cluster=session.config.cluster,
                tell=tell,
            ),
            tick,
            restarts=restarts,
            lost=cluster.lost,
        )
    except GroupLostError as error:
        raise lost_step(session, step, spec.phase, error, began) from error
    session.ledger.add("worker start and stop", outcome.wall_s - outcome.worked_s)
    return result_of(session, step, spec, outcome, began)


def lost_step(
    session: Session, step: Step, phase: str, error: GroupLostError, began: float
) -> UserError:
    """Record that a step lost its workers for good; what is to be raised."""
    _keep_failure(session, step, phase, State.FAILED, str(error), began)
    return lost_for_good(step.name, session.store.step_dir(step.name), error)


def lost_for_good(what: str, folder: Path, error: GroupLostError) -> UserError:
    """What is to be raised, by the class of the loss: exit code 6 where memory or disk ran out."""
    kind = ResourceError if error.failure == FailureClass.RESOURCE else StepFailedError
    return kind(
        f"{what} lost its workers: {error}",
        str(folder),
        "",
        "see `mpq logs` for what they wrote, then run the same command again; it goes on from "
        "what was saved",
    )


def result_of(
    session: Session, step: Step, spec: PhaseSpec, outcome: Launch, began: float
) -> PhaseResult:
    """What a finished worker group left, or, recorded and raised, what it gave up on."""
    refusal = outcome.error
    if refusal is None:
        folder = session.store.step_dir(step.name)
        result = load_result(folder / "result.json")
        if result is None:
            raise CheckpointError(f"{step.name} returned but left no result in {folder}")
        measured = result.cost.wall_s + result.eval_cost.wall_s
        session.ledger.add("set-up in the workers", max(0.0, outcome.worked_s - measured))
        return result
    if isinstance(refusal, GroupLostError):
        raise lost_step(session, step, spec.phase, refusal, began) from refusal
    if isinstance(refusal, InterruptedPhaseError):
        session.stop_if_asked()
        raise refusal
    diverged = isinstance(refusal, DivergedError)
    state = State.DIVERGED if diverged else State.FAILED
    _keep_failure(session, step, spec.phase, state, str(refusal), began)
    if diverged:
        folder = session.store.step_dir(step.name)
        raise StepFailedError(f"{step.name} diverged", str(folder), str(refusal))
    raise refusal


def phase_step(
    session: Session,
    step: Step,
    spec: PhaseSpec,
    cluster: OnDemandCluster,
    *,
    phase: str,
    method: str,
) -> RunRecord:
    """A whole step of one phase: skip, run, record."""
    done = finished_record(session, step)
    if done is not None:
        return done
    began = time.perf_counter()
    folder = begin(session, step)
    # A result under this key without a record: the driver was killed just after the phase ended.
    result = load_result(folder / "result.json") or run_phase(session, step, spec, cluster)
    return keep_result(session, step, result, phase=phase, method=method, began=began)


def keep_result(
    session: Session, step: Step, result: PhaseResult, *, phase: str, method: str, began: float
) -> RunRecord:
    """Make a phase's result the step's record, verified from now on."""
    record = session.stamped(
        phase_record(
            session.config.name,
            step,
            result,
            phase=phase,
            method=method,
            seed=session.config.seed,
            outputs=_outputs(session, session.store.step_dir(step.name), result),
            wall_s=time.perf_counter() - began,
        )
    )
    session.store.finish_step(step.name, record)
    session.keep(record)
    book(session, result)
    session.say(f"{step.name}: done" + _figures(record))
    return record


def book(session: Session, result: PhaseResult) -> None:
    """Book a phase's own account of its wall time."""
    session.ledger.add("train", result.cost.wall_s)
    session.ledger.add("evaluate", result.eval_cost.wall_s)


def output_path(session: Session, record: RunRecord, role: str) -> Path:
    """Where an output of a finished step is."""
    return session.store.root / record.outputs[role]


def _outputs(session: Session, folder: Path, result: PhaseResult) -> dict[str, str]:
    named = {role: folder / file for role, file in result.outputs.items()}
    named["result"] = folder / "result.json"
    return {role: session.store.relative(path) for role, path in named.items()}


def _keep_failure(
    session: Session, step: Step, phase: str, state: State, message: str, began: float
) -> None:
    session.keep(
        failed_record(
            session.config.name,
            step,
            phase=phase,
            state=state,
            message=message,
            attempt=session.attempts(step) - 1,
            wall_s=time.perf_counter() - began,
        )
    )


def _figures(record: RunRecord) -> str:
    shown = {"eval/top1": "top-1 {:.2f} %", "search/device_s": "{:.1f} device seconds"}
    parts = [text.format(record.metrics[k]) for k, text in shown.items() if k in record.metrics]
    return f" ({', '.join(parts)})" if parts else ""
