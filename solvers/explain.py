"""If nothing fits, why? The least each limit can be, what clashes, and which pins or groups cost.

A limit that is out of reach alone needs arithmetic only. Limits that clash together need the
solver: which of them, as few as possible, cannot be met at once (each is left out in turn and put
back if the rest then fits), and the least use of each within the others. A pin or a group is a
cause if freeing it saves something of a clashing limit, or makes everything fit. Nobody knows that
of one whose freed layers the latency table has no entries for (a pinned layer is measured at its
pin only); it is told as not examined.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from solvers.certificate import SolveStatus
from solvers.errors import LatencyMissingError
from solvers.infeasibility import Cause, Infeasibility, LimitReach
from solvers.limits import Ceiling
from solvers.peaks import moments_of
from solvers.problem import Problem, build_problem
from solvers.reach import out_of_reach, reach_of
from solvers.result import SolveRequest
from solvers.search import search
from solvers.tables import CostTable


def explain_infeasible(request: SolveRequest) -> Infeasibility:
    """``explain`` for a request; meaningful for infeasible ones only."""
    problem = build_problem(
        request.costs,
        request.choices,
        request.limits,
        importance=request.importance,
        alpha=request.alpha,
        accounting=request.accounting,
        repair=request.repair,
    )
    return explain(problem, solver=request.solver, time_limit_s=request.time_limit_s)


def explain(problem: Problem, *, solver: str = "auto", time_limit_s: float = 60.0) -> Infeasibility:
    """Why no policy fits ``problem``.

    Args:
        problem: known to be infeasible.
        solver: backend for the joint questions.
        time_limit_s: for all joint questions; what is not answered by then stays unknown.

    Raises:
        SolverFailedError: the backend broke.
    """
    judge = _Judge(solver, time.monotonic() + time_limit_s)
    least = [reach_of(problem, c)[0] for c in problem.ceilings]
    alone = [k for k, c in enumerate(problem.ceilings) if least[k] > c.bound]
    clash = alone or judge.smallest_clash(problem)
    jointly: list[int | None] = [None] * len(least)
    if not alone:
        for k in clash:
            jointly[k] = judge.least_within_others(problem, k, clash)
    limits = tuple(
        LimitReach(
            kind=c.kind,
            limit=c.limit.text,
            resource=c.resource,
            bound=c.bound,
            smallest=least[k],
            smallest_with_others=jointly[k],
            shown_bound=c.shown(c.bound),
            shown_smallest=c.shown(least[k]),
        )
        for k, c in enumerate(problem.ceilings)
    )
    causes, unknown = _causes(problem, clash, least, judge)
    return Infeasibility(
        limits=limits,
        clash=tuple(problem.ceilings[k].limit.text for k in clash),
        causes=causes,
        text=_text(problem.ceilings, clash, least, jointly, causes, is_alone=bool(alone))
        + _not_examined(unknown),
    )


class _Judge:
    """Answers "does any policy fit?" within one clock."""

    def __init__(self, solver: str, deadline: float) -> None:
        self.solver, self.deadline = solver, deadline

    def left_s(self) -> float:
        return self.deadline - time.monotonic()

    def fits(self, problem: Problem) -> bool | None:
        """Whether some policy fits; None if the time ran out first."""
        if out_of_reach(problem):
            return False
        if len(problem.ceilings) == 1:
            return True
        if self.left_s() <= 0:
            return None
        free = problem.with_cost([np.zeros(len(c)) for c in problem.cost])
        status = search(free, solver=self.solver, time_limit_s=self.left_s()).status
        if status.has_policy:
            return True
        return False if status is SolveStatus.INFEASIBLE else None

    def smallest_clash(self, problem: Problem) -> list[int]:
        """Limits that clash, none of which can be left out."""
        kept = list(range(len(problem.ceilings)))
        for k in list(kept):
            without = [i for i in kept if i != k]
            if without and self.fits(problem.with_only(without)) is False:
                kept = without
        return kept

    def least_within_others(self, problem: Problem, k: int, clash: Sequence[int]) -> int | None:
        """Least use of limit ``k`` within the other clashing ones; None if they clash too."""
        ceiling = problem.ceilings[k]
        others = [i for i in clash if i != k]
        if not others or self.left_s() <= 0:
            return None
        rest = problem.with_only(others)
        if ceiling in problem.peaks:
            return self._least_peak(rest, ceiling)
        row = problem.additive.index(ceiling)
        by_use = rest.with_cost([u[row].astype(np.float64) for u in problem.use])
        found = search(by_use, solver=self.solver, time_limit_s=self.left_s())
        if found.picks is None or found.status is not SolveStatus.PROVEN_OPTIMAL:
            return None
        bits = problem.bits_by_name(found.picks)
        return problem.total_uses(bits)[k]

    def _least_peak(self, rest: Problem, ceiling: Ceiling) -> int | None:
        from solvers.ilp import Program, solve_program

        moments = moments_of(rest.costs, rest.units, rest.accounting)
        program = Program(
            units=rest.units,
            cost=rest.cost,
            use=rest.use,
            room=rest.room,
            minimise_peak=moments,
        )
        answer = solve_program(
            program, "cbc" if self.solver == "cbc" else "highs", max(self.left_s(), 1e-3)
        )
        if answer.picks is None or answer.status is not SolveStatus.PROVEN_OPTIMAL:
            return None
        with_peak = replace(rest, ceilings=(ceiling,))
        return with_peak.total_uses(rest.bits_by_name(answer.picks))[0]


def _causes(
    problem: Problem, clash: Sequence[int], least: Sequence[int], judge: _Judge
) -> tuple[tuple[Cause, ...], tuple[str, ...]]:
    """Pins and groups that cost something of a clashing limit, largest share first.

    Returns:
        The causes, and the names of those that the latency table says too little about.
    """
    found: list[tuple[float, Cause]] = []
    unknown: list[str] = []
    for what, name, costs in _freed(problem.costs):
        try:
            free = build_problem(
                costs,
                problem.choices,
                [c.limit for c in problem.ceilings],
                importance=None,
                accounting=problem.accounting,
            )
        except LatencyMissingError:
            unknown.append(f"{what} {name!r}")
            continue
        free = _without_erased(free, problem)
        # A level is the cost of the network with its pins: the asked-for heights are kept.
        free = free.with_bounds([c.bound for c in problem.ceilings])
        saves = [least[k] - reach_of(free, free.ceilings[k])[0] for k in clash]
        is_enough = judge.fits(free) is True
        shares = [s / max(problem.ceilings[k].bound, 1) for s, k in zip(saves, clash, strict=True)]
        best = int(np.argmax(shares))
        if saves[best] > 0 or is_enough:
            cause = Cause(
                what=what,
                name=name,
                limit=problem.ceilings[clash[best]].limit.text,
                saves=saves[best],
                is_enough=is_enough,
            )
            found.append((shares[best], cause))
    found.sort(key=lambda pair: (not pair[1].is_enough, -pair[0], pair[1].name))
    return tuple(cause for _, cause in found), tuple(unknown)


def _without_erased(free: Problem, problem: Problem) -> Problem:
    """``free`` without the options that the rule ``erase`` forbids in ``problem``.

    Nothing was learned about a layer that is pinned there, so nothing is forbidden to it here.
    """
    if problem.indicators is None:
        return free
    values = problem.indicators.values
    units, cost, use = [], [], []
    for unit, of_unit, rows in zip(free.units, free.cost, free.use, strict=True):
        kept = [
            all(
                math.isfinite(values.get((layer.name, tensor, bits), 0.0))
                for layer in unit.layers
                for tensor, bits in (("weight", o.weight_bits), ("act", o.act_bits))
            )
            for o in unit.options
        ]
        options = tuple(o for o, is_kept in zip(unit.options, kept, strict=True) if is_kept)
        units.append(replace(unit, options=options))
        cost.append(of_unit[kept])
        use.append(rows[:, kept])
    return replace(free, units=tuple(units), cost=tuple(cost), use=tuple(use))


def _freed(costs: CostTable) -> list[tuple[str, str, CostTable]]:
    """The network with one pin or one group undone, each in turn."""
    found = []
    for layer in costs:
        if layer.pinned is not None:
            layers = tuple(replace(s, pinned=None) if s is layer else s for s in costs)
            found.append(("pin", layer.name, replace(costs, layers=layers)))
    for group in dict.fromkeys(s.group for s in costs if s.group is not None):
        if sum(s.group == group for s in costs) > 1:
            layers = tuple(replace(s, group=None) if s.group == group else s for s in costs)
            found.append(("group", str(group), replace(costs, layers=layers)))
    return found


def _not_examined(unknown: Sequence[str]) -> str:
    if not unknown:
        return ""
    return f"; not examined: {', '.join(unknown)}, whose other bits have no latency in the table"


def _text(
    ceilings: Sequence[Ceiling],
    clash: Sequence[int],
    least: Sequence[int],
    jointly: Sequence[int | None],
    causes: Sequence[Cause],
    *,
    is_alone: bool,
) -> str:
    parts = []
    for k in clash:
        c = ceilings[k]
        ends = f"{c.limit.text} (= {c.shown(c.bound):.6g}), reachable {c.shown(least[k]):.6g}"
        joint = jointly[k]
        if joint is not None:
            ends += f", within the others {c.shown(joint):.6g}"
        parts.append(ends)
    head = "out of reach: " if is_alone else "cannot be met together: "
    enough = [f"{c.what} {c.name!r}" for c in causes if c.is_enough]
    tail = f"; it would fit without {' or '.join(enough)}" if enough else ""
    if not enough and causes:
        tail = f"; {causes[0].what} {causes[0].name!r} costs most of it, yet is not enough"
    return head + "; ".join(parts) + tail
