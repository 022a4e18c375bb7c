"""What can a network reach at all, one limit at a time?

The least use of an additive resource is a sum of least options, and the least peak comes with the
fewest activation bits everywhere: no solver is needed. What several limits leave possible
together is the matter of ``explain.py``.
"""

from __future__ import annotations

import numpy as np

from solvers.accounting import STANDARD, Accounting
from solvers.latency import LatencyTable
from solvers.limits import Ceiling, Limit, LimitKind
from solvers.problem import Problem, build_problem
from solvers.tables import BitChoices, CostTable
from solvers.uses import constant_use, is_additive, total_use


def reachable(
    costs: CostTable,
    choices: BitChoices,
    kind: LimitKind,
    accounting: Accounting = STANDARD,
    *,
    latency: LatencyTable | None = None,
    layers: tuple[str, ...] = (),
) -> tuple[float, float]:
    """Smallest and largest value of a kind of limit, in its base unit (BitOps, bytes, us, ratio).

    For ``compression_rate`` the first is still the value of the smallest network, that is the
    highest rate.

    Raises:
        LimitError: the kind does not apply to the network.
    """
    if kind == "bitops_level":
        kind = "bitops"
    limit = Limit(kind=kind, limit=1, latency=latency, layers=layers)
    problem = build_problem(costs, choices, (limit,), importance=None, accounting=accounting)
    ceiling = problem.ceilings[0]
    smallest, largest = reach_of(problem, ceiling)
    return ceiling.shown(smallest), ceiling.shown(largest)


def reach_of(problem: Problem, ceiling: Ceiling) -> tuple[int, int]:
    """Least and greatest use of one of the problem's ceilings, in integers."""
    if is_additive(ceiling):
        k = problem.additive.index(ceiling)
        constant = constant_use(ceiling, problem.costs, problem.accounting)
        return (
            constant + sum(int(u[k].min()) for u in problem.use),
            constant + sum(int(u[k].max()) for u in problem.use),
        )
    ends = []
    for choose in (np.argmin, np.argmax):
        picks = [int(choose([o.act_bits for o in unit.options])) for unit in problem.units]
        bits = problem.bits_by_name(picks)
        ends.append(total_use(ceiling, problem.costs, bits, problem.accounting))
    return ends[0], ends[1]


def out_of_reach(problem: Problem) -> tuple[Ceiling, ...]:
    """Limits that no policy meets even alone."""
    return tuple(c for c in problem.ceilings if reach_of(problem, c)[0] > c.bound)
