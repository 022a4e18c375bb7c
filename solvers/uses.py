"""How much of each resource does a policy use, and does one option of one layer?

Two ways on purpose. ``total_use`` counts a whole policy with the accounting's totals; it knows
nothing of units, coefficients or solvers and is the judge of every answer. ``option_uses`` gives
the coefficients that fronts and solvers add up. Tests hold the two against each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from solvers.accounting import (
    Accounting,
    bits_in,
    num_macs,
    rest_size_bits,
    total_bitops,
    total_weight_size_bits,
)
from solvers.limits import Ceiling
from solvers.liveness import peak_activation_bits
from solvers.tables import CostTable, LayerBits, LayerSpec


def total_use(
    ceiling: Ceiling,
    costs: CostTable,
    bits_by_name: Mapping[str, LayerBits],
    accounting: Accounting,
) -> int:
    """What a whole policy uses of the ceiling's resource.

    Raises:
        PolicyError: a layer has no bits.
        TableError: the latency table lacks a layer.
    """
    match ceiling.resource:
        case "bitops":
            return total_bitops(costs, bits_by_name, accounting)
        case "size_bits":
            return total_weight_size_bits(costs, bits_by_name, accounting)
        case "weight_bits_sum":
            return sum(bits_in(bits_by_name, n).weight_bits for n in ceiling.layers)
        case "act_bits_sum":
            return sum(bits_in(bits_by_name, n).act_bits for n in ceiling.layers)
        case "peak_bits":
            return peak_activation_bits(costs, bits_by_name, accounting)
        case "latency_ps":
            table = ceiling.limit.latency
            assert table is not None  # ceiling_of refuses the limit otherwise
            return sum(table.latency_ps(s.name, bits_in(bits_by_name, s.name)) for s in costs)


def is_additive(ceiling: Ceiling) -> bool:
    """The resource is a sum over layers; the activation peak is not."""
    return ceiling.resource != "peak_bits"


def constant_use(ceiling: Ceiling, costs: CostTable, accounting: Accounting) -> int:
    """The part of an additive resource that belongs to no layer's weights or activations."""
    return rest_size_bits(costs, accounting) if ceiling.resource == "size_bits" else 0


@dataclass(frozen=True, slots=True)
class Widths:
    """The options of a unit as arrays; most units share one tuple of options, so one of these.

    Attributes:
        options: the pairs.
        weight_bits: int64 [options].
        act_bits: int64 [options].
    """

    options: tuple[LayerBits, ...]
    weight_bits: npt.NDArray[np.int64]
    act_bits: npt.NDArray[np.int64]

    @staticmethod
    def of(options: tuple[LayerBits, ...]) -> Widths:
        """The arrays of a tuple of options."""
        weight_bits = np.array([o.weight_bits for o in options], dtype=np.int64)
        act_bits = np.array([o.act_bits for o in options], dtype=np.int64)
        return Widths(options, weight_bits, act_bits)


def option_uses(
    ceiling: Ceiling,
    layer: LayerSpec,
    widths: Widths,
    accounting: Accounting,
    *,
    is_first: bool,
) -> npt.NDArray[np.int64]:
    """What each option of one layer adds to an additive resource, shape [options]."""
    weight_bits, act_bits = widths.weight_bits, widths.act_bits
    match ceiling.resource:
        case "bitops":
            if is_first and accounting.first_act_bits is not None:
                act_bits = np.full_like(act_bits, accounting.first_act_bits)
            return num_macs(layer, accounting) * weight_bits * act_bits
        case "size_bits":
            return layer.num_weights * weight_bits
        case "weight_bits_sum":
            return weight_bits * (layer.name in ceiling.layers)
        case "act_bits_sum":
            return act_bits * (layer.name in ceiling.layers)
        case "latency_ps":
            table = ceiling.limit.latency
            assert table is not None
            uses = [table.latency_ps(layer.name, o) for o in widths.options]
            return np.array(uses, dtype=np.int64)
        case "peak_bits":
            raise AssertionError("the activation peak is not a sum over layers")
