"""LIMPQ's published ResNet-50 policy, from its published indicators: all 104 widths equal.

The indicators are data of another project and are not kept here; the test reads them from the
folder named by MPQ_SHARED, or from a folder ``shared`` beside the checkout.
"""

import json
import os
from pathlib import Path

import pytest

from benchmarks.networks import resnet50
from solvers.accounting import AS_PUBLISHED_LIMPQ, STANDARD
from solvers.certificate import SolveStatus
from solvers.limits import parse_limit
from solvers.published import lists_from_policy, policy_from_lists
from solvers.result import SolveRequest
from solvers.solve import solve
from solvers.tables import BitChoices, Importance, ImportanceTable

LIMITS = (parse_limit("bitops_level=3x4"), parse_limit("compression_rate=12.2x"))
CHOICES = BitChoices(weight_bits=(2, 3, 4, 5, 6), act_bits=(2, 3, 4, 5, 6))


@pytest.fixture(scope="module")
def golden():
    beside = Path(__file__).parents[2].parent / "shared"
    path = Path(os.environ.get("MPQ_SHARED", beside)) / "data/golden/limpq_resnet50.json"
    if not path.is_file():
        pytest.skip("the published indicators are not here; set MPQ_SHARED to their folder")
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def request_for(golden):
    costs = resnet50()
    rows = tuple(
        Importance(layer=layer["name"], tensor=tensor, bits=int(bits), value=value)
        for layer in golden["layers"]
        for tensor in ("weight", "act")
        for bits, value in layer[tensor].items()
    )
    importance = ImportanceTable(
        model="resnet50", fingerprint=costs.fingerprint, method="limpq", seed=0,
        data_fingerprint="published", rows=rows,
    )  # fmt: skip

    def make(accounting, solver="auto", repair="erase"):
        return SolveRequest(
            costs=costs, importance=importance, choices=CHOICES, limits=LIMITS, alpha=2.0,
            accounting=accounting, solver=solver, repair=repair,
        )  # fmt: skip

    return make


def published_lists(golden):
    layers = golden["layers"]
    return (
        [layer["published_weight_bits"] for layer in layers],
        [layer["published_act_bits"] for layer in layers],
    )


@pytest.mark.parametrize("solver", ["highs", "cbc"])
@pytest.mark.parametrize("repair", ["erase", "isotonic", "keep"])
def test_published_policy(golden, request_for, solver, repair):
    result = solve(request_for(AS_PUBLISHED_LIMPQ, solver, repair))
    assert result.status is SolveStatus.PROVEN_OPTIMAL
    assert lists_from_policy(result.policy, resnet50()) == published_lists(golden)
    assert round(result.objective, 6) == golden["expected"]["objective"] == 4.617439
    assert round(result.policy.cost.bitops_searched / 1e9, 6) == 48.283189
    assert round(result.policy.cost.compression, 4) == 12.2029
    assert len(result.violations) == 2
    assert {v.layer for v in result.violations} == {"layer4.0.downsample.0", "layer4.2.conv3"}


@pytest.mark.parametrize("solver", ["highs", "cbc"])
def test_exact_macs_give_another_optimum(request_for, solver):
    result = solve(request_for(STANDARD, solver))
    assert result.status is SolveStatus.PROVEN_OPTIMAL
    assert round(result.objective, 6) == 4.630866


def test_published_policy_is_infeasible_under_exact_macs(golden, request_for):
    request = request_for(STANDARD)
    policy = policy_from_lists(request.costs, *published_lists(golden))
    assert round(policy.cost.bitops_searched / 1e9, 6) == 47.860679
    from solvers.problem import build_problem

    problem = build_problem(
        request.costs, CHOICES, LIMITS, importance=request.importance, alpha=2.0
    )
    assert not problem.fits(policy.bits_by_name())
    uses = problem.total_uses(policy.bits_by_name())
    bitops, size = problem.ceilings
    assert uses[0] > bitops.bound
    assert uses[1] <= size.bound


def test_beyond_the_largest_compression(request_for):
    from dataclasses import replace

    limits = (parse_limit("compression_rate=13x"),)
    result = solve(replace(request_for(STANDARD), limits=limits))
    assert result.status is SolveStatus.INFEASIBLE
    assert result.infeasibility.limits[0].shown_smallest == pytest.approx(12.88, abs=0.005)
