"""What exactly is to be decided? Equation 4 as arrays: one row of options per unit.

minimise    sum over units of cost[option]
subject to  sum over units of use[k, option] <= room[k]   for every additive limit k
            and the activation peak, where it is limited (``peaks.py``)

Everything that solves (ILP, front, greedy, enumeration) starts from this value, so that they
cannot disagree about what the question was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from solvers.accounting import STANDARD, Accounting, check_magnitude
from solvers.errors import TableError
from solvers.importance import Indicators, check_alpha, read_indicators
from solvers.limits import Ceiling, Limit, ceilings_of
from solvers.tables import BitChoices, CostTable, ImportanceTable, LayerBits
from solvers.units import Unit, units_of
from solvers.uses import (
    Widths,
    constant_use,
    is_additive,
    option_uses,
    total_use,
)

if TYPE_CHECKING:
    from solvers.result import SolveRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Equation 4 for one network, alpha and set of limits.

    Attributes:
        costs: the network.
        choices: candidate bits, as given.
        accounting: how costs are counted.
        units: decisions, options forbidden by the repair rule already left out.
        ceilings: every limit in integers, in the order asked.
        cost: per unit the objective of each option, float64 [options].
        use: per unit the use of each additive limit, int64 [additive limits, options].
        room: what the units may use of each additive limit, int64 [additive limits].
        indicators: the repaired indicators, with their violations; None for pure cost questions.
    """

    costs: CostTable
    choices: BitChoices
    accounting: Accounting
    units: tuple[Unit, ...]
    ceilings: tuple[Ceiling, ...]
    cost: tuple[npt.NDArray[np.float64], ...]
    use: tuple[npt.NDArray[np.int64], ...]
    room: npt.NDArray[np.int64]
    indicators: Indicators | None = None

    @property
    def additive(self) -> tuple[Ceiling, ...]:
        """The limits that are sums over layers, in the order of ``use`` and ``room``."""
        return tuple(c for c in self.ceilings if is_additive(c))

    @property
    def peaks(self) -> tuple[Ceiling, ...]:
        """The limits on the activation peak."""
        return tuple(c for c in self.ceilings if not is_additive(c))

    def bits_by_name(self, picks: Sequence[int] | npt.NDArray[np.int64]) -> dict[str, LayerBits]:
        """The bits of every layer when unit u takes its option ``picks[u]``."""
        chosen = {
            layer.name: unit.options[int(pick)]
            for unit, pick in zip(self.units, picks, strict=True)
            for layer in unit.layers
        }
        return {name: chosen[name] for name in self.costs.names}

    def objective(self, picks: Sequence[int] | npt.NDArray[np.int64]) -> float:
        """Objective of one option per unit, added in the order of the units."""
        return float(sum(c[int(p)] for c, p in zip(self.cost, picks, strict=True)))

    def total_uses(self, bits_by_name: Mapping[str, LayerBits]) -> tuple[int, ...]:
        """Integer use of every limit, counted from the policy itself."""
        return tuple(total_use(c, self.costs, bits_by_name, self.accounting) for c in self.ceilings)

    def fits(self, bits_by_name: Mapping[str, LayerBits]) -> bool:
        """No limit is exceeded, judged in integers."""
        uses = self.total_uses(bits_by_name)
        return all(use <= c.bound for use, c in zip(uses, self.ceilings, strict=True))

    def with_bounds(self, bounds: Sequence[int]) -> Problem:
        """The same problem with its limits at other heights."""
        return self.with_ceilings(
            [c.tightened_to(b) for c, b in zip(self.ceilings, bounds, strict=True)]
        )

    def with_ceilings(self, ceilings: Sequence[Ceiling]) -> Problem:
        """The same problem with ceilings over the same resources in the same order."""
        room = _room(ceilings, self.costs, self.accounting)
        return replace(self, ceilings=tuple(ceilings), room=room)

    def with_only(self, indices: Sequence[int]) -> Problem:
        """The same problem with some of its limits."""
        ceilings = [self.ceilings[k] for k in indices]
        additive = [k for k, c in enumerate(self.ceilings) if is_additive(c)]
        rows = [row for row, k in enumerate(additive) if k in indices]
        smaller = replace(self, ceilings=tuple(ceilings), use=tuple(u[rows] for u in self.use))
        return smaller.with_ceilings(ceilings)

    def with_cost(self, cost: Sequence[npt.NDArray[np.float64]]) -> Problem:
        """The same problem with another objective."""
        return replace(self, cost=tuple(cost))


def build_problem(
    costs: CostTable,
    choices: BitChoices,
    limits: Sequence[Limit],
    *,
    importance: ImportanceTable | None,
    alpha: float = 1.0,
    accounting: Accounting = STANDARD,
    repair: str = "isotonic",
) -> Problem:
    """Join tables by name and lay equation 4 out; without importance every cost is 0.

    Raises:
        TableError: the tables contradict themselves or each other.
        LimitError: a limit does not apply to this network.
    """
    check_magnitude(costs)
    check_alpha(alpha)
    units = units_of(costs, choices)
    indicators = None
    if importance is not None:
        indicators = read_indicators(importance, costs, choices, repair)
    ceilings = ceilings_of(limits, costs, accounting)
    additive = [c for c in ceilings if is_additive(c)]
    first = costs.layers[0].name
    kept, cost, use = [], [], []
    shared: dict[int, Widths] = {}
    for unit in units:
        widths = shared.get(id(unit.options))
        if widths is None:
            widths = shared[id(unit.options)] = Widths.of(unit.options)
        of_unit = np.zeros(len(unit.options))
        if indicators is not None:
            of_unit = _option_costs(unit, widths, indicators, alpha)
            allowed = _allowed(unit, indicators)
            if not allowed.all():
                unit, of_unit = _without(unit, allowed), of_unit[allowed]
                widths = Widths.of(unit.options)
        rows = np.zeros((len(additive), len(unit.options)), dtype=np.int64)
        for row, ceiling in zip(rows, additive, strict=True):
            for layer in unit.layers:
                row += option_uses(ceiling, layer, widths, accounting, is_first=layer.name == first)
        kept.append(unit)
        cost.append(of_unit)
        use.append(rows)
    return Problem(
        costs=costs,
        choices=choices,
        accounting=accounting,
        units=tuple(kept),
        ceilings=ceilings,
        cost=on_exact_grid(cost),
        use=tuple(use),
        room=_room(ceilings, costs, accounting),
        indicators=indicators,
    )


def problem_of(request: SolveRequest) -> Problem:
    """What a request asks, laid out.

    Raises:
        TableError: the tables contradict themselves or each other.
        LimitError: a limit does not apply to this network.
    """
    return build_problem(
        request.costs,
        request.choices,
        request.limits,
        importance=request.importance,
        alpha=request.alpha,
        accounting=request.accounting,
        repair=request.repair,
    )


def _option_costs(
    unit: Unit, widths: Widths, indicators: Indicators, alpha: float
) -> npt.NDArray[np.float64]:
    """s_a + alpha * s_w of every option, summed over the unit's searched layers."""
    total = np.zeros(len(unit.options))
    values = indicators.values
    weight_bits, act_bits = widths.weight_bits.tolist(), widths.act_bits.tolist()
    for layer in unit.layers:
        if layer.pinned is not None:
            continue
        name = layer.name
        act = {b: values[name, "act", b] for b in set(act_bits)}
        # alpha = 0 must not turn an erased (infinite) entry into 0 * inf.
        weight = {
            b: alpha * v if (v := values[name, "weight", b]) < math.inf else v
            for b in set(weight_bits)
        }
        total += [act[a] + weight[w] for w, a in zip(weight_bits, act_bits, strict=True)]
    return total


def _allowed(unit: Unit, indicators: Indicators) -> npt.NDArray[np.bool_]:
    """Options that the rule ``erase`` leaves, [options]; the other rules forbid nothing.

    Read off the indicators and not off the summed costs: a sum can be infinite because its parts
    are too large to add up, which is the table's fault and told as such (``on_exact_grid``).
    """
    if indicators.rule != "erase":
        return np.ones(len(unit.options), dtype=np.bool_)
    values = indicators.values
    return np.array(
        [
            all(
                values[layer.name, tensor, bits] < math.inf
                for layer in unit.layers
                if layer.pinned is None
                for tensor, bits in (("weight", o.weight_bits), ("act", o.act_bits))
            )
            for o in unit.options
        ]
    )


def on_exact_grid(
    cost: Sequence[npt.NDArray[np.float64]],
) -> tuple[npt.NDArray[np.float64], ...]:
    """Costs rounded to a common power of two, so fine that it changes nothing anybody can read.

    Sums of such numbers are exact in float64 whatever the order, so that a tie is a tie for the
    front, the solvers and the oracle alike. The step is 2^-50 of the largest total.

    Raises:
        TableError: the costs are too large to add up.
    """
    total = sum(float(c.max(initial=0.0)) for c in cost)
    if not math.isfinite(total):
        raise TableError("importance table: its values are too large to add up")
    step = 2.0 ** (math.frexp(total)[1] - 50)
    if total == 0.0 or step == 0.0:
        return tuple(cost)
    return tuple(np.round(c / step) * step for c in cost)


def _without(unit: Unit, allowed: npt.NDArray[np.bool_]) -> Unit:
    options = tuple(o for o, ok in zip(unit.options, allowed, strict=True) if ok)
    if not options:
        raise TableError(
            f"importance table: layer {unit.layers[0].name!r}: the rule 'erase' forbids every "
            "candidate that its group leaves; use isotonic or keep"
        )
    return replace(unit, options=options)


def _room(
    ceilings: Sequence[Ceiling], costs: CostTable, accounting: Accounting
) -> npt.NDArray[np.int64]:
    # A bound above every reachable use binds nothing; clipping keeps it inside int64.
    return np.array(
        [
            min(c.bound, 2**62) - constant_use(c, costs, accounting)
            for c in ceilings
            if is_additive(c)
        ],
        dtype=np.int64,
    )
