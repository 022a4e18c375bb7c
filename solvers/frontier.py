"""What is the best policy for every amount of one resource at once?

The complete exact Pareto front of (resource, objective), built unit by unit: each label is a
(use so far, objective so far) with its parent; every option is added to every label, and a label
stays only if no other one uses no more and costs no more. The last list of labels answers every
limit by binary search, the parents give its policy back. Integers stay integers: no unit, no
tolerance. Measured on one core: 2 ms for ResNet-18, 17 ms for ResNet-50, 120 ms for
MobileNet-V3-L; then a fraction of a microsecond for each limit.

Ties: of policies equal in objective the one that uses less wins, so a front never repeats an
objective.

The label count can explode (500 layers of unrelated sizes); past ``cap`` labels the front gives
up with ``FrontTooLargeError``, and each limit is solved on its own instead (``batch.py``).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from solvers.accounting import STANDARD, Accounting
from solvers.certificate import SolveStatus
from solvers.errors import LimitError, SolversError
from solvers.explain import explain
from solvers.latency import LatencyTable
from solvers.limits import Ceiling, Limit, LimitKind, ceiling_of
from solvers.problem import Problem, build_problem
from solvers.result import SolveResult
from solvers.solve import result_of
from solvers.tables import BitChoices, CostTable, ImportanceTable
from solvers.uses import constant_use, is_additive

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
DEFAULT_CAP = 2_000_000
FRONT_VERSION = "list DP/1"


class FrontTooLargeError(SolversError):
    """The front has more labels than its cap allows; solve limit by limit instead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """The bare front of a list of option tables.

    Attributes:
        use: strictly ascending use of the resource, int64 [points].
        cost: strictly descending objective, float64 [points].
        options: per step, the unit's options in the order used.
        parents: per step, ``option * labels before + label before`` of every label kept.
        sizes: per step, labels before it.
        order: the unit decided at each step.
    """

    use: Ints
    cost: Floats
    options: tuple[Ints, ...]
    parents: tuple[npt.NDArray[np.int32] | Ints, ...]
    sizes: tuple[int, ...]
    order: tuple[int, ...]

    def picks(self, points: Ints) -> npt.NDArray[np.int16]:
        """Option of every unit at each of ``points``, int16 [points, units]."""
        at = np.asarray(points, dtype=np.int64)
        picks = np.empty((len(at), len(self.order)), dtype=np.int16)
        for step in range(len(self.order) - 1, -1, -1):
            option, at = np.divmod(self.parents[step][at].astype(np.int64), self.sizes[step])
            picks[:, self.order[step]] = self.options[step][option]
        return picks


def pareto_labels(cost: Sequence[Floats], use: Sequence[Ints], cap: int = DEFAULT_CAP) -> Labels:
    """The front of one additive resource over units with their own options.

    Args:
        cost: per unit, float64 [options].
        use: per unit, int64 [options].
        cap: most labels to keep at any step.

    Raises:
        FrontTooLargeError: more than ``cap`` labels are needed.
    """
    worthwhile = [_staircase(c, u) for c, u in zip(cost, use, strict=True)]
    # Small units first: their labels are few, and the long lists are extended fewest times.
    order = sorted(
        range(len(cost)), key=lambda u: int(use[u][worthwhile[u][-1]] - use[u][worthwhile[u][0]])
    )
    base = sum(int(u[w[0]]) for u, w in zip(use, worthwhile, strict=True))
    steps = [use[u][worthwhile[u]] - int(use[u][worthwhile[u][0]]) for u in order]
    unit = int(np.gcd.reduce(np.concatenate(steps))) or 1
    # numpy sorts 16-bit integers by radix, 3-4x faster; the ResNets' BitOps fit after division.
    narrow = sum(int(s[-1]) for s in steps) // unit < 2**16
    W = np.zeros(1, dtype=np.uint16 if narrow else np.int64)
    C = np.zeros(1)
    parents: list[npt.NDArray[np.int32] | Ints] = []
    sizes = []
    for u, step in zip(order, steps, strict=True):
        kept = worthwhile[u]
        if len(kept) * len(W) > 50 * cap:
            raise FrontTooLargeError(f"front: more than {cap} labels; solve limit by limit")
        w2 = ((step // unit).astype(W.dtype)[:, None] + W).ravel()
        c2 = (cost[u][kept][:, None] + C).ravel()
        rank = np.argsort(w2, kind="stable")
        sorted_cost = c2[rank]
        better = np.empty(len(rank), dtype=bool)
        better[0] = True
        np.less(sorted_cost[1:], np.minimum.accumulate(sorted_cost)[:-1], out=better[1:])
        rank = rank[better]
        w2 = w2[rank]
        last = np.empty(len(rank), dtype=bool)  # of equal use the last is the cheapest
        last[-1] = True
        np.not_equal(w2[1:], w2[:-1], out=last[:-1])
        rank = rank[last]
        parents.append(rank.astype(np.int32) if len(kept) * len(W) < 2**31 else rank)
        sizes.append(len(W))
        W, C = w2[last], c2[rank]
        if len(W) > cap:
            raise FrontTooLargeError(f"front: more than {cap} labels; solve limit by limit")
    return Labels(
        use=W.astype(np.int64) * unit + base,
        cost=C,
        options=tuple(worthwhile[u] for u in order),
        parents=tuple(parents),
        sizes=tuple(sizes),
        order=tuple(order),
    )


def _staircase(cost: Floats, use: Ints) -> Ints:
    """Options that no other one of the unit dominates, by ascending use."""
    order = np.lexsort((cost, use))
    sorted_cost = cost[order]
    better = np.empty(len(order), dtype=bool)
    better[0] = True
    np.less(sorted_cost[1:], np.minimum.accumulate(sorted_cost)[:-1], out=better[1:])
    return order[better]


@dataclass(frozen=True, kw_only=True, slots=True)
class Front:
    """Every best policy of one network under one kind of limit.

    Attributes:
        problem: equation 4 with a limit that does not bind.
        ceiling: the resource, its bound out of the way.
        alpha: weight of the weight indicators.
        labels: the points.
        use: use of every point, constants included, int64 [points].
        build_s: seconds it took.
    """

    problem: Problem
    ceiling: Ceiling
    alpha: float
    labels: Labels
    use: Ints
    build_s: float

    def __len__(self) -> int:
        return len(self.use)

    @property
    def objective(self) -> Floats:
        """Objective of every point, strictly descending."""
        return self.labels.cost

    @property
    def reach(self) -> tuple[int, int]:
        """Least and greatest use of any point."""
        return int(self.use[0]), int(self.use[-1])

    def bound_of(self, limit: Limit | int) -> int:
        """The integer bound of a limit of this front's kind.

        Raises:
            LimitError: the limit is of another resource.
        """
        if isinstance(limit, int):
            return limit
        ceiling = ceiling_of(limit, self.problem.costs, self.problem.accounting)
        same_latency = limit.latency == self.ceiling.limit.latency
        if (ceiling.resource, ceiling.layers) != (self.ceiling.resource, self.ceiling.layers) or (
            ceiling.resource == "latency_ps" and not same_latency
        ):
            raise LimitError(
                f"limit {limit.text}: this front is over {self.ceiling.kind}, not over that"
            )
        return ceiling.bound

    def points(self, bounds: Sequence[int] | Ints) -> Ints:
        """Index of the best point within each bound, -1 where none fits."""
        clipped = np.minimum(np.asarray(bounds, dtype=object), 2**62).astype(np.int64)
        points: Ints = np.searchsorted(self.use, clipped, side="right") - 1
        return points

    def picks(self, points: Ints) -> npt.NDArray[np.int16]:
        """Option of every unit of ``problem`` at each point."""
        return self.labels.picks(points)

    def at(self, limit: Limit | int) -> SolveResult:
        """The policy for one limit, with its certificate; infeasible below the first point."""
        started = time.monotonic()
        if isinstance(limit, int):
            ceiling = self.ceiling.tightened_to(limit)
        else:
            self.bound_of(limit)
            ceiling = ceiling_of(limit, self.problem.costs, self.problem.accounting)
        problem = self.problem.with_ceilings((ceiling,))
        bound = ceiling.bound
        point = int(self.points([bound])[0])

        def read() -> tuple[float, float]:
            elapsed_s = time.monotonic() - started
            return elapsed_s, elapsed_s

        if point < 0:
            wall_s, cpu_s = read()
            return SolveResult(
                status=SolveStatus.INFEASIBLE,
                infeasibility=explain(problem),
                violations=problem.indicators.violations if problem.indicators else (),
                solver="front",
                solver_version=FRONT_VERSION,
                wall_s=wall_s,
                cpu_s=cpu_s,
            )
        raised = int(self.points([bound + bound // 100])[0])
        return result_of(
            problem,
            [int(p) for p in self.picks(np.array([point]))[0]],
            status=SolveStatus.PROVEN_OPTIMAL,
            bound=float(self.objective[point]),
            prices=[float(self.objective[point] - self.objective[raised])],
            price_method="resolved",
            alpha=self.alpha,
            source="front",
            solver="front",
            solver_version=FRONT_VERSION,
            read_clock=read,
        )

    def policies(self, limits: Sequence[Limit | int]) -> tuple[SolveResult, ...]:
        """``at`` for several limits; for thousands use ``points`` and ``picks``."""
        return tuple(self.at(limit) for limit in limits)


def front(
    costs: CostTable,
    importance: ImportanceTable,
    choices: BitChoices,
    kind: LimitKind = "bitops",
    *,
    alpha: float,
    accounting: Accounting = STANDARD,
    repair: str = "isotonic",
    latency: LatencyTable | None = None,
    layers: tuple[str, ...] = (),
    cap: int = DEFAULT_CAP,
) -> Front:
    """The complete front of one network under one kind of limit.

    Raises:
        TableError: the tables contradict themselves or each other.
        LimitError: the kind is not a sum over layers, or does not apply.
        FrontTooLargeError: more than ``cap`` labels are needed.
    """
    started = time.monotonic()
    limit = _out_of_the_way(kind, latency, layers)
    problem = build_problem(
        costs,
        choices,
        (limit,),
        importance=importance,
        alpha=alpha,
        accounting=accounting,
        repair=repair,
    )
    return front_of(problem, alpha=alpha, cap=cap, started=started)


def front_of(
    problem: Problem, *, alpha: float, cap: int = DEFAULT_CAP, started: float | None = None
) -> Front:
    """The front of a problem with one additive limit, whose height does not matter.

    Raises:
        LimitError: the limit is not a sum over layers.
        FrontTooLargeError: more than ``cap`` labels are needed.
    """
    began = time.monotonic() if started is None else started
    ceiling = problem.ceilings[0]
    if len(problem.ceilings) != 1 or not is_additive(ceiling):
        raise LimitError(
            f"limit {ceiling.kind}: a front needs one limit that is a sum over layers; "
            "solve it limit by limit"
        )
    labels = pareto_labels(problem.cost, [u[0] for u in problem.use], cap)
    constant = constant_use(ceiling, problem.costs, problem.accounting)
    return Front(
        problem=problem,
        ceiling=ceiling,
        alpha=alpha,
        labels=labels,
        use=labels.use + constant,
        build_s=time.monotonic() - began,
    )


def _out_of_the_way(
    kind: LimitKind, latency: LatencyTable | None, layers: tuple[str, ...]
) -> Limit:
    """A limit of this kind; the front ignores its height."""
    if kind == "bitops_level":
        return Limit(kind="bitops", limit=1)
    return Limit(kind=kind, limit=1, latency=latency, layers=layers)
