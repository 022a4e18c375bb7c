"""How does a choice of options come to fit its limits, and to use them up, at random?

Single units step to a narrower option until everything fits, then single units are widened while
something fits. Random policies and evolutionary searches share it; an own generator makes every
walk repeatable.
"""

from __future__ import annotations

import numpy as np

from solvers.problem import Problem


def least_picks(problem: Problem) -> list[int]:
    """Per unit the option of least use, limits weighed by their bounds; then of fewest bits."""
    room = [max(c.bound, 1) for c in problem.additive]
    picks = []
    for unit, use in zip(problem.units, problem.use, strict=True):
        share = np.zeros(len(unit.options))
        for row, r in zip(use, room, strict=True):
            share += row / r
        sums = [(float(s), o.weight_bits + o.act_bits) for s, o in zip(share, unit.options,
                                                                         strict=True)]  # fmt: skip
        picks.append(min(range(len(sums)), key=sums.__getitem__))
    return picks


def neighbours(problem: Problem, u: int, pick: int, *, up: bool) -> list[int]:
    """Options of unit ``u`` one step wider (or narrower) in one tensor, the other unchanged."""
    options = problem.units[u].options
    now = options[pick]
    found = []
    for tensor in ("weight_bits", "act_bits"):
        other = "act_bits" if tensor == "weight_bits" else "weight_bits"
        mine = getattr(now, tensor)
        steps = [
            (getattr(o, tensor), i)
            for i, o in enumerate(options)
            if getattr(o, other) == getattr(now, other)
            and (getattr(o, tensor) > mine if up else getattr(o, tensor) < mine)
        ]
        if steps:
            found.append(min(steps)[1] if up else max(steps)[1])
    if not found:  # tied bits: no option differs in one tensor only
        total = now.weight_bits + now.act_bits
        sums = [(o.weight_bits + o.act_bits, i) for i, o in enumerate(options)]
        beyond = [s for s in sums if (s[0] > total if up else s[0] < total)]
        if beyond:
            found.append(min(beyond)[1] if up else max(beyond)[1])
    return found


def narrow_at_random(problem: Problem, picks: list[int], rng: np.random.Generator) -> None:
    """Step random units to a cheaper option, in place, until every limit is met.

    The options of least use must fit, or this does not end well: ask ``least_picks`` first.
    """
    least = least_picks(problem)
    order = [int(u) for u in rng.permutation(len(picks))]
    while not problem.fits(problem.bits_by_name(picks)):
        moved = [u for u in order if picks[u] != least[u]]
        u = moved[int(rng.integers(len(moved)))]
        lower = neighbours(problem, u, picks[u], up=False)
        picks[u] = lower[int(rng.integers(len(lower)))] if lower else least[u]


def widen_at_random(problem: Problem, picks: list[int], rng: np.random.Generator) -> None:
    """Widen random units in place until no single widening fits."""
    open_units = {u for u in range(len(picks)) if neighbours(problem, u, picks[u], up=True)}
    while open_units:
        u = sorted(open_units)[int(rng.integers(len(open_units)))]
        wider = neighbours(problem, u, picks[u], up=True)
        before = picks[u]
        for o in (wider[int(i)] for i in rng.permutation(len(wider))):
            picks[u] = o
            if problem.fits(problem.bits_by_name(picks)):
                break
            picks[u] = before
        if picks[u] == before:
            # Use only grows from here, so what does not fit now will not fit later.
            open_units.discard(u)
