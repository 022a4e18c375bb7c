"""Which selection near the learned one meets the target?

The penalty of equation 4 draws the argmax to the target, but nothing makes it land there: bits
are integers, and the last updates may tip several layers at once. The repair takes, of all
selections whose cost lies in [band * target, target], the one of the largest probability under
the learned alphas, sum_l log softmax(alpha_l) at its bits. The argmax itself wins whenever it
lies in the band. If nothing lies in the band, it is the selection with the largest cost below
the target, and the result says so.

Solved as a knapsack over decisions (a group of layers is one decision) on a grid of
``_BINS`` bins: each bin keeps its most probable partial selection with its exact integer cost, so
a selection that is returned is never over the target; another within L bins of it may be slightly
more probable. Sums of bits are small integers, where the grid is exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solvers.tables import LayerBits
from trainers.metamix.architecture import Architecture
from trainers.metamix.target import Target

_BINS = 20_000

_Ints = NDArray[np.int64]
_Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Repaired:
    """What the repair decided.

    Attributes:
        bits: of every searched layer.
        cost: exact.
        in_band: whether it lies in [band * target, target].
        changed: layers whose bits differ from the argmax.
    """

    bits: Mapping[str, LayerBits]
    cost: int
    in_band: bool
    changed: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Decision:
    """One group of layers: its options, their costs and log probabilities."""

    layers: tuple[str, ...]
    pairs: tuple[LayerBits, ...]
    costs: tuple[int, ...]
    scores: tuple[float, ...]


def repair(architecture: Architecture, target: Target, band: float) -> Repaired:
    """The most probable selection in the band, else the largest below the target.

    The target must be reachable (``Target.check_reachable``).
    """
    argmax = architecture.selected()
    lowest = math.ceil(band * target.bound)
    cost = target.cost_of(argmax)
    if lowest <= cost <= target.bound:
        return Repaired(bits=argmax, cost=cost, in_band=True, changed=())
    decisions = _decisions(architecture, target)
    picks = _search(decisions, target.bound - target.constant, lowest - target.constant)
    bits = {
        layer: decision.pairs[pick]
        for decision, pick in zip(decisions, picks, strict=True)
        for layer in decision.layers
    }
    cost = target.cost_of(bits)
    return Repaired(
        bits={name: bits[name] for name in argmax},
        cost=cost,
        in_band=lowest <= cost <= target.bound,
        changed=tuple(name for name in argmax if bits[name] != argmax[name]),
    )


def _decisions(architecture: Architecture, target: Target) -> list[_Decision]:
    logs = {
        (layer, unit.tensor): [math.log(max(p, 1e-300)) for p in probabilities.tolist()]
        for unit, probabilities in zip(
            architecture.searched, architecture.probabilities(), strict=True
        )
        for layer in unit.layers
    }
    result = []
    for unit in architecture.units:
        if unit.tensor != "act":
            continue
        first = unit.layers[0]
        weights, acts = target.pairs[first]
        weight_logs = logs.get((first, "weight"), [0.0])
        act_logs = logs.get((first, "act"), [0.0])
        result.append(
            _Decision(
                layers=unit.layers,
                pairs=tuple(LayerBits(weight_bits=w, act_bits=a) for w in weights for a in acts),
                costs=tuple(
                    sum(target.options[layer][i][j] for layer in unit.layers)
                    for i in range(len(weights))
                    for j in range(len(acts))
                ),
                scores=tuple(w + a for w in weight_logs for a in act_logs),
            )
        )
    return result


def _search(decisions: Sequence[_Decision], bound: int, lowest: int) -> list[int]:
    """Index of the chosen option of every decision."""
    width = max(1, bound // _BINS)
    costs: _Ints = np.zeros(1, dtype=np.int64)
    scores: _Floats = np.zeros(1)
    # What the cheapest completion still needs: partial selections beyond it lead nowhere.
    rest = sum(min(d.costs) for d in decisions)
    trail: list[tuple[_Ints, _Ints]] = []
    for decision in decisions:
        rest -= min(decision.costs)
        option_costs = np.array(decision.costs, dtype=np.int64)
        option_scores = np.array(decision.scores)
        all_costs = (costs[:, None] + option_costs[None, :]).ravel()
        all_scores = (scores[:, None] + option_scores[None, :]).ravel()
        (fits,) = np.nonzero(all_costs + rest <= bound)
        # Best first within a bin; ties to the larger cost, then to the earlier option.
        order = fits[np.lexsort((-all_costs[fits], -all_scores[fits], all_costs[fits] // width))]
        bins = all_costs[order] // width
        kept = order[np.concatenate(([True], bins[1:] != bins[:-1]))]
        costs, scores = all_costs[kept], all_scores[kept]
        trail.append((kept // len(option_costs), kept % len(option_costs)))
    in_band = np.nonzero(costs >= lowest)[0]
    at = int(in_band[np.argmax(scores[in_band])]) if len(in_band) else int(np.argmax(costs))
    picks = []
    for parents, options in reversed(trail):
        picks.append(int(options[at]))
        at = int(parents[at])
    return picks[::-1]
