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
from solvers.peaks import moments_of
from solvers.problem import Problem
from solvers.reach import out_of_reach
from solvers.reduce import Core, reduce_to_core, undominated

if TYPE_CHECKING:
    from solvers.ilp import Answer, Backend, Program

Ints = npt.NDArray[np.int64]
# A backend works with doubles; an answer that exceeds a limit by an integer is excluded and the
# rest solved again. More than a few such answers would mean that something else is wrong.
_MAX_EXCLUSIONS = 10


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
        solver_version: its version.
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
    from solvers.ilp import backend_version, relaxed_prices, solve_program

    if out_of_reach(problem):
        return Found(
            status=SolveStatus.INFEASIBLE, picks=None, bound=None,
            solver="arithmetic", solver_version="exact",
        )  # fmt: skip
    backend = choose_backend(solver, problem)
    version = backend_version(backend)
    deadline = time.monotonic() + time_limit_s
    core = None
    if len(problem.additive) == 1 and not problem.peaks and not excluded:
        core = _core_of(problem)
    kept = _kept_options(problem, core, reduce=not excluded)
    refused: list[tuple[int, ...]] = list(excluded)
    for _ in range(_MAX_EXCLUSIONS):
        left_s = max(deadline - time.monotonic(), 1e-3)
        if all(len(k) == 1 for k in kept) and not refused:
            answer = _the_only_answer(problem, kept)
        else:
            program, undecided = _program(problem, kept, refused)
            answer = solve_program(program, backend, left_s)
            answer = _widened(problem, kept, undecided, answer)
        found = _settled(problem, core, answer)
        if found.picks is None or problem.fits(problem.bits_by_name(found.picks)):
            break
        refused.append(found.picks)
    else:
        raise SolverFailedError(
            f"{backend}: {_MAX_EXCLUSIONS} answers in a row exceed a limit by integer count"
        )
    picks = found.picks
    if picks is not None and not refused and not problem.peaks:
        picks = _in_canonical_order(problem, picks)
    prices: tuple[float | None, ...] = ()
    if with_prices and picks is not None:
        if core is not None:
            prices = (core.price,)
        else:
            program, _ = _program(problem, _kept_options(problem, None, reduce=True), ())
            prices = _by_ceiling(problem, relaxed_prices(program, time_limit_s))
    return Found(
        status=found.status, picks=picks, bound=found.bound, prices=prices,
        solver=backend, solver_version=version,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class _Settled:
    status: SolveStatus
    picks: tuple[int, ...] | None
    bound: float | None


def _core_of(problem: Problem) -> Core:
    core = reduce_to_core(problem.cost, [u[0] for u in problem.use], int(problem.room[0]))
    if core is None:
        raise SolverFailedError("least options fit by one count and not by another")
    return core


def _kept_options(problem: Problem, core: Core | None, *, reduce: bool) -> list[Ints]:
    if not reduce:
        return [np.arange(len(c)) for c in problem.cost]
    kept = []
    for u, (cost, use) in enumerate(zip(problem.cost, problem.use, strict=True)):
        rows = use
        if problem.peaks:
            act = np.array([[o.act_bits for o in problem.units[u].options]], dtype=np.int64)
            rows = np.concatenate([use, act])
        options = undominated(cost, rows)
        if core is not None:
            in_core = np.intersect1d(options, core.kept[u])
            options = in_core if len(in_core) else core.kept[u]
        kept.append(options)
    return kept


def _program(
    problem: Problem, kept: Sequence[Ints], excluded: Sequence[tuple[int, ...]]
) -> tuple[Program, list[int]]:
    """The program over units with more than one kept option; the others become constants."""
    from dataclasses import replace

    from solvers.ilp import Program

    fold = not problem.peaks and not excluded
    undecided = [u for u, k in enumerate(kept) if len(k) > 1 or not fold]
    room = problem.room.copy()
    for u, k in enumerate(kept):
        if u not in set(undecided):
            room -= problem.use[u][:, k[0]]
    units = tuple(
        replace(problem.units[u], options=tuple(problem.units[u].options[int(o)] for o in kept[u]))
        for u in undecided
    )
    positions = [{int(o): i for i, o in enumerate(kept[u])} for u in undecided]
    moments = moments_of(problem.costs, problem.units, problem.accounting) if problem.peaks else ()
    program = Program(
        units=units,
        cost=[problem.cost[u][kept[u]] for u in undecided],
        use=[problem.use[u][:, kept[u]] for u in undecided],
        room=room,
        peaks=tuple((moments, c.bound) for c in problem.peaks),
        excluded=tuple(
            tuple(positions[i][picks[u]] for i, u in enumerate(undecided))
            for picks in excluded
            if all(picks[u] in positions[i] for i, u in enumerate(undecided))
        ),
    )
    return program, undecided


def _widened(
    problem: Problem, kept: Sequence[Ints], undecided: Sequence[int], answer: Answer
) -> Answer:
    """The answer in terms of the whole problem's units and options."""
    from dataclasses import replace

    fixed = set(range(len(kept))) - set(undecided)
    constant = sum(float(problem.cost[u][kept[u][0]]) for u in fixed)
    picks = None
    if answer.picks is not None:
        full = [int(k[0]) for k in kept]
        for u, pick in zip(undecided, answer.picks, strict=True):
            full[u] = int(kept[u][pick])
        picks = tuple(full)
    bound = None if answer.bound is None else answer.bound + constant
    return replace(answer, picks=picks, bound=bound)


def _the_only_answer(problem: Problem, kept: Sequence[Ints]) -> Answer:
    """Every unit has one option left, so there is nothing to ask."""
    from solvers.ilp import Answer

    picks = tuple(int(k[0]) for k in kept)
    return Answer(status=SolveStatus.PROVEN_OPTIMAL, picks=picks, bound=problem.objective(picks))


def _settled(problem: Problem, core: Core | None, answer: Answer) -> _Settled:
    """The better of the backend's answer and the known solution, with the better bound."""
    status, picks, bound = answer.status, answer.picks, answer.bound
    if core is not None:
        known = tuple(int(p) for p in core.picks)
        if picks is None and status is SolveStatus.INFEASIBLE:
            # Only options that a better solution could use were offered, so there is none.
            return _Settled(status=SolveStatus.PROVEN_OPTIMAL, picks=known, bound=core.objective)
        if picks is None or problem.objective(known) < problem.objective(picks):
            picks = known
        if status is SolveStatus.NO_SOLUTION_IN_TIME:
            status = SolveStatus.FEASIBLE_UNPROVEN
        bound = max(core.bound, bound if bound is not None else -np.inf)
    if picks is not None and status is SolveStatus.PROVEN_OPTIMAL:
        bound = problem.objective(picks)
    return _Settled(status=status, picks=picks, bound=bound)


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
