"""How much memory do activations need at once?

Each activation tensor lives from the step that writes it to the last step that reads it; a
residual branch keeps its input alive across the block. The peak is the largest sum over the live
tensors of elements * stored width. A tensor that several layers read is stored at the widest of
their activation bits, one that no layer reads at 32 bit, the network's input at the accounting's
``first_act_bits`` where that is set.
"""

from __future__ import annotations

from collections.abc import Mapping

from solvers.accounting import FLOAT_BITS, Accounting, bits_in
from solvers.errors import LimitError
from solvers.tables import CostTable, LayerBits, TensorLife


def require_tensors(costs: CostTable) -> None:
    """Refuse a table without lifetimes.

    Raises:
        LimitError: the table's tensors were not traced.
    """
    if not costs.tensors:
        raise LimitError(
            f"limit peak_activation_bytes: the cost table of {costs.model!r} holds no tensor "
            "lifetimes; trace the costs again with this version of mpq costs"
        )


def stored_bits(
    tensor: TensorLife,
    costs: CostTable,
    bits_by_name: Mapping[str, LayerBits],
    accounting: Accounting,
) -> int:
    """Width in bits at which one tensor is kept."""
    first = costs.layers[0].name
    widths = [
        accounting.first_act_bits
        if name == first and accounting.first_act_bits is not None
        else bits_in(bits_by_name, name).act_bits
        for name in tensor.layers
    ]
    return max(widths, default=FLOAT_BITS)


def peak_activation_bits(
    costs: CostTable, bits_by_name: Mapping[str, LayerBits], accounting: Accounting
) -> int:
    """The largest number of bits alive at one step.

    Raises:
        LimitError: the table's tensors were not traced.
        PolicyError: a layer has no bits.
    """
    require_tensors(costs)
    sizes = [
        t.num_elements * stored_bits(t, costs, bits_by_name, accounting) for t in costs.tensors
    ]
    # The set of live tensors only grows when one is written, so peaks stand at first steps.
    return max(
        sum(
            size
            for size, t in zip(sizes, costs.tensors, strict=True)
            if t.first_step <= step <= t.last_step
        )
        for step in {t.first_step for t in costs.tensors}
    )


def crowded_moments(costs: CostTable) -> tuple[frozenset[int], ...]:
    """Sets of tensors (by index) alive together, subsets of other sets left out."""
    require_tensors(costs)
    alive = {
        frozenset(i for i, t in enumerate(costs.tensors) if t.first_step <= step <= t.last_step)
        for step in {t.first_step for t in costs.tensors}
    }
    largest = [a for a in alive if not any(a < b for b in alive)]
    return tuple(sorted(largest, key=lambda a: sorted(a)))
