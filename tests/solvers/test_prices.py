"""What 1 % more of a limit buys, which limits bind, and reduced costs: against numbers by hand."""

from __future__ import annotations

import pytest

from solvers.frontier import front
from solvers.layer_report import report_layer
from solvers.limits import parse_limit
from solvers.problem import build_problem
from solvers.result import SolveRequest
from solvers.search import _in_canonical_order, search
from solvers.solve import limit_uses, solve
from solvers.tables import (
    BitChoices,
    CostTable,
    Importance,
    ImportanceTable,
    LayerBits,
    LayerSpec,
)  # fmt: skip


def layer(name, macs, **more):
    return LayerSpec(
        name=name, kind="conv", num_macs=macs, num_macs_unfloored=macs, num_weights=100,
        num_biases=0, num_inputs=10, num_outputs=10, **more,
    )  # fmt: skip


def asked(layers, values, limits, *, act=8, names=("a",), **more):
    """A weights-only question; ``values`` are the weights' indicators by bits, for each name."""
    costs = CostTable(model="m", input_shape=(3, 8, 8), layers=tuple(layers))
    rows = tuple(
        Importance(layer=n, tensor="weight", bits=b, value=v)
        for n in names
        for b, v in values.items()
    )
    return SolveRequest(
        costs=costs,
        importance=ImportanceTable(
            model="m", fingerprint="", method="x", seed=0, data_fingerprint="", rows=rows
        ),
        choices=BitChoices(weight_bits=tuple(values), act_bits=(act,)),
        limits=tuple(parse_limit(text) for text in limits),
        alpha=1.0,
        **more,
    )


# 1,000 MACs at 8-bit activations: 16,000, 24,000 and 32,000 BitOps. The line from 2 to 4 bits falls
# by 0.8 over 16,000 BitOps, so that 1 % of 20,000 is worth 200 * 0.8 / 16,000; 3 bits lie above it.
HULL = {2: 1.0, 3: 0.9, 4: 0.2}


def test_the_relaxed_price_is_that_of_one_percent_of_the_limit():
    request = asked([layer("a", 1000)], HULL, ["bitops=20000"], prices="relaxed")
    result = solve(request)
    assert result.policy.bits_of("a").weight_bits == 2
    assert result.uses[0].price == pytest.approx(0.01, rel=1e-9)


def test_the_relaxed_prices_of_two_limits():
    # The second limit is out of the way and worth nothing; the first keeps its price.
    request = asked([layer("a", 1000)], HULL, ["bitops=20000", "weight_bytes=1MB"])
    prices = [use.price for use in solve(request).uses]
    assert prices == pytest.approx([0.01, 0.0], rel=1e-5)


def test_reduced_costs_are_counted_from_the_best_option():
    report = report_layer(asked([layer("a", 1000)], HULL, ["bitops=20000"]), "a")
    assert report.prices == (pytest.approx(0.01, rel=1e-9),)
    assert [o.uses for o in report.options] == [(16_000,), (24_000,), (32_000,)]
    assert [o.objective for o in report.options] == pytest.approx([1.0, 0.9, 0.2])
    # At 5e-5 a BitOp: 1.8, 2.1 and 1.8.
    assert [o.reduced_cost for o in report.options] == pytest.approx([0.0, 0.3, 0.0], abs=1e-9)


# The pin costs 96,000 and the layer 1,000 a bit: 4, 5 and 6 bits end at 100,000, 101,000, 102,000.
# 1 % of 100,000 just buys the fifth bit (2 % would buy the sixth), 1 % of 101,000 the sixth.
@pytest.mark.parametrize(("bound", "price"), [(100_000, 0.3), (100_990, 0.3), (101_000, 0.6)])
def test_one_percent_is_no_more_and_no_less(bound, price):
    pin = LayerBits(weight_bits=8, act_bits=8)
    layers = [layer("stem", 1500, pinned=pin), layer("a", 500)]
    values = {4: 1.0, 5: 0.7, 6: 0.1}
    request = asked(layers, values, [f"bitops={bound}"], act=2, prices="resolved")
    assert solve(request).uses[0].price == pytest.approx(price)
    whole = front(request.costs, request.importance, request.choices, alpha=1.0)
    assert whole.at(bound).uses[0].price == pytest.approx(price)


def test_a_limit_binds_only_if_what_it_forbids_would_be_better():
    # 4 bits break the limit and are worse than 2: the limit stands in nobody's way.
    rising = asked([layer("a", 1000)], {2: 0.1, 4: 0.5}, ["bitops=20000"], repair="keep")
    (use,) = solve(rising).uses
    assert (use.use, use.binding) == (16_000, False)
    falling = asked([layer("a", 1000)], {2: 0.5, 4: 0.1}, ["bitops=20000"], repair="keep")
    (use,) = solve(falling).uses
    assert (use.use, use.binding) == (16_000, True)
    # Just enough room for the better one is no obstacle either.
    roomy = asked([layer("a", 1000)], {2: 0.5, 4: 0.1}, ["bitops=32000"], repair="keep")
    problem = build_problem(
        roomy.costs, roomy.choices, roomy.limits, importance=roomy.importance, repair="keep"
    )
    assert [use.binding for use in limit_uses(problem, [0])] == [False]


@pytest.mark.parametrize("solver", ["highs", "cbc"])
@pytest.mark.parametrize("more", [[], ["weight_bytes=1MB"]])
def test_of_interchangeable_layers_the_earlier_one_gets_the_wider_option(solver, more):
    names = ("a", "b", "c")
    # 16,000 BitOps a layer at 2 bits, 32,000 at 4: one of three may be wide.
    request = asked(
        [layer(n, 1000) for n in names], {2: 0.5, 4: 0.1}, ["bitops=70000", *more], names=names
    )
    problem = build_problem(
        request.costs, request.choices, request.limits, importance=request.importance
    )
    assert search(problem, solver=solver).picks == (1, 0, 0)
    for picks in ((0, 0, 1), (0, 1, 0), (1, 0, 0)):
        assert _in_canonical_order(problem, picks) == (1, 0, 0)


def test_layers_that_differ_in_anything_keep_their_options():
    names = ("a", "b")
    layers = [layer("a", 1000), layer("b", 1001)]
    request = asked(layers, {2: 0.5, 4: 0.1}, ["bitops=1M"], names=names)
    problem = build_problem(
        request.costs, request.choices, request.limits, importance=request.importance
    )
    assert _in_canonical_order(problem, (0, 1)) == (0, 1)
