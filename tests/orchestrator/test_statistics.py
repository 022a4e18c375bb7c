"""Statistics against printed tables, numbers worked out by hand, and brute force."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from orchestrator.compare.statistics import (
    holm,
    kendall,
    paired,
    student_cdf,
    student_quantile,
    summary,
)


# The 97.5 % points that stand in every printed table of Student's distribution.
@pytest.mark.parametrize(
    ("dof", "expected"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (29, 2.045), (120, 1.980)],
)
def test_quantiles_are_those_of_printed_tables(dof: int, expected: float) -> None:
    assert student_quantile(0.975, dof) == pytest.approx(expected, abs=5e-4)
    assert student_quantile(0.025, dof) == pytest.approx(-expected, abs=5e-4)


@pytest.mark.parametrize("t", [-3.0, -0.2, 0.0, 0.7, 5.0])
def test_distribution_against_closed_forms(t: float) -> None:
    assert student_cdf(t, 1) == pytest.approx(0.5 + math.atan(t) / math.pi, abs=1e-13)
    assert student_cdf(t, 2) == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)), abs=1e-13)


def test_summary_by_hand() -> None:
    # 1, 2, 6: mean 3, squares 4 + 1 + 9 = 14, sd sqrt(7), t(2) = 4.30265, half 6.57247.
    found = summary([1.0, 2.0, 6.0])
    assert (found.n, found.mean) == (3, 3.0)
    assert found.sd == pytest.approx(math.sqrt(7))
    assert found.low == pytest.approx(3 - 6.57247, abs=1e-4)
    assert found.high == pytest.approx(3 + 6.57247, abs=1e-4)


def test_one_value_and_equal_values_claim_no_interval() -> None:
    one, equal = summary([98.0]), summary([98.0, 98.0, 98.0])
    assert (one.sd, one.low, one.high) == (None, None, None)
    assert (equal.sd, equal.low, equal.high) == (0.0, None, None)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_summary_refuses_what_is_no_number(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        summary(values)


def test_paired_by_hand_uses_shared_seeds_only() -> None:
    # Differences 1, 2, 6 again: t = 3 / (sqrt 7 / sqrt 3) = 1.96396, p = 0.18851 at 2 dof.
    found = paired({0: 11.0, 1: 12.0, 2: 16.0, 7: 3.0}, {0: 10.0, 1: 10.0, 2: 10.0, 9: 1.0})
    assert found is not None
    assert found.difference.mean == 3.0
    assert (found.only_method, found.only_reference) == ((7,), (9,))
    t = 1.9639610
    by_hand = 2 * (0.5 - t / (2 * math.sqrt(2 + t * t)))
    assert found.p_value == pytest.approx(by_hand, abs=1e-6)


def test_paired_of_one_seed_has_no_test_and_of_none_is_nothing() -> None:
    found = paired({3: 1.0}, {3: 2.0})
    assert found is not None
    assert (found.difference.mean, found.p_value) == (-1.0, None)
    assert paired({1: 1.0}, {2: 1.0}) is None


def test_equal_differences_are_equal_although_percentages_were_subtracted() -> None:
    # One image of 450 more in both seeds: 89.11 - 88.89 and 86.89 - 86.67 differ by 2e-14.
    method = {seed: 100.0 * right / 450 for seed, right in enumerate((401, 391))}
    uniform = {seed: 100.0 * right / 450 for seed, right in enumerate((400, 390))}
    assert len({method[seed] - uniform[seed] for seed in (0, 1)}) == 2
    found = paired(method, uniform)
    assert found is not None
    assert (found.p_value, found.difference.low, found.difference.sd) == (None, None, 0.0)
    assert found.difference.mean == pytest.approx(100 / 450)
    # One image of a million is a difference.
    fine = paired({0: 90.0001, 1: 90.0}, {0: 90.0, 1: 90.0})
    assert fine is not None
    assert fine.p_value is not None


def test_holm_by_hand() -> None:
    # 0.01 * 3, then max(0.03, 0.03 * 2), then max(0.06, 0.04 * 1).
    assert holm([0.04, None, 0.01, 0.03]) == (
        pytest.approx(0.06), None, pytest.approx(0.03), pytest.approx(0.06),
    )  # fmt: skip
    assert holm([0.9, 0.8]) == (1.0, 1.0)


def _tau_b(xs: tuple[int, ...], ys: tuple[int, ...]) -> float | None:
    pairs = list(itertools.combinations(range(len(xs)), 2))
    concordant = sum((xs[i] - xs[j]) * (ys[i] - ys[j]) > 0 for i, j in pairs)
    discordant = sum((xs[i] - xs[j]) * (ys[i] - ys[j]) < 0 for i, j in pairs)
    free_x = sum(xs[i] != xs[j] for i, j in pairs)
    free_y = sum(ys[i] != ys[j] for i, j in pairs)
    if not free_x or not free_y:
        return None
    return (concordant - discordant) / math.sqrt(free_x * free_y)


def test_tau_against_counting_pairs() -> None:
    for xs in itertools.product(range(3), repeat=4):
        for ys in ((0, 1, 2, 3), (2, 2, 0, 1), (1, 1, 1, 1)):
            expected = _tau_b(xs, ys)
            found = kendall(xs, ys).tau
            assert found == (None if expected is None else pytest.approx(expected, abs=1e-12))


def test_tau_and_interval_by_hand() -> None:
    # 1 discordant pair of 45: tau = 43 / 45; half width 1.959964 * sqrt(0.437 / 6) = 0.528948.
    found = kendall(range(10), [0, 1, 2, 3, 4, 5, 6, 7, 9, 8])
    assert found.tau == pytest.approx(43 / 45)
    z = math.atanh(43 / 45)
    assert found.low == pytest.approx(math.tanh(z - 0.528948), abs=1e-5)
    assert found.high == pytest.approx(math.tanh(z + 0.528948), abs=1e-5)
    # 1 order of 10! has no inversion, 9 have one, and as many at the other end.
    assert found.p_value == pytest.approx(20 / math.factorial(10))


def test_p_of_tau_is_the_share_of_all_orders() -> None:
    for n in (2, 3, 5, 6):
        signs = [
            sum(order[j] > order[i] for i, j in itertools.combinations(range(n), 2)) * 2
            - n * (n - 1) // 2
            for order in itertools.permutations(range(n))
        ]
        for order in itertools.islice(itertools.permutations(range(n)), 0, None, 7):
            own = signs[list(itertools.permutations(range(n))).index(order)]
            share = sum(abs(s) >= abs(own) for s in signs) / len(signs)
            assert kendall(range(n), order).p_value == pytest.approx(share)
    # Six inversions of eight: S = 16, the table of Kendall 1938 has 0.031 on one side.
    assert kendall(range(8), [3, 2, 1, 0, 4, 5, 6, 7]).p_value == pytest.approx(2 * 1230 / 40320)


def test_p_with_ties_is_near_that_of_shuffles() -> None:
    draw = random.Random(5)
    xs, ys = [0, 0, 1, 1, 2, 3, 4, 5, 6, 6, 7, 8], [1, 0, 0, 2, 2, 1, 3, 5, 3, 4, 6, 5]
    found = kendall(xs, ys)
    far, shuffled = 0, list(ys)
    for _ in range(4000):
        draw.shuffle(shuffled)
        far += abs(kendall(xs, shuffled).tau or 0.0) >= abs(found.tau or 0.0) - 1e-12
    assert found.p_value == pytest.approx(far / 4000, abs=0.01)
    assert kendall([1, 1, 2], [1, 2, 3]).p_value is None


def test_perfect_order_of_few_points_is_not_certainty() -> None:
    found = kendall(range(10), range(10))
    assert (found.tau, found.high) == (1.0, 1.0)
    assert found.low is not None
    assert found.low < 0.98
    few = kendall([1, 2, 3, 4], [1, 2, 3, 4])
    assert few.low is None
    assert few.p_value == pytest.approx(2 / 24)  # four in perfect order are no evidence


def test_tau_refuses_lists_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="one length"):
        kendall([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="finite"):
        kendall([1.0, math.nan], [1.0, 2.0])
