"""Which policies are nearly as good? The best ones within x % of the optimum, in order.

A proxy is never exact; policies whose summed importance differs by half a percent are equals, and
training a few of them shows how much the ranking is worth. Each next one is the optimum with all
earlier ones excluded, so that none is missed.
"""

from __future__ import annotations

from solvers.certificate import SolveStatus
from solvers.problem import build_problem
from solvers.result import SolveRequest, SolveResult
from solvers.search import search
from solvers.solve import Stopwatch, result_of


def near_optimal(
    request: SolveRequest, *, within_percent: float, most: int = 20
) -> tuple[SolveResult, ...]:
    """Policies within ``within_percent`` of the least objective, best first, at most ``most``.

    Empty if nothing fits or nothing was found in time; it ends early at the first policy that the
    backend cannot prove to be the next one.

    Raises:
        SolverFailedError: the backend broke.
    """
    problem = build_problem(
        request.costs,
        request.choices,
        request.limits,
        importance=request.importance,
        alpha=request.alpha,
        accounting=request.accounting,
        repair=request.repair,
    )
    pool: list[SolveResult] = []
    taken: list[tuple[int, ...]] = []
    ceiling = float("inf")
    while len(pool) < most:
        stopwatch = Stopwatch()
        found = search(
            problem, solver=request.solver, time_limit_s=request.time_limit_s, excluded=taken
        )
        if found.picks is None or found.status is not SolveStatus.PROVEN_OPTIMAL:
            break
        objective = problem.objective(found.picks)
        if not pool:
            ceiling = objective * (1 + within_percent / 100)
        if objective > ceiling:
            break
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
    return tuple(pool)
