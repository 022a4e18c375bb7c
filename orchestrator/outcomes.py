"""How does what happened become a record? Pure functions from results to ``RunRecord``.

The same metric keys for every method: a search costs ``search/*`` whatever it trains to find a
policy, and ``train/*`` is what training at the chosen bits costs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from orchestrator import records as keys
from orchestrator.plan import Plan, Step
from orchestrator.policies import Candidate
from orchestrator.records import RunRecord, State
from solvers.certificate import SolveStatus
from solvers.policy import Policy
from trainers.phases import Cost, PhaseResult

_STATES = {
    SolveStatus.PROVEN_OPTIMAL: State.DONE,
    SolveStatus.FEASIBLE_UNPROVEN: State.UNPROVEN,
    SolveStatus.INFEASIBLE: State.INFEASIBLE,
    SolveStatus.NO_SOLUTION_IN_TIME: State.TIMEOUT,
}


def child_key(step: Step, name: str) -> str:
    """Key of a piece of a step that has a record of its own."""
    return hashlib.sha256(f"{step.key}/{name}".encode()).hexdigest()[:24]


def training_key(step: Step, row: Candidate) -> str:
    """Key of one policy's training: its bits, what it takes over, and what the step hashes.

    Who asked for the policy is not in it, so runs with other searches share the training.
    """
    start = f"@{row.start_key}:{'+'.join(sorted(row.start))}" if row.start else ""
    return child_key(step, f"{row.entry}{start}")


def costs_record(run: str, step: Step, plan: Plan, output: str) -> RunRecord:
    """The traced cost table."""
    return RunRecord(
        run=run,
        step=step.name,
        key=step.key,
        phase="costs",
        method="any",
        state=State.DONE,
        outputs={"costs": output},
        facts={
            "model": plan.costs.model,
            "fingerprint": plan.costs.fingerprint,
            "layers": list(plan.costs.names),
            "pinned": [layer.name for layer in plan.costs if layer.pinned is not None],
        },
    )


def phase_record(
    run: str,
    step: Step,
    result: PhaseResult,
    *,
    phase: str,
    method: str,
    seed: int,
    outputs: Mapping[str, str],
    wall_s: float,
) -> RunRecord:
    """A finished training phase: ``pretrain`` measures, a search phase costs.

    Evidence leads to no policy: its numbers and its costs stand apart from any search's.
    """
    metrics = dict(_eval_metrics(result))
    if phase == "pretrain":
        metrics |= _train_cost(result.cost)
    elif phase == keys.SOURCE:
        metrics = {f"{keys.SOURCE}/{name}": value for name, value in result.metrics.items()}
        metrics |= _search_cost(result)
    elif phase == keys.EVIDENCE:
        metrics = {f"{keys.EVIDENCE}/{name}": value for name, value in result.metrics.items()}
    else:
        metrics |= _search_cost(result)
    return RunRecord(
        run=run,
        step=step.name,
        key=step.key,
        phase=phase,
        method=method,
        state=State.DONE,
        seed=seed,
        metrics=metrics,
        costs=_meters(result),
        device=result.device,
        outputs=outputs,
        facts=dict(result.facts),
        wall_s=wall_s,
    )


def sweep_record(
    run: str, step: Step, *, outputs: Mapping[str, str], facts: Mapping[str, Any], wall_s: float,
    solve_wall_s: float, solve_cpu_s: float,
) -> RunRecord:  # fmt: skip
    """The sweep as a whole: how many solves, how many trials, what they cost."""
    return RunRecord(
        run=run,
        step=step.name,
        key=step.key,
        phase="sweep",
        method="limpq",
        state=State.DONE,
        metrics={keys.SOLVE_WALL_S: solve_wall_s},
        costs={"solve_wall_s": solve_wall_s, "solve_cpu_s": solve_cpu_s},
        outputs=outputs,
        facts=facts,
        wall_s=wall_s,
    )


def candidate_record(
    run: str, step: Step, candidate: Candidate, *, seed: int, policy_file: str
) -> RunRecord:
    """One row of the table: what a method proposes at one set of limits, or why it cannot."""
    limits, policy, solved = candidate.limit_set, candidate.policy, candidate.solved
    facts: dict[str, Any] = {
        "limit_index": limits.index,
        "bounds": dict(limits.bounds),
        "smallest": dict(limits.smallest),
        "largest": dict(limits.largest),
        "resources": dict(limits.resources),
        "layers": dict(limits.layers),
        "training": candidate.entry,
        **candidate.facts,
    }
    metrics = {**candidate.search}
    if policy is not None:
        metrics |= policy_metrics(policy)
    missing = State.BLOCKED if candidate.failed else State.INFEASIBLE
    state = State.DONE if policy is not None else missing
    if solved is not None:
        state = _STATES[solved.status]
        metrics[keys.SOLVE_WALL_S] = solved.wall_s
        facts |= {
            "solver": solved.solver,
            "objective": solved.objective,
            "bound": solved.bound,
            "uses": list(solved.uses),
        }
    return RunRecord(
        run=run,
        step=f"sweep/{candidate.name}",
        key=child_key(step, candidate.name),
        phase="solve",
        method=candidate.method,
        state=state,
        policy_id=None if policy is None else policy.policy_id,
        alpha=candidate.alpha,
        limits=dict(limits.texts),
        seed=seed,
        metrics=metrics,
        outputs={} if policy is None else {"policy": policy_file},
        facts=facts,
        message=candidate.reason,
    )


def training_record(
    run: str,
    step: Step,
    row: Candidate,
    result: PhaseResult,
    *,
    seed: int,
    asked_by: Sequence[str],
    outputs: Mapping[str, str],
) -> RunRecord:
    """One trained policy, diverged ones included, with the search behind its first row.

    ``row.entry`` tells apart the same bits from different starts.
    """
    diverged = result.facts.get("diverged")
    assert row.policy is not None  # rows without one are never trained
    assert row.entry is not None
    return RunRecord(
        run=run,
        step=f"{step.name}/{row.entry}",
        key=training_key(step, row),
        phase="train",
        method=row.method,
        state=State.DIVERGED if diverged else State.DONE,
        policy_id=row.policy.policy_id,
        alpha=row.alpha,
        limits=dict(row.limit_set.texts),
        seed=seed,
        metrics={
            **row.search,
            **policy_metrics(row.policy),
            **_eval_metrics(result),
            **_train_cost(result.cost),
        },
        costs=_meters(result),
        device=result.device,
        outputs=outputs,
        facts={**result.facts, "asked_by": list(asked_by), "training": row.entry},
        message=str(diverged or ""),
        wall_s=result.cost.wall_s + result.eval_cost.wall_s,
    )


def search_metrics(record: RunRecord) -> dict[str, float]:
    """What a search phase cost, by the common keys, to stand on what it led to."""
    return {name: value for name, value in record.metrics.items() if name.startswith("search/")}


def failed_record(
    run: str, step: Step, *, phase: str, state: State, message: str, attempt: int, wall_s: float
) -> RunRecord:
    """A step that gave no result."""
    return RunRecord(
        run=run,
        step=step.name,
        key=step.key,
        phase=phase,
        method="any",
        state=state,
        message=message,
        attempt=attempt,
        wall_s=wall_s,
    )


def policy_metrics(policy: Policy) -> dict[str, float]:
    """What a policy costs, by the common keys."""
    cost = policy.cost
    return {
        keys.BITOPS_G: cost.bitops / 1e9,
        keys.WEIGHT_MIB: cost.size_mib,
        keys.MEAN_WEIGHT_BITS: cost.mean_weight_bits,
        keys.MEAN_ACT_BITS: cost.mean_act_bits,
    }


def _eval_metrics(result: PhaseResult) -> dict[str, float]:
    names = {"top1": keys.EVAL_TOP1, "top5": keys.EVAL_TOP5, "loss": keys.EVAL_LOSS}
    return {key: result.metrics[name] for name, key in names.items() if name in result.metrics}


def _train_cost(cost: Cost) -> dict[str, float]:
    return {keys.TRAIN_DEVICE_S: cost.device_s, keys.TRAIN_WALL_S: cost.wall_s}


def _search_cost(result: PhaseResult) -> dict[str, float]:
    cost = result.cost
    spent = {
        keys.SEARCH_DEVICE_S: cost.device_s,
        keys.SEARCH_WALL_S: cost.wall_s,
        keys.SEARCH_IMAGES: float(cost.images),
        keys.SEARCH_PASSES: float(cost.forward_passes + cost.backward_passes),
    }
    if cost.hvps:
        spent[keys.SEARCH_HVPS] = float(cost.hvps)
    if "evaluations" in result.metrics:
        spent[keys.SEARCH_EVALUATIONS] = float(result.metrics["evaluations"])
    return spent


def _meters(result: PhaseResult) -> dict[str, float]:
    spent = {name: float(value) for name, value in asdict(result.cost).items()}
    measured = {f"eval_{name}": float(value) for name, value in asdict(result.eval_cost).items()}
    return {**spent, **measured}
