"""How is an optimum under several additive limits found and proven?

CBC, through PuLP, is asked once for a good policy among the options of small reduced cost; the
list search (``list_search.py``) then looks at everything that could be better, in this room's own
arithmetic, and keeps CBC's policy or betters it. So no proof rests on CBC, whose single claims
were caught calling worse policies Optimal (``hunt.py``), and no second run of it is needed.

Where the lists grow past their cap, and where HiGHS was chosen, the backend's own claim is what
there is: ``claimed``. The certificate says which of the two it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from solvers.certificate import SolveStatus
from solvers.hunt import Hunt, Settled
from solvers.list_search import LIST_SEARCH_VERSION, search_lists
from solvers.multipliers import Options, best_multipliers
from solvers.problem import Problem
from solvers.reduce import reduced_costs

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
# Options kept a unit by the first guess.
_FIRST_GUESS = 2.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Decided:
    """An answer under several limits.

    Attributes:
        settled: what is believed.
        prices: objective per unit of each resource; None if nothing fits even in fractions.
        proof: who proved it, as the certificate says it; empty: the backend that is named.
    """

    settled: Settled
    prices: tuple[float, ...] | None
    proof: str = ""


def decide(problem: Problem, hunt: Hunt, kept: Sequence[Ints]) -> Decided:
    """The picks of least objective among the kept options.

    Args:
        problem: with several limits, all of them sums over layers.
        hunt: the backend.
        kept: per unit, the options no other one makes pointless.

    Raises:
        SolverFailedError: the backend broke.
    """
    options = Options.of(problem.cost, problem.use, kept)
    worth = best_multipliers(options, problem.room)
    if worth is None:
        return Decided(settled=hunt.among(kept), prices=None)
    prices = tuple(worth.tolist())
    if hunt.backend == "highs":
        return Decided(settled=claimed(problem, hunt, kept, prices), prices=prices)
    bound, good = _good_policy(problem, hunt, kept, prices)
    if good.picks is None:
        return Decided(settled=good, prices=prices)
    known = problem.objective(good.picks)
    listed = search_lists(options, problem.room, worth, known, deadline=hunt.deadline)
    picks = good.picks
    if listed.picks is not None:
        picks = tuple(int(k[p]) for k, p in zip(kept, listed.picks, strict=True))
    objective = problem.objective(picks)
    if listed.is_exact:
        settled = Settled(status=SolveStatus.PROVEN_OPTIMAL, picks=picks, bound=objective)
        did = "proven" if objective >= known else "bettered and proven"
        return Decided(settled=settled, prices=prices, proof=f"{did} by {LIST_SEARCH_VERSION}")
    if hunt.is_late:
        late = Settled(status=SolveStatus.FEASIBLE_UNPROVEN, picks=picks, bound=bound)
        return Decided(settled=late, prices=prices)
    gave_up = f"asked twice, since {LIST_SEARCH_VERSION} gave up at its cap"
    settled = claimed(problem, hunt, kept, prices)
    return Decided(settled=settled, prices=prices, proof=gave_up)


def claimed(problem: Problem, hunt: Hunt, kept: Sequence[Ints], prices: Sequence[float]) -> Settled:
    """The optimum as the backend has it: over options of small reduced cost, which then suffice.

    With a Lagrangian bound L, every solution that uses an option of reduced cost r has an
    objective of at least L + r. The best solution among options of r <= g is therefore the best
    of all if its objective is at most L + g; if not, its objective says which g is enough.
    """
    bound, reduced = reduced_costs(problem.cost, problem.use, prices, problem.room)
    guess = _first_guess(reduced, kept)
    while True:
        margin = _margin(bound, guess)
        core = _of_reduced_cost(reduced, kept, guess + margin)
        is_all = all(len(c) == len(k) for c, k in zip(core, kept, strict=True))
        found = hunt.first_claim(core)
        if found.status is SolveStatus.INFEASIBLE and not is_all:
            guess = max(4 * guess, margin)
            continue
        if found.picks is None:
            return hunt.among(core, claimed=found) if is_all else replace(found, bound=bound)
        above = problem.objective(found.picks) - bound
        if found.status is not SolveStatus.PROVEN_OPTIMAL:
            # What the backend bounded is the core; the Lagrangian bound holds for everything.
            return replace(found, bound=bound if not is_all else max(bound, found.bound or bound))
        if is_all or above <= guess:
            # Whatever beats this stands among options of r <= above: there it is confirmed.
            last = _of_reduced_cost(reduced, kept, above + margin)
            return hunt.among(last, claimed=found)
        guess = above


def _good_policy(
    problem: Problem, hunt: Hunt, kept: Sequence[Ints], prices: Sequence[float]
) -> tuple[float, Settled]:
    """Lagrangian bound, and a good policy within the limits, or why there is none."""
    bound, reduced = reduced_costs(problem.cost, problem.use, prices, problem.room)
    guess = _first_guess(reduced, kept)
    while True:
        core = _of_reduced_cost(reduced, kept, guess + _margin(bound, guess))
        is_all = all(len(c) == len(k) for c, k in zip(core, kept, strict=True))
        found = hunt.good_policy(core)
        if found.picks is not None:
            return bound, found
        if found.status is not SolveStatus.INFEASIBLE:
            return bound, replace(found, bound=bound)
        if is_all:
            return bound, hunt.among(core, claimed=found)
        guess = max(4 * guess, _margin(bound, guess))


def _first_guess(reduced: Sequence[Floats], kept: Sequence[Ints]) -> float:
    ascending = np.sort(np.concatenate([r[k] for r, k in zip(reduced, kept, strict=True)]))
    return float(ascending[min(int(_FIRST_GUESS * len(kept)), len(ascending) - 1)])


def _margin(bound: float, guess: float) -> float:
    return 1e-9 * max(1.0, abs(bound) + guess)


def _of_reduced_cost(reduced: Sequence[Floats], kept: Sequence[Ints], most: float) -> list[Ints]:
    return [k[r[k] <= most] for r, k in zip(reduced, kept, strict=True)]
