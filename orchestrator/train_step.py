"""How are the distinct policies trained, each with a record of its own?

All of them go to one worker group as a batch. What is finished when the group or the driver dies
stays finished: its result is in its folder, and the batch is launched again without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.cluster import Resources
from orchestrator.outcomes import child_key, training_record
from orchestrator.phase_step import begin, book, run_phase
from orchestrator.plan import Plan, Step
from orchestrator.policies import Candidate, to_train
from orchestrator.records import EVAL_TOP1, RunRecord
from orchestrator.session import Session
from solvers.policy import Policy
from solvers.storage import save_policy
from trainers.phases import PhaseSpec
from trainers.results import load_result


def train_step(
    session: Session,
    plan: Plan,
    step: Step,
    spec: PhaseSpec,
    ask: Resources,
    candidates: Sequence[Candidate],
) -> tuple[RunRecord, ...]:
    """Train every distinct policy that a row asks for; returns their records.

    Args:
        session: this attempt.
        plan: the run.
        step: the training.
        spec: the phase without its policies.
        ask: workers.
        candidates: the rows.
    """
    policies = to_train(session.config, plan, candidates)
    records: dict[str, RunRecord] = {}
    missing = []
    for policy in policies:
        verdict = session.store.finished(f"{step.name}/{policy.policy_id}", _key(step, policy))
        if verdict.record is not None:
            session.keep(verdict.record)
            records[policy.policy_id] = verdict.record
        else:
            missing.append(policy)
    if records:
        session.say(f"{step.name}: {len(records)} of {len(policies)} policies trained before")
    if not missing:
        return tuple(records.values())
    folder = begin(session, step)

    def keep_finished() -> None:
        """Record every policy whose result has appeared; called while the group works."""
        for policy in missing:
            if policy.policy_id not in records:
                record = _record_of(session, step, policy, folder, candidates)
                if record is not None:
                    records[policy.policy_id] = record

    keep_finished()  # a killed driver may have left results without records
    waiting = [p for p in missing if p.policy_id not in records]
    if waiting:
        roles = {}
        for policy in waiting:
            path = folder / policy.policy_id / "policy.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_policy(path, policy)
            roles[f"policy:{policy.policy_id}"] = str(path)
        (folder / "result.json").unlink(missing_ok=True)
        spec = replace(spec, inputs={**spec.inputs, **roles})
        book(session, run_phase(session, step, spec, ask, tick=keep_finished))
        keep_finished()
    return tuple(records[p.policy_id] for p in policies)


def _record_of(
    session: Session, step: Step, policy: Policy, folder: Path, candidates: Sequence[Candidate]
) -> RunRecord | None:
    """The record of a policy whose result is there, None while it is not."""
    result = load_result(folder / policy.policy_id / "result.json")
    if result is None:
        return None
    asked_by = [c.name for c in candidates if c.policy and c.policy.policy_id == policy.policy_id]
    outputs = {role: folder / policy.policy_id / file for role, file in result.outputs.items()}
    outputs["policy"] = folder / policy.policy_id / "policy.json"
    record = training_record(
        session.config.name,
        step,
        policy,
        result,
        seed=session.config.seed,
        asked_by=asked_by,
        outputs={role: session.store.relative(path) for role, path in outputs.items()},
    )
    session.store.finish_step(f"{step.name}/{policy.policy_id}", record)
    session.keep(record)
    top1 = record.metrics.get(EVAL_TOP1)
    shown = "diverged" if top1 is None else f"top-1 {top1:.2f} %"
    session.say(f"{step.name}: policy {policy.policy_id} ({asked_by[0]}): {shown}")
    return record


def _key(step: Step, policy: Policy) -> str:
    return child_key(step, policy.policy_id)
