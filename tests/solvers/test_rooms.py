"""The solver room stands alone, and the counted facts hold where they should."""

import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import solvers
from benchmarks.instances import CHOICES, indicators
from benchmarks.networks import NETWORKS, resnet18
from solvers.accounting import (
    STANDARD,
    Accounting,
    accounting_named,
    check_magnitude,
    total_bitops,
)
from solvers.batch import Question, Tables, answer, chunked, whole_fronts
from solvers.certificate import SolveStatus
from solvers.controls import greedy, random_policy, reversed_importance, uniform
from solvers.devices import devices_from_mapping, generate_devices, load_devices_csv
from solvers.errors import LimitError, SolversError, TableError
from solvers.explain import explain_infeasible
from solvers.frontier import FrontTooLargeError, front
from solvers.layer_report import report_layer
from solvers.limits import parse_limit
from solvers.liveness import peak_activation_bits
from solvers.pool import near_optimal
from solvers.problem import build_problem
from solvers.published import lists_from_policy, policy_from_lists
from solvers.reach import reachable
from solvers.result import SolveRequest
from solvers.solve import changed_by_repair, solve
from solvers.tables import BitChoices, LayerBits


def test_nothing_heavy_is_imported():
    code = (
        "import sys, solvers.storage, solvers.solve, solvers.frontier, solvers.batch\n"
        "bad = {'torch', 'ray', 'mlflow', 'yaml', 'pydantic', 'pulp'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_every_name_at_the_door_is_there():
    for name in solvers.__all__:
        assert getattr(solvers, name) is not None
    with pytest.raises(AttributeError):
        _ = solvers.nothing_of_that_name


@pytest.mark.parametrize(
    "accounting",
    [Accounting(spatial=s, first_act_bits=f, count_fp32_rest=c)  # type: ignore[arg-type]
     for s in ("exact", "unfloored") for f in (None, 8, 32) for c in (False, True)],
)  # fmt: skip
def test_accounting_names_read_back(accounting):
    assert accounting_named(accounting.name) == accounting


def test_unknown_accounting():
    with pytest.raises(TableError, match="'rough' is unknown"):
        accounting_named("unfloored+rough")


def test_the_first_activation_is_charged_as_the_accounting_says(tiny):
    bits = {s.name: s.pinned or LayerBits(weight_bits=2, act_bits=4) for s in tiny}
    exact = total_bitops(tiny, bits, STANDARD)
    charged = total_bitops(tiny, bits, Accounting(first_act_bits=32))
    assert charged - exact == 1000 * 8 * (32 - 8)


def test_counts_beyond_64_bits_are_refused(tiny, pairs):
    huge = replace(tiny, layers=(*tiny.layers[:-1], replace(tiny.layers[-1], num_macs=10**18)))
    with pytest.raises(TableError, match="layer 'head'"):
        check_magnitude(huge)
    # The FP32 rest is counted by `fp32-rest` and can leave 64 bits as well.
    huge = replace(tiny, layers=(*tiny.layers[:-1], replace(tiny.layers[-1], num_biases=10**18)))
    with pytest.raises(TableError, match="layer 'head'"):
        check_magnitude(huge)
    with pytest.raises(TableError, match="num_other_params"):
        check_magnitude(replace(tiny, num_other_params=10**30))
    limits = [parse_limit("weight_bytes=1MB")]
    with pytest.raises(TableError, match="num_other_params"):
        build_problem(replace(tiny, num_other_params=10**30), pairs, limits, importance=None)


def test_peak_by_hand(tiny):
    bits = {s.name: s.pinned or LayerBits(weight_bits=2, act_bits=2) for s in tiny}
    bits["b"] = LayerBits(weight_bits=2, act_bits=4)
    # Step 2: the tensor of a and b at the wider 4 bit, the head's at 8, the unread one at 32.
    assert peak_activation_bits(tiny, bits, STANDARD) == 512 * 4 + 256 * 8 + 64 * 32


def test_the_front_answers_like_the_solver_on_all_networks():
    for name, network in NETWORKS.items():
        costs = network()
        importance = indicators(costs, 1)
        whole = front(costs, importance, CHOICES, alpha=2.0)
        assert np.all(np.diff(whole.use) > 0)
        assert np.all(np.diff(whole.objective) < 0)
        for level in ("3x3", "4x4"):
            limit = parse_limit(f"bitops_level={level}")
            direct = solve(
                SolveRequest(
                    costs=costs, importance=importance, choices=CHOICES, limits=(limit,), alpha=2.0
                )
            )
            from_front = whole.at(limit)
            assert direct.objective == pytest.approx(from_front.objective, rel=1e-12), name
            assert from_front.policy.certificate.uses[0].slack >= 0
            assert direct.status is from_front.status is SolveStatus.PROVEN_OPTIMAL


def test_one_percent_more_buys_what_the_certificate_says():
    costs = resnet18()
    request = SolveRequest(
        costs=costs, importance=indicators(costs, 0), choices=CHOICES, alpha=2.0,
        limits=(parse_limit("bitops=20G"),), prices="resolved",
    )  # fmt: skip
    result = solve(request)
    richer = solve(replace(request, limits=(parse_limit("bitops=20.2G"),)))
    assert result.uses[0].price == pytest.approx(result.objective - richer.objective, abs=1e-9)
    relaxed = solve(replace(request, prices="relaxed")).uses[0].price
    assert 0.3 < relaxed / result.uses[0].price < 3


def test_a_front_that_is_too_large_is_solved_limit_by_limit(tiny, tiny_importance, pairs):
    with pytest.raises(FrontTooLargeError):
        front(tiny, tiny_importance, pairs, alpha=1.0, cap=3)
    tables = Tables(costs=tiny, importance=tiny_importance, choices=pairs)
    low, high = reachable(tiny, pairs, "bitops")
    questions = [
        Question(label=str(i), alpha=alpha, limits=(parse_limit(f"bitops={int(amount)}"),))
        for alpha in (0.5, 2.0)
        for i, amount in enumerate(np.linspace(low - 10, high + 10, 9))
    ]
    by_front = answer(tables, questions)
    one_by_one = answer(tables, questions, cap=3)
    assert [r.solver for r in by_front.rows] == ["front"] * 18
    assert "front" not in {r.solver for r in one_by_one.rows}
    for a, b in zip(by_front.rows, one_by_one.rows, strict=True):
        assert (a.label, a.status, a.objective, a.policy_id) == (
            b.label, b.status, b.objective, b.policy_id,
        )  # fmt: skip
    assert sum(r.status is SolveStatus.INFEASIBLE for r in by_front.rows) == 2
    points = whole_fronts(tables, [0.5], parse_limit(f"bitops={int(high)}"))
    assert len(points.rows) == len(front(tiny, tiny_importance, pairs, alpha=0.5))


def test_chunks_keep_every_question_and_alphas_together():
    limit = (parse_limit("bitops=1G"),)
    questions = [Question(label=str(i), alpha=i % 3, limits=limit) for i in range(10)]
    chunks = list(chunked(questions, 4))
    assert [len(c) for c in chunks] == [4, 4, 2]
    assert sorted(q.label for c in chunks for q in c) == sorted(q.label for q in questions)
    alphas = [q.alpha for c in chunks for q in c]
    assert alphas == sorted(alphas)


def test_why_one_limit_is_out_of_reach(tiny, tiny_importance, pairs):
    low, _ = reachable(tiny, pairs, "bitops")
    request = SolveRequest(
        costs=tiny, importance=tiny_importance, choices=pairs, alpha=1.0,
        limits=(parse_limit(f"bitops={int(low) - 1}"), parse_limit("bitops=1G")),
    )  # fmt: skip
    why = solve(request).infeasibility
    assert why.limits[0].smallest == low
    assert not why.limits[0].is_reachable_alone
    assert why.limits[1].is_reachable_alone
    assert why.clash == (request.limits[0].text,)
    (stem, head) = why.causes
    assert (stem.name, stem.saves, stem.is_enough) == ("stem", 1000 * (64 - 4), True)
    assert (head.name, head.saves, head.is_enough) == ("head", 200 * (64 - 4), True)


def test_why_limits_clash_together(tiny, tiny_importance):
    # A group ties a cheap layer to a costly one: each limit is met alone, never both.
    grouped = replace(
        tiny, layers=tuple(s if s.pinned else replace(s, group="g") for s in tiny.layers)
    )
    choices = BitChoices(weight_bits=(2, 8), act_bits=(2, 8), overrides=())
    from solvers.latency import LatencyTable

    rows = tuple(
        (s.name, w, a, {("a", 8): 1, ("b", 2): 1}.get((s.name, w), 100) * 10**6)
        for s in tiny for w in (2, 8) for a in (2, 8)
    )  # fmt: skip
    latency = LatencyTable(name="odd", rows=rows)
    limits = (
        parse_limit("latency_us=310", latency),
        parse_limit("mean_weight_bits=5@a,b"),
        parse_limit("bitops=1G"),
    )
    request = SolveRequest(
        costs=grouped, importance=tiny_importance, choices=choices, alpha=1.0,
        limits=(parse_limit("latency_us=205", latency), *limits[1:]),
    )  # fmt: skip
    result = solve(request)
    assert result.status is SolveStatus.INFEASIBLE
    why = explain_infeasible(request)
    assert [c.name for c in why.causes if c.is_enough] == ["g"]
    assert solve(replace(request, costs=tiny)).status is SolveStatus.PROVEN_OPTIMAL


def test_controls_respect_the_limits(tiny, tiny_importance, pairs):
    limits = [parse_limit("bitops_level=4x4"), parse_limit("mean_weight_bits=5")]
    problem = build_problem(tiny, pairs, limits, importance=tiny_importance, alpha=1.0)
    best = solve(
        SolveRequest(
            costs=tiny, importance=tiny_importance, choices=pairs, limits=tuple(limits), alpha=1.0
        )
    )
    same = uniform(tiny, pairs, limits)
    assert {b for n, b in same.layers if n in ("a", "b")} == {LayerBits(weight_bits=4, act_bits=4)}
    stepped = greedy(tiny, tiny_importance, pairs, limits, alpha=1.0)
    drawn = [random_policy(tiny, pairs, limits, seed=s) for s in range(20)]
    assert len({p.policy_id for p in drawn}) > 3
    assert drawn[3].policy_id == random_policy(tiny, pairs, limits, seed=3).policy_id
    for policy in (same, stepped, *drawn):
        assert problem.fits(policy.bits_by_name())
        picks = [u.options.index(policy.bits_of(u.label)) for u in problem.units]
        assert problem.objective(picks) >= best.objective - 1e-12
    impossible = [parse_limit("bitops=1")]
    assert uniform(tiny, pairs, impossible) is None
    assert random_policy(tiny, pairs, impossible, seed=0) is None
    assert greedy(tiny, tiny_importance, pairs, impossible, alpha=1.0) is None


def test_random_policies_use_their_budget_up():
    costs = resnet18()
    limit = parse_limit("bitops_level=4x4")
    bound = build_problem(costs, CHOICES, [limit], importance=None).ceilings[0].bound
    for seed in range(5):
        used = random_policy(costs, CHOICES, [limit], seed=seed).cost.bitops
        assert 0.97 * bound < used <= bound


def test_reversed_ranks():
    costs = resnet18()
    table = indicators(costs, 0)
    turned = reversed_importance(table)
    values, back = table.values(), turned.values()
    for bits in (2, 6):
        layers = [s.name for s in costs.searched]
        order = sorted(layers, key=lambda n: values[n, "weight", bits])
        assert sorted(layers, key=lambda n: back[n, "weight", bits]) == order[::-1]
        assert sorted(values[n, "weight", bits] for n in layers) == sorted(
            back[n, "weight", bits] for n in layers
        )
    assert reversed_importance(turned).values() == values


def test_pool_is_complete_and_in_order(tiny, tiny_importance, pairs):
    limits = (parse_limit("bitops_level=4x4"),)
    request = SolveRequest(
        costs=tiny, importance=tiny_importance, choices=pairs, limits=limits, alpha=1.0
    )
    found = near_optimal(request, within_percent=20.0, most=50)
    assert found.end == "complete"
    pool = found.policies
    from solvers.exhaustive import every_policy

    problem = build_problem(tiny, pairs, limits, importance=tiny_importance, alpha=1.0)
    fitting = sorted(c for c, (u,), _ in every_policy(problem) if u <= problem.ceilings[0].bound)
    expected = [c for c in fitting if c <= fitting[0] * 1.2]
    assert [r.objective for r in pool] == pytest.approx(expected)
    assert len({r.policy.policy_id for r in pool}) == len(pool) > 1


def test_the_second_choice_of_a_layer(tiny, tiny_importance, pairs):
    request = SolveRequest(
        costs=tiny, importance=tiny_importance, choices=pairs, alpha=1.0,
        limits=(parse_limit("bitops_level=4x4"),),
    )  # fmt: skip
    report = report_layer(request, "a")
    from solvers.exhaustive import every_policy

    problem = build_problem(tiny, pairs, request.limits, importance=tiny_importance, alpha=1.0)
    fitting = sorted(
        (c, p) for c, (u,), p in every_policy(problem) if u <= problem.ceilings[0].bound
    )
    best, picks = fitting[0]
    unit = [u.label for u in problem.units].index("a")
    second, other = next((c, p) for c, p in fitting if p[unit] != picks[unit])
    assert report.chosen == problem.units[unit].options[picks[unit]]
    assert report.next_bits == problem.units[unit].options[other[unit]]
    assert report.next_costs == pytest.approx(second - best)
    assert [o.is_chosen for o in report.options].count(True) == 1
    with pytest.raises(TableError, match="no layer 'zz'"):
        report_layer(request, "zz")


def test_published_lists_go_both_ways(tiny):
    policy = policy_from_lists(tiny, [2, 4], [4, 8])
    assert lists_from_policy(policy, tiny) == ([2, 4], [4, 8])
    assert policy.bits_of("stem") == LayerBits(weight_bits=8, act_bits=8)
    with pytest.raises(SolversError, match="3 weight bits for 2 searched layers"):
        policy_from_lists(tiny, [2, 4, 4], [4, 8])


def test_devices_from_ranges_and_lists(tmp_path):
    mapping = {"ranges": {"count": 1000, "seed": 3, "limits": {"bitops": ["10G", "60G"]}}}
    devices = devices_from_mapping(mapping, "d.yaml")
    assert len(devices) == 1000
    assert devices == devices_from_mapping(mapping, "d.yaml")
    amounts = [d.limits[0].limit for d in devices]
    assert 10**10 <= min(amounts) < max(amounts) <= 6 * 10**10
    path = tmp_path / "d.csv"
    path.write_text("name,bitops,weight_bytes\nphone,23.07G,\nwatch,1G,2MiB\n")
    phone, watch = load_devices_csv(path)
    assert phone.limits == (parse_limit("bitops=23.07G"),)
    assert watch.limits == (parse_limit("bitops=1G"), parse_limit("weight_bytes=2MiB"))
    low, high = parse_limit("mean_weight_bits=2"), parse_limit("mean_weight_bits=6")
    (only,) = generate_devices({"mean_weight_bits": (low, high)}, 1, 0, spacing="linear")
    assert isinstance(only.limits[0].limit, Fraction)


@pytest.mark.parametrize(
    ("mapping", "complaint"),
    [
        ({"name": "x", "limits": {"flops": 3}}, "'flops'"),
        ({"name": "x", "limits": {"bitops": "0G"}}, "above 0"),
        ({"name": "x", "limits": {"bitops": "3MiB"}}, "unit 'MiB'"),
        ({"name": "x", "limits": {}}, "no limits"),
        ({"name": "x", "limit": {"bitops": 3}}, "key 'limit' is unknown"),
        ({"limits": {"bitops": 3}}, "key 'name'"),
        ({"name": "x", "limits": {"latency_us": 3}, "latency_table": 4}, "latency_table"),
        ({"devices": []}, "at least one"),
        ({"devices": [{"name": "x", "limits": {"bitops": 3}}] * 2}, "stands twice"),
        ({"ranges": {"limits": {"bitops": [3]}}}, "smallest, largest"),
        ({"ranges": {"limits": {"bitops": [3, 2]}}}, "not a range"),
        ({"ranges": {"limits": {"mean_weight_bits": [2, "3@l1"]}}}, "name different layers"),
        ({"ranges": {"limits": {"mean_act_bits": ["2@a", "3@b"]}}}, "name different layers"),
        ({"ranges": {"limits": {"bitops_level": ["2x2", "3x3"]}}}, "give bitops"),
        ({"ranges": {"limits": {"latency_us": [100, 900]}}}, "list devices"),
        ({"ranges": {"limits": {"bitops": [1, 2]}, "count": 0}}, "count"),
        ([], "expected a mapping"),
    ],
)
def test_impossible_devices(mapping, complaint):
    with pytest.raises(SolversError, match=complaint) as caught:
        devices_from_mapping(mapping, "d.yaml")
    assert "d.yaml" in str(caught.value)
    assert isinstance(caught.value, (LimitError, SolversError))


def test_what_the_repair_rule_changes(tiny, tiny_importance, pairs):
    some_changed = False
    for layer in ("a", "b"):
        for tensor in ("weight", "act"):
            # At 8 bit this tensor looks worst of all; pooling makes 4 bit look bad with it.
            rows = tuple(
                replace(r, value=9.0) if (r.layer, r.tensor, r.bits) == (layer, tensor, 8) else r
                for r in tiny_importance.rows
            )
            request = SolveRequest(
                costs=tiny, importance=replace(tiny_importance, rows=rows), choices=pairs,
                limits=(parse_limit("bitops_level=4x4"),), alpha=1.0,
            )  # fmt: skip
            result = solve(request)
            assert [(v.layer, v.tensor, v.bits) for v in result.violations] == [(layer, tensor, 4)]
            kept = solve(replace(request, repair="keep"))
            differ = tuple(n for n, bits in result.policy.layers if kept.policy.bits_of(n) != bits)
            assert changed_by_repair(request, result) == differ
            assert changed_by_repair(replace(request, repair="keep"), kept) == ()
            some_changed = some_changed or bool(differ)
    assert some_changed


def test_without_a_policy_nobody_knows_what_the_repair_rule_changes(tiny, tiny_importance, pairs):
    request = SolveRequest(
        costs=tiny, importance=tiny_importance, choices=pairs, alpha=1.0,
        limits=(parse_limit("bitops=1"),),
    )  # fmt: skip
    for repair in ("isotonic", "keep", "erase"):
        asked = replace(request, repair=repair)
        assert changed_by_repair(asked, solve(asked)) is None
