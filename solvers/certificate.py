"""What is known about an answer, and by whom?

A certificate travels with its policy: what was asked, what the solver proved, what each limit
has left, and what a little more of it would buy.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class SolveStatus(Enum):
    """How a solve ended. Infeasible is a result: sweeps cross that edge on purpose."""

    PROVEN_OPTIMAL = "PROVEN_OPTIMAL"
    FEASIBLE_UNPROVEN = "FEASIBLE_UNPROVEN"
    INFEASIBLE = "INFEASIBLE"
    NO_SOLUTION_IN_TIME = "NO_SOLUTION_IN_TIME"

    @property
    def has_policy(self) -> bool:
        """A policy may exist only in the first two."""
        return self in (SolveStatus.PROVEN_OPTIMAL, SolveStatus.FEASIBLE_UNPROVEN)


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitUse:
    """One limit and one policy, re-counted in integers from the policy's bits.

    Attributes:
        kind: the limit's kind.
        limit: the limit as a person writes it.
        resource: the integer counted (``bitops``, ``size_bits``, ``latency_ps``, ...).
        bound: the most allowed.
        use: what the policy uses.
        shown_bound: the bound in the unit the limit was written in.
        shown_use: the use in that unit.
        binding: some single change of one unit would lower the objective but breaks this limit.
        price: objective that 1 % more of this limit buys; None where it was not asked for or the
            relaxation does not give one.
    """

    kind: str
    limit: str
    resource: str
    bound: int
    use: int
    shown_bound: float
    shown_use: float
    binding: bool = False
    price: float | None = None

    @property
    def slack(self) -> int:
        """What is left, never negative in a policy that was handed out."""
        return self.bound - self.use


@dataclass(frozen=True, kw_only=True, slots=True)
class Certificate:
    """What was proven about a policy.

    Attributes:
        status: one of the two that allow a policy.
        objective: summed importance of the policy at ``alpha``.
        bound: no policy within the limits has a smaller objective than this.
        gap: (objective - bound) / max(|objective|, tiny); 0 when proven.
        alpha: weight of the weight indicators.
        repair: rule for indicators that rise with bits.
        uses: every limit, in the order asked.
        price_method: ``relaxed`` (multipliers of the linear relaxation), ``resolved`` (solved
            again with 1 % more) or ``none``.
        solver: ``highs``, ``cbc``, ``front``, ``exhaustive`` or ``control``.
        solver_version: version of that backend, and who proved the answer if another did.
        wall_s: wall seconds of the solve.
        cpu_s: CPU seconds of the solve, child processes included.
    """

    status: SolveStatus
    objective: float
    bound: float
    gap: float
    alpha: float
    repair: str
    uses: tuple[LimitUse, ...]
    price_method: str
    solver: str
    solver_version: str
    wall_s: float
    cpu_s: float
