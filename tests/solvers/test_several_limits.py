"""Under several limits the list search proves or betters what CBC found, and says which."""

import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.instances import CHOICES, indicators
from benchmarks.networks import mobilenet_v2, resnet18
from solvers import ilp, several_limits
from solvers.certificate import SolveStatus
from solvers.exhaustive import best_policy, every_policy
from solvers.hunt import Hunt
from solvers.limits import parse_limit
from solvers.list_search import search_lists
from solvers.multipliers import Options, best_multipliers
from solvers.problem import build_problem
from solvers.reduce import undominated
from solvers.search import search
from solvers.uses import is_additive

NUM_INSTANCES = 1200


def laid_out(problem):
    kept = [undominated(c, u) for c, u in zip(problem.cost, problem.use, strict=True)]
    return kept, Options.of(problem.cost, problem.use, kept)


def several_additive(random_instance, seed):
    problem = random_instance(seed, num_limits=2 + seed % 2).problem()
    return problem if all(is_additive(c) for c in problem.ceilings) else None


@pytest.mark.parametrize("start", range(0, 3000, 500))
def test_lists_agree_with_every_policy(random_instance, start):
    # Without any backend: what is known beforehand is the worst policy that fits.
    num = 0
    for seed in range(start, start + 500):
        problem = several_additive(random_instance, seed)
        if problem is None:
            continue
        num += 1
        best = best_policy(problem)
        kept, options = laid_out(problem)
        prices = best_multipliers(options, problem.room)
        if prices is None:
            assert best is None, seed
            continue
        worst = sum(float(c.max()) for c in problem.cost)
        listed = search_lists(options, problem.room, prices, worst)
        assert listed.is_exact
        if best is None:
            assert listed.picks is None, seed
            continue
        picks = [int(k[p]) for k, p in zip(kept, listed.picks, strict=True)]
        assert problem.fits(problem.bits_by_name(picks)), seed
        assert math.isclose(problem.objective(picks), best[0], rel_tol=1e-12), seed
        assert listed.objective == pytest.approx(best[0], rel=1e-12)
        # The tie-break: no optimal policy uses less in the order of the limits.
        ties = [
            uses
            for cost, uses, _ in every_policy(problem)
            if cost == best[0]
            and all(u <= c.bound for u, c in zip(uses, problem.ceilings, strict=True))
        ]
        assert problem.total_uses(problem.bits_by_name(picks)) == min(ties), seed
    assert num >= NUM_INSTANCES // 6


def test_multipliers_reach_the_relaxation():
    costs = resnet18()
    limits = [parse_limit("bitops_level=3x4"), parse_limit("compression_rate=11x")]
    for seed in range(5):
        problem = build_problem(
            costs, CHOICES, limits, importance=indicators(costs, seed), alpha=2.0
        )
        kept, options = laid_out(problem)
        ours = best_multipliers(options, problem.room)
        theirs = np.array(Hunt(problem, "highs", 1e12, []).relaxed_prices(kept))

        def bound(p, options=options, room=problem.room):
            return float(options.priced(p).min(axis=1).sum() - p @ room)

        assert bound(ours) == pytest.approx(bound(theirs), rel=1e-7)
        assert (ours >= 0).all()


def test_a_limit_out_of_the_way_is_worth_nothing():
    costs = resnet18()
    limits = [parse_limit("bitops_level=3x3"), parse_limit("weight_bytes=100MiB")]
    problem = build_problem(costs, CHOICES, limits, importance=indicators(costs, 0), alpha=2.0)
    _, options = laid_out(problem)
    prices = best_multipliers(options, problem.room)
    assert prices[0] > 0
    assert prices[1] == 0


def two_limits(seed=0):
    costs = resnet18()
    limits = [parse_limit("bitops_level=3x4"), parse_limit("compression_rate=11x")]
    return build_problem(costs, CHOICES, limits, importance=indicators(costs, seed), alpha=2.0)


def test_a_worse_answer_is_bettered_and_the_certificate_says_so(monkeypatch):
    problem = two_limits()
    honest = search(problem, solver="highs")
    true_solve = ilp.solve_program

    def bent(program, backend, time_limit_s, **more):
        return true_solve(
            replace(program, cost=[-c for c in program.cost]), backend, time_limit_s, **more
        )

    monkeypatch.setattr(ilp, "solve_program", bent)
    found = search(problem, solver="cbc")
    assert found.status is SolveStatus.PROVEN_OPTIMAL
    assert problem.objective(found.picks) == problem.objective(honest.picks)
    assert found.solver == "cbc"
    assert "bettered and proven by list search" in found.solver_version


def test_highs_is_not_proven_by_others(monkeypatch):
    monkeypatch.setattr(several_limits, "search_lists", lambda *_, **__: pytest.fail("asked"))
    found = search(two_limits(), solver="highs")
    assert found.solver == "highs"
    assert "list search" not in found.solver_version


def test_past_the_cap_the_lists_say_that_they_prove_nothing():
    problem = two_limits()
    _, options = laid_out(problem)
    prices = best_multipliers(options, problem.room)
    worst = sum(float(c.max()) for c in problem.cost)
    assert not search_lists(options, problem.room, prices, worst, cap=0).is_exact
    assert not search_lists(options, problem.room, prices, worst, deadline=0.0).is_exact


def test_it_is_deterministic_and_independent_of_what_was_known():
    costs = mobilenet_v2()
    limits = [parse_limit("bitops_level=3x4"), parse_limit("compression_rate=7x")]
    problem = build_problem(costs, CHOICES, limits, importance=indicators(costs, 2), alpha=2.0)
    found = search(problem)
    _, options = laid_out(problem)
    prices = best_multipliers(options, problem.room)
    known = problem.objective(found.picks)
    one = search_lists(options, problem.room, prices, known)
    other = search_lists(options, problem.room, prices, known * (1 + 1e-4))
    assert one.is_exact
    assert other.is_exact
    assert one.picks.tolist() == other.picks.tolist()
    assert search(problem).picks == found.picks


def test_whatever_the_cap_an_exact_answer_is_the_same():
    # Small caps fail, middling ones succeed under a lower ceiling, large ones at once.
    problem = two_limits(1)
    _, options = laid_out(problem)
    prices = best_multipliers(options, problem.room)
    best = problem.objective(search(problem, solver="highs").picks)
    known = best * 1.05
    ends = []
    for cap in (1, 30, 100, 300, 1000, 3000, 10_000, 100_000):
        listed = search_lists(options, problem.room, prices, known, cap=cap)
        ends.append(listed.is_exact)
        if listed.is_exact:
            assert listed.objective == pytest.approx(best, rel=1e-12), cap
    assert ends == sorted(ends)
    assert not ends[0]
    assert ends[-1]


def test_a_ceiling_without_a_policy_proves_nothing(monkeypatch):
    # Every policy is above the lower ceilings, and the highest one overflows its cap.
    from solvers import list_search

    true_pass = list_search._one_pass
    problem = two_limits(1)
    _, options = laid_out(problem)
    prices = best_multipliers(options, problem.room)
    best = problem.objective(search(problem, solver="highs").picks)
    ceilings = []

    def one_pass(options, room, around, known, deadline, most, *, whole):
        if whole:
            ceilings.append(known)
            if known >= best:
                most = 1
        return true_pass(options, room, around, known, deadline, most, whole=whole)

    monkeypatch.setattr(list_search, "_one_pass", one_pass)
    listed = search_lists(options, problem.room, prices, best)
    assert len(ceilings) == len(list_search._CEILINGS)
    assert not listed.is_exact
