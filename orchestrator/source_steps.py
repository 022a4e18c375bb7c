"""How do the sources of a run find importance or policies, and what becomes of one that fails?

A source that diverges, loses its workers or cannot work with the network is a row of the table
that says so; the other methods go on without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from orchestrator.cells import trained_limits
from orchestrator.cluster import OnDemandCluster
from orchestrator.outcomes import candidate_record, search_metrics
from orchestrator.parallel_phases import phase_steps
from orchestrator.phase_step import StepFailedError, finished_record, output_path
from orchestrator.plan import Plan
from orchestrator.policies import Candidate, unmet_candidates
from orchestrator.records import SOURCE, RunRecord
from orchestrator.session import Session
from orchestrator.source_parts import PROVIDERS, SourcePart, source_parts
from orchestrator.specs import phase_spec
from orchestrator.sweep_step import ImportanceFile, keep_rows
from solvers.errors import SolversError
from solvers.storage import load_policy
from trainers.errors import InterruptedPhaseError, TrainersError


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceOutcome:
    """What the sources found.

    Attributes:
        importance: tables by source name, for the solver.
        rows: a row for each set of limits of a source that yields policies.
        failed: why a source that yields importance has none, by name.
    """

    importance: Mapping[str, ImportanceFile] = field(default_factory=dict)
    rows: tuple[Candidate, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)


def source_steps(
    session: Session,
    plan: Plan,
    providers: Mapping[str, RunRecord],
    cluster: OnDemandCluster,
) -> SourceOutcome:
    """Run every source that is asked for, one after another.

    Args:
        session: this attempt.
        plan: the run.
        providers: records of the steps that give inputs, by step name.
        cluster: where the workers run.

    Raises:
        InterruptedRunError: a signal asked to stop.
    """
    importance: dict[str, ImportanceFile] = {}
    failed: dict[str, str] = {}
    rows: list[Candidate] = []
    parts = source_parts(session.config, plan.limit_sets)
    for _, group in groupby(parts, key=lambda part: part.source.name):
        for part, outcome in _tried(session, plan, list(group), providers, cluster):
            source = part.source
            steps = (part.name, *(("indicators",) if source.needs_indicators else ()))
            if part.limits is not None:
                row = _row(session, part, outcome, steps, providers)
                _keep_row(session, plan, part, row, outcome)
                rows.append(row)
            elif isinstance(outcome, str):
                failed[source.name] = outcome
            else:
                importance[source.name] = ImportanceFile(
                    path=output_path(session, outcome, "importance"),
                    search=_search(outcome, steps, providers),
                    steps=steps,
                )
    unmet = tuple(
        row
        for source, _ in session.config.asked_sources
        if source.yields == "policy"
        for row in unmet_candidates(
            source.name, trained_limits(session.config.search, plan.limit_sets)
        )
    )
    keep_rows(session, plan.step("costs"), unmet)
    return SourceOutcome(importance=importance, rows=tuple(rows), failed=failed)


def _tried(
    session: Session,
    plan: Plan,
    parts: Sequence[SourcePart],
    providers: Mapping[str, RunRecord],
    cluster: OnDemandCluster,
) -> list[tuple[SourcePart, RunRecord | str]]:
    """Each step of one source with its record, or why there is none."""
    work = []
    for part in parts:
        inputs = {
            role: str(output_path(session, providers[step], output))
            for role, (step, output) in ((role, PROVIDERS[role]) for role in part.roles)
        }
        task = part.task(session.config.accounting)
        spec = phase_spec(session.config, part.source.phase, task, inputs, plan.choices)
        work.append((plan.step(part.name), spec))
    name = parts[0].source.name
    try:
        records = phase_steps(session, work, cluster, phase=SOURCE, method=name)
        return list(zip(parts, records, strict=True))
    except InterruptedPhaseError:
        raise
    except (StepFailedError, TrainersError, SolversError) as error:
        session.say(f"{name}: {error}")
        told = [finished_record(session, step) or _complaint(session, step.key) or str(error)
                for step, _ in work]  # fmt: skip
        return list(zip(parts, told, strict=True))


def _complaint(session: Session, key: str) -> str:
    """What the newest record of a step that failed says."""
    messages = [r.message for r in session.journal.records() if r.key == key]
    return messages[-1] if messages else ""


def _row(
    session: Session,
    part: SourcePart,
    outcome: RunRecord | str,
    steps: tuple[str, ...],
    providers: Mapping[str, RunRecord],
) -> Candidate:
    """What a source proposes for one set of limits."""
    assert part.limits is not None
    if isinstance(outcome, str):
        return Candidate(
            method=part.source.name, alpha=None, limit_set=part.limits, policy=None,
            failed=True, reason=outcome,
        )  # fmt: skip
    found = outcome.outputs.get("policy")
    share = outcome.metrics.get(f"{SOURCE}/reached_share")
    is_off = found is not None and not outcome.facts.get("in_band", True) and share is not None
    return Candidate(
        method=part.source.name,
        alpha=None,
        limit_set=part.limits,
        policy=None if found is None else load_policy(session.store.root / found),
        search=_search(outcome, steps, providers),
        facts={"search_steps": list(steps)},
        reason=f"uses {100 * (share or 0.0):.1f} % of its limit"
        if is_off
        else str(outcome.facts.get("reason", "")),
    )


def _keep_row(
    session: Session, plan: Plan, part: SourcePart, row: Candidate, outcome: RunRecord | str
) -> None:
    policy_file = "" if isinstance(outcome, str) else outcome.outputs.get("policy", "")
    record = candidate_record(
        session.config.name,
        plan.step(part.name),
        row,
        seed=session.config.seed,
        policy_file=policy_file,
    )
    session.keep(session.stamped(record))


def _search(
    record: RunRecord, steps: tuple[str, ...], providers: Mapping[str, RunRecord]
) -> dict[str, float]:
    """Cost of a source, the joint training it starts from included."""
    total = search_metrics(record)
    for step in steps[1:]:
        for name, value in search_metrics(providers[step]).items():
            total[name] = total.get(name, 0.0) + value
    return total
