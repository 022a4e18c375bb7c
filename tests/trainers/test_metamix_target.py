"""Equation 4 by hand, and targets that cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from solvers.accounting import accounting_named, total_bitops, total_weight_size_bits
from solvers.errors import LimitError
from solvers.tables import BitChoices, CostTable, LayerBits, LayerSpec, TensorLife
from trainers.metamix.architecture import Architecture, units_of
from trainers.metamix.target import make_target

ENDS = LayerBits(weight_bits=8, act_bits=8)
PAPER = BitChoices(weight_bits=(4,), act_bits=(2, 4, 8))


def layer(name, macs, *, pinned=None, group=None):
    return LayerSpec(
        name=name, kind="conv", num_macs=macs, num_macs_unfloored=macs + 1, num_weights=macs,
        num_biases=0, num_inputs=8, num_outputs=8, pinned=pinned, group=group,
    )  # fmt: skip


COSTS = CostTable(
    model="tiny",
    input_shape=(1, 2, 2),
    layers=(
        layer("first", 10, pinned=ENDS),
        layer("a", 100),
        layer("b", 30),
        layer("last", 5, pinned=ENDS),
    ),
)


def with_alphas(choices=PAPER, costs=COSTS, **values):
    architecture = Architecture(units_of(costs, choices), 0.0).double()
    with torch.no_grad():
        for name, alpha in values.items():
            where, _, tensor = name.partition("_")
            architecture.alpha_of(where, tensor or "act").copy_(torch.tensor(alpha))
    return architecture


def test_penalty_and_its_gradient_by_hand():
    # Selected: a at 2, b at 8. Cost = (10 + 5) * 64 + 100 * 4 * 2 + 30 * 4 * 8 = 2720.
    target = make_target("bitops=3000", COSTS, PAPER)
    architecture = with_alphas(a=[0.7, 0.1, 0.3], b=[0.0, 0.2, 0.4])
    penalty = target.penalty(architecture, relative=False)
    assert penalty.item() == 280.0
    assert target.penalty(architecture, relative=True).item() == pytest.approx(280 / 3000)
    penalty.backward()
    bits = torch.tensor([2.0, 4.0, 8.0], dtype=torch.float64)
    for name, ops in (("a", 100), ("b", 30)):
        alpha = architecture.alpha_of(name, "act")
        p = torch.softmax(alpha.detach(), 0)
        # Below the target the sign is negative: more bits are asked for.
        by_hand = -ops * 4 * p * (bits - p @ bits)
        torch.testing.assert_close(alpha.grad, by_hand, rtol=1e-13, atol=0)


def test_above_the_target_the_gradient_turns():
    target = make_target("bitops=2700", COSTS, PAPER)
    architecture = with_alphas(a=[0.7, 0.1, 0.3], b=[0.0, 0.2, 0.4])
    target.penalty(architecture, relative=True).backward()
    assert architecture.alpha_of("a", "act").grad[2] > 0


def test_weight_alphas_multiply_in():
    choices = BitChoices(weight_bits=(2, 4), act_bits=(2, 4, 8))
    target = make_target("bitops=2000", COSTS, choices)
    architecture = with_alphas(
        choices, a=[0.7, 0.1, 0.3], b=[0.0, 0.2, 0.4], a_weight=[0.0, 1.0], b_weight=[1.0, 0.0]
    )
    # 960 + 100 * 4 * 2 + 30 * 2 * 8 = 2240.
    penalty = target.penalty(architecture, relative=False)
    assert penalty.item() == 240.0
    penalty.backward()
    p = torch.softmax(torch.tensor([0.0, 1.0], dtype=torch.float64), 0)
    w = torch.tensor([2.0, 4.0], dtype=torch.float64)
    by_hand = 100 * 2 * p * (w - p @ w)
    torch.testing.assert_close(
        architecture.alpha_of("a", "weight").grad, by_hand, rtol=1e-13, atol=0
    )


def test_mean_bits_over_stated_layers():
    everywhere = make_target("mean_act_bits=4", COSTS, PAPER)
    only_b = make_target("mean_act_bits=4@b", COSTS, PAPER)
    architecture = with_alphas(a=[0.7, 0.1, 0.3], b=[0.0, 0.2, 0.4])
    assert everywhere.penalty(architecture, relative=False).item() == 2.0  # 2 + 8 against 8
    assert only_b.penalty(architecture, relative=False).item() == 4.0
    assert (everywhere.shown(everywhere.smallest), everywhere.shown(everywhere.largest)) == (2, 8)


def test_a_group_counts_once_a_layer_and_moves_one_alpha():
    costs = CostTable(
        model="tiny",
        input_shape=(1, 2, 2),
        layers=(layer("a", 100, group="g"), layer("b", 30, group="g"), layer("c", 7)),
    )
    architecture = with_alphas(costs=costs, a=[0.0, 1.0, 0.0], c=[1.0, 0.0, 0.0])
    target = make_target("bitops=2000", costs, PAPER)
    assert target.penalty(architecture, relative=False).item() == abs(130 * 16 + 7 * 8 - 2000)


@pytest.mark.parametrize("accounting", ["standard", "unfloored", "first-act-32"])
def test_costs_are_those_of_the_accounting(accounting):
    counted = accounting_named(accounting)
    target = make_target("bitops=3000", COSTS, PAPER, counted)
    bits = {
        "first": ENDS,
        "a": LayerBits(weight_bits=4, act_bits=4),
        "b": LayerBits(weight_bits=4, act_bits=2),
        "last": ENDS,
    }
    assert target.cost_of(bits) == total_bitops(COSTS, bits, counted)


@pytest.mark.parametrize("accounting", ["standard", "fp32-rest"])
@pytest.mark.parametrize("text", ["weight_bytes=300", "compression_rate=2"])
def test_a_size_counts_what_no_bits_decide(text, accounting):
    costs = replace(
        COSTS, num_other_params=20, layers=tuple(replace(s, num_biases=3) for s in COSTS.layers)
    )
    choices = BitChoices(weight_bits=(2, 4), act_bits=(2, 4, 8))
    counted = accounting_named(accounting)
    target = make_target(text, costs, choices, counted)
    bits = {
        "first": ENDS,
        "a": LayerBits(weight_bits=2, act_bits=8),
        "b": LayerBits(weight_bits=4, act_bits=8),
        "last": ENDS,
    }
    assert target.cost_of(bits) == total_weight_size_bits(costs, bits, counted)
    least, most = (
        total_weight_size_bits(
            costs, bits | {n: LayerBits(weight_bits=w, act_bits=2) for n in ("a", "b")}, counted
        )
        for w in (2, 4)
    )
    assert (target.smallest, target.largest) == (least, most)


@pytest.mark.parametrize(
    ("text", "side"), [("bitops=1999", "below the smallest"), ("mean_act_bits=9", "above the")]
)
def test_targets_out_of_reach_say_what_is_reachable(text, side):
    target = make_target(text, COSTS, PAPER)
    with pytest.raises(LimitError, match=rf"{side}.*reach (2000|2) to (5120|8)"):
        target.check_reachable()


def test_the_ends_of_the_range_are_reachable():
    for text in ("bitops=2000", "bitops=5120"):
        make_target(text, COSTS, PAPER).check_reachable()


def test_a_peak_is_no_sum_over_layers():
    with pytest.raises(LimitError, match="bit search takes bitops"):
        make_target("peak_activation_bytes=5", _with_lives(), PAPER)


def _with_lives():
    life = TensorLife(num_elements=4, first_step=0, last_step=1, layers=("a",))
    return replace(COSTS, tensors=(life,))
