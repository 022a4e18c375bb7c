"""How does a source that yields a policy read its limits and hand over what it found?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from solvers.accounting import accounting_named
from solvers.limits import Limit, parse_limit
from solvers.policy import Policy, make_policy
from solvers.problem import Problem, build_problem
from solvers.storage import save_policy
from solvers.tables import BitChoices, CostTable, LayerBits
from trainers.baselines.calibration import Calibration
from trainers.baselines.progress import Progress
from trainers.meters import device_name
from trainers.phases import PhaseResult, PhaseSpec
from trainers.results import save_result
from trainers.source_config import PolicySearch

POLICY = "policy.json"
# Share of the tightest limit from which a policy counts as using it up, as MetaMix's repair does.
BAND = 0.99


def limits_of(search: PolicySearch) -> tuple[Limit, ...]:
    """The limits of a search.

    Raises:
        LimitError: one cannot be read.
    """
    return tuple(parse_limit(text) for text in search.limits)


def problem_of(search: PolicySearch, costs: CostTable, choices: BitChoices) -> Problem:
    """Options and uses of every decision, without an objective.

    Raises:
        LimitError: a limit does not apply to the network.
    """
    return build_problem(
        costs,
        choices,
        limits_of(search),
        importance=None,
        accounting=accounting_named(search.accounting),
    )


def reached_share(problem: Problem, bits_by_name: Mapping[str, LayerBits]) -> float:
    """Use over limit of a policy, the largest of the limits."""
    uses = problem.total_uses(bits_by_name)
    return max(use / c.bound for use, c in zip(uses, problem.ceilings, strict=True))


def finish_policy(
    spec: PhaseSpec,
    calibration: Calibration,
    progress: Progress,
    found: Mapping[str, LayerBits] | None,
    *,
    metrics: Mapping[str, float] | None = None,
    facts: Mapping[str, Any] | None = None,
    reason: str = "",
) -> PhaseResult:
    """Write policy and result of a policy source; every rank must call it.

    Args:
        spec: the phase; ``config`` is a ``PolicySearch``.
        calibration: its network and images.
        progress: what it kept; removed once the outputs are written.
        found: bits of every layer; None when nothing fits.
        metrics: numbers beside the cost.
        facts: what a reader must know.
        reason: why nothing was found.
    """
    search: PolicySearch = spec.config
    assert spec.choices is not None  # ``calibrate`` refuses it otherwise
    policy, shares = None, {}
    about: dict[str, Any] = {"reason": reason, "in_band": False}
    if found is not None:
        policy = _policy(spec, calibration.costs, found)
        problem = problem_of(search, calibration.costs, spec.choices)
        shares = {"reached_share": reached_share(problem, found)}
        fills = BAND <= shares["reached_share"] <= 1.0
        about = {"policy_id": policy.policy_id, "in_band": fills}
    result = PhaseResult(
        phase=spec.phase,
        outputs={"policy": POLICY} if policy is not None else {},
        metrics={**shares, **(metrics or {})},
        cost=calibration.meter.total(),
        device=device_name(calibration.context.device),
        facts={
            "data_fingerprint": calibration.data.fingerprint,
            "num_images": len(calibration.indices),
            "limits": list(search.limits),
            "accounting": search.accounting,
            "input_ranges": dict(calibration.network.kinds),
            **about,
            **(facts or {}),
        },
    )
    if calibration.context.rank == 0:
        if policy is not None:
            save_policy(calibration.context.step_dir / POLICY, policy)
        save_result(calibration.context.step_dir / "result.json", result)
        progress.clear()
    return result


def _policy(spec: PhaseSpec, costs: CostTable, bits: Mapping[str, LayerBits]) -> Policy:
    method = spec.phase.rpartition(".")[2]
    return make_policy(costs, bits, method, accounting_named(spec.config.accounting))
