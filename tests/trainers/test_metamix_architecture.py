"""Equation 5, and which decision belongs to which layers."""

from __future__ import annotations

import pytest
import torch

from solvers.tables import BitChoices, CostTable, LayerBits, LayerSpec
from trainers.errors import ModelError
from trainers.metamix.architecture import Architecture, hard_softmax, units_of, widest_largest


def layer(name, *, pinned=None, group=None, macs=10):
    return LayerSpec(
        name=name, kind="conv", num_macs=macs, num_macs_unfloored=macs, num_weights=4,
        num_biases=0, num_inputs=8, num_outputs=8, pinned=pinned, group=group,
    )  # fmt: skip


def table(*layers):
    return CostTable(model="tiny", input_shape=(1, 2, 2), layers=layers)


ENDS = LayerBits(weight_bits=8, act_bits=8)
PAPER = BitChoices(weight_bits=(4,), act_bits=(2, 4, 8))


def test_hard_softmax_is_one_hot_forward_and_softmax_backward():
    alpha = torch.tensor([0.2, 1.3, -0.4], dtype=torch.float64, requires_grad=True)
    hot = hard_softmax(alpha)
    assert hot.tolist() == [0.0, 1.0, 0.0]
    bits = torch.tensor([2.0, 4.0, 8.0], dtype=torch.float64)
    (hot @ bits).backward()
    p = torch.softmax(alpha.detach(), 0)
    by_hand = p * (bits - p @ bits)
    torch.testing.assert_close(alpha.grad, by_hand, rtol=1e-14, atol=1e-15)


def test_hard_softmax_is_exact_in_float32():
    for seed in range(50):
        alpha = torch.randn(4, generator=torch.Generator().manual_seed(seed)) * 5
        assert sorted(hard_softmax(alpha).tolist()) == [0.0, 0.0, 0.0, 1.0]


def test_ties_go_to_the_widest():
    assert widest_largest(torch.tensor([0.01, 0.01, 0.01])) == 2
    assert widest_largest(torch.tensor([0.5, 0.5, 0.1])) == 1


def test_equal_start_selects_the_widest_everywhere():
    costs = table(layer("a", pinned=ENDS), layer("b"), layer("c"), layer("d", pinned=ENDS))
    architecture = Architecture(units_of(costs, PAPER), 0.01)
    assert architecture.selected() == {
        name: LayerBits(weight_bits=4, act_bits=8) for name in ("b", "c")
    }
    assert [p.tolist() for p in architecture.probabilities()] == [
        pytest.approx([1 / 3] * 3) for _ in "bc"
    ]


def test_one_weight_width_has_no_alpha_and_several_have_their_own():
    costs = table(layer("a", pinned=ENDS), layer("b"), layer("c"))
    one = Architecture(units_of(costs, PAPER), 0.0)
    assert one.alpha_of("b", "weight") is None
    assert one.alpha_of("a", "act") is None
    several = Architecture(units_of(costs, BitChoices(weight_bits=(3, 4), act_bits=(2, 4, 8))), 0.0)
    assert len(several.alphas) == 4
    assert several.alpha_of("b", "weight").numel() == 2


def test_layers_of_a_group_share_one_decision():
    costs = table(layer("a", group="g"), layer("b"), layer("c", group="g"))
    architecture = Architecture(units_of(costs, PAPER), 0.0)
    assert architecture.alpha_of("a", "act") is architecture.alpha_of("c", "act")
    assert architecture.alpha_of("a", "act") is not architecture.alpha_of("b", "act")
    with torch.no_grad():
        architecture.alpha_of("a", "act").copy_(torch.tensor([1.0, 0.0, 0.0]))
    chosen = architecture.selected()
    assert (chosen["a"].act_bits, chosen["b"].act_bits, chosen["c"].act_bits) == (2, 8, 2)


def test_overrides_give_a_layer_its_own_candidates():
    choices = BitChoices(
        weight_bits=(4,), act_bits=(3, 4, 8), overrides=(("b", (4,), (4, 8)), ("c", (4,), (8,)))
    )
    architecture = Architecture(units_of(table(layer("a"), layer("b"), layer("c")), choices), 0.0)
    assert architecture.alpha_of("b", "act").numel() == 2
    assert architecture.alpha_of("c", "act") is None
    assert architecture.selected()["c"].act_bits == 8


@pytest.mark.parametrize(
    ("choices", "what"),
    [
        (BitChoices(weight_bits=(4,), act_bits=(4,)), "one candidate width"),
        (BitChoices(weight_bits=(2, 4), act_bits=(2, 4), tied=True), "tied"),
        (
            BitChoices(weight_bits=(4,), act_bits=(2, 4), overrides=(("a", (4,), (4, 8)),)),
            "group 'g' have different act candidates",
        ),
    ],
)
def test_searches_without_a_decision_are_refused(choices, what):
    costs = table(layer("a", group="g"), layer("b", group="g"))
    with pytest.raises(ModelError, match=what):
        Architecture(units_of(costs, choices), 0.0)
