"""What would a policy without the method look like, within the same limits?

A method is worth something only against these: every layer the same (uniform), bits at random
within the limits, the indicators ranked the wrong way round, and greedy steps. Each returns None
where it cannot meet the limits, never a policy that exceeds one.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from solvers.accounting import STANDARD, Accounting
from solvers.errors import TableError
from solvers.limits import Limit
from solvers.policy import Policy, make_policy
from solvers.problem import build_problem
from solvers.tables import BitChoices, CostTable, ImportanceTable, LayerBits
from solvers.uses import is_additive
from solvers.walks import least_picks, narrow_at_random, widen_at_random


def uniform(
    costs: CostTable,
    choices: BitChoices,
    limits: Sequence[Limit] = (),
    *,
    accounting: Accounting = STANDARD,
) -> Policy | None:
    """The largest uniform network that fits: every searched unit at the same pair of bits.

    The pair of most BitOps wins; at equal BitOps the more balanced one (4x4 before 2x8), then the
    one with more activation bits. Only pairs that every searched unit may take are considered.
    """
    return next((p for _, p in _fitting_mixes(costs, choices, limits, accounting)), None)


def uniform_mixes(
    costs: CostTable,
    choices: BitChoices,
    limits: Sequence[Limit] = (),
    *,
    accounting: Accounting = STANDARD,
) -> dict[LayerBits, Policy]:
    """Every uniform network that fits and that no other fitting one exceeds, by its pair of bits.

    A pair lies below another when it has fewer bits in one tensor and no more in the other: W2A2
    below W2A3, W2A3 beside W3A2. To beat "uniform" is to beat each of these. Ascending.
    """
    fitting = dict(_fitting_mixes(costs, choices, limits, accounting))
    return {
        pair: fitting[pair]
        for pair in sorted(fitting, key=lambda o: (o.weight_bits, o.act_bits))
        if not any(
            pair != other
            and pair.weight_bits <= other.weight_bits
            and pair.act_bits <= other.act_bits
            for other in fitting
        )
    }


def _fitting_mixes(
    costs: CostTable, choices: BitChoices, limits: Sequence[Limit], accounting: Accounting
) -> Iterator[tuple[LayerBits, Policy]]:
    """Uniform networks within the limits, largest first."""
    problem = build_problem(costs, choices, limits, importance=None, accounting=accounting)
    searched = [unit for unit in problem.units if not unit.is_pinned]
    if not searched:
        raise TableError(f"uniform policy of {costs.model!r}: every layer is pinned")
    # A unit that a pinned member leaves one option keeps it; the others must agree.
    open_units = [unit for unit in searched if len(unit.options) > 1] or searched
    pairs = set(open_units[0].options).intersection(*(unit.options for unit in open_units))
    ordered = sorted(
        pairs,
        key=lambda o: (
            o.weight_bits * o.act_bits,
            -abs(o.weight_bits - o.act_bits),
            o.act_bits,
        ),
        reverse=True,
    )
    for pair in ordered:
        bits_by_name = {
            layer.name: pair if pair in unit.options else unit.options[0]
            for unit in problem.units
            for layer in unit.layers
        }
        for unit in problem.units:
            if unit.is_pinned:
                bits_by_name.update({layer.name: unit.options[0] for layer in unit.layers})
        if problem.fits(bits_by_name):
            yield pair, make_policy(costs, bits_by_name, "uniform", accounting)


def uniform_at(costs: CostTable, bits: LayerBits, *, accounting: Accounting = STANDARD) -> Policy:
    """Every layer that is not pinned at ``bits``."""
    bits_by_name = {layer.name: layer.pinned or bits for layer in costs}
    return make_policy(costs, bits_by_name, "uniform", accounting)


def random_policy(
    costs: CostTable,
    choices: BitChoices,
    limits: Sequence[Limit],
    *,
    seed: int,
    accounting: Accounting = STANDARD,
) -> Policy | None:
    """A random policy that uses up its limits: no single widening of a unit fits any more.

    Options are drawn for all units, then single units, in random order, step to the next cheaper
    option until everything fits, then single units are widened while something fits. The same
    seed gives the same policy.
    """
    problem = build_problem(costs, choices, limits, importance=None, accounting=accounting)
    rng = np.random.default_rng(_stream("random policy", seed))
    picks = [int(rng.integers(len(unit.options))) for unit in problem.units]
    if not problem.fits(problem.bits_by_name(least_picks(problem))):
        # Two limits can pull apart (weight bits against activation bits) only through groups or
        # latencies that fall when bits rise; the random walk does not search that corner.
        return None
    narrow_at_random(problem, picks, rng)
    widen_at_random(problem, picks, rng)
    return make_policy(costs, problem.bits_by_name(picks), "random", accounting)


def reversed_importance(table: ImportanceTable) -> ImportanceTable:
    """LIMPQ's "Ours-R": for each tensor and bit-width, ranks of the layers are turned round.

    The layer with the k-th largest indicator gets the k-th smallest value. Maximising the
    objective instead would leave most of the budget unused; this keeps it, and keeps indicators
    falling as bits rise where they did.
    """
    by_column: dict[tuple[str, int], list[int]] = {}
    for i, row in enumerate(table.rows):
        by_column.setdefault((row.tensor, row.bits), []).append(i)
    rows = list(table.rows)
    for members in by_column.values():
        ascending = sorted(members, key=lambda i: (table.rows[i].value, i))
        for i, j in zip(ascending, reversed(ascending), strict=True):
            rows[i] = replace(table.rows[i], value=table.rows[j].value)
    return replace(table, method=f"{table.method}-reversed", rows=tuple(rows))


def greedy(
    costs: CostTable,
    importance: ImportanceTable,
    choices: BitChoices,
    limits: Sequence[Limit],
    *,
    alpha: float,
    accounting: Accounting = STANDARD,
    repair: str = "isotonic",
) -> Policy | None:
    """From the least options, the step that buys most objective per share of the limits.

    A step moves one unit to another of its options; its price is the sum over limits of the
    extra use as a share of the limit. Steps that do not fit are passed over for good.
    """
    problem = build_problem(
        costs, choices, limits, importance=importance, alpha=alpha, accounting=accounting,
        repair=repair,
    )  # fmt: skip
    picks = least_picks(problem)
    if not problem.fits(problem.bits_by_name(picks)):
        return None
    room = [max(c.bound, 1) for c in problem.ceilings if is_additive(c)]
    closed: set[tuple[int, int]] = set()
    queue: list[tuple[float, int, int, int]] = []

    def push(u: int) -> None:
        now = picks[u]
        for o in range(len(problem.cost[u])):
            gain = float(problem.cost[u][now] - problem.cost[u][o])
            if gain <= 0 or (u, o) in closed:
                continue
            extra = problem.use[u][:, o] - problem.use[u][:, now]
            share = max(sum(float(e) / r for e, r in zip(extra, room, strict=True)), 1e-15)
            heapq.heappush(queue, (-gain / share, u, o, now))

    for u in range(len(picks)):
        push(u)
    while queue:
        _, u, o, seen_at = heapq.heappop(queue)
        if seen_at != picks[u]:
            continue
        picks[u] = o
        if problem.fits(problem.bits_by_name(picks)):
            push(u)
        else:
            picks[u] = seen_at
            closed.add((u, o))
    return make_policy(costs, problem.bits_by_name(picks), "greedy", accounting)


def _stream(name: str, seed: int) -> int:
    """A seed of its own for a named purpose."""
    return int.from_bytes(hashlib.sha256(f"{name}/{seed}".encode()).digest()[:8], "big")
