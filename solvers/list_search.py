"""Is there a better policy than this one? Exact search over lists of partial policies.

For any number of additive limits. One label = (uses so far, objective so far); unit by unit every
option is added to every label, and a label goes when

* some limit is exceeded even with the least uses of the units to come;
* it cannot end at or below the best policy known: for multipliers p, what is to come costs at
  least ``sum of min (cost + p . use) - p . (room left)``. The bound holds for every p, and a label
  that has used more of one limit and less of another than planned is caught by other p than the
  best ones: nine around them keep 30 times fewer labels than one (ResNet-50, two limits);
* another label with the same uses costs no more.

If the last list is empty of better ones, the known policy is proven optimal: no tolerance is
involved but the margin by which bounds are rounded in its favour. A first pass that keeps only
the most promising labels nearly always finds the optimum; the second keeps all and proves it.

Ties: of policies equal in objective the one that uses less of the first limit wins, then of the
second, and so on.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from solvers.multipliers import Options

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
LIST_SEARCH_VERSION = "list search/1"
# Labels beyond which the proof is given up: about a second of work.
DEFAULT_CAP = 100_000
_FIRST_PASS = 250
# Where the lists of everything below the known policy grow past the cap, a lower ceiling is tried:
# it admits fewer labels, and a policy found under it is the best of all.
_CEILINGS = (1.0, 0.6, 0.36)
# How far the other multipliers stand from the best ones, relatively.
_AROUND = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """What a search over lists found.

    Attributes:
        picks: position of the best option of every unit; None if nothing at or below the known
            objective exists (exact) or was found (not exact).
        objective: of ``picks``.
        is_exact: every better policy was looked at or ruled out.
    """

    picks: Ints | None
    objective: float
    is_exact: bool


def search_lists(
    options: Options,
    room: Ints,
    prices: Floats,
    known: float,
    *,
    deadline: float = float("inf"),
    cap: int = DEFAULT_CAP,
) -> Listed:
    """The best of all policies whose objective is at most ``known``.

    Args:
        options: of all units.
        room: int64 [limits].
        prices: multipliers around which bounds are taken, float64 [limits].
        known: objective of a policy within the limits.
        deadline: on the monotonic clock.
        cap: most labels to keep at any step.
    """
    around = _around(prices)
    first = _one_pass(options, room, around, known, deadline, _FIRST_PASS, whole=False)
    known = min(known, first.objective)
    bound = float(options.priced(prices).min(axis=1).sum() - prices @ room)
    for share in _CEILINGS:
        ceiling = bound + share * (known - bound)
        second = _one_pass(options, room, around, ceiling, deadline, cap, whole=True)
        # All that could be below a lower ceiling were looked at too; empty, it proves nothing.
        if second.is_exact and (share == 1 or second.picks is not None):
            return second
    return first


def _around(prices: Floats) -> Floats:
    """The best multipliers first, then others near them, [multipliers, limits]."""
    num = len(prices)
    if num <= 2:
        signs = [s for s in itertools.product((-1, 0, 1), repeat=num) if any(s)]
    else:
        axes = np.eye(num, dtype=int)
        signs = [*map(tuple, axes), *map(tuple, -axes), (1,) * num, (-1,) * num]
    factors = 1 + _AROUND * np.array([(0,) * num, *signs])
    return np.unique(factors * prices, axis=0) if num == 0 else factors * prices


def _one_pass(
    options: Options,
    room: Ints,
    around: Floats,
    known: float,
    deadline: float,
    most: int,
    *,
    whole: bool,
) -> Listed:
    """Lists of at most ``most`` labels: cut to the most promising ones, or ``whole`` or nothing."""
    nothing = Listed(picks=None, objective=float("inf"), is_exact=False)
    priced = np.stack([options.priced(p) for p in around])  # [multipliers, units, options]
    best = priced.min(axis=2)
    bounds = best.sum(axis=1) - around @ room
    # Rounded in favour of the label: what only rounding would remove stays.
    ceiling = known + 1e-10 * max(1.0, abs(known), float(np.abs(best).sum(axis=1).max()))
    could = (bounds[:, None, None] + priced - best[:, :, None] <= ceiling).all(axis=0)
    if not could.any(axis=1).all():
        return Listed(picks=None, objective=float("inf"), is_exact=whole)
    kept = [np.flatnonzero(row) for row in could]
    order = _by_weight(options, kept, around[0])
    uses = [options.use[:, u, kept[u]] for u in order]
    costs = [options.cost[u, kept[u]] for u in order]
    least = _to_come(np.stack([use.min(axis=1) for use in uses]))
    paid = _to_come(best.T[order])
    C, W = np.zeros(1), np.zeros((len(room), 1), dtype=np.int64)
    parents: list[Ints] = []
    sizes: list[int] = []
    for step, (cost, use) in enumerate(zip(costs, uses, strict=True)):
        if time.monotonic() > deadline:
            return nothing
        sizes.append(len(C))
        flat = np.arange(len(cost) * len(C))
        C = (cost[:, None] + C).ravel()
        W = (use[:, :, None] + W[:, None, :]).reshape(len(room), -1)
        left = (room - least[step + 1])[:, None]
        fits = (left >= W).all(axis=0)
        flat, C, W = flat[fits], C[fits], W[:, fits]
        promise = None
        for p, after in zip(around, paid[step + 1] - around @ room, strict=True):
            promise = C + p @ W + after
            good = promise <= ceiling
            if not good.all():
                flat, C, W = flat[good], C[good], W[:, good]
        if len(C) > 1:
            rank = _distinct(C, W)
            flat, C, W = flat[rank], C[rank], W[:, rank]
        if len(C) > most:
            if whole:
                return nothing
            promise = C + (around @ W + (paid[step + 1] - around @ room)[:, None]).max(axis=0)
            rank = np.argsort(promise, kind="stable")[:most]
            flat, C, W = flat[rank], C[rank], W[:, rank]
        if not len(C):
            return Listed(picks=None, objective=float("inf"), is_exact=whole)
        parents.append(flat)
    winner = int(np.lexsort((*W[::-1], C))[0])
    objective, at = float(C[winner]), winner
    picks = np.empty(len(order), dtype=np.int64)
    for step in range(len(order) - 1, -1, -1):
        option, at = divmod(int(parents[step][at]), sizes[step])
        picks[order[step]] = kept[order[step]][option]
    return Listed(picks=picks, objective=objective, is_exact=whole)


def _by_weight(options: Options, kept: Sequence[Ints], prices: Floats) -> list[int]:
    """Units whose choice moves the limits most come first, so that small ones fill what is left."""
    spread = [float(prices @ np.ptp(options.use[:, u, k], axis=1)) for u, k in enumerate(kept)]
    return sorted(range(len(kept)), key=lambda u: -spread[u])


def _to_come(per_step: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Sums over this and all later steps, with a last row of zeros; shape [steps + 1, ...]."""
    after = np.zeros((len(per_step) + 1, *per_step.shape[1:]), dtype=per_step.dtype)
    after[:-1] = per_step[::-1].cumsum(axis=0)[::-1]
    return after


def _distinct(C: Floats, W: Ints) -> Ints:
    """The cheapest label of each combination of uses, by position."""
    # Sorting by a mix of the uses is twice as fast as by each; where two mixes collide, labels
    # of equal uses may not meet, and a superfluous one stays.
    mix = W[0].copy()
    for row in W[1:]:
        mix = mix * 0x9E3779B97F4A7C1 + row
    order = np.lexsort((C, mix))
    ordered = W[:, order]
    new = np.ones(len(order), dtype=bool)
    (ordered[:, 1:] != ordered[:, :-1]).any(axis=0, out=new[1:])
    return order[new]
