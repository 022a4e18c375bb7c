"""Front, both solvers and looking at every policy agree, with groups, pins and all limits."""

import math

import numpy as np
import pytest

from solvers.certificate import SolveStatus
from solvers.exhaustive import best_policy, every_policy
from solvers.frontier import front_of, pareto_labels
from solvers.ilp import Program, solve_program
from solvers.peaks import moments_of
from solvers.search import search
from solvers.uses import is_additive

NUM_INSTANCES = 1000
CHUNK = 100


@pytest.mark.parametrize("start", range(0, NUM_INSTANCES, CHUNK))
def test_both_solvers_agree_with_every_policy(random_instance, start):
    statuses = set()
    for seed in range(start, start + CHUNK):
        problem = random_instance(seed).problem()
        best = best_policy(problem)
        for solver in ("highs", "cbc"):
            found = search(problem, solver=solver)
            statuses.add(found.status)
            if best is None:
                assert found.status is SolveStatus.INFEASIBLE, seed
                assert found.picks is None
                continue
            assert found.status is SolveStatus.PROVEN_OPTIMAL, seed
            assert problem.fits(problem.bits_by_name(found.picks)), seed
            assert math.isclose(problem.objective(found.picks), best[0], rel_tol=1e-9), seed
            assert math.isclose(found.bound, best[0], rel_tol=1e-9), seed
    assert statuses == {SolveStatus.PROVEN_OPTIMAL, SolveStatus.INFEASIBLE}


@pytest.mark.parametrize("start", range(0, NUM_INSTANCES, CHUNK))
def test_the_front_agrees_with_every_policy(random_instance, start):
    num_points = 0
    for seed in range(start, start + CHUNK):
        problem = random_instance(seed, num_limits=1).problem()
        if not is_additive(problem.ceilings[0]):
            continue
        front = front_of(problem, alpha=1.0)
        policies = sorted((use, cost) for cost, (use,), _ in every_policy(problem))
        stairs = []
        for use, cost in policies:
            if not stairs or cost < stairs[-1][1]:
                stairs.append((use, cost))
        assert [int(u) for u in front.use] == [use for use, _ in stairs], seed
        np.testing.assert_allclose(front.objective, [c for _, c in stairs], rtol=1e-12)
        picks = front.picks(np.arange(len(front)))
        for point in range(len(front)):
            bits = problem.bits_by_name(picks[point])
            assert problem.total_uses(bits) == (int(front.use[point]),), seed
            assert math.isclose(problem.objective(picks[point]), stairs[point][1], rel_tol=1e-12)
        for k, (use, cost) in enumerate(stairs):
            assert int(front.points([use])[0]) == k
            assert front.objective[int(front.points([use])[0])] == pytest.approx(cost, rel=1e-12)
            if use > stairs[0][0]:
                assert int(front.points([use - 1])[0]) == k - 1
        assert int(front.points([stairs[0][0] - 1])[0]) == -1
        num_points += len(front)
    assert num_points > 100


@pytest.mark.parametrize("backend", ["highs", "cbc"])
def test_plain_programs_without_reductions(random_instance, backend):
    # search() leaves most small instances nothing to solve; here the backends get everything.
    for seed in range(60):
        problem = random_instance(seed + 5000).problem()
        program = Program(
            units=problem.units,
            cost=problem.cost,
            use=problem.use,
            room=problem.room,
            peaks=tuple(
                (moments_of(problem.costs, problem.units, problem.accounting), c.bound)
                for c in problem.peaks
            ),
        )
        answer = solve_program(program, backend, 60.0)
        best = best_policy(problem)
        if best is None:
            assert answer.status is SolveStatus.INFEASIBLE, seed
        else:
            assert answer.status is SolveStatus.PROVEN_OPTIMAL, seed
            assert math.isclose(problem.objective(answer.picks), best[0], rel_tol=1e-9), seed


def test_exclusions_walk_through_the_policies_in_order(random_instance):
    for seed in range(40):
        problem = random_instance(seed + 9000, largest=80).problem()
        fitting = sorted(
            cost
            for cost, uses, _ in every_policy(problem)
            if all(u <= c.bound for u, c in zip(uses, problem.ceilings, strict=True))
        )
        taken = []
        for expected in fitting[:4]:
            found = search(problem, excluded=taken)
            assert found.status is SolveStatus.PROVEN_OPTIMAL
            assert found.picks not in taken
            assert math.isclose(problem.objective(found.picks), expected, rel_tol=1e-9), seed
            taken.append(found.picks)
        if len(fitting) <= 4:
            assert search(problem, excluded=taken).status is SolveStatus.INFEASIBLE


def test_wide_fronts_use_the_other_sort():
    # Sizes without a common divisor beyond 16 bits take the int64 path.
    rng = np.random.default_rng(3)
    cost = [rng.random(4) for _ in range(5)]
    use = [rng.integers(1, 10**9, 4) for _ in range(5)]
    labels = pareto_labels(cost, use)
    every = sorted(
        (int(sum(u[i] for u, i in zip(use, p, strict=True))),
         float(sum(c[i] for c, i in zip(cost, p, strict=True))))
        for p in np.ndindex(4, 4, 4, 4, 4)
    )  # fmt: skip
    stairs = []
    for total, value in every:
        if not stairs or value < stairs[-1][1]:
            stairs.append((total, value))
    assert labels.use.tolist() == [total for total, _ in stairs]
    np.testing.assert_allclose(labels.cost, [value for _, value in stairs], rtol=1e-12)
