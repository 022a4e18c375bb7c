"""Causes of infeasibility against what happens when they are gone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from solvers import explain
from solvers.certificate import SolveStatus
from solvers.errors import LatencyMissingError
from solvers.frontier import front
from solvers.latency import LatencyTable
from solvers.limits import parse_limit
from solvers.pool import near_optimal
from solvers.problem import build_problem
from solvers.result import SolveRequest
from solvers.search import Found
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


def measured(costs, missing=()):
    """A latency table as it is measured: pinned layers at their pin, the others at every pair."""
    rows = tuple(
        (s.name, o.weight_bits, o.act_bits, o.weight_bits * 10**6)
        for s in costs
        for o in CHOICES.of(s)
        if (s.name, o.weight_bits) not in missing
    )
    return LatencyTable(name="chip.csv", rows=rows)


def test_a_latency_table_that_holds_pins_only_still_says_why_nothing_fits():
    request = request_of(1, erases=())
    limit = parse_limit("latency_us=19", measured(request.costs))
    request = replace(request, limits=(limit,))
    direct = solve(request)
    whole = front(
        request.costs, request.importance, CHOICES, "latency_us", alpha=1.0, repair="erase",
        latency=limit.latency,
    )  # fmt: skip
    for found in (direct, whole.at(limit)):
        assert found.status is SolveStatus.INFEASIBLE
        why = found.infeasibility
        assert (why.limits[0].shown_smallest, why.causes) == (20, ())
        assert "not examined: pin 'stem', pin 'head'" in why.text
    pool = near_optimal(request, within_percent=1)
    assert (pool.end, pool.infeasibility) == ("infeasible", direct.infeasibility)


def test_causes_that_the_latency_table_knows_are_still_found():
    request = request_of(1, erases=())
    rows = tuple((n, w, a, w * 10**6) for n in ("stem", "head") for w in (2, 4) for a in (2, 4))
    latency = measured(request.costs)
    latency = replace(latency, rows=latency.rows + rows[:4])
    limit = parse_limit("latency_us=19", latency)
    why = solve(replace(request, limits=(limit,))).infeasibility
    assert [(c.name, c.saves, c.is_enough) for c in why.causes] == [("stem", 6 * 10**6, True)]
    assert "not examined: pin 'head'," in why.text


def test_a_latency_that_the_question_itself_needs_is_still_refused():
    request = request_of(1, erases=())
    limit = parse_limit("latency_us=19", measured(request.costs, missing={("b", 2)}))
    with pytest.raises(LatencyMissingError, match="layer 'b' has no latency_us for 2 bit"):
        solve(replace(request, limits=(limit,)))


def test_a_level_keeps_the_height_it_was_asked_at_when_a_pin_is_freed():
    # 100 MACs at 8x8 and 2,000 at 1x3: 12,464 allowed, 14,464 the least; a freed stem saves 6,000.
    # The level of the freed network itself would be 6,364, out of reach of its least 8,464.
    request = request_of(1, erases=())
    wide = replace(request.costs.layers[0], num_macs=100, num_macs_unfloored=100)
    costs = replace(request.costs, layers=(wide, *request.costs.layers[1:]), fingerprint="")
    importance = replace(request.importance, fingerprint="")
    limit = parse_limit("bitops_level=1x3")
    why = solve(replace(request, costs=costs, importance=importance, limits=(limit,))).infeasibility
    assert (why.limits[0].bound, why.limits[0].smallest) == (12_464, 14_464)
    assert [(c.name, c.saves, c.is_enough) for c in why.causes] == [
        ("stem", 6000, True), ("head", 60, False),
    ]  # fmt: skip


def test_a_joint_question_that_nobody_answered_does_not_count_as_no(monkeypatch):
    unanswered = Found(
        status=SolveStatus.NO_SOLUTION_IN_TIME, picks=None, bound=None, solver="x",
        solver_version="",
    )  # fmt: skip
    monkeypatch.setattr(explain, "search", lambda *_, **__: unanswered)
    request = request_of(1, erases=())
    limits = [parse_limit(f"{text}") for text in ("bitops=10K", "mean_act_bits=4", "bitops=1G")]
    problem = build_problem(request.costs, CHOICES, limits, importance=None)
    judge = explain._Judge("auto", 1e12)
    assert judge.fits(problem) is None
    # No limit may leave the clash on the strength of an open question.
    assert judge.smallest_clash(problem) == [0, 1, 2]
    why = explain.explain(problem)
    assert why.clash == tuple(limit.text for limit in limits)
    assert not any(cause.is_enough for cause in why.causes)
