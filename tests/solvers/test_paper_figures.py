"""Figures that the two papers print, as far as some accounting gives them (docs/solvers.md)."""

from fractions import Fraction
from math import gcd

import pytest

from benchmarks.networks import NETWORKS
from solvers.accounting import (
    AS_PUBLISHED_LIMPQ,
    STANDARD,
    Accounting,
    cost_breakdown,
    full_precision_size_bits,
    num_macs,
    total_bitops,
)
from solvers.controls import uniform_at
from solvers.limits import ceiling_of, parse_limit
from solvers.tables import LayerBits


def giga(name: str, weight_bits: int, act_bits: int, accounting: Accounting) -> float:
    bits = LayerBits(weight_bits=weight_bits, act_bits=act_bits)
    return uniform_at(NETWORKS[name](), bits, accounting=accounting).cost.bitops_g


@pytest.mark.parametrize(
    ("name", "weight_bits", "act_bits", "accounting", "printed"),
    [
        # LIMPQ table 4, MobileNet-V1; needs the published area rule, to the digit
        ("mobilenet_v1", 4, 4, AS_PUBLISHED_LIMPQ, 9.68),
        ("mobilenet_v1", 6, 4, AS_PUBLISHED_LIMPQ, 14.13),
        ("mobilenet_v1", 3, 3, AS_PUBLISHED_LIMPQ, 5.78),
        # MetaMix, PROFIT+ and PROFIT rows; exact areas
        ("mobilenet_v2", 4, 4, STANDARD, 5.39),
        ("mobilenet_v3_large", 4, 4, STANDARD, 3.79),
        ("mobilenet_v3_large", 4, 4, Accounting(first_act_bits=32), 4.83),
    ],
)
def test_printed_bitops(name, weight_bits, act_bits, accounting, printed):
    assert round(giga(name, weight_bits, act_bits, accounting), 2) == printed


@pytest.mark.parametrize(
    ("name", "printed"),
    [("resnet18", 34.714), ("resnet50", 71.190), ("mobilenet_v1", 9.669),
     ("mobilenet_v2", 5.394), ("mobilenet_v3_large", 3.787)],
)  # fmt: skip
def test_uniform_4_bit_totals(name, printed):
    assert round(giga(name, 4, 4, STANDARD), 3) == printed


def test_resnet18_at_3_bit_is_near_but_not_the_printed_figure():
    # 23.09 in LIMPQ's table 2 is met by no rule; the published area rule comes to 0.14 %.
    computed = giga("resnet18", 3, 3, AS_PUBLISHED_LIMPQ)
    assert round(computed, 4) == 23.0575
    assert round(computed, 2) != 23.09


def test_resnet18_at_4_bit_is_not_the_printed_figure():
    assert round(giga("resnet18", 4, 4, AS_PUBLISHED_LIMPQ), 2) == 35.04  # printed: 33.07


def test_resnet50_sizes():
    costs = NETWORKS["resnet50"]()
    full_mib = full_precision_size_bits(costs, STANDARD) / 8 / 2**20
    # Table 3 prints 97.28, truncated from 97.2859.
    assert int(full_mib * 100) / 100 == 97.28
    with_rest = full_precision_size_bits(costs, Accounting(count_fp32_rest=True)) / 8 / 2**20
    assert round(with_rest, 2) == 97.49
    limit = ceiling_of(parse_limit("compression_rate=12.2x"), costs, STANDARD)
    assert round(limit.bound / 8 / 2**20, 2) == 7.97


@pytest.mark.parametrize(
    ("name", "printed"), [("resnet18", 44.59), ("resnet50", 97.49), ("mobilenet_v1", 16.14)]
)
def test_sizes_with_everything(name, printed):
    accounting = Accounting(count_fp32_rest=True)
    mib = full_precision_size_bits(NETWORKS[name](), accounting) / 8 / 2**20
    assert round(mib, 2) == printed


def test_mobilenet_v1_at_8_bit():
    cost = uniform_at(NETWORKS["mobilenet_v1"](), LayerBits(weight_bits=8, act_bits=8)).cost
    assert round(cost.size_mib, 2) == 4.01


@pytest.mark.parametrize(
    ("name", "act_bits", "printed"),
    [
        ("resnet18", (2, 4, 8), 32.86),
        ("resnet18", (2, 4, 8), 35.64),
        ("mobilenet_v2", (3, 4, 8), 5.28),
        ("mobilenet_v2", (3, 4, 8), 5.12),
        ("mobilenet_v3_large", (3, 4, 8), 4.44),
        ("mobilenet_v3_large", (3, 4, 8), 3.29),
    ],
)
def test_metamix_totals_are_attainable(name, act_bits, printed):
    # Weights at 4 bit: some policy costs each printed figure to the digit.
    costs = NETWORKS[name]()
    macs = [num_macs(layer, STANDARD) for layer in costs.searched]
    unit = 4 * gcd(*macs)
    reached = 1  # bit i: some policy costs i units in the searched layers
    for each in macs:
        reached = sum_of_sets(reached, [4 * each * bits // unit for bits in act_bits])
    pinned = sum(s.num_macs * 64 for s in costs if s.pinned)
    first = -(-(round(printed * 1e9) - 5_000_000 - pinned) // unit)
    beyond = -(-(round(printed * 1e9) + 5_000_000 - pinned) // unit)
    assert (reached >> first) & ((1 << (beyond - first)) - 1)


def sum_of_sets(reached: int, more: list[int]) -> int:
    """Every member of a set of whole numbers, its bits, plus every one of ``more``."""
    found = 0
    for each in more:
        found |= reached << each
    return found


def test_limpq_learns_190_indicators_of_resnet18():
    # The paper's M: 19 searched layers, a weight and an input each, 5 widths.
    assert len(NETWORKS["resnet18"]().searched) * 2 * 5 == 190


def test_10_67_is_every_weight_at_3_bit_ends_included():
    # LIMPQ table 3, PACT and LQ-Net; 8 bits for the first and the last layer come to 9.40.
    costs = NETWORKS["resnet50"]()
    full_bits = full_precision_size_bits(costs, STANDARD)
    every = {s.name: LayerBits(weight_bits=3, act_bits=3) for s in costs}
    three = cost_breakdown(costs, every)
    assert round(full_bits / three.weight_bits_total, 2) == 10.67
    # Their printed 9.17 MB is no size of these weights.
    assert round(three.weight_bits_total / 8 / 2**20, 2) == 9.12
    pinned = {s.name: s.pinned or every[s.name] for s in costs}
    assert round(full_bits / cost_breakdown(costs, pinned).weight_bits_total, 2) == 9.4


def test_metamix_mobilenet_v2_mean_of_activation_bits():
    # 3.98 bits over the 51 searched layers is 203 / 51.
    assert len(NETWORKS["mobilenet_v2"]().searched) == 51
    assert round(203 / 51, 2) == 3.98


def test_a_level_is_the_cost_of_the_uniform_network():
    for name, network in NETWORKS.items():
        costs = network()
        for accounting in (STANDARD, AS_PUBLISHED_LIMPQ):
            bound = ceiling_of(parse_limit("bitops_level=3x4"), costs, accounting).bound
            bits = LayerBits(weight_bits=3, act_bits=4)
            everywhere = {s.name: s.pinned or bits for s in costs}
            assert bound == total_bitops(costs, everywhere, accounting), name
        half = ceiling_of(parse_limit("bitops_level=2.5x3"), costs, STANDARD).bound
        searched = sum(s.num_macs for s in costs.searched)
        pinned = sum(s.num_macs * 64 for s in costs if s.pinned)
        assert half == pinned + int(searched * Fraction(15, 2))


def test_breakdown_of_a_uniform_network():
    costs = NETWORKS["resnet50"]()
    bits = LayerBits(weight_bits=4, act_bits=2)
    cost = cost_breakdown(costs, {s.name: s.pinned or bits for s in costs})
    assert (cost.mean_weight_bits, cost.mean_act_bits) == (4.0, 2.0)
    ends = costs.layers[0].num_weights + costs.layers[-1].num_weights
    assert cost.weight_bits_total == 8 * ends + 4 * (25_502_912 - ends)
    assert cost.bitops_searched == 8 * (4_089_184_256 - 118_013_952 - 2_048_000)
