"""Which option does each unit take? From a problem to checked picks, whichever backend answers.

Reduce what can be reduced exactly, ask PuLP for the rest, count the answer again in integers.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from solvers.certificate import SolveStatus
from solvers.errors import SolverFailedError
from solvers.hunt import Hunt, Settled
from solvers.problem import Problem
from solvers.reach import out_of_reach
from solvers.reduce import Core, reduce_to_core, undominated
from solvers.several_limits import decide

if TYPE_CHECKING:
    from solvers.ilp import Backend

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Picks that were counted again in integers, or why there are none.

    Attributes:
        status: how the search ended.
        picks: option of every unit of the problem; None without a solution.
        bound: proven lower bound of the objective.
        prices: objective per unit of each limit's resource by the linear relaxation, None where
            it gives none; empty when not asked for.
        solver: ``highs``, ``cbc``, or ``arithmetic`` where a sum of least uses already decides.
        solver_version: its version, and who proved the answer if somebody else did.
    """

    status: SolveStatus
    picks: tuple[int, ...] | None
    bound: float | None
    prices: tuple[float | None, ...] = ()
    solver: str
    solver_version: str


def choose_backend(solver: str, problem: Problem) -> Backend:
    """``auto`` is HiGHS for one limit and CBC for several (1.5-2.3x faster there)."""
    if solver == "highs":
        return "highs"
    if solver == "cbc":
        return "cbc"
    return "highs" if len(problem.ceilings) == 1 else "cbc"


def search(
    problem: Problem,
    *,
    solver: str = "auto",
    time_limit_s: float = 60.0,
    with_prices: bool = False,
    excluded: Sequence[tuple[int, ...]] = (),
) -> Found:
    """Find the picks of least objective that no limit and no exclusion forbids.

    Args:
        problem: what to decide.
        solver: ``auto``, ``highs`` or ``cbc``.
        time_limit_s: for the backend, all its calls together.
        with_prices: also price the limits by the linear relaxation.
        excluded: assignments that may not be returned (switches the reductions off).

    Raises:
        SolverFailedError: the backend broke or contradicts integer arithmetic.
    """
    from solvers.ilp import backend_version

    if out_of_reach(problem):
        return Found(
            status=SolveStatus.INFEASIBLE, picks=None, bound=None,
            solver="arithmetic", solver_version="exact",
        )  # fmt: skip
    backend = choose_backend(solver, problem)
    hunt = Hunt(problem, backend, time.monotonic() + time_limit_s, list(excluded))
    prices: tuple[float | None, ...] = ()
    proof = ""
    if excluded:
        settled = hunt.among([np.arange(len(c)) for c in problem.cost])
    elif problem.peaks:
        settled = hunt.among(_undominated(problem))
        if with_prices:
            prices = _by_ceiling(problem, hunt.relaxed_prices(_undominated(problem)))
    elif len(problem.additive) == 1:
        core = _core_of(problem)
        settled = _with_core(problem, core, hunt.among(_in_core(problem, core)))
        prices = (core.price,)
    else:
        decided = decide(problem, hunt, _undominated(problem))
        settled, prices, proof = decided.settled, decided.prices or (), decided.proof
    picks = settled.picks
    if picks is not None and not hunt.refused and not problem.peaks:
        picks = _in_canonical_order(problem, picks)
    return Found(
        status=settled.status,
        picks=picks,
        bound=settled.bound,
        prices=prices if with_prices and prices else tuple(None for _ in problem.ceilings),
        solver=hunt.backend,
        solver_version=", ".join(filter(None, (backend_version(hunt.backend), proof))),
    )


def _core_of(problem: Problem) -> Core:
    core = reduce_to_core(problem.cost, [u[0] for u in problem.use], int(problem.room[0]))
    if core is None:
        raise SolverFailedError("least options fit by one count and not by another")
    return core


def _undominated(problem: Problem) -> list[Ints]:
    """Per unit the options that no other one of the unit makes pointless."""
    kept = []
    for unit, cost, use in zip(problem.units, problem.cost, problem.use, strict=True):
        rows = use
        if problem.peaks:
            act = np.array([[o.act_bits for o in unit.options]], dtype=np.int64)
            rows = np.concatenate([use, act])
        kept.append(undominated(cost, rows))
    return kept


def _in_core(problem: Problem, core: Core) -> list[Ints]:
    kept = []
    for options, of_core in zip(_undominated(problem), core.kept, strict=True):
        both = np.intersect1d(options, of_core)
        kept.append(both if len(both) else of_core)
    return kept


def _with_core(problem: Problem, core: Core, found: Settled) -> Settled:
    """The better of the backend's answer and the solution known before, with the better bound."""
    known = tuple(int(p) for p in core.picks)
    if found.status is SolveStatus.INFEASIBLE:
        # Only options that a better solution could use were offered, so there is none.
        return Settled(status=SolveStatus.PROVEN_OPTIMAL, picks=known, bound=core.objective)
    picks, status = found.picks, found.status
    if picks is None or problem.objective(known) < problem.objective(picks):
        picks = known
    if status is SolveStatus.NO_SOLUTION_IN_TIME:
        status = SolveStatus.FEASIBLE_UNPROVEN
    bound = core.bound if found.bound is None else max(core.bound, found.bound)
    if status is SolveStatus.PROVEN_OPTIMAL:
        bound = problem.objective(picks)
    return Settled(status=status, picks=picks, bound=bound)


def _in_canonical_order(problem: Problem, picks: tuple[int, ...]) -> tuple[int, ...]:
    """Among interchangeable units, give the earlier one the wider option."""
    alike: dict[object, list[int]] = defaultdict(list)
    for u, unit in enumerate(problem.units):
        key = (unit.options, problem.cost[u].tobytes(), problem.use[u].tobytes())
        alike[key].append(u)
    ordered = list(picks)
    for members in alike.values():
        widest_first = sorted((picks[u] for u in members), reverse=True)
        for u, pick in zip(members, widest_first, strict=True):
            ordered[u] = pick
    return tuple(ordered)


def _by_ceiling(problem: Problem, prices: tuple[float, ...] | None) -> tuple[float | None, ...]:
    """Prices of the additive rows in the order of all limits; a peak has none."""
    if prices is None:
        return tuple(None for _ in problem.ceilings)
    additive = iter(prices)
    peaks = problem.peaks
    return tuple(None if c in peaks else next(additive) for c in problem.ceilings)
