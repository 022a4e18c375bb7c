"""How are the distinct policies trained, each with a record of its own?

All of them go to one worker group as a batch. What is finished when the group or the driver dies
stays finished: its result is in its folder, and the batch is launched again without it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.cluster import OnDemandCluster
from orchestrator.outcomes import training_key, training_record
from orchestrator.phase_step import begin, book, run_phase
from orchestrator.plan import Plan, Step
from orchestrator.policies import Candidate, to_train
from orchestrator.records import EVAL_TOP1, RunRecord, State
from orchestrator.reuse import take_over_files
from orchestrator.session import Session
from solvers.storage import save_policy
from trainers.phases import PhaseSpec
from trainers.results import load_result


def train_step(
    session: Session,
    plan: Plan,
    step: Step,
    spec: PhaseSpec,
    cluster: OnDemandCluster,
    candidates: Sequence[Candidate],
) -> tuple[RunRecord, ...]:
    """Train every distinct policy that a row asks for; returns their records.

    Args:
        session: this attempt.
        plan: the run.
        step: the training.
        spec: the phase without its policies.
        cluster: where the workers run.
        candidates: the rows.
    """
    rows = to_train(session.config, plan, candidates)
    records: dict[str, RunRecord] = {}
    missing = []
    for row in rows:
        entry = _entry(row)
        verdict = session.store.finished(f"{step.name}/{entry}", training_key(step, row))
        if verdict.record is not None:
            session.keep(verdict.record)
            records[entry] = verdict.record
        else:
            missing.append(row)
            if verdict.damaged:
                session.say(f"{step.name}/{entry}: done again, because {verdict.reason}")
                session.store.before_write()
                shutil.rmtree(session.store.step_dir(f"{step.name}/{entry}"))
    if records:
        session.say(f"{step.name}: {len(records)} of {len(rows)} policies trained before")
    if not missing:
        _end_failure(session, step)
        return tuple(records.values())
    folder = begin(session, step)
    donors: dict[str, str] = {}

    def keep_finished() -> None:
        """Record every training whose result has appeared; called while the group works."""
        for row in missing:
            if _entry(row) not in records:
                donor = donors.get(_entry(row), "")
                record = _record_of(session, step, row, folder, candidates, donor)
                if record is not None:
                    records[_entry(row)] = record

    for row in missing:
        piece = f"{step.name}/{_entry(row)}"
        donor = take_over_files(session.store, session.donors, piece, training_key(step, row))
        if donor:
            donors[_entry(row)] = donor
            session.say(f"{piece}: taken over from run {donor}, outputs verified")
    keep_finished()  # a killed driver may have left results without records
    waiting = [row for row in missing if _entry(row) not in records]
    if waiting:
        (folder / "result.json").unlink(missing_ok=True)
        spec = replace(spec, inputs={**spec.inputs, **_roles(waiting, folder)})
        book(session, run_phase(session, step, spec, cluster, tick=keep_finished))
        keep_finished()
    _end_failure(session, step)
    return tuple(records[_entry(row)] for row in rows)


def _end_failure(session: Session, step: Step) -> None:
    """Let a failure of the step as a whole count no more: each policy has a record of its own.

    Without it a run that lost its workers once would count as incomplete for ever.
    """
    if any(record.key == step.key for record in session.journal.records()):
        session.keep(
            session.stamped(
                RunRecord(
                    run=session.config.name, step=step.name, key=step.key, phase=step.action,
                    method="any", state=State.DONE,
                )
            )
        )  # fmt: skip


def _roles(waiting: Sequence[Candidate], folder: Path) -> dict[str, str]:
    """The batch as inputs of the phase, policy files written."""
    roles = {}
    for row in waiting:
        assert row.policy is not None  # rows without one are never trained
        path = folder / _entry(row) / "policy.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_policy(path, row.policy)
        role = "policy" if row.quantizer is None else f"policy_{row.quantizer}"
        roles[f"{role}:{_entry(row)}"] = str(path)
        roles |= {f"{role}:{_entry(row)}": start for role, start in row.start.items()}
    return roles


def _record_of(
    session: Session,
    step: Step,
    row: Candidate,
    folder: Path,
    candidates: Sequence[Candidate],
    donor: str,
) -> RunRecord | None:
    """The record of a training whose result is there, None while it is not."""
    entry = _entry(row)
    result = load_result(folder / entry / "result.json")
    if result is None or row.policy is None:
        return None
    asked_by = [c.name for c in candidates if c.entry == entry]
    outputs = {role: folder / entry / file for role, file in result.outputs.items()}
    outputs["policy"] = folder / entry / "policy.json"
    outputs["result"] = folder / entry / "result.json"
    record = session.stamped(
        training_record(
            session.config.name,
            step,
            row,
            result,
            seed=session.config.seed,
            asked_by=asked_by,
            outputs={role: session.store.relative(path) for role, path in outputs.items()},
        )
    )
    if donor:
        record = replace(record, facts={**record.facts, "reused_from": donor})
    session.store.finish_step(f"{step.name}/{entry}", record)
    session.keep(record)
    top1 = record.metrics.get(EVAL_TOP1)
    shown = "diverged" if top1 is None else f"top-1 {top1:.2f} %"
    session.say(f"{step.name}: policy {row.policy.policy_id} ({asked_by[0]}): {shown}")
    return record


def _entry(row: Candidate) -> str:
    assert row.entry is not None  # ``to_train`` gives only rows with a policy
    return row.entry
