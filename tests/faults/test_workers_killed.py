"""Row 1, and rows 6, 19, 26 in real workers: killed, out of memory or disk, frozen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Command
    from fault_ledger import Ledger

pytestmark = pytest.mark.ray

# Every named point, in each kind of phase, on either rank.
KILLS = [
    {"point": "start", "phase": "pretrain", "rank": 0},
    {"point": "mid-step", "phase": "pretrain", "rank": 1, "at": 2},
    {"point": "mid-save", "phase": "pretrain", "rank": 0, "at": 1},
    {"point": "mid-save", "phase": "pretrain", "rank": 1, "at": 2},
    {"point": "after-save", "phase": "pretrain", "rank": 0, "at": 2},
    {"point": "after-report", "phase": "pretrain", "rank": 1, "at": 1},
    {"point": "start", "phase": "limpq.indicators", "rank": 1},
    {"point": "mid-step", "phase": "limpq.indicators", "rank": 0, "at": 3},
    {"point": "mid-save", "phase": "limpq.indicators", "rank": 0, "at": 4},
    {"point": "after-save", "phase": "limpq.indicators", "rank": 1, "at": 1},
    {"point": "after-report", "phase": "limpq.indicators", "rank": 0, "at": 1},
    {"point": "mid-step", "phase": "weight_training", "rank": 0, "at": 5},
    {"point": "mid-save", "phase": "weight_training", "rank": 0, "at": 1},
    {"point": "after-save", "phase": "weight_training", "rank": 0, "at": 1},
]


def _restarts(command: Command, failure: str) -> list[dict[str, Any]]:
    return [
        e["data"] for e in command.journal()
        if e["kind"] == "step_restarted" and e["data"]["failure"] == failure
    ]  # fmt: skip


@pytest.mark.slow
def test_workers_killed_at_every_named_point(
    tmp_path: Path, ledger: Ledger, undisturbed_search: dict[str, Any]
) -> None:
    from conftest import FULL, Command

    command = Command(tmp_path / "work", FULL)
    command.with_faults([{**kill, "do": "SIGKILL"} for kill in KILLS])
    kind = "SIGKILL of a Ray Train worker at a named point"
    code = command.run("run", "tiny.yaml", timeout_s=3000)
    ledger.inject(1, kind, command.fired)
    assert code == 0, command.output
    assert command.fired == len(KILLS)
    # One restart is told for each, and only for each.
    assert len(_restarts(command, "infrastructure")) == len(KILLS)
    command.assert_no_orphans()
    command.assert_sound(undisturbed_search)
    ledger.survive(1, kind, command.fired)


def test_one_worker_killed_inside_a_save(
    command: Command, ledger: Ledger, undisturbed: dict[str, Any]
) -> None:
    """The short form, part of ``make test``."""
    command.with_faults([{"point": "mid-save", "rank": 0, "at": 4, "do": "SIGKILL"}])
    kind = "SIGKILL of a Ray Train worker inside a save"
    code = command.run("run", "tiny.yaml")
    ledger.inject(1, kind, command.fired)
    assert code == 0, command.output
    assert "infrastructure: rank 0" in command.output
    command.assert_no_orphans()
    command.assert_sound(undisturbed)
    ledger.survive(1, kind, command.fired)


@pytest.mark.slow
def test_a_budget_that_is_used_up_fails_the_step_and_the_next_start_goes_on(
    command: Command, ledger: Ledger, undisturbed: dict[str, Any]
) -> None:
    command.with_faults(
        [{"point": "mid-step", "rank": 1, "at": 30, "do": "SIGKILL"} for _ in range(2)]
    )
    kind = "SIGKILL of a worker, no restart allowed"
    code = command.run("run", "tiny.yaml", "--set", "cluster.retries.infrastructure=1")
    ledger.inject(1, kind, command.fired)
    assert code == 3, command.output
    assert "1 restarts of 1 allowed are used up" in command.output
    code = command.run("run", "tiny.yaml")
    assert code == 0, command.output
    command.assert_no_orphans()
    command.assert_sound(undisturbed)
    ledger.survive(1, kind, command.fired)


@pytest.mark.slow
@pytest.mark.parametrize("at", [2, 40, 110])
def test_a_frozen_worker_is_noticed_and_replaced(
    command: Command, ledger: Ledger, undisturbed: dict[str, Any], at: int
) -> None:
    """Rank 1 stands still; rank 0 waits in a collective, and its watchdog ends it."""
    command.with_faults([{"point": "mid-step", "rank": 1, "at": at, "do": "SIGSTOP"}])
    kind = "SIGSTOP of a Ray Train worker"
    code = command.run("run", "tiny.yaml", "--set", "cluster.hang_s=45")
    ledger.inject(26, kind, command.fired)
    assert code == 0, command.output
    stacks = (command.root / "steps/pretrain/hang-rank0.txt").read_text()
    assert "reduce_gradients" in stacks or "all_reduce" in stacks or "barrier" in stacks
    command.assert_no_orphans()
    command.assert_sound(undisturbed)
    ledger.survive(26, kind, command.fired)


@pytest.mark.slow
def test_a_worker_out_of_memory_is_tried_once_more_with_fewer_workers(
    command: Command, ledger: Ledger
) -> None:
    command.with_faults([{"point": "mid-step", "rank": 0, "at": 30, "do": "oom"}])
    kind = "MemoryError in a Ray Train worker"
    code = command.run("run", "tiny.yaml")
    ledger.inject(19, kind, command.fired)
    assert code == 0, command.output
    (restart,) = _restarts(command, "resource")
    assert restart["num_workers"] == 1
    command.assert_no_orphans()
    ledger.survive(19, kind, command.fired)


@pytest.mark.slow
def test_a_full_disk_in_a_worker_ends_with_code_6_and_the_next_start_goes_on(
    command: Command, ledger: Ledger, undisturbed: dict[str, Any]
) -> None:
    full = {"point": "mid-save", "rank": 0, "at": 5, "do": "enospc"}
    command.with_faults([full, full])
    kind = "ENOSPC in a Ray Train worker's save"
    code = command.run("run", "tiny.yaml")
    ledger.inject(6, kind, command.fired)
    assert code == 6, command.output
    assert "No space left on device" in command.output
    code = command.run("run", "tiny.yaml")
    assert code == 0, command.output
    command.assert_no_orphans()
    command.assert_sound(undisturbed)
    ledger.survive(6, kind, command.fired)
