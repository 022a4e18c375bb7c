"""Which options can be left out before a solver is asked, without losing the optimum?

Two exact reductions:

* Dominance: an option that is no cheaper than another one of its unit and uses no less of
  anything. Of equal ones the one that uses less stays, then the one with fewer bits. This is the
  first part of the tie-break.
* With one additive limit, Lagrangian bounds: for a price p per unit of resource,
  ``sum_u min_o (cost + p * use) - p * room`` is below every solution. An option whose reduced
  cost lifts that bound above a known solution cannot be in a better one. On the papers' networks
  this leaves a few units with a few options, which is what makes a solve cost milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def undominated(cost: Floats, use: Ints) -> Ints:
    """Indices, ascending, of the options worth keeping; ``use`` has shape [resources, options]."""
    num = len(cost)
    no_worse = np.ones((num, num), dtype=bool)  # [i, j]: i is no worse than j in every respect
    for row in (cost, *use):
        no_worse &= row[:, None] <= row[None, :]
    # Of options equal in every respect the first one stays.
    beats = no_worse & (~no_worse.T | np.tri(num, k=-1, dtype=bool).T)
    return np.flatnonzero(~beats.any(axis=0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Core:
    """What is left to decide, and what is already known.

    Attributes:
        kept: per unit the options that may be in a better solution than ``picks``.
        picks: a solution within the limit, as indices into the full options.
        objective: its objective.
        bound: no solution is below this.
        price: objective per unit of the resource at the linear optimum.
    """

    kept: tuple[Ints, ...]
    picks: Ints
    objective: float
    bound: float
    price: float


def reduce_to_core(cost: Sequence[Floats], use: Sequence[Ints], room: int) -> Core | None:
    """Lagrangian core of a problem with one additive limit; None if nothing fits.

    Args:
        cost: per unit, float64 [options].
        use: per unit, int64 [options].
        room: what the units may use together.
    """
    units = range(len(cost))
    least = [_best(u, c) for u, c in zip(use, cost, strict=True)]
    if sum(int(use[u][least[u]]) for u in units) > room:
        return None
    width = max(len(c) for c in cost)
    C = np.full((len(cost), width), np.inf)
    W = np.zeros((len(cost), width))
    for u in units:
        C[u, : len(cost[u])] = cost[u]
        W[u, : len(use[u])] = use[u]
    rows = np.arange(len(cost))
    free = np.array([_best(c, w) for c, w in zip(cost, use, strict=True)])
    if sum(int(use[u][free[u]]) for u in units) <= room:
        objective = float(sum(cost[u][free[u]] for u in units))
        return Core(
            kept=tuple(np.array([o]) for o in free), picks=free, objective=objective,
            bound=objective, price=0.0,
        )  # fmt: skip
    price = _critical_price(C, W, rows, np.array(least), free, float(room))
    lagrangian = C + price * W
    best = lagrangian.min(axis=1)
    bound = float(best.sum() - price * room)
    reduced = lagrangian - best[:, None]
    picks = _improved(C, W, _feasible_start(reduced, W, least, room), room)
    objective = float(C[rows, picks].sum())
    # The margin keeps options that only rounding would remove.
    allowed = objective - bound + 1e-9 * max(1.0, abs(objective))
    kept = tuple(np.flatnonzero(reduced[u, : len(cost[u])] <= allowed) for u in units)
    return Core(kept=kept, picks=picks, objective=objective, bound=bound, price=price)


def _best(first: npt.NDArray[np.generic], then: npt.NDArray[np.generic]) -> int:
    """Index of the smallest ``first``, ties by ``then``, then by position."""
    return int(np.lexsort((then, first))[0])


def _critical_price(
    C: Floats, W: Floats, rows: Ints, least: Ints, free: Ints, room: float
) -> float:
    """The price at which the Lagrangian optimum passes the limit: its dual optimum.

    Newton steps between two policies, one above the limit and one within it: the price at which
    both cost the same is tried next; it ends when no third policy is better at that price.
    """
    over, under = free, least
    price = 0.0
    # Each step lowers a finite function; the count is a guard against rounding in circles only,
    # and any price gives a valid bound.
    for _ in range(1000):
        cost_over, use_over = C[rows, over].sum(), W[rows, over].sum()
        cost_under, use_under = C[rows, under].sum(), W[rows, under].sum()
        price = float((cost_under - cost_over) / (use_over - use_under))
        lagrangian = C + price * W
        picks = lagrangian.argmin(axis=1)
        value = lagrangian[rows, picks].sum()
        if value >= cost_over + price * use_over - 1e-12 * abs(cost_over + price * use_over):
            return price
        if W[rows, picks].sum() > room:
            over = picks
        else:
            under = picks
    return price


def _feasible_start(reduced: Floats, W: Floats, least: Sequence[int], room: int) -> Ints:
    """Lagrangian picks of least use; where even they do not fit, the least use of all."""
    near = reduced <= 1e-9 * max(1.0, float(np.nanmax(reduced[np.isfinite(reduced)])))
    picks: Ints = np.where(near, W, np.inf).argmin(axis=1)
    if W[np.arange(len(W)), picks].sum() > room:
        return np.array(least)
    return picks


def _improved(C: Floats, W: Floats, picks: Ints, room: int) -> Ints:
    """Best single changes, one after another, while one fits and lowers the objective."""
    rows = np.arange(len(C))
    picks = picks.copy()
    while True:
        gain = C[rows, picks][:, None] - C
        extra = W - W[rows, picks][:, None]
        slack = room - W[rows, picks].sum()
        gain[(extra > slack) | ~np.isfinite(C)] = -np.inf
        unit, option = divmod(int(gain.argmax()), C.shape[1])
        if gain[unit, option] <= 1e-15:
            return picks
        picks[unit] = option


def reduced_costs(
    cost: Sequence[Floats], use: Sequence[Ints], prices: Sequence[float], room: Ints
) -> tuple[float, list[Floats]]:
    """Lagrangian bound at given prices, and what each option adds to it.

    A solution that takes an option has an objective of at least bound + reduced cost, whatever
    the (non-negative) prices are.

    Args:
        cost: per unit, float64 [options].
        use: per unit, int64 [limits, options].
        prices: objective per unit of each limit's resource.
        room: int64 [limits].
    """
    price = np.array(prices)
    lagrangian = [c + price @ u for c, u in zip(cost, use, strict=True)]
    best = [float(v.min()) for v in lagrangian]
    bound = sum(best) - float(price @ room)
    return bound, [v - b for v, b in zip(lagrangian, best, strict=True)]


def that_can_fit(use: Sequence[Ints], kept: Sequence[Ints], room: Ints) -> list[Ints] | None:
    """Kept options that fit beside the least uses of all other units; None if nothing does.

    Repeated until nothing changes, in integers. What is left may still clash in combination, but
    what is dropped is in no solution.

    Args:
        use: per unit, int64 [limits, options].
        kept: per unit, indices of the options to consider.
        room: int64 [limits].
    """
    current = [np.asarray(k) for k in kept]
    while True:
        least = [u[:, k].min(axis=1) for u, k in zip(use, current, strict=True)]
        slack = room - sum(least, start=np.zeros_like(room))
        if bool((slack < 0).any()):
            return None
        smaller = [
            k[(u[:, k] - low[:, None] <= slack[:, None]).all(axis=0)]
            for u, k, low in zip(use, current, least, strict=True)
        ]
        if any(len(k) == 0 for k in smaller):
            return None
        if all(len(a) == len(b) for a, b in zip(smaller, current, strict=True)):
            return smaller
        current = smaller
