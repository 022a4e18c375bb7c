"""Solves in batches: order of the rows, and policies kept while other batches still solve."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from benchmarks.instances import CHOICES, indicators
from benchmarks.networks import resnet18
from orchestrator.cells import Cell, LimitSet
from orchestrator.cluster_config import ClusterConfig
from orchestrator.config_schema import SearchConfig
from orchestrator.device_sweep import device_questions
from orchestrator.policies import Candidate, solved_candidates
from orchestrator.retries import RetriesConfig
from orchestrator.solve_tasks import (
    SweepTables,
    answer_questions,
    solve_cells,
    solve_on_cluster,
)
from orchestrator.sweep import _keep
from solvers.devices import Device, generate_devices
from solvers.limits import parse_limit
from solvers.storage import load_policy
from trainers.errors import InterruptedPhaseError


@pytest.fixture
def fake_ray(monkeypatch):
    """Tasks run when they are asked for, in this process; only the order of calls is Ray's."""
    log = []

    def remote(**options):
        log.append((options["num_cpus"], options["max_retries"], options["retry_exceptions"]))

        def of(body):
            def submit(*arguments):
                log.append("submitted")
                return lambda: body(*arguments)

            return SimpleNamespace(remote=submit)

        return of

    def get(task):
        log.append("got")
        return task()

    def wait(refs, timeout):
        return refs, []

    def cancel(_):
        log.append("cancelled")

    played = SimpleNamespace(remote=remote, get=get, wait=wait, cancel=cancel)
    monkeypatch.setitem(sys.modules, "ray", played)
    return log


def test_rows_stay_in_order_and_policies_are_kept_as_tasks_end(fake_ray, tmp_path):
    costs = resnet18()
    ranges = {
        "bitops": (parse_limit("bitops=16G"), parse_limit("bitops=40G")),
        "weight_bytes": (parse_limit("weight_bytes=4MiB"), parse_limit("weight_bytes=6MiB")),
    }
    questions = device_questions(generate_devices(ranges, 7, 0), (2.0,))
    tables = SweepTables(
        costs=costs, choices=CHOICES, importance={"limpq": indicators(costs, 0)},
        search=SearchConfig(), accounting="standard",
    )  # fmt: skip

    def keep(policies):
        fake_ray.append("kept")
        _keep(tmp_path, policies)

    cluster = ClusterConfig(cpus_per_solve=0.5, retries=RetriesConfig(infrastructure=7))
    results = solve_on_cluster(answer_questions, tables, questions, 3, keep, cluster)
    # A lost worker's task is started again by its budget; what a task raised is not.
    assert fake_ray.pop(0) == (0.5, 7, False)
    assert fake_ray == ["submitted"] * 3 + ["got", "kept"] * 3
    assert [row.label for row in results.rows] == [q.label for q in questions]
    direct = answer_questions(tables, questions).results
    assert [r.policy_id for r in results.rows] == [r.policy_id for r in direct.rows]
    ids = {row.policy_id for row in results.rows if row.policy_id}
    assert {p.stem for p in (tmp_path / "policies").iterdir()} == ids
    assert all(load_policy(tmp_path / "policies" / f"{i}.json").policy_id == i for i in ids)


def test_who_asks_to_stop_waits_for_no_task_and_leaves_none(fake_ray, monkeypatch):
    costs = resnet18()
    questions = device_questions(
        [Device(name=str(n), limits=(parse_limit("bitops=20G"),)) for n in range(3)], (2.0,)
    )
    tables = SweepTables(
        costs=costs, choices=CHOICES, importance={"limpq": indicators(costs, 0)},
        search=SearchConfig(), accounting="standard",
    )  # fmt: skip
    kept, looks = [], []

    def solve_until(number):
        looks.clear()
        solve_on_cluster(
            answer_questions, tables, questions, 1, kept.append,
            stopped=lambda: looks.append(None) or len(looks) > number,
        )  # fmt: skip

    with pytest.raises(InterruptedPhaseError, match="1 of 3 tasks"):
        solve_until(2)
    assert fake_ray[1:] == ["submitted"] * 3 + ["got"] + ["cancelled"] * 2
    assert len(kept) == 1
    fake_ray.clear()
    with pytest.raises(InterruptedPhaseError, match="before the first"):
        solve_until(0)
    assert "submitted" not in fake_ray
    # A task that does not end is no reason to wait for it.
    monkeypatch.setattr(sys.modules["ray"], "wait", lambda refs, timeout: ([], refs))
    with pytest.raises(InterruptedPhaseError, match="0 of 3 tasks"):
        solve_until(5)


def test_alphas_that_agree_to_six_digits_keep_their_own_names_and_answers():
    costs, limit = resnet18(), parse_limit("bitops=20G")
    asked = LimitSet(index=0, texts={"bitops": "20G"}, limits=(limit,), bounds={}, smallest={},
                     largest={}, resources={})  # fmt: skip
    alphas = (2.0, 2.0000001, 2.0000002)
    cells = [Cell(method="limpq", alpha=alpha, limit_set=asked) for alpha in alphas]
    tables = SweepTables(
        costs=costs, choices=CHOICES, importance={"limpq": indicators(costs, 0)},
        search=SearchConfig(), accounting="standard",
    )  # fmt: skip
    rows = {row.label: row for row in solve_cells(tables, cells).results.rows}
    found = solved_candidates(cells, rows, {}, {}, {})
    assert [each.solved.alpha for each in found] == list(alphas)
    # The names that finished runs have in their journals.
    assert cells[0].name == found[0].name == "limpq-a2-l0"
    assert len({each.name for each in found}) == 3
    half = Candidate(method="limpq", alpha=0.5, limit_set=asked, policy=None)
    assert half.name == "limpq-a0.5-l0"
