"""Why did this layer get its bits? Its options side by side, and what the second choice costs.

An option's *reduced cost* adds to its objective what its use of the limits is worth elsewhere, at
the prices of the linear relaxation, relative to the best option: near zero means a close call.
The *next choice* is exact: everything is solved again with the chosen pair forbidden here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from solvers.certificate import SolveStatus
from solvers.errors import TableError
from solvers.importance import Indicators
from solvers.problem import problem_of
from solvers.result import SolveRequest
from solvers.search import search
from solvers.tables import LayerBits

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptionReport:
    """One pair of bits that the layer's unit may take.

    Attributes:
        bits: the pair.
        objective: summed importance of the unit at it.
        uses: what the unit uses of each additive limit at it.
        reduced_cost: distance from the unit's best option once uses are paid for; None where the
            relaxation gives no prices.
        is_chosen: the policy has it.
    """

    bits: LayerBits
    objective: float
    uses: tuple[int, ...]
    reduced_cost: float | None
    is_chosen: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerReport:
    """One layer in the solved policy.

    Attributes:
        layer: its name.
        members: layers that share its bits, itself included.
        status: of the solve.
        chosen: its bits; None if nothing fits.
        indicators: (tensor, bits, learned value, value used), an erased one is None.
        limits: the additive limits, in the order of ``uses``.
        prices: objective that 1 % more of each limit buys, by the relaxation.
        options: every option, by bits.
        next_status: of the solve with the chosen pair forbidden here; None if there was none,
            because nothing fits or the pair is the only one the layer may take.
        next_bits: what it gets then; None without a policy.
        next_costs: how much the objective of the whole policy rises by that.
    """

    layer: str
    members: tuple[str, ...]
    status: SolveStatus
    chosen: LayerBits | None
    indicators: tuple[tuple[str, int, float | None, float | None], ...]
    limits: tuple[str, ...]
    prices: tuple[float | None, ...]
    options: tuple[OptionReport, ...]
    next_status: SolveStatus | None
    next_bits: LayerBits | None
    next_costs: float | None

    @property
    def is_proven(self) -> bool:
        """Whether both answers, the policy and its next choice, are the last word."""
        last = (None, SolveStatus.PROVEN_OPTIMAL, SolveStatus.INFEASIBLE)
        return self.status is SolveStatus.PROVEN_OPTIMAL and self.next_status in last


def report_layer(request: SolveRequest, layer: str) -> LayerReport:
    """Solve the request and report on one layer.

    Raises:
        TableError: no such layer.
        SolverFailedError: the backend broke.
    """
    problem = problem_of(request)
    request.costs.layer(layer)
    (u,) = (i for i, unit in enumerate(problem.units) if layer in {s.name for s in unit.layers})
    unit = problem.units[u]
    found = search(
        problem, solver=request.solver, time_limit_s=request.time_limit_s, with_prices=True
    )
    pick = None if found.picks is None else found.picks[u]
    additive = [k for k, c in enumerate(problem.ceilings) if c in problem.additive]
    prices = [found.prices[k] if found.prices else None for k in additive]
    reduced: list[float | None] = [None] * len(unit.options)
    if pick is not None and all(p is not None for p in prices):
        paid = problem.cost[u] + np.array([p or 0.0 for p in prices]) @ problem.use[u]
        reduced = [float(v - paid.min()) for v in paid]
    next_status, next_bits, next_costs = None, None, None
    if pick is not None and len(unit.options) > 1:
        others = [o for o in range(len(unit.options)) if o != pick]
        smaller = replace(
            problem,
            units=_put(problem.units, u, replace(unit, options=_at(unit.options, others))),
            cost=_put(problem.cost, u, problem.cost[u][others]),
            use=_put(problem.use, u, problem.use[u][:, others]),
        )
        second = search(smaller, solver=request.solver, time_limit_s=request.time_limit_s)
        next_status = second.status
        if second.picks is not None and found.picks is not None:
            next_bits = smaller.units[u].options[second.picks[u]]
            next_costs = smaller.objective(second.picks) - problem.objective(found.picks)
    return LayerReport(
        layer=layer,
        members=tuple(s.name for s in unit.layers),
        status=found.status,
        chosen=None if pick is None else unit.options[pick],
        indicators=_indicators(request, problem.indicators, layer),
        limits=tuple(problem.ceilings[k].limit.text for k in additive),
        prices=tuple(
            None if p is None else p * problem.ceilings[k].bound * 0.01
            for p, k in zip(prices, additive, strict=True)
        ),
        options=tuple(
            OptionReport(
                bits=bits,
                objective=float(problem.cost[u][o]),
                uses=tuple(int(n) for n in problem.use[u][:, o]),
                reduced_cost=reduced[o],
                is_chosen=o == pick,
            )
            for o, bits in enumerate(unit.options)
        ),
        next_status=next_status,
        next_bits=next_bits,
        next_costs=next_costs,
    )


def _indicators(
    request: SolveRequest, indicators: Indicators | None, layer: str
) -> tuple[tuple[str, int, float | None, float | None], ...]:
    if indicators is None:
        raise TableError("importance table: none given")
    learned = request.importance.values()
    return tuple(
        (tensor, bits, learned.get(key), value if math.isfinite(value) else None)
        for key, value in sorted(indicators.values.items(), key=lambda kv: (kv[0][1], kv[0][2]))
        for name, tensor, bits in [key]
        if name == layer
    )


def _put(values: tuple[T, ...], at: int, value: T) -> tuple[T, ...]:
    return (*values[:at], value, *values[at + 1 :])


def _at(values: tuple[T, ...], indices: Sequence[int]) -> tuple[T, ...]:
    return tuple(values[i] for i in indices)
