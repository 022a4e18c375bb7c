"""The vocabulary of the whole project: what a layer costs and how much it matters.

These are the values that flow between the rooms. Whoever measures a network (trainers) fills
them in; whoever allocates bits (solvers) reads them; whoever runs experiments (orchestrator)
stores them. They hold plain numbers: no tensor, no cluster object, no file handle.

Counts are integers per one image: MACs, weights, activation elements. Bits are integers. Costs
derived from them (BitOps, bytes) live in ``accounting.py``, the only place that multiplies.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from solvers.errors import TableError

LayerKind = Literal["conv", "depthwise", "linear"]
TensorRole = Literal["weight", "act"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerBits:
    """The bit-widths of one layer: its weight, and the activation it reads."""

    weight_bits: int
    act_bits: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSpec:
    """One Conv2d or Linear as a traced forward pass of one image saw it.

    Attributes:
        name: module path in the network, e.g. ``layer1.0.conv1``; the join key everywhere.
        kind: conv, depthwise (groups == input channels > 1) or linear.
        num_macs: multiply-accumulates, from the true output shape.
        num_macs_unfloored: the same with LIMPQ's published area rule, which does not floor each
            output side of a strided layer; only ``accounting`` "unfloored" reads it.
        num_weights: elements of the weight tensor, bias excluded.
        num_biases: elements of the bias, 0 without one.
        num_inputs: elements of the activation the layer reads.
        num_outputs: elements of the activation the layer writes.
        pinned: bits that no search may change (first and last layer: 8/8), counted in every cost.
        group: layers of one group must get the same bits; None for a layer on its own.
    """

    name: str
    kind: LayerKind
    num_macs: int
    num_macs_unfloored: int
    num_weights: int
    num_biases: int
    num_inputs: int
    num_outputs: int
    pinned: LayerBits | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        for count in (
            "num_macs", "num_macs_unfloored", "num_weights", "num_biases", "num_inputs",
            "num_outputs",
        ):  # fmt: skip
            value = getattr(self, count)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise TableError(
                    f"cost table: layer {self.name!r}: {count} is {value!r}; "
                    "it must be a whole number, 0 or more"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorLife:
    """One activation tensor: its size, when it is written, and when it is read for the last time.

    Steps number the tensor operations of one traced forward pass. ``layer`` names the layer whose
    input this tensor is, so its stored width is that layer's ``act_bits``; a tensor that several
    layers read is stored at the widest of them, one that none reads (a residual sum kept for a
    later addition) at ``layers == ()`` and 32 bit.
    """

    num_elements: int
    first_step: int
    last_step: int
    layers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class CostTable:
    """What one image costs in every layer of one network, in execution order.

    Attributes:
        model: name of the network.
        fingerprint: hash over layer names and shapes; a policy carries it.
        input_shape: (channels, height, width) of one image.
        num_other_params: parameters outside conv and linear weights and biases (BatchNorm).
        tensors: lifetimes of activations, for peak memory; empty when not traced.
    """

    model: str
    input_shape: tuple[int, ...]
    layers: tuple[LayerSpec, ...]
    num_other_params: int = 0
    tensors: tuple[TensorLife, ...] = ()
    fingerprint: str = field(default="")

    def __post_init__(self) -> None:
        names = [layer.name for layer in self.layers]
        if not names:
            raise TableError(f"cost table of {self.model!r}: no layers")
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise TableError(f"cost table of {self.model!r}: layer {doubled[0]!r} stands twice")
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", _fingerprint(self))

    def __iter__(self) -> Iterator[LayerSpec]:
        return iter(self.layers)

    @property
    def names(self) -> tuple[str, ...]:
        """Layer names in execution order."""
        return tuple(layer.name for layer in self.layers)

    @property
    def searched(self) -> tuple[LayerSpec, ...]:
        """The layers that a search may change: all but the pinned ones."""
        return tuple(layer for layer in self.layers if layer.pinned is None)

    def layer(self, name: str) -> LayerSpec:
        """The layer of that name.

        Raises:
            TableError: there is none.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise TableError(f"cost table of {self.model!r}: no layer {name!r}")


def _fingerprint(costs: CostTable) -> str:
    """Hash of names and shapes only: pins and groups are choices, not the network."""
    facts = [
        [s.name, s.kind, s.num_macs, s.num_weights, s.num_inputs, s.num_outputs]
        for s in costs.layers
    ]
    text = json.dumps([list(costs.input_shape), facts], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class BitChoices:
    """The candidate bit-widths: the only home of "2, 3, 4, 5, 6".

    Attributes:
        weight_bits: candidates for weights, ascending, any integers (consecutive or not).
        act_bits: candidates for activations. One entry makes a weights-only search.
        tied: a layer's weight and activation bits must be equal.
        overrides: layers with candidates of their own, as (layer, weight bits, activation bits).
    """

    weight_bits: tuple[int, ...]
    act_bits: tuple[int, ...]
    tied: bool = False
    overrides: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()

    def __post_init__(self) -> None:
        _check_candidates("weight_bits", self.weight_bits)
        _check_candidates("act_bits", self.act_bits)
        for layer, weight_bits, act_bits in self.overrides:
            _check_candidates(f"overrides of {layer!r}: weight_bits", weight_bits)
            _check_candidates(f"overrides of {layer!r}: act_bits", act_bits)

    def of(self, layer: LayerSpec) -> tuple[LayerBits, ...]:
        """Every pair that ``layer`` may take, ordered by (weight bits, activation bits)."""
        if layer.pinned is not None:
            return (layer.pinned,)
        weight_bits, act_bits = self.weight_bits, self.act_bits
        for name, own_weight_bits, own_act_bits in self.overrides:
            if name == layer.name:
                weight_bits, act_bits = own_weight_bits, own_act_bits
        pairs = tuple(
            LayerBits(weight_bits=w, act_bits=a)
            for w in weight_bits
            for a in act_bits
            if not self.tied or w == a
        )
        if not pairs:
            raise TableError(f"choices: layer {layer.name!r} is tied but shares no bit-width")
        return pairs


def _check_candidates(what: str, bits: tuple[int, ...]) -> None:
    if not bits:
        raise TableError(f"choices: {what} is empty; give at least one bit-width")
    for b in bits:
        if isinstance(b, bool) or not isinstance(b, int) or not 1 <= b <= 32:
            raise TableError(f"choices: {what} holds {b!r}; bit-widths are integers from 1 to 32")
    if list(bits) != sorted(set(bits)):
        raise TableError(f"choices: {what} is {list(bits)}; give each width once, ascending")


@dataclass(frozen=True, kw_only=True, slots=True)
class Importance:
    """One learned value: the indicator of one layer's tensor at one bit-width."""

    layer: str
    tensor: TensorRole
    bits: int
    value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportanceTable:
    """Raw importance values in long form; never edited, only read through ``importance.py``.

    Attributes:
        model: name of the network.
        fingerprint: the cost table's fingerprint of that network.
        method: where the values come from, e.g. ``limpq``, ``limpq-initial``, ``metamix``.
        seed: seed of the run that learned them.
        data_fingerprint: hash of the data they were learned on.
        rows: one value per (layer, tensor, bits).
    """

    model: str
    fingerprint: str
    method: str
    seed: int
    data_fingerprint: str
    rows: tuple[Importance, ...]

    def __post_init__(self) -> None:
        seen: set[tuple[str, str, int]] = set()
        for row in self.rows:
            where = f"importance table: layer {row.layer!r}, {row.tensor}, {row.bits} bit"
            if row.tensor not in ("weight", "act"):
                raise TableError(f"{where}: tensor must be 'weight' or 'act'")
            key = (row.layer, row.tensor, row.bits)
            if key in seen:
                raise TableError(f"{where}: stands twice")
            seen.add(key)
            if not math.isfinite(row.value) or row.value <= 0:
                raise TableError(
                    f"{where}: the value is {row.value!r}; an indicator is a positive finite "
                    "number (a step size that crossed zero means the training diverged)"
                )

    def values(self) -> Mapping[tuple[str, str, int], float]:
        """(layer, tensor, bits) -> raw value."""
        return {(r.layer, r.tensor, r.bits): r.value for r in self.rows}


def as_record(value: LayerSpec | LayerBits | TensorLife | Importance) -> dict[str, object]:
    """A table row as plain JSON-able values."""
    return asdict(value)
