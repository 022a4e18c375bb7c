"""What is a unit of each limit worth, when several limits hold at once?

For multipliers p >= 0 (objective per unit of each resource) no solution is below

    L(p) = sum over units of min over options (cost + p . use) - p . room

The p of the highest bound are the prices of the linear relaxation. L is concave and made of flat
pieces; the ellipsoid method finds its top from values and slopes alone. Any p it returns gives a
true bound, so how exact they are decides how fast a proof is, never whether it holds. 4 ms for
ResNet-50 under two limits, where the linear program through PuLP takes 17 to 30.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
# Prices searched, in multiples of (range of the objective / range of the resource).
_RADIUS = 100.0
_PRECISION = 1e-8


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The options of all units as rectangles, padded with options of infinite cost.

    Attributes:
        cost: float64 [units, options].
        use: int64 [limits, units, options].
    """

    cost: Floats
    use: Ints

    @staticmethod
    def of(cost: Sequence[Floats], use: Sequence[Ints], kept: Sequence[Ints]) -> Options:
        """Some options of every unit, in the order of ``kept``."""
        width = max(len(k) for k in kept)
        padded = np.full((len(cost), width), np.inf)
        uses = np.zeros((len(use[0]), len(cost), width), dtype=np.int64)
        for u, k in enumerate(kept):
            padded[u, : len(k)] = cost[u][k]
            uses[:, u, : len(k)] = use[u][:, k]
        return Options(cost=padded, use=uses)

    def priced(self, prices: Floats) -> Floats:
        """Cost plus paid uses, [units, options]."""
        return self.cost + np.tensordot(prices, self.use, 1)


def best_multipliers(options: Options, room: Ints) -> Floats | None:
    """Multipliers of (nearly) the highest Lagrangian bound; None if they show that nothing fits.

    Args:
        options: of all units.
        room: int64 [limits], at least two.
    """
    num = len(room)
    offered = np.isfinite(options.cost)
    highest = float(np.where(offered, options.cost, -np.inf).max(axis=1).sum())
    span = highest - float(options.cost.min(axis=1).sum())
    if span <= 0:
        return np.zeros(num)
    # Counted from the least uses: differences of large numbers would eat the precision.
    least = options.use.min(axis=2, where=offered, initial=2**62)
    above = np.where(offered, options.use - least[:, :, None], 0)
    scale = span / np.maximum(above.max(axis=2).sum(axis=1), 1)
    use = above * scale[:, None, None]
    scaled_room = (room - least.sum(axis=1)) * scale
    rows = np.arange(len(options.cost))
    at = np.ones(num)
    shape = np.eye(num) * _RADIUS**2
    best, best_at = -math.inf, np.zeros(num)
    # The volume shrinks by a constant factor a step; the count only guards against rounding.
    for _ in range(500 * num):
        depth = 0.0
        below = np.flatnonzero(at < 0)
        if len(below):
            slope = np.zeros(num)
            slope[below[0]] = -1.0
            reach = math.sqrt(max(float(slope @ shape @ slope), 0.0))
            depth = -float(at[below[0]])
        else:
            priced = options.cost + np.tensordot(at, use, 1)
            picks = priced.argmin(axis=1)
            value = float(priced[rows, picks].sum() - at @ scaled_room)
            if value > best:
                best, best_at = value, at
            slope = scaled_room - use[:, rows, picks].sum(axis=1)
            reach = math.sqrt(max(float(slope @ shape @ slope), 0.0))
            if value + reach - best <= _PRECISION * span:
                break
            depth = best - value
        if depth >= reach:
            break
        depth /= reach
        step = shape @ slope / reach
        at = at - (1 + num * depth) / (num + 1) * step
        shrunk = 2 * (1 + num * depth) / ((num + 1) * (1 + depth))
        shape = num**2 * (1 - depth**2) / (num**2 - 1) * (shape - shrunk * np.outer(step, step))
    if best > highest + _PRECISION * (span + abs(highest)):
        return None
    prices: Floats = best_at * scale
    return _without_idle(options, room, prices, _PRECISION * span)


def _without_idle(options: Options, room: Ints, prices: Floats, tolerance: float) -> Floats:
    """Prices that do nothing for the bound become 0: such a limit has slack."""

    def bound(p: Floats) -> float:
        return float(options.priced(p).min(axis=1).sum() - p @ room)

    best = bound(prices)
    for k in range(len(prices)):
        without = prices.copy()
        without[k] = 0.0
        if bound(without) >= best - tolerance:
            prices = without
    return prices
