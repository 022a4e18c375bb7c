"""Which policies stand beside a method without any importance? Uniform bits, random, the user's.

All of them stand at the limits that are trained. A method is worth something only against every
uniform mix of the same cost and against more than one random draw.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from orchestrator.cells import LimitSet, trained_limits
from orchestrator.config_schema import ExperimentConfig
from orchestrator.given_policies import given_candidates
from orchestrator.plan import Plan
from orchestrator.policies import Candidate
from solvers.accounting import accounting_named
from solvers.controls import random_policy, uniform, uniform_mixes
from solvers.policy import Policy


def made_controls(config: ExperimentConfig, plan: Plan) -> tuple[Candidate, ...]:
    """The controls that need no importance, in the order of the limits.

    ``uniform`` is the largest uniform mix that fits. With method ``uniform`` it is always there,
    unless the user's own policies are what is to be trained.
    """
    accounting = accounting_named(config.accounting)
    found: list[Candidate] = []
    for limits in trained_limits(config.search, plan.limit_sets):
        if limits.problem:
            continue
        by_method = config.method == "uniform" and not plan.given
        if "uniform" in config.controls or by_method:
            policy = uniform(plan.costs, plan.choices, limits.limits, accounting=accounting)
            found.append(_row("uniform", limits, policy))
        if "uniform_pact" in config.controls:
            policy = uniform(plan.costs, plan.choices, limits.limits, accounting=accounting)
            found.append(replace(_row("uniform_pact", limits, policy), quantizer="pact"))
        if "uniform_all" in config.controls:
            mixes = uniform_mixes(plan.costs, plan.choices, limits.limits, accounting=accounting)
            found += [
                _row(f"uniform_w{pair.weight_bits}a{pair.act_bits}", limits, policy)
                for pair, policy in mixes.items()
            ] or [_row("uniform_all", limits, None)]
        if "random" in config.controls:
            for draw in range(1, config.random_draws + 1):
                policy = random_policy(
                    plan.costs,
                    plan.choices,
                    limits.limits,
                    seed=draw_seed(config.seed, draw),
                    accounting=accounting,
                )
                found.append(_row("random" if draw == 1 else f"random-{draw}", limits, policy))
        found += given_candidates(plan.given, limits, plan.costs, plan.choices, accounting)
    return tuple(found)


def draw_seed(seed: int, draw: int) -> int:
    """Seed of a random draw: the run's own for the first, one derived by name for each other."""
    if draw == 1:
        return seed
    return int.from_bytes(hashlib.sha256(f"random/{seed}/{draw}".encode()).digest()[:8], "big")


def _row(method: str, limits: LimitSet, policy: Policy | None) -> Candidate:
    return Candidate(
        method=method,
        alpha=None,
        limit_set=limits,
        policy=policy,
        reason="" if policy else f"no {method} bits meet the limits",
    )
