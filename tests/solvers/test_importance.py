"""Repair rules against their definitions, and tables that do not fit."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solvers.errors import TableError
from solvers.importance import choices_from, non_increasing, read_indicators
from solvers.problem import build_problem, on_exact_grid
from solvers.tables import BitChoices, CostTable, Importance, ImportanceTable, LayerSpec


def one_layer(values: list[float]) -> tuple[CostTable, ImportanceTable, BitChoices]:
    costs = CostTable(
        model="one", input_shape=(1, 1, 1),
        layers=(LayerSpec(name="x", kind="conv", num_macs=1, num_macs_unfloored=1, num_weights=1,
                          num_biases=0, num_inputs=1, num_outputs=1),),
    )  # fmt: skip
    bits = tuple(range(2, 2 + len(values)))
    rows = [Importance(layer="x", tensor="weight", bits=b, value=v)
            for b, v in zip(bits, values, strict=True)]  # fmt: skip
    rows.append(Importance(layer="x", tensor="act", bits=8, value=1.0))
    table = ImportanceTable(model="one", fingerprint="", method="", seed=0, data_fingerprint="",
                            rows=tuple(rows))  # fmt: skip
    return costs, table, BitChoices(weight_bits=bits, act_bits=(8,))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_isotonic_is_the_least_squares_projection(values):
    fitted = non_increasing([float(v) for v in values])
    assert all(a >= b for a, b in itertools.pairwise(fitted))
    error = sum((f - v) ** 2 for f, v in zip(fitted, values, strict=True))
    # The optimum is a mean of neighbours block by block: try every way to cut into blocks.
    best = math.inf
    for cuts in itertools.product([False, True], repeat=len(values) - 1):
        blocks, start = [], 0
        for i, cut in enumerate([*cuts, True], 1):
            if cut:
                blocks.append(values[start:i])
                start = i
        means = [sum(b) / len(b) for b in blocks]
        if all(x >= y for x, y in itertools.pairwise(means)):
            spread = sum((v - m) ** 2 for b, m in zip(blocks, means, strict=True) for v in b)
            best = min(best, spread)
    assert error == pytest.approx(best, abs=1e-9)


def test_rules():
    costs, table, choices = one_layer([0.5, 0.2, 0.4, 0.1])
    kept = read_indicators(table, costs, choices, "keep")
    assert [kept.values["x", "weight", b] for b in (2, 3, 4, 5)] == [0.5, 0.2, 0.4, 0.1]
    isotonic = read_indicators(table, costs, choices, "isotonic")
    assert [isotonic.values["x", "weight", b] for b in (2, 3, 4, 5)] == pytest.approx(
        [0.5, 0.3, 0.3, 0.1]
    )
    erased = read_indicators(table, costs, choices, "erase")
    assert math.isinf(erased.values["x", "weight", 3])
    assert erased.values["x", "weight", 2] == 0.5
    for indicators in (kept, isotonic, erased):
        (violation,) = indicators.violations
        assert (violation.bits, violation.next_bits) == (3, 4)
    assert erased.violations[0].used is None
    assert isotonic.violations[0].used == pytest.approx(0.3)
    problem = build_problem(costs, choices, [], importance=table, alpha=1.0, repair="erase")
    assert [o.weight_bits for o in problem.units[0].options] == [2, 4, 5]


def test_equal_neighbours_are_no_violation_and_nothing_is_erased():
    costs, table, choices = one_layer([0.5, 0.5, 0.1])
    for rule in ("isotonic", "keep", "erase"):
        indicators = read_indicators(table, costs, choices, rule)
        assert indicators.violations == ()
        assert [indicators.values["x", "weight", b] for b in (2, 3, 4)] == [0.5, 0.5, 0.1]
    problem = build_problem(costs, choices, [], importance=table, alpha=1.0, repair="erase")
    assert [o.weight_bits for o in problem.units[0].options] == [2, 3, 4]


@pytest.mark.parametrize("rule", ["isotonic", "keep", "erase"])
@pytest.mark.parametrize("values", [[1e308, 1e308], [1e308, 1.0], [1e308, 1.5e308]])
def test_costs_too_large_to_add_up_are_not_taken_for_erased_ones(rule, values):
    costs, table, choices = one_layer(values)
    with pytest.raises(TableError, match="too large to add up"):
        build_problem(costs, choices, [], importance=table, alpha=10.0, repair=rule)


def test_alpha_multiplies_the_weight_term():
    costs, table, choices = one_layer([3.0, 2.0])
    problem = build_problem(costs, choices, [], importance=table, alpha=10.0)
    assert problem.cost[0].tolist() == [31.0, 21.0]
    for alpha in (-1.0, math.nan, math.inf):
        with pytest.raises(TableError, match="alpha"):
            build_problem(costs, choices, [], importance=table, alpha=alpha)


def test_missing_and_foreign_rows():
    costs, table, _ = one_layer([3.0, 2.0])
    wide = BitChoices(weight_bits=(2, 3, 6), act_bits=(8,))
    with pytest.raises(TableError, match="layer 'x' has no weight value at 6 bit"):
        read_indicators(table, costs, wide)
    from dataclasses import replace

    stranger = replace(table, rows=(*table.rows, Importance(layer="y", tensor="act", bits=2,
                                                            value=1.0)))  # fmt: skip
    with pytest.raises(TableError, match="layer 'y'"):
        read_indicators(stranger, costs, wide)
    with pytest.raises(TableError, match="another network"):
        read_indicators(replace(table, fingerprint="0"), costs, wide)
    with pytest.raises(TableError, match="unknown"):
        read_indicators(table, costs, wide, "smooth")


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_impossible_indicators_are_refused_by_layer(value):
    with pytest.raises(TableError, match="layer 'x'"):
        one_layer([1.0, value])


def test_candidates_from_what_was_learned(tiny, pairs, tiny_importance):
    assert choices_from(tiny_importance, tiny) == pairs
    fewer = [r for r in tiny_importance.rows if (r.layer, r.bits) != ("b", 8)]
    from dataclasses import replace

    found = choices_from(replace(tiny_importance, rows=tuple(fewer)), tiny)
    by_layer = {s.name: {o.weight_bits for o in found.of(s)} for s in tiny.searched}
    assert by_layer == {"a": {2, 4, 8}, "b": {2, 4}}


@given(st.lists(st.floats(1e-9, 1e3), min_size=2, max_size=30), st.randoms())
def test_sums_on_the_grid_do_not_depend_on_order(values, rng):
    import numpy as np

    grid = [float(v) for (v,) in on_exact_grid([np.array([v]) for v in values])]
    shuffled = list(grid)
    rng.shuffle(shuffled)
    assert sum(grid) == sum(shuffled) == math.fsum(grid)
    assert sum(grid) == pytest.approx(sum(values), rel=1e-12)
