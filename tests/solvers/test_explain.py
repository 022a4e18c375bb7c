"""Causes of infeasibility against what happens when they are gone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from solvers.certificate import SolveStatus
from solvers.limits import parse_limit
from solvers.result import SolveRequest
from solvers.solve import solve
from solvers.tables import (
    BitChoices,
    CostTable,
    Importance,
    ImportanceTable,
    LayerBits,
    LayerSpec,
)  # fmt: skip

PIN = LayerBits(weight_bits=8, act_bits=8)
CHOICES = BitChoices(weight_bits=(2, 4), act_bits=(2, 4))
# The weights' indicators rise from 2 to 4 bits, so the rule ``erase`` forbids 2.
VALUES = {("weight", 2): 0.1, ("weight", 4): 0.5, ("act", 2): 0.5, ("act", 4): 0.1}


def layer(name, macs, **more):
    return LayerSpec(
        name=name, kind="conv", num_macs=macs, num_macs_unfloored=macs, num_weights=1000,
        num_biases=0, num_inputs=10, num_outputs=10, **more,
    )  # fmt: skip


def request_of(bound, *, group=None, erases=("b", "c")):
    costs = CostTable(
        model="m", input_shape=(3, 8, 8),
        layers=(
            layer("stem", 1, pinned=PIN), layer("b", 1000, group=group),
            layer("c", 1000, group=group), layer("head", 1, pinned=PIN),
        ),
    )  # fmt: skip
    rows = tuple(
        Importance(layer=n, tensor=t, bits=b, value=v if n in erases else 1 / b)
        for n in ("b", "c")
        for (t, b), v in VALUES.items()
    )
    importance = ImportanceTable(
        model="m", fingerprint=costs.fingerprint, method="x", seed=0, data_fingerprint="", rows=rows
    )
    return SolveRequest(
        costs=costs, importance=importance, choices=CHOICES, alpha=1.0, repair="erase",
        limits=(parse_limit(f"bitops={bound}"),),
    )  # fmt: skip


def test_what_erase_forbids_stays_forbidden_without_a_pin():
    # 4 x 2 bits are the least of b and c: 16,000 BitOps beside 64 of each pin.
    why = solve(request_of(10_000)).infeasibility
    assert why.limits[0].smallest == 16_128
    assert [(c.name, c.saves, c.is_enough) for c in why.causes] == [
        ("head", 60, False), ("stem", 60, False),
    ]  # fmt: skip
    assert "it would fit" not in why.text


@pytest.mark.parametrize(("bound", "is_enough"), [(16_068, True), (16_067, False)])
def test_a_pin_is_enough_where_it_is(bound, is_enough):
    why = solve(request_of(bound)).infeasibility
    assert {c.is_enough for c in why.causes} == {is_enough}


def test_a_group_that_is_undone_leaves_each_layer_what_it_may_take():
    # Only b forbids 2 bits; in a group c has to follow.
    request = request_of(12_128, group="g", erases=("b",))
    (group,) = (c for c in solve(request).infeasibility.causes if c.what == "group")
    assert (group.saves, group.is_enough) == (4000, True)
    tighter = request_of(12_127, group="g", erases=("b",))
    (group,) = (c for c in solve(tighter).infeasibility.causes if c.what == "group")
    assert (group.saves, group.is_enough) == (4000, False)
    apart = replace(
        request.costs, layers=tuple(replace(s, group=None) for s in request.costs.layers)
    )
    importance = replace(request.importance, fingerprint=apart.fingerprint)
    alone = replace(request, costs=apart, importance=importance)
    assert solve(alone).status is SolveStatus.PROVEN_OPTIMAL
