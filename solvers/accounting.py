"""What does a bit-width cost? The one module that multiplies counts by bits.

BitOps (LIMPQ, equation 4; MetaMix, table 1) = sum over layers of MACs * weight_bits * act_bits,
G = 1e9, every Conv2d and Linear counted, the pinned first and last layer included. Size = weights
of those layers only. Everything is an integer: BitOps as such, sizes as *bits*; bytes, MiB, means
and ratios are made from them for people to read and never compared with a limit.

Three switches, each needed to meet some printed figure (docs/solvers.md has the list):

* ``spatial="unfloored"``: LIMPQ's own MAC count, which multiplies output sides before rounding
  them down and so over-counts strided layers (+1.4 % on ResNet-50).
* ``first_act_bits``: what the network's input is charged at; None = as the first layer is pinned.
* ``count_fp32_rest``: add biases and BatchNorm parameters to the size, at 32 bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from solvers.errors import PolicyError, TableError
from solvers.tables import CostTable, LayerBits, LayerSpec

FLOAT_BITS = 32
BITS_PER_MIB = 8 * 2**20
# Totals are added in int64 by the front and the solver; a table beyond this is not a network.
LARGEST_TOTAL = 2**60


@dataclass(frozen=True, kw_only=True, slots=True)
class Accounting:
    """One way to count, named in every policy and record.

    Attributes:
        spatial: ``exact`` output areas, or LIMPQ's ``unfloored`` ones.
        first_act_bits: bits the network's input is charged at, None = the first layer's own.
        count_fp32_rest: sizes include biases and other parameters at 32 bit.
    """

    spatial: Literal["exact", "unfloored"] = "exact"
    first_act_bits: Literal[8, 32] | None = None
    count_fp32_rest: bool = False

    @property
    def name(self) -> str:
        """Canonical name, e.g. ``standard`` or ``unfloored+first-act-32``."""
        parts = []
        if self.spatial == "unfloored":
            parts.append("unfloored")
        if self.first_act_bits is not None:
            parts.append(f"first-act-{self.first_act_bits}")
        if self.count_fp32_rest:
            parts.append("fp32-rest")
        return "+".join(parts) or "standard"


STANDARD = Accounting()
AS_PUBLISHED_LIMPQ = Accounting(spatial="unfloored")


def accounting_named(name: str) -> Accounting:
    """The accounting of a name: ``standard``, or switches joined by ``+``.

    Raises:
        TableError: a part of the name is unknown.
    """
    spatial: Literal["exact", "unfloored"] = "exact"
    first_act_bits: Literal[8, 32] | None = None
    count_fp32_rest = False
    for part in name.split("+"):
        match part.strip():
            case "standard":
                pass
            case "unfloored" | "limpq-published":
                spatial = "unfloored"
            case "first-act-8":
                first_act_bits = 8
            case "first-act-32":
                first_act_bits = 32
            case "fp32-rest":
                count_fp32_rest = True
            case unknown:
                raise TableError(
                    f"accounting {name!r}: {unknown!r} is unknown; use standard, or join any of "
                    "unfloored, first-act-8, first-act-32, fp32-rest by '+'"
                )
    return Accounting(
        spatial=spatial, first_act_bits=first_act_bits, count_fp32_rest=count_fp32_rest
    )


def num_macs(layer: LayerSpec, accounting: Accounting) -> int:
    """Multiply-accumulates of one image in ``layer`` under the accounting's area rule."""
    return layer.num_macs if accounting.spatial == "exact" else layer.num_macs_unfloored


def layer_bitops(
    layer: LayerSpec, bits: LayerBits, accounting: Accounting, *, is_first: bool = False
) -> int:
    """BitOps of one layer; ``is_first`` says that it reads the network's input."""
    act_bits = bits.act_bits
    if is_first and accounting.first_act_bits is not None:
        act_bits = accounting.first_act_bits
    return num_macs(layer, accounting) * bits.weight_bits * act_bits


def layer_weight_size_bits(layer: LayerSpec, bits: LayerBits) -> int:
    """Bits that the layer's weights occupy, biases excluded."""
    return layer.num_weights * bits.weight_bits


def rest_size_bits(costs: CostTable, accounting: Accounting) -> int:
    """Bits of biases and other parameters, 0 unless the accounting counts them."""
    if not accounting.count_fp32_rest:
        return 0
    num_rest = sum(layer.num_biases for layer in costs) + costs.num_other_params
    return FLOAT_BITS * num_rest


def full_precision_size_bits(costs: CostTable, accounting: Accounting) -> int:
    """Size of the 32-bit network, the numerator of the compression rate."""
    num_weights = sum(layer.num_weights for layer in costs)
    return FLOAT_BITS * num_weights + rest_size_bits(costs, accounting)


def total_bitops(
    costs: CostTable, bits_by_name: Mapping[str, LayerBits], accounting: Accounting
) -> int:
    """BitOps of one image through the whole network, pinned layers included.

    Raises:
        PolicyError: a layer has no bits.
    """
    return sum(
        layer_bitops(layer, bits_in(bits_by_name, layer.name), accounting, is_first=i == 0)
        for i, layer in enumerate(costs)
    )


def total_weight_size_bits(
    costs: CostTable, bits_by_name: Mapping[str, LayerBits], accounting: Accounting
) -> int:
    """Bits of all weights, and of the FP32 rest if the accounting counts it.

    Raises:
        PolicyError: a layer has no bits.
    """
    of_layers = sum(layer_weight_size_bits(s, bits_in(bits_by_name, s.name)) for s in costs)
    return of_layers + rest_size_bits(costs, accounting)


def bits_in(bits_by_name: Mapping[str, LayerBits], name: str) -> LayerBits:
    """The bits of one layer.

    Raises:
        PolicyError: there are none.
    """
    try:
        return bits_by_name[name]
    except KeyError:
        raise PolicyError(f"policy: layer {name!r} has no bits") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class CostBreakdown:
    """What a policy costs under one accounting, for reading; limits use the integers.

    Attributes:
        bitops: of one image, whole network.
        bitops_searched: the part of the layers that are not pinned (LIMPQ's own limit).
        weight_bits_total: size in bits.
        full_precision_bits: size of the 32-bit network in bits.
        mean_weight_bits: plain mean over the searched layers (all layers if none is).
        mean_act_bits: the same for activations.
    """

    bitops: int
    bitops_searched: int
    weight_bits_total: int
    full_precision_bits: int
    mean_weight_bits: float
    mean_act_bits: float

    @property
    def bitops_g(self) -> float:
        """BitOps in units of 1e9."""
        return self.bitops / 1e9

    @property
    def size_bytes(self) -> int:
        """Size in whole bytes, rounded up."""
        return -(-self.weight_bits_total // 8)

    @property
    def size_mib(self) -> float:
        """Size in MiB."""
        return self.weight_bits_total / BITS_PER_MIB

    @property
    def compression(self) -> float:
        """Size of the 32-bit network divided by this size."""
        return self.full_precision_bits / self.weight_bits_total


def cost_breakdown(
    costs: CostTable, bits_by_name: Mapping[str, LayerBits], accounting: Accounting = STANDARD
) -> CostBreakdown:
    """Everything an accounting says about one set of bits.

    Raises:
        PolicyError: a layer has no bits.
        TableError: the network has no weights, so sizes mean nothing.
    """
    counted = costs.searched or costs.layers
    searched = {layer.name for layer in counted}
    size_bits = total_weight_size_bits(costs, bits_by_name, accounting)
    if size_bits == 0:
        raise TableError(f"cost table of {costs.model!r}: num_weights is 0 in every layer")
    return CostBreakdown(
        bitops=total_bitops(costs, bits_by_name, accounting),
        bitops_searched=sum(
            layer_bitops(s, bits_by_name[s.name], accounting, is_first=i == 0)
            for i, s in enumerate(costs)
            if s.name in searched
        ),
        weight_bits_total=size_bits,
        full_precision_bits=full_precision_size_bits(costs, accounting),
        mean_weight_bits=sum(bits_by_name[n].weight_bits for n in searched) / len(searched),
        mean_act_bits=sum(bits_by_name[n].act_bits for n in searched) / len(searched),
    )


def check_magnitude(costs: CostTable) -> None:
    """Refuse counts whose totals would leave 64-bit integers.

    Raises:
        TableError: naming the layer.
    """
    total = 0
    for layer in costs:
        for count in (
            layer.num_macs, layer.num_macs_unfloored, layer.num_weights, layer.num_biases,
        ):  # fmt: skip
            total += count * FLOAT_BITS * FLOAT_BITS
        if total > LARGEST_TOTAL:
            raise TableError(
                f"cost table of {costs.model!r}: layer {layer.name!r}: counts of "
                f"{layer.num_macs} MACs, {layer.num_weights} weights and {layer.num_biases} biases "
                "are too large to add up"
            )
    if sum(t.num_elements for t in costs.tensors) * FLOAT_BITS > LARGEST_TOTAL:
        raise TableError(f"cost table of {costs.model!r}: tensors are too large to add up")
    if total + costs.num_other_params * FLOAT_BITS > LARGEST_TOTAL:
        raise TableError(f"cost table of {costs.model!r}: num_other_params is too large to add up")
