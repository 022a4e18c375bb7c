"""Which policies are nearly as good? The best ones within x % of the optimum, in order.

A proxy is never exact; policies whose summed importance differs by half a percent are equals, and
training a few of them shows how much the ranking is worth. Each next one is the optimum with all
earlier ones excluded, so that none is missed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from solvers.certificate import SolveStatus
from solvers.errors import LimitError
from solvers.explain import explain
from solvers.infeasibility import Infeasibility
from solvers.problem import problem_of
from solvers.result import SolveRequest, SolveResult
from solvers.search import search
from solvers.solve import Stopwatch, result_of

# complete: no other policy is within reach of the optimum; full: as many as were asked for, there
# may be more; unproven: the backend could not prove the next one; infeasible: nothing fits.
PoolEnd = Literal["complete", "full", "unproven", "infeasible"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """Policies near the optimum.

    Attributes:
        policies: best first, each proven to be the next best.
        end: why there are no more.
        infeasibility: why nothing fits.
    """

    policies: tuple[SolveResult, ...]
    end: PoolEnd
    infeasibility: Infeasibility | None = None


def near_optimal(request: SolveRequest, *, within_percent: float, most: int = 20) -> Pool:
    """Policies within ``within_percent`` of the least objective, best first, at most ``most``.

    The request's time limit holds for each of them.

    Raises:
        LimitError: a negative distance, or fewer than one policy.
        SolverFailedError: the backend broke.
    """
    if not math.isfinite(within_percent) or within_percent < 0:
        raise LimitError(f"pool: within {within_percent!r} % of the optimum; give 0 or more")
    if most < 1:
        raise LimitError(f"pool: at most {most} policies; give 1 or more")
    problem = problem_of(request)
    pool: list[SolveResult] = []
    taken: list[tuple[int, ...]] = []
    ceiling = math.inf
    while len(pool) < most:
        stopwatch = Stopwatch()
        found = search(
            problem, solver=request.solver, time_limit_s=request.time_limit_s, excluded=taken
        )
        if found.status is SolveStatus.INFEASIBLE:
            if pool:
                return Pool(policies=tuple(pool), end="complete")
            why = explain(problem, solver=request.solver, time_limit_s=request.time_limit_s)
            return Pool(policies=(), end="infeasible", infeasibility=why)
        if found.picks is None or found.status is not SolveStatus.PROVEN_OPTIMAL:
            return Pool(policies=tuple(pool), end="unproven")
        objective = problem.objective(found.picks)
        if not pool:
            ceiling = objective * (1 + within_percent / 100)
        if objective > ceiling:
            return Pool(policies=tuple(pool), end="complete")
        taken.append(found.picks)
        pool.append(
            result_of(
                problem,
                found.picks,
                status=found.status,
                bound=objective,
                prices=[None] * len(problem.ceilings),
                price_method="none",
                alpha=request.alpha,
                source="pool",
                solver=found.solver,
                solver_version=found.solver_version,
                read_clock=stopwatch.read,
            )
        )
    return Pool(policies=tuple(pool), end="full")
