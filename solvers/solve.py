"""Which policy has the least summed importance within the limits? Equation 4, with a certificate.

Ties are broken in a fixed order, so that the same tables give the same policy:

1. an option that equals another one of its unit in objective and uses more is never taken;
2. where units are interchangeable (same options, objectives and uses), the earlier one gets the
   wider option;
3. under several limits, where the list search proves: the policy that uses less of the first
   limit, then of the second;
4. what is left is decided by the backend, run on one thread from a fixed seed over variables in
   execution order: the same versions answer the same.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from solvers.certificate import Certificate, LimitUse, SolveStatus
from solvers.explain import explain
from solvers.infeasibility import Infeasibility
from solvers.peaks import moments_of, peak_of
from solvers.policy import Policy, make_policy
from solvers.problem import Problem, problem_of
from solvers.result import PriceMethod, SolveRequest, SolveResult
from solvers.search import Found, search


def solve(request: SolveRequest) -> SolveResult:
    """Solve one request.

    Raises:
        TableError: the tables contradict themselves or each other.
        LimitError: a limit does not apply to the network.
        SolverFailedError: the backend broke.
    """
    started = Stopwatch()
    problem = problem_of(request)
    return solve_problem(
        problem,
        alpha=request.alpha,
        solver=request.solver,
        time_limit_s=request.time_limit_s,
        prices=request.prices,
        explain_infeasible=request.explain,
        stopwatch=started,
    )


def changed_by_repair(request: SolveRequest, result: SolveResult) -> tuple[str, ...] | None:
    """Layers that would get other bits if the learned indicators were kept as they are.

    Returns:
        Their names, none without violations; None where there is nothing to compare: no policy
        with the rule, or none without it within the time limit.

    Raises:
        SolverFailedError: the backend broke.
    """
    if result.policy is None:
        return None
    if not result.violations or request.repair == "keep":
        return ()
    as_learned = solve(replace(request, repair="keep", prices="none", explain=False)).policy
    if as_learned is None:
        return None
    return tuple(name for name, bits in result.policy.layers if as_learned.bits_of(name) != bits)


def solve_problem(
    problem: Problem,
    *,
    alpha: float,
    solver: str = "auto",
    time_limit_s: float = 60.0,
    prices: PriceMethod = "relaxed",
    explain_infeasible: bool = True,
    stopwatch: Stopwatch | None = None,
) -> SolveResult:
    """Solve a problem that is already laid out; batches lay it out once for many limits.

    Raises:
        SolverFailedError: the backend broke.
    """
    stopwatch = stopwatch or Stopwatch()
    found = search(
        problem, solver=solver, time_limit_s=time_limit_s, with_prices=prices == "relaxed"
    )
    violations = problem.indicators.violations if problem.indicators else ()
    if found.picks is None:
        why: Infeasibility | None = None
        if found.status is SolveStatus.INFEASIBLE and explain_infeasible:
            why = explain(problem, solver=solver, time_limit_s=time_limit_s)
        wall_s, cpu_s = stopwatch.read()
        return SolveResult(
            status=found.status, bound=found.bound, violations=violations, infeasibility=why,
            solver=found.solver, solver_version=found.solver_version, wall_s=wall_s, cpu_s=cpu_s,
        )  # fmt: skip
    objective = problem.objective(found.picks)
    per_percent = _prices(problem, found, prices, objective, solver, time_limit_s)
    return result_of(
        problem,
        found.picks,
        status=found.status,
        bound=found.bound if found.bound is not None else 0.0,
        prices=per_percent,
        price_method=prices,
        alpha=alpha,
        source="ilp",
        solver=found.solver,
        solver_version=found.solver_version,
        read_clock=stopwatch.read,
    )


def result_of(
    problem: Problem,
    picks: Sequence[int],
    *,
    status: SolveStatus,
    bound: float,
    prices: Sequence[float | None],
    price_method: PriceMethod,
    alpha: float,
    source: str,
    solver: str,
    solver_version: str,
    read_clock: Callable[[], tuple[float, float]],
) -> SolveResult:
    """Policy, certificate and result of picks, with every limit counted again in integers.

    Raises:
        SolverFailedError: a limit is exceeded.
    """
    bits_by_name = problem.bits_by_name(picks)
    objective = problem.objective(picks)
    bound = min(bound, objective)
    gap = (objective - bound) / max(abs(objective), 1e-12)
    uses = limit_uses(problem, picks, prices)
    bare = make_policy(problem.costs, bits_by_name, source, problem.accounting)
    wall_s, cpu_s = read_clock()
    certificate = Certificate(
        status=status, objective=objective, bound=bound, gap=gap, alpha=alpha,
        repair=problem.indicators.rule if problem.indicators else "keep",
        uses=uses, price_method=price_method, solver=solver, solver_version=solver_version,
        wall_s=wall_s, cpu_s=cpu_s,
    )  # fmt: skip
    return SolveResult(
        status=status, policy=certified(bare, certificate), objective=objective, bound=bound,
        gap=gap, uses=uses,
        violations=problem.indicators.violations if problem.indicators else (),
        solver=solver, solver_version=solver_version, wall_s=wall_s, cpu_s=cpu_s,
    )  # fmt: skip


def certified(policy: Policy, certificate: Certificate) -> Policy:
    """The policy with a certificate; its id stays, since only bits make the id."""
    return replace(policy, certificate=certificate)


def limit_uses(
    problem: Problem, picks: Sequence[int], prices: Sequence[float | None] = ()
) -> tuple[LimitUse, ...]:
    """Every limit counted from the policy's bits, with binding limits marked."""
    uses = problem.total_uses(problem.bits_by_name(picks))
    binding = _binding(problem, picks, uses)
    given = list(prices) or [None] * len(uses)
    return tuple(
        LimitUse(
            kind=c.kind, limit=c.limit.text, resource=c.resource, bound=c.bound, use=use,
            shown_bound=c.shown(c.bound), shown_use=c.shown(use), binding=bound, price=price,
        )
        for c, use, bound, price in zip(problem.ceilings, uses, binding, given, strict=True)
    )  # fmt: skip


def _binding(problem: Problem, picks: Sequence[int], uses: Sequence[int]) -> list[bool]:
    """Limits that stand in the way of some single change of one unit to a lower objective."""
    binding = [False] * len(uses)
    additive = [k for k, c in enumerate(problem.ceilings) if c in problem.additive]
    slack = [problem.ceilings[k].bound - uses[k] for k in additive]
    better_act: dict[int, set[int]] = {}
    for u, pick in enumerate(picks):
        better = problem.cost[u] < problem.cost[u][pick]
        for row, k in enumerate(additive):
            extra = problem.use[u][row] - problem.use[u][row][pick]
            if bool((better & (extra > slack[row])).any()):
                binding[k] = True
        wider = {o.act_bits for o, b in zip(problem.units[u].options, better, strict=True) if b}
        better_act[u] = {b for b in wider if b > problem.units[u].options[pick].act_bits}
    if problem.peaks:
        moments = moments_of(problem.costs, problem.units, problem.accounting)
        act_bits = [unit.options[p].act_bits for unit, p in zip(problem.units, picks, strict=True)]
        highest = 0
        for u, widths in better_act.items():
            for b in widths:
                changed = [*act_bits[:u], b, *act_bits[u + 1 :]]
                highest = max(highest, peak_of(moments, changed))
        for k, c in enumerate(problem.ceilings):
            binding[k] = binding[k] or (c in problem.peaks and highest > c.bound)
    return binding


def _prices(
    problem: Problem,
    found: Found,
    method: PriceMethod,
    objective: float,
    solver: str,
    time_limit_s: float,
) -> list[float | None]:
    """Objective that 1 % more of each limit buys."""
    bounds = [c.bound for c in problem.ceilings]
    if method == "relaxed":
        return [
            None if price is None else price * bound * 0.01
            for price, bound in zip(found.prices, bounds, strict=True)
        ]
    if method == "none":
        return [None] * len(bounds)
    prices: list[float | None] = []
    for k, bound in enumerate(bounds):
        raised = [*bounds[:k], bound + bound // 100, *bounds[k + 1 :]]
        more = search(problem.with_bounds(raised), solver=solver, time_limit_s=time_limit_s)
        proven = more.status is SolveStatus.PROVEN_OPTIMAL and more.picks is not None
        prices.append(
            max(0.0, objective - problem.objective(more.picks))
            if proven and more.picks is not None
            else None
        )
    return prices


@dataclass(slots=True)
class Stopwatch:
    """Wall and CPU seconds since it was made, children (CBC) included."""

    _wall: float = 0.0
    _cpu: float = 0.0

    def __post_init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), _cpu_s()

    def read(self) -> tuple[float, float]:
        """(wall seconds, CPU seconds)."""
        return time.monotonic() - self._wall, _cpu_s() - self._cpu


def _cpu_s() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
