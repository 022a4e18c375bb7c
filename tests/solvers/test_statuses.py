"""Each of the four statuses, produced on purpose with each solver."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.instances import CHOICES, indicators
from benchmarks.networks import mobilenet_v3_large, resnet18
from solvers.certificate import SolveStatus
from solvers.errors import SolverFailedError
from solvers.hunt import Hunt
from solvers.ilp import Program, solve_program
from solvers.limits import parse_limit
from solvers.result import SolveRequest, SolveResult
from solvers.solve import solve
from solvers.tables import BitChoices, LayerBits
from solvers.units import Unit

BACKENDS = ["highs", "cbc"]


def ask(costs, limits, **more):
    return SolveRequest(
        costs=costs,
        importance=indicators(costs, 0),
        choices=CHOICES,
        limits=tuple(parse_limit(text) for text in limits),
        alpha=2.0,
        **more,
    )


@pytest.mark.parametrize("solver", BACKENDS)
def test_proven(solver):
    result = solve(ask(resnet18(), ["bitops_level=3x3"], solver=solver))
    assert result.status is SolveStatus.PROVEN_OPTIMAL
    assert (result.solver, result.gap) == (solver, 0.0)
    assert result.bound == result.objective
    certificate = result.policy.certificate
    assert certificate.status is SolveStatus.PROVEN_OPTIMAL
    assert certificate.solver_version
    (use,) = certificate.uses
    assert use.slack == use.bound - use.use >= 0
    assert use.binding
    assert use.price > 0


@pytest.mark.parametrize("solver", BACKENDS)
def test_infeasible_alone_needs_no_solver(solver):
    result = solve(ask(resnet18(), ["bitops=1G"], solver=solver))
    assert result.status is SolveStatus.INFEASIBLE
    assert result.policy is None
    assert result.solver == "arithmetic"


@pytest.mark.parametrize("solver", BACKENDS)
def test_infeasible_together_is_found_by_the_backend(solver):
    units = tuple(
        Unit(label=str(i), layers=(), options=(LayerBits(weight_bits=2, act_bits=2),) * 2)
        for i in range(2)
    )
    program = Program(
        units=units,
        cost=[np.array([1.0, 2.0])] * 2,
        use=[np.array([[0, 3], [3, 0]])] * 2,
        room=np.array([3, 2]),
    )
    # Each row alone has room; one unit at most may take option 1, none may take option 0.
    assert solve_program(program, solver, 10.0, preprocess=True).status is SolveStatus.INFEASIBLE


def hard_program(num_units: int, num_rows: int, room_share: float) -> Program:
    """A many-dimensional knapsack that no solver closes in a second."""
    rng = np.random.default_rng(0)
    options = tuple(LayerBits(weight_bits=w, act_bits=a) for w in range(2, 7) for a in range(2, 7))
    units = tuple(Unit(label=str(i), layers=(), options=options) for i in range(num_units))
    use = [rng.integers(1, 10**6, (num_rows, 25)) for _ in units]
    room = sum(u.mean(axis=1) for u in use) * room_share
    return Program(
        units=units,
        cost=[rng.random(25) for _ in units],
        use=use,
        room=room.astype(np.int64),
    )


@pytest.mark.parametrize("solver", BACKENDS)
def test_out_of_time_with_a_solution(solver):
    # Roomy limits: any rounding fits, and a dozen of them keep a proof hours away.
    # A second is plenty on an idle core; on a busy one the limits are wall time all the same.
    for seconds in (1.0, 4.0, 16.0):
        answer = solve_program(hard_program(400, 12, 0.9), solver, seconds)
        if answer.status is not SolveStatus.NO_SOLUTION_IN_TIME:
            break
    assert answer.status is SolveStatus.FEASIBLE_UNPROVEN
    assert answer.picks is not None


@pytest.mark.parametrize("solver", BACKENDS)
def test_out_of_time_without_a_solution(solver):
    # Limits near what the relaxation can just reach: roundings do not fit.
    answer = solve_program(hard_program(400, 12, 0.7), solver, 0.2)
    assert answer.status is SolveStatus.NO_SOLUTION_IN_TIME
    assert answer.picks is None


@pytest.mark.parametrize("solver", BACKENDS)
def test_no_time_at_all_never_yields_a_proof_with_several_limits(solver):
    request = ask(
        mobilenet_v3_large(), ["bitops_level=3x4", "compression_rate=9x"],
        solver=solver, time_limit_s=1e-3,
    )  # fmt: skip
    try:
        result = solve(request)
    except SolverFailedError:
        pytest.fail("a short time limit is a result, not an error")
    assert result.status in (SolveStatus.NO_SOLUTION_IN_TIME, SolveStatus.FEASIBLE_UNPROVEN)
    assert (result.policy is None) == (result.status is SolveStatus.NO_SOLUTION_IN_TIME)


@pytest.mark.parametrize("solver", BACKENDS)
def test_no_time_at_all_with_one_limit_keeps_the_known_solution(solver):
    # The reduction to a core finds a policy before any backend is asked.
    request = ask(mobilenet_v3_large(), ["bitops_level=4x3"], solver=solver, time_limit_s=1e-3)
    result = solve(request)
    assert result.status.has_policy
    if result.status is SolveStatus.FEASIBLE_UNPROVEN:
        assert 0 < result.gap < 0.05
        assert result.bound < result.objective


def test_cbc_must_say_the_same_twice_where_nobody_proves(monkeypatch, tiny, tiny_importance, pairs):
    # The first claim is bent to a worse policy; the second disagrees, and HiGHS decides.
    from solvers import ilp, several_limits
    from solvers.list_search import Listed
    from solvers.problem import build_problem
    from solvers.search import search

    limits = [parse_limit("bitops_level=4x4"), parse_limit("mean_weight_bits=5")]
    problem = build_problem(tiny, pairs, limits, importance=tiny_importance, alpha=1.0)
    honest = search(problem, solver="highs")
    true_solve = ilp.solve_program

    def bent(program, backend, time_limit_s, *, preprocess=False, gap=0.0):
        if backend == "cbc" and preprocess:
            program = replace(program, cost=[-c for c in program.cost])
        return true_solve(program, backend, time_limit_s, preprocess=preprocess, gap=gap)

    monkeypatch.setattr(ilp, "solve_program", bent)
    nothing = Listed(picks=None, objective=float("inf"), is_exact=False)
    monkeypatch.setattr(several_limits, "search_lists", lambda *_, **__: nothing)
    found = search(problem, solver="cbc")
    assert found.solver == "highs"
    assert found.picks == honest.picks
    assert "gave up" in found.solver_version


def test_an_answer_over_a_limit_is_excluded_and_solved_again(
    monkeypatch, tiny, tiny_importance, pairs
):
    from solvers import ilp
    from solvers.problem import build_problem
    from solvers.search import search

    limits = [parse_limit("bitops_level=4x4"), parse_limit("mean_weight_bits=5")]
    problem = build_problem(tiny, pairs, limits, importance=tiny_importance, alpha=1.0)
    honest = search(problem, solver="highs")
    true_solve = ilp.solve_program

    def sloppy(program, backend, time_limit_s, *, preprocess=False, gap=0.0):
        wider = replace(program, room=program.room + program.room // 10)
        return true_solve(wider, backend, time_limit_s, preprocess=preprocess, gap=gap)

    monkeypatch.setattr(ilp, "solve_program", sloppy)
    found = search(problem, solver="highs")
    assert problem.fits(problem.bits_by_name(found.picks))
    assert problem.objective(found.picks) == pytest.approx(problem.objective(honest.picks))


def test_a_policy_without_a_status_for_it_cannot_be_built():
    with pytest.raises(SolverFailedError, match="do not go together"):
        SolveResult(
            status=SolveStatus.PROVEN_OPTIMAL, solver="x", solver_version="", wall_s=0, cpu_s=0
        )


def test_hunt_believes_highs_at_once(tiny, tiny_importance, pairs):
    from solvers.problem import build_problem

    problem = build_problem(
        tiny, pairs, [parse_limit("bitops_level=4x4")], importance=tiny_importance
    )
    hunt = Hunt(problem, "highs", 1e12, [])
    settled = hunt.among([np.arange(len(c)) for c in problem.cost])
    assert settled.status is SolveStatus.PROVEN_OPTIMAL


def test_weights_only_search(tiny, tiny_importance):
    choices = BitChoices(weight_bits=(2, 4, 8), act_bits=(8,))
    result = solve(
        SolveRequest(
            costs=tiny, importance=tiny_importance, choices=choices, alpha=1.0,
            limits=(parse_limit("compression_rate=6"),),
        )
    )  # fmt: skip
    assert {b.act_bits for _, b in result.policy.layers} == {8}
