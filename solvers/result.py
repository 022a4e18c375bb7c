"""What is asked of a solve, and what comes back?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from solvers.accounting import STANDARD, Accounting
from solvers.certificate import LimitUse, SolveStatus
from solvers.errors import LimitError, SolverFailedError, TableError
from solvers.importance import RepairRule, Violation
from solvers.infeasibility import Infeasibility
from solvers.limits import Limit
from solvers.policy import Policy
from solvers.tables import BitChoices, CostTable, ImportanceTable

SolverName = Literal["auto", "highs", "cbc"]
PriceMethod = Literal["relaxed", "resolved", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SolveRequest:
    """Everything a solver may know.

    Attributes:
        costs: the network.
        importance: learned indicators.
        choices: candidate bits.
        limits: what must not be exceeded, all at once; at least one.
        alpha: weight of the weight indicators in the objective.
        accounting: how costs are counted.
        repair: rule for indicators that rise with bits.
        solver: ``auto`` = HiGHS for one limit; CBC for several, proven by the list search.
        time_limit_s: seconds the backend may take.
        prices: ``relaxed`` (nearly free), ``resolved`` (one more solve a limit) or ``none``.
        explain: on infeasible, find out why (more solves where limits clash together).
    """

    costs: CostTable
    importance: ImportanceTable
    choices: BitChoices
    limits: tuple[Limit, ...]
    alpha: float
    accounting: Accounting = STANDARD
    repair: RepairRule = "isotonic"
    solver: SolverName = "auto"
    time_limit_s: float = 60.0
    prices: PriceMethod = "relaxed"
    explain: bool = True

    def __post_init__(self) -> None:
        if not self.limits:
            raise LimitError("no limit given; name at least one, e.g. bitops=23.07G")
        if self.solver not in ("auto", "highs", "cbc"):
            raise LimitError(f"solver {self.solver!r}: unknown; use auto, highs or cbc")
        if not math.isfinite(self.time_limit_s) or self.time_limit_s <= 0:
            raise LimitError(f"time limit is {self.time_limit_s!r} s; it must be above 0")
        if not isinstance(self.limits, tuple):
            raise TableError("limits of a request must be a tuple")


@dataclass(frozen=True, kw_only=True, slots=True)
class SolveResult:
    """How a solve ended.

    Attributes:
        status: one of four.
        policy: exists exactly when the status allows it; carries the certificate.
        objective: summed importance of the policy.
        bound: proven lower bound of the objective, where there is one.
        gap: relative distance of the two.
        uses: every limit re-counted on the policy, in the order asked.
        violations: indicators that rise with bits, and what the rule made of them.
        infeasibility: why nothing fits.
        solver: backend that answered.
        solver_version: its version.
        wall_s: wall seconds.
        cpu_s: CPU seconds, child processes included.
    """

    status: SolveStatus
    policy: Policy | None = None
    objective: float | None = None
    bound: float | None = None
    gap: float | None = None
    uses: tuple[LimitUse, ...] = ()
    violations: tuple[Violation, ...] = ()
    infeasibility: Infeasibility | None = None
    solver: str
    solver_version: str
    wall_s: float
    cpu_s: float

    def __post_init__(self) -> None:
        if self.status.has_policy != (self.policy is not None):
            raise SolverFailedError(
                f"{self.solver}: status {self.status.value} and a policy do not go together"
            )
        for use in self.uses:
            if use.slack < 0:
                raise SolverFailedError(
                    f"{self.solver}: the policy uses {use.use} of {use.limit}, "
                    f"{-use.slack} more than allowed"
                )
