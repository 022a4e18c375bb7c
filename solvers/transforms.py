"""Is a raw step size the right price of a layer? Named ways to make indicators comparable.

LIMPQ adds up raw step sizes (equation 3; ``raw``). A step size follows the magnitude of its tensor,
so a layer that reads large numbers looks important for that alone, and a first layer of a block,
which reads the residual stream, always wins against a second one. Each transform takes out one
suspected cause and leaves a table that the same integer program solves. None but ``raw`` is the
paper's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Final

from solvers.errors import TableError
from solvers.layer_statistics import TensorStatistics
from solvers.tables import CostTable, ImportanceTable

Key = tuple[str, str, int]
Values = dict[Key, float]
Statistics = Mapping[Key, TensorStatistics]

# Each transform and its reason, in one line.
TRANSFORMS: Final[Mapping[str, str]] = {
    "raw": "the learned step size itself, as the paper and its code use it",
    "relative": "over its mean over bit-widths: how fast a layer loses counts, not its level",
    "log": "its logarithm: layers multiply up, so that one large layer cannot drown all others",
    "by_scale": "over the range of the widest candidate: the magnitude of the tensor taken out",
    "by_input": "over the spread of the tensor it quantizes, input or weights: noise to signal",
    "by_gradient": "times |dL/ds|: what the loss changes when the step changes by its own size",
    "by_elements": "times the tensor's elements over their mean: noise counts where it is made",
    "by_macs": "times the layer's MACs over their mean: noise counts as often as it is used",
}
NEED_STATISTICS: Final = frozenset({"by_input", "by_gradient"})


def transform(
    table: ImportanceTable,
    costs: CostTable,
    name: str,
    statistics: Sequence[TensorStatistics] = (),
) -> ImportanceTable:
    """The table under one of ``TRANSFORMS``; ``raw`` returns it as it is.

    Args:
        table: learned indicators.
        costs: the network.
        name: of the transform.
        statistics: of the same network, for those in ``NEED_STATISTICS``.

    Returns:
        A table of the same rows, its method named after the transform.

    Raises:
        TableError: an unknown name, statistics that are missing, or a value that comes out as no
            positive number.
    """
    check_transform(name)
    if name == "raw":
        return table
    if name in NEED_STATISTICS and not statistics:
        raise TableError(
            f"importance transform {name!r} needs layer statistics, which the indicators step "
            "leaves beside its table; train the indicators again, or use relative or by_scale"
        )
    by_key: Statistics = {(s.layer, s.tensor, s.bits): s for s in statistics}
    changed = _FUNCTIONS[name](dict(table.values()), costs, by_key)
    rows = tuple(replace(row, value=changed[row.layer, row.tensor, row.bits]) for row in table.rows)
    return replace(table, method=f"{table.method}-{name}", rows=rows)


def check_transform(name: str) -> None:
    """Refuse a name that is none of ``TRANSFORMS``.

    Raises:
        TableError: naming those there are.
    """
    if name not in TRANSFORMS:
        raise TableError(f"importance transform {name!r}: unknown; use {', '.join(TRANSFORMS)}")


def _relative(values: Values, costs: CostTable, statistics: Statistics) -> Values:
    means = {tensor: fmean(own.values()) for tensor, own in _by_tensor(values).items()}
    return {key: value / means[key[:2]] for key, value in values.items()}


def _log(values: Values, costs: CostTable, statistics: Statistics) -> Values:
    """Shifted to start just above 0; a shift common to a table changes no decision."""
    logs = {key: math.log(value) for key, value in values.items()}
    lowest = min(logs.values())
    floor = 1e-6 * max(max(logs.values()) - lowest, 1.0)
    return {key: value - lowest + floor for key, value in logs.items()}


def _by_scale(values: Values, costs: CostTable, statistics: Statistics) -> Values:
    """s_b / (s_B (2^B - 1)) with B the widest candidate."""
    ranges = {}
    for tensor, own in _by_tensor(values).items():
        widest = max(own)
        ranges[tensor] = own[widest] * (2**widest - 1)
    return {key: value / ranges[key[:2]] for key, value in values.items()}


def _by_input(values: Values, costs: CostTable, statistics: Statistics) -> Values:
    return {
        key: _divided(value, _of(statistics, key, "by_input").std, key)
        for key, value in values.items()
    }


def _by_gradient(values: Values, costs: CostTable, statistics: Statistics) -> Values:
    """A gradient of 0 (a step held by its clamp) says nothing; the smallest seen stands in."""
    gradients = {key: _of(statistics, key, "by_gradient").mean_abs_gradient for key in values}
    smallest = min((g for g in gradients.values() if g > 0), default=0.0)
    if smallest == 0.0:
        raise TableError("importance transform 'by_gradient': every gradient is 0")
    return {key: value * (gradients[key] or smallest) for key, value in values.items()}


def _by_elements(values: Values, costs: CostTable, statistics: Statistics) -> Values:
    sizes = {
        (layer.name, tensor): float(layer.num_weights if tensor == "weight" else layer.num_inputs)
        for layer in costs
        for tensor in ("weight", "act")
    }
    return _weighted(values, sizes)


def _by_macs(values: Values, costs: CostTable, statistics: Statistics) -> Values:
    sizes = {
        (layer.name, tensor): float(layer.num_macs)
        for layer in costs
        for tensor in ("weight", "act")
    }
    return _weighted(values, sizes)


_FUNCTIONS: Final[Mapping[str, Callable[[Values, CostTable, Statistics], Values]]] = {
    "relative": _relative,
    "log": _log,
    "by_scale": _by_scale,
    "by_input": _by_input,
    "by_gradient": _by_gradient,
    "by_elements": _by_elements,
    "by_macs": _by_macs,
}


def _by_tensor(values: Values) -> dict[tuple[str, str], dict[int, float]]:
    found: dict[tuple[str, str], dict[int, float]] = {}
    for (layer, tensor, bits), value in values.items():
        found.setdefault((layer, tensor), {})[bits] = value
    return found


def _weighted(values: Values, sizes: Mapping[tuple[str, str], float]) -> Values:
    """Times the size over its mean over the layers, for each kind of tensor apart.

    So weights and activations keep their proportion, and alpha its meaning.
    """
    shown = {key[:2] for key in values}
    for layer, tensor in shown:
        if (layer, tensor) not in sizes:
            raise TableError(f"importance table: layer {layer!r} is not in the cost table")
    means = {
        kind: fmean(sizes[key] for key in shown if key[1] == kind) for kind in {k[1] for k in shown}
    }
    return {key: value * sizes[key[:2]] / means[key[1]] for key, value in values.items()}


def _of(statistics: Statistics, key: Key, name: str) -> TensorStatistics:
    if key not in statistics:
        raise TableError(
            f"importance transform {name!r}: no statistics of layer {key[0]!r}, {key[1]}, "
            f"{key[2]} bit; they belong to another training than the table"
        )
    return statistics[key]


def _divided(value: float, spread: float, key: Key) -> float:
    if spread == 0.0:
        raise TableError(
            f"importance transform 'by_input': layer {key[0]!r}: its {key[1]} has no spread; "
            "the layer is dead"
        )
    return value / spread
