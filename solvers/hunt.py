"""How far is a backend believed? Its answers are counted again; CBC is proven or asked twice.

Every answer is counted in integers from its policy; one that exceeds a limit is excluded and the
rest solved again. CBC was caught calling worse policies Optimal in every configuration tried
(1 of 30 programs of the papers' networks without its preprocessing, by 2e-5; 5 of 1,000 tiny ones
with it, by up to 5 %), but not in both configurations at once. So a claim of CBC is proven by the
list search (``several_limits.py``) or, where that cannot, counts only if both configurations agree;
where they do not, or one dies, HiGHS decides and stands in the certificate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from solvers.certificate import SolveStatus
from solvers.errors import BackendCrashedError, SolverFailedError
from solvers.peaks import moments_of
from solvers.problem import Problem
from solvers.reduce import that_can_fit

if TYPE_CHECKING:
    from solvers.ilp import Answer, Backend, Program

Ints = npt.NDArray[np.int64]
# More than a few answers that exceed a limit by an integer mean that something else is wrong.
_MAX_EXCLUSIONS = 10
# The last 0.1 % takes CBC four times as long as all before it (ResNet-50, two limits).
_GOOD_GAP = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """An answer in terms of the whole problem, counted again.

    Attributes:
        status: what is believed.
        picks: option of every unit; None without a solution.
        bound: proven lower bound of the objective among the options offered.
    """

    status: SolveStatus
    picks: tuple[int, ...] | None
    bound: float | None


@dataclass(slots=True)
class Hunt:
    """One backend at work on one problem, with a clock and the answers it was refused.

    Attributes:
        problem: what is to be decided.
        backend: who is asked; becomes HiGHS where CBC contradicts itself.
        deadline: on the monotonic clock.
        refused: picks that may not be returned.
    """

    problem: Problem
    backend: Backend
    deadline: float
    refused: list[tuple[int, ...]]

    def left_s(self) -> float:
        """Seconds until the deadline, never quite 0."""
        return max(self.deadline - time.monotonic(), 1e-3)

    @property
    def is_late(self) -> bool:
        """The deadline has passed."""
        return time.monotonic() > self.deadline

    def relaxed_prices(self, kept: Sequence[Ints]) -> tuple[float, ...] | None:
        """Prices of the additive limits in the linear relaxation over the kept options."""
        from solvers.ilp import relaxed_prices

        program, _ = _program(self.problem, kept, (), fold=False)
        return relaxed_prices(program, self.left_s())

    def first_claim(self, kept: Sequence[Ints]) -> Settled:
        """The best picks among the kept options, as one run of the backend has it."""
        return self._asked(kept, self.backend, preprocess=True)

    def good_policy(self, kept: Sequence[Ints]) -> Settled:
        """A policy near the best among the kept options, for others to prove or better."""
        return self._asked(kept, self.backend, preprocess=True, gap=_GOOD_GAP)

    def among(self, kept: Sequence[Ints], claimed: Settled | None = None) -> Settled:
        """The best picks among the kept options, believed.

        Args:
            kept: per unit, the options to choose from.
            claimed: a first claim that was made over these or fewer options already.

        Raises:
            SolverFailedError: the backend broke, or an answer of HiGHS contradicts the count.
        """
        claim = claimed or self.first_claim(kept)
        if self.backend == "highs":
            return claim
        again = self._asked(kept, "cbc", preprocess=False)
        if self.backend == "cbc" and _agree(self.problem, claim, again):
            return again
        statuses = {claim.status, again.status}
        out_of_time = {SolveStatus.FEASIBLE_UNPROVEN, SolveStatus.NO_SOLUTION_IN_TIME}
        if self.backend == "cbc" and statuses & out_of_time:
            return _unproven(self.problem, claim, again)
        self.backend = "highs"
        return self._asked(kept, "highs", preprocess=True)

    def _asked(
        self, kept: Sequence[Ints], backend: Backend, *, preprocess: bool, gap: float = 0.0
    ) -> Settled:
        """One claim, repeated with exclusions until its picks fit by integer count."""
        from solvers.ilp import solve_program

        fitting = that_can_fit(self.problem.use, kept, self.problem.room)
        if fitting is None:
            return Settled(status=SolveStatus.INFEASIBLE, picks=None, bound=None)
        if not self.refused:
            kept = fitting
        for _ in range(_MAX_EXCLUSIONS):
            fold = not self.problem.peaks and not self.refused
            if all(len(k) == 1 for k in kept) and fold:
                picks = tuple(int(k[0]) for k in kept)
                cost = self.problem.objective(picks)
                return Settled(status=SolveStatus.PROVEN_OPTIMAL, picks=picks, bound=cost)
            program, undecided = _program(self.problem, kept, self.refused, fold=fold)
            try:
                answer = solve_program(
                    program, backend, self.left_s(), preprocess=preprocess, gap=gap
                )
            except BackendCrashedError:
                # Seen with CBC only, on programs that its presolve finds infeasible.
                if backend == "highs":
                    raise
                self.backend = backend = "highs"
                answer = solve_program(program, backend, self.left_s(), gap=gap)
            settled = _widened(self.problem, kept, undecided, answer)
            if settled.picks is None or self.problem.fits(self.problem.bits_by_name(settled.picks)):
                return settled
            self.refused.append(settled.picks)
        raise SolverFailedError(
            f"{backend}: {_MAX_EXCLUSIONS} answers in a row exceed a limit by integer count"
        )


def _agree(problem: Problem, one: Settled, other: Settled) -> bool:
    if one.status is not other.status:
        return False
    if one.picks is None or other.picks is None:
        return one.picks is other.picks and one.status is SolveStatus.INFEASIBLE
    if one.status is not SolveStatus.PROVEN_OPTIMAL:
        return False
    return math.isclose(problem.objective(one.picks), problem.objective(other.picks), rel_tol=1e-10)


def _unproven(problem: Problem, one: Settled, other: Settled) -> Settled:
    """The better of two answers of which at least one ran out of time."""
    found = [s for s in (one, other) if s.picks is not None]
    if not found:
        return Settled(status=SolveStatus.NO_SOLUTION_IN_TIME, picks=None, bound=None)
    best = min(found, key=lambda s: problem.objective(s.picks or ()))
    return replace(best, status=SolveStatus.FEASIBLE_UNPROVEN, bound=None)


def _program(
    problem: Problem,
    kept: Sequence[Ints],
    excluded: Sequence[tuple[int, ...]],
    *,
    fold: bool,
) -> tuple[Program, list[int]]:
    """The program over the kept options; ``fold`` makes constants of decided units."""
    from solvers.ilp import Program

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
) -> Settled:
    """The backend's answer in terms of the whole problem's units and options."""
    fixed = set(range(len(kept))) - set(undecided)
    constant = sum(float(problem.cost[u][kept[u][0]]) for u in fixed)
    picks = None
    bound = None if answer.bound is None else answer.bound + constant
    if answer.picks is not None:
        full = [int(k[0]) for k in kept]
        for u, pick in zip(undecided, answer.picks, strict=True):
            full[u] = int(kept[u][pick])
        picks = tuple(full)
        if answer.status is SolveStatus.PROVEN_OPTIMAL:
            bound = problem.objective(picks)
    return Settled(status=answer.status, picks=picks, bound=bound)
