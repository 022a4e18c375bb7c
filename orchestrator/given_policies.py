"""Which policies does a user bring along, and can this run train them?

A file of ``policy/1``, as ``mpq solve``, every run and ``solvers.save_policy`` write it. It is
trained like any other policy, at each set of limits that it meets.
"""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.cells import LimitSet
from orchestrator.config_schema import ExperimentConfig
from orchestrator.config_types import FULL_PRECISION_BITS, MAX_BITS, from_here
from orchestrator.policies import Candidate
from solvers.accounting import Accounting
from solvers.errors import PolicyError, SolversError
from solvers.policy import Policy, check_fits
from solvers.problem import build_problem
from solvers.storage import load_policy
from solvers.tables import BitChoices, CostTable


def given_policies(config: ExperimentConfig, costs: CostTable) -> dict[str, Policy]:
    """Name -> policy of section ``policies``, each held against the network.

    Raises:
        FormatError: a file that is no policy.
        PolicyError: made for another network, against a pin, or of widths that no quantizer has.
    """
    found = {}
    for name, path in config.policies.items():
        try:
            policy = load_policy(str(from_here(path)))
            check_fits(policy, costs)
            _check_trainable(policy, costs)
        except SolversError as error:
            raise type(error)(f"policies.{name}: {error}") from error
        found[name] = policy
    return found


def given_candidates(
    given: Mapping[str, Policy],
    limits: LimitSet,
    costs: CostTable,
    choices: BitChoices,
    accounting: Accounting,
) -> list[Candidate]:
    """A row for each policy; one that exceeds the limits says by what, and is not trained there."""
    if not given:
        return []
    problem = build_problem(costs, choices, limits.limits, importance=None, accounting=accounting)
    rows = []
    for name, policy in given.items():
        uses = problem.total_uses(policy.bits_by_name())
        over = [
            f"it uses {ceiling.shown(use):,.6g} where {ceiling.limit.text} allows "
            f"{ceiling.shown(ceiling.bound):,.6g}"
            for use, ceiling in zip(uses, problem.ceilings, strict=True)
            if use > ceiling.bound
        ]
        rows.append(
            Candidate(
                method=name, alpha=None, limit_set=limits, policy=None if over else policy,
                reason="; ".join(over), facts={"given": policy.policy_id},
            )
        )  # fmt: skip
    return rows


def _check_trainable(policy: Policy, costs: CostTable) -> None:
    for layer in costs:
        bits = policy.bits_of(layer.name)
        if layer.pinned is not None and bits != layer.pinned:
            raise PolicyError(
                f"layer {layer.name!r} has {bits.weight_bits}/{bits.act_bits} bit there and is "
                f"pinned to {layer.pinned.weight_bits}/{layer.pinned.act_bits} here; give pins "
                "that agree, or change the file"
            )
        for width in (bits.weight_bits, bits.act_bits):
            if width != FULL_PRECISION_BITS and not 2 <= width <= MAX_BITS:
                raise PolicyError(
                    f"layer {layer.name!r} has {width} bit; what can be trained is 2 to {MAX_BITS} "
                    f"bit, or {FULL_PRECISION_BITS} = full precision"
                )
