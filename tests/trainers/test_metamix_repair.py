"""The repair against brute force."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from solvers.accounting import accounting_named, total_weight_size_bits
from solvers.tables import BitChoices, CostTable, LayerBits, LayerSpec
from trainers.metamix.architecture import Architecture, units_of
from trainers.metamix.repair import repair
from trainers.metamix.target import make_target


def make_costs(macs, group=()):
    return CostTable(
        model="tiny",
        input_shape=(1, 2, 2),
        layers=tuple(
            LayerSpec(
                name=f"l{i}", kind="conv", num_macs=m, num_macs_unfloored=m, num_weights=4,
                num_biases=0, num_inputs=8, num_outputs=8, group="g" if i in group else None,
            )
            for i, m in enumerate(macs)
        ),
    )  # fmt: skip


def random_case(seed, choices, num_layers=5):
    generator = torch.Generator().manual_seed(seed)
    macs = torch.randint(20, 200, (num_layers,), generator=generator).tolist()
    costs = make_costs(macs)
    architecture = Architecture(units_of(costs, choices), 0.0)
    with torch.no_grad():
        for alpha in architecture.alphas:
            alpha.copy_(torch.randn(alpha.shape, generator=generator))
    return costs, architecture


def every_selection(architecture, target):
    """(cost, log probability, bits) of all selections."""
    probabilities = {
        (unit.name, unit.tensor): dict(zip(unit.bits, p.tolist(), strict=True))
        for unit, p in zip(architecture.searched, architecture.probabilities(), strict=True)
    }
    names = list(target.pairs)
    options = [[(w, a) for w in ws for a in acts] for ws, acts in target.pairs.values()]
    for picks in itertools.product(*options):
        bits = {
            n: LayerBits(weight_bits=w, act_bits=a) for n, (w, a) in zip(names, picks, strict=True)
        }
        score = sum(
            math.log(probabilities[n, t][b])
            for n, pair in zip(names, picks, strict=True)
            for t, b in zip(("weight", "act"), pair, strict=True)
            if (n, t) in probabilities
        )
        yield target.cost_of(bits), score, bits


@pytest.mark.parametrize("weight_bits", [(4,), (2, 4)])
@pytest.mark.parametrize("seed", range(6))
def test_most_probable_in_the_band(seed, weight_bits):
    choices = BitChoices(weight_bits=weight_bits, act_bits=(2, 4, 8))
    costs, architecture = random_case(seed, choices, num_layers=4 if len(weight_bits) > 1 else 5)
    # Small integer costs: one bin per cost, so the search is exact.
    target = make_target("bitops_level=3x4" if len(weight_bits) > 1 else "bitops_level=4x4",
                         costs, choices)  # fmt: skip
    found = repair(architecture, target, 0.95)
    inside = [
        (score, cost)
        for cost, score, _ in every_selection(architecture, target)
        if 0.95 * target.bound <= cost <= target.bound
    ]
    assert inside
    assert found.in_band
    assert 0.95 * target.bound <= found.cost <= target.bound
    score = next(s for c, s, b in every_selection(architecture, target) if b == found.bits)
    assert score == pytest.approx(max(inside)[0], abs=1e-9)


def test_an_argmax_in_the_band_is_kept():
    choices = BitChoices(weight_bits=(4,), act_bits=(2, 4, 8))
    costs, architecture = random_case(1, choices)
    cost = make_target("bitops=1", costs, choices).cost_of(architecture.selected())
    found = repair(architecture, make_target(f"bitops={cost}", costs, choices), 0.99)
    assert found.bits == architecture.selected()
    assert found.changed == ()


def test_an_empty_band_gives_the_largest_below_and_says_so():
    # One layer of cost 2 * 4 * 100, 4 * 4 * 100 or 8 * 4 * 100: nothing near 3000.
    choices = BitChoices(weight_bits=(4,), act_bits=(2, 4, 8))
    costs = make_costs([100])
    architecture = Architecture(units_of(costs, choices), 0.0)
    found = repair(architecture, make_target("bitops=3000", costs, choices), 0.99)
    assert not found.in_band
    assert found.cost == 1600
    assert found.bits["l0"].act_bits == 4
    assert found.changed == ("l0",)


def test_layers_of_a_group_are_repaired_together():
    choices = BitChoices(weight_bits=(4,), act_bits=(2, 4, 8))
    costs = make_costs([100, 100, 50, 30], group=(0, 2))
    architecture = Architecture(units_of(costs, choices), 0.0)
    target = make_target("bitops_level=4x4", costs, choices)
    found = repair(architecture, target, 0.9)
    assert found.bits["l0"] == found.bits["l2"]
    assert found.in_band


def test_large_costs_stay_exact_and_below_the_target():
    choices = BitChoices(weight_bits=(4,), act_bits=(3, 4, 8))
    generator = torch.Generator().manual_seed(0)
    macs = torch.randint(10**6, 10**8, (52,), generator=generator).tolist()
    costs = make_costs(macs)
    architecture = Architecture(units_of(costs, choices), 0.0)
    with torch.no_grad():
        for alpha in architecture.alphas:
            alpha.copy_(torch.randn(alpha.shape, generator=generator))
    for level in ("4x3.2", "4x4", "4x7"):
        target = make_target(f"bitops_level={level}", costs, choices)
        found = repair(architecture, target, 0.99)
        assert found.in_band
        assert found.cost == target.cost_of(found.bits) <= target.bound


def test_biases_are_within_a_size_that_counts_them():
    # 4 layers of 4 weights at 8 bits are 128 bits, their rest at 32 bit another 128.
    choices = BitChoices(weight_bits=(2, 4, 8), act_bits=(8,))
    costs = make_costs([100] * 4)
    costs = replace(costs, layers=tuple(replace(s, num_biases=1) for s in costs.layers))
    counted = accounting_named("fp32-rest")
    architecture = Architecture(units_of(costs, choices), 0.0)
    target = make_target("weight_bytes=24", costs, choices, counted)
    found = repair(architecture, target, 0.99)
    assert found.in_band
    assert found.cost == total_weight_size_bits(costs, found.bits, counted) <= 24 * 8
