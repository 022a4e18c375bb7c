"""Which policies are judged next? Mutation and crossover within the limits, pure and seeded.

A policy is one option per unit (``solvers.problem``). Every proposal is repaired at random until it
fits and then widened until no single widening fits, because a policy that leaves room loses to the
same one widened; so the search moves along the edge of what the limits allow. The first generation
starts from every uniform pair of bits, repaired, and from random ones.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from solvers.errors import LimitError
from solvers.problem import Problem
from solvers.walks import least_picks, narrow_at_random, neighbours, widen_at_random
from trainers.oneshot.config import OneShotConfig

Picks = tuple[int, ...]

# Draws before a proposal that was judged already is given up, and repairs of one proposal.
_DRAWS, _REPAIRS = 50, 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """A policy to be judged.

    Attributes:
        picks: option of each unit.
        origin: ``uniform``, ``random``, ``mutation`` or ``crossover``.
    """

    picks: Picks
    origin: str


def check_reachable(problem: Problem) -> None:
    """Refuse limits that the options of least use do not meet.

    Raises:
        LimitError: naming the limits.
    """
    if not problem.fits(problem.bits_by_name(least_picks(problem))):
        texts = ", ".join(c.limit.text for c in problem.ceilings)
        raise LimitError(f"limits {texts}: the policy of least use exceeds them; raise one")


def use_share(problem: Problem, picks: Sequence[int]) -> float:
    """What a policy uses of its tightest limit, from 0 to 1; 1 without limits."""
    uses = problem.total_uses(problem.bits_by_name(picks))
    shares = [use / max(c.bound, 1) for use, c in zip(uses, problem.ceilings, strict=True)]
    return max(shares, default=1.0)


def repaired(
    problem: Problem, picks: Sequence[int], min_use: float, rng: np.random.Generator
) -> Picks:
    """A policy near ``picks`` that fits and uses at least ``min_use``, or the most that was met."""
    best: tuple[float, Picks] = (-1.0, ())
    for _ in range(_REPAIRS):
        walked = list(picks)
        narrow_at_random(problem, walked, rng)
        widen_at_random(problem, walked, rng)
        best = max(best, (use_share(problem, walked), tuple(walked)))
        if best[0] >= min_use:
            break
    return best[1]


def first_generation(
    problem: Problem, config: OneShotConfig, rng: np.random.Generator
) -> tuple[Proposal, ...]:
    """Uniform pairs nearest to the limits first, at most half; the others random."""
    found: dict[Picks, Proposal] = {}
    for start in _uniform_picks(problem):
        if len(found) >= config.population // 2:
            break
        picks = repaired(problem, start, config.min_use, rng)
        found.setdefault(picks, Proposal(picks=picks, origin="uniform"))
    for _ in range(_DRAWS * config.population):
        if len(found) >= config.population:
            break
        start = tuple(int(rng.integers(len(unit.options))) for unit in problem.units)
        picks = repaired(problem, start, config.min_use, rng)
        found.setdefault(picks, Proposal(picks=picks, origin="random"))
    return tuple(found.values())


def next_generation(
    problem: Problem,
    parents: Sequence[Picks],
    known: Collection[Picks],
    config: OneShotConfig,
    rng: np.random.Generator,
) -> tuple[Proposal, ...]:
    """Children that were never judged; fewer than asked for, or none, where the space is used up.

    Args:
        problem: the units and limits.
        parents: the best policies so far.
        known: every policy judged.
        config: sizes and rates.
        rng: of this generation.
    """
    found: dict[Picks, Proposal] = {}
    num_crossed = round(config.crossover * config.population)
    for i in range(config.population):
        for _ in range(_DRAWS):
            if i < num_crossed and len(parents) > 1:
                origin = "crossover"
                mother, father = rng.choice(len(parents), size=2, replace=False)
                child = _crossed(parents[int(mother)], parents[int(father)], rng)
            else:
                origin = "mutation"
                child = _mutated(problem, parents[int(rng.integers(len(parents)))], config, rng)
            picks = repaired(problem, child, config.min_use, rng)
            if picks not in known and picks not in found:
                found[picks] = Proposal(picks=picks, origin=origin)
                break
    return tuple(found.values())


def _uniform_picks(problem: Problem) -> list[Picks]:
    """Every pair that all open units may take, those nearest to the limits in use first."""
    open_units = [unit for unit in problem.units if len(unit.options) > 1]
    shared = set(open_units[0].options).intersection(*(u.options for u in open_units)) if (
        open_units
    ) else set()  # fmt: skip
    starts = [
        tuple(u.options.index(pair) if len(u.options) > 1 else 0 for u in problem.units)
        for pair in sorted(shared, key=lambda o: (o.weight_bits, o.act_bits))
    ]
    return sorted(starts, key=lambda picks: abs(1.0 - use_share(problem, picks)))


def _crossed(mother: Picks, father: Picks, rng: np.random.Generator) -> Picks:
    from_mother = rng.random(len(mother)) < 0.5
    return tuple(m if c else f for m, f, c in zip(mother, father, from_mother, strict=True))


def _mutated(
    problem: Problem, parent: Picks, config: OneShotConfig, rng: np.random.Generator
) -> Picks:
    """Chosen units take a neighbouring option or any; at least one unit is chosen."""
    open_units = [u for u, unit in enumerate(problem.units) if len(unit.options) > 1]
    child = list(parent)
    if not open_units:
        return parent
    chosen = [u for u in open_units if rng.random() < config.mutation]
    for u in chosen or [open_units[int(rng.integers(len(open_units)))]]:
        near = [
            *neighbours(problem, u, child[u], up=True),
            *neighbours(problem, u, child[u], up=False),
        ]
        if near and rng.random() < 0.5:
            child[u] = near[int(rng.integers(len(near)))]
        else:
            child[u] = int(rng.integers(len(problem.units[u].options)))
    return tuple(child)
