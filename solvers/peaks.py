"""How does a limit on the activation peak enter a linear program?

At each crowded moment the stored tensors must fit. A tensor read by one unit is as wide as that
unit's activation bits, which is linear. A tensor read by several units is as wide as the widest:
one extra variable per such set of units, at least as large as each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from solvers.accounting import FLOAT_BITS, Accounting
from solvers.liveness import crowded_moments
from solvers.tables import CostTable
from solvers.units import Unit


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """Tensors alive together, by what decides their width.

    Attributes:
        constant_bits: bits of tensors whose width no unit decides.
        elements: (units that share the tensors, least width, elements), each pair once.
    """

    constant_bits: int
    elements: tuple[tuple[tuple[int, ...], int, int], ...]


def moments_of(
    costs: CostTable, units: Sequence[Unit], accounting: Accounting
) -> tuple[Moment, ...]:
    """Every moment at which the peak can stand."""
    unit_of = {layer.name: u for u, unit in enumerate(units) for layer in unit.layers}
    first = costs.layers[0].name
    moments = []
    for alive in crowded_moments(costs):
        constant = 0
        elements: dict[tuple[tuple[int, ...], int], int] = {}
        for i in sorted(alive):
            tensor = costs.tensors[i]
            readers = set(tensor.layers)
            least = 0
            if first in readers and accounting.first_act_bits is not None:
                readers.discard(first)
                least = accounting.first_act_bits
            if not readers:
                constant += tensor.num_elements * (least or FLOAT_BITS)
                continue
            key = (tuple(sorted({unit_of[name] for name in readers})), least)
            elements[key] = elements.get(key, 0) + tensor.num_elements
        moments.append(
            Moment(
                constant_bits=constant,
                elements=tuple(sorted((us, least, n) for (us, least), n in elements.items())),
            )
        )
    return tuple(moments)


def peak_of(moments: Sequence[Moment], act_bits: Sequence[int]) -> int:
    """The peak in bits when unit u keeps its inputs at ``act_bits[u]``."""
    return max(
        m.constant_bits
        + sum(n * max(least, *(act_bits[u] for u in units)) for units, least, n in m.elements)
        for m in moments
    )
