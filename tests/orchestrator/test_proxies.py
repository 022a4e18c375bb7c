"""Importance against measured accuracy: the objective by hand, tau by counting pairs."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.compare.proxies import (
    ALL_LIMITS,
    MeasuredPolicy,
    predicted_objective,
    proxy_points,
    tau_text,
    validities,
)
from orchestrator.compare.statistics import RankCorrelation
from orchestrator.figures.proxies import proxy_scatter, tau_figure
from tests.orchestrator.run_folders import policy, table


def _measured(name: str, limits: str, top1: float, *pairs: tuple[int, int]) -> MeasuredPolicy:
    return MeasuredPolicy(
        label=name, limits=(limits,), bits=policy(*pairs).bits_by_name(), top1=top1
    )


def test_objective_by_hand() -> None:
    # a: act 1/3, weight 1/2; b: act 2/2, weight 2/3; c: act 3/4, weight 3/3. Pinned ones add none.
    bits = policy((2, 3), (3, 2), (3, 4)).bits_by_name()
    found = predicted_objective(table(), bits, 2.0)
    assert found is not None
    assert abs(found - ((1 / 3 + 1 + 3 / 4) + 2 * (1 / 2 + 2 / 3 + 1))) < 1e-12


def test_bits_that_the_table_does_not_know_cannot_be_judged() -> None:
    bits = policy((6, 3), (3, 2), (3, 4)).bits_by_name()
    assert predicted_objective(table(), bits, 1.0) is None


def test_tau_is_one_when_more_predicted_loss_is_more_error_and_within_each_budget() -> None:
    steps = [((2, 2), (2, 2), (2, 2)), ((2, 2), (2, 2), (3, 3)), ((3, 3), (3, 3), (3, 3)),
             ((4, 4), (4, 4), (4, 4))]  # fmt: skip
    good = [_measured(f"g{i}", "x", 90.0 + i, *pairs) for i, pairs in enumerate(steps)]
    bad = [_measured(f"b{i}", "y", 60.0 - i, *pairs) for i, pairs in enumerate(steps)]
    points = proxy_points("limpq", table(), 1.0, [*good, *bad])
    found = {v.limits: v.correlation for v in validities(points, "limpq", 1.0)}
    assert (found["x"].tau, found["x"].n, found["x"].low) == (1.0, 4, None)
    assert found["y"].tau == -1.0
    # Over both: of 28 pairs 4 are tied in prediction; 12 agree and 12 do not.
    assert found[ALL_LIMITS].tau == 0.0
    assert found[ALL_LIMITS].low is None  # eight points


def test_two_policies_support_no_tau() -> None:
    points = proxy_points("s", table(), 1.0, [
        _measured("p", "x", 90.0, (2, 2), (2, 2), (2, 2)),
        _measured("q", "x", 91.0, (3, 3), (2, 2), (2, 2)),
    ])  # fmt: skip
    assert validities(points, "s", 1.0) == []
    assert proxy_scatter(points, "s") is None
    assert tau_figure([]) is None


def test_what_is_not_claimed_is_said() -> None:
    assert (
        tau_text(RankCorrelation(tau=None, n=3, low=None, high=None, p_value=None))
        == "undefined (all equal)"
    )
    tied = RankCorrelation(tau=0.5, n=4, low=None, high=None, p_value=None)
    assert "no interval" in tau_text(tied)
    assert tau_text(replace(tied, p_value=0.061)) == "+0.50 (p 0.06)"
    shown = replace(tied, n=12, low=-0.1, high=0.8, p_value=0.2)
    assert tau_text(shown) == "+0.50 [-0.10, +0.80]"
