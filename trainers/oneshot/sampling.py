"""Which policies does a fit learn from? Random ones spread evenly over BitOps, pure and seeded.

Bits drawn evenly would all cost about the same. So each policy is drawn at a level of its own,
evenly spaced from the cheapest to the dearest; and leans by chance towards wide weights or wide
activations, so that the two can be told apart. The uniform policies come first.
"""

from __future__ import annotations

import math

import numpy as np

from solvers.errors import LimitError
from solvers.problem import Problem
from trainers.oneshot.config import FittedConfig
from trainers.oneshot.evolution import Picks, Proposal, repaired

# At most this share of the sample is uniform policies; a draw that came before is made again.
_UNIFORM_SHARE, _DRAWS = 0.25, 20


def sample(
    problem: Problem, config: FittedConfig, rng: np.random.Generator
) -> tuple[Proposal, ...]:
    """Different policies of one network; fewer than asked for where its space is small.

    Args:
        problem: with one limit, on BitOps, whose height is set for each policy.
        config: how many, and between which levels.
        rng: of the sample.

    Raises:
        LimitError: ``levels`` lies outside what the candidates reach.
    """
    low, high = level_range(problem, config.levels)
    uniform = [p for p in _uniform(problem) if low <= level_of(problem, p) <= high]
    most = int(_UNIFORM_SHARE * config.policies)
    if len(uniform) > most:
        uniform = [uniform[i] for i in np.linspace(0, len(uniform) - 1, most).astype(int)]
    found = {picks: Proposal(picks=picks, origin="uniform") for picks in uniform}
    missing = config.policies - len(found)
    for i in range(missing):
        for _ in range(_DRAWS):
            level = low + (high - low) * (i + rng.random()) / missing
            at = problem.with_bounds([_bound(problem, level)])
            picks = repaired(at, _leaning(problem, rng), 0.98, rng)
            if picks not in found:
                found[picks] = Proposal(picks=picks, origin="random")
                break
    return tuple(found.values())


def level_range(problem: Problem, levels: tuple[float, float] | None) -> tuple[float, float]:
    """The lowest and highest level of the sample.

    Raises:
        LimitError: nothing lies between them.
    """
    searched = [
        use[0] for use, u in zip(problem.use, problem.units, strict=True) if not u.is_pinned
    ]
    low = math.sqrt(sum(int(use.min()) for use in searched) / _macs(problem))
    high = math.sqrt(sum(int(use.max()) for use in searched) / _macs(problem))
    if levels is None:
        return low, high
    asked = max(low, levels[0]), min(high, levels[1])
    if asked[0] > asked[1]:
        raise LimitError(
            f"fitted.levels: no policy lies between {levels[0]:g} and {levels[1]:g} bits; these "
            f"candidates reach {low:.3g} to {high:.3g}"
        )
    return asked


def level_of(problem: Problem, picks: Picks) -> float:
    """The BitOps of a policy as the bits of the uniform network of the same BitOps, pins aside."""
    used = sum(int(use[0, pick]) for use, pick in zip(problem.use, picks, strict=True))
    return math.sqrt((used - _pinned(problem)) / _macs(problem))


def _bound(problem: Problem, level: float) -> int:
    """The height of the ceiling for a level, at least the least use.

    The square of a root may fall below the integer that the root was taken of.
    """
    beside_units = problem.ceilings[0].bound - int(problem.room[0])
    height = _pinned(problem) + math.floor(level**2 * _macs(problem))
    return beside_units + max(height, sum(int(use[0].min()) for use in problem.use))


def _pinned(problem: Problem) -> int:
    units = zip(problem.use, problem.units, strict=True)
    return sum(int(use[0, 0]) for use, unit in units if unit.is_pinned)


def _macs(problem: Problem) -> int:
    return sum(
        layer.num_macs for unit in problem.units for layer in unit.layers if not unit.is_pinned
    )


def _uniform(problem: Problem) -> list[Picks]:
    open_units = [unit for unit in problem.units if len(unit.options) > 1]
    if not open_units:
        return []
    shared = set(open_units[0].options).intersection(*(u.options for u in open_units))
    return [
        tuple(u.options.index(pair) if len(u.options) > 1 else 0 for u in problem.units)
        for pair in sorted(shared, key=lambda o: (o.weight_bits * o.act_bits, o.weight_bits))
    ]


def _leaning(problem: Problem, rng: np.random.Generator) -> Picks:
    """Options drawn with a preference for wide or narrow weights and activations."""
    towards = rng.normal(size=2)
    picks = []
    for unit in problem.units:
        bits = np.array([[o.weight_bits, o.act_bits] for o in unit.options], dtype=np.float64)
        spread = bits.std(axis=0)
        merit = ((bits - bits.mean(axis=0)) / np.where(spread > 0, spread, 1.0)) @ towards
        chances = np.exp(merit - merit.max())
        picks.append(int(rng.choice(len(unit.options), p=chances / chances.sum())))
    return tuple(picks)
