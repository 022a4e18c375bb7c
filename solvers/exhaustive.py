"""What does looking at every single policy say? The oracle of the tests, for tiny networks.

Counts with the accounting's totals, policy by policy; shares nothing with fronts and solvers but
the list of units and their indicator costs.
"""

from __future__ import annotations

import itertools
import math

from solvers.errors import TableError
from solvers.problem import Problem

LARGEST = 2_000_000


def every_policy(problem: Problem) -> list[tuple[float, tuple[int, ...], tuple[int, ...]]]:
    """(objective, uses of the limits, picks) of every policy, within the limits or not.

    Raises:
        TableError: more than two million policies.
    """
    num = math.prod(len(unit.options) for unit in problem.units)
    if num > LARGEST:
        raise TableError(f"exhaustive search over {num} policies; {LARGEST} is the most")
    found = []
    for picks in itertools.product(*(range(len(unit.options)) for unit in problem.units)):
        uses = problem.total_uses(problem.bits_by_name(picks))
        found.append((problem.objective(picks), uses, picks))
    return found


def best_policy(problem: Problem) -> tuple[float, tuple[int, ...]] | None:
    """(objective, picks) of the best policy within all limits; None if nothing fits."""
    bounds = [c.bound for c in problem.ceilings]
    fitting = [
        (objective, picks)
        for objective, uses, picks in every_policy(problem)
        if all(use <= bound for use, bound in zip(uses, bounds, strict=True))
    ]
    return min(fitting, default=None)
